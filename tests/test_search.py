"""Best-of-n against brute force over all subsets, its KL against enumeration, Gao's curves."""

import itertools
import math

import numpy as np
import pytest
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms.evaluate import pass_at_k
from course_lib.algorithms.sampling import generate
from course_lib.algorithms.search import (
    Cost,
    Pool,
    beam_search,
    best,
    best_of_n,
    best_of_n_kl,
    best_of_n_wins,
    draw_orders,
    fit_overoptimisation,
    majority,
    pick,
    resume,
    score_masses,
    split_steps,
)


def brute_force(proxy, n, values):
    """Mean over all subsets of n; among the best of equal proxy, their mean."""
    out = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        out.append(np.mean([values[i] for i in subset if proxy[i] == best]))
    return np.mean(out)


@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    proxy, true = rng.normal(size=(2, 3, 9))
    if ties:
        proxy = proxy.round(0)
    ns = range(1, 10)
    for values in (proxy, true):
        expected = [[brute_force(p, n, v) for n in ns] for p, v in zip(proxy, values, strict=True)]
        np.testing.assert_allclose(best_of_n(proxy, ns, values), expected, atol=1e-10)
    np.testing.assert_allclose(best_of_n(proxy, [1], true)[:, 0], true.mean(1))
    np.testing.assert_allclose(best_of_n(proxy[0], [9]), proxy[0].max(keepdims=True))


def test_best_of_n_is_unbiased_and_stable_for_large_pools():
    rng = np.random.default_rng(1)
    pools = rng.uniform(size=(4000, 16))  # the mean of the best of n uniforms is n / (n + 1)
    found = best_of_n(pools, [2, 4, 8, 16])
    error = found.std(0) / math.sqrt(len(pools))
    assert (np.abs(found.mean(0) - [2 / 3, 4 / 5, 8 / 9, 16 / 17]) < 4 * error).all()
    big = rng.uniform(size=50_000)
    ns = [1, 64, 1024, 50_000]
    found = best_of_n(big, ns)
    assert found == pytest.approx([n / (n + 1) for n in ns], abs=0.01)
    assert found[-1] == pytest.approx(big.max(), abs=1e-9)
    assert best_of_n(np.ones(5), [1, 3, 5]) == pytest.approx([1, 1, 1])


def test_the_best_of_n_wins_over_samples_that_it_was_not_picked_from():
    truth = np.random.default_rng(4).normal(size=(4000, 8))
    found = best_of_n_wins(truth, truth, [1, 2, 4]).mean(0)  # an oracle wins n times of n + 1
    assert found == pytest.approx([1 / 2, 2 / 3, 4 / 5], abs=0.01)
    blind = best_of_n_wins(truth[::-1], truth, [1, 4]).mean(0)
    assert blind == pytest.approx([1 / 2, 1 / 2], abs=0.01)
    assert best_of_n_wins(truth, 0 * truth, [2])[0] == pytest.approx(0.5)


def test_best_of_n_says_what_is_wrong():
    with pytest.raises(CourseError, match=r"n = \[4\].*from 1 to 3"):
        best_of_n([1.0, 2.0, 3.0], [4])
    with pytest.raises(CourseError, match="equal shapes"):
        best_of_n([1.0, 2.0, 3.0], [1], [1.0, 2.0])


def test_kl_with_ties_is_that_of_enumerated_draws():
    """Six texts, of which some have equal scores; ties are broken at random."""
    probs = np.array([0.05, 0.15, 0.2, 0.1, 0.3, 0.2])
    scores = np.array([2, 0, 1, 1, 0, 3])
    masses = [probs[scores == s].sum() for s in np.unique(scores)]
    for n in (1, 2, 3, 4):
        chosen = np.zeros(6)
        for draw in itertools.product(range(6), repeat=n):
            best = max(scores[i] for i in draw)
            winners = [i for i in draw if scores[i] == best]
            for i in winners:
                chosen[i] += np.prod(probs[list(draw)]) / len(winners)
        exact = (chosen * np.log(chosen / probs)).sum()
        assert best_of_n_kl(n, masses) == pytest.approx(exact, abs=1e-12)
        assert exact <= best_of_n_kl(n) + 1e-12


def test_kl_without_ties_is_the_textbooks_and_with_duplicates_far_below():
    ns = np.array([1, 2, 8, 64])
    fine = best_of_n_kl(ns, np.full(200_000, 1 / 200_000))
    assert fine == pytest.approx(best_of_n_kl(ns), abs=1e-3)
    assert best_of_n_kl(1) == 0 and best_of_n_kl(1024) == pytest.approx(
        math.log(1024) - 1023 / 1024
    )
    two = best_of_n_kl([1, 4, 10_000], [0.5, 0.5])
    assert two[0] == pytest.approx(0, abs=1e-12) and two[2] == pytest.approx(math.log(2))
    pool = np.random.default_rng(0).integers(5, size=4000)
    assert score_masses([3, 1, 1, 2]) == pytest.approx([0.5, 0.25, 0.25])
    assert best_of_n_kl(8, score_masses(pool)) == pytest.approx(
        best_of_n_kl(8, np.full(5, 0.2)), abs=0.05
    )


CURVES = {
    "bon": lambda d: d * (1.5 - 0.2 * d),
    "rl": lambda d: d * (1.5 - 0.6 * np.log(np.maximum(d, 1e-300))),
}


@pytest.mark.parametrize("form", CURVES)
def test_fit_recovers_a_known_curve_and_its_peak(form):
    kl = np.linspace(0, 49, 30)
    d = np.sqrt(kl)
    beta = {"bon": 0.2, "rl": 0.6}[form]
    peak = {"bon": 1.5 / 0.4, "rl": math.exp(1.5 / 0.6 - 1)}[form]
    exact = fit_overoptimisation(kl, CURVES[form](d), form)
    assert exact.alpha.estimate == pytest.approx(1.5) and exact.beta.estimate == pytest.approx(beta)
    assert exact.peak.estimate == pytest.approx(peak) and exact.r2 == pytest.approx((1, 1, 1))
    grid = np.linspace(0.01, 12, 100_000)
    assert grid[CURVES[form](grid).argmax()] == pytest.approx(peak, abs=1e-3)


def test_two_runs_that_differ_have_an_interval():
    d = np.linspace(0.5, 5, 9)
    fit = fit_overoptimisation(d**2, [CURVES["bon"](d), 2 * CURVES["bon"](d)], "bon")
    assert fit.alpha == pytest.approx((2.25, 1.5, 3.0))  # 1.5 and twice that, resampled
    residual = CURVES["bon"](d) / 2  # what each run lacks of the curve between them
    gains = np.array([CURVES["bon"](d), 2 * CURVES["bon"](d)])
    assert fit.r2.estimate == pytest.approx(1 - 2 * (residual**2).sum() / gains.var() / gains.size)
    assert fit.r2.high == pytest.approx(1)  # the same run twice


@pytest.mark.parametrize("form", CURVES)
@pytest.mark.parametrize("runs", [None, 12])
def test_intervals_cover_the_truth_about_as_often_as_they_say(form, runs):
    rng = np.random.default_rng(0)
    kl = np.linspace(0.5, 36, 24)
    covered, narrow = 0, 0
    for seed in range(60):
        noise = rng.normal(scale=0.3, size=kl.shape if runs is None else (runs, len(kl)))
        own = kl if runs is None else kl * rng.uniform(0.8, 1.2, size=(runs, 1))
        fit = fit_overoptimisation(
            own, CURVES[form](np.sqrt(own)) + noise, form, num_resamples=200, seed=seed
        )
        covered += fit.alpha.low <= 1.5 <= fit.alpha.high
        narrow += fit.alpha.high - fit.alpha.low < 0.6
        assert fit.peak.low <= fit.peak.estimate <= fit.peak.high
        assert fit.r2.low <= fit.r2.estimate <= 1 and fit.r2.high <= 1
    assert covered >= 48 and narrow >= 50  # 95% less the bootstrap's shortness at few runs


def test_a_curve_that_never_falls_has_no_peak():
    d = np.linspace(0.1, 5, 20)
    fit = fit_overoptimisation(d**2, d * (1 + 0.1 * d), "bon")
    assert fit.peak.estimate == math.inf and fit.beta.estimate == pytest.approx(-0.1)
    with pytest.raises(CourseError, match="form='ppo'"):
        fit_overoptimisation(d**2, d, "ppo")
    with pytest.raises(CourseError, match="three or more"):
        fit_overoptimisation([1, 2], [1, 2], "rl")


# ---- problems with an answer -------------------------------------------------------------------


def test_a_majority_counts_answers_and_a_tie_goes_to_the_first():
    assert majority([3, 5, 5]) == 5 and majority([None, None, 7]) == 7
    assert majority([None]) is None and majority([]) is None
    assert majority([3, 5, 5, 3]) == 3 and majority([5, 3, 3, 5]) == 5
    assert majority([3, 5, 5], [0.9, 0.3, 0.3]) == 3 and majority([3, 5, 5], [0.5, 0.3, 0.3]) == 5
    orders = itertools.permutations([1, 1, 2, 2, 3])
    drawn = [majority(order) for order in orders]
    assert drawn.count(1) == drawn.count(2) and drawn.count(3) == 0  # so a tie is a fair draw


def pool(n=6, problems=3):
    rng = np.random.default_rng(0)
    answers = [[int(a) if a else None for a in row] for row in rng.integers(0, 4, (problems, n))]
    tokens = rng.integers(5, 9, (problems, n))
    scores = rng.random((problems, n)).round(1)
    return Pool(answers, [1] * problems, np.array([10, 20, 30]), tokens, {"v": scores})


def test_picks_over_all_orders_are_means_over_all_subsets():
    found = pool()
    every = np.array(list(itertools.permutations(range(6))))
    orders = np.broadcast_to(every, (3, *every.shape))
    for n in (1, 2, 4, 6):
        right, cost = pick(found, orders, n, best, "v")
        expected = best_of_n(found.scores["v"], [n], found.right.astype(float))[:, 0]
        np.testing.assert_allclose(right.mean(1), expected)
        any_right, _ = pick(found, orders, n, lambda answers, _: 1 if 1 in answers else None)
        for p in range(3):
            assert any_right[p].mean() == pytest.approx(pass_at_k(found.right[p], n))
        assert cost.generated.mean(1) == pytest.approx(n * found.generated.mean(1))
    assert (found.right.mean(1) == [np.mean([a == 1 for a in row]) for row in found.answers]).all()
    with pytest.raises(CourseError, match="n=7 of 6"):
        pick(found, orders, 7, best, "v")


def test_random_orders_hold_every_sample_once_and_repeat():
    orders = draw_orders(2, 8, 5, seed=3)
    assert (np.sort(orders, -1) == np.arange(8)).all()
    assert (orders == draw_orders(2, 8, 5, seed=3)).all()
    assert (orders != draw_orders(2, 8, 5, seed=4)).any()


def test_the_cost_counts_prompts_once_and_the_verifier_too():
    found, orders = pool(), draw_orders(3, 6, 4)
    _, plain = pick(found, orders, 6, best)
    _, judged = pick(found, orders, 6, best, "v")
    tokens = found.prompt + found.generated.sum(1)
    np.testing.assert_array_equal(plain.flops(100)[:, 0], 200 * tokens)
    np.testing.assert_array_equal(judged.flops(100, 100)[:, 0], 400 * tokens)
    assert Cost(np.array(10), np.array(5)).flops(7) == 2 * 7 * 15


def test_steps_end_where_they_are_said_to():
    assert split_steps([1, 0, 2, 3, 0, 4], {0}) == [[1, 0], [2, 3, 0], [4]]
    assert split_steps([], {0}) == [] and split_steps([0, 0], {0}) == [[0], [0]]


def searched(model, prompts, verify, width, expand):
    return beam_search(
        model,
        prompts,
        verify,
        lambda ids: len(ids) >= 6,
        width=width,
        expand=expand,
        ends=[399],
        max_steps=3,
        max_step_tokens=2,
        seed=0,
        pad_id=3,
    )


def test_a_beam_keeps_what_the_verifier_likes_and_counts_what_it_drops():
    model, _ = tiny()
    prompts = [[5, 6, 7], [8, 9]]

    def even(owners, completions):  # likes even tokens
        return [np.mean([token % 2 == 0 for token in ids]) for ids in completions]

    def indifferent(owners, completions):
        assert len(owners) == len(completions) and set(owners) <= {0, 1}
        return [0.0] * len(completions)

    wide, blind = (searched(model, prompts, v, 2, 4) for v in (even, indifferent))
    assert wide.generated.tolist() == [3 * 8 * 2] * 2 == blind.generated.tolist()
    for found in (wide, blind):
        assert [len(row) for row in found.completions] == [2, 2]
        assert all(len(ids) == 6 for row in found.completions for ids in row)
    mean = [np.mean([even([], row) for row in found.completions]) for found in (wide, blind)]
    assert mean[0] > mean[1] + 0.2 and all(row == sorted(row)[::-1] for row in wide.scores)
    alone = searched(model, prompts, indifferent, 1, 1)  # is one sample, step by step
    assert alone.generated.tolist() == [6, 6]


def test_a_beam_with_the_exact_checker_finds_what_there_is_to_find():
    model, _ = tiny()
    target = generate(
        model, [[5, 6, 7]], max_new_tokens=6, eos_ids=[399], pad_id=3, temperature=0
    ).lists[0]

    def exact(owners, completions):
        return [float(ids == target[: len(ids)]) for ids in completions]

    found = searched(model, [[5, 6, 7]], exact, 64, 64)
    assert found.completions[0][0] == target and found.scores[0][0] == 1


def test_a_budget_is_cut_and_the_words_are_put_in():
    model, _ = tiny()
    prompts, written = [[5, 6, 7]] * 3, [[10, 11, 12, 13], [10, 11], [10, 11, 12]]
    words = [[20, 21], [22], []]
    sampling = {"max_new_tokens": 2, "eos_ids": [399], "pad_id": 3, "temperature": 0}
    found = resume(model, prompts, written, [2, 2, None], words, **sampling)
    assert found[2] == written[2] and written[0] == [10, 11, 12, 13]
    for row, begun in zip(found, ([10, 11, 20, 21], [10, 11, 22]), strict=False):
        more = generate(model, [[5, 6, 7, *begun]], **sampling).lists[0]
        assert row == begun + more
    assert resume(model, prompts, written, [None] * 3, words, **sampling) == written
