"""Verifiers: a probability, at chosen places of a solution, that it is right up to there.

    loss = mean over places of - log sigmoid(r) if the label is 1, - log sigmoid(-r) if it is 0

With one place, the end, labelled by the answer, it is an outcome verifier (Cobbe et al. 2021,
arXiv:2110.14168); with one at the end of each step, labelled step by step, a process verifier
(Lightman et al. 2023, arXiv:2305.20050). The network is that of `reward.make_reward_model`.

A row is {"input_ids", "places", "labels"}: prompt and solution, indices of tokens, zeros and ones.

Left out: a language-model loss beside it, soft labels from rollouts, reading a prompt once for all
its solutions.
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
from course_lib.algorithms.logprobs import hidden_states
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


def collate_places(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """`input_ids` (B, T), right-padded; of all M places: `rows`, `columns` and `labels` (M,)."""
    blank = [
        {"input_ids": r["input_ids"], "completion_mask": [1] * len(r["input_ids"])} for r in rows
    ]
    flat = [
        (b, place, label)
        for b, row in enumerate(rows)
        for place, label in zip(row["places"], row["labels"], strict=True)
    ]
    b, columns, labels = torch.tensor(flat).T
    ids = collate(blank, 0)["input_ids"]
    return {"input_ids": ids, "rows": b, "columns": columns, "labels": labels}


def verifier_step(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one batch of `collate_places`, and the share of places on the right side."""
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
    """Train on labelled solutions; a history row per optimiser step.

    Raises:
        CourseError: a label is missing everywhere, or the loss is not finite (see `loop.Update`).
    """
    rows = [row for row in rows if row["places"]]
    if len({label for row in rows for label in row["labels"]}) < 2:
        raise CourseError(
            f"The {len(rows)} solutions are all right or all wrong; expected both kinds, as "
            "nothing is learned from one; take harder or easier problems, or more samples."
        )
    order, history = endless(len(rows), random.Random(config.seed)), []
    num_steps = steps_of(config, len(rows))
    update = Update(model.parameters(), num_steps, config)
    with training(model, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            drawn = [rows[next(order)] for _ in range(config.batch_size)]
            total = sum(len(row["places"]) for row in drawn)
            groups = batches(drawn, tokens_per_batch=forward_tokens(model))
            parts = [[drawn[i] for i in group] for group in groups]
            shares = [sum(len(row["places"]) for row in part) / total for part in parts]
            ready = zip(map(collate_places, parts), shares, strict=True)
            metrics = backward(model, ready, verifier_step, config.dtype)
            history.append({"step": step, **metrics, **update(step, metrics["loss"])})
            if progress:
                progress(history[-1])
    return history


def verify_places(
    model: torch.nn.Module, sequences: Sequence[list[int]], places: Sequence[list[int]]
) -> list[np.ndarray]:
    """The probability at each place of each sequence of ids; batched by length."""
    found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
    rows = [
        {"input_ids": s, "places": p, "labels": p} for s, p in zip(sequences, places, strict=True)
    ]
    with evaluating(model):
        for group in batches(rows, tokens_per_batch=4 * forward_tokens(model)):
            batch = to_device(collate_places([rows[i] for i in group]), model)
            values = _logits(model, batch).sigmoid().double().cpu().numpy()
            ends = np.cumsum([len(places[i]) for i in group])[:-1]
            for i, value in zip(group, np.split(values, ends), strict=True):
                found[i] = value
    return found


def _logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    states = hidden_states(model, batch["input_ids"])[batch["rows"], batch["columns"]]  # (M, H)
    return (states.float() * model.score.weight.float()).sum(-1)
