"""Pure losses: tensors in, `(loss, metrics)` out. No model, no files."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Metrics = dict[str, torch.Tensor]


def sft_loss(
    logprobs: torch.Tensor, mask: torch.Tensor, num_items: int | torch.Tensor | None = None
) -> tuple[torch.Tensor, Metrics]:
    """Negative log-likelihood per completion token: -(sum over mask of log p) / num_items.

    Args:
        logprobs: (B, T - 1) log-probabilities in nats, as from `token_logprobs`.
        mask: (B, T - 1), 1 on the tokens to learn, as from `shift_mask`.
        num_items: what to divide by; None for the tokens in `mask`. A batch that is worked off in
            parts passes the tokens of the *whole* batch, so that the parts add up to its loss.

    Returns:
        The loss, and the metrics "loss" (mean over this mask, whatever `num_items`) and
        "num_tokens", both detached.
    """
    num_tokens = mask.sum()
    total = -logprobs.where(mask.bool(), 0).sum()  # not a product: 0 * inf is not 0
    loss = total / (num_tokens.clamp(min=1) if num_items is None else num_items)
    mean = total.detach() / num_tokens.clamp(min=1)
    return loss, {"loss": mean, "num_tokens": num_tokens}


def rank_pairs(ranks: torch.Tensor) -> torch.Tensor:
    """(B, K) ranks, 1 the best, to `wins` (B, K, K): 1 where option i is ranked before option j.

    Equal ranks are a tie and make no pair; an option of rank NaN was not ranked and has no pair.
    """
    return (ranks[:, :, None] < ranks[:, None, :]).float()


def reward_loss(scores: torch.Tensor, wins: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
    """K-wise ranking loss: -1 / C(K, 2) * sum over pairs of log sigmoid(r_w - r_l), by prompt.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, equation 1; K = 2 is Bradley and
    Terry's pairwise loss. With ties or a partial ranking, C(K, 2) is the number of known pairs.

    Args:
        scores: (B, K) of K answers to each of B prompts, each encoded once.
        wins: (B, K, K), 1 where answer i was preferred to j, as from `rank_pairs`; fractions are
            shares of labellers. Prompts weigh equally, however many pairs they have; a prompt
            without a pair (all tied) counts for nothing.

    Returns:
        The loss, and over pairs in the same weights: "accuracy" (equal scores are half right) and
        "margin" (r_w - r_l).
    """
    margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
    num_pairs = wins.sum((1, 2), keepdim=True)
    weights = wins / num_pairs.clamp(min=1e-9) / (num_pairs > 0).sum().clamp(min=1)
    loss = -(weights * F.logsigmoid(margins)).sum()
    margins = margins.detach()
    accuracy = (weights * (margins.sign() + 1) / 2).sum()
    return loss, {"accuracy": accuracy, "margin": (weights * margins).sum()}


def dpo_loss(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
    label_smoothing: float | torch.Tensor = 0.0,
) -> tuple[torch.Tensor, Metrics]:
    """DPO: -log sigmoid(beta * (log pi/pi_ref of chosen - log pi/pi_ref of rejected)), mean (B,).

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.

    Args:
        chosen_logps, rejected_logps, ref_*: (B,) *sums* of log-probabilities over the completion.
        beta: weight of the KL to the reference; part of the rewards.
        label_smoothing: probability that the label is wrong, one number (conservative DPO) or one
            per pair, (B,). With 1 - P(chosen preferred) it is the expected Bradley-Terry loss.

    Returns:
        The loss, and the means of "rewards/chosen", "rewards/rejected" (the implicit rewards
        beta * log pi/pi_ref), "rewards/margin", "rewards/accuracy" (equal rewards are half right),
        "logps/chosen", "logps/rejected".
    """
    chosen = beta * (chosen_logps - ref_chosen_logps)
    rejected = beta * (rejected_logps - ref_rejected_logps)
    margin = chosen - rejected
    wrong = label_smoothing
    loss = -((1 - wrong) * F.logsigmoid(margin) + wrong * F.logsigmoid(-margin)).mean()
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": margin,
        "rewards/accuracy": (margin.sign() + 1) / 2,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return loss, {key: value.detach().mean() for key, value in metrics.items()}


def masked_mean(
    x: torch.Tensor, mask: torch.Tensor, num_items: int | torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of `x` where `mask` is true (0 where nowhere), or its sum there over `num_items`."""
    return x.where(mask, 0).sum() / (mask.sum().clamp(min=1) if num_items is None else num_items)


def kl_estimates(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(policy ‖ reference) in nats from the policy's own samples, per token: `(k1, k3)`.

    k1 = log(π/π_ref) has either sign; k3 = π_ref/π - 1 + log(π/π_ref) is never negative. The mean
    of either over samples of π is the KL. Source: Schulman 2020, "Approximating KL divergence".
    """
    k1 = logprobs - ref_logprobs
    return k1, torch.expm1(-k1) + k1


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """r_t = -β log(π/π_ref) at each token, plus the score at the last: (N,) and (N, C) to (N, C).

    `mask` (N, C) bool is true on the completion. A row sums to score - β log(π(y)/π_ref(y)), whose
    mean under π is E[score] - β KL(π ‖ π_ref): moving away from the reference costs.
    Source: Ziegler et al. 2019, arXiv:1909.08593, equation 2; InstructGPT, equation 2.
    """
    k1, _ = kl_estimates(logprobs, ref_logprobs)
    last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
    return (-beta * k1 + last * scores[:, None]).where(mask, 0)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation: (N, C) rewards and values to (N, C) advantages, returns.

        δ_t = r_t + γ V_{t+1} - V_t,    A_t = δ_t + γλ A_{t+1},    returns = A + V

    V_t is the value of the state before token t; behind the last token both V and A are 0.
    Source: Schulman et al. 2016, arXiv:1506.02438, equation 16.
    """
    values = values.where(mask, 0)
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)  # V_{t+1}
    delta = (rewards + gamma * after - values).where(mask, 0)
    advantages, carry = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):  # over time; all rows at once
        carry = delta[:, t] + gamma * lam * carry
        advantages[:, t] = carry
    return advantages.where(mask, 0), (advantages + values).where(mask, 0)


def whiten(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` with mean 0 and standard deviation 1 where `mask` is true, and 0 elsewhere."""
    centred = x - masked_mean(x, mask)
    return (centred * (masked_mean(centred**2, mask) + 1e-8).rsqrt()).where(mask, 0)


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float = 0.2,
    num_items: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """-(sum over mask of min(ρA, clip(ρ, 1 ± ε) A)) / num_items, with ρ = π/π_old; all (B, C).

    `num_items` as in `sft_loss`. Metrics, means over this mask: "clipfrac" (the share of tokens
    beyond the clip, which get no gradient) and "approx_kl" (k3 of the old against the new policy).
    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    log_ratio = (logprobs - old_logprobs).where(mask, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    loss = -masked_mean(objective, mask, num_items)
    with torch.no_grad():
        beyond = clipped * advantages < ratio * advantages
        _, k3 = kl_estimates(torch.zeros_like(log_ratio), log_ratio)
        metrics = {
            "policy_loss": -masked_mean(objective, mask),
            "clipfrac": masked_mean(beyond.float(), mask),
            "approx_kl": masked_mean(k3, mask),
        }
    return loss, metrics


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    cliprange_value: float = 0.2,
    num_items: int | torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²), summed over mask, over num_items; all (B, C).

    The value, too, gains nothing by moving further than ε (in units of reward) from the old one.
    Source: the code of Ziegler et al. 2019 (`lm-human-preferences`).
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    error = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return masked_mean(error, mask, num_items), {"value_loss": masked_mean(error.detach(), mask)}
