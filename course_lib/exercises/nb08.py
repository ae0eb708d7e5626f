"""Exercises of notebook 08: reference, inputs, and the mistakes that are recognised."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from course_lib.algorithms.distill import divergence, kd_loss, reverse_kl
from course_lib.exercises.exercise import Exercise


def _logits(rng: np.random.Generator, *shape: int, scale: float = 2.0) -> torch.Tensor:
    return torch.tensor(scale * rng.standard_normal(shape), dtype=torch.float32)


def _kd_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """student and teacher logits (B, T, V), labels and mask (B, T), alpha, temperature."""

    def case(alpha: float, temperature: float, shape=(2, 5), size=7, **scale: float) -> tuple:
        student, teacher = (_logits(rng, *shape, size, **scale) for _ in "st")
        labels = torch.tensor(rng.integers(size, size=shape))
        mask = torch.ones(shape, dtype=torch.long)
        mask[:, : shape[1] // 2] = 0  # the prompt
        mask[0, -1:] = 0  # a pad: rows have different numbers of tokens
        return student, teacher, labels, mask, alpha, temperature

    student, _, *rest = case(0.7, 3.0)
    return [
        ("random", case(0.6, 2.0)),
        ("soft labels alone", case(1.0, 4.0)),
        ("hard labels alone", case(0.0, 2.0)),
        ("temperature 1", case(0.5, 1.0)),
        ("temperature below 1", case(0.5, 0.5)),
        ("student and teacher agree", (student, student.clone(), *rest)),
        ("a sure teacher", case(0.9, 2.0, scale=30.0)),
        ("a large vocabulary", case(0.9, 2.0, shape=(3, 8), size=200)),
    ]


def _reverse_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """student and teacher logits (..., V)."""
    same = _logits(rng, 3, 6)
    return [
        ("random", (_logits(rng, 5, 6), _logits(rng, 5, 6))),
        ("one token", (_logits(rng, 4), _logits(rng, 4))),
        ("student and teacher agree", (same, same.clone())),
        ("logits moved by a constant", (same + 5.0, same.flip(-1) - 3.0)),
        ("a sure student", (_logits(rng, 3, 6, scale=30.0), _logits(rng, 3, 6))),
        ("a sure teacher", (_logits(rng, 3, 6), _logits(rng, 3, 6, scale=30.0))),
        ("two dimensions", (_logits(rng, 2, 3, 5), _logits(rng, 2, 3, 5))),
    ]


def _mixed(soft=None, hard=None, square: bool = True, weights=lambda a: (a, 1 - a)):
    """`kd_loss` with some part replaced: `soft(s, t, T)` and `hard(s, t, y)` per token."""
    soft = soft or (lambda s, t, T: divergence(s, t, 0.0, T))
    hard = hard or (lambda s, t, y: _ce(s, y))

    def loss(student, teacher, labels, mask, alpha, temperature):
        first, second = weights(alpha)
        factor = temperature**2 if square else 1.0
        each = first * factor * soft(student, teacher, temperature)
        each = each + second * hard(student, teacher, labels)
        return (each * mask).sum() / mask.sum()

    return loss


def _ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view_as(
        labels
    )


def _cross_entropy(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    return -((t / temperature).softmax(-1) * (s / temperature).log_softmax(-1)).sum(-1)


def _unnormalised(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """The teacher's logits where its log-probabilities belong."""
    logp = t / temperature
    return (logp.softmax(-1) * (logp - (s / temperature).log_softmax(-1))).sum(-1)


def _one_side(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    return divergence(s, t / temperature, 0.0)


def _other_side(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    return divergence(s / temperature, t, 0.0)


def _whole(student, teacher, labels, mask, alpha, temperature):
    return kd_loss(student, teacher, labels, torch.ones_like(mask), alpha, temperature)


def _by_rows(student, teacher, labels, mask, alpha, temperature):
    rest = mask, alpha, temperature
    rows = [
        kd_loss(*(x[i : i + 1] for x in (student, teacher, labels, mask)), *rest[1:])
        for i in range(len(labels))
    ]
    return torch.stack(rows).mean()


EXERCISES: dict[str, Exercise] = {
    "kd_loss": Exercise(
        task="kd_loss(student_logits, teacher_logits, labels, mask, alpha, temperature): logits "
        "(..., V), labels and mask (...); returns alpha T² KL(teacher ‖ student) at temperature T "
        "+ (1 - alpha) times the cross-entropy at temperature 1, the mean over tokens of mask 1.",
        reference=kd_loss,
        inputs=_kd_inputs,
        gradient=True,
        mistakes={
            "the KL stands the wrong way round: the teacher's probabilities are the weights, "
            "KL(teacher ‖ student).": _mixed(soft=lambda s, t, T: divergence(s, t, 1.0, T)),
            "T² is forgotten: without it the soft part fades as the temperature rises.": (
                _mixed(square=False)
            ),
            "prompt tokens and pads are in the loss; take the mean over mask 1 alone.": _whole,
            "the softmax of the teacher is forgotten: a KL takes log-probabilities, not "
            "logits.": _mixed(soft=_unnormalised),
            "only the teacher's logits are divided by T; the student's belong there, too.": (
                _mixed(soft=_one_side)
            ),
            "only the student's logits are divided by T; the teacher's belong there, too.": (
                _mixed(soft=_other_side)
            ),
            "alpha and 1 - alpha are swapped: alpha weighs the soft labels.": (
                _mixed(weights=lambda a: (1 - a, a))
            ),
            "the gradient is right, but this is a cross-entropy: take the teacher's entropy off, "
            "so that the loss is 0 where the two agree.": _mixed(soft=_cross_entropy),
            "this is a mean of the rows' means; a token of a short row then counts more.": _by_rows,
        },
        hint="log_softmax both logits over T; sum p (log p - log q) over the vocabulary; mask; "
        "divide by mask.sum().",
    ),
    "reverse_kl": Exercise(
        task="reverse_kl(student_logits, teacher_logits): logits (..., V); returns "
        "KL(student ‖ teacher) in nats of each token, (...).",
        reference=reverse_kl,
        inputs=_reverse_inputs,
        gradient=True,
        mistakes={
            "this is the forward KL; weigh by the student's probabilities.": divergence,
            "the weights must not be detached: they are the student's, and move with it.": (
                lambda s, t: (s.softmax(-1).detach() * (s.log_softmax(-1) - t.log_softmax(-1))).sum(
                    -1
                )
            ),
            "the sign is turned: this falls below 0, and a KL never does.": (
                lambda s, t: -reverse_kl(s, t)
            ),
            "logits are no log-probabilities; a constant that is added to them must not "
            "matter.": lambda s, t: (s.softmax(-1) * (s - t)).sum(-1),
            "this is a mean over the vocabulary; a KL is a sum.": (
                lambda s, t: reverse_kl(s, t) / s.shape[-1]
            ),
        },
        hint="log_softmax both; sum q (log q - log p) over the last dimension, q the student's.",
    ),
}
