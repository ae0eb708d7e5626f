"""Recipes: a model is made once and found again, what its training is given, what is noted."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny

from course_lib.algorithms import chat, dpo, reward
from course_lib.experiments import answers, measures, nb01, recipes
from course_lib.inputs.models import save_model
from course_lib.kit.course import setup
from course_lib.kit.playground import playground
from course_lib.pretraining.pocket import train_tokenizer
from course_lib.world.instructions import contrast, explain_prompts
from course_lib.world.judge import judge

PROMPT = "Explain the moon landing to a 6-year-old"
SHORT = {"num_steps": 2, "minibatch_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base model with random weights, its card beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    target = tmp_path_factory.mktemp("models") / "tiny-30"
    tokenizer = train_tokenizer([PROMPT] * 50, target, vocab_size=320)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    save_model(model, tokenizer, target)
    card = {"parameters": model.num_parameters(), "tokens": 1000}
    (target / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return target


@pytest.fixture
def course(folder, tmp_path, monkeypatch):
    """Its instruct models are trained on 8 demonstrations: what they say means nothing."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    made = recipes.instruct_model

    def soon_made(course, role="base", num_examples=8, seed=0, **more):
        return made(course, role, num_examples, seed, **more)

    monkeypatch.setattr(recipes, "instruct_model", soon_made)
    return setup(notebook="03", base_model=str(folder))


@pytest.fixture
def short(monkeypatch):
    """Few and short completions."""
    made = answers.sampling_config
    few = {"num_prompts": 4, "max_new_tokens": 12}
    for module in (answers, recipes, measures):
        monkeypatch.setattr(
            module, "sampling_config", lambda tokenizer, **more: made(tokenizer, **few | more)
        )
    monkeypatch.setattr(recipes, "PPO_PROMPTS", 12)


def test_a_stage_is_trained_once_and_depends_on_its_settings(course):
    steps = []

    def progress(total):
        steps.append(total)
        return lambda row: None

    first = recipes.instruct_model(course, num_examples=8, progress=progress)
    assert recipes.instruct_model(course, num_examples=8, progress=progress) == first
    assert len(steps) == 1 and len(recipes.training_history(first)) == steps[0]
    assert recipes.instruct_model(course, num_examples=8, learning_rate=1e-4) != first
    assert recipes.instruct_model(course, num_examples=8, seed=1) != first


def test_a_small_model_is_trained_in_fp32_on_any_cpu(course, folder, monkeypatch):
    monkeypatch.setattr(recipes, "bf16_pays", lambda: True)
    assert recipes.sft_config(course, str(folder)).dtype == "float32"
    monkeypatch.setattr(recipes, "parameters_of", lambda *_: recipes.SMALL)
    assert recipes.sft_config(course, str(folder)).dtype == "bfloat16"


def test_training_costs_six_operations_a_parameter_and_token(course, folder):
    spent = nb01.training_operations(course, str(folder), 8)
    n = recipes.parameters_of(course, str(folder))
    read = recipes.training_history(recipes.instruct_model(course, num_examples=8))
    assert spent["pretraining"] == 6 * n * 1000
    assert spent["SFT"] == 6 * n * sum(row["num_tokens"] for row in read)


def test_share_of_pretraining_is_read_off_the_name(folder):
    assert nb01.pretraining_share(str(folder)) == 0.3
    assert nb01.pretraining_share("pocket/m") == 1.0


def test_answers_are_scored_row_by_row(course):
    from course_lib.inputs.rows import prompt_rows

    rows = prompt_rows(course, "test", 4)
    pair = recipes.load(course, course.model("base"))
    found = measures.answer_rows(course, *pair, rows, seed=0, max_new_tokens=5)
    again = measures.answer_rows(course, *pair, rows, seed=0, max_new_tokens=5)
    assert found.texts == again.texts and found.scores.shape == (4,)
    assert set(np.unique(found.is_answer)) <= {0.0, 1.0}


def test_a_click_in_the_playground_changes_what_is_shown(course, folder):
    pair = recipes.load(course, str(folder))
    form = playground({"tiny": lambda: (pair, pair)}, PROMPT, length=8)
    fields, shown = form.children[1].children, form.children[2]
    before = shown.value
    fields[2].click()
    assert shown.value != before and "did not work" not in shown.value
    form.children[0].value = "<b>" + "long " * 600  # does not fit: said, not raised
    fields[2].click()
    assert "did not work" in shown.value and "<b>long" not in shown.value


def test_a_cut_answer_gets_the_end_of_its_turn_and_the_truth_is_noted(course):
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
    known = setup(notebook="04")
    row = explain_prompts("test", 1)[0]
    found = answers.judged(known, [row], [f"  {row['prompt']} "])
    assert found["truth"][0] == judge(row, row["prompt"]).score and found["false"][0] == 0
    texts = contrast(row)
    false = answers.judged(known, [row] * 2, [texts["plain, true"], texts["plain, false"]])
    assert false["false"].tolist() == [0, 1]


def test_a_ppo_policy_is_trained_once_and_notes_every_completion(course, short):
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


def test_a_cut_answer_has_no_end_in_a_pair(course, monkeypatch):
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


def test_a_dpo_policy_learns_from_the_best_and_the_worst(course):
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
