"""What is measured of any model: its answers and what they are worth, and what it still knows.

One number an item, so that `stats` can draw intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib.algorithms import chat, loop, losses, ppo
from course_lib.algorithms.chat import ask, complete
from course_lib.algorithms.evaluate import multiple_choice
from course_lib.algorithms.sampling import generate
from course_lib.algorithms.sft import document_losses
from course_lib.core.stats import share
from course_lib.experiments.answers import SAMPLING, Scorer, sampling_config
from course_lib.inputs.rows import document_texts, exam_rows, scorer
from course_lib.world.exam import render_prompt
from course_lib.world.judge import is_answer

if TYPE_CHECKING:
    from course_lib.kit.course import Course

TRIES = 4  # answers to each held-out prompt that a policy is judged by


@dataclass
class Answers:
    """What a model wrote to n rows of prompts, and what it is worth."""

    texts: list[str]
    scores: np.ndarray  # (n,) about 0 to 10, from `rows.scorer`
    is_answer: np.ndarray | None  # (n,) 0 or 1, by the judge; None where the truth is not known


def answer_rows(
    course: Course,
    model: Any,
    tokenizer: Any,
    rows: list[dict],
    *,
    chat: bool = True,
    **sampling: Any,
) -> Answers:
    """Let the model answer the rows' prompts, or continue them as raw text (`chat=False`)."""
    batch = {"batch_size": course.profile.batch["generate"]}
    write = ask if chat else complete
    texts = write(model, tokenizer, [row["prompt"] for row in rows], **batch | sampling)
    right = None
    if course.truth_known:
        right = np.array([float(is_answer(*pair)) for pair in zip(rows, texts, strict=True)])
    return Answers(texts, scorer(course)(rows, texts), right)


def answer_by_seed(
    course: Course, models: dict[int, tuple[Any, Any]], rows: list[dict], **options: Any
) -> list[Answers]:
    """`answer_rows` of each seed's (model, tokenizer), sampled with that seed."""
    return [answer_rows(course, *pair, rows, seed=seed, **options) for seed, pair in models.items()]


def share_answered(runs: list[Answers]) -> Any:
    """The share of prompts answered, with its interval; "unknown" where the truth is not known."""
    if any(run.is_answer is None for run in runs):
        return "unknown"
    return share([run.is_answer for run in runs])


@dataclass
class Written:
    """What a policy wrote to P prompts, G answers each, and what it is worth; all (P, G)."""

    rows: list[dict]  # of the prompts
    texts: np.ndarray
    truth: np.ndarray  # points of the judge, or of its stand-in
    proxy: np.ndarray  # the reward model's normalised score
    kl: np.ndarray  # log π/π_ref of the answer in nats; its mean is KL(policy ‖ reference)
    false: np.ndarray  # false statements in it
    length: np.ndarray  # tokens

    @property
    def cut(self) -> np.ndarray:
        """Whether an answer was as long as it may be; hardly one ends just there by itself."""
        return self.length >= SAMPLING["max_new_tokens"]


@torch.no_grad()
def write(
    course: Course,
    policy: Any,
    reference: Any,
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict],
    tries: int = TRIES,
    seed: int = 0,
) -> Written:
    """Let a policy answer the prompts of `rows`, `tries` times each, and have it measured.

    Args:
        reference: that the KL is measured from; None where the policy is its own, and KL is 0.
        model: the reward model, as in `answers.Scorer`.
    """
    prompts = [chat.render_prompt(tokenizer, row["prompt"]) for row in rows]
    most = sampling_config(tokenizer)
    options = {"max_new_tokens": most.max_new_tokens, "eos_ids": most.eos_ids, "pad_id": 0}
    options |= {"num_generations": tries, "batch_size": course.profile.batch["generate"]}
    out = generate(policy, prompts, seed=seed, **options)
    asked = [prompt for prompt in prompts for _ in range(tries)]
    scorer = Scorer(course, model, tokenizer, rows)
    scorer(asked, out.lists)
    found = {name: np.array(values) for name, values in scorer.seen[0].items()}
    found["kl"] = np.zeros(len(asked))
    if reference is not None:
        answers = [
            {"input_ids": prompt + ids, "completion_mask": [0] * len(prompt) + [1] * len(ids)}
            for prompt, ids in zip(asked, out.lists, strict=True)
        ]
        for group in chat.batches(answers, tokens_per_batch=loop.forward_tokens(reference)):
            mask = out.completion_mask[group]
            there, _ = ppo.forward(reference, None, [answers[i] for i in group], mask)
            k1, _ = losses.kl_estimates(out.logprobs[group], there)
            found["kl"][group] = k1.where(mask, 0).sum(-1).cpu().numpy()
    found["length"] = out.completion_mask.sum(-1).cpu().numpy()
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in out.lists]
    shape = len(rows), tries
    arrays = {name: values.reshape(shape) for name, values in found.items()}
    return Written(list(rows), np.array(texts, dtype=object).reshape(shape), **arrays)


def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How often a (P, G) beats b (P, H) by true score, by prompt (P,); a tie counts one half."""
    return (np.sign(a[:, :, None] - b[:, None, :]).mean((1, 2)) + 1) / 2


def tax(
    course: Course, model: Any, tokenizer: Any, name: str, seed: int, num_items: int = 200
) -> dict[str, np.ndarray]:
    """What a policy still knows of its pretraining, recorded as "4.4": loss on documents, exam.

    Returns arrays by item: "document_loss" in nats a token (64,), "exam" 0 or 1 (num_items,).
    """
    texts = document_texts(course, 64, seed=9)
    nats, tokens = document_losses(model, tokenizer, texts, course.context)
    items, _ = exam_rows(course, num_items, seed=0)
    exam = multiple_choice(model, tokenizer, items, render_prompt).correct * 1.0
    found = {"document_loss": nats / tokens, "exam": exam}
    for measure, values in found.items():
        course.results.add("4.4", name, 0, seed, measure, values.mean())
    return found
