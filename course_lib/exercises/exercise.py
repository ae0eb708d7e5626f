"""What an exercise is; `check` works them off, `nb01` and so on hold those of a notebook."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


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
