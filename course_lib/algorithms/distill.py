"""Distillation: a student learns from a teacher's whole distribution over the next token.

    loss = α T² KL(p_T ‖ q_T) + (1 - α) CE(y, q)

is the mean over completion tokens, with p_T = softmax(teacher's logits / T), q_T likewise of the
student, q = q_1, and y the token that was written. The gradient of the soft part shrinks as 1/T²,
hence T². Source: Hinton et al. 2015, arXiv:1503.02531, section 2.

Four ways to learn from a teacher are here:

    soft labels        its distribution at every token of given answers         `train_kd`
    hard labels        the answers alone, α = 0: supervised fine-tuning          `train_kd`
    sequence level     answers that the teacher wrote, as hard labels            `train_kd`
    on policy          its distribution at every token that the student wrote    `train_on_policy`

Sequence level: Kim and Rush 2016, arXiv:1606.07947. On policy: Agarwal et al. 2024 (GKD),
arXiv:2306.13649; Gu et al. 2024 (MiniLLM), arXiv:2306.08543.

Left out: 1. different tokenizers, and matching of hidden states; 2. the gradient through the
student's sampling (MiniLLM); 3. keeping the teacher's logits, which are computed again each time;
4. weights by tokens where a step is worked off in parts (`loop.fit` weighs rows).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from course_lib import CourseError
from course_lib.algorithms import loop
from course_lib.algorithms.chat import Row, batches
from course_lib.algorithms.logprobs import backbone_and_head, next_token_states, shift_mask
from course_lib.algorithms.losses import Metrics, masked_mean
from course_lib.algorithms.ppo import SamplingConfig
from course_lib.algorithms.sampling import generate

# student and teacher logits (..., V), labels and mask (...), alpha, temperature -> a mean
Loss = Callable[..., torch.Tensor]


@dataclass
class DistillConfig:
    """Settings of `train_kd` and `train_on_policy`."""

    learning_rate: float = 1e-3  # peak, of AdamW
    num_epochs: float = 1.0  # passes over the rows; not used where num_steps is given
    num_steps: int | None = None  # optimiser steps
    batch_size: int = 8  # answers
    gradient_accumulation_steps: int = 1  # an optimiser step takes batch_size times as many rows
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    schedule: str = "cosine"  # then: "cosine" or "linear" down to 0, or "constant"
    weight_decay: float = 0.0  # of AdamW, decoupled
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    dtype: str = "float32"  # "bfloat16": autocast; the weights keep their own type
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 0  # of the order of the rows
    alpha: float = 0.9  # α, the weight of the soft labels; 0 needs no teacher
    temperature: float = 2.0  # T, of both softmaxes of the soft part


def divergence(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    beta: float = 0.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """How far apart two next-token distributions are, in nats: (..., V) twice to (...).

    beta 0: KL(teacher ‖ student), which wants what the teacher holds possible; 1: KL(student ‖
    teacher), which shuns what it holds impossible; between: the generalised Jensen-Shannon
    divergence of GKD (equation 1), about the mixture beta * teacher + (1 - beta) * student.
    """
    student = (student_logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    if beta in (0, 1):
        p, q = (student, teacher) if beta else (teacher, student)
        return (p.exp() * (p - q)).sum(-1)
    weights = torch.tensor([beta, 1 - beta], device=student.device)
    both = torch.stack([teacher, student])  # (2, ..., V)
    mixture = (both + weights.log().view(2, *[1] * student.ndim)).logsumexp(0)
    return torch.einsum("k...,k->...", (both.exp() * (both - mixture)).sum(-1), weights)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(student ‖ teacher) in nats: logits (..., V) twice to (...)."""
    return divergence(student_logits, teacher_logits, 1.0)


def kd_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """α T² KL(p_T ‖ q_T) + (1 - α) CE(y, q), the mean over the tokens in `mask`, in nats.

    Logits (..., V) are those that predict each token; `labels` (...) the ids, `mask` (...) 1 on
    completion tokens.
    """
    soft = temperature**2 * divergence(student_logits, teacher_logits, 0.0, temperature)
    logprobs = student_logits.float().log_softmax(-1)
    hard = -logprobs.gather(-1, labels[..., None])[..., 0]
    return masked_mean(alpha * soft + (1 - alpha) * hard, mask.bool())


def completion_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (M, V) in fp32 at the batch's M completion tokens; the head reads no others."""
    wanted = shift_mask(batch["completion_mask"])
    _, head = backbone_and_head(model)
    return head(next_token_states(model, batch["input_ids"])[wanted]).float()


def completion_labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The ids (M,) of the batch's completion tokens, in the order of `completion_logits`."""
    return batch["input_ids"][:, 1:][shift_mask(batch["completion_mask"])]


def check_tokenizers(student: Any, teacher: Any) -> None:
    """Raise a CourseError where two tokenizers differ in a token or its id."""
    own, other = student.get_vocab(), teacher.get_vocab()
    if differ := sorted(own.items() ^ other.items()):
        token = differ[0][0]
        raise CourseError(
            f"Student and teacher have different tokenizers: {token!r} has the id {own.get(token)} "
            f"in the one and {other.get(token)} in the other; expected the same ids, as the loss "
            "compares them one by one; take a teacher of the same family, or learn from its texts."
        )


def _check_heads(student: torch.nn.Module, teacher: torch.nn.Module) -> None:
    own, other = student.config.vocab_size, teacher.config.vocab_size
    if own != other:
        raise CourseError(
            f"The student has {own} next-token logits and the teacher {other}; expected as many, "
            "for the same tokenizer; take a teacher of the same family."
        )


def train_kd(
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    rows: Sequence[Row],
    config: DistillConfig,
    loss_fn: Loss = kd_loss,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train the student on answers; None as teacher learns from hard labels alone (alpha 0)."""
    if teacher is not None:
        _check_heads(student, teacher)

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Metrics]:
        logits, labels = completion_logits(student, batch), completion_labels(batch)
        soft = logits.detach()
        if teacher is not None:
            with loop.evaluating(teacher):
                soft = completion_logits(teacher, batch)
        mask = torch.ones_like(labels)  # the prompts' logits were never computed
        loss = loss_fn(logits, soft, labels, mask, config.alpha, config.temperature)
        with torch.no_grad():
            hard, kl = F.cross_entropy(logits, labels), divergence(logits, soft).mean()
        return loss, {
            "ce": hard,
            "kl": kl,
            "completion_length": len(labels) / len(batch["input_ids"]),
        }

    return loop.fit(student, rows, loss_of, config, progress)


def train_on_policy(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    config: DistillConfig,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = reverse_kl,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train on what the student writes itself: the distance to the teacher at its own tokens.

    Args:
        prompts: as ids; all are used before one comes again.
        sampling: num_prompts x num_generations fresh answers whenever the last ones are used up.
        distance: student and teacher logits (M, V) to (M,), such as `divergence`.

    A row has step, loss (nats a token), completion_length (tokens an answer), missing_eos (share of
    the batch that was cut), learning_rate, grad_norm and seconds. Raises as `loop.fit` does.
    """
    _check_heads(student, teacher)
    if not prompts or not config.num_steps:
        raise CourseError(
            f"On-policy distillation has {len(prompts)} prompts and num_steps={config.num_steps}; "
            "expected a prompt or more, and a number of steps; pass what lacks."
        )
    update = loop.Update(student.parameters(), config.num_steps, config)
    rng, history, start = random.Random(sampling.seed), [], time.perf_counter()
    following, waiting = loop.endless(len(prompts), rng), []

    def loss_of(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, Metrics]:
        with loop.evaluating(teacher):
            wanted = completion_logits(teacher, batch)
        return distance(completion_logits(model, batch), wanted).mean(), {}

    with loop.training(student, config.gradient_checkpointing):
        for step in range(1, config.num_steps + 1):
            # 1. Fresh answers of the present student, where the last ones are used up.
            if len(waiting) < config.batch_size:
                asked = [prompts[i] for i in islice(following, sampling.num_prompts)]
                waiting = _answers(student, asked, sampling, rng.getrandbits(32))
                rng.shuffle(waiting)
            chosen, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
            # 2. The gradient of their tokens' divergence, in parts of like length.
            lengths = [sum(row["completion_mask"]) for row in chosen]
            groups = batches(chosen, tokens_per_batch=loop.forward_tokens(student))
            parts = (
                (loop.batch_of([chosen[i] for i in g]), sum(lengths[i] for i in g) / sum(lengths))
                for g in groups
            )
            found = loop.backward(student, parts, loss_of, config.dtype)
            # 3. Update and record.
            ends = [row["input_ids"][-1] in sampling.eos_ids for row in chosen]
            row = {"step": step, **found, **update(step, found["loss"])}
            row |= {"completion_length": sum(lengths) / len(lengths)}
            row |= {"missing_eos": 1 - sum(ends) / len(ends)}
            history.append(row | {"seconds": time.perf_counter() - start})
            if progress:
                progress(history[-1])
    return history


def _answers(student, prompts: list[list[int]], sampling: SamplingConfig, seed: int) -> list[Row]:
    """The student's answers as rows, at temperature 1."""
    size, most = sampling.num_generations, sampling.max_new_tokens
    options = {"max_new_tokens": most, "eos_ids": sampling.eos_ids, "pad_id": 0, "seed": seed}
    written = generate(student, prompts, num_generations=size, **options).lists
    pairs = zip([p for p in prompts for _ in range(size)], written, strict=True)
    return [
        {"input_ids": p + ids, "completion_mask": [0] * len(p) + [1] * len(ids)} for p, ids in pairs
    ]
