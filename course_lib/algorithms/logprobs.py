"""Log-probabilities of tokens under a model. The only place where a loop's ids shift by one.

The output at position t predicts the token at t + 1. So all functions here take ids and masks of
length T and return T - 1 columns: column t belongs to the token `input_ids[:, t + 1]`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from course_lib import CourseError
from course_lib.algorithms import ARCHITECTURES

# Numbers in one block of logits (1 GB in fp32); beyond it, blocks are recomputed.
MAX_LOGITS = 2**28


def backbone_and_head(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The transformer without its language-model head, and the head; LoRA stays in place."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.base_model, model.get_output_embeddings()


def hidden_states(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Last hidden states (B, T, H) of `input_ids` (B, T), padded on either side.

    `attention_mask` is (B, T), 1 on tokens, or None for right padding or no padding at all. Under
    causal attention no token sees a pad to its right, so right padding needs no mask, and attention
    takes its fast path. Left padding needs the mask, and positions that start at the first token.
    """
    backbone, _ = backbone_and_head(model)
    left = {}
    if attention_mask is not None and not attention_mask[:, 0].all():
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        left = {"attention_mask": attention_mask, "position_ids": position_ids}
    return backbone(input_ids=input_ids, use_cache=False, **left).last_hidden_state


def check_architecture(config: Any) -> None:
    """Raise a CourseError for models whose layers `generate` and `last_states` do not write out."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if config.model_type not in ARCHITECTURES or slides:
        raise CourseError(
            f"The model {config.name_or_path!r} is of type {config.model_type!r}"
            f"{' with sliding-window attention' if slides else ''}; expected one of "
            f"{', '.join(ARCHITECTURES)} with full attention, such as SmolLM2 or Qwen3."
        )


def last_states(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The last token's hidden state (B, H) of each right-padded row: `hidden_states`, for less.

    Nothing reads what the last layer makes of the other tokens, so of these it computes keys and
    values only: an eighth less work in a model of seven layers, a fifth less in one of four.

    Raises:
        CourseError: with attention "eager", which does not mask the future by itself.
    """
    backbone, _ = backbone_and_head(model)
    if backbone.config._attn_implementation == "eager":
        raise CourseError(
            f"The model {backbone.config.name_or_path!r} has attention 'eager', which sees the "
            "future here; expected 'sdpa'; load it with attn_implementation=\"sdpa\"."
        )
    last = attention_mask.sum(-1) - 1
    rows = torch.arange(len(last), device=last.device)
    hidden = backbone.embed_tokens(input_ids)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    cos, sin = backbone.rotary_emb(hidden, position_ids=positions)
    *below, layer = backbone.layers
    for each in below:
        hidden = each(hidden, position_ids=positions, position_embeddings=(cos, sin))

    def heads(states: torch.Tensor, norm: str) -> torch.Tensor:
        """(..., heads * dim) to (..., heads, dim); Qwen3 has a norm for each head."""
        split = states.unflatten(-1, (-1, attention.head_dim))
        return getattr(attention, norm)(split) if hasattr(attention, norm) else split

    def rotate(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        left, right = states.chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return states * cos[0, places, None] + turned * sin[0, places, None]

    attention = layer.self_attn
    states, hidden = layer.input_layernorm(hidden), hidden[rows, last]
    query = rotate(heads(attention.q_proj(states[rows, last]), "q_norm"), last)  # (B, heads, dim)
    key = rotate(
        heads(attention.k_proj(states), "k_norm"), positions[0]
    )  # (B, T, fewer heads, dim)
    value = heads(attention.v_proj(states), "no norm")
    query = query.unflatten(1, (key.shape[2], -1))  # grouped: several queries share a key
    scores = torch.einsum("bkgd,btkd->bkgt", query * attention.scaling, key)
    unseen = positions > last[:, None]
    scores = scores.masked_fill(unseen[:, None, None], float("-inf"))
    mixed = torch.einsum("bkgt,btkd->bkgd", scores.float().softmax(-1).to(value.dtype), value)
    hidden = hidden + attention.o_proj(mixed.flatten(1))
    return backbone.norm(hidden + layer.mlp(layer.post_attention_layernorm(hidden)))


def shift_mask(mask: torch.Tensor) -> torch.Tensor:
    """(B, T) mask of tokens to the (B, T - 1) mask of their predictions. Token 0 has none."""
    return mask[:, 1:].bool()


def token_logprobs(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Log-probability in nats of each token given those before it: (B, T) ids to (B, T - 1).

    Args:
        model: a causal language model of transformers, with or without LoRA.
        input_ids: (B, T) tokens.
        attention_mask: (B, T), 1 on tokens, 0 on pads; None for right padding.
        mask: (B, T), 1 on the tokens whose log-probability is wanted. The others are 0 in the
            result and cost no logits: the head is the larger half of a small model's work.
        temperature: the logits are divided by it, as the sampler does.
    """
    states = next_token_states(model, input_ids, attention_mask)
    return state_logprobs(model, states, input_ids, mask, temperature)


def next_token_states(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The state (B, T - 1, H) that each token is predicted from; `model` may have no head."""
    return hidden_states(model, input_ids, attention_mask)[:, :-1]


def state_logprobs(
    model: torch.nn.Module,
    states: torch.Tensor,
    input_ids: torch.Tensor,
    mask: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`token_logprobs` from the `next_token_states`, where these are needed for more than that."""
    wanted = shift_mask(torch.ones_like(input_ids) if mask is None else mask)  # (B, T - 1)
    logprobs = _head_logprobs(model, states[wanted], input_ids[:, 1:][wanted], temperature)
    return logprobs.new_zeros(wanted.shape).masked_scatter(wanted, logprobs)


def _head_logprobs(
    model: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """(N, H) states and (N,) next tokens to (N,) log-probabilities, in fp32."""
    _, head = backbone_and_head(model)

    def block(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        return -F.cross_entropy(logits, targets, reduction="none")

    rows = max(1, MAX_LOGITS // head.weight.shape[0])
    if len(targets) <= rows:
        return block(hidden, targets)
    blocks = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(block, h, t, use_reentrant=False) for h, t in blocks])


def sequence_logps(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probability of each sequence: the *sum* over its masked tokens, (B, T - 1) to (B,)."""
    return logprobs.where(mask.bool(), 0).sum(-1)  # not a product: 0 * inf is not 0
