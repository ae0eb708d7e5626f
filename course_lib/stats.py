"""Intervals and equivalence: what a handful of items and seeds can and cannot tell apart.

Bootstrap over items (Efron 1979, percentile intervals), t-intervals over seeds, Wilson's interval
for shares, and the prediction interval of one new run, which is what a reference band draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as _stats


class Interval(NamedTuple):
    """An estimate between two bounds; printed as `0.812 [0.780, 0.840]`."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        # Adding 0.0 turns a rounded -0.0 into 0.0, so that no "-0.000" is printed.
        estimate, low, high = (round(value, 3) + 0.0 for value in self)
        return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def _values(values: ArrayLike, at_least: int) -> np.ndarray:
    """A finite 1-D float array of `at_least` values, or ValueError."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < at_least or not np.isfinite(array).all():
        raise ValueError(
            f"an interval needs {at_least} or more finite numbers in one dimension, got shape "
            f"{array.shape} with {int((~np.isfinite(array)).sum())} non-finite"
        )
    return array


def bootstrap(
    values: ArrayLike,
    stat: Callable = np.mean,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap over items: `stat` of `values` (n_items,) resampled `n` times.

    Where all items are equal the interval has no width: a share near 0 or 1 needs `wilson`.
    """
    array = _values(values, 2)
    estimate = float(stat(array))
    if (array == array[0]).all():
        return Interval(estimate, estimate, estimate)
    found = _stats.bootstrap(
        (array,),
        stat,
        n_resamples=n,
        confidence_level=level,
        method="percentile",
        batch=256,  # bounds the memory to 256 copies of the values
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate, float(found.low), float(found.high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    stat: Callable = np.mean,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`stat` of a - b over the same items, in the same order: the items' own spread cancels."""
    a, b = _values(a, 2), _values(b, 2)
    if len(a) != len(b):
        raise ValueError(f"paired values need equal lengths, got {len(a)} and {len(b)}")
    return bootstrap(a - b, stat, n=n, seed=seed, level=level)


def two_level_bootstrap(
    values: Sequence[ArrayLike],
    *,
    same_items: bool = False,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean over seeds of the mean over items, both resampled; `values[s]` are seed s's items.

    With `same_items` every seed saw the same items in the same order: then one resample of the
    items serves all seeds, since an item that is hard is hard for every seed (crossed design).
    Below about five seeds the seeds' part of the width is too small: use `t_interval` there.
    """
    rows = [_values(row, 1) for row in values]
    sizes = {len(row) for row in rows}
    if len(rows) < 2 or (same_items and len(sizes) > 1):
        raise ValueError(f"two levels need 2 or more seeds, of equal sizes if crossed, got {sizes}")
    rng = np.random.default_rng(seed)
    means = np.empty(n)
    for i in range(n):
        chosen = [rows[s] for s in rng.integers(len(rows), size=len(rows))]
        if same_items:
            means[i] = np.mean(chosen, axis=0)[rng.integers(len(rows[0]), size=len(rows[0]))].mean()
        else:
            means[i] = np.mean(
                [row[rng.integers(len(row), size=len(row))].mean() for row in chosen]
            )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean([row.mean() for row in rows])), float(low), float(high))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t: mean ± t(n-1) · s / √n. Needs 2 or more values."""
    array = _values(values, 2)
    half = _quantile(level, len(array)) * array.std(ddof=1) / np.sqrt(len(array))
    return Interval(float(array.mean()), float(array.mean() - half), float(array.mean() + half))


def over_seeds(runs: Sequence[ArrayLike], seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of the items' values, `runs[s]` those of seed s: t over seeds, or items if there is one.

    One run of zeros and ones gets Wilson's interval, any other single run a bootstrap over items.
    """
    rows = [_values(row, 1) for row in runs]
    if len(rows) > 1:
        return t_interval([row.mean() for row in rows], level)
    (row,) = rows
    if np.isin(row, (0, 1)).all():
        return wilson(int(row.sum()), len(row), level)
    return bootstrap(row, seed=seed, level=level)


def ratio_items(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Values per item whose mean is mean(a) / mean(b), for an interval of that ratio (n,).

    The delta method: item i moves the ratio R by (a_i - R b_i) / mean(b), so the spread of these
    values is that of R. For means well away from 0; over the same items, in the same order.
    """
    a, b = _values(a, 2), _values(b, 2)
    ratio = a.mean() / b.mean()
    return ratio + (a - ratio * b) / b.mean()


def prediction_interval(values: ArrayLike, level: float = 0.999, floor: float = 0.002) -> Interval:
    """Where one new run falls: mean ± t(n-1) · s · √(1 + 1/n), for the runs `values` (n ≥ 2).

    Runs that all agree (a share of 1.0, say) would allow no deviation at all, while one answer that
    flips on another processor is no failure. So s is taken as `floor` · max(1, |mean|) at least:
    with 10 runs that lets a share differ by about 0.01.
    """
    array = _values(values, 2)
    mean = float(array.mean())
    spread = max(float(array.std(ddof=1)), floor * max(1.0, abs(mean)))
    half = _quantile(level, len(array)) * spread * np.sqrt(1 + 1 / len(array))
    return Interval(mean, float(mean - half), float(mean + half))


def _quantile(level: float, n: int) -> float:
    """Student's t with n - 1 degrees of freedom at the two-sided `level`."""
    return float(_stats.t.ppf((1 + level) / 2, n - 1))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Share `successes / n` with Wilson's interval (1927), which has width at 0 and at n, too."""
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    return Interval(successes / n, max(0.0, float(low)), min(1.0, float(high)))


def equivalent(difference: Interval, margin: float) -> bool | None:
    """Whether two things are the same up to `margin`, stated beforehand, from their difference.

    True if the whole interval lies within ±margin (two one-sided tests; a 90% interval tests at 5%,
    a 95% one is stricter), False if it lies wholly outside, None if it does neither.
    """
    if margin <= 0:
        raise ValueError(f"the margin of an equivalence must be positive, got {margin}")
    if -margin <= difference.low and difference.high <= margin:
        return True
    if difference.low > margin or difference.high < -margin:
        return False
    return None
