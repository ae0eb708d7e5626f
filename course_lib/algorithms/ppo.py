"""RLHF with PPO: write answers, have them scored, make good ones likelier, stay near the reference.

    maximise  E_y~π [score(x, y) - β log(π(y|x) / π_ref(y|x))] + γ_ptx E_documents [log π]

Each iteration collects answers of the present policy, spreads their reward over the tokens with
GAE, and takes a few epochs of minibatch steps on the clipped loss
E[min(ρ A, clip(ρ, 1 ± ε) A)], where ρ = π / π_old.

Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, section 3.5; Schulman et al. 2017 (PPO),
arXiv:1707.06347.

Left out:
1. a discount: γ = 1, an answer is one short episode;
2. a value model that starts from the reward model (InstructGPT): see `ValueHead`;
3. whitening of rewards and scores: normalise the scores before, β is in their units;
4. an early stop of the epochs at a target KL, and an entropy bonus;
5. mixed precision, gradient checkpointing, more than one device, resuming in the middle of a run.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from course_lib import CourseError
from course_lib.algorithms.chat import Row, batches, collate
from course_lib.algorithms.logprobs import next_token_states, shift_mask, state_logprobs
from course_lib.algorithms.loop import (
    Diverged,
    endless,
    forward_tokens,
    not_finite,
    restore,
    snapshot,
    to_device,
)
from course_lib.algorithms.losses import (
    Metrics,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_estimates,
    masked_mean,
    token_rewards,
    whiten,
)
from course_lib.algorithms.sampling import generate
from course_lib.algorithms.sft import sft_step

# prompts and completions as lists of ids, N each -> (N,) scores
Score = Callable[[list[list[int]], list[list[int]]], torch.Tensor]
PTX_ROWS = 8  # documents in an optimiser step
WARMUP_STEPS = 3  # iterations in which the rate rises, for Adam's first steps are its widest


@dataclass
class SamplingConfig:
    """What an iteration writes; always at temperature 1, where π is what the losses say it is."""

    eos_ids: list[int]  # they end a completion, as from `chat.stop_ids`
    num_prompts: int = 64  # per iteration
    num_generations: int = 2  # completions per prompt
    max_new_tokens: int = 96  # tokens of a completion, at most
    seed: int = 0  # of the prompts' order, the draws and the minibatches


@dataclass
class PPOConfig:
    """Settings of `train_ppo`."""

    num_steps: int = 30  # iterations
    learning_rate: float = 2e-4  # of AdamW; about 1e-6 for models of a billion parameters
    num_epochs: int = 2  # passes over an iteration's completions
    minibatch_size: int = 32  # completions per optimiser step
    beta: float = 0.05  # units of score per nat of KL(policy ‖ reference)
    lam: float = 0.95  # GAE: 1 is the return minus the value, 0 trusts the next value
    whiten_advantages: bool = True  # mean 0, deviation 1 over the iteration's tokens
    cliprange: float = 0.2  # ε: the ratio π/π_old gains nothing beyond 1 ± ε
    cliprange_value: float = 0.2  # the same for the values, in units of score
    vf_coef: float = 0.1  # weight of the value loss
    ptx_coef: float = 0.0  # γ_ptx: weight of the next-token loss on documents ("PPO-ptx")
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    max_kl: float = 100.0  # nats per completion at which the run stops


@dataclass
class Rollout:
    """Completions of one iteration, N rows by C columns (those of a prompt side by side)."""

    rows: list[Row]  # prompt and completion, for the forward passes
    mask: torch.Tensor  # (N, C) bool, true up to the first EOS, which is included
    scores: torch.Tensor  # (N,), raw
    missing_eos: torch.Tensor  # (N,) bool, true where the completion was cut
    logprobs: torch.Tensor  # (N, C) of the policy that wrote them, by the training forward
    ref_logprobs: torch.Tensor  # (N, C)
    values: torch.Tensor  # (N, C), of the state before each token
    metrics: dict[str, float]  # seconds of the phases, and how far off the sampler's logprobs are
    rewards: torch.Tensor | None = None  # (N, C), and so are the next two: `compute_advantages`
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None


class ValueHead(torch.nn.Module):
    """The expected reward from a state on: a linear layer, zero at first, on hidden states.

    It reads the policy's own states, detached: one forward pass serves both, and no error of the
    values can move the policy. A value model of its own would learn better features, for twice the
    memory and compute.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The policy's states (B, T - 1, H) to values (B, T - 1), in fp32."""
        return self.linear(states.detach().to(self.linear.weight.dtype))[..., 0].float()


def forward(
    policy: torch.nn.Module, value: ValueHead | None, rows: Sequence[Row], mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and values (B, C) of the completions of `rows`, whose mask is (B, C)."""
    batch = to_device(collate(rows, 0), policy)
    input_ids, completion_mask = batch["input_ids"], batch["completion_mask"]
    states = next_token_states(policy, input_ids)  # (B, T - 1, H)
    logprobs = state_logprobs(policy, states, input_ids, completion_mask)
    values = torch.zeros_like(logprobs) if value is None else value(states)
    wanted = shift_mask(completion_mask)  # the same tokens in the same order as in `mask`
    columns = (x.new_zeros(mask.shape).masked_scatter(mask, x[wanted]) for x in (logprobs, values))
    return tuple(columns)


@torch.no_grad()
def collect_rollout(
    policy: torch.nn.Module,
    reference: torch.nn.Module | None,
    value: ValueHead | None,
    prompts: Sequence[list[int]],
    score: Score,
    sampling: SamplingConfig,
    seed: int = 0,
    read: bool = True,
) -> Rollout:
    """Write completions of `prompts`, and have them scored and read by policy and reference.

    The policy's log-probabilities are those of the training forward, not the sampler's: the ratio
    is then 1 before the first update. `read` False leaves the sampler's, for a loss that takes its
    own. `value` None is for GRPO, or a rollout that is only looked at; where `reference` is None,
    the policy stands in for it.
    """
    start = time.perf_counter()
    out = generate(
        policy,
        list(prompts),
        max_new_tokens=sampling.max_new_tokens,
        eos_ids=sampling.eos_ids,
        pad_id=0,  # never read: the masks come from the sampler
        num_generations=sampling.num_generations,
        seed=seed,
    )
    sampled = time.perf_counter()
    prompts = [prompt for prompt in prompts for _ in range(sampling.num_generations)]
    completions = out.lists
    rows = [
        {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)}
        for p, c in zip(prompts, completions, strict=True)
    ]
    mask = out.completion_mask.clone()  # a tensor of inference mode cannot be trained on
    missing_eos = torch.tensor([c[-1] not in sampling.eos_ids for c in completions]).to(mask.device)
    scores = torch.as_tensor(score(prompts, completions), device=policy.device).float()
    if scores.shape != (len(rows),):
        raise CourseError(
            f"The scores have the shape {tuple(scores.shape)}; expected one number for each of the "
            f"{len(rows)} completions, ({len(rows)},); mend the score function."
        )
    logprobs, values = out.logprobs.clone(), torch.zeros(mask.shape, device=policy.device)
    ref_logprobs = logprobs.clone()
    for group in batches(rows, tokens_per_batch=forward_tokens(policy)):
        some = [rows[i] for i in group]
        if read:
            logprobs[group], values[group] = forward(policy, value, some, mask[group])
            ref_logprobs[group] = logprobs[group]
        if reference is not None:
            ref_logprobs[group], _ = forward(reference, None, some, mask[group])
    metrics = {
        "sampler_gap": float((logprobs - out.logprobs).abs().max()),
        "seconds/sampling": sampled - start,
        "seconds/scoring": time.perf_counter() - sampled,
    }
    return Rollout(rows, mask, scores, missing_eos, logprobs, ref_logprobs, values, metrics)


def compute_advantages(rollout: Rollout, config: PPOConfig) -> None:
    """Fill in rewards, advantages and returns."""
    mask = rollout.mask
    logprobs, ref_logprobs = rollout.logprobs, rollout.ref_logprobs
    rollout.rewards = token_rewards(rollout.scores, logprobs, ref_logprobs, mask, config.beta)
    advantages, rollout.returns = gae(rollout.rewards, rollout.values, mask, lam=config.lam)
    rollout.advantages = whiten(advantages, mask) if config.whiten_advantages else advantages


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """What the iteration wrote; `kl` is KL(policy ‖ reference) in nats per completion.

    scores/mean, scores/std (raw), rewards (per completion, after the KL penalty), kl and kl_k3 (two
    estimates of the same), entropy (nats per token: the mean of -log π over π's own samples is an
    unbiased estimate), explained_variance (of the returns, by the values), completion_length,
    missing_eos (share), num_tokens (sampled), and `rollout.metrics`.
    """
    mask, returns = rollout.mask, rollout.returns
    k1, k3 = kl_estimates(rollout.logprobs, rollout.ref_logprobs)
    unexplained = (returns - rollout.values)[mask].var(correction=0)
    variance = returns[mask].var(correction=0).clamp(min=1e-8)
    metrics = {
        "scores/mean": rollout.scores.mean(),
        "scores/std": rollout.scores.std(correction=0),
        "rewards": rollout.rewards.sum(-1).mean(),
        "kl": k1.where(mask, 0).sum(-1).mean(),
        "kl_k3": k3.where(mask, 0).sum(-1).mean(),
        "entropy": -masked_mean(rollout.logprobs, mask),
        "explained_variance": 1 - unexplained / variance,
        "completion_length": mask.sum(-1).float().mean(),
        "missing_eos": rollout.missing_eos.float().mean(),
    }
    metrics = {name: float(tensor) for name, tensor in metrics.items()}
    return metrics | {"num_tokens": int(mask.sum())} | rollout.metrics


def ppo_step(
    policy: torch.nn.Module,
    value: ValueHead,
    rollout: Rollout,
    chosen: list[int],
    config: PPOConfig,
    num_items: int | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Policy loss + vf_coef * value loss of the `chosen` rows; `num_items` as in `sft_loss`."""
    mask = rollout.mask[chosen]
    logprobs, values = forward(policy, value, [rollout.rows[i] for i in chosen], mask)
    old_logprobs, advantages = rollout.logprobs[chosen], rollout.advantages[chosen]
    loss, metrics = clipped_policy_loss(
        logprobs, old_logprobs, advantages, mask, config.cliprange, num_items
    )
    old_values, returns = rollout.values[chosen], rollout.returns[chosen]
    value_loss, more = clipped_value_loss(
        values, old_values, returns, mask, config.cliprange_value, num_items
    )
    return loss + config.vf_coef * value_loss, metrics | more


def update_policy(
    policy: torch.nn.Module,
    value: ValueHead,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    config: PPOConfig,
    rng: random.Random,
    documents: Iterator[Row] | None = None,
) -> dict[str, float]:
    """The epochs of minibatch steps on one rollout; metrics are means over the steps.

    Raises:
        CourseError: a loss, a gradient, or what the weights say in the end is not finite.
    """
    start, totals, num_steps = time.perf_counter(), defaultdict(float), 0
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    order = list(range(len(rollout.rows)))
    for _ in range(config.num_epochs):
        rng.shuffle(order)
        for first in range(0, len(order), config.minibatch_size):
            # 1. The gradient of a minibatch, in forward passes of rows of like length.
            chosen = order[first : first + config.minibatch_size]
            metrics = _backward(policy, value, rollout, chosen, config)
            if config.ptx_coef:
                batch = to_device(collate(list(islice(documents, PTX_ROWS)), 0), policy)
                ptx_loss, more = sft_step(policy, batch)
                (config.ptx_coef * ptx_loss).backward()
                metrics["ptx_loss"] = float(more["loss"])
            # 2. Stop before a bad step is taken.
            norm = torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
            metrics["grad_norm"], num_steps = float(norm), num_steps + 1
            if not all(map(math.isfinite, metrics.values())):
                raise not_finite(num_steps, metrics["loss"], float(norm), config.learning_rate)
            # 3. Update and record.
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for name, number in metrics.items():
                totals[name] += number
    with torch.no_grad():  # nothing has read the weights of the last step yet
        logprobs, values = forward(policy, value, rollout.rows[:1], rollout.mask[:1])
    if not (logprobs.isfinite().all() and values.isfinite().all()):
        raise not_finite(num_steps, math.nan, math.nan, config.learning_rate)
    means = {name: total / num_steps for name, total in totals.items()}
    return means | {"seconds/update": time.perf_counter() - start}


def _backward(policy, value, rollout, chosen, config) -> dict[str, float]:
    """Add the gradient of the chosen rows' mean token loss; return the means over their tokens."""
    num_items = int(rollout.mask[chosen].sum())
    groups = batches([rollout.rows[i] for i in chosen], tokens_per_batch=forward_tokens(policy))
    totals = defaultdict(float)
    for group in groups:
        part = [chosen[i] for i in group]
        loss, metrics = ppo_step(policy, value, rollout, part, config, num_items)
        loss.backward()
        share = rollout.mask[part].sum() / num_items
        totals["loss"] += loss.detach()
        for name, mean in metrics.items():
            totals[name] += share * mean
    return {name: float(total) for name, total in totals.items()}


def train_ppo(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    value: ValueHead,
    prompts: Sequence[list[int]],
    score: Score,
    sampling: SamplingConfig,
    config: PPOConfig,
    *,
    documents: Sequence[Row] = (),
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train what requires gradients in policy and value; a history row per iteration.

    Args:
        policy: in eval mode from here on: with dropout, the ratio would not start at 1.
        reference: the frozen policy that KL is measured from, as from `frozen_copy`.
        prompts: as from `render_prompt`; all are used before one comes again.
        score: any function of N prompts and completions (ids), such as a reward model.
        documents: rows for the pretraining term, as from `render_text`.

    A row has step, and what `rollout_metrics` and `update_policy` return. Its rollout was
    written *before* its update: row 1 shows the policy as it came.

    Raises:
        Diverged: a score, loss or gradient is not finite, or KL is beyond `max_kl`; the weights
            are then the last ones whose completions were fine. (Nothing is written after the last
            update, so only its numbers are looked at, and not its KL.)
    """
    if not prompts or (config.ptx_coef and not documents):
        raise CourseError(
            f"PPO has {len(prompts)} prompts and, for ptx_coef={config.ptx_coef:g}, "
            f"{len(documents)} documents; expected at least one of each; pass some."
        )
    policy.eval()
    weights = [p for m in (policy, value) for p in m.parameters() if p.requires_grad]
    fused = policy.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=fused)
    rng, history, good = random.Random(sampling.seed), [], None
    next_prompts = (prompts[i] for i in endless(len(prompts), rng))
    next_documents = (documents[i] for i in endless(len(documents), rng))
    for step in range(1, config.num_steps + 1):
        try:
            # 1. Collect the rollout.
            chosen = list(islice(next_prompts, sampling.num_prompts))
            seed = rng.getrandbits(32)
            rollout = collect_rollout(policy, reference, value, chosen, score, sampling, seed)
            # 2. Compute advantages; stop before a bad rollout is learned from.
            compute_advantages(rollout, config)
            metrics = rollout_metrics(rollout)
            _check(step, metrics, config)
            good = snapshot(weights)
            # 3. Update.
            optimizer.param_groups[0]["lr"] = config.learning_rate * min(1, step / WARMUP_STEPS)
            metrics |= update_policy(policy, value, optimizer, rollout, config, rng, next_documents)
        except CourseError:
            restore(weights, good)
            raise
        # 4. Record.
        history.append({"step": step, **metrics})
        if progress:
            progress(history[-1])
    return history


def _check(step: int, metrics: dict[str, float], config: PPOConfig) -> None:
    """Raise where the scores are not finite or KL has exploded."""
    for name, limit in (("scores/mean", math.inf), ("kl", config.max_kl)):
        if not abs(metrics[name]) < limit:
            raise Diverged(
                f"{name} is {metrics[name]:.4g} in iteration {step}; expected a finite number "
                f"below {limit:g}; the weights are back at their last good values; raise beta (now "
                f"{config.beta:g}), lower learning_rate (now {config.learning_rate:g}) or mend the "
                "score."
            )
