"""Multiple choice, word problems and pass@k, against counting by hand."""

from itertools import combinations

import numpy as np
import pytest
import torch
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms import evaluate
from course_lib.algorithms.evaluate import (
    multiple_choice,
    multiple_choice_by_text,
    pass_at_k,
    solve_problems,
)
from course_lib.pretraining.pocket import train_tokenizer
from course_lib.world.exam import dev_items, exam_items, render_prompt
from course_lib.world.problems import problem_prompt, problem_set, verify_answer


@pytest.mark.parametrize("shots", [0, 1])
def test_multiple_choice_by_hand(shots):
    model, tokenizer = tiny()
    model.config.max_position_embeddings = 2048
    items = exam_items(12, seed=0)
    result = multiple_choice(model, tokenizer, items, render_prompt, shots, dev_items)
    letters = [tokenizer(f"Answer: {x}")["input_ids"][-1] for x in "ABCD"]
    for i, item in enumerate(items):
        prompt = render_prompt(item, dev_items(item["subject"])[:shots])
        ids = [tokenizer.eos_token_id, *tokenizer(prompt)["input_ids"]]
        ids += tokenizer("Answer: A")["input_ids"][len(tokenizer("Answer:")["input_ids"]) : -1]
        with torch.no_grad():
            probs = model(torch.tensor([ids])).logits[0, -1, letters].softmax(-1)
        assert result.probs[i] == pytest.approx(probs.numpy(), abs=1e-4)
        assert result.predicted[i] == probs.argmax()
    assert result.accuracy == np.mean(result.predicted == [item["answer"] for item in items])
    assert result.letter_shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("merged", [[], ["x B"]], ids=["no letter", "one letter"])
def test_letters_with_and_without_their_space_and_a_prompt_beyond_the_context(merged, tmp_path):
    """Every byte is a token, but perhaps " B" is one, too; of a long prompt the end is read."""
    model, _ = tiny()
    model.config.max_position_embeddings = 64
    tokenizer = train_tokenizer(merged, tmp_path, vocab_size=260 + len(merged))
    (item,) = exam_items(1, seed=0)
    stem = len(tokenizer(render_prompt(item))["input_ids"])
    logps, lengths = [], []
    for letter in "ABCD":
        ids = tokenizer(f"{render_prompt(item)} {letter}")["input_ids"]
        lengths.append(len(ids) - stem)
        ids = torch.tensor([ids[-64:]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        logps.append(logprobs.gather(-1, ids[0, 1:, None])[-lengths[-1] :].sum())
    assert lengths == [2, 1 if merged else 2, 2, 2]
    found = multiple_choice(model, tokenizer, [item], render_prompt).probs[0]
    assert found == pytest.approx(torch.stack(logps).softmax(0).numpy(), abs=1e-4)


def test_multiple_choice_by_text_by_hand():
    model, tokenizer = tiny()
    model.config.max_position_embeddings = 2048
    items = exam_items(3, seed=0)
    result = multiple_choice_by_text(model, tokenizer, items, render_prompt)
    for i, item in enumerate(items):
        prompt = [tokenizer.eos_token_id, *tokenizer(render_prompt(item))["input_ids"]]
        sums = []
        for choice in item["choices"]:
            text = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logprobs = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
            sums.append(sum(logprobs[len(prompt) + t - 1, id] for t, id in enumerate(text)))
        assert result.probs[i] == pytest.approx(torch.stack(sums).softmax(0).numpy(), abs=1e-4)


def test_worked_examples_are_dropped_where_the_context_is_short():
    model, tokenizer = tiny()
    items = exam_items(4, seed=0)
    found = multiple_choice(model, tokenizer, items, render_prompt, 5, dev_items)
    assert found.probs.shape == (4, 4)


def test_pass_at_k_equals_all_subsets():
    rng = np.random.default_rng(0)
    correct = rng.random((5, 6)) < 0.3
    for k in range(1, 7):
        by_hand = [
            np.mean([row[list(chosen)].any() for chosen in combinations(range(6), k)])
            for row in correct
        ]
        assert pass_at_k(correct, k) == pytest.approx(np.mean(by_hand))
        assert pass_at_k(correct[0], k) == pytest.approx(by_hand[0])
    assert pass_at_k(correct, 1) == pytest.approx(correct.mean())
    with pytest.raises(CourseError, match="k=7"):
        pass_at_k(correct, 7)


def test_problems_are_solved_by_whoever_writes_the_answer(monkeypatch):
    problems = problem_set(3, seed=0, num_steps=2, split="test")

    def fake(model, tokenizer, texts, *, num_generations, **_):
        assert all(text.startswith("Problem: ") and text.endswith("Solution:") for text in texts)
        # A document goes on with another problem, whose answer is none to this one.
        more = "\n\nProblem: ...\nSolution: The answer is 0."
        right = [f" The answer is {problem.answer}.{more}" for problem in problems]
        return [text for r in right for text in (r, " The answer is 0.")][: 3 * num_generations]

    monkeypatch.setattr(evaluate, "complete", fake)
    prompts = [problem_prompt(problem) for problem in problems]
    correct = solve_problems(
        None, None, prompts, lambda i, text: verify_answer(problems[i], text), num_generations=2
    )
    assert correct.shape == (3, 2) and correct[:, 0].all() and not correct[:, 1].any()
