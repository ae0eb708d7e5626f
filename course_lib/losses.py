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
