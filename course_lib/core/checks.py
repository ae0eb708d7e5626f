"""Checks of what a user types: one sentence with the thing, its value and what was expected."""

import difflib
from collections.abc import Sequence
from typing import Any

from course_lib import CourseError


def suggest(name: str, known: Sequence[str]) -> str:
    """' (did you mean x?)' where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(name: str, value: object, choices: tuple | list) -> None:
    """Raise `CourseError` unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(map(repr, choices))
        hint = suggest(str(value), [str(c) for c in choices])
        raise CourseError(f"{name} is {value!r}; expected one of {known}{hint}.")


def check_value(name: str, value: Any, limits: tuple, default: Any = None) -> None:
    """Check one knob.

    Args:
        limits: `(low, high)` inclusive, `([choices],)`, or `()` for the type alone.
        default: the value whose type is expected; None takes any.
    """
    if limits and isinstance(limits[0], list | tuple):
        return check_choice(name, value, limits[0])
    want = (int, float) if isinstance(default, float) else type(default)
    is_bool = isinstance(value, bool) and not isinstance(default, bool)
    if default is not None and (is_bool or not isinstance(value, want)):
        kind = {"int": "a whole number", "float": "a number", "str": "text"}
        wanted = kind.get(type(default).__name__, type(default).__name__)
        raise CourseError(f"{name} is {value!r}; expected {wanted} such as {default!r}.")
    if limits and not limits[0] <= value <= limits[1]:
        raise CourseError(f"{name} is {value!r}; expected a value from {limits[0]} to {limits[1]}.")
