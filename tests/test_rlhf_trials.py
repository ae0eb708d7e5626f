"""The experiments of notebook 04: peaks without luck, best-of-n, and who plays whom."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_policy_bench import written
from test_recipes import course, folder, short  # noqa: F401  a tiny base model

from course_lib.algorithms import chat, reward
from course_lib.experiments import (
    answers,
    measures,
    policy_bench,
    recipes,
    rlhf_trials,
    sft_trials,
)
from course_lib.experiments.experiment import Items, Ran
from course_lib.experiments.measures import Written
from course_lib.inputs.models import frozen_copy


@pytest.fixture
def histories(monkeypatch):
    """Histories by name, in the place of folders."""
    found = {}
    monkeypatch.setattr(rlhf_trials, "training_history", found.get)
    return found


def history(truth, rng, n=16, spread=1.0):
    """One iteration's completions around each of the true means; KL grows by one nat a window.

    Both completions of a prompt share half of their luck: some prompts are easy.
    """
    return [
        {
            "truth": (
                mean + spread * (rng.normal(size=n) + rng.normal(size=n // 2).repeat(2))
            ).tolist(),
            "proxy": [0.1 * i] * n,
            "false": [i / 10] * n,
            "kl": i / rlhf_trials.WINDOW,
        }
        for i, mean in enumerate(truth)
    ]


def test_luck_alone_makes_a_peak_but_no_fall(histories):
    rng, naive, one, many = np.random.default_rng(0), [], [], []
    for _ in range(200):
        for seed in range(3):
            histories[seed] = history(np.zeros(32), rng)
        means = [window.mean() for window in rlhf_trials.windows(histories[0], "truth")]
        naive.append(max(means) - means[-1])
        one.append(np.mean(rlhf_trials.after_the_peak({0: 0})[0]))
        many.append(
            np.mean([f.mean() for f in rlhf_trials.after_the_peak({s: s for s in range(3)})[0]])
        )
    assert np.mean(naive) > 0.2  # the peak of noise lies above its last value
    assert abs(np.mean(one)) < 0.06 and abs(np.mean(many)) < 0.06


def test_a_true_fall_and_what_the_score_did_meanwhile(histories):
    rng = np.random.default_rng(1)
    truth = np.repeat([0.0, 2.0, 1.0, -1.0], rlhf_trials.WINDOW)
    for seed in (0, 1):
        histories[seed] = history(truth, rng, spread=0.1)
    for folders in ({0: 0}, {0: 0, 1: 1}):
        falls, rises = rlhf_trials.after_the_peak(folders)
        assert len(falls) == len(folders)
        assert falls[0].mean() == pytest.approx(3, abs=0.1)
        assert rises[0].mean() == pytest.approx(0.1 * 2 * rlhf_trials.WINDOW)
    early = history(np.repeat([2.0, 0, 0, 0], rlhf_trials.WINDOW), rng, spread=0.1)
    histories.update({2: early, 3: early})
    step = rlhf_trials.later_peak([{2: 2, 3: 3}, {0: 0, 1: 1}])
    assert step.estimate == pytest.approx(1.375**0.5 - 0.375**0.5)


def test_a_training_is_recorded_by_window(course, histories):  # noqa: F811
    rows = history(np.arange(9.0), np.random.default_rng(0), spread=0)
    more = dict.fromkeys(rlhf_trials.NOTED[1:], 1.0)
    histories["run"] = [row | more for row in rows]  # the ninth iteration fills no window
    rlhf_trials.record_training(course, "PPO", "run", 0, {"truth": 1.0, "kl": 0.0})
    frame = course.results.frame("along", condition="PPO")
    wide = frame.pivot_table(index="x", columns="measure", values="value")
    assert wide.index.tolist() == [0, 4, 8]
    assert wide["truth"].tolist() == [1, 1.5, 5.5] and wide["gain"].tolist() == [0, 0.5, 4.5]


def test_curves_are_fitted_in_the_form_of_their_way_and_told_with_intervals_over_seeds(course):  # noqa: F811
    results = course.results
    for seed, d in itertools.product(range(3), (0.0, 1.0, 2.0, 3.0, 4.0)):
        for name, gain in (("best of 9", d * (2 - 0.4 * d)), ("climb", d * (2 - np.log(d or 1)))):
            results.add("along", name, d, seed, "kl", d**2)
            results.add("along", name, d, seed, "gain", (1 + 0.1 * seed) * gain)
    along = results.frame("along")
    best, climb = (rlhf_trials.fitted(along, name) for name in ("best of 9", "climb"))
    assert (best.form, climb.form) == ("bon", "rl")
    assert best.alpha.estimate == pytest.approx(2.2) and best.peak.estimate == pytest.approx(2.5)
    assert climb.beta.estimate == pytest.approx(1.1) and climb.peak.low <= climb.peak.high
    assert rlhf_trials.fitted(along, "no such run") is None
    assert rlhf_trials.fitted(along[along["x"] < 3], "climb") is None  # too few points
    table = rlhf_trials.fit_rows(course, ["best of 9", "no such run"])
    assert [row["√KL reached, at most"] for row in table] == ["4.00"]
    assert "[" in table[0]["Gao's α"]


def test_the_same_answers_are_scored_by_another_reward_model(course):  # noqa: F811
    here = policy_bench.load_bench(course, 6, 3, 0, ("4.1", "SFT"))
    found = rlhf_trials.rescored(here, here.before, 4)
    assert (found.texts == here.before.texts).all() and found.truth is here.before.truth
    model = reward.load_reward_model(recipes.reward_model(course, 4))
    for place in ((0, 0), (2, 5)):
        one = [here.rows[place[0]]["prompt"]], [found.texts[place]]
        score = reward.normalise(model, reward.score_texts(model, here.tokenizer, *one))
        assert found.proxy[place] == pytest.approx(score[0], abs=1e-4)


def test_prompted_models_get_their_best_examples(course, monkeypatch):  # noqa: F811
    asked = []

    def complete(model, tokenizer, texts, **sampling):
        asked.extend(texts)
        return ["Yes.\nUser: no"] * len(texts) * sampling["num_generations"]

    monkeypatch.setattr(chat, "complete", complete)
    base = course.model("base")
    rows = answers.prompts_that_fit(course, *recipes.load(course, base), "test", 2)
    here = SimpleNamespace(course=course, rows=rows, seed=0)
    assert rlhf_trials.prompted(here, base, 2).shape == (2, 2)
    assert asked[0].endswith(f"User: {rows[0]['prompt']}\nAssistant:")
    _, tokenizer = recipes.load(course, base)
    room = course.context - sft_trials.SAMPLING["max_new_tokens"]
    assert all(len(ids) <= room for ids in tokenizer(asked)["input_ids"])  # and an answer fits
    turns = rlhf_trials.transcript(here, tokenizer, 3, 10**6).split("User:")[1:]
    assert len(turns) == 3
    longest = max(len(tokenizer(f"User:{turn}")["input_ids"]) for turn in turns)
    shorter = rlhf_trials.transcript(here, tokenizer, 3, longest - 1).split("User:")[1:]
    assert len(shorter) == 3 and len({*turns, *shorter}) > 3  # the next best that are short enough
    rlhf_trials.prompted(here, base, 2, shots=0)
    assert asked[-1] == rows[1]["prompt"]


def test_a_match_has_a_winner_and_a_loser(course):  # noqa: F811
    truths = {"a": np.array([[2.0, 1.0], [5.0, 5.0]]), "b": np.array([[1.0], [5.0]])}
    rlhf_trials.play(course, truths, 0)
    rates = course.results.frame("4.5").set_index(["condition", "x"])["value"]
    # a: one win and one draw at the first prompt, two draws at the second
    assert rates.to_dict() == {("a", "b"): 0.625, ("b", "a"): 0.375}


def test_wins_over_a_third_model_are_compared():
    truths = {
        "a": np.array([[2.0], [1.0]]),
        "b": np.array([[0.0], [1.0]]),
        "c": np.array([[1.0], [1.0]]),
    }
    assert rlhf_trials.more_wins(truths, "a", "b", "c").tolist() == [1, 0]


def test_hacked_answers_are_those_that_please_the_wrong_one():
    truth, proxy = np.array([[5.0, -1.0], [-2.0, 4.0]]), np.array([[9.0, 2.0], [3.0, 1.0]])
    texts = np.array([["good", "bad"], ["worst", "fine"]], dtype=object)
    empty, rows = np.zeros((2, 2)), [{"prompt": "p"}, {"prompt": "q"}]
    written = Written(rows, texts, truth, proxy, *[empty] * 3)
    before = Written(rows, texts, np.array([[0.0, 1.0], [1.0, 1.0]]), proxy, *[empty] * 3)
    shown = rlhf_trials.hacked(
        written, before, num=3
    )  # below three in four before: the two bad ones
    assert [row["answer"] for row in shown] == ["worst", "bad"]
    assert shown[0]["prompt"] == "q"
    assert [row["answer"] for row in rlhf_trials.hacked(written, written, num=3)] == ["worst"]
    assert rlhf_trials.pleasing(written, written) == 0.5  # two please, of which "worst" is low


def test_a_walk_adds_up_to_the_score_less_the_penalty(course, short):  # noqa: F811
    here = policy_bench.load_bench(course, 6, 3, 0, ("4.1", "SFT"))
    policy = frozen_copy(here.reference)
    for weight in policy.parameters():
        weight.data *= 1.05
    _, (*_, moved) = rlhf_trials.walk(here, policy, 0.5, num=4)
    price = -0.5 * (moved["log π"] - moved["log π_ref"])
    assert moved["-β log(π/π_ref)"] == pytest.approx(price, abs=1e-3) and abs(price) > 1e-3
    assert moved["reward"] == pytest.approx(moved["score"] + price, abs=1e-3)
    text, (*table, total) = rlhf_trials.walk(here, here.reference, 0.5, num=4)
    places = [int(row["place"]) for row in table]
    assert len(places) == 4 and places == sorted(places) and "<|" not in text
    score = table[-1]["reward"]  # of the last token: policy and reference are the same
    assert total["reward"] == pytest.approx(score, abs=1e-4)
    assert total["-β log(π/π_ref)"] == pytest.approx(0, abs=1e-4)
    found = rlhf_trials.passes(here, "torn", 2, beta=0.5, cliprange=float("inf"))
    assert found.truth.shape == (3, measures.TRIES)
    assert set(course.results.frame("break")["condition"]) == {"torn"}


def test_ppo_stands_beside_best_of_n():
    picked = policy_bench.Point(1.0, np.array([2.0]), np.zeros(1))
    assert rlhf_trials.beside(written([[3.0], [4.0]]), picked).tolist() == [1.0]


def test_the_claims_of_the_full_run(histories, course):  # noqa: F811
    """Each from runs that differ by a known amount; a live run lacks them, and has none."""
    rng = np.random.default_rng(0)
    names = ["PPO", "no penalty", "β = 0.05", "β = 0.8", "γ = 0.1", "γ = 1.0", "the truth"]
    names += ["512 prompts", "λ = 0.95", "biased labellers"]
    gain = dict.fromkeys(names, 1.0) | {"the truth": 4.0, "γ = 1.0": 0.5, "512 prompts": -1.0}
    gain["λ = 0.95"] = 0.75
    kl = dict.fromkeys(gain, 2.0) | {"no penalty": 8.0, "β = 0.05": 4.0, "β = 0.8": 1.0}
    benches, after, folders, played = {}, {name: {} for name in gain}, {}, {}
    for seed in range(3):
        before = written(rng.normal(size=(6, 2)))
        benches[seed] = SimpleNamespace(before=before, course=course)
        for name in gain:
            more = 0.25 * (name == "biased labellers") + np.zeros((6, 2))
            arrays = {"kl": kl[name] + 0.01 * rng.normal(size=(6, 2)), "false": more}
            arrays["length"] = np.full((6, 2), 50.0)
            truth = before.truth + gain[name]
            after[name][seed] = written(truth, 2 * truth, **arrays)
        played[seed] = {"s, PPO": before.truth + 9, "l, prompted": before.truth}
        played[seed]["s, SFT"] = before.truth - 9
    losses = {"PPO": 3.0, "γ = 0.1": 2.8, "γ = 1.0": 2.5}
    loss = {
        n: {s: Items({"document_loss": np.full(5, v), "exam": np.full(5, v - 2)}) for s in range(3)}
        for n, v in losses.items()
    }
    for place, peak in enumerate((0, 1, 2)):
        truth = np.repeat([2.0 if i == peak else 0.0 for i in range(4)], rlhf_trials.WINDOW)
        histories[f"run {peak}"] = history(truth, rng, spread=0.1)
        name = f"{(64, 512, 4096)[place]} prompts"
        folders[name] = dict.fromkeys(range(3), f"run {peak}")
        runs = [name, *(["no penalty", "λ = 0.95"], ["PPO"], [])[place]]
        for seed, run in itertools.product(range(3), runs):
            for x, (d, gained) in enumerate(((0, 0.0), (2, 1.0 + place), (3 + place, 0.0))):
                for measure, value in (("kl", d**2), ("gain", gained)):
                    course.results.add("along", run, x, seed, measure, value)
    for seed, n in itertools.product(range(3), (1, 8, 64)):
        gained = {1: 0.0, 8: 2.0, 64: seed - 1.0}[n]  # peak at 8, then down to 0 on average
        course.results.add("along", "best of n, 64 prompts", n, seed, "gain", gained)
    items = {
        name: {s: policy_bench.as_items(benches[s], one) for s, one in each.items()}
        for name, each in after.items()
    }
    ran, taxed = Ran(course, "4.1", {}, {}, folders, items), Ran(course, "4.4", {}, {}, items=loss)
    ran.add("SFT", {s: policy_bench.as_items(one, one.before) for s, one in benches.items()})
    found = rlhf_trials.only_full(ran, taxed, played)
    expected = {"4.1c": 0.25, "4.1f": 0.25, "4.2d": 1, "4.4c": 0.2, "4.4d": -0.5, "4.4e": -0.5}
    expected |= {"4.2f": 0.0, "4.4f": 0.0, "4.4g": -1.0}  # all runs but γ = 1.0 gain the same
    expected |= {"4.1g": 0.5, "4.1h": 1.0, "4.2e": 1.0, "4.3i": 1.0, "4.3j": 1.0, "4.3k": 1.0}
    expected |= {"4.5b": 1, "4.5d": 1, "4.6b": 0.25, "4.6c": 0.5}
    expected["4.3l"] = 2.0
    expected["4.3e"] = min(1.375**0.5 - 0.375**0.5, 2.375**0.5 - 1.375**0.5)
    fall, rise = found.pop("4.3g"), found.pop("4.3h")  # of the second run, whose peak is its second
    assert (fall.estimate, rise.estimate) == pytest.approx((2, 0.8), abs=0.1)
    assert {claim: one.estimate for claim, one in found.items()} == pytest.approx(
        expected, abs=0.02
    )
    live = Ran(course, "4.1", {}, {}, items={"PPO": items["PPO"]})
    assert rlhf_trials.only_full(live, taxed, played) == {}


def test_wins_of_the_full_runs_stand_beside_those_of_best_of_n(course, monkeypatch):  # noqa: F811
    rows = [("4.1", "PPO", 0, "wins", 0.6), ("4.1", "PPO", 0, "truth", 9.0)]
    rows += [("along", "best of n", n, "wins", 0.5 + n / 100) for n in (1, 2, 4, 16)]
    rows += [("along", "best of n, 64 prompts", 4, "wins", 0.1)]
    frame = pd.DataFrame(rows, columns=["claim", "condition", "x", "measure", "value"])
    monkeypatch.setattr(course, "full_runs", lambda claim: frame[frame["claim"] == claim])
    table = [tuple(row.values()) for row in rlhf_trials.full_wins(course)]
    assert table == [("PPO", "0.600"), ("best of 4", "0.540"), ("best of 2", "0.520")]
