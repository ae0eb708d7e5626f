"""Direct preference optimisation: the policy is fitted to preferences without a reward model.

    loss = - mean over pairs of log sigmoid(beta * log pi(y_w|x) / pi_ref(y_w|x)
                                            - beta * log pi(y_l|x) / pi_ref(y_l|x))

Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; log-probabilities are sums over the
completion's tokens. A pair of the data is {"prompt", "chosen", "rejected"}, once rendered with
"prompt_ids", "chosen_ids", "rejected_ids" (TRL's names). A "preference" below 1 is the
probability that chosen is the better one (soft labels; 0.9 for all is conservative DPO).

The reference's log-probabilities do not change, so they are computed once and kept with the rows.

Left out:
1. reading the prompt once for both completions (chosen and rejected share a forward pass, not it);
2. a language-model term on the chosen answer, and the other losses (IPO, KTO, ...);
3. sampling new pairs from the policy while it trains (online DPO);
4. more than one device.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_lib import CourseError
from course_lib.algorithms.chat import batches, collate, render_chat
from course_lib.algorithms.logprobs import sequence_logps, shift_mask, token_logprobs
from course_lib.algorithms.loop import (
    Update,
    autocast,
    backward,
    endless,
    evaluating,
    forward_tokens,
    steps_of,
    to_device,
    training,
    training_attention,
)
from course_lib.algorithms.losses import Metrics, dpo_loss

Pair = dict[str, Any]
SIDES = ("chosen", "rejected")


@dataclass
class DPOConfig:
    """Settings of `train_dpo`."""

    learning_rate: float = 1e-4  # peak, of AdamW; about 5e-7 for models of billions of parameters
    beta: float = 0.1  # weight of the KL to the reference: smaller goes further from it
    num_epochs: float = 1.0  # passes over the pairs; not used where num_steps is given
    num_steps: int | None = None  # optimiser steps
    batch_size: int = 32  # pairs
    gradient_accumulation_steps: int = 1  # an optimiser step takes batch_size times as many pairs
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    schedule: str = "cosine"  # then: "cosine" or "linear" down to 0, or "constant"
    weight_decay: float = 0.0  # of AdamW, decoupled
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    max_length: int = 512  # tokens of prompt and completion; longer pairs are malformed
    dtype: str = "float32"  # "bfloat16": autocast; the weights keep their own type
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 0  # of the order of the pairs


def render_pairs(tokenizer, rows: Sequence[Pair]) -> list[Pair]:
    """The rows with `prompt_ids`, `chosen_ids`, `rejected_ids`; all stay, see `check_pairs`.

    `chosen` and `rejected` are texts after `prompt` (a text or messages), or whole conversations,
    whose last turn is the completion. Where the two prompts differ, `prompt_ids` is empty; a blank
    or missing answer has no ids.
    """
    out = []
    for row in rows:
        halves = [_split(tokenizer, row.get("prompt"), row.get(side)) for side in SIDES]
        (prompt, chosen), (other, rejected) = halves
        ids = {"chosen_ids": chosen, "rejected_ids": rejected}
        out.append({**row, "prompt_ids": prompt if prompt == other else [], **ids})
    return out


def _split(tokenizer, prompt, answer) -> tuple[list[int], list[int]]:
    """The ids before the answer, and those of the answer with the token that ends its turn."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    last = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer or []
    *before, last = [*before, *last] or [{}]
    text = last.get("content") if last.get("role") == "assistant" else None
    if not (text or "").strip():
        return [], []
    if not any((message.get("content") or "").strip() for message in before):
        return [], tokenizer(text, add_special_tokens=False)["input_ids"]
    row = render_chat(tokenizer, [*before, last])
    mask = row["completion_mask"]
    stop = max(i for i, learned in enumerate(mask) if learned) + 1
    start = stop - [*mask[:stop][::-1], 0].index(0)
    return row["input_ids"][:start], row["input_ids"][start:stop]


def check_pairs(rows: Sequence[Pair], max_length: int = 512) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that can be learned from, and how many are "good" and malformed, by reason.

    Reasons, the first that applies: "empty" (a completion without text), "no_prompt" (none, or not
    the same for both), "identical" completions, "too_long" (over `max_length` tokens; a cut pair
    would compare what nobody has judged).
    """
    good, counts = [], dict.fromkeys(("good", "empty", "no_prompt", "identical", "too_long"), 0)
    for row in rows:
        prompt, *both = (row.get(f"{name}_ids") or [] for name in ("prompt", *SIDES))
        reasons = {
            "empty": not all(both),
            "no_prompt": not prompt,
            "identical": both[0] == both[1],
            "too_long": len(prompt) + max(map(len, both)) > max_length,
        }
        reason = next((name for name, applies in reasons.items() if applies), "good")
        counts[reason] += 1
        if reason == "good":
            good.append(row)
    return good, counts


def collate_pairs(rows: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Rendered pairs to tensors: (2B, T) ids and masks, all chosen first; "preference" (B,), 1 by
    default; and the reference's log-probabilities (B,) where all rows have them."""
    batch = collate(
        [
            {
                "input_ids": row["prompt_ids"] + row[f"{side}_ids"],
                "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row[f"{side}_ids"]),
            }
            for side in SIDES
            for row in rows
        ],
        0,
    )
    batch["preference"] = torch.tensor([float(row.get("preference", 1.0)) for row in rows])
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        if all(key in row for row in rows):
            batch[key] = torch.tensor([float(row[key]) for row in rows])
    return batch


def pair_logps(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B,) of the chosen and of the rejected completions, in one forward pass."""
    mask = batch["completion_mask"]
    logprobs = token_logprobs(model, batch["input_ids"], mask=mask)  # (2B, T - 1)
    return sequence_logps(logprobs, shift_mask(mask)).chunk(2)


def dpo_step(
    policy: torch.nn.Module, batch: dict[str, torch.Tensor], beta: float
) -> tuple[torch.Tensor, Metrics]:
    """The loss of one batch of `collate_pairs`, whose rows have the reference's numbers.

    Raises:
        CourseError: they do not, and the loss would silently be one without a reference.
    """
    if "ref_chosen_logps" not in batch:
        raise _no_reference(len(batch["preference"]))
    reference = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    return dpo_loss(*pair_logps(policy, batch), *reference, beta, 1 - batch["preference"])


def add_reference_logps(
    reference: torch.nn.Module, rows: Sequence[Pair], dtype: str = "float32"
) -> list[Pair]:
    """The rendered rows with `ref_chosen_logps` and `ref_rejected_logps`, once, before training.

    `dtype` is that of the training, and so is the attention: else the policy would not start at its
    reference.
    """
    logps = _all_logps(reference, rows, dtype)
    return [
        {**row, "ref_chosen_logps": float(chosen), "ref_rejected_logps": float(rejected)}
        for row, chosen, rejected in zip(rows, *logps, strict=True)
    ]


def evaluate_dpo(
    policy: torch.nn.Module, rows: Sequence[Pair], beta: float, dtype: str = "float32"
) -> dict[str, Any]:
    """The metrics of `dpo_loss` on held-out rows (checked, with the reference's numbers).

    Returns:
        "loss", "rewards/...", "logps/..."; and by pair (n,) "margins" of the implicit reward and
        "correct" (0, 0.5 or 1): how the policy does as a reward model.
    """
    if not rows or any("ref_chosen_logps" not in row for row in rows):
        raise _no_reference(len(rows))
    logps = [torch.from_numpy(values) for values in _all_logps(policy, rows, dtype)]
    reference = [
        torch.tensor([row[f"ref_{side}_logps"] for row in rows], dtype=torch.double)
        for side in SIDES
    ]
    wrong = torch.tensor([1.0 - row.get("preference", 1.0) for row in rows])
    loss, metrics = dpo_loss(*logps, *reference, beta, wrong)
    margins = beta * (logps[0] - reference[0] - logps[1] + reference[1]).numpy()
    arrays = {"margins": margins, "correct": (np.sign(margins) + 1) / 2}
    return {"loss": float(loss), **{k: float(v) for k, v in metrics.items()}, **arrays}


def train_dpo(
    policy: torch.nn.Module,
    rows: Sequence[Pair],
    config: DPOConfig,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train on rendered pairs; the reference is the policy as it comes, unless the rows have one's.

    A row of the history has step, loss, the means of `dpo_loss`'s metrics, learning_rate,
    grad_norm, num_tokens (read, pads not counted) and seconds; the first one also has the number of
    `malformed` pairs, which are left out (`check_pairs` says why).

    Raises:
        CourseError: no pair is good, or the loss or gradient is not finite (see `loop.Update`).
    """
    # 1. Rows with their reference, optimiser, schedule.
    rows, counts = check_pairs(rows, config.max_length)
    if not rows:
        raise CourseError(
            f"None of the pairs can be learned from ({counts}); expected a prompt and two "
            f"different completions within max_length={config.max_length}; check the rows."
        )
    if any("ref_chosen_logps" not in row for row in rows):
        rows = add_reference_logps(policy, rows, config.dtype)
    step_rows = config.batch_size * config.gradient_accumulation_steps
    num_steps = steps_of(config, len(rows))
    update = Update(policy.parameters(), num_steps, config)
    history, start = [], time.perf_counter()
    order = endless(len(rows), random.Random(config.seed))
    step_loss = functools.partial(dpo_step, beta=config.beta)
    with training(policy, config.gradient_checkpointing):
        for step in range(1, num_steps + 1):
            # 2. The loss of the step's pairs, chosen and rejected in one forward pass.
            drawn = [rows[next(order)] for _ in range(step_rows)]
            parts = _parts(policy, drawn, config.batch_size)
            metrics = backward(policy, parts, step_loss, config.dtype)
            # 3. Update and record.
            row = {"step": step, **metrics, **update(step, metrics["loss"])}
            if step == 1:
                row["malformed"] = sum(counts.values()) - counts["good"]
            tokens = sum(map(_tokens, drawn))
            seconds = time.perf_counter() - start
            history.append(row | {"num_tokens": tokens, "seconds": seconds})
            if progress:
                progress(history[-1])
    return history


def _no_reference(num_pairs: int) -> CourseError:
    return CourseError(
        f"{num_pairs} pairs were given, not all with ref_chosen_logps; expected one or more that "
        "have it; call add_reference_logps(reference, rows) first."
    )


def _all_logps(model, rows: Sequence[Pair], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`pair_logps` of all rows, two arrays (n,)."""
    out = np.zeros((2, len(rows)))
    with evaluating(model), training_attention(model), autocast(model, dtype):
        for group in _groups(model, rows):
            batch = to_device(collate_pairs([rows[i] for i in group]), model)
            out[:, group] = torch.stack(pair_logps(model, batch)).double().cpu().numpy()
    return out[0], out[1]


def _parts(model, rows: list[Pair], batch_size: int) -> Iterator[tuple[dict, float]]:
    """Batches of pairs of like length, and each batch's share of the pairs."""
    for group in _groups(model, rows, batch_size):
        yield collate_pairs([rows[i] for i in group]), len(group) / len(rows)


def _groups(model, rows: Sequence[Pair], batch_size: int | None = None) -> list[list[int]]:
    longest = (
        len(row["prompt_ids"]) + max(len(row[f"{side}_ids"]) for side in SIDES) for row in rows
    )
    sizes = [{"input_ids": range(2 * length)} for length in longest]
    return batches(sizes, batch_size=batch_size, tokens_per_batch=forward_tokens(model))


def _tokens(row: Pair) -> int:
    return sum(len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for side in SIDES)
