"""Intervals and equivalence: what a handful of runs over a few hundred items can tell apart.

A run is the items' values with one seed. Where several runs share their items there are two kinds
of luck, which seeds and which items, and an interval counts both: the grand mean of a table seeds x
items varies by (MS_seeds + MS_items - MS_rest) / (S N), the variance of a two-way table without
replication (Searle, Casella and McCulloch 1992), with Satterthwaite's degrees of freedom (1946).
One run tells nothing of the luck of seeds; its intervals count items alone. Two runs tell too
little of it (90% instead of 95%): take three or more.

There is one function for each kind of data, and it is told the kind, never guesses it: `mean`,
`share`, `paired_share`, `ratio`, `slope`, `fit`. How often their 95% intervals hold the truth is
simulated in tests/test_stats.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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


class Rough(Interval):
    """An interval not known to hold the truth in 93% of cases: it decides nothing."""


Runs = Sequence[ArrayLike]  # one array (items,) a seed, over the same items in the same order


def _printed(value: float) -> str:
    # What only rounds to 0 keeps a digit: a verdict may hang on its side of 0. Nothing is "-0.000".
    if 1e-6 < abs(value) < 5e-4:
        return np.format_float_positional(value, precision=1, fractional=False)
    return f"{round(value, 3) + 0.0:.3f}"


def mean(runs: Runs) -> Interval:
    """The mean of the items' values, or of their paired differences, which are no shares.

    Where all values are the same nothing is known of their luck: `Rough`.
    """
    table = _table(runs)
    scale, df = _spread(table)
    found = _student(table.mean(), scale, df)
    return found if scale else Rough(*found)


def gain(runs: Runs, others: Runs) -> Interval:
    """The mean of `runs` minus that of `others`, over the same items and seeds."""
    return mean(_table(runs) - _table(others))


def share(runs: Runs) -> Interval:
    """The mean of values in [0, 1], such as rights and wrongs, with bounds in [0, 1].

    Student's t on the log-odds, where the spread hangs less on the share; at 0, at 1 and for the
    zeros and ones of one run Wilson's interval (1927) of the items, as if all runs were copies.
    """
    table = _table(runs, low=0)
    centre = table.mean()
    if centre in (0, 1) or (len(table) == 1 and np.isin(table, (0, 1)).all()):
        return wilson(table[0].sum(), table.shape[1])
    scale, df = _spread(table)
    odds = np.log(centre / (1 - centre))
    _, low, high = _student(odds, scale / (centre * (1 - centre)), df)
    return Interval(float(centre), *(float(1 / (1 + np.exp(-bound))) for bound in (low, high)))


def paired_share(runs: Runs, others: Runs) -> Interval:
    """The share of `runs` minus that of `others`, over the same items and seeds.

    Where the two agree everywhere, and in one run, one gain and one loss are added (Bonett and
    Price 2012), which draws the estimate a little towards 0: a handful of disagreements says little
    about how rare they are.
    """
    table = _table(runs, low=0) - _table(others, low=0)
    items = table.shape[1]
    if len(table) > 1 and table.any():
        return mean(table)
    centre = table.sum() / (items + 2)
    spread = np.sqrt((np.square(table).sum() + 2) / (items + 2) - centre**2)
    return _student(centre, spread / np.sqrt(items + 2), items - 1)


def ratio(runs: Runs, others: Runs) -> Interval:
    """The mean of `runs` over that of `others`, whose mean is well away from 0.

    The delta method: a value a beside b moves the ratio R by (a - R b) / mean(b).
    """
    above, below = _table(runs), _table(others)
    centre = above.mean() / below.mean()
    scale, df = _spread((above - centre * below) / below.mean())
    return _student(centre, scale, df)


def slope(x: ArrayLike, runs_by_x: Sequence[Runs]) -> Interval:
    """The slope of the least-squares line through the conditions' means, per unit of `x`.

    Every item of every run has its own slope, so that the conditions may share items and seeds.
    """
    x = _values(x, 2)
    tables = np.stack([_table(runs) for runs in runs_by_x])
    return mean(np.tensordot((x - x.mean()) / np.square(x - x.mean()).sum(), tables, axes=1))


def fit(values: ArrayLike) -> Interval:
    """A fitted number, or another statistic that is no mean, one of each run: t over the runs.

    Five runs of a curve's coefficient hold the truth in 82 to 86% of cases: `Rough`.
    """
    return Rough(*t_interval(values))


def t_interval(values: ArrayLike) -> Interval:
    """Mean over seeds, each with items of its own, with Student's t at 95%. 2 or more values."""
    array = _values(values, 2)
    return _student(array.mean(), array.std(ddof=1) / np.sqrt(len(array)), len(array) - 1)


def prediction_interval(values: ArrayLike, level: float = 0.999) -> Interval:
    """Where one new run falls: mean ± t(n-1) · s · √(1 + 1/n), for the runs `values` (n ≥ 2).

    Runs that all agree (a share of 1.0, say) would allow no deviation at all, while one answer that
    flips on another processor is no failure. So s is taken as 0.002 · max(1, |mean|) at least: with
    10 runs that lets a share differ by about 0.01.
    """
    array = _values(values, 2)
    spread = max(array.std(ddof=1), 0.002 * max(1.0, abs(array.mean())))
    return _student(array.mean(), spread * np.sqrt(1 + 1 / len(array)), len(array) - 1, level)


def smallest_step(
    runs_by_x: Sequence[Runs], step: Callable[[Runs, Runs], Interval] = gain
) -> Interval:
    """Of the steps from one condition to the next the one that lies lowest: a test of "always up".

    `step` gives the interval of a condition beside its predecessor, over the same items and seeds.
    """
    steps = [step(after, before) for before, after in itertools.pairwise(runs_by_x)]
    return min(steps, key=lambda step: step.low)


def wilson(successes: float, n: int) -> Interval:
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


def _values(values: ArrayLike, at_least: int) -> np.ndarray:
    """A finite 1-D float array of `at_least` values, or ValueError."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) < at_least or not np.isfinite(array).all():
        raise ValueError(
            f"an interval needs {at_least} or more finite numbers in one dimension, got shape "
            f"{array.shape} with {int((~np.isfinite(array)).sum())} non-finite"
        )
    return array


def _table(runs: Runs, low: float = -np.inf) -> np.ndarray:
    """(seeds, items), finite; with `low` = 0 the values are shares. ValueError otherwise."""
    rows = [_values(row, 2) for row in runs]
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError(
            f"runs share their items, got runs of {[len(row) for row in rows]} items; runs with "
            "items of their own are compared by `t_interval` of their means"
        )
    table = np.stack(rows)
    if low == 0 and not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"a share's values lie in [0, 1], got {table.min()} to {table.max()}")
    return table


def _spread(table: np.ndarray) -> tuple[float, float]:
    """(Standard error of the grand mean of a table (S, N), its degrees of freedom)."""
    seeds, items = table.shape
    if seeds == 1:
        return table.std(ddof=1) / np.sqrt(items), items - 1
    by_seed, by_item = table.mean(1), table.mean(0)
    rest = table - by_seed[:, None] - by_item + table.mean()
    squares = np.array([items * by_seed.var(ddof=1), seeds * by_item.var(ddof=1), 0.0])
    dfs = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    squares[2] = np.square(rest).sum() / dfs[2]
    # By luck the difference may be nearly 0. The two floors, of the variance and of its degrees of
    # freedom, are those that held 95% best where there is nothing but noise.
    variance = max(squares[0] + squares[1] - squares[2], 0.3 * squares[2])
    df = variance**2 / max((squares**2 / dfs).sum(), 1e-300)
    return np.sqrt(variance / (seeds * items)), max(df, seeds - 1)


def _student(centre: float, scale: float, df: float, level: float = 0.95) -> Interval:
    """centre ± t(df) · scale; scipy's `t.interval` is nan where the scale is 0."""
    half = stats.t.ppf((1 + level) / 2, df) * scale
    return Interval(float(centre), float(centre - half), float(centre + half))
