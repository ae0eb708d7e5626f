"""Aligning a model to a population: it answers as a person would, and as all of them do.

A survey's row is a person (fields as text), what they were told, and their rating y on a scale of
K levels. Where a level is one token, one forward pass gives log p(k), the log-probability of each
level as the next token, and every loss here is a function of it:

    cross-entropy            -log p(y)
    numeric penalty          (1 - α) CE + α (-Σ_k w_d(k, y) log p(k)),  w = max(0, 1 - |k - y|/d)
    forward KL               Σ_k s_k log(s_k / p(k)),         s the shares of a group's answers
    Wasserstein              Σ_k |F_s(k) - F_p(k)|,           F the cumulative shares, in levels
    number-token             CE + λ Σ_k p(k) |k - y|

Sources: 2403.20252 (the numeric penalty, section 5; rebuilt from its words, so the raw weights and
the normalised w / Σw are both here), 2502.16761 (KL and Wasserstein on groups), 2411.02083 (the
number-token loss, in its Wasserstein form).

Left out: 1. choosing the epoch by validation loss; 2. several answers of a person in one sequence;
3. weights of people in the losses (the measures have them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats

from course_lib.algorithms import chat, loop
from course_lib.algorithms.logprobs import backbone_and_head, last_states
from course_lib.algorithms.losses import Metrics
from course_lib.algorithms.sampling import generate
from course_lib.algorithms.sft import sft_step

BINS = 10  # of KL
_INTEGER = re.compile(r"-?\d+")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, K), (B,) or (B, K) -> mean


@dataclass
class PopulationConfig:
    """Settings of `train_population`."""

    learning_rate: float = 5e-4  # peak, of AdamW; LoRA takes about ten times that of all weights
    num_epochs: float = 1.0  # passes over the rows; not used where num_steps is given
    num_steps: int | None = None  # optimiser steps
    batch_size: int = 8  # rows
    gradient_accumulation_steps: int = 1  # an optimiser step takes batch_size times as many rows
    warmup: float = 0.05  # share of the steps in which the learning rate rises from 0
    schedule: str = "linear"  # then: "cosine" or "linear" down to 0, or "constant"
    weight_decay: float = 0.0  # of AdamW, decoupled
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm
    dtype: str = "float32"  # "bfloat16": autocast; the weights keep their own type
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third more time
    seed: int = 0  # of the order of the rows


# ---- who is asked what -------------------------------------------------------------------------


def messages(person: Mapping[str, str], text: str, question: str, about: str) -> list[dict]:
    """What the model is asked: a system message that says whom to answer as, then the question.

    The fields stand as `{age: 18-25, ...}` behind `about`; or, where `about` says "{values}", their
    values alone in its place, for fields whose values need no name.
    """
    if "{values}" in about:
        system = about.replace("{values}", ", ".join(person.values()))
    else:
        system = f"{about} {{{', '.join(f'{k}: {v}' for k, v in person.items())}}}"
    asked = f"{text} {question}" if text else question
    return [{"role": "system", "content": system}, {"role": "user", "content": asked}]


def level_ids(tokenizer: Any, low: int, high: int) -> list[int] | None:
    """The token of each level of the scale, or None where some level takes several tokens."""
    ids = [tokenizer(str(k), add_special_tokens=False)["input_ids"] for k in range(low, high + 1)]
    return [one for (one,) in ids] if all(len(each) == 1 for each in ids) else None


def render_rows(tokenizer: Any, asked: Sequence[Mapping], low: int, one_token: bool) -> list[dict]:
    """Rows to train on, from rows with `messages` and `rating` (and `shares`, for groups).

    Where a level is one token: the prompt's `input_ids`, and `target`, the level's index or the
    shares (K,). Else the answered conversation, of which the answer is learned.
    """
    rows = []
    for row in asked:
        if one_token:
            ids = chat.render_prompt(tokenizer, row["messages"])
            target = row["shares"] if "shares" in row else int(row["rating"]) - low
            rows.append({"input_ids": ids, "completion_mask": [0] * len(ids), "target": target})
        else:
            said = {"role": "assistant", "content": str(row["rating"])}
            rows.append(chat.render_chat(tokenizer, [*row["messages"], said]))
    return rows


# ---- losses on the levels ----------------------------------------------------------------------


def rating_loss(logps: torch.Tensor, ratings: torch.Tensor) -> torch.Tensor:
    """Cross-entropy: mean of -log p(y), from logps (B, K) and the levels' indices (B,)."""
    return -logps.gather(-1, ratings[:, None]).mean()


def numeric_weights(num_levels: int, d: float, normalised: bool = False) -> torch.Tensor:
    """w_d (K, K), a row for each right answer y: max(0, 1 - |k - y| / d); normalised rows sum to 1.

    Source: 2403.20252, section 5, rebuilt from its words.
    """
    k = torch.arange(num_levels, dtype=torch.float32)
    weights = (1 - (k[:, None] - k).abs() / d).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True) if normalised else weights


def numeric_loss(
    logps: torch.Tensor,
    ratings: torch.Tensor,
    alpha: float = 0.5,
    d: float = 10.0,
    normalised: bool = False,
) -> torch.Tensor:
    """(1 - α) · CE + α · (-Σ_k w_d(k, y) log p(k)), mean over the rows: near misses count less.

    What it makes likeliest is not the people's distribution but that distribution blurred by w.
    """
    weights = numeric_weights(logps.shape[-1], d, normalised).to(logps.device)[ratings]  # (B, K)
    near = -(weights * logps).sum(-1).mean()
    return (1 - alpha) * rating_loss(logps, ratings) + alpha * near


def number_token_loss(
    logps: torch.Tensor, ratings: torch.Tensor, weight: float = 0.3
) -> torch.Tensor:
    """CE + λ · Σ_k p(k) |k - y|, p over the levels alone. Source: 2411.02083 (NTL-WAS)."""
    k = torch.arange(logps.shape[-1], device=logps.device)
    far = (logps.softmax(-1) * (k - ratings[:, None]).abs()).sum(-1).mean()
    return rating_loss(logps, ratings) + weight * far


def forward_kl_loss(logps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """KL(shares ‖ p) in nats, mean over rows; smallest, 0, exactly at the shares (B, K)."""
    return (torch.xlogy(shares, shares) - shares * logps).sum(-1).mean()


def wasserstein_loss(logps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Mean over rows of Σ_k |F_s(k) - F_p(k)|, in levels; smallest, 0, exactly at the shares."""
    return (shares.cumsum(-1) - logps.softmax(-1).cumsum(-1)).abs().sum(-1).mean()


# ---- the model ---------------------------------------------------------------------------------


def level_logps(model: torch.nn.Module, batch: Mapping, ids: Sequence[int]) -> torch.Tensor:
    """log p(k) of each level as the next token, (B, K); what is left to 1 is other tokens."""
    _, head = backbone_and_head(model)
    hidden = last_states(model, batch["input_ids"], batch["attention_mask"])
    return head(hidden).float().log_softmax(-1)[:, ids]


def train_population(
    model: torch.nn.Module,
    rows: Sequence[dict],
    config: PopulationConfig,
    ids: Sequence[int] | None,
    loss_fn: Loss = rating_loss,
    progress: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Train on `render_rows`; `ids` are the levels' tokens, or None where answers have several."""

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Metrics]:
        if ids is None:
            return sft_step(model, batch)
        logps, target = level_logps(model, batch, ids), batch["target"]
        right, seen = target.max(-1).indices if target.ndim == 2 else target, logps.detach()
        return loss_fn(logps, target), {
            "ce": rating_loss(seen, right),
            "squared": (seen.argmax(-1) - right).square().float().mean(),  # error of greedy, levels
            "levels": seen.exp().sum(-1).mean(),  # the probability of a valid answer
        }

    return loop.fit(model, rows, loss_of, config, progress)


@torch.inference_mode()
def predict(model: torch.nn.Module, rows: Sequence[dict], ids: Sequence[int]) -> np.ndarray:
    """log p(k) of each level for each row, (N, K)."""
    found = np.zeros((len(rows), len(ids)))
    with loop.evaluating(model):
        for group in chat.batches(rows, tokens_per_batch=4 * loop.forward_tokens(model)):
            batch = loop.to_device(chat.collate([rows[i] for i in group], 0), model)
            found[group] = level_logps(model, batch, ids).double().cpu().numpy()
    return found


# ---- from probabilities, or texts, to answers --------------------------------------------------


def decode(logps: np.ndarray, temperature: float, uniform: np.ndarray) -> np.ndarray:
    """A level's index for each row of logps (N, K); temperature 0 is greedy, uniform is (N,)."""
    if temperature == 0:
        return logps.argmax(-1)
    cdf = level_probs(logps / temperature).cumsum(-1)
    return np.minimum((uniform[:, None] > cdf).sum(-1), logps.shape[-1] - 1)


def level_probs(logps: np.ndarray) -> np.ndarray:
    """Probabilities of the levels among themselves, (N, K)."""
    p = np.exp(logps - logps.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def expected_value(probs: np.ndarray) -> np.ndarray:
    """The mean level (N,), of all answers the one with the smallest squared error on average."""
    return probs @ np.arange(probs.shape[-1])


def first_integer(text: str, low: int, high: int) -> int | None:
    """The paper's rule: the first integer of an answer, None if there is none or it is outside."""
    found = _INTEGER.search(text)
    value = int(found[0]) if found else low - 1
    return value if low <= value <= high else None


def last_integer(text: str, low: int, high: int) -> int | None:
    """The last integer, for an answer that thinks first; else as `first_integer`."""
    found = _INTEGER.findall(text)
    return first_integer(found[-1], low, high) if found else None


def ask_numbers(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[dict]],
    low: int,
    high: int,
    read: Callable[[str, int, int], int | None] = first_integer,
    **sampling: Any,
) -> tuple[np.ndarray, list[str]]:
    """(ratings (N,), nan where the answer failed; the texts), by default of at most 8 tokens."""
    options = {"eos_ids": chat.stop_ids(tokenizer), "pad_id": tokenizer.pad_token_id}
    asked = [chat.render_prompt(tokenizer, prompt) for prompt in prompts]
    lists = generate(model, asked, **{"max_new_tokens": 8} | options | sampling).lists
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in lists]
    found = [read(text, low, high) for text in texts]
    return np.array([np.nan if value is None else value for value in found]), texts


# ---- measures: one value a row, whose mean is the measure --------------------------------------


def bins_of(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """Ten equal bins of the scale, from 0; a scale of at most ten levels has a bin for each."""
    at = np.asarray(values) - low
    return at if high - low < BINS else np.minimum(at * BINS // (high - low), BINS - 1)


def kl_rows(
    human: np.ndarray, model: np.ndarray, num_bins: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """KL(people ‖ model) of the shares of bins (N,) and (N,), as values (N,) with that mean.

    In nats; the model's counts get 1/2 more a bin, so that an empty one costs much, not all. Row i
    moves the KL by its bin in the people's shares and by its bin in the model's (the delta method),
    so an interval of these values' mean, with people as items, is one of the KL.
    """
    n = len(human)
    weights = np.ones(n) if weights is None else weights / weights.mean()
    h = np.bincount(human, weights, num_bins) / n
    q = (np.bincount(model, weights, num_bins) + 0.5) / (n + 0.5 * num_bins)
    ratio = np.log(np.where(h > 0, h, 1) / q)
    kl = (h * ratio).sum()
    pull = (h / q)[model] * n / (n + 0.5 * num_bins)
    moved = weights * (ratio[human] - kl) - (weights * pull - (weights * pull).mean())
    return kl + moved - moved.mean()


def rmse_rows(
    truth: np.ndarray, answer: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """RMSE as values (N,) with that mean: (e² - MSE) / 2 RMSE is how row i moves it."""
    squared = np.asarray(answer - truth, float) ** 2
    weights = np.ones(len(squared)) if weights is None else weights / weights.mean()
    mse = (weights * squared).mean()
    return np.sqrt(mse) + weights * (squared - mse) / (2 * np.sqrt(mse) + 1e-12)


def by_person(values: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Values of rows (N,) to values of people, with the same mean, however many rows each has."""
    _, place = np.unique(person, return_inverse=True)
    people = place.max() + 1
    return np.bincount(place, values) * people / len(values)


def person_kl(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """KL(truth ‖ model) of each row's probabilities (N, K), in nats."""
    p = np.clip(probs, 1e-9, None)
    return (truth * np.log(np.clip(truth, 1e-300, None) / p)).sum(-1)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where one of them is constant."""
    return float(scipy_stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0


def calibration(probs: np.ndarray, truth: np.ndarray) -> float:
    """How far predicted and observed cumulative shares differ, over all levels, on average.

    Rows are sorted into five groups by their expected value; 0 is a calibrated model.
    """
    levels = np.arange(probs.shape[-1])
    groups = np.array_split(np.argsort(expected_value(probs), kind="stable"), 5)
    seen = [(truth[g, None] <= levels).mean(0) - probs[g].cumsum(-1).mean(0) for g in groups]
    return float(np.abs(seen).mean())


def noise_floor(num_bins: int, n: int, m: int) -> float:
    """The KL of a perfect model's `m` answers to `n` people's, by chance: (K-1)/2 (1/n + 1/m)."""
    return (num_bins - 1) / 2 * (1 / n + 1 / m)


def split_floor(
    bins: np.ndarray, person: np.ndarray, num_bins: int, times: int = 50, seed: int = 0
) -> float:
    """The floor estimated from data alone: KL between two halves of the people, for all of them.

    By people, since answers of one person are alike: rows would make the floor look lower.
    """
    rng, everyone, found = np.random.default_rng(seed), np.unique(person), []
    for _ in range(times):
        half = rng.permutation(everyone)[: len(everyone) // 2]
        here = np.isin(person, half)
        h, q = (np.bincount(bins[side], minlength=num_bins) + 0.5 for side in (here, ~here))
        h, q = h / h.sum(), q / q.sum()
        found.append((h * np.log(h / q)).sum())
    return float(np.mean(found)) / 2  # two halves differ twice as much as two wholes
