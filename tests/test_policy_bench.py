"""The test bench of 04 and 05: what a policy writes, best-of-n, wins, the tables."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_recipes import course, folder, short  # noqa: F401  a tiny base model

from course_lib.experiments import measures, policy_bench, rlhf_trials
from course_lib.experiments.measures import Written
from course_lib.experiments.policy_bench import Bench
from course_lib.kit.results import Results
from course_lib.world.judge import judge


def written(truth, proxy=None, **more):
    """What a policy wrote, of which only some is looked at."""
    truth = np.asarray(truth, dtype=float)
    arrays = {name: np.zeros(truth.shape) for name in ("kl", "false", "length")} | more
    texts = np.full(truth.shape, "", dtype=object)
    return Written([{}] * len(truth), texts, truth, truth if proxy is None else proxy, **arrays)


def bench(before, **more):
    """A bench of known answers, without models."""
    run = SimpleNamespace(results=Results("05", "live"), truth_known=True)
    empty = {
        "start": "",
        "reference": None,
        "tokenizer": None,
        "reward_model": None,
        "reward_folder": "",
    }
    return Bench(run, 0, **empty, rows=[], before=before, **more)


def test_wins_by_hand():
    a, b = np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[2.0, 1.0], [1.0, 5.0]])
    assert measures.wins(a, b).tolist() == [(1 + 1 + 0 + 0.5) / 4, 0.0]
    assert measures.wins(a, b) + measures.wins(b, a) == pytest.approx([1, 1])


def test_an_untrained_policy_is_at_no_distance_and_a_moved_one_is(course, short, monkeypatch):  # noqa: F811
    monkeypatch.setattr(policy_bench, "POOL", 2)
    here = policy_bench.load_bench(course, 6, 3, 0, ("4.1", "SFT"))
    again = policy_bench.load_bench(course, 6, 3, 0, ("4.1", "again"))  # from the stage
    assert (again.before.texts == here.before.texts).all()
    assert (again.before.proxy == here.before.proxy).all()
    before = here.before
    assert before.truth.shape == before.texts.shape == (3, 2)
    assert (before.kl == 0).all() and (before.length > 0).all()
    assert [judge(here.rows[1], text).score for text in before.texts[1]] == pytest.approx(
        before.truth[1].tolist(), abs=1e-3
    )
    same = policy_bench.measure(here, here.reference, "4.1", "same")
    assert same.kl == pytest.approx(0, abs=1e-4)
    assert (same.texts[:, :2] != before.texts).any()  # random numbers of its own
    policy = copy.deepcopy(here.reference)
    with torch.no_grad():
        policy.model.norm.weight *= 1.3
    moved = policy_bench.measure(here, policy, "4.1", "moved")
    assert np.abs(moved.kl).mean() > 0.01
    own = policy_bench.measure(here, policy, "4.1", "moved", reference=policy)
    assert own.kl == pytest.approx(0, abs=1e-4) and (own.texts == moved.texts).all()
    frame = course.results.frame("4.1")
    assert set(frame["measure"]) == {"truth", "proxy", "false", "kl", "length", "wins"}
    first, second = policy_bench.table({0: here}, {"SFT": {0: before}, "moved": {0: moved}})
    assert first["KL (nats)"] == "0" and first["wins over before"].startswith("0.500")
    assert second[""] == "moved" and second["KL (nats)"] != "0"


def test_best_of_n_is_by_proxy_and_paid_in_truth():
    """The proxy likes the answer of true score 0 best, and otherwise what is true."""
    pool = written([[0.0, 4.0, 1.0, 3.0]], proxy=np.array([[9.0, 4.0, 1.0, 3.0]]))
    found = policy_bench.best_of_n(here := bench(pool), "5.2", "best-of-n")
    assert found[1].kl == 0 and found[1].truth == pytest.approx([2])
    assert found[1].wins == pytest.approx([0.5])  # best of 1 is where it starts
    # Of the six pairs three have the favourite; the best of the others are 4, 4 and 3.
    assert found[2].truth == pytest.approx([(4 + 4 + 3) / 6])
    # The favourite loses to both of the other half, whose best loses to one of this one.
    assert found[2].wins == pytest.approx([(0 + 0.5) / 2])
    assert 0 < found[2].kl <= math.log(2) - 1 / 2
    rows = here.course.results.frame("5.2", "kl", "best-of-n")
    assert rows["value"].tolist() == pytest.approx([one.kl for one in found.values()])
    same = written([[2.0] * 6])  # where all texts are equal there is nothing to pick
    assert policy_bench.best_of_n(bench(same), "5.2", "same")[2].kl == pytest.approx(0, abs=1e-9)


def test_best_of_n_starts_at_the_policy_and_its_curve_is_fitted(course, short):  # noqa: F811
    here = policy_bench.load_bench(course, 6, 3, 0, ("4.1", "SFT"))
    found = rlhf_trials.best_of_n(here)
    assert sorted(found) == [1, 2, 4, 8, 16] and found[8].wins.shape == (3,)
    assert np.isnan(found[16].wins).all()  # there is no other half to beat
    wide = course.results.frame("along").pivot_table(index="x", columns="measure", values="value")
    assert wide.index.tolist() == [1, 2, 4, 8, 16]
    assert wide["gain"][1] == wide["kl"][1] == 0
    assert (wide["kl"][:8] <= wide["textbook kl"][:8] + 1e-9).all()
    assert (np.diff(wide["proxy"]) >= 0).all()
    assert set(course.results.frame("along")["condition"]) == {"best of n"}


def test_answers_stand_beside_each_other_with_their_truth():
    before, after = written([[1.0, 9.0], [2.0, 9.0]]), written([[3.0], [4.26]])
    before.texts[1, 0], after.texts[1, 0] = "old", "new"
    before.rows = [{"prompt": "how"}, {"prompt": "why"}]
    (row,) = policy_bench.answers_beside({"SFT": {0: before}, "PPO": {0: after}}, 0, slice(1, 2))
    assert row["prompt"] == "why"
    assert row["SFT: true score, answer"] == "2.0  old"
    assert row["PPO: true score, answer"] == "4.3  new"
