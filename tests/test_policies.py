"""Policies trained on preferences: what is scored, what is kept."""

import numpy as np
import pytest
from test_preferences import course  # noqa: F401  its instruct model has seen 8 demonstrations
from test_stages import folder  # noqa: F401  a tiny base model
from tiny import tiny

from course_lib.algorithms import chat, dpo, reward
from course_lib.experiments import answers, recipes
from course_lib.world.instructions import explain_prompts
from course_lib.world.judge import judge

SHORT = {"num_steps": 2, "minibatch_size": 32}


@pytest.fixture
def short(monkeypatch):
    """Few and short completions."""
    made = answers.sampling_config
    few = {"num_prompts": 4, "max_new_tokens": 12}
    monkeypatch.setattr(
        recipes, "sampling_config", lambda tokenizer, **more: made(tokenizer, **few | more)
    )
    monkeypatch.setattr(recipes, "PPO_PROMPTS", 12)


def test_a_cut_answer_gets_the_end_of_its_turn_and_the_truth_is_noted(course):  # noqa: F811
    model, tokenizer = tiny()
    rows = explain_prompts("test", 2)
    scorer = answers.Scorer(course, reward.make_reward_model(model), tokenizer, rows)
    end = tokenizer.convert_tokens_to_ids(chat.end_of_turn(tokenizer))
    prompts = [chat.render_prompt(tokenizer, row["prompt"]) for row in rows]
    text = tokenizer("The moon landing was in 1969.", add_special_tokens=False)["input_ids"]
    cut, whole = scorer([prompts[0]] * 2, [text, [*text, end]])
    assert cut == whole  # the labellers saw the same text
    (seen,) = scorer.seen
    assert seen["truth"] == [judge(rows[0], "The moon landing was in 1969.").score] * 2
    other = answers.Scorer(course, None, tokenizer, rows)
    assert float(other([prompts[0]], [text])[0]) == pytest.approx(
        seen["truth"][0] / answers.TRUTH_UNIT
    )


def test_false_statements_are_counted():
    from course_lib.kit.course import setup

    known = setup(notebook="04")
    row = explain_prompts("test", 1)[0]
    found = answers.judged(known, [row], [f"  {row['prompt']} "])
    assert found["truth"][0] == judge(row, row["prompt"]).score and found["false"][0] == 0
    from course_lib.world.instructions import contrast

    texts = contrast(row)
    false = answers.judged(known, [row] * 2, [texts["plain, true"], texts["plain, false"]])
    assert false["false"].tolist() == [0, 1]


def test_a_ppo_policy_is_trained_once_and_notes_every_completion(course, short):  # noqa: F811
    steps = []

    def progress(total):
        steps.append(total)
        return lambda row: None

    first = recipes.ppo_policy(course, 6, 3, progress=progress, **SHORT)
    assert recipes.ppo_policy(course, 6, 3, progress=progress, **SHORT) == first
    history = recipes.training_history(first)
    assert len(history) == 2 and len(history[0]["truth"]) == len(history[0]["false"]) == 8
    assert history[0]["scores/mean"] == pytest.approx(np.mean(history[0]["proxy"]), abs=1e-3)
    assert history[0]["kl"] == pytest.approx(0, abs=1e-4)
    for other in ({"panel": "nobody"}, {"panel": "biased"}, {"beta": 0.0}, {"seed": 1}):
        assert recipes.ppo_policy(course, 6, 3, **SHORT | other) != first
    with_documents = recipes.ppo_policy(course, 6, 3, **SHORT, ptx_coef=0.5)
    assert recipes.training_history(with_documents)[0]["ptx_loss"] > 0


def test_a_cut_answer_has_no_end_in_a_pair(course, monkeypatch):  # noqa: F811
    _, tokenizer = recipes.load(course, course.model("base"))
    whole = recipes.preference_pairs(course, tokenizer, "train", 5, 3)
    longest = max(len(pair["rejected_ids"]) for pair in whole)
    shorter = answers.SAMPLING | {"max_new_tokens": longest - 1}  # than what was sampled
    monkeypatch.setattr(recipes, "SAMPLING", shorter)
    pairs = recipes.preference_pairs(course, tokenizer, "train", 5, 3)
    for pair, before in zip(pairs, whole, strict=True):
        assert pair["rejected_ids"] == before["rejected_ids"][: longest - 1]
    ends = chat.stop_ids(tokenizer)
    assert any(pair["rejected_ids"][-1] not in ends for pair in pairs)


def test_a_dpo_policy_learns_from_the_best_and_the_worst(course):  # noqa: F811
    rows = recipes.comparisons(course, "train", 5, 3)
    _, tokenizer = recipes.load(course, course.model("base"))
    pairs = recipes.preference_pairs(course, tokenizer, "train", 5, 3)
    for row, pair in zip(rows, pairs, strict=True):
        assert pair["chosen"] == row["completions"][row["ranks"].index(1)]
        assert pair["rejected"] == row["completions"][row["ranks"].index(3)]
    good, counts = dpo.check_pairs(pairs)
    assert len(good) == counts["good"]
    first = recipes.dpo_policy(course, 5, 3, num_epochs=1)
    assert recipes.dpo_policy(course, 5, 3, num_epochs=1) == first
    assert recipes.dpo_policy(course, 5, 3, num_epochs=1, beta=0.5) != first
    assert recipes.training_history(first)[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
