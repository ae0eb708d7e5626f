"""Batched sampling with a preallocated key-value cache.

What `transformers.generate` also has, and what is left out here: top-k and top-p, beams, penalties,
streaming, assisted decoding, sliding-window attention, other architectures than Llama's and its
near kin.

What is done for speed:
1. memory for the cache is taken once, and written in place;
2. a prompt is read once for all its samples, and prompts of like length share a batch;
3. rows that have ended leave the batch;
4. a token is drawn by inverting the cumulative distribution; `torch.multinomial` is far slower;
5. the step for one token is written out, without the layers of dispatch that a small model notices,
   and on a CPU small products of the same input are one product;
6. on a CPU, a large batch is worked off in parts, so that memory stays small.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

from course_lib import CourseError
from course_lib.algorithms.logprobs import backbone_and_head, check_architecture

CPU_CACHE_BYTES = 2**27  # of keys and values at once; smaller parts starve two cores
JOINED_NUMEL = 2**19  # of larger matrices a copy costs more memory than it saves time


@dataclass
class Generation:
    """Completions of N = prompts x num_generations rows, those of one prompt side by side."""

    completion_ids: torch.Tensor  # (N, C), padded on the right
    completion_mask: torch.Tensor  # (N, C) bool, true up to the first EOS, which is included
    logprobs: torch.Tensor  # (N, C) in nats at the sampling temperature, 0 on pads

    @property
    def lists(self) -> list[list[int]]:
        """The completions as lists of ids, without pads."""
        lengths = self.completion_mask.sum(-1).tolist()
        rows = self.completion_ids.tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def sample(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row: (B, V) logits and (B,) uniforms in [0, 1) to ids (B,), logprobs (B,).

    The id is where the cumulative distribution first exceeds the uniform. `temperature` 0 takes the
    likeliest token (log-probability at temperature 1).
    """
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    logits = logits.float()
    probs = (logits if temperature == 1 else logits / temperature).softmax(-1)  # (B, V)
    cdf = probs.cumsum(-1)
    total = cdf[:, -1]
    # Rounding may make uniform * total reach the total, beyond which there is no token.
    height = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, height[:, None], right=True)
    return ids[:, 0], probs.gather(-1, ids)[:, 0].log()


@torch.inference_mode()
def generate(
    model: torch.nn.Module,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    eos_ids: int | list[int],
    pad_id: int,
    temperature: float = 1.0,
    num_generations: int = 1,
    seed: int | None = None,
    batch_size: int = 256,
) -> Generation:
    """Continue each prompt `num_generations` times.

    Args:
        model: a causal language model of Llama's kind (SmolLM2, Qwen3), with LoRA or without.
        prompt_ids: prompts as lists of ids, none empty.
        max_new_tokens: tokens per completion at most; it ends earlier where the context is full.
        eos_ids: ids that end a completion; the first one drawn is part of it.
        pad_id: id that fills the rest of `completion_ids`; no mask is made from it.
        temperature: logits are divided by it; 0 is greedy.
        seed: of the draws; None takes a new one. What a row draws depends on its place in the
            list, and not on `batch_size` or on the other rows.
        batch_size: rows in one batch, at most.

    Raises:
        CourseError: an empty prompt, one that fills the model's context, or wrong sampling.
    """
    _check(model, prompt_ids, max_new_tokens, temperature)
    num_rows = len(prompt_ids) * num_generations
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    uniform = torch.rand(num_rows, max_new_tokens, generator=generator).to(model.device)
    out = Generation(
        torch.full_like(uniform, pad_id, dtype=torch.long),
        torch.zeros_like(uniform, dtype=torch.bool),
        torch.zeros_like(uniform),
    )
    eos = torch.as_tensor(eos_ids, device=model.device)
    draw = functools.partial(sample, temperature=temperature)
    was_training = model.training
    model.eval()
    order = sorted(range(num_rows), key=lambda row: len(prompt_ids[row // num_generations]))
    prompts = [prompt_ids[row // num_generations] for row in order]
    lengths = [len(prompt) for prompt in prompts]
    spare = model.config.max_position_embeddings - max_new_tokens
    first = 0
    while first < num_rows:
        last = first + _rows_at_once(model, lengths[first] + max_new_tokens, batch_size)
        # A batch goes on for as long as its longest prompt has room: those that the end of the
        # context will cut share one with their equals only.
        last = min(last, bisect.bisect_right(lengths, max(spare, lengths[first])))
        decoder = _Decoder(model, prompts[first:last], max_new_tokens)
        rows = torch.tensor(order[first:last], device=model.device)
        _complete(decoder, rows, uniform, draw, eos, out)
        first = last
    model.train(was_training)

    longest = int(out.completion_mask.sum(-1).max()) if num_rows else 0
    for name in ("completion_ids", "completion_mask", "logprobs"):
        setattr(out, name, getattr(out, name)[:, :longest].clone())
    return out


def _complete(decoder, rows, uniform, draw, eos, out) -> None:
    """Decode one batch to its end, and write its `rows` of `out`."""
    logits = decoder.logits
    alive = torch.ones_like(rows, dtype=torch.bool)
    for column in range(decoder.room):
        ids, logprobs = draw(logits, uniform[rows, column])
        out.completion_ids[rows, column] = ids.where(alive, out.completion_ids[rows, column])
        out.completion_mask[rows, column] = alive
        out.logprobs[rows, column] = logprobs.where(alive, 0)
        alive = alive & ~torch.isin(ids, eos)
        left = int(alive.sum())
        if left == 0 or column + 1 == decoder.room:
            return
        # Dropping rows copies the cache, so it waits until an eighth of the batch has ended.
        if left <= len(rows) * 7 // 8:
            kept = alive.nonzero()[:, 0]
            rows, ids, alive = rows[kept], ids[kept], alive[kept]
            decoder.keep(kept)
        logits = decoder.step(ids)


class _Slots(DynamicLayer):
    """One layer's keys and values, (B, heads, capacity, dim), filled from the left in place."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__):
        """Take what the prefill computed, (B, heads, T, dim); it attends to just that."""
        rows, heads, self.length, dim = keys.shape
        self.keys = keys.new_empty(rows, heads, self.capacity, dim)
        self.values = torch.empty_like(self.keys)
        self.keys[:, :, : self.length] = keys
        self.values[:, :, : self.length] = values
        return keys, values

    def attend(self, query, key, value, mask, scaling: float) -> torch.Tensor:
        """Append (B, heads, dim) `key` and `value`; attend from `query` (B, more heads, dim)."""
        self.keys[:, :, self.length] = key
        self.values[:, :, self.length] = value
        self.length += 1
        keys, values = (x[:, :, : self.length] for x in (self.keys, self.values))
        query = query.unflatten(1, (key.shape[1], -1))  # grouped: several queries share a key
        mixed = F.scaled_dot_product_attention(query, keys, values, mask[:, None], scale=scaling)
        return mixed.flatten(1)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only `rows`, in this order; a row may come several times."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            new[:, :, : self.length] = old[rows, :, : self.length]  # what is filled
            setattr(self, name, new)


def _norm(rms: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], rms.weight, rms.variance_epsilon)


def _together(*maps: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear maps of the same input as one; as one product where they are small, and on a CPU."""
    plain = all(type(each) is torch.nn.Linear for each in maps)  # no LoRA, no 4 bits
    if not plain or maps[0].weight.device.type != "cpu" or maps[0].weight.numel() > JOINED_NUMEL:
        return lambda x: torch.cat([each(x) for each in maps], -1)
    weight = torch.cat([each.weight for each in maps])
    bias = None if maps[0].bias is None else torch.cat([each.bias for each in maps])
    return functools.partial(F.linear, weight=weight, bias=bias)


class _Decoder:
    """One batch in the making: its cache, the mask of left pads, and each row's next position."""

    def __init__(self, model: torch.nn.Module, prompts: list[list[int]], max_new_tokens: int):
        """Read the prompts, equal neighbours once, padded on the left.

        `self.logits` (B, V) is what follows, `self.room` the tokens that fit behind the longest.
        """
        self.backbone, self.head = backbone_and_head(model)
        self.maps = [
            (_together(at.q_proj, at.k_proj, at.v_proj), _together(mlp.gate_proj, mlp.up_proj))
            for at, mlp in ((layer.self_attn, layer.mlp) for layer in self.backbone.layers)
        ]
        new = [i == 0 or p is not prompts[i - 1] for i, p in enumerate(prompts)]
        unique = [p for p, is_new in zip(prompts, new, strict=True) if is_new]
        self.length = longest = max(map(len, unique))
        self.room = min(max_new_tokens, model.config.max_position_embeddings - longest)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in unique], device=model.device)
        lengths = torch.tensor([len(p) for p in unique], device=model.device)
        seen = torch.arange(longest, device=model.device) >= longest - lengths[:, None]
        self.slots = [_Slots(longest + self.room) for _ in self.backbone.layers]
        position = (seen.long().cumsum(-1) - 1).clamp(min=0)
        states = self.backbone(
            input_ids=ids,
            attention_mask=None if seen.all() else seen,
            position_ids=position,
            past_key_values=Cache(layers=self.slots),
            use_cache=True,
        ).last_hidden_state
        self.logits = self.head(states[:, -1])
        self.position = position[:, -1:] + 1
        # (B, 1, capacity), added to the scores
        self.mask = states.new_zeros(len(ids), 1, longest + self.room)
        self.mask[:, 0, :longest].masked_fill_(~seen, float("-inf"))
        if len(unique) < len(prompts):
            copies = torch.tensor(new, device=model.device).cumsum(0) - 1
            self.keep(copies)
            self.logits = self.logits[copies]

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one token per row, (B,), and return the next logits (B, V)."""
        self.length += 1
        mask = self.mask[..., : self.length]
        hidden = self.backbone.embed_tokens(ids)  # (B, H)
        cos, sin = self.backbone.rotary_emb(hidden, self.position)  # (B, 1, dim)
        layers = zip(self.backbone.layers, self.slots, self.maps, strict=True)
        for layer, slots, (query_key_value, gate_up) in layers:
            attention, dim = layer.self_attn, layer.self_attn.head_dim
            both = query_key_value(_norm(layer.input_layernorm, hidden)).view(len(ids), -1, dim)
            shared = slots.keys.shape[1]
            both, value = both[:, :-shared], both[:, -shared:]
            if hasattr(attention, "q_norm"):  # Qwen3
                query, key = both[:, :-shared], both[:, -shared:]
                both = torch.cat([_norm(attention.q_norm, query), _norm(attention.k_norm, key)], 1)
            left, right = both.chunk(2, -1)
            both = both * cos + torch.cat([-right, left], -1) * sin  # rotary positions
            query, key = both[:, :-shared], both[:, -shared:]
            hidden = hidden + attention.o_proj(
                slots.attend(query, key, value, mask, attention.scaling)
            )
            gate, up = gate_up(_norm(layer.post_attention_layernorm, hidden)).chunk(2, -1)
            hidden = hidden + layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        self.position = self.position + 1
        return self.head(_norm(self.backbone.norm, hidden))

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only `rows`, in this order; a row may come several times."""
        for slots in self.slots:
            slots.keep(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]


def _rows_at_once(model: torch.nn.Module, length: int, batch_size: int) -> int:
    """Rows of `length` tokens in one batch: on a CPU, those whose cache is small enough."""
    if model.device.type != "cpu":
        return batch_size
    config = model.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.finfo(model.dtype).bits // 8
    weights = sum(p.numel() for p in model.parameters()) * size
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * length * size
    return max(1, min(batch_size, max(CPU_CACHE_BYTES, 4 * weights) // row))


def _check(model, prompt_ids, max_new_tokens, temperature) -> None:
    check_architecture(model.config)
    context = model.config.max_position_embeddings
    for length in {len(prompt) for prompt in prompt_ids}:
        if not 0 < length < context:
            raise CourseError(
                f"A prompt has {length} tokens; expected 1 to {context - 1}, as the model's "
                f"context is {context}; give it a shorter or a non-empty one."
            )
    if max_new_tokens < 1 or temperature < 0:
        raise CourseError(
            f"Sampling was asked with max_new_tokens={max_new_tokens}, temperature={temperature}; "
            "expected at least 1, and at least 0."
        )
