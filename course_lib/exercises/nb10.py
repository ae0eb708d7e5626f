"""Exercises of notebook 10: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import numpy as np
import torch

from course_lib.algorithms.population import numeric_loss
from course_lib.exercises.exercise import Exercise


def _loss_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """logps (B, K), ratings (B,), alpha, d; the log-probabilities need not sum to 1."""

    def case(ratings: list[int], alpha: float, d: float, levels: int = 10) -> tuple:
        logits = torch.tensor(rng.normal(size=(len(ratings), levels + 3)) * 2).float()
        return logits.log_softmax(-1)[:, :levels], torch.tensor(ratings), alpha, d

    return [
        ("random", case([3, 7, 0, 9, 5], 0.5, 4.0)),
        ("the paper's width", case([1, 6, 6, 2], 0.5, 10.0)),
        ("only the slope", case([4, 8, 2], 1.0, 3.0)),
        ("mostly cross-entropy", case([9, 0, 5], 0.2, 6.0)),
        ("a slope of half a level", case([2, 5], 0.7, 0.5)),
        ("a Likert scale", case([0, 4, 2], 0.5, 2.0, 5)),
    ]


def _weights(logps: torch.Tensor, ratings: torch.Tensor, d: float) -> torch.Tensor:
    k = torch.arange(logps.shape[-1])
    return (1 - (k - ratings[:, None]).abs() / d).clamp(min=0)


def _mixed(logps, ratings, alpha: float, weights, near=None, mean: bool = True) -> torch.Tensor:
    ce = -logps.gather(-1, ratings[:, None])[:, 0]
    near = -(weights * logps).sum(-1) if near is None else near
    loss = (1 - alpha) * ce + alpha * near
    return loss.mean() if mean else loss.sum()


def _unclamped(logps, ratings, alpha: float, d: float) -> torch.Tensor:
    k = torch.arange(logps.shape[-1])
    return _mixed(logps, ratings, alpha, 1 - (k - ratings[:, None]).abs() / d)


def _one_sided(logps, ratings, alpha: float, d: float) -> torch.Tensor:
    k = torch.arange(logps.shape[-1])
    return _mixed(logps, ratings, alpha, (1 - (k - ratings[:, None]) / d).clamp(min=0, max=1))


def _log_of_sum(logps, ratings, alpha: float, d: float) -> torch.Tensor:
    weights = _weights(logps, ratings, d)
    near = -(weights * logps.exp()).sum(-1).log()
    return _mixed(logps, ratings, alpha, weights, near)


def _mean_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Log-probabilities (N, K) of the levels, the lowest rating, the highest."""

    def case(rows: int, low: int, high: int, spread: float = 1.0, shift: float = 0.0) -> tuple:
        return rng.normal(size=(rows, high - low + 1)) * spread - shift, low, high

    sure = np.full((1, 10), -60.0)
    sure[0, 8] = 0.0
    return [
        ("random", case(4, 0, 9)),
        ("a scale that starts at 1", case(3, 1, 5)),
        ("part of the probability is on other tokens", case(3, 0, 9, shift=3.0)),
        ("a sure model", (sure, 0, 9)),
        ("very unlikely levels", case(2, 0, 9, spread=3.0, shift=2000.0)),
    ]


def _expected(logps: np.ndarray, low: int, high: int) -> np.ndarray:
    logps = np.asarray(logps, float)
    probs = np.exp(logps - logps.max(-1, keepdims=True))
    return probs @ np.arange(low, high + 1) / probs.sum(-1)


def _raw(logps: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.exp(np.asarray(logps, float)) @ np.arange(low, high + 1)


def _overflowing(logps: np.ndarray, low: int, high: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        probs = np.exp(np.asarray(logps, float))
        return probs @ np.arange(low, high + 1) / probs.sum(-1)


EXERCISES: dict[str, Exercise] = {
    "numeric_loss": Exercise(
        task="numeric_loss(logps, ratings, alpha, d): log-probabilities (B, K) of K levels and the "
        "right levels (B,); returns the mean over rows of (1 - alpha) * cross-entropy + alpha * "
        "(minus the sum over k of w_k * logps_k), w_k = max(0, 1 - |k - y| / d), a tensor.",
        reference=lambda logps, ratings, alpha, d: numeric_loss(logps, ratings, alpha, d),
        inputs=_loss_inputs,
        mistakes={
            "alpha is on the cross-entropy; it is the weight of the slope.": (
                lambda p, y, alpha, d: _mixed(p, y, 1 - alpha, _weights(p, y, d))
            ),
            "the weights go below 0 far away; cut them at 0, or far levels are pushed down.": (
                _unclamped
            ),
            "the distance has no absolute value: levels below the right one get too much.": (
                _one_sided
            ),
            "a logarithm of the weighted sum; wanted is the weighted sum of logarithms.": (
                _log_of_sum
            ),
            "the minus of the slope is missing: it pushes near levels down.": (
                lambda p, y, alpha, d: _mixed(p, y, alpha, -_weights(p, y, d))
            ),
            "this is the sum over the rows; the loss is their mean.": (
                lambda p, y, alpha, d: _mixed(p, y, alpha, _weights(p, y, d), mean=False)
            ),
            "the weights sum to 1 here; that is the normalised form, asked for is the raw one.": (
                lambda p, y, alpha, d: numeric_loss(p, y, alpha, d, normalised=True)
            ),
            "the cross-entropy is left out.": (
                lambda p, y, alpha, d: alpha * _mixed(p, y, 1.0, _weights(p, y, d))
            ),
        },
        hint="k = torch.arange(K); weights from (k - ratings[:, None]).abs(); clamp(min=0).",
        gradient=True,
    ),
    "expected_value": Exercise(
        task="expected_value(logps, low, high): log-probabilities (N, K) of the ratings low to "
        "high, which do not sum to 1 as other tokens have some; returns the mean rating (N,).",
        reference=_expected,
        inputs=_mean_inputs,
        mistakes={
            "the probabilities do not sum to 1: divide by their sum.": _raw,
            "this is the index of the level; a scale may start at 1.": (
                lambda logps, low, high: _expected(logps, 0, high - low)
            ),
            "this is greedy decoding: the likeliest level, not the mean.": (
                lambda logps, low, high: low + np.asarray(logps).argmax(-1) * 1.0
            ),
            "these are log-probabilities: take exp before you weigh with them.": (
                lambda logps, low, high: logps @ np.arange(low, high + 1) / logps.sum(-1)
            ),
            "right, but exp rounds to 0 where all levels are unlikely: subtract the row's largest "
            "first, which changes nothing else.": _overflowing,
        },
        hint="probs = np.exp(logps - logps.max(-1, keepdims=True)); divide by the row's sum.",
    ),
}
