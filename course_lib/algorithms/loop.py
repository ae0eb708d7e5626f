"""What every training loop needs around its loss: order, learning rate, a guarded update, a device.

`fit` is the one supervised loop: rows, a loss of a batch, and nothing else. A loop that samples or
scores between its updates draws rows, computes its loss, calls `backward`, and then `Update`.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib import CourseError
from course_lib.algorithms import chat

SNAPSHOT_STEPS = 10  # how often the weights that a non-finite loss falls back to are copied


def endless(n: int, rng: random.Random) -> Iterator[int]:
    """0..n-1 in a new random order, again and again."""
    while True:
        order = list(range(n))
        rng.shuffle(order)
        yield from order


def steps_of(config: Any, num_rows: int) -> int:
    """Optimiser steps of a training on `num_rows` rows: config.num_steps, or else its epochs."""
    each = config.batch_size * config.gradient_accumulation_steps
    return config.num_steps or max(1, round(config.num_epochs * num_rows / each))


def schedule(step: int, num_steps: int, warmup: float = 0.0, shape: str = "cosine") -> float:
    """Share of the peak learning rate at `step`, counted from 1.

    It rises from 0 in the first `warmup` share of the steps, then goes down to 0 as a "cosine" or
    "linear", or stays "constant".
    """
    first = round(warmup * num_steps)
    if step <= first:
        return step / first
    done = (step - first - 1) / max(1, num_steps - first)  # from 0 to almost 1
    shapes = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    if shape not in shapes:
        raise CourseError(f"The schedule is {shape!r}; expected 'cosine', 'linear' or 'constant'.")
    return shapes[shape]


def fit(
    model: torch.nn.Module,
    rows: Sequence[Mapping],
    loss_of: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    config: Any,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train the weights that require gradients on `rows`; a history row per optimiser step.

    Args:
        rows: with `input_ids` and `completion_mask`; what else they have becomes tensors, too.
        loss_of: a batch to its loss, the mean over its rows, and metrics, means as well.
        config: has what `Update`, `steps_of` and `training` need, batch_size, dtype and seed.

    Raises:
        Diverged: the loss or its gradient is not finite; the last good weights are back.
    """
    # 1. Order, optimiser, schedule.
    num_steps, history, start = steps_of(config, len(rows)), [], time.perf_counter()
    update = Update(model.parameters(), num_steps, config)
    order, num_rows = endless(len(rows), random.Random(config.seed)), config.batch_size
    num_rows *= config.gradient_accumulation_steps
    with training(model, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            # 2. The gradient of the step's rows, in forward passes of rows of like length.
            chosen = [rows[next(order)] for _ in range(num_rows)]
            size = {"batch_size": config.batch_size, "tokens_per_batch": forward_tokens(model)}
            groups = [[chosen[i] for i in group] for group in chat.batches(chosen, **size)]
            parts = ((batch_of(group), len(group) / num_rows) for group in groups)
            found = backward(model, parts, lambda _, batch: loss_of(batch), config.dtype)
            # 3. Update, unless something is not finite, and record.
            row = {"step": step, **found, **update(step, found["loss"])}
            row["num_tokens"] = sum(len(each["input_ids"]) for each in chosen)
            history.append(row | {"seconds": time.perf_counter() - start})
            if progress:
                progress(history[-1])
    return history


def batch_of(rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    """Collated rows; the columns beside `input_ids` and `completion_mask` as tensors (B, ...)."""
    others = [name for name in rows[0] if name not in ("input_ids", "completion_mask")]
    return chat.collate(rows, 0) | {n: torch.tensor([row[n] for row in rows]) for n in others}


@contextlib.contextmanager
def training(model: torch.nn.Module, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Train mode, with activations recomputed if asked; the model comes back as it was."""
    was_training = model.training
    model.train()
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        with training_attention(model):
            yield
    finally:
        if gradient_checkpointing:
            model.activation_checkpointing_disable()
        model.train(was_training)


def training_attention(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """The attention of `training`, for what has to be read exactly as training reads it.

    On a CPU the fused attention's backward pass is slower than plain products, most so in bf16. In
    bf16 the two also differ, by tenths of a nat in an answer.
    """
    on_cpu = model.device.type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if on_cpu else contextlib.nullcontext()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the model comes back as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def backward(
    model: torch.nn.Module,
    parts: Iterable[tuple[dict[str, torch.Tensor], float]],
    step: Callable,
    dtype: str = "float32",
) -> dict[str, float]:
    """Add the gradients of one optimiser step, worked off in parts; return its mean metrics.

    A part is a batch and its share of the step's items (the shares sum to 1); `step(model, batch)`
    gives the part's mean loss and metrics. Losses that are means of items so add up exactly.
    """
    totals: dict[str, torch.Tensor] = {}
    for batch, share in parts:
        with autocast(model, dtype):
            loss, metrics = step(model, to_device(batch, model))
        (loss * share).backward()
        for key, value in {"loss": loss.detach(), **metrics}.items():
            totals[key] = totals.get(key, 0.0) + share * value
    return {key: float(value) for key, value in totals.items()}


class Update:
    """AdamW with a schedule and a clipped gradient, which stops before a bad step is taken.

    Args:
        weights: parameters, of which those that require gradients are trained.
        num_steps: optimiser steps of the whole run.
        config: has learning_rate, weight_decay, max_grad_norm, warmup and schedule.
    """

    def __init__(self, weights, num_steps: int, config):
        self.weights = [p for p in weights if p.requires_grad]
        self.num_steps, self.config, self.good = num_steps, config, None
        on_cpu_or_gpu = all(p.device.type in ("cpu", "cuda") for p in self.weights)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=0.0, weight_decay=config.weight_decay, fused=on_cpu_or_gpu
        )

    def __call__(self, step: int, loss: float) -> dict[str, float]:
        """Take optimiser step `step` (from 1) on the gradients that `loss` left in the weights.

        Returns learning_rate and grad_norm (before it is clipped).

        Raises:
            CourseError: the loss or the gradient is not finite; the weights are then the last ones
                whose loss was finite (at most 10 steps old).
        """
        config = self.config
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.weights, config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            restore(self.weights, self.good)
            raise not_finite(step, loss, grad_norm, config.learning_rate)
        if (step - 1) % SNAPSHOT_STEPS == 0:
            self.good = snapshot(self.weights)
        rate = config.learning_rate * schedule(step, self.num_steps, config.warmup, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"learning_rate": rate, "grad_norm": grad_norm}


def snapshot(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """A copy of `weights`, for `restore`."""
    return [p.detach().clone() for p in weights]


@torch.no_grad()
def restore(weights: list[torch.Tensor], good: list[torch.Tensor] | None) -> None:
    """Put a `snapshot` back in place (None: leave the values) and drop the gradients."""
    for weight, value in zip(weights, good or weights, strict=True):
        weight.copy_(value)
        weight.grad = None


class Diverged(CourseError):
    """A training went where no number is finite, or too far; its weights are restored."""


def not_finite(step: int, loss: float, grad_norm: float, learning_rate: float) -> Diverged:
    """The error to raise once the weights are restored."""
    return Diverged(
        f"The loss at step {step} is {loss} and its gradient's norm {grad_norm:.3g}; expected "
        "finite numbers; the weights are back at their last good values; "
        f"lower learning_rate (now {learning_rate:g})."
    )


def autocast(model: torch.nn.Module, dtype: str) -> torch.autocast:
    """bf16 forward passes where `dtype` is "bfloat16"; the weights keep their own type."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def to_device(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The batch where the model is."""
    return {key: tensor.to(model.device, non_blocking=True) for key, tensor in batch.items()}


def forward_tokens(model: torch.nn.Module) -> int:
    """Tokens in one forward pass: what a CPU's cache holds, or what keeps a GPU busy."""
    return 1024 if model.device.type == "cpu" else 16384
