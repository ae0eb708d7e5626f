"""Search with a reward: best-of-n from one pool of samples, its KL, and over-optimisation curves.

Sources: Gao, Schulman and Hilton 2022, arXiv:2210.10760 (the unbiased estimator, the two forms);
Beirami et al. 2024, arXiv:2401.01879 (the KL of best-of-n, of which the textbook's is a bound).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lstsq
from scipy.special import gammaln, xlogy

from course_lib import CourseError
from course_lib.core.stats import Interval, Rough


def best_of_n(proxy: ArrayLike, ns: Sequence[int], values: ArrayLike | None = None) -> np.ndarray:
    """Expected value of the sample with the best proxy among n, from a pool of N per prompt.

    The mean over all C(N, n) subsets of the pool, by order statistics: the best of a random subset
    is the sample of rank i (of N, from the worst) with probability C(i - 1, n - 1) / C(N, n). So it
    is unbiased for n fresh samples, with less noise than one subset. Among samples of equal proxy
    each is as likely to be taken.

    Args:
        proxy: (P, N) or (N,) scores that choose.
        ns: subset sizes, each from 1 to N.
        values: (P, N) or (N,) what is wanted of the chosen, e.g. the true score; None: the proxy.

    Returns:
        (P, len(ns)), or (len(ns),) for one pool.
    """
    proxy = np.asarray(proxy, dtype=float)
    values = proxy if values is None else np.asarray(values, dtype=float)
    size = proxy.shape[-1]
    if values.shape != proxy.shape or not all(1 <= n <= size for n in ns):
        raise CourseError(
            f"best_of_n got a pool of shape {proxy.shape}, values of shape {values.shape} and "
            f"n = {list(ns)}; expected equal shapes and n from 1 to {size}; draw more samples."
        )
    if proxy.ndim == 2:
        return np.stack([best_of_n(p, ns, v) for p, v in zip(proxy, values, strict=True)])
    _, group, counts = np.unique(proxy, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts  # of the samples with equal proxy
    upto = np.concatenate([[0], counts.cumsum()])  # samples of this proxy or a worse one
    return np.array([np.diff(_share_of_subsets(upto, size, n)) @ means for n in ns])


def _share_of_subsets(sizes: np.ndarray, total: int, n: int) -> np.ndarray:
    """C(size, n) / C(total, n): subsets of n that lie within the first `size` of `total`."""
    inside = np.maximum(sizes, n)  # a placeholder where there is no such subset
    logs = gammaln(inside + 1) - gammaln(inside - n + 1)
    logs -= gammaln(total + 1) - gammaln(total - n + 1)
    return np.where(sizes >= n, np.exp(logs), 0.0)


def best_of_n_kl(n: ArrayLike, masses: ArrayLike | None = None) -> np.ndarray:
    """KL in nats of the best of n from the policy that it samples.

    Without `masses` the textbook's log n - (n - 1) / n: exact where no two samples ever have the
    same score, an upper bound otherwise, and far too large once the same texts come again.

    With `masses` (G,), the probabilities of the distinct scores from worst to best, it is exact
    (equal scores are equally likely to be taken, so the ratio to the policy is the same for all
    texts of one score): sum over g of q_g log(q_g / masses_g), q_g = F_g^n - F_(g-1)^n with F their
    cumulative sum. Masses from a pool, `score_masses`, give an estimate that cannot exceed the log
    of the pool's size, and is a little low where n comes near it.
    """
    n = np.asarray(n, dtype=float)
    if masses is None:
        return np.log(n) - (n - 1) / n
    masses = np.asarray(masses, dtype=float)
    masses = masses[masses > 0] / masses.sum()
    cumulative = np.concatenate([[0.0], masses.cumsum()])
    chosen = np.diff(cumulative ** n[..., None], axis=-1)  # (..., G)
    return (xlogy(chosen, chosen) - chosen * np.log(masses)).sum(-1)


def score_masses(scores: ArrayLike) -> np.ndarray:
    """Shares of a pool (N,) by distinct score, from worst to best, for `best_of_n_kl`."""
    return np.unique(np.asarray(scores), return_counts=True)[1] / np.size(scores)


def best_of_n_wins(proxy: np.ndarray, truth: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """How often the best of n by `proxy` beats one other sample by `truth`: (P, len(ns)).

    From one pool (P, N), n up to N / 2: the best of one half against the samples of the other one,
    and the other way round. Against samples that it was picked from it would win too often. A tie
    counts one half.
    """
    half, found = proxy.shape[1] // 2, 0.0
    for mine, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        margins = truth[:, mine, None] - truth[:, None, other]
        beats = np.sign(margins).mean(-1) / 2 + 0.5  # (P, N / 2)
        found = found + best_of_n(proxy[:, mine], ns, beats) / 2
    return found


@dataclass(frozen=True)
class OverOptimisation:
    """A fitted curve of the score gained over the initial policy's, against d = sqrt(KL)."""

    form: str
    alpha: Interval  # slope at the start ("bon"), score per unit of d
    beta: Interval  # how fast it bends down
    peak: Interval  # d of the curve's maximum; infinite where it never falls
    r2: Interval  # share of the variance of the points that the curve explains


def fit_overoptimisation(
    kl: ArrayLike, gains: ArrayLike, form: str, num_resamples: int = 2000, seed: int = 0
) -> OverOptimisation:
    """Least squares of Gao et al.'s forms: best-of-n d(alpha - beta d), RL d(alpha - beta log d).

    Args:
        kl: (n,) in nats, or (R, n) where each run has its own.
        gains: (n,) or (R, n) score minus that of the initial policy, of R runs (or prompts).
        form: "bon" (peak at alpha / 2 beta) or "rl" (peak at exp(alpha / beta - 1)).
        num_resamples: the 95% percentile intervals resample runs; with one run its points, whose
            errors are then taken as independent (those of one pool or one training are not).
    """
    gains = np.asarray(gains, dtype=float)
    d = np.broadcast_to(np.sqrt(np.asarray(kl, dtype=float)), gains.shape)
    if form not in ("bon", "rl") or gains.shape[-1] < 3 or not np.isfinite([d, gains]).all():
        raise CourseError(
            f"The fit got form={form!r} and points of shape {gains.shape}; expected 'bon' or 'rl', "
            "three or more finite points, and a KL that is not negative."
        )
    points = gains.ndim == 1  # are then what is resampled
    if points:
        gains, d = gains[:, None], d[:, None]
    columns = _columns(form, d)  # (R, n, 2)
    coefficients = lstsq(columns.reshape(-1, 2), gains.ravel())[0]
    # Sums over runs of the normal equations: a resample is another sum of the same terms.
    squares = np.einsum("rni,rnj->rij", columns, columns)
    products = np.einsum("rni,rn->ri", columns, gains)
    totals = np.stack([(gains**2).sum(1), gains.sum(1), np.full(len(gains), gains.shape[1])], -1)

    def explained(found: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """R² of coefficients (B, 2) on the runs (B, n) that they were fitted to, (B,)."""
        parts = squares[runs].sum(1), products[runs].sum(1), totals[runs].sum(1)
        square, linear, whole = parts  # (B, 2, 2), (B, 2), (B, 3)
        fit = 2 * (found * linear).sum(-1) - np.einsum("bi,bij,bj->b", found, square, found)
        return 1 - (whole[:, 0] - fit) / (whole[:, 0] - whole[:, 1] ** 2 / whole[:, 2])

    every = np.arange(len(gains))[None]
    drawn = np.random.default_rng(seed).integers(len(gains), size=(num_resamples, len(gains)))
    if points:  # one point fits no curve
        drawn = drawn[[len(set(rows)) > 1 for rows in drawn.tolist()]]
    found = np.einsum(
        "bij,bj->bi", np.linalg.pinv(squares[drawn].sum(1)), products[drawn].sum(1)
    )  # (resamples, 2)

    def interval(estimate, values) -> Interval:
        low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        return Rough(float(estimate), float(low), float(high))

    return OverOptimisation(
        form,
        interval(coefficients[0], found[:, 0]),
        interval(coefficients[1], found[:, 1]),
        interval(_peak(form, coefficients[None])[0], _peak(form, found)),
        interval(explained(coefficients[None], every)[0], explained(found, drawn)),
    )


def _columns(form: str, d: np.ndarray) -> np.ndarray:
    """What alpha and beta are multiplied by: (...) to (..., 2)."""
    return np.stack([d, -(d**2) if form == "bon" else -xlogy(d, d)], -1)


def _peak(form: str, coefficients: np.ndarray) -> np.ndarray:
    """d of the maximum of each curve, (n, 2) to (n,); infinite where beta is not positive."""
    alpha, beta = coefficients.T
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        peak = np.maximum(alpha, 0) / (2 * beta) if form == "bon" else np.exp(alpha / beta - 1)
    return np.where(beta > 0, peak, np.inf)
