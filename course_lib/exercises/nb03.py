"""Exercises of notebook 03: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from course_lib.algorithms.losses import rank_pairs, reward_loss
from course_lib.exercises.exercise import Exercise

Ranks = list[int | None]


def _rank_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    rankings = {
        "random": [int(rank) for rank in rng.permutation(5) + 1],
        "the lecture's, with a tie": [3, 3, 2, 1],
        "one answer was not ranked": [2, None, 1, 3],
        "only one was ranked": [None, 1, None],
        "all tied": [1, 1, 1],
        "two answers": [2, 1],
    }
    return [(label, (ranks,)) for label, ranks in rankings.items()]


def _wins(ranks: Ranks, unranked: float = math.nan) -> np.ndarray:
    """(K, K), 1 where the row's answer was preferred to the column's."""
    numbers = torch.tensor([[unranked if rank is None else float(rank) for rank in ranks]])
    return rank_pairs(numbers)[0].numpy()


def _with_ties(ranks: Ranks, value: float) -> np.ndarray:
    """As `_wins`, and `value` where two different answers are tied."""
    wins = _wins(ranks)
    for i, a in enumerate(ranks):
        for j, b in enumerate(ranks):
            if i != j and a is not None and a == b:
                wins[i, j] = value
    return wins


def _loss_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Scores (K,) of one prompt's answers and wins (K, K)."""

    def case(ranks: Ranks, scale: float = 1.0) -> tuple:
        scores = torch.tensor(scale * rng.normal(size=len(ranks)), dtype=torch.float32)
        return scores, torch.tensor(_wins(ranks))

    return [
        ("random", case([int(rank) for rank in rng.permutation(5) + 1])),
        ("the lecture's, with a tie", case([3, 3, 2, 1])),
        ("one answer was not ranked", case([2, None, 1, 3])),
        ("two answers", case([2, 1])),
        ("scores far apart", case([1, 2, 3, 4], scale=40.0)),
        ("equal scores", case([1, 2, 3], scale=0.0)),
    ]


def _margins(scores: torch.Tensor, wins: torch.Tensor) -> torch.Tensor:
    """Winner's score minus loser's, of each pair (n,)."""
    return (scores[:, None] - scores[None, :])[wins == 1]


def _best_and_worst(scores: torch.Tensor, wins: torch.Tensor) -> torch.Tensor:
    best, worst = wins.sum(1).argmax(), wins.sum(0).argmax()
    return -F.logsigmoid(scores[best] - scores[worst])


def _probability_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    return [
        ("random", (rng.uniform(size=12),)),
        ("the first answer is always better", (rng.uniform(0.55, 0.95, size=6),)),
        ("the second answer is always better", (rng.uniform(0.05, 0.45, size=6),)),
        ("coin flips", (np.full(4, 0.5),)),
        ("labellers without noise", (np.array([0.0, 1.0, 1.0, 0.0, 0.0]),)),
        ("one pair", (np.array([0.3]),)),
    ]


def _score_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Scores (n,) to normalise, and those of the initial policy's answers (m,)."""
    return [
        ("random", (rng.normal(3, 2, size=6), rng.normal(1, 4, size=9))),
        ("one score", (np.array([2.5]), rng.normal(size=5))),
        ("better than the initial policy", (rng.normal(9, 1, size=4), rng.normal(0, 3, size=7))),
        ("the same scores", (np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 6.0]))),
    ]


EXERCISES: dict[str, Exercise] = {
    "wins": Exercise(
        task="wins(ranks): ranks of K answers, 1 the best, None where an answer was not ranked; "
        "returns a K x K table with 1 where the row's answer was preferred to the column's, else "
        "0. Equal ranks are a tie and make no pair.",
        reference=_wins,
        inputs=_rank_inputs,
        mistakes={
            "the wrong way round: rank 1 is the best, so the smaller rank wins.": (
                lambda ranks: _wins(ranks).T
            ),
            "tied answers beat each other: a tie says nothing, so it makes no pair.": (
                lambda ranks: _with_ties(ranks, 1.0)
            ),
            "ties count one half: the loss would push tied scores together; here they make no "
            "pair.": lambda ranks: _with_ties(ranks, 0.5),
            "an answer that was not ranked loses: nobody has said so.": (
                lambda ranks: _wins(ranks, math.inf)
            ),
            "an answer that was not ranked wins: nobody has said so.": (
                lambda ranks: _wins(ranks, -math.inf)
            ),
            "only the best answer wins; every ranked pair counts, C(K, 2) of them.": (
                lambda ranks: _wins(ranks) * np.array([[float(rank == 1)] for rank in ranks])
            ),
        },
        hint="two loops over the answers; skip None; a smaller rank wins.",
    ),
    "reward_loss": Exercise(
        task="reward_loss(scores, wins): scores (K,) of the answers to one prompt and wins (K, K), "
        "1 where the row's answer was preferred; returns the mean loss over the pairs, a tensor.",
        reference=lambda scores, wins: reward_loss(scores[None], wins[None])[0],
        inputs=_loss_inputs,
        mistakes={
            "the sign of the margin is flipped: the loser's score is taken off the winner's.": (
                lambda scores, wins: -F.logsigmoid(-_margins(scores, wins)).mean()
            ),
            "the minus is missing: a loss falls as the right order becomes likelier.": (
                lambda scores, wins: F.logsigmoid(_margins(scores, wins)).mean()
            ),
            "this is the sum over the pairs; divide by how many there are.": (
                lambda scores, wins: -F.logsigmoid(_margins(scores, wins)).sum()
            ),
            "the logarithm is missing: this is minus the probability, not minus its logarithm.": (
                lambda scores, wins: -_margins(scores, wins).sigmoid().mean()
            ),
            "this divides by K (K - 1) / 2 although some pairs are tied or not ranked; divide by "
            "the pairs that there are.": (
                lambda scores, wins: (
                    -F.logsigmoid(_margins(scores, wins)).sum()
                    / (len(scores) * (len(scores) - 1) / 2)
                )
            ),
            "this averages over all K x K entries; only the winning ones are pairs.": (
                lambda scores, wins: -F.logsigmoid(_margins(scores, wins)).sum() / wins.numel()
            ),
            "this compares the best answer with the worst alone.": _best_and_worst,
            "the sigmoid is missing: the margin itself has no bound, and the model would only "
            "scale its scores up.": lambda scores, wins: -_margins(scores, wins).mean(),
        },
        hint="margins = scores[:, None] - scores[None, :]; logsigmoid of those where wins is 1; "
        "minus their mean.",
        gradient=True,
    ),
    "ceiling": Exercise(
        task="ceiling(p): for each pair the probability (n,) that labellers prefer the first "
        "answer; returns the best accuracy that any reward model can expect on their labels.",
        reference=lambda p: np.maximum(p, 1 - p).mean(),
        inputs=_probability_inputs,
        mistakes={
            "this is how often the first answer wins; the best model picks the likelier one.": (
                lambda p: np.mean(p)
            ),
            "this averages first and picks then; the best model picks pair by pair.": (
                lambda p: max(np.mean(p), 1 - np.mean(p))
            ),
            "this is the share of pairs whose first answer is the better one.": (
                lambda p: np.mean(np.asarray(p) > 0.5)
            ),
            "this is how far it is above a coin flip; add the half.": (
                lambda p: np.abs(np.asarray(p) - 0.5).mean()
            ),
            "this is how often two labellers agree; the best model does not flip coins itself.": (
                lambda p: np.mean(np.asarray(p) ** 2 + (1 - np.asarray(p)) ** 2)
            ),
            "this is the best pair; the ceiling is the mean over pairs.": (
                lambda p: np.maximum(p, 1 - np.asarray(p)).max()
            ),
        },
        hint="for one pair with p = 0.3: what would you answer, and how often would you be right?",
    ),
    "normalise": Exercise(
        task="normalise(scores, reference): raw scores (n,) on the scale on which the reference "
        "scores, of the initial policy's answers (m,), have mean 0 and standard deviation 1.",
        reference=lambda scores, reference: (scores - np.mean(reference)) / np.std(reference),
        inputs=_score_inputs,
        mistakes={
            "this takes mean and spread of the scores themselves: then a better policy would "
            "always have mean 0, too.": (
                lambda scores, reference: (scores - np.mean(scores)) / (np.std(scores) or 1)
            ),
            "this divides by the variance; the unit is a standard deviation.": (
                lambda scores, reference: (scores - np.mean(reference)) / np.var(reference)
            ),
            "the mean is not taken off.": lambda scores, reference: scores / np.std(reference),
            "the spread is not divided out.": lambda scores, reference: scores - np.mean(reference),
            "divide after taking the mean off, not before.": (
                lambda scores, reference: scores / np.std(reference) - np.mean(reference)
            ),
            "nearly: this divides the squares by n - 1 (torch's default), the library by n.": (
                lambda scores, reference: (scores - np.mean(reference)) / np.std(reference, ddof=1)
            ),
            "this stretches the reference to 0 and 1; its mean is to be 0.": (
                lambda scores, reference: (scores - np.min(reference)) / np.ptp(reference)
            ),
        },
        hint="both numbers come from `reference`, and are used on `scores`.",
    ),
}
