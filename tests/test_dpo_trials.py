"""What notebook 05 measures: a bandit's optimum, frontiers, operations, the implicit reward."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_policy_bench import bench, written
from test_preferences import demonstrations_ranked
from test_recipes import course, folder  # noqa: F401  a tiny base model
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms import dpo, reward
from course_lib.algorithms.loop import Diverged
from course_lib.experiments import dpo_trials, nb05, policy_bench, preferences, recipes
from course_lib.experiments.policy_bench import Bench, Point
from course_lib.inputs.models import frozen_copy, num_parameters

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1])
REWARDS = torch.tensor([-0.5, 0.2, 1.0, 1.5])
SHARES = (REWARDS[:, None] - REWARDS).sigmoid()


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_with_exact_labels_the_bandit_reaches_the_tilted_reference(beta):
    path = nb05.bandit_descent(REFERENCE, SHARES, beta, 2000).exp()
    best = REFERENCE * (REWARDS / beta).exp()
    torch.testing.assert_close(path[0], REFERENCE)
    torch.testing.assert_close(path[-1], best / best.sum(), atol=2e-3, rtol=0)


def test_with_one_label_a_pair_margins_grow_for_ever_and_beta_is_only_a_scale():
    margins = []
    for beta in (0.1, 1.0):
        path = nb05.bandit_descent(REFERENCE, (SHARES > 0.5).float(), beta, 800)
        margins.append(beta * ((path - path[0])[:, 3] - (path - path[0])[:, 0]))
    torch.testing.assert_close(margins[0], margins[1], atol=1e-2, rtol=1e-2)
    assert margins[0][-1] > margins[0][100] + 1 > margins[0][10] + 2


def test_the_table_of_pairs_counts_what_labels_and_truth_say():
    def by_word(texts, **_):
        return {"input_ids": [text.split() for text in texts]}

    row = {"completions": ["one", "one two", "two " * 110], "ranks": [1, 3, 2]}
    ends, everything = dpo_trials.pair_summary([row | {"scores": [5.0, 5.0, 1.0]}], by_word)
    assert (ends["pairs"], ends["label agrees with the truth"]) == (1, 0.5)  # a tie
    assert (ends["tokens of chosen"], ends["tokens of rejected"]) == (1.0, 2.0)
    assert (everything["chosen: share cut"], everything["rejected: share cut"]) == (1 / 3, 1 / 3)
    assert everything["pairs"] == 3  # 0 over 1 tied, 0 over 2 right, 2 over 1 wrong
    assert everything["label agrees with the truth"] == pytest.approx(0.5)
    assert dpo_trials.pair_summary([row], by_word)[0]["label agrees with the truth"] == "unknown"


def test_a_frontier_is_read_between_its_points_and_not_beyond_them():
    here = bench(written([[0.0, 2.0], [3.0, 3.0]]))  # 1 and 3 on average
    near, far = (Point(kl, np.array(t), np.zeros(2)) for kl, t in ((1, [3, 5]), (9, [4, 4])))
    for kl, expected in {0: [1, 3], 0.25: [2, 4], 1: [3, 5], 4: [3.5, 4.5], 9: [4, 4]}.items():
        assert dpo_trials.at_kl(here, [far, near], kl) == pytest.approx(expected)
    assert dpo_trials.at_kl(here, [near], 100) == pytest.approx([3, 5])
    assert dpo_trials.at_kl(here, [Point(0, np.ones(2), np.ones(2))], 0) == pytest.approx([1, 1])
    assert dpo_trials.ahead(here, [far, near], Point(1, np.array([1, 7]), np.zeros(2))) == (
        pytest.approx([2, -2])
    )


def test_a_curve_starts_before_training_and_goes_outwards():
    here = bench(written([[1.0]]))
    results, profile = here.course.results, SimpleNamespace(name="pocket")
    run = SimpleNamespace(results=results, notebook="05", profile=profile)
    for measure, value in (("kl", 0.0), ("truth", 1.0)):
        results.add("5.1", "before", 0, 0, measure, value)
    for beta, seed, kl, truth in ((0.1, 0, 9.0, 4.0), (1, 0, 1.0, 2.0), (1, 1, 1.0, 3.0)):
        results.add("5.2", "DPO", beta, seed, "kl", kl)
        results.add("5.2", "DPO", beta, seed, "truth", truth)
    found = nb05.curve(run, "DPO", "truth")
    assert found["d"].tolist() == [0, 1, 3] and found["mean"].tolist() == [1, 2.5, 4]
    assert found["x"].isna().tolist() == [True, False, False]
    assert found["low"].tolist()[1] < 2 and found["high"].tolist()[1] > 3  # two seeds
    assert found["low"].tolist()[2] == 4  # one
    assert nb05.curve(run, "best-of-n", "truth").empty


def test_the_implicit_reward_is_the_margin_of_dpo(monkeypatch):
    policy, tokenizer = tiny()
    reference = frozen_copy(policy)
    torch.manual_seed(0)
    for weight in policy.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    ranked = demonstrations_ranked(n=6, k=3)
    rows = reward.render_comparisons(tokenizer, ranked, 10_000)
    logps = [dpo_trials.answer_logps(model, tokenizer, rows) for model in (policy, reference)]
    margins, _ = reward.pair_margins(rows, 0.3 * (logps[0] - logps[1]))
    pairs = [
        {"prompt": r["prompt"], "chosen": r["texts"][i], "rejected": r["texts"][j]}
        for r in ranked
        for i, j in reward.pairs_of(r)
    ]
    pairs = dpo.add_reference_logps(reference, dpo.render_pairs(tokenizer, pairs))
    assert margins == pytest.approx(dpo.evaluate_dpo(policy, pairs, 0.3)["margins"], abs=1e-3)
    here = bench(written([[0.0]]))
    here.reference, here.tokenizer = reference, tokenizer
    here.course.truth_known = False  # so that no answer was cut
    folders = {"untrained": reference, "trained": policy}
    monkeypatch.setattr(dpo_trials, "load", lambda run, name: (folders[name], tokenizer))
    asked = {name: (name, 0.3) for name in folders}
    found = dpo_trials.implicit_marks(here, asked, rows)
    assert found["untrained"].accuracy == pytest.approx(np.full(6, 0.5))  # all margins are 0
    known = preferences.pair_probabilities(rows)
    right = np.where(margins > 0, known, 1 - known).reshape(6, 3).mean(1)
    assert found["trained"].accuracy == pytest.approx(right)
    recorded = here.course.results.frame("5.4", "accuracy", "trained")["value"].tolist()
    assert recorded == pytest.approx([right.mean()])


def test_operations_are_counted_by_hand(course, tmp_path, monkeypatch):  # noqa: F811
    model, tokenizer = tiny()
    rows = [{"prompt": "moon"}, {"prompt": "pens"}]
    monkeypatch.setattr(dpo_trials, "prompts_that_fit", lambda *a: rows)
    monkeypatch.setattr(dpo_trials.chat, "render_prompt", lambda tokenizer, prompt: [0] * 5)
    made = {"dpo": [100, 100], "reward": [300], "ppo": [40, 60]}
    for name, tokens in made.items():
        (tmp_path / name).mkdir()
        history = [{"num_tokens": n} for n in tokens]
        (tmp_path / name / "history.json").write_text(json.dumps(history))
    empty = written([[0.0]])
    folders = {name: str(tmp_path / name) for name in made}
    here = Bench(course, 0, "", model, tokenizer, None, folders["reward"], [], empty)
    found = dpo_trials.operations(here, folders["dpo"], 2, folders["ppo"], num_epochs=3)
    n = num_parameters(model)
    # two iterations with both prompts of 5 tokens, two answers to each, 100 tokens of answers
    read, texts = 2 * 2 * 5, 2 * 2 * 2 * 5 + 100
    assert found == {
        "DPO": {"reference reads the pairs": n * 2 * 100, "training": n * 6 * 200},
        "PPO": {
            "reward model: training": n * 6 * 300,
            "reward model: its scale": n * 2 * 300,
            "writing answers": n * 2 * (read + 100),
            "scoring them": n * 2 * texts,
            "policy and reference read them": n * 4 * texts,
            "training": n * 18 * texts,
        },
    }
    assert course.results.frame("5.1", "operations", "DPO")["value"].sum() == n * 1400
    steps = dpo_trials.longer_ppo(found, 2, 0.2)  # the part that grows with the iterations
    grown = {part: n * (1 if "model" in part else steps / 2) for part, n in found["PPO"].items()}
    assert sum(found["DPO"].values()) == pytest.approx(0.2 * sum(grown.values()))


def test_spread_over_seeds_and_over_rates():
    gains = {("PPO", 1.0, 0): 1.0, ("PPO", 1.0, 1): 3.0, ("DPO", 1.0, 0): 9.0}
    gains |= {("PPO", 3.0, 0): -1.0, ("PPO", 3.0, 1): 3.5}
    found = dpo_trials.spread(gains, "PPO")
    assert found["seeds"].tolist() == [1, 1] and found["rates"].tolist() == [2, 0.5]


def test_a_run_that_stopped_itself_gains_nothing_and_other_errors_are_raised(monkeypatch):
    here = bench(written([[1.0]]))
    here.course.model = lambda role: "pocket/s"
    asked, errors = {}, [Diverged("kl is 200"), CourseError("disk full")]

    def train(run, n, *, seed, learning_rate, **changes):
        asked.update(changes, rate=learning_rate)
        raise errors[0]

    usual = SimpleNamespace(learning_rate=0.1)
    monkeypatch.setitem(dpo_trials.METHODS, "PPO", (train, lambda *a: usual))
    settings, runs = {"PPO": {"beta": 0.2}}, {"PPO": {0: written([[3.5]])}}
    gains = dpo_trials.gains_by_rate({0: here}, runs, 8, settings, (3.0,))
    assert gains == {("PPO", 1.0, 0): 2.5, ("PPO", 3.0, 0): 0.0}
    assert asked == {"beta": 0.2, "rate": pytest.approx(0.3)}
    errors.pop(0)
    with pytest.raises(CourseError, match="disk"):
        dpo_trials.tuned(here, "PPO", 8, 3.0)


def test_from_a_bench_to_the_frontier(course):  # noqa: F811
    here = policy_bench.load_bench(course, 6, 3, 0, ("5.1", "before"))
    options = {"beta": 0.5, "num_steps": 3}
    folder = recipes.dpo_policy(course, 6, seed=0, **options)  # noqa: F811
    dpo_trials.record_training(course, folder, 2, 0, bins=5)
    passes = course.results.frame("train", "loss")["x"]
    assert passes.tolist() == pytest.approx([1 / 3, 1, 5 / 3], abs=1e-3)  # a bin a step
    assert dpo_trials.seconds(folder) > 0 and dpo_trials.seconds("elsewhere") == 0
    usual = {"DPO": policy_bench.measure(here, folder, "5.1", "DPO")}
    found = dpo_trials.trace(here, usual, 6, {"DPO": options}, {"DPO": (0.5, 2.0)})
    assert len(found["DPO"]) == 2 and found["DPO"][0].truth.shape == (3,)
    assert sorted(course.results.frame("5.2", "truth", "DPO")["x"]) == [0.5, 2.0]
    rows = recipes.rendered(course, here.tokenizer, "test", 3)
    assert 0 <= dpo_trials.reward_marks(here, rows).accuracy.mean() <= 1
    pairs = recipes.preference_pairs(course, here.tokenizer, "train", 6)
    again = dpo.check_pairs(dpo_trials.in_order(pairs, 3))[0]
    assert sorted(map(str, again)) == sorted(map(str, dpo_trials.in_order(pairs, 4)))
    config = recipes.dpo_config(course, course.model("base"), num_steps=2)
    reference = {n: p.clone() for n, p in here.reference.named_parameters()}
    loss, answers = dpo_trials.trial(here, pairs, config, "short")
    assert loss == pytest.approx(math.log(2), abs=1e-3) and answers.truth.shape == (3, 4)
    assert all(torch.equal(reference[n], p) for n, p in here.reference.named_parameters())
