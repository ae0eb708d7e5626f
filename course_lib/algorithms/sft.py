"""Supervised fine-tuning: imitate the demonstrations, token by token.

    loss = - (1 / number of completion tokens) * sum over completion tokens of log p(token | before)

Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5; the mean over all tokens of
an optimiser step (not a mean of the sequences' means) is TRL's and transformers' convention.

Left out:
1. packing of several conversations into one row (rows of like length share a forward pass instead);
2. more than one device (see `course_lib.scale`);
3. resuming in the middle of a run, and choosing the best checkpoint.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from course_lib import CourseError
from course_lib.algorithms.chat import Row, batches, collate, render_text
from course_lib.algorithms.logprobs import shift_mask, token_logprobs
from course_lib.algorithms.loop import (
    Update,
    autocast,
    endless,
    evaluating,
    forward_tokens,
    steps_of,
    to_device,
    training,
)
from course_lib.algorithms.losses import Metrics, sft_loss


@dataclass
class SFTConfig:
    """Settings of `train_sft`."""

    learning_rate: float = 1e-3  # peak, of AdamW; about 2e-5 for models of a billion parameters
    num_epochs: float = 1.0  # passes over the rows; not used where num_steps is given
    num_steps: int | None = None  # optimiser steps
    batch_size: int = 32  # rows
    gradient_accumulation_steps: int = 1  # an optimiser step takes batch_size times as many rows
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    schedule: str = "cosine"  # then: "cosine" or "linear" down to 0, or "constant"
    weight_decay: float = 0.0  # of AdamW, decoupled
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    mask_prompt: bool = True  # learn completions only; False learns every token but the first
    max_length: int = 512  # tokens; what is beyond is cut
    dtype: str = "float32"  # "bfloat16": autocast; the weights keep their own type
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 0  # of the order of the rows


def sft_step(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], num_items: int | None = None
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one collated batch; `num_items` as in `sft_loss`."""
    mask = batch["completion_mask"]
    logprobs = token_logprobs(model, batch["input_ids"], batch["attention_mask"], mask)
    return sft_loss(logprobs, shift_mask(mask), num_items)


def evaluate_sft(
    model: torch.nn.Module, rows: Sequence[Row], *, mask_prompt: bool = True, max_length: int = 512
) -> dict[str, float]:
    """Mean loss (nats per token), perplexity and number of tokens on held-out rows."""
    rows = _prepare(rows, mask_prompt, max_length)
    losses, counts = _row_losses(model, rows)
    loss = float(losses.sum() / max(counts.sum(), 1))
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "num_tokens": int(counts.sum())}


def completion_losses(
    model: torch.nn.Module, rows: Sequence[Row], max_length: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's summed loss in nats over its completion tokens, and their number, both (n,)."""
    return _row_losses(model, _prepare(rows, True, max_length))


def document_losses(
    model: torch.nn.Module, tokenizer, texts: Sequence[str], max_length: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Each plain document's summed loss in nats and its tokens (its end is one), both (n,)."""
    rows = [render_text(tokenizer, text) for text in texts]
    return _row_losses(model, _prepare(rows, True, max_length))


def _row_losses(model, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Each row's summed loss and its number of learned tokens, both (n,)."""
    losses, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    with evaluating(model):
        for group in batches(rows, tokens_per_batch=forward_tokens(model)):
            batch = to_device(collate([rows[i] for i in group], 0), model)
            logprobs = token_logprobs(model, batch["input_ids"], mask=batch["completion_mask"])
            losses[group] = -logprobs.sum(-1).double().cpu().numpy()
            counts[group] = shift_mask(batch["completion_mask"]).sum(-1).cpu().numpy()
    return losses, counts


def train_sft(
    model: torch.nn.Module,
    rows: Sequence[Row],
    config: SFTConfig,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train the weights that require gradients on `rows`; a history row per optimiser step.

    A row of the history has step, loss (nats per completion token), learning_rate, grad_norm,
    num_tokens (tokens read, pads not counted) and seconds (since the start).

    Raises:
        CourseError: no row has a token to learn, or the loss or gradient is not finite; the model
            then has the last weights whose loss was finite (at most 10 steps old).
    """
    # 1. Rows, optimiser, schedule.
    rows = _prepare(rows, config.mask_prompt, config.max_length)
    rows = [row for row in rows if any(row["completion_mask"][1:])]
    step_rows = config.batch_size * config.gradient_accumulation_steps
    num_steps = steps_of(config, len(rows))
    update = Update(model.parameters(), num_steps, config)
    history, start = [], time.perf_counter()
    order = endless(len(rows), random.Random(config.seed))
    with training(model, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            # 2. The loss of the step's rows, in forward passes of rows of like length.
            chosen = [rows[next(order)] for _ in range(step_rows)]
            loss, num_tokens = _backward(model, chosen, config)
            # 3. Update, unless the loss or its gradient is not finite, and record.
            row = {"step": step, "loss": loss, **update(step, loss)}
            seconds = time.perf_counter() - start
            history.append(row | {"num_tokens": num_tokens, "seconds": seconds})
            if progress:
                progress(history[-1])
    return history


def _backward(model, rows: list[Row], config: SFTConfig) -> tuple[float, int]:
    """Add the gradient of the rows' mean token loss; return that loss and the tokens read."""
    num_items = sum(sum(row["completion_mask"][1:]) for row in rows)
    total = 0.0
    groups = batches(rows, batch_size=config.batch_size, tokens_per_batch=forward_tokens(model))
    for group in groups:
        batch = to_device(collate([rows[i] for i in group], 0), model)
        with autocast(model, config.dtype):
            loss, _ = sft_step(model, batch, num_items)
        loss.backward()
        total += loss.detach()
    return float(total), sum(len(row["input_ids"]) for row in rows)


def _prepare(rows: Sequence[Row], mask_prompt: bool, max_length: int) -> list[Row]:
    """Cut the rows and choose their mask; all stay, for results are by row."""
    out = []
    for row in rows:
        ids = row["input_ids"][:max_length]
        mask = row["completion_mask"][:max_length] if mask_prompt else [1] * len(ids)
        out.append({"input_ids": ids, "completion_mask": mask})
    if not any(sum(row["completion_mask"][1:]) for row in out):
        raise CourseError(
            f"None of the {len(out)} rows has a token to learn within max_length={max_length}; "
            "expected completions with a completion_mask of 1; raise max_length or check the rows."
        )
    return out
