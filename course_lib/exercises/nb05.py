"""Exercises of notebook 05: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, log_expit, softmax

from course_lib.algorithms.losses import dpo_loss
from course_lib.exercises.exercise import Exercise

Array = np.ndarray


def _reward_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Log-probabilities (B, T - 1) of policy and reference, mask (B, T - 1), beta."""

    def case(mask: list[list[int]], beta: float, filler: float | None = None) -> tuple:
        mask = np.array(mask, dtype=float)
        both = -rng.exponential(1.5, size=(2, *mask.shape)) - 0.1
        if filler is not None:
            both[0] = np.where(mask == 1, both[0], filler)
        return (*map(torch.tensor, both), torch.tensor(mask), beta)

    policy, _, mask, beta = case([[0, 1, 1], [0, 0, 1]], 0.1)
    return [
        ("random", case([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]], 0.1)),
        ("answers of very different length", case([[0] + [1] * 9, [0, 1] + [0] * 8], 0.1)),
        ("garbage in the padding", case([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], 0.5, filler=-1e4)),
        ("a large beta", case([[0, 1, 1], [0, 0, 1]], 2.0)),
        ("policy and reference are the same", (policy, policy.clone(), mask, beta)),
        ("one token", case([[1]], 0.3)),
    ]


def _implicit(logprobs, ref_logprobs, mask, beta: float) -> torch.Tensor:
    return beta * (logprobs - ref_logprobs).where(mask.bool(), 0).sum(-1)


def _without_end(logprobs, ref_logprobs, mask, beta: float) -> torch.Tensor:
    """The last token of each answer, which ends its turn, is left out."""
    last = mask.bool() & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    return _implicit(logprobs, ref_logprobs, mask * ~last, beta)


def _loss_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Log-probabilities (4, B): chosen and rejected of the policy, then of the reference; beta."""

    def case(pairs: int, beta: float, shift: tuple = (0, 0, 0, 0), spread: float = 6.0) -> tuple:
        logps = -40 + spread * rng.normal(size=(4, pairs)) + np.array(shift)[:, None]
        return torch.tensor(logps), beta

    same = torch.tensor(-rng.exponential(30, size=(2, 3)))
    return [
        ("random", case(4, 0.1)),
        ("policy and reference are the same", (torch.cat([same, same]), 0.1)),
        ("the policy is sure, and right", case(3, 0.3, (30, -30, 0, 0))),
        ("the policy is sure, and wrong", case(3, 10.0, (-90, 90, 0, 0))),
        ("the reference prefers the other", case(3, 0.2, (0, 0, -15, 15))),
        ("one pair", case(1, 1.0)),
    ]


def _margin(logps: torch.Tensor, beta: float, anchored: float = 1.0) -> torch.Tensor:
    """Implicit reward of chosen less that of rejected (B,); the reference weighs `anchored`."""
    chosen, rejected, ref_chosen, ref_rejected = logps
    return beta * (chosen - rejected - anchored * (ref_chosen - ref_rejected))


def _frozen(logps: torch.Tensor) -> torch.Tensor:
    return torch.cat([logps[:2], logps[2:].detach()])


def _loss(logps: torch.Tensor, beta: float) -> torch.Tensor:
    loss, _ = dpo_loss(*_frozen(logps), beta)
    return loss


def _policy_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Reference probabilities (K,), rewards (K,), beta."""
    even = np.full(3, 1 / 3)
    return [
        ("random", (rng.dirichlet(np.ones(5)), rng.normal(size=5), 0.7)),
        ("a strict penalty", (rng.dirichlet(np.ones(4)), rng.normal(size=4), 20.0)),
        ("hardly any penalty", (np.array([0.7, 0.2, 0.1]), np.array([1.0, 3.0, 2.0]), 0.001)),
        ("an answer that the reference never gives", (np.array([0.5, 0.5, 0]), np.arange(3.0), 1)),
        ("equal rewards", (np.array([0.6, 0.3, 0.1]), np.ones(3), 0.5)),
        ("a reference without preference", (even, np.array([-1.0, 0.5, 2.0]), 0.4)),
    ]


def _optimal(reference: Array, rewards: Array, beta: float) -> Array:
    reference, rewards = np.asarray(reference, float), np.asarray(rewards, float)
    tilted = reference * np.exp((rewards - np.max(rewards)) / beta)
    return tilted / tilted.sum()


def _overflowing(reference: Array, rewards: Array, beta: float) -> Array:
    with np.errstate(all="ignore"):
        tilted = np.asarray(reference) * np.exp(np.asarray(rewards) / beta)
        return tilted / tilted.sum()


def _unnormalised(reference: Array, rewards: Array, beta: float) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(reference) * np.exp(np.asarray(rewards) / beta)


def _weight_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Implicit rewards (n,) of chosen and of rejected answers."""
    return [
        ("random", (rng.normal(size=6), rng.normal(size=6))),
        ("before training", (np.zeros(3), np.zeros(3))),
        ("learned already", (np.array([4.0, 9.0]), np.array([-3.0, -8.0]))),
        ("wrong by far", (np.array([-800.0, -30.0]), np.array([900.0, 10.0]))),
        ("both fell, chosen less", (np.array([-2.0, -5.0]), np.array([-3.0, -9.0]))),
        ("one pair", (np.array([0.5]), np.array([0.1]))),
    ]


EXERCISES: dict[str, Exercise] = {
    "optimal_policy": Exercise(
        task="optimal_policy(reference, rewards, beta): probabilities (K,) of K answers under the "
        "reference and their rewards (K,); returns the probabilities (K,) of the policy that "
        "maximises the mean reward less beta times KL(policy ‖ reference).",
        reference=_optimal,
        inputs=_policy_inputs,
        mistakes={
            "the rewards are multiplied by beta; a small beta is a weak penalty and must tilt "
            "more: divide.": lambda p, r, beta: _optimal(p, r, 1 / beta),
            "the weights do not sum to 1 yet: divide by Z, their sum.": _unnormalised,
            "the reference is left out: the penalty pulls back to it, not to equal chances.": (
                lambda p, r, beta: softmax(np.asarray(r) / beta)
            ),
            "the sign is flipped: this prefers the worst answers.": (
                lambda p, r, beta: _optimal(p, -np.asarray(r), beta)
            ),
            "this takes the best answer alone; that is the limit of beta going to 0.": (
                lambda p, r, beta: np.eye(len(r))[np.argmax(r)]
            ),
            "right, but exp overflows for a small beta: take the largest reward off all of them "
            "first, which changes nothing else.": _overflowing,
            "the reference is tilted, too: only the reward is divided by beta.": (
                lambda p, r, beta: _optimal(np.asarray(p, float) ** (1 / beta), r, beta)
            ),
        },
        hint="reference * exp(rewards / beta), divided by its sum.",
    ),
    "implicit_reward": Exercise(
        task="implicit_reward(logprobs, ref_logprobs, mask, beta): log-probabilities per token "
        "(B, T - 1) of policy and reference, and the mask (B, T - 1) that is 1 on the answer; "
        "returns the implicit reward (B,) of each answer.",
        reference=_implicit,
        inputs=_reward_inputs,
        mistakes={
            "this is the mean over the tokens; the log-probability of an answer is the sum.": (
                lambda p, q, mask, beta: _implicit(p, q, mask, beta) / mask.sum(-1)
            ),
            "prompt and padding are counted, too: sum where the mask is 1.": (
                lambda p, q, mask, beta: _implicit(p, q, torch.ones_like(mask), beta)
            ),
            "beta is left out: it is part of the reward.": (
                lambda p, q, mask, beta: _implicit(p, q, mask, 1.0)
            ),
            "this divides by beta: r = beta log(pi / pi_ref).": (
                lambda p, q, mask, beta: _implicit(p, q, mask, 1 / beta)
            ),
            "the reference is forgotten: what was likely before training earns nothing.": (
                lambda p, q, mask, beta: _implicit(p, torch.zeros_like(p), mask, beta)
            ),
            "policy and reference are swapped: what became likelier is to have a higher reward.": (
                lambda p, q, mask, beta: _implicit(q, p, mask, beta)
            ),
            "the token that ends the answer is left out; where to stop is learned, too.": (
                _without_end
            ),
        },
        hint="beta * (logprobs - ref_logprobs), summed where the mask is 1.",
    ),
    "dpo_loss": Exercise(
        task="dpo_loss(logps, beta): log-probabilities (4, B) of B pairs, in the rows chosen and "
        "rejected by the policy, chosen and rejected by the reference; returns the mean loss, a "
        "tensor. The reference is frozen: no gradient may reach its two rows.",
        reference=_loss,
        inputs=_loss_inputs,
        mistakes={
            "the gradient flows through the reference: detach its two rows, or it moves, too.": (
                lambda logps, beta: -F.logsigmoid(_margin(logps, beta)).mean()
            ),
            "chosen and rejected are swapped, or the sign of the margin is flipped.": (
                lambda logps, beta: -F.logsigmoid(-_margin(_frozen(logps), beta)).mean()
            ),
            "beta is left out.": (
                lambda logps, beta: -F.logsigmoid(_margin(_frozen(logps), 1.0)).mean()
            ),
            "the reference is forgotten: the loss would not start at log 2.": (
                lambda logps, beta: -F.logsigmoid(_margin(_frozen(logps), beta, 0.0)).mean()
            ),
            "the reference's difference is added; it is to be taken off.": (
                lambda logps, beta: -F.logsigmoid(_margin(_frozen(logps), beta, -1.0)).mean()
            ),
            "the minus is missing: a loss falls as the right order becomes likelier.": (
                lambda logps, beta: F.logsigmoid(_margin(_frozen(logps), beta)).mean()
            ),
            "this is the sum over the pairs; the loss is their mean.": (
                lambda logps, beta: -F.logsigmoid(_margin(_frozen(logps), beta)).sum()
            ),
            "the logarithm is missing: this is minus the probability, not minus its logarithm.": (
                lambda logps, beta: -_margin(_frozen(logps), beta).sigmoid().mean()
            ),
            "the sigmoid is missing: the margin itself has no bound.": (
                lambda logps, beta: -_margin(_frozen(logps), beta).mean()
            ),
            "nearly: where the policy is sure and wrong the sigmoid rounds to 0, and its logarithm "
            "is infinite; use logsigmoid.": (
                lambda logps, beta: -_margin(_frozen(logps), beta).sigmoid().log().mean()
            ),
        },
        hint="chosen, rejected, ref_chosen, ref_rejected = logps; detach the last two; logsigmoid "
        "of beta times the difference of two differences.",
        gradient=True,
    ),
    "pair_weight": Exercise(
        task="pair_weight(chosen, rejected): implicit rewards (n,) of the chosen and the rejected "
        "answers; returns how strongly each pair pulls (n,), from 0 to 1: the size of the slope of "
        "its loss with respect to its margin.",
        reference=lambda chosen, rejected: expit(rejected - chosen),
        inputs=_weight_inputs,
        mistakes={
            "the wrong way round: a pair that is learned already must pull less.": (
                lambda chosen, rejected: expit(chosen - rejected)
            ),
            "this is the loss; its slope is wanted.": (
                lambda chosen, rejected: -log_expit(chosen - rejected)
            ),
            "this is the slope of the sigmoid; the loss has a logarithm, which changes it.": (
                lambda chosen, rejected: expit(chosen - rejected) * (1 - expit(chosen - rejected))
            ),
            "all or nothing: a pair in the right order pulls, too, as long as it is not sure.": (
                lambda chosen, rejected: (rejected > chosen) * 1.0
            ),
            "the weight has a minus: asked for is the size of the slope.": (
                lambda chosen, rejected: -expit(rejected - chosen)
            ),
            "this looks at the rejected answer alone; the margin counts.": (
                lambda chosen, rejected: expit(rejected)
            ),
        },
        hint="the derivative of -log sigmoid(m) is -(1 - sigmoid(m)) = -sigmoid(-m).",
    ),
}
