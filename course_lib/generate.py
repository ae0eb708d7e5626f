"""Batched sampling with a preallocated key-value cache.

Left out of what `transformers.generate` has: beams, penalties, streaming, assisted decoding,
sliding-window attention. What is done for speed: memory for the cache is taken once and written in
place; a prompt is read once for all its samples; prompts of like length share a batch; rows that
have ended leave it; the next token is drawn by inverting the cumulative distribution, and not by
`torch.multinomial`, which is much slower on a CPU.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache, DynamicLayer

from course_lib import CourseError
from course_lib.logprobs import backbone_and_head


@dataclass
class Generation:
    """Completions of N = prompts x num_generations rows, those of one prompt side by side."""

    completion_ids: torch.Tensor  # (N, C), padded on the right
    completion_mask: torch.Tensor  # (N, C) bool, true up to the first EOS, which is included
    logprobs: torch.Tensor  # (N, C) in nats at the sampling temperature (before top_p), 0 on pads
    num_tokens: int = 0  # completion tokens, pads not counted
    seconds: float = 0.0  # wall clock

    @property
    def lists(self) -> list[list[int]]:
        """The completions as lists of ids, without pads."""
        lengths = self.completion_mask.sum(-1).tolist()
        rows = self.completion_ids.tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]


class _Slots(DynamicLayer):
    """One layer's keys and values, (B, heads, capacity, dim), filled from the left in place."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__):
        if self.length == 0:
            rows, heads, _, dim = keys.shape
            self.keys = keys.new_empty(rows, heads, self.capacity, dim)
            self.values = values.new_empty(rows, heads, self.capacity, dim)
            self.is_initialized = True
        start, self.length = self.length, self.length + keys.shape[-2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only `rows`, in this order (a row may come several times)."""
        keys, values = self.keys, self.values
        shape = (len(rows), *keys.shape[1:])
        self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        filled = slice(0, self.length)
        self.keys[:, :, filled] = keys[:, :, filled].index_select(0, rows)
        self.values[:, :, filled] = values[:, :, filled].index_select(0, rows)


def sample(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row: (B, V) logits and (B,) uniforms in [0, 1) to ids (B,), logprobs (B,).

    The id is where the cumulative distribution first exceeds the uniform. `temperature` 0 takes the
    likeliest token (log-probability at temperature 1). `top_p` < 1 keeps the fewest tokens that
    hold that much probability; the log-probability stays that of the whole distribution.
    """
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    probs = (logits.float() / temperature).softmax(-1)  # (B, V)
    drawn, order = probs, None
    if top_p < 1:
        drawn, order = probs.sort(-1, descending=True)
        drawn = drawn.where(drawn.cumsum(-1) - drawn < top_p, 0)
    cdf = drawn.cumsum(-1)
    total = cdf[:, -1]
    # Rounding may make uniform * total reach the total, beyond which there is no token.
    height = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cdf, height[:, None], right=True)
    ids = ids if order is None else order.gather(-1, ids)
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
    top_p: float = 1.0,
    num_generations: int = 1,
    seed: int | None = None,
    batch_size: int = 256,
) -> Generation:
    """Continue each prompt `num_generations` times.

    Args:
        model: a causal language model with full attention (Llama, SmolLM2, Qwen3), LoRA or not.
        prompt_ids: prompts as lists of ids, none empty.
        max_new_tokens: tokens per completion at most; it ends earlier where the context is full.
        eos_ids: ids that end a completion; the first one drawn is part of it.
        pad_id: id that fills the rest of `completion_ids`; no mask is made from it.
        temperature: logits are divided by it; 0 is greedy.
        top_p: probability mass to draw from; 1 is all.
        seed: of the draws; None takes a new one. What a row draws depends on its place in the
            list, and not on `batch_size` or on the other rows.
        batch_size: rows in one forward pass.

    Raises:
        CourseError: an empty prompt, one that fills the model's context, or wrong sampling.
    """
    start = time.perf_counter()
    _check(model, prompt_ids, max_new_tokens, temperature, top_p)
    num_rows = len(prompt_ids) * num_generations
    generator = torch.Generator()
    _ = generator.seed() if seed is None else generator.manual_seed(seed)
    uniform = torch.rand(num_rows, max_new_tokens, generator=generator).to(model.device)
    out = Generation(
        torch.full_like(uniform, pad_id, dtype=torch.long),
        torch.zeros_like(uniform, dtype=torch.bool),
        torch.zeros_like(uniform),
    )
    eos = torch.as_tensor(eos_ids, device=model.device)
    was_training = model.training
    model.eval()
    order = sorted(range(num_rows), key=lambda row: len(prompt_ids[row // num_generations]))
    for first in range(0, num_rows, batch_size):
        rows = order[first : first + batch_size]
        logits, decoder = _prefill(
            model, [prompt_ids[row // num_generations] for row in rows], max_new_tokens
        )
        rows = torch.tensor(rows, device=model.device)
        draw = functools.partial(sample, temperature=temperature, top_p=top_p)
        _complete(decoder, logits, rows, uniform, draw, eos, out)
    model.train(was_training)

    longest = int(out.completion_mask.sum(-1).max()) if num_rows else 0
    for name in ("completion_ids", "completion_mask", "logprobs"):
        setattr(out, name, getattr(out, name)[:, :longest].clone())
    out.num_tokens = int(out.completion_mask.sum())
    out.seconds = time.perf_counter() - start
    return out


def _complete(decoder, logits, rows, uniform, draw, eos, out) -> None:
    """Decode one batch to its end, and write its `rows` of `out`."""
    ids = torch.empty_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    for column in range(decoder.room):
        if column > 0:
            # Dropping rows copies the cache, so it waits until an eighth of the batch has ended.
            left = int(alive.sum())
            if left == 0:
                return
            if left <= len(rows) * 7 // 8:
                kept = alive.nonzero()[:, 0]
                rows, ids, alive = rows[kept], ids[kept], alive[kept]
                decoder.keep(kept)
            logits = decoder.step(ids)
        ids, logprobs = draw(logits, uniform[rows, column])
        out.completion_ids[rows, column] = ids.where(alive, out.completion_ids[rows, column])
        out.completion_mask[rows, column] = alive
        out.logprobs[rows, column] = logprobs.where(alive, 0)
        alive = alive & ~torch.isin(ids, eos)


class _Decoder:
    """One batch's cache, its mask (None where nothing is padded), and each row's next position."""

    def __init__(self, model: torch.nn.Module, room: int, capacity: int):
        self.backbone, self.head = backbone_and_head(model)
        self.room, self.capacity = room, capacity  # new tokens there is room for; slots per row
        self.slots = [_Slots(capacity) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=self.slots)
        self.mask: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T) ids, at `self.position` (B, T), to the logits (B, V) of what follows the last."""
        states = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.position = self.position[:, -1:] + 1
        return self.head(states[:, -1])

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one token per row, (B,), and return the next logits (B, V)."""
        length = self.slots[0].length + 1
        mask = None if self.mask is None else self.mask[:, :, :, :length]
        return self.forward(ids[:, None], mask)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only `rows`, in this order; a row may come several times."""
        for slots in self.slots:
            slots.keep(rows)
        self.position = self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]


def _prefill(
    model: torch.nn.Module, prompts: list[list[int]], max_new_tokens: int
) -> tuple[torch.Tensor, _Decoder]:
    """Read the prompts, equal neighbours once, padded on the left; the logits (B, V) that follow."""
    unique = [p for i, p in enumerate(prompts) if i == 0 or p is not prompts[i - 1]]
    longest = max(map(len, unique))
    room = min(max_new_tokens, model.config.max_position_embeddings - longest)
    decoder = _Decoder(model, room, longest + room)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in unique], device=model.device)
    lengths = torch.tensor([len(p) for p in unique], device=model.device)
    column = torch.arange(decoder.capacity, device=model.device)
    seen = column >= longest - lengths[:, None]  # (B, capacity)
    decoder.position = (column[:longest] - (longest - lengths[:, None])).clamp(min=0)
    padded = bool((lengths < longest).any())
    logits = decoder.forward(ids, seen[:, :longest] if padded else None)
    if padded:
        # Additive and made once; a boolean mask would be converted again in every layer.
        decoder.mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
        decoder.mask = decoder.mask.masked_fill(~seen, float("-inf"))[:, None, None]
    if len(unique) < len(prompts):
        starts = [i == 0 or p is not prompts[i - 1] for i, p in enumerate(prompts)]
        copies = torch.tensor(starts, device=model.device).cumsum(0) - 1
        logits = logits[copies]
        decoder.keep(copies)
    return logits, decoder


def _check(model, prompt_ids, max_new_tokens, temperature, top_p) -> None:
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or []):
        raise CourseError(
            f"The model {model.config.name_or_path!r} uses sliding-window attention, which this "
            "sampler does not know; choose one with full attention, such as Qwen3 or SmolLM2."
        )
    context = model.config.max_position_embeddings
    for length in {len(prompt) for prompt in prompt_ids}:
        if not 0 < length < context:
            raise CourseError(
                f"A prompt has {length} tokens; expected 1 to {context - 1}, as the model's "
                f"context is {context}; give it a shorter or a non-empty one."
            )
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise CourseError(
            f"Sampling was asked with max_new_tokens={max_new_tokens}, temperature={temperature}, "
            f"top_p={top_p}; expected at least 1, at least 0, and above 0 up to 1."
        )
