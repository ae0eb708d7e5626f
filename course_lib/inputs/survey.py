"""A survey of people: who they are, and how they answered before and after each stimulus."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

Person = dict[str, str]


@dataclass(frozen=True)
class Survey:
    """The answers of one population.

    `answers` has one row per answer: `person` (index into the lists by person), `item` (the
    stimulus's id, "" for the initial answer), `text` (what was shown, "" at first) and `rating`
    (an integer from `low` to `high`).
    """

    people: list[Person]  # n personas: field to text, in the codebook's order
    person_ids: list[str]  # n
    weights: np.ndarray  # (n,) how many people each stands for; mean 1
    answers: pd.DataFrame
    low: int
    high: int
    question: str  # asked after every stimulus
    about: str  # the system text: who answers, and what about
