"""Exercises that check themselves: `check("sft_loss", my_function)`.

A student's function is compared with the reference on random and on adversarial inputs. Where it is
wrong and equals a known mistake on all of them, the mistake is named. An unsolved exercise prints a
line and never raises, so that a notebook runs from top to bottom.

The exercises themselves are tables, one a notebook (`nb01`); this file works them off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from course_lib import CourseError
from course_lib.exercises import nb01, nb02, nb03, nb04, nb05, nb06, nb08, nb10
from course_lib.exercises.exercise import Exercise

SEED = 20  # of the random inputs, the same for the reference, the mistakes and the student


def check(name: str, function: Callable) -> None:
    """Print whether `function` solves the exercise; raises only for an unknown name."""
    _, message = assess(find(name), function)
    print(f"{name}: {message}")


def yours(name: str, function: Callable, library: Callable) -> Callable:
    """`function` where it solves the exercise, to be used from here on; else `library`."""
    solved, _ = assess(find(name), function)
    print(f"{name}: used from here on is {'your own' if solved else 'that of the library'}.")
    return function if solved else library


def hint(name: str) -> None:
    """Print what the exercise asks for, and a hint."""
    exercise = find(name)
    print(f"{name}: {exercise.task}\nHint: {exercise.hint}")


def find(name: str) -> Exercise:
    """The exercise of that name, or `CourseError`."""
    known = all_exercises()
    if name not in known:
        raise CourseError(f"There is no exercise {name!r}; the names are {', '.join(known)}.")
    return known[name]


def all_exercises() -> dict[str, Exercise]:
    """The exercises of all notebooks by name, in the order of the notebooks."""
    notebooks = (nb01, nb02, nb03, nb04, nb05, nb06, nb08, nb10)
    return {name: found for book in notebooks for name, found in book.EXERCISES.items()}


def assess(exercise: Exercise, function: Callable) -> tuple[bool | None, str]:
    """(True: right, False: wrong, None: not solved yet) and a sentence. Never raises."""
    open_yet = (None, "still open. Write the function and run this cell again; `hint` helps.")
    if not callable(function):
        return open_yet
    wanted = outputs(exercise, exercise.reference)
    try:
        with np.errstate(all="ignore"):  # a division by zero shows in the result
            found = outputs(exercise, function)
    except NotImplementedError:
        return open_yet
    except Exception as error:  # whatever a student's function does, the notebook goes on
        return False, f"✘ stopped with {type(error).__name__}: {error}"
    if all(value is None for value, _ in found):
        return open_yet
    right = list(map(same, found, wanted))
    if all(right):
        return True, f"✔ right on all {len(wanted)} inputs, random and adversarial ones."
    for sentence, mistake in exercise.mistakes.items():
        if all(map(same, found, outputs(exercise, mistake))):
            return False, f"✘ {sentence}"
    first = right.index(False)
    label, _ = exercise.inputs(np.random.default_rng(SEED))[first]
    where = f"on the input {label!r}"
    if any(right):
        where += f" (right on {sum(right)} of {len(right)})"
    return False, f"✘ {describe(found[first], wanted[first], where)}"


def outputs(exercise: Exercise, function: Callable) -> list[tuple]:
    """What `function` returns on each input, as (value, gradient): float arrays or None.

    The gradient is that with respect to the first argument, None unless `exercise.gradient`.
    """
    results = []
    for _, (first, *others) in exercise.inputs(np.random.default_rng(SEED)):
        if exercise.gradient:
            first = first.detach().clone().requires_grad_()
        value, gradient = function(first, *others), None
        if exercise.gradient and isinstance(value, tuple):
            raise TypeError("return the loss alone, not a tuple")
        if exercise.gradient and getattr(value, "requires_grad", False):
            value.sum().backward()
            gradient = first.grad
        results.append((as_array(value), as_array(gradient)))
    return results


def as_array(value: Any) -> np.ndarray | None:
    """A number, list, array or tensor as a float64 array; None stays None."""
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=float)


def same(a: tuple, b: tuple) -> bool:
    """Values and gradients equal in shape and, up to float32's rounding, in value."""
    return all(
        x is y
        if x is None or y is None
        else x.shape == y.shape and np.allclose(x, y, rtol=2e-6, atol=1e-6, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def describe(found: tuple, wanted: tuple, where: str) -> str:
    """What is wrong with the value and gradient of a function on one input."""
    (got, gradient), (want, _) = found, wanted
    if same((got,), (want,)):
        if gradient is None:
            return "the value is right, but no gradient flows back; keep it a tensor throughout."
        return f"the value is right, but its gradient is not, {where}."
    if got is None:
        return f"returned None {where}."
    if got.shape != want.shape:
        return f"expected the shape {want.shape}, got {got.shape}, {where}."
    return f"expected {brief(want)}, got {brief(got)}, {where}."


def brief(array: np.ndarray) -> str:
    """Up to six numbers of an array, at four digits."""
    numbers = [f"{value:.4g}" for value in array.ravel()[:6]]
    if array.ndim == 0:
        return numbers[0]
    return "[" + ", ".join(numbers) + (", ..." if array.size > 6 else "") + "]"
