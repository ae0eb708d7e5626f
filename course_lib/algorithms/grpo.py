"""GRPO: write several answers to a prompt, and make those that beat their group likelier.

    L = - 1/N Σ_i 1/|y_i| Σ_t [min(ρ A_i, clip(ρ, 1 ± ε) A_i) - β k3],   A_i = (r_i - mean) / std

over the N answers of a step, with the mean and deviation of the answer's own group (the G answers
to its prompt), ρ = π/π_old, and k3 = π_ref/π - log(π_ref/π) - 1.

Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300; DeepSeek-R1, arXiv:2501.12948. The two
switches that Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783, ask for are `scale_rewards` and
`length_norm`.

There is no value model: a group's mean takes its place. Left out:
1. a clip that is wider upwards, and filling up of groups without signal (DAPO): these are skipped;
2. corrections for a sampler with other numbers than the training's: both are the same model here;
3. an entropy bonus, mixed precision, more than one device, resuming in the middle of a run.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import ArrayLike

from course_lib import CourseError
from course_lib.algorithms.chat import batches
from course_lib.algorithms.loop import Diverged, Update, endless, forward_tokens, restore, snapshot
from course_lib.algorithms.losses import Metrics, kl_estimates, masked_mean
from course_lib.algorithms.ppo import Rollout, SamplingConfig, Score, collect_rollout, forward


@dataclass
class GRPOConfig:
    """Settings of `train_grpo`; G is the `num_generations` of the sampling."""

    num_steps: int = 30  # iterations
    learning_rate: float = 2e-4  # of AdamW; about 1e-6 for models of a billion parameters
    num_epochs: int = 1  # passes over an iteration's answers
    minibatch_size: int = 256  # answers per optimiser step
    beta: float = 0.0  # weight of k3, reward per nat of KL(policy ‖ reference); 0 needs none
    cliprange: float = 0.2  # ε: the ratio π/π_old gains nothing beyond 1 ± ε
    scale_rewards: bool = True  # divide by the group's deviation; Dr. GRPO does not
    length_norm: bool = True  # mean over an answer's tokens; Dr. GRPO: sum over max_new_tokens
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    max_kl: float = 100.0  # nats per answer at which a run with a reference stops
    warmup: float = 0.1  # share of the iterations in which the rate rises from 0
    schedule: str = "constant"  # of the rate afterwards
    weight_decay: float = 0.0  # of AdamW


def group_advantages(scores: torch.Tensor, size: int, scale: bool = True) -> torch.Tensor:
    """(N,) scores, a group of `size` side by side, to (N,): less the group's mean, over its SD.

    A group of equal scores has advantages of 0. The deviation has size - 1 degrees of freedom, and
    1e-4 is added to it, as in TRL.
    """
    groups = scores.view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4) if scale else centred).flatten()


def grpo_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    cliprange: float = 0.2,
    beta: float = 0.0,
    length: int | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """The loss of N answers: logprobs and `mask` (N, C), advantages (N,).

    `length` None: the mean over each answer's tokens, then over answers. Else their sums over
    `length`, so that a token counts the same in a long answer. Metrics are means over the mask.
    """
    log_ratio = (logprobs - old_logprobs).where(mask, 0)
    ratio, advantages = log_ratio.exp(), advantages[:, None]
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange) * advantages
    objective = torch.minimum(ratio * advantages, clipped)
    _, k3 = kl_estimates(logprobs.where(mask, 0), ref_logprobs.where(mask, 0))
    per_token = (-objective + beta * k3).where(mask, 0)
    lengths = mask.sum(-1).clamp(min=1) if length is None else length
    with torch.no_grad():
        beyond = (clipped < ratio * advantages).float()
        metrics = {"clipfrac": masked_mean(beyond, mask), "kl_k3": masked_mean(k3, mask)}
    return (per_token.sum(-1) / lengths).mean(), metrics


def length_reward(lengths: ArrayLike, right: ArrayLike, size: int) -> np.ndarray:
    """Kimi k1.5's reward for short answers, (N,), by groups: λ if right, min(0, λ) if wrong.

    λ = .5 - (length - min) / (max - min), from .5 for a group's shortest answer to -.5 for its
    longest; 0 where all are as long. Source: Kimi Team 2025, arXiv:2501.12599, section 2.3.3.
    """
    groups = np.asarray(lengths, dtype=float).reshape(-1, size)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    share = 0.5 - (groups - low) / np.maximum(high - low, 1)
    share = np.where(high > low, share, 0).ravel()
    return np.where(right, share, np.minimum(0, share))


def grpo_step(
    policy: torch.nn.Module,
    rollout: Rollout,
    advantages: torch.Tensor,
    chosen: list[int],
    config: GRPOConfig,
    length: int | None = None,
    one_step: bool = False,
) -> tuple[torch.Tensor, Metrics]:
    """The loss of the `chosen` rows of a rollout; `advantages` (N,) of all, `length` as above.

    Where it is the one step on its rollout, the weights are those that wrote it: ρ = 1, and no
    forward pass before is needed to know the old log-probabilities.
    """
    mask = rollout.mask[chosen]
    logprobs, _ = forward(policy, None, [rollout.rows[i] for i in chosen], mask)
    old = logprobs.detach() if one_step else rollout.logprobs[chosen]
    both = old, rollout.ref_logprobs[chosen]
    limits = {"cliprange": config.cliprange, "beta": config.beta, "length": length}
    return grpo_loss(logprobs, *both, advantages[chosen], mask, **limits)


def train_grpo(
    policy: torch.nn.Module,
    reference: torch.nn.Module | None,
    prompts: Sequence[list[int]],
    score: Score,
    sampling: SamplingConfig,
    config: GRPOConfig,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train what requires gradients in the policy; a history row per iteration.

    Args:
        policy: in eval mode from here on: with dropout, the ratio would not start at 1.
        reference: the frozen policy that KL is measured from; None with beta 0.
        prompts: as ids; all are used before one comes again.
        score: the reward of N prompts and completions (ids), such as a verifier's verdict.

    A row shows the policy *before* the iteration's update: scores/mean, kl (nats per answer),
    entropy, completion_length, missing_eos, silent_groups (the share without signal, which are
    skipped), and of the update loss, clipfrac, kl_k3, grad_norm and seconds.

    Raises:
        Diverged: a score, loss or gradient is not finite, or KL is beyond `max_kl`; the weights
            are then the last ones whose answers were fine.
    """
    if not prompts or (reference is None and config.beta) or sampling.num_generations < 2:
        raise CourseError(
            f"GRPO has {len(prompts)} prompts, groups of {sampling.num_generations}, beta="
            f"{config.beta:g} and {'a' if reference else 'no'} reference; expected a prompt or "
            "more, groups of two or more, and a reference where beta is not 0; pass what lacks."
        )
    policy.eval()
    update, rng = (
        Update(policy.parameters(), config.num_steps, config),
        random.Random(sampling.seed),
    )
    next_prompts = (prompts[i] for i in endless(len(prompts), rng))
    history, good, size = [], None, sampling.num_generations
    length = None if config.length_norm else sampling.max_new_tokens
    one_step = config.num_epochs == 1 and sampling.num_prompts * size <= config.minibatch_size
    for step in range(1, config.num_steps + 1):
        start = time.perf_counter()
        try:
            # 1. Collect the rollout.
            chosen = list(islice(next_prompts, sampling.num_prompts))
            seed = rng.getrandbits(32)
            given = policy, reference, None, chosen, score, sampling, seed
            rollout = collect_rollout(*given, read=not one_step)
            # 2. Compare each answer with its group; stop before a bad rollout is learned from.
            advantages = group_advantages(rollout.scores, size, config.scale_rewards)
            metrics = _rollout_metrics(rollout, advantages, size)
            _check(step, metrics, config)
            good = snapshot(update.weights)
            # 3. Update on the groups that have signal.
            groups = advantages.view(-1, size).abs().amax(1) > 1e-6
            rows = groups.repeat_interleave(size).nonzero()[:, 0].tolist()
            about = config, length, one_step, rng
            metrics |= _update(policy, update, step, rollout, advantages, rows, *about)
        except CourseError:
            restore(update.weights, good)
            raise
        # 4. Record.
        history.append({"step": step, **metrics, "seconds": time.perf_counter() - start})
        if progress:
            progress(history[-1])
    return history


def _update(
    policy, update, step, rollout, advantages, rows, config, length, one_step, rng
) -> dict[str, float]:
    """The epochs of minibatch steps on the rows with signal; means over the steps."""
    totals, num_steps = defaultdict(float), 0
    for _ in range(config.num_epochs):
        rng.shuffle(rows)
        for first in range(0, len(rows), config.minibatch_size):
            chosen = rows[first : first + config.minibatch_size]
            found = defaultdict(float)
            like = [rollout.rows[i] for i in chosen]
            for group in batches(like, tokens_per_batch=forward_tokens(policy)):
                part = [chosen[i] for i in group]
                given = rollout, advantages, part, config, length, one_step
                loss, metrics = grpo_step(policy, *given)
                share = len(part) / len(chosen)
                (loss * share).backward()
                for name, value in {"loss": loss.detach(), **metrics}.items():
                    found[name] += share * float(value)
            found |= update(step, found["loss"])
            num_steps += 1
            for name, value in found.items():
                totals[name] += value
    return {name: total / num_steps for name, total in totals.items()} or {"loss": 0.0}


def _rollout_metrics(rollout: Rollout, advantages: torch.Tensor, size: int) -> dict[str, float]:
    mask = rollout.mask
    k1, _ = kl_estimates(rollout.logprobs, rollout.ref_logprobs)
    silent = advantages.view(-1, size).abs().amax(1) <= 1e-6
    metrics = {
        "scores/mean": rollout.scores.mean(),
        "kl": k1.where(mask, 0).sum(-1).mean(),
        "entropy": -masked_mean(rollout.logprobs, mask),
        "completion_length": mask.sum(-1).float().mean(),
        "missing_eos": rollout.missing_eos.float().mean(),
        "silent_groups": silent.float().mean(),
    }
    metrics = {name: float(value) for name, value in metrics.items()}
    return metrics | {"num_tokens": int(mask.sum())} | rollout.metrics


def _check(step: int, metrics: dict[str, float], config: GRPOConfig) -> None:
    """Raise where the scores are not finite or KL has exploded."""
    for name, limit in (("scores/mean", float("inf")), ("kl", config.max_kl)):
        if not abs(metrics[name]) < limit:
            raise Diverged(
                f"{name} is {metrics[name]:.4g} in iteration {step}; expected a finite number "
                f"below {limit:g}; the weights are back at their last good values; lower "
                f"learning_rate (now {config.learning_rate:g}) or mend the score."
            )
