"""Shared trained models: made once, found again, and what is computed from them."""

import json

import numpy as np
import pytest
import torch

from course_lib.core import stats
from course_lib.experiments import measures, nb01, recipes
from course_lib.inputs.models import save_model
from course_lib.inputs.tokenizer import train_tokenizer
from course_lib.kit.course import setup
from course_lib.kit.playground import playground

PROMPT = "Explain the moon landing to a 6-year-old"


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
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    return setup(notebook="01", base_model=str(folder))


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


def test_interval_of_one_run_is_over_items_and_of_several_over_seeds():
    ones = np.ones(20)
    assert stats.over_seeds([ones]) == stats.wilson(20, 20)
    assert stats.over_seeds([ones, 0 * ones]) == stats.t_interval([1, 0])


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
