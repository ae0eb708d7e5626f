"""Verifiers: the probability that a solution is right, from how likely a language model finds it.

    r = a · mean over the span's tokens of log π(token | before) + b
    loss = mean over spans of - log σ(r) if the label is 1, - log σ(-r) if it is 0

With one span, the whole solution, labelled by its answer, it is an outcome verifier (Cobbe et al.
2021, arXiv:2110.14168); with one for each step, labelled step by step, a process verifier (Lightman
et al. 2023, arXiv:2305.20050). These read r from a new head. Here it is the model's own likelihood,
as in Yuan et al. 2024, arXiv:2412.01981: what the model learned in pretraining then counts from the
start (untrained, it is the confidence of Kang et al. 2025, arXiv:2502.18581, in its plainest form).
A new head on a small model learns what solutions look like before it learns any arithmetic.

A row is {"input_ids", "start", "ends", "labels"}: prompt and solution, the index of the solution's
first token, those of the spans' last tokens, zeros and ones. A span begins where the last one ends.

Left out: a reference model whose likelihood is taken off, soft labels from rollouts, reading a
prompt once for all its solutions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from course_lib import CourseError
from course_lib.algorithms.chat import batches, collate
from course_lib.algorithms.logprobs import token_logprobs
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
from course_lib.algorithms.losses import Metrics
from course_lib.algorithms.reward import RewardConfig

Row = dict[str, Any]
CALIBRATED = 400  # rows that a and b are fitted to


def collate_spans(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """`input_ids` and `completion_mask` (B, T), right-padded, and of all M spans: `rows`, `first`,
    `last` and `labels` (M,), with places in the batch."""
    masked = [
        {
            "input_ids": row["input_ids"],
            "completion_mask": [int(i >= row["start"]) for i in range(len(row["input_ids"]))],
        }
        for row in rows
    ]
    flat = []
    for b, row in enumerate(rows):
        starts = [row["start"], *(end + 1 for end in row["ends"][:-1])]
        flat += zip([b] * len(starts), starts, row["ends"], row["labels"], strict=True)
    spans = dict(zip(("rows", "first", "last", "labels"), torch.tensor(flat).T, strict=True))
    batch = collate(masked, 0)
    return {name: batch[name] for name in ("input_ids", "completion_mask")} | spans


def span_likelihoods(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean log-probability (M,), in nats a token, of each span of a batch."""
    mask = batch["completion_mask"]
    logprobs = token_logprobs(model, batch["input_ids"], None, mask)  # (B, T - 1)
    sums = F.pad(logprobs.cumsum(-1), (1, 0))  # up to each token, itself included
    rows, first, last = batch["rows"], batch["first"], batch["last"]
    return (sums[rows, last] - sums[rows, first - 1]) / (last - first + 1)


def verifier_step(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one batch of `collate_spans`, and the share of spans on the right side."""
    logits, labels = _logits(model, batch), batch["labels"].float()
    loss = F.binary_cross_entropy_with_logits(logits, labels)
    right = ((logits > 0) == labels.bool()).float().mean()
    return loss, {"accuracy": right.detach()}


def train_verifier(
    model: torch.nn.Module,
    rows: Sequence[Row],
    config: RewardConfig,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Make a verifier of a language model; a history row per optimiser step.

    a and b are fitted to the first rows with the model as it is, and kept in its config; then all
    weights that require gradients are trained.

    Raises:
        CourseError: a label is missing everywhere, or the loss is not finite (see `loop.Update`).
    """
    rows = [row for row in rows if row["ends"]]
    if len({label for row in rows for label in row["labels"]}) < 2:
        raise CourseError(
            f"The {len(rows)} solutions are all right or all wrong; expected both kinds, as "
            "nothing is learned from one; take harder or easier problems, or more samples."
        )
    calibrate(model, rows[:CALIBRATED])
    order, history = endless(len(rows), random.Random(config.seed)), []
    num_steps = steps_of(config, len(rows))
    update = Update(model.parameters(), num_steps, config)
    with training(model, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            drawn = [rows[next(order)] for _ in range(config.batch_size)]
            total = sum(len(row["ends"]) for row in drawn)
            groups = batches(drawn, tokens_per_batch=forward_tokens(model))
            parts = [[drawn[i] for i in group] for group in groups]
            shares = [sum(len(row["ends"]) for row in part) / total for part in parts]
            ready = zip(map(collate_spans, parts), shares, strict=True)
            metrics = backward(model, ready, verifier_step, config.dtype)
            history.append({"step": step, **metrics, **update(step, metrics["loss"])})
            if progress:
                progress(history[-1])
    return history


def calibrate(model: torch.nn.Module, rows: Sequence[Row]) -> None:
    """Fit a and b, a logistic regression of the labels on the likelihoods, into the config."""
    from sklearn.linear_model import LogisticRegression

    found = np.concatenate(likelihoods(model, rows))
    labels = np.concatenate([row["labels"] for row in rows])
    fitted = LogisticRegression(C=1e6).fit(found[:, None], labels)
    model.config.verifier_scale = float(fitted.coef_[0, 0])
    model.config.verifier_offset = float(fitted.intercept_[0])


def likelihoods(model: torch.nn.Module, rows: Sequence[Row]) -> list[np.ndarray]:
    """`span_likelihoods` of each row (its labels are not read); batched by length."""
    found: list[np.ndarray] = [np.zeros(0)] * len(rows)
    rows = [row | {"labels": [0] * len(row["ends"])} for row in rows]
    with evaluating(model):
        for group in batches(rows, tokens_per_batch=4 * forward_tokens(model)):
            batch = to_device(collate_spans([rows[i] for i in group]), model)
            values = span_likelihoods(model, batch).double().cpu().numpy()
            ends = np.cumsum([len(rows[i]["ends"]) for i in group])[:-1]
            for i, value in zip(group, np.split(values, ends), strict=True):
                found[i] = value
    return found


def verify(model: torch.nn.Module, rows: Sequence[Row]) -> list[np.ndarray]:
    """The probability that each span of each row is right, by a trained verifier."""
    config = model.config
    logits = (config.verifier_scale * x + config.verifier_offset for x in likelihoods(model, rows))
    return [1 / (1 + np.exp(-each)) for each in logits]


def _logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    config = model.config
    return config.verifier_scale * span_likelihoods(model, batch) + config.verifier_offset
