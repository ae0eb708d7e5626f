"""Reward modeling: a score per answer, fitted to people's rankings of K answers to a prompt.

    loss = mean over prompts of - 1 / C(K, 2) * sum over pairs of log sigmoid(r(x, y_w) - r(x, y_l))

Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5. All pairs of a prompt are
in one batch and each answer is read once: K forward passes give C(K, 2) comparisons.

The model is transformers' `...ForSequenceClassification` with one label: the causal model's
backbone and a linear head. Its own `forward` looks for the last token that is not the pad id, which
skips a true EOS where pad = EOS; the functions here read the last token by the mask instead.

A comparison is a row {"prompt", "completions", "ranks"}: K texts, or K lists of ids once rendered,
and K ranks, 1 the best (equal: a tie; None: not ranked). Where only some pairs were judged, "pairs"
holds [(winner, loser), ...] in place of "ranks".

Left out:
1. reading the prompt once for its K answers (it is read K times);
2. the auxiliary language-model loss, and a penalty on the scores' size;
3. ensembles, LoRA, more than one device.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_lib import CourseError
from course_lib.algorithms.chat import Message, batches, collate, render_chat
from course_lib.algorithms.logprobs import check_architecture, last_states
from course_lib.algorithms.loop import (
    Update,
    backward,
    endless,
    evaluating,
    forward_tokens,
    steps_of,
    to_device,
    training,
)
from course_lib.algorithms.losses import Metrics, reward_loss

Comparison = dict[str, Any]


@dataclass
class RewardConfig:
    """Settings of `train_reward`."""

    learning_rate: float = 1e-3  # peak, of AdamW; about 1e-5 for models of a billion parameters
    num_epochs: float = 1.0  # passes over the prompts (more overfit); not used with num_steps
    num_steps: int | None = None  # optimiser steps
    batch_size: int = 16  # prompts, each with all its answers
    gradient_accumulation_steps: int = 1  # an optimiser step takes batch_size times as many prompts
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    schedule: str = "cosine"  # then: "cosine" or "linear" down to 0, or "constant"
    weight_decay: float = 0.0  # of AdamW, decoupled
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    dtype: str = "float32"  # "bfloat16": autocast; the weights and the scores keep fp32
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 0  # of the order of the prompts


def make_reward_model(policy: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """A reward model on a copy of the backbone of `policy` (LoRA merged), with a head of its own.

    The head's weights are drawn from N(0, 1 / (H + 1)), H the hidden size (Stiennon et al. 2020,
    arXiv:2009.01325): small, so that the loss starts near log 2, but not zero, as the rest of the
    model would get no gradient until the head has grown.

    Raises:
        CourseError: not of Llama's kind.
    """
    from transformers import AutoModelForSequenceClassification

    check_architecture(policy.config)
    policy = copy.deepcopy(policy)
    policy = policy.merge_and_unload() if hasattr(policy, "merge_and_unload") else policy
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    head = torch.nn.Linear(config.hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(head.weight, std=(config.hidden_size + 1) ** -0.5, generator=generator)
    setattr(model, model.base_model_prefix, policy.base_model.requires_grad_(True))
    model.score = head.to(policy.device)
    return model.eval()


def render_answer(tokenizer, prompt: str | Sequence[Message], completion: str) -> list[int]:
    """Prompt and answer as ids, up to the token that ends the answer's turn."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    row = render_chat(tokenizer, [*messages, {"role": "assistant", "content": completion}])
    end = max(i for i, learned in enumerate(row["completion_mask"]) if learned) + 1
    return row["input_ids"][:end]


def render_comparisons(
    tokenizer, rows: Sequence[Comparison], max_length: int = 512
) -> list[Comparison]:
    """The rows with their texts as ids and their "pairs".

    An answer of more than `max_length` tokens is in no pair, as nobody has judged what would be
    left of it; "too_long" counts these answers.
    """
    out = []
    for row in rows:
        ids = [render_answer(tokenizer, row["prompt"], text) for text in row["completions"]]
        pairs = [pair for pair in pairs_of(row) if all(len(ids[i]) <= max_length for i in pair)]
        too_long = sum(len(answer) > max_length for answer in ids)
        cut = [answer[:max_length] for answer in ids]
        out.append({**row, "completions": cut, "pairs": pairs, "too_long": too_long})
    return out


def pairs_of(row: Comparison) -> list[tuple[int, int]]:
    """The known pairs (winner, loser) of a comparison, as indices of its completions."""
    if "pairs" in row:
        return list(row["pairs"])
    ranks = [math.nan if rank is None else rank for rank in row["ranks"]]
    if len(ranks) != len(row["completions"]):
        raise CourseError(
            f"A comparison has {len(ranks)} ranks for {len(row['completions'])} completions; "
            "expected one each, 1 the best; give None to a completion that was not ranked."
        )
    options = range(len(ranks))
    return [(i, j) for i in options for j in options if ranks[i] < ranks[j]]


def to_pairs(rows: Sequence[Comparison]) -> list[Comparison]:
    """Each known pair as a comparison of its own (winner first): K-wise data, pairwise training."""
    return [
        {"completions": [row["completions"][i] for i in pair], "ranks": [1, 2]}
        for row in rows
        for pair in pairs_of(row)
    ]


def collate_comparisons(rows: Sequence[Comparison]) -> dict[str, torch.Tensor]:
    """Rendered rows to tensors: all answers (N, T), `present` (B, K), `wins` (B, K, K)."""
    most = max(len(row["completions"]) for row in rows)
    present = torch.zeros(len(rows), most, dtype=torch.bool)
    wins = torch.zeros(len(rows), most, most)
    for b, row in enumerate(rows):
        present[b, : len(row["completions"])] = True
        for winner, loser in pairs_of(row):
            wins[b, winner, loser] = 1
    batch = _collate([ids for row in rows for ids in row["completions"]])
    return {**batch, "present": present, "wins": wins}


def sequence_scores(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Raw scores (B,) in fp32, read at the last token of each of (B, T) right-padded rows."""
    hidden = last_states(model, input_ids, attention_mask)  # (B, H)
    return (hidden.float() * model.score.weight.float()).sum(-1)  # no matmul: autocast leaves it


def reward_step(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one batch of `collate_comparisons`."""
    scores = sequence_scores(model, batch["input_ids"], batch["attention_mask"])  # (N,)
    present = batch["present"]
    scores = scores.new_zeros(present.shape).masked_scatter(present, scores)  # (B, K)
    return reward_loss(scores, batch["wins"])


def score_ids(model: torch.nn.Module, sequences: Sequence[list[int]]) -> np.ndarray:
    """Raw scores (n,) of prompts with their completions, as ids; batched by length."""
    scores = np.zeros(len(sequences))
    rows = [{"input_ids": ids} for ids in sequences]
    with evaluating(model):
        for group in batches(rows, tokens_per_batch=forward_tokens(model)):
            batch = to_device(_collate([sequences[i] for i in group]), model)
            scores[group] = sequence_scores(model, **batch).double().cpu().numpy()
    return scores


def score_texts(
    model: torch.nn.Module, tokenizer, prompts: Sequence, completions: Sequence[str]
) -> np.ndarray:
    """Raw scores (n,) of `completions[i]` as the answer to `prompts[i]`; what goes over the model's
    context is cut."""
    room = model.config.max_position_embeddings
    pairs = zip(prompts, completions, strict=True)
    return score_ids(model, [render_answer(tokenizer, *pair)[:room] for pair in pairs])


def set_normalisation(model: torch.nn.Module, scores: np.ndarray) -> None:
    """Keep the mean and standard deviation of raw `scores` with the model, for `normalise`.

    The loss leaves the zero of the scores open, and their unit is the labellers' noise; what comes
    after (a KL penalty, a learning rate) needs both settled. Take the scores of the initial
    policy's answers: they then have mean 0 and spread 1. Both numbers are in the model's config, so
    they are saved and loaded with it.
    """
    model.config.score_mean = float(np.mean(scores))
    model.config.score_std = max(float(np.std(scores)), 1e-6)


def normalise(model: torch.nn.Module, scores: np.ndarray) -> np.ndarray:
    """Raw scores in standard deviations of the reference set; raw as they are if none was set."""
    config = model.config
    return (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)


def evaluate_reward(model: torch.nn.Module, rows: Sequence[Comparison]) -> dict[str, Any]:
    """How held-out pairs are ranked; all pairs weigh equally.

    Returns:
        "loss", "accuracy" (equal scores are half right), "num_pairs", and the answers that were
        "too_long" to be in one; and by pair (n,): "correct"
        (0, 0.5 or 1), "margins" (winner's score minus loser's), and "prompts", the index of the
        pair's row: the pairs of a prompt share answers, so an interval resamples prompts.
    """
    scores = score_ids(model, [ids for row in rows for ids in row["completions"]])
    margins, prompts = pair_margins(rows, scores)
    if not len(margins):
        raise _no_pairs(rows)
    correct = (np.sign(margins) + 1) / 2
    return {
        "loss": float(np.logaddexp(0, -margins).mean()),
        "accuracy": float(correct.mean()),
        "num_pairs": len(margins),
        "too_long": _too_long(rows),
        "correct": correct,
        "margins": margins,
        "prompts": prompts,
    }


def pair_margins(
    rows: Sequence[Comparison], scores: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Winner's score minus loser's of each known pair (n,), and the index of its row (n,).

    `scores` has one number per completion, row after row.
    """
    margins, prompts, first = [], [], 0
    for index, row in enumerate(rows):
        found = [scores[first + winner] - scores[first + loser] for winner, loser in pairs_of(row)]
        margins += found
        prompts += [index] * len(found)
        first += len(row["completions"])
    return np.array(margins, dtype=float), np.array(prompts, dtype=int)


def calibration(
    predicted: np.ndarray, observed: np.ndarray, num_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean prediction, mean observation and count in bins of equal size, by prediction.

    `predicted` (n,) are probabilities, sigmoid(score a - score b); `observed` (n,) whether a was
    preferred, or the known probability that it is. Which answer is a must not depend on the label.
    Bins of equal size, as their means then have like errors.
    """
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(num_bins, len(predicted)))
    mean = [(np.mean(predicted[b]), np.mean(observed[b]), len(b)) for b in bins]
    return tuple(map(np.array, zip(*mean, strict=True)))


def train_reward(
    model: torch.nn.Module,
    rows: Sequence[Comparison],
    config: RewardConfig,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train on rendered comparisons; a history row per optimiser step.

    A row of the history has step, loss, accuracy and margin (of the pairs, prompts weigh equally),
    learning_rate, grad_norm, num_pairs, num_tokens (read, pads not counted) and seconds; the first
    one also has the number of answers that were `too_long`.

    Raises:
        CourseError: no row has a pair, or the loss or gradient is not finite (see `loop.Update`).
    """
    # 1. Rows, optimiser, schedule.
    usable = [row for row in rows if pairs_of(row)]
    if not usable:
        raise _no_pairs(rows)
    step_rows = config.batch_size * config.gradient_accumulation_steps
    num_steps = steps_of(config, len(usable))
    update = Update(model.parameters(), num_steps, config)
    history, start = [], time.perf_counter()
    order = endless(len(usable), random.Random(config.seed))
    with training(model, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            # 2. The loss of the step's prompts, each with all its answers in one forward pass.
            drawn = [usable[next(order)] for _ in range(step_rows)]
            parts = _parts(model, drawn, config.batch_size)
            metrics = backward(model, parts, reward_step, config.dtype)
            # 3. Update and record.
            row = {"step": step, **metrics, **update(step, metrics["loss"])}
            if step == 1:
                row["too_long"] = _too_long(rows)
            row["num_pairs"] = sum(len(pairs_of(comparison)) for comparison in drawn)
            row["num_tokens"] = sum(len(ids) for one in drawn for ids in one["completions"])
            history.append(row | {"seconds": time.perf_counter() - start})
            if progress:
                progress(history[-1])
    return history


def _parts(model, rows: list[Comparison], batch_size: int) -> Iterator[tuple[dict, float]]:
    """Batches of prompts of like size, and each batch's share of the prompts."""
    sizes = [len(row["completions"]) * max(map(len, row["completions"])) for row in rows]
    for group in batches(
        [{"input_ids": range(size)} for size in sizes],
        batch_size=batch_size,
        tokens_per_batch=forward_tokens(model),
    ):
        yield collate_comparisons([rows[i] for i in group]), len(group) / len(rows)


def _collate(sequences: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    batch = collate([{"input_ids": ids, "completion_mask": [1] * len(ids)} for ids in sequences], 0)
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def _no_pairs(rows: Sequence[Comparison]) -> CourseError:
    return CourseError(
        f"None of the {len(rows)} comparisons has a pair, and {_too_long(rows)} answers are too "
        "long; expected two completions of different rank in at least one; check the ranks (1 the "
        "best, None not ranked), or raise max_length."
    )


def _too_long(rows: Sequence[Comparison]) -> int:
    return sum(row.get("too_long", 0) for row in rows)
