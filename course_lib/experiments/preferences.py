"""Preference data: what a panel of labellers says of answers, and what can be known about that.

A row is a `reward.Comparison`: "prompt", "completions" (K texts) and "ranks" (1 the best). In the
pocket world it also has the prompt's own columns, "scores" (K, the judge's) and "utilities" (K):
what the panel values in each answer, in units of its noise. So the probability that it prefers
answer a to answer b is sigmoid(utilities[a] - utilities[b]), and the best accuracy is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, expit

from course_lib.algorithms.reward import Comparison, pairs_of
from course_lib.world import labellers

PANELS = {panel.name: panel for panel in (labellers.UNBIASED, labellers.BIASED)}


def ranked(row: Comparison, panel: labellers.Panel, rng: random.Random) -> Comparison:
    """The row with the "ranks" that a panel gives its completions this time, and "utilities"."""
    texts = row["completions"]
    order = labellers.rank(panel, row, texts, rng)
    utilities = [labellers.utility(panel, row, text) / panel.noise for text in texts]
    return row | {"ranks": [order.index(i) + 1 for i in range(len(texts))], "utilities": utilities}


def most_varied(rows: Sequence[Comparison]) -> Comparison:
    """The row whose answers differ most in true score; the first where nobody knows it."""
    return max(rows, key=lambda row: np.ptp(row.get("scores", [0.0])))


def show_answers(row: Comparison, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """The answers of a rendered row as a table, best first: rank, true score, `columns`, text."""
    shown = {"rank": row["ranks"]}
    shown |= {"true score": row.get("scores", ["unknown"] * len(row["texts"]))}
    shown |= {**columns, "answer": row["texts"]}
    table = [dict(zip(shown, cells, strict=True)) for cells in zip(*shown.values(), strict=True)]
    return sorted(table, key=lambda answer: answer["rank"])


def exact_ceiling(rows: Iterable[Comparison], panel: str = "unbiased") -> float:
    """`labellers.ceiling` of all pairs of rendered rows, from their texts."""
    pairs = [(row, (row["texts"][i], row["texts"][j])) for row in rows for i, j in pairs_of(row)]
    return labellers.ceiling(PANELS[panel], *map(list, zip(*pairs, strict=True)))


def pair_probabilities(rows: Iterable[Comparison]) -> np.ndarray:
    """P(the winner is preferred) of each known pair, row by row, (n,); exact, as the world has it.

    Below 0.5 where this time the labellers' noise made the worse answer the winner.
    """
    gaps = [row["utilities"][i] - row["utilities"][j] for row in rows for i, j in pairs_of(row)]
    return expit(np.array(gaps))


def least_loss(p: np.ndarray) -> float:
    """Mean loss, nats a pair, of who knows the probabilities p (n,): the labels' entropy."""
    return float((entr(p) + entr(1 - p)).mean())
