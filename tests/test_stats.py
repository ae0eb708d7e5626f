"""Intervals cover what they promise, agree with textbook numbers, and refuse what has no width."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from course_lib.core import stats
from course_lib.core.stats import Interval, equivalent, prediction_interval, t_interval, wilson
from course_lib.kit.claims import verdict


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


def test_a_mean_of_one_run_is_over_items_and_of_several_over_both():
    one = np.random.default_rng(1).normal(3, 2, size=400)
    half = scipy_stats.t.ppf(0.975, 399) * one.std(ddof=1) / 20
    assert stats.mean([one]) == pytest.approx((one.mean(), one.mean() - half, one.mean() + half))
    items = np.random.default_rng(2).normal(size=64)  # all seeds agree: the items' luck is left
    shared, alone = stats.mean([items] * 5), stats.mean([items])
    assert shared.low == pytest.approx(alone.low) and shared.high == pytest.approx(alone.high)
    apart = stats.mean([np.full(64, float(seed)) for seed in range(5)])  # or the seeds' alone
    assert apart == pytest.approx(t_interval(range(5)))


def test_one_gain_in_64_decides_nothing():
    """A run's differences are no shares, though no -1 is among them."""
    after, before = np.zeros(64), np.zeros(64)
    after[0] = 1
    low = stats.paired_share([after], [before]).low
    assert low < 0 < stats.paired_share([after] * 5, [before] * 5).high
    assert stats.paired_share([after] * 5, [before] * 5).low < 0
    assert stats.paired_share([before] * 5, [before] * 5).low < 0  # width, though all agree


def test_shares_keep_within_their_bounds_and_have_width_at_them():
    ones, halves = np.ones(64), np.full(64, 0.5)
    assert stats.share([ones] * 5) == stats.share([ones]) == wilson(64, 64)
    assert 0.9 < stats.share([ones, ones, ones, ones, np.append(ones[1:], 0)]).low < 1
    assert stats.share([halves, halves]).low == 0.5  # known, not guessed from a rate


def test_a_slope_is_that_of_the_least_squares_line():
    rng, x = np.random.default_rng(3), np.log([32, 128, 512, 2048])
    runs = [[0.3 * value + rng.normal(size=20) for _ in range(3)] for value in x]
    expected = np.polyfit(x, [np.mean(each) for each in runs], 1)[0]
    assert stats.slope(x, runs).estimate == pytest.approx(expected)


def test_a_ratio_is_that_of_the_means():
    rng = np.random.default_rng(4)
    b = rng.normal(5, 1, size=(1, 400))
    a = 2 * b + rng.normal(size=(1, 400))
    found = stats.ratio(a, b)
    spread = 1 / b.mean() / 20  # of the noise alone: what moves both means together is no news
    assert found.estimate == pytest.approx(a.mean() / b.mean())
    assert found.high - found.low == pytest.approx(2 * 1.97 * spread, rel=0.1)


def crossed(rng, shift, seeds, items, by_seed, by_item):
    """Values (seeds, items) with normal effects of seeds, of items and of neither."""
    effects = by_seed * rng.normal(size=(seeds, 1)) + by_item * rng.normal(size=(1, items))
    return shift + effects + rng.normal(size=(seeds, items))


def probit(rng, shares, seeds, items, by_seed, by_item):
    """Zeros and ones of the given shares, over the same items; each share has its own seeds."""
    item, total = by_item * rng.normal(size=(1, items)), np.hypot(1, np.hypot(by_seed, by_item))
    for share in shares:
        shift = total * scipy_stats.norm.ppf(share)
        yield (crossed(rng, shift, seeds, items, by_seed, 0) + item > 0) * 1.0


LUCK = [(0, 0), (0, 1), (0.1, 1), (0.3, 1)]  # of seeds and of items, beside noise of 1
X = np.log([32, 128, 512, 2048])


def line(rng, *sizes):
    return X, [list(crossed(rng, 0.3 * x, *sizes)) for x in X]


KINDS = {  # name -> (kind of interval, draws of its data, truth)
    "mean": (stats.mean, lambda rng, *s: (crossed(rng, 0, *s),), 0.0),
    "ratio": (stats.ratio, lambda rng, *s: (crossed(rng, 8, *s), crossed(rng, 10, *s)), 0.8),
    "slope": (stats.slope, line, 0.3),
}
for p in (0.02, 0.1, 0.5, 0.98):
    KINDS[f"share {p}"] = (stats.share, lambda rng, *s, p=p: probit(rng, (p,), *s), p)
for p, q in ((0.02, 0.02), (0.1, 0.1), (0.5, 0.5), (0.98, 0.98), (0.6, 0.5), (0.98, 0.9)):
    draw = lambda rng, *s, p=p, q=q: probit(rng, (p, q), *s)  # noqa: E731
    KINDS[f"paired share {p}, {q}"] = (stats.paired_share, draw, p - q)


def coverage(kind, draw, truth, seeds, items, by_seed, by_item, draws=200):
    """(How often the interval holds the truth, how often it lies above), of simulated data."""
    rng = np.random.default_rng(7)
    found = [kind(*draw(rng, seeds, items, by_seed, by_item)) for _ in range(draws)]
    inside = np.mean([each.low <= truth <= each.high for each in found])
    return inside, np.mean([each.low > truth for each in found])


@pytest.mark.parametrize("name", KINDS)
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    """Five seeds that share their items, at the sizes of the notebooks.

    A cell of 200 draws is known to 1.5 points, the mean over a kind's eight cells to 0.6: 93 to 98%
    is asked of the mean. Where two shares near 0 or 1 are alike a difference is 0 almost
    everywhere, and no interval of whole counts holds less than 98%.
    """
    kind, draw, truth = KINDS[name]
    found = [coverage(kind, draw, truth, 5, items, *luck) for items in (64, 480) for luck in LUCK]
    inside, above = np.transpose(found)
    rare = name.startswith("paired share") and truth == 0
    assert 0.93 <= inside.mean() <= (0.99 if rare else 0.98), inside
    assert inside.min() >= 0.90 and above.max() <= 0.06, (inside, above)
    assert above.mean() <= 0.04


def test_where_intervals_do_not_hold_it_is_said(capsys):
    """Heavy tails, rare shares and fits: printed, and what a fit gives decides nothing."""

    def heavy(rng, seeds, items, by_seed, by_item):
        return (np.exp(crossed(rng, 0, seeds, items, by_seed, by_item)),)

    def coefficients(rng, seeds, items, by_seed, by_item):
        rows = crossed(rng, 0, seeds, items, by_seed, by_item)
        return (np.exp(rows.mean(1) * 3),)  # a curved statistic of whole runs

    cases = {
        "mean of lognormal values": (stats.mean, heavy, np.exp((1 + 1 + 0.01) / 2)),
        "share .995": (stats.share, lambda rng, *s: probit(rng, (0.995,), *s), 0.995),
        "fit over five runs": (stats.fit, coefficients, 1.0),
    }
    for name, (kind, draw, truth) in cases.items():
        print(f"{name}: {coverage(kind, draw, truth, 5, 64, 0.1, 1.0)[0]:.2f} of nominal 0.95")
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert verdict(stats.fit([1.0, 1.1, 0.9, 1.0, 1.0]), "> 0") is None
    same = np.ones(24)  # two models that answer alike everywhere: no luck is to be seen
    assert verdict(stats.gain([same], [same]), "within 0.02") is None
    assert verdict(stats.gain([same], [same]), "< 0") is None
    assert verdict(t_interval([1.0, 1.1, 0.9, 1.0, 1.0]), "> 0") is True


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
        lambda: stats.mean([[1.0]]),
        lambda: stats.mean([[1.0, float("nan")]]),
        lambda: stats.mean([[1.0, 2.0], [1.0, 2.0, 3.0]]),
        lambda: stats.share([[0.0, 1.2]]),
        lambda: t_interval([2.0]),
        lambda: wilson(3, 2),
        lambda: equivalent(Interval(0, 0, 0), 0),
    ],
)
def test_what_has_no_interval_is_refused(call):
    with pytest.raises(ValueError):
        call()
