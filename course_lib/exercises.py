"""Exercises that check themselves: `check("sft_loss", my_function)`.

A student's function is compared with the reference on random and on adversarial inputs. Where it is
wrong and equals a known mistake on all of them, the mistake is named. An unsolved exercise prints a
line and never raises, so that a notebook runs from top to bottom.

The exercises themselves are tables, one a notebook (`exercises_01`); this file works them off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from course_lib import CourseError

SEED = 20  # of the random inputs, the same for the reference, the mistakes and the student


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        task: what the function does, with its arguments and their shapes.
        reference: the library's function, or a plain one.
        inputs: `rng -> [(label, arguments), ...]`; called anew for each function, so that one that
            changes its arguments harms nobody.
        mistakes: a sentence for the student -> the function with that mistake.
        hint: one more sentence, on demand.
        gradient: whether the gradient with respect to the first argument is compared, too.
    """

    task: str
    reference: Callable
    inputs: Callable[[np.random.Generator], list[tuple[str, tuple]]]
    mistakes: dict[str, Callable] = field(default_factory=dict)
    hint: str = ""
    gradient: bool = False


def check(name: str, function: Callable) -> None:
    """Print whether `function` solves the exercise; raises only for an unknown name."""
    _, message = assess(find(name), function)
    print(f"{name}: {message}")


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
    from course_lib import exercises_01, exercises_02

    return {**exercises_01.EXERCISES, **exercises_02.EXERCISES}


def assess(exercise: Exercise, function: Callable) -> tuple[bool | None, str]:
    """(True: right, False: wrong, None: not solved yet) and a sentence. Never raises."""
    open_yet = (None, "still open. Write the function and run this cell again; `hint` helps.")
    if not callable(function):
        return open_yet
    wanted = outputs(exercise, exercise.reference)
    labels = [label for label, _ in exercise.inputs(np.random.default_rng(SEED))]
    try:
        with np.errstate(all="ignore"):  # a division by zero shows in the result
            found = outputs(exercise, function)
    except NotImplementedError:
        return open_yet
    except Exception as error:  # whatever a student's function does, the notebook goes on
        return False, f"✘ stopped with {type(error).__name__}: {error}"
    if all(result is None for result in found):
        return open_yet
    wrong = [i for i in range(len(wanted)) if not same(found[i], wanted[i])]
    if not wrong:
        return True, f"✔ right on all {len(wanted)} inputs, random and adversarial ones."
    for sentence, mistake in exercise.mistakes.items():
        if all(map(same, found, outputs(exercise, mistake))):
            return False, f"✘ {sentence}"
    return False, f"✘ {describe(found, wanted, labels, wrong)}"


def outputs(exercise: Exercise, function: Callable) -> list[Any]:
    """What `function` returns on each input, as float arrays (None where it returns None).

    With `gradient`, a pair of the value and the gradient with respect to the first argument.
    """
    results = []
    for _, arguments in exercise.inputs(np.random.default_rng(SEED)):
        if not exercise.gradient:
            results.append(as_array(function(*arguments)))
            continue
        first = arguments[0].detach().clone().requires_grad_()
        value = function(first, *arguments[1:])
        if isinstance(value, tuple):
            raise TypeError("return the loss alone, not a tuple")
        gradient = None
        if getattr(value, "requires_grad", False):
            value.sum().backward()
            gradient = first.grad
        results.append(None if value is None else (as_array(value), as_array(gradient)))
    return results


def as_array(value: Any) -> np.ndarray | None:
    """A number, list, array or tensor as a float64 array; None stays None."""
    if value is None:
        return None
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=float)


def same(a: Any, b: Any) -> bool:
    """Equal in shape and, up to float32's rounding, in value; pairs part by part."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return same(a[0], b[0]) and same(a[1], b[1])
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and np.allclose(a, b, rtol=2e-6, atol=1e-6, equal_nan=True)


def describe(found: list, wanted: list, labels: list[str], wrong: list[int]) -> str:
    """What a wrong function got right, and the first input on which it differs."""
    i = wrong[0]
    got, want = found[i], wanted[i]
    where = f"on the input {labels[i]!r}"
    if len(wrong) < len(wanted):
        where += f" (right on {len(wanted) - len(wrong)} of {len(wanted)})"
    if isinstance(want, tuple):  # value and gradient
        if got is not None and same(got[0], want[0]):
            if got[1] is None:
                return (
                    "the value is right, but no gradient flows back; keep it a tensor throughout."
                )
            return f"the value is right, but its gradient is not, {where}."
        got, want = None if got is None else got[0], want[0]
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
