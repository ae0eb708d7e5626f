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
