"""Intervals and equivalence: what a handful of items and seeds can and cannot tell apart.

Bootstrap over items (Efron 1979, percentile intervals), t-intervals over seeds, Wilson's interval
for shares, and the prediction interval of one new run, which is what a reference band draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Interval(NamedTuple):
    """An estimate between two bounds; printed as `0.812 [0.780, 0.840]`."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        estimate, low, high = map(_printed, self)
        return f"{estimate} [{low}, {high}]"


def _printed(value: float) -> str:
    # What only rounds to 0 keeps a digit: a verdict may hang on its side of 0. Nothing is "-0.000".
    if 1e-6 < abs(value) < 5e-4:
        return np.format_float_positional(value, precision=1, fractional=False)
    return f"{round(value, 3) + 0.0:.3f}"


def _values(values: ArrayLike, at_least: int) -> np.ndarray:
    """A finite 1-D float array of `at_least` values, or ValueError."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < at_least or not np.isfinite(array).all():
        raise ValueError(
            f"an interval needs {at_least} or more finite numbers in one dimension, got shape "
            f"{array.shape} with {int((~np.isfinite(array)).sum())} non-finite"
        )
    return array


def bootstrap(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of `values` (n_items,) with the 95% percentile interval of 2,000 resamples of the items.

    Where all items are equal the interval has no width: a share near 0 or 1 needs `wilson`.
    """
    array = _values(values, 2)
    mean = float(np.mean(array))
    if (array == array[0]).all():
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=2000,
        method="percentile",
        batch=256,  # bounds the memory to 256 copies of the values
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def t_interval(values: ArrayLike) -> Interval:
    """Mean over seeds with Student's t at 95%: mean ± t(n-1) · s / √n. Needs 2 or more values."""
    array = _values(values, 2)
    return _student(array, array.std(ddof=1) / np.sqrt(len(array)), 0.95)


def prediction_interval(values: ArrayLike, level: float = 0.999) -> Interval:
    """Where one new run falls: mean ± t(n-1) · s · √(1 + 1/n), for the runs `values` (n ≥ 2).

    Runs that all agree (a share of 1.0, say) would allow no deviation at all, while one answer that
    flips on another processor is no failure. So s is taken as 0.002 · max(1, |mean|) at least: with
    10 runs that lets a share differ by about 0.01.
    """
    array = _values(values, 2)
    spread = max(array.std(ddof=1), 0.002 * max(1.0, abs(array.mean())))
    return _student(array, spread * np.sqrt(1 + 1 / len(array)), level)


def _student(array: np.ndarray, scale: float, level: float) -> Interval:
    """Mean ± t(n-1) · scale; scipy's `t.interval` is nan where the scale is 0."""
    mean, half = array.mean(), stats.t.ppf((1 + level) / 2, len(array) - 1) * scale
    return Interval(float(mean), float(mean - half), float(mean + half))


def over_seeds(runs: Sequence[ArrayLike]) -> Interval:
    """Mean of the items' values, `runs[s]` those of seed s: t over seeds, or items if there is one.

    One run of zeros and ones gets Wilson's interval, any other single run a bootstrap over items.
    """
    rows = [_values(row, 1) for row in runs]
    if len(rows) > 1:
        return t_interval([row.mean() for row in rows])
    (row,) = rows
    if np.isin(row, (0, 1)).all():
        return wilson(int(row.sum()), len(row))
    return bootstrap(row)


def smallest_step(runs: Sequence[Sequence[ArrayLike]]) -> Interval:
    """Of the gains from one condition to the next the one that lies lowest: a test of "always up".

    `runs[c][s]` are the items' values under condition c with seed s, over the same items.
    """
    steps = [
        over_seeds([b - a for a, b in zip(*pair, strict=True)]) for pair in itertools.pairwise(runs)
    ]
    return min(steps, key=lambda step: step.low)


def ratio_items(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Values per item whose mean is mean(a) / mean(b), for an interval of that ratio (n,).

    The delta method: item i moves the ratio R by (a_i - R b_i) / mean(b), so the spread of these
    values is that of R. For means well away from 0; over the same items, in the same order.
    """
    a, b = _values(a, 2), _values(b, 2)
    ratio = a.mean() / b.mean()
    return ratio + (a - ratio * b) / b.mean()


def wilson(successes: int, n: int) -> Interval:
    """Share `successes / n` with Wilson's 95% interval (1927), which has width at 0 and n, too."""
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    low, high = proportion_confint(successes, n, method="wilson")
    return Interval(successes / n, max(0.0, float(low)), min(1.0, float(high)))


def equivalent(difference: Interval, margin: float) -> bool | None:
    """Whether two things are the same up to `margin`, stated beforehand, from their difference.

    True if the whole interval lies within ±margin (two one-sided tests; a 90% interval tests at 5%,
    a 95% one is stricter), False if it lies wholly outside, None if it does neither.
    """
    if margin <= 0:
        raise ValueError(f"the margin of an equivalence must be positive, got {margin}")
    _, low, high = difference
    if -margin <= low and high <= margin:
        return True
    return False if low > margin or high < -margin else None
