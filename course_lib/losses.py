"""Pure losses: tensors in, `(loss, metrics)` out. No model, no files."""

from __future__ import annotations

import torch

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


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `x` where `mask` is true (0 where nowhere)."""
    return x.where(mask, 0).sum() / mask.sum().clamp(min=1)


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
    objective = torch.minimum(ratio * advantages, clipped * advantages).where(mask, 0)
    loss = -objective.sum() / (mask.sum().clamp(min=1) if num_items is None else num_items)
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
    error = 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).where(mask, 0)
    loss = error.sum() / (mask.sum().clamp(min=1) if num_items is None else num_items)
    return loss, {"value_loss": masked_mean(error.detach(), mask)}
