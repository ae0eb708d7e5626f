"""Exercises of notebook 04: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import torch

from course_lib.algorithms.losses import clipped_policy_loss, gae, kl_estimates, token_rewards
from course_lib.algorithms.search import best_of_n
from course_lib.exercises.exercise import Exercise

Tensor = torch.Tensor


def _all(x: Tensor) -> Tensor:
    """The mask (1, C) of one answer (1, C) without pads."""
    return torch.ones_like(x, dtype=torch.bool)


def _floats(rng, n: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.tensor(scale * rng.normal(size=n) + shift, dtype=torch.float32)


def _logs(rng, n: int) -> Tensor:
    """Log-probabilities (n,)."""
    return torch.tensor(rng.uniform(0.05, 0.95, size=n), dtype=torch.float32).log()


# ---- rewards of the tokens ---------------------------------------------------------------------


def _rewards(score: float, logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    rows = logprobs[None], ref_logprobs[None]
    return token_rewards(torch.tensor([score]), *rows, _all(rows[0]), beta)[0]


def _reward_inputs(rng) -> list[tuple[str, tuple]]:
    same = _logs(rng, 3)
    return [
        ("random", (0.7, _logs(rng, 6), _logs(rng, 6), 0.2)),
        ("policy and reference agree", (1.3, same, same.clone(), 0.5)),
        ("one token", (-0.4, _logs(rng, 1), _logs(rng, 1), 0.1)),
        ("no penalty", (2.0, _logs(rng, 4), _logs(rng, 4), 0.0)),
        ("a bad answer", (-3.0, _logs(rng, 5), _logs(rng, 5), 1.0)),
    ]


def _with_score_at(place: int, score: float, logprobs: Tensor, ref: Tensor, beta: float) -> Tensor:
    out = _rewards(0.0, logprobs, ref, beta)
    out[place] += score
    return out


def _k3_rewards(score: float, logprobs: Tensor, ref: Tensor, beta: float) -> Tensor:
    out = -beta * kl_estimates(logprobs, ref)[1]
    out[-1] += score
    return out


# ---- advantages --------------------------------------------------------------------------------


def _gae(rewards: Tensor, values: Tensor, lam: float, gamma: float = 1.0) -> Tensor:
    return gae(rewards[None], values[None], _all(rewards[None]), gamma, lam)[0][0]


def _gae_inputs(rng) -> list[tuple[str, tuple]]:
    return [
        ("random", (_floats(rng, 6), _floats(rng, 6), 0.95)),
        ("lam = 1", (_floats(rng, 4), _floats(rng, 4), 1.0)),
        ("lam = 0", (_floats(rng, 4), _floats(rng, 4), 0.0)),
        ("one token", (_floats(rng, 1), _floats(rng, 1), 0.9)),
        ("the score at the end", (torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3), 0.5)),
        ("values that are right", (torch.tensor([0.0, 0.0, 1.0]), torch.ones(3), 0.5)),
    ]


def _forward_gae(rewards: Tensor, values: Tensor, lam: float) -> Tensor:
    """The recursion run from the first token to the last."""
    delta = _gae(rewards, values, 0.0)
    carry, out = torch.tensor(0.0), []
    for each in delta:
        carry = each + lam * carry
        out.append(carry)
    return torch.stack(out)


def _endless_values(rewards: Tensor, values: Tensor, lam: float) -> Tensor:
    """Behind the last token the last value goes on, although nothing is left to come."""
    rewards = rewards.clone()
    rewards[-1] += values[-1]
    return _gae(rewards, values, lam)


# ---- the clipped loss --------------------------------------------------------------------------


def _clipped(logprobs: Tensor, old: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    rows = logprobs[None], old[None], advantages[None]
    return clipped_policy_loss(*rows, _all(rows[1]), cliprange)[0]


def _clip_inputs(rng) -> list[tuple[str, tuple]]:
    def case(old: list[float], ratio: list[float], advantages: list[float]) -> tuple:
        old = torch.tensor(old).log()
        return old + torch.tensor(ratio).log(), old, torch.tensor(advantages), 0.2

    equal = _logs(rng, 5)
    return [
        ("random", (_logs(rng, 7), _logs(rng, 7), _floats(rng, 7), 0.2)),
        ("before the first step", (equal, equal.clone(), _floats(rng, 5), 0.2)),
        ("good, and far too likely", case([0.2, 0.5], [2.0, 1.5], [1.0, 0.5])),
        ("bad, and already less likely", case([0.5, 0.4], [0.5, 0.7], [-1.0, -2.0])),
        ("good, but less likely", case([0.5, 0.4], [0.5, 0.6], [1.0, 2.0])),
        ("bad, but more likely", case([0.3, 0.4], [2.0, 1.4], [-1.0, -0.3])),
    ]


def _parts(logprobs: Tensor, old: Tensor, advantages: Tensor, cliprange: float):
    ratio = (logprobs - old).exp()
    return ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages


# ---- best of n ---------------------------------------------------------------------------------


def _pool_inputs(rng) -> list[tuple[str, tuple]]:
    proxy, values = rng.normal(size=8), rng.normal(size=8)
    return [
        ("random", (proxy, values, 3)),
        ("one of the pool", (proxy, values, 1)),
        ("the whole pool", (proxy, values, 8)),
        ("the score is the truth", (proxy, proxy, 2)),
        ("the score is wrong", (proxy, -proxy, 4)),
    ]


EXERCISES: dict[str, Exercise] = {
    "token_rewards": Exercise(
        task="token_rewards(score, logprobs, ref_logprobs, beta): the score of one answer, and the "
        "log-probabilities (C,) of its tokens under policy and reference; returns the reward of "
        "each token (C,).",
        reference=_rewards,
        inputs=_reward_inputs,
        mistakes={
            "the sign of the penalty is flipped: the policy would be paid for moving away.": (
                lambda score, new, ref, beta: _rewards(score, new, ref, -beta)
            ),
            "the score stands at every token; the answer has it once, at the last one.": (
                lambda score, new, ref, beta: _rewards(0.0, new, ref, beta) + score
            ),
            "the score stands at the first token; the reward model speaks when the answer is "
            "complete.": lambda *given: _with_score_at(0, *given),
            "the score is missing.": lambda score, *given: _rewards(0.0, *given),
            "beta is left out.": lambda score, new, ref, beta: _rewards(score, new, ref, 1.0),
            "beta multiplies the score, too; it is the price of the KL alone.": (
                lambda score, new, ref, beta: beta * _rewards(score, new, ref, 1.0)
            ),
            "this takes probabilities, not their logarithms.": (
                lambda score, new, ref, beta: _rewards(score, new.exp(), ref.exp(), beta)
            ),
            "this is the estimate k3, which is never negative; the reward has the plain "
            "log-ratio.": _k3_rewards,
        },
        hint="-beta * (logprobs - ref_logprobs), and the score is added at the last place.",
    ),
    "gae": Exercise(
        task="gae(rewards, values, lam): rewards (C,) of the tokens of one answer and values (C,) "
        "of the states before them; returns the advantages (C,). No discount.",
        reference=_gae,
        inputs=_gae_inputs,
        mistakes={
            "this is the surprise of each token alone; add lam times the advantage behind it.": (
                lambda rewards, values, lam: _gae(rewards, values, 0.0)
            ),
            "lam is left out: this is the whole reward to come, less the value.": (
                lambda rewards, values, lam: _gae(rewards, values, 1.0)
            ),
            "this runs from the first token to the last; a token answers for what comes after.": (
                _forward_gae
            ),
            "behind the last token the value is 0: nothing is left to come.": _endless_values,
            "the values are left out: then an advantage is not better or worse than expected.": (
                lambda rewards, values, lam: _gae(rewards, torch.zeros_like(values), lam)
            ),
            "this is the return, the advantage plus the value; the advantage was asked for.": (
                lambda rewards, values, lam: _gae(rewards, values, lam) + values
            ),
            "lam discounts the next value, too; it belongs to the next advantage alone.": (
                lambda rewards, values, lam: _gae(rewards, values, 1.0, lam)
            ),
        },
        hint="delta = rewards + next values - values; then from the end: A = delta + lam * A.",
    ),
    "clipped_loss": Exercise(
        task="clipped_loss(logprobs, old_logprobs, advantages, cliprange): all (C,); returns PPO's "
        "loss, the mean over the tokens, a tensor.",
        reference=_clipped,
        inputs=_clip_inputs,
        mistakes={
            "the minus is missing: a loss falls as good tokens become likelier.": (
                lambda *given: -_clipped(*given)
            ),
            "nothing is clipped here.": lambda *given: -_parts(*given)[0].mean(),
            "only the clipped part is used: a token that went the wrong way could never come "
            "back.": lambda *given: -_parts(*given)[1].mean(),
            "the larger of the two is taken; PPO takes the smaller, the more careful one.": (
                lambda *given: -torch.maximum(*_parts(*given)).mean()
            ),
            "the ratio is upside down: new over old.": (
                lambda new, old, *given: _clipped(2 * old - new, old, *given)
            ),
            "the ratio is a difference of logarithms here; take its exponential.": (
                lambda new, old, advantages, cliprange: (
                    -torch.minimum(
                        (new - old) * advantages,
                        (new - old).clamp(1 - cliprange, 1 + cliprange) * advantages,
                    ).mean()
                )
            ),
            "this is the sum over the tokens; the mean was asked for.": (
                lambda *given: -torch.minimum(*_parts(*given)).sum()
            ),
        },
        hint="ratio = (logprobs - old_logprobs).exp(); the smaller of ratio * A and clipped * A.",
        gradient=True,
    ),
    "best_of_n": Exercise(
        task="best_of_n(proxy, values, n): scores (N,) that choose and values (N,) that count, no "
        "two scores equal; returns the mean, over all subsets of n of the N, of the value of the "
        "subset's best by score.",
        reference=lambda proxy, values, n: best_of_n(proxy, [n], values)[0],
        inputs=_pool_inputs,
        mistakes={
            "this is the best by value; the score chooses, and the value is what one gets.": (
                lambda proxy, values, n: best_of_n(values, [n])[0]
            ),
            "this is the chosen score; asked for is the value that comes with it.": (
                lambda proxy, values, n: best_of_n(proxy, [n])[0]
            ),
            "this takes the first n only; average over all subsets of the pool.": (
                lambda proxy, values, n: values[:n][proxy[:n].argmax()]
            ),
            "this chooses from the whole pool, whatever n is.": (
                lambda proxy, values, n: values[proxy.argmax()]
            ),
            "this chooses the worst of each subset.": (
                lambda proxy, values, n: best_of_n(-proxy, [n], values)[0]
            ),
        },
        hint="itertools.combinations(range(N), n) gives the subsets; a pool of eight is small.",
    ),
}
