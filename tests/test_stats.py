"""Intervals cover what they promise, agree with textbook numbers, and refuse what has no width."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from course_lib.core.stats import (
    Interval,
    bootstrap,
    equivalent,
    prediction_interval,
    t_interval,
    wilson,
)


def test_interval_prints_three_decimals_and_no_negative_zero():
    assert str(Interval(0.8124, 0.78, 1)) == "0.812 [0.780, 1.000]"
    assert str(Interval(-1e-9, -0.5, 0.0004)) == "0.000 [-0.500, 0.0004]"


def test_wilson_by_hand():
    """10 of 10 at 95%: the lower bound is n / (n + z²) (Wilson 1927 with p = 1)."""
    z = scipy_stats.norm.ppf(0.975)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + z**2))
    assert wilson(10, 10).high == pytest.approx(1.0)
    assert wilson(0, 10).low == 0.0 and wilson(0, 10).high > 0.2
    assert wilson(0, 10).estimate == 0.0


def test_t_interval_by_hand():
    interval = t_interval([1.0, 2.0, 3.0])
    half = 4.302653 * 1.0 / 3**0.5  # t(2) at 97.5%
    assert interval == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_bootstrap_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    interval = bootstrap(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.estimate == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values) == interval
    assert bootstrap(values, seed=1) != interval


def test_prediction_interval_holds_the_next_run_as_often_as_it_says():
    rng = np.random.default_rng(5)
    runs = rng.normal(0.5, 0.1, size=(2000, 11))
    bands = [prediction_interval(row[:10], level=0.9) for row in runs]
    inside = np.mean([b.low <= row[10] <= b.high for b, row in zip(bands, runs, strict=True)])
    assert inside == pytest.approx(0.9, abs=0.02)


def test_prediction_interval_of_equal_runs_lets_one_answer_flip_but_not_ten():
    band = prediction_interval([1.0] * 10)
    assert 0.985 < band.low < 0.995
    large = prediction_interval([5e12] * 10)  # a count of operations: relative
    assert large.low < 4.99e12 and large.high < 5.1e12


def test_equivalence_has_three_answers():
    assert equivalent(Interval(0.0, -0.02, 0.03), 0.05) is True
    assert equivalent(Interval(0.2, 0.1, 0.3), 0.05) is False
    assert equivalent(Interval(0.0, -0.1, 0.1), 0.05) is None  # no evidence of a difference is none


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap([1.0]),
        lambda: bootstrap([1.0, float("nan")]),
        lambda: t_interval([2.0]),
        lambda: wilson(3, 2),
        lambda: equivalent(Interval(0, 0, 0), 0),
    ],
)
def test_what_has_no_interval_is_refused(call):
    with pytest.raises(ValueError):
        call()
