"""Labellers: noisy choosers on the judge's score, whose noise and bias are known exactly.

The probability that a panel prefers answer a over b is Bradley and Terry's (1952),

    p(a over b) = sigmoid((u(a) - u(b)) / noise),
    u = judge's score + confidence_bias * confidence + length_bias * words / 50,

so the best accuracy that any reward model can reach against one panel's labels is known: it is the
mean of max(p, 1 - p), see `ceiling`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from course_lib.world.judge import Row, confidence, judge


@dataclass(frozen=True)
class Panel:
    """A panel of labellers; all numbers are in points of the judge's score.

    noise: points of difference at which the better answer is chosen with probability 0.73.
    confidence_bias: points per confident phrase (`judge.confidence`).
    length_bias: points per 50 words.
    """

    name: str
    noise: float
    confidence_bias: float = 0.0
    length_bias: float = 0.0


UNBIASED = Panel("unbiased", noise=1.4)
"""The default panel: chooses by true quality, with noise.

With this noise two labellers agree on about 75 of 100 pairs of the policy's answers, about as often
as InstructGPT's did (72.6%; Ouyang et al. 2022, section 3.4).
"""

BIASED = Panel("biased", noise=1.4, confidence_bias=3.0, length_bias=2.0)
"""A planted bias, named wherever it is used: this panel likes confident and longer answers."""


def utility(panel: Panel, row: Row, answer: str) -> float:
    """What the panel values: the true score plus the panel's bias terms, in points."""
    return (
        judge(row, answer).score
        + panel.confidence_bias * confidence(answer)
        + panel.length_bias * len(answer.split()) / 50
    )


def preference_probability(panel: Panel, row: Row, a: str, b: str) -> float:
    """Probability that the panel prefers answer `a` over answer `b` to the same row."""
    gap = (utility(panel, row, a) - utility(panel, row, b)) / panel.noise
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else 1 - 1 / (1 + math.exp(gap))


def choose(panel: Panel, row: Row, a: str, b: str, rng: random.Random) -> bool:
    """True if this time the panel prefers `a`: one draw with `preference_probability`."""
    return rng.random() < preference_probability(panel, row, a, b)


def rank(panel: Panel, row: Row, answers: Sequence[str], rng: random.Random) -> list[int]:
    """Indices of `answers` from best to worst, one Plackett-Luce draw.

    Gumbel noise of scale `noise` on each utility, then sort: each pair of the ranking is
    Bradley-Terry distributed with `preference_probability` (Yellott 1977).
    """
    noisy = []
    for answer in answers:
        gumbel = -math.log(-math.log(rng.random() or 1e-300))
        noisy.append(utility(panel, row, answer) + panel.noise * gumbel)
    return sorted(range(len(answers)), key=lambda i: -noisy[i])


def ceiling(panel: Panel, rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> float:
    """Best possible accuracy on this panel's labels: the mean of max(p, 1 - p), exact.

    `pairs[i]` are two answers to `rows[i]`. No reward model can be right more often in expectation,
    because the panel's own choice is random with probability p.
    """
    best = 0.0
    for row, (a, b) in zip(rows, pairs, strict=True):
        p = preference_probability(panel, row, a, b)
        best += max(p, 1 - p)
    return best / len(pairs)
