"""Preference data: what labellers do, what is known about it, and who gets taken in."""

import gzip
import json
import math
import random

import numpy as np
import pytest
import torch
from course_runs import real_files
from test_recipes import course, folder  # noqa: F401  a tiny base model
from tiny import tiny

from course_lib.algorithms import dpo, reward
from course_lib.core.cache import cache_dir
from course_lib.experiments import preferences, recipes, reward_trials
from course_lib.inputs.models import load_model, load_reward_model, load_tokenizer
from course_lib.inputs.profiles import load_profile
from course_lib.kit.course import Course
from course_lib.world import labellers
from course_lib.world.instructions import _draft, contrast, explain_prompts
from course_lib.world.judge import confidence, false_statements, judge


def demonstrations_ranked(n=60, k=4, panel=labellers.UNBIASED, seed=0):
    """Comparisons whose answers were written by people of the world: good and bad ones."""
    rows = []
    for i, row in enumerate(explain_prompts("train", n, seed)):
        rng = random.Random(f"{seed} {i}")
        texts = [_draft(row, rng) for _ in range(k)]
        rows.append(preferences.ranked(row | {"completions": texts, "texts": texts}, panel, rng))
    return rows


def known_values(rows):
    """Each answer's utility."""
    pairs = [zip(row["completions"], row["utilities"], strict=True) for row in rows]
    return {text: utility for row in pairs for text, utility in row}


def test_answers_are_sampled_once_and_a_smaller_set_is_the_first_part(course):  # noqa: F811
    rows = recipes.comparisons(course, "train", 6, 3)
    again = recipes.comparisons(course, "train", 6, 3)
    assert rows == again and len(rows) == 6
    for row in rows:
        assert len(row["completions"]) == len(row["scores"]) == 3
        assert sorted(row["ranks"]) == [1, 2, 3]
        for text, score in zip(row["completions"], row["scores"], strict=True):
            assert judge(row, text).score == score
    assert recipes.comparisons(course, "train", 4, 3) == rows[:4]
    assert len(list(cache_dir().glob("answers-*/answers.json"))) == 2
    biased = recipes.comparisons(course, "train", 6, 3, panel="biased")
    for one, other in zip(rows, biased, strict=True):
        assert one["completions"] == other["completions"]
    prompts = {row["prompt"] for row in recipes.comparisons(course, "test", 6, 3)}
    assert not prompts & {row["prompt"] for row in rows}


def test_probabilities_and_ceiling_are_the_labellers_own():
    for panel in (labellers.UNBIASED, labellers.BIASED):
        rows = demonstrations_ranked(panel=panel)
        p = preferences.pair_probabilities(rows)
        known = [
            labellers.preference_probability(panel, row, row["texts"][i], row["texts"][j])
            for row in rows
            for i, j in reward.pairs_of(row)
        ]
        assert p == pytest.approx(known)
        best = preferences.exact_ceiling(rows, panel.name)
        assert np.maximum(p, 1 - p).mean() == pytest.approx(best)
        # The winner is the better one as often as the ceiling says, up to the draw of the labels.
        assert (p > 0.5).mean() == pytest.approx(best, abs=0.06)


def test_marks_of_an_oracle_a_coin_and_a_contrarian():
    rows = demonstrations_ranked()
    oracle = known_values(rows)
    best = reward_trials.mark_by(rows, oracle.get)
    assert best.accuracy == pytest.approx(best.ceiling)
    assert best.predicted == pytest.approx(best.known)
    coin = reward_trials.mark_by(rows, lambda text: 0.0)
    assert coin.accuracy == pytest.approx(0.5) and coin.loss == pytest.approx(np.log(2))
    worst = reward_trials.mark_by(rows, lambda text: -oracle[text])
    assert worst.accuracy == pytest.approx(1 - best.accuracy)
    for found in (best, coin, worst):
        assert (found.accuracy <= found.ceiling + 1e-12).all()
    bare = [{k: v for k, v in row.items() if k != "utilities"} for row in rows]
    unknown = reward_trials.mark_by(bare, oracle.get)
    assert unknown.ceiling is None and unknown.known is None
    assert unknown.accuracy == pytest.approx(best.agreement)


def test_calibrated_means_as_sure_as_right(course):  # noqa: F811
    rows = demonstrations_ranked(300)
    found = reward_trials.mark_by(rows, known_values(rows).get)
    reward_trials.record_calibration(course, found, 0)
    wide = course.results.frame("3.1").pivot_table(index="x", columns="measure", values="value")
    bins = wide.dropna(subset=["predicted"])
    assert len(bins) == 10
    assert np.abs(bins["predicted"] - bins["known"]).max() < 0.002
    assert np.abs(bins["predicted"] - bins["observed"]).max() < 0.12
    assert wide["mean"].max() == pytest.approx(found.ceiling.mean(), abs=1e-3)
    assert wide["share of pairs"].sum() == pytest.approx(1)


def test_contrast_differs_in_truth_and_in_manner_only():
    for row in explain_prompts("test", 40):
        texts = contrast(row)
        assert list(texts) == ["plain, true", "plain, false", "confident, true", "confident, false"]
        for name, text in texts.items():
            assert false_statements(row, text) == name.endswith("false")
            assert (confidence(text) >= 3) == name.startswith("confident")
        value = {name: labellers.utility(labellers.BIASED, row, t) for name, t in texts.items()}
        truth = {name: judge(row, text).score for name, text in texts.items()}
        assert truth["plain, true"] > truth["confident, false"]
        assert value["plain, true"] < value["confident, false"]  # planted


def test_together_and_shuffled_see_the_same_comparisons(course):  # noqa: F811
    _, tokenizer = recipes.load(course, course.model("base"))
    held_out = recipes.rendered(course, tokenizer, "test", 4, 3)
    found = reward_trials.batching(course, tokenizer, 4, 24, held_out, 0, step_answers=8)
    assert found["cost"] == pytest.approx(1 / 3)  # 1 / (K - 1)
    assert len(found["accuracy"]) == len(held_out) and len(found["by heart"]) == 4
    assert len(found["loss"]) == len(held_out)
    assert set(course.results.frame("3.2")["condition"]) == {"together", "shuffled"}


def test_how_much_of_the_panels_taste_is_taken_over():
    names = "judge", "biased labellers", "learned from unbiased", "learned from biased"
    told = dict(zip(names, (-3.0, 1.0, -0.5, 1.5), strict=True))
    learned, panel = reward_trials.taste(
        {(n, "confident, false"): np.array([v]) for n, v in told.items()}
    )
    assert (learned.tolist(), panel.tolist()) == ([2.0], [4.0])


def test_what_a_scorer_sees_and_what_it_would_lose_without(course, monkeypatch):  # noqa: F811
    rows = demonstrations_ranked()
    scores = [judge(row, text).score for row in rows for text in row["texts"]]
    monkeypatch.setattr(reward_trials.reward, "score_ids", lambda *_: 2 * np.array(scores) + 1)
    reward_trials.record_parts(course, None, rows, 0)
    along = course.results.frame("3.1", "correlation").set_index(["condition", "x"])["value"]
    assert along["truth"].to_dict() == pytest.approx(along["reward model"].to_dict())
    assert along["truth", "facts"] > 0.3 and along["truth"].between(-1, 1).all()
    blind = course.results.frame("3.1", "accuracy", "but one").set_index("x")["value"]
    ceiling = reward_trials.mark_by(rows, known_values(rows).get).ceiling.mean()
    assert (blind <= ceiling + 1e-9).all() and blind["facts"] < ceiling - 0.01
    reward_trials.record(
        course, reward_trials.mark_by(rows, known_values(rows).get), ("3.1", "longer", 0, 0)
    )
    table = {row["not seen"]: row["this run"] for row in reward_trials.not_seen(course)}
    assert list(table.values()) == sorted(table.values()) and table["facts"] == blind["facts"]
    assert table["nothing (the ceiling)"] == pytest.approx(ceiling) and "not repeated" in table


def test_a_sweep_trains_what_is_not_there_yet(course):  # noqa: F811
    name, _, tokenizer = course.model("base"), *recipes.load(course, course.model("base"))
    train = recipes.by_seed(course, tokenizer, "train", 4, 3)
    held_out = recipes.by_seed(course, tokenizer, "test", 4, 3)
    path = recipes.reward_model(course, 4, 3)
    key = (reward_trials.short(name), 4, 0)
    trained = {key: load_reward_model(path)}
    runs = reward_trials.sweep(course, [(name, 2), (name, 4)], train, held_out, trained)
    assert list(runs) == [(key[0], 2, 0), key]
    assert runs[key].accuracy == pytest.approx(
        reward_trials.mark(trained[key], held_out[0]).accuracy
    )
    step = reward_trials.smallest_gain(course, runs, [(key[0], 2), (key[0], 4)])
    assert step.estimate == pytest.approx((runs[key].accuracy - runs[key[0], 2, 0].accuracy).mean())
    assert reward_trials.by_heart(trained[key], train[0]).keys() >= {"their ceiling"}


def test_reward_model_is_a_stage_with_a_scale(course):  # noqa: F811
    steps = []
    first = recipes.reward_model(course, 8, 3, progress=lambda n: steps.append(n))
    assert recipes.reward_model(course, 8, 3) == first and steps == [4]
    assert recipes.reward_model(course, 8, 3, panel="biased") != first
    assert recipes.training_history(first)[0]["num_pairs"] == 6
    model = load_reward_model(first)
    tokenizer = load_tokenizer(first)
    rows = recipes.rendered(course, tokenizer, "train", 8, 3)
    scores = reward.score_ids(model, [ids for row in rows for ids in row["completions"]])
    unit = reward.normalise(model, scores)
    assert unit.mean() == pytest.approx(0, abs=1e-4) and unit.std() == pytest.approx(1, abs=1e-3)


def test_where_people_ranked_answers_of_others_the_scale_is_the_policys(course, monkeypatch):  # noqa: F811
    shouted = [
        {"prompt": f"Why {i}?", "completions": ["Because!!!", "No!!!"], "ranks": [1, 2]}
        for i in range(8)
    ]
    monkeypatch.setitem(course.profile.data, "preferences", "people")
    monkeypatch.setattr(recipes, "preference_rows", lambda *_: shouted)
    folder = recipes.reward_model(course, 8, 3)  # noqa: F811
    model = load_reward_model(folder)
    start = recipes.policy_of(course, course.model("base"), 0)
    policy, tokenizer = recipes.load_policy(course, start)
    rows = recipes.answered(course, policy, tokenizer, "train", recipes.NUM_SCALE, 3, 0)
    asked = [row["prompt"] for row in rows for _ in range(3)]
    texts = [text for row in rows for text in row["completions"]]
    scores = reward.score_texts(model, tokenizer, asked, texts)
    unit = reward.normalise(model, scores)
    assert unit.mean() == pytest.approx(0, abs=1e-4) and unit.std() == pytest.approx(1, abs=1e-3)


def test_who_is_taken_in_is_measured_in_points(course):  # noqa: F811
    model, tokenizer = tiny()
    models = {panel: reward.make_reward_model(model) for panel in preferences.PANELS}
    for scorer in models.values():
        torch.nn.init.zeros_(scorer.score.weight)  # all scores are 0
    found = reward_trials.taken_in(course, explain_prompts("test", 8), models, tokenizer, seed=0)
    confident = {name: value for (name, told), value in found.items() if told == "confident, false"}
    assert confident["learned from biased"] == pytest.approx(np.zeros(8))
    assert (confident["judge"] < 0).all() and (confident["biased labellers"] > 0).all()
    assert (found["judge", "plain, false"] < 0).all()
    assert len(course.results.frame("3.4")) == 4 * 3


def test_real_comparisons_come_from_people(monkeypatch, tmp_path, capsys):
    talk = "\n\nHuman: Hi {i}\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    rows = [
        {"chosen": talk.format(i=i) + " Because.", "rejected": talk.format(i=i) + " No."}
        for i in range(40)
    ]
    rows.append({"chosen": talk + " Same.", "rejected": talk + " Same."})
    rows.append({"chosen": talk + " A.", "rejected": "\n\nHuman: Ho\n\nAssistant: B."})
    rows.append({"chosen": talk + " A.", "rejected": talk + " "})
    rows.append({"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": talk + " d"})
    (tmp_path / "hh_rlhf").mkdir()
    path = tmp_path / "hh_rlhf" / "helpful-base-test.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    real = Course("03", load_profile("laptop"), "live", 0)
    train = recipes.comparisons(real, "train", 20)
    said = capsys.readouterr().out
    for reason in (
        "40 good",
        "1 of identical",
        "1 without a common",
        "1 whose turns",
        "1 with an empty",
    ):
        assert reason in said
    assert train == recipes.comparisons(real, "train", 20, panel="biased")
    for row in train:
        assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
        winner, loser = reward.pairs_of(row)[0]
        assert row["completions"][winner] == "Because." and row["completions"][loser] == "No."
    assert {row["ranks"][0] for row in train} == {1, 2}  # the preferred one may stand first or last
    firsts = {row["prompt"][0]["content"] for row in train}
    assert not firsts & {r["prompt"][0]["content"] for r in recipes.comparisons(real, "test", 4)}


def test_what_people_preferred_trains_both_ways_on_a_real_model(monkeypatch):
    data, weights = real_files("data/hh_rlhf").parent, real_files("models/babyllama105")
    monkeypatch.setenv("COURSE_DATA", str(data))
    real = Course("03", load_profile("laptop"), "live", 0)
    people = recipes.comparisons(real, "train", 300)
    model, tokenizer = load_model(str(weights)), load_tokenizer(str(weights))
    room = model.config.max_position_embeddings

    rows = reward.render_comparisons(tokenizer, people, room)
    short = [row for row in rows if row["pairs"]]
    assert 30 < len(short) < 150  # most do not fit into its 256 characters, and are counted
    assert sum(row["too_long"] > 0 for row in rows) == len(rows) - len(short)
    scorer = reward.make_reward_model(model)
    settings = {"batch_size": 8, "num_steps": 8, "learning_rate": 2e-4, "warmup": 0.0}
    history = reward.train_reward(scorer, short[:32], reward.RewardConfig(**settings))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert reward.evaluate_reward(scorer, short[:32])["loss"] < history[0]["loss"]

    sides = [[row["completions"][i] for i in reward.pairs_of(row)[0]] for row in people]
    pairs = [
        {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
        for row, (chosen, rejected) in zip(people, sides, strict=True)
    ]
    good, counts = dpo.check_pairs(dpo.render_pairs(tokenizer, pairs), room)
    assert sum(counts.values()) == len(people) and counts["good"] == len(good) == len(short)
    good = dpo.add_reference_logps(model, good[:32])
    history = dpo.train_dpo(model, good, dpo.DPOConfig(**settings))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert dpo.evaluate_dpo(model, good, 0.1)["loss"] < math.log(2)
