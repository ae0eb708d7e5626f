"""Pretraining of the pocket models: next-token prediction on the pocket world's documents.

    loss = -1/T sum_t log p(x_t | x_<t)

Left out of what large laboratories do: data filtering and mixing laws, several epochs, gradient
accumulation, distributed training, a context-extension phase. Kept: fresh documents at every step
(the world never repeats itself), rows that begin with a document (best-fit packing with a crop),
Muon for the matrices and AdamW for the rest, warm-up, a constant rate and a long linear decay.

A run is resumable: documents come in numbered shards that depend on nothing but the seed, and the
state (weights, optimiser, step) is written as safetensors every few minutes.
"""

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from course_lib import ROOT, CourseError
from course_lib.core.cache import build_dir
from course_lib.core.machine import bf16_pays, describe, matmul_peak
from course_lib.inputs.models import load_tokenizer, save_model
from course_lib.pretraining.pocket import pocket_config, train_tokenizer
from course_lib.world.documents import EARLY, SHARES, documents
from course_lib.world.instructions import demonstrations

CONTEXT = 512
SHARD_ROWS = 2048  # rows of CONTEXT tokens: about a million tokens a shard
FOLDER = build_dir() / "pretrain"


@dataclass(frozen=True)
class PretrainConfig:
    """One run, by default as the shipped models'; `tokens` counts every position of every row."""

    size: str = "m"  # s, m or l
    tokens: int = 22_000_000
    early_shards: int = 8  # shards (8.4M tokens) that have the mixture of the first part
    batch_rows: int = 8  # rows of 512 tokens a step
    short_share: float = 0.75  # first share of the run: each row is read as two of 256 tokens
    muon_rate: float = 0.015  # learning rate of the matrices
    adam_rate: float = 8e-3  # of embeddings and norms
    warmup_steps: int = 100
    decay_share: float = 0.45  # last share of the run: linear decay to `floor`
    floor: float = 0.02
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    snapshots: tuple[float, ...] = (0.01, 0.1, 0.3, 0.5, 0.7, 1.0)
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return max(1, self.tokens // (self.batch_rows * CONTEXT))


def pocket_tokenizer():
    """The family's tokenizer: that of the shipped models, or one trained for them."""
    shipped, folder = ROOT / "data" / "models" / "m", FOLDER / "tokenizer"
    if (shipped / "tokenizer.json").exists():
        return load_tokenizer(str(shipped))
    if not (folder / "tokenizer.json").exists():
        texts = [text for _, text in islice(documents(seed=7_000_000), 25_000)]
        chats = demonstrations(3_000, seed=7_000_000)
        texts += [turn["content"] for row in chats for turn in row["messages"]]
        train_tokenizer(texts, folder)
    return load_tokenizer(str(folder))


def shard_path(config: PretrainConfig, index: int) -> Path:
    """Where shard `index` of the corpus is kept; what is in it depends on nothing but this name."""
    mixture = "early" if index < config.early_shards else "all"
    return FOLDER / "shards" / f"{config.seed}-{index}-{mixture}.npy"


def shard(tokenizer, config: PretrainConfig, index: int, rows: int = SHARD_ROWS) -> np.ndarray:
    """Shard `index` of the corpus: (rows, 512) token ids, made on demand and kept in the build.

    Each row begins with the document separator and a document's first word, and is filled with
    whole documents; the last one is cropped (documents are free here, positions are not).
    """
    path = shard_path(config, index)
    if path.exists():
        return np.load(path)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    shares = EARLY if index < config.early_shards else SHARES
    stream = documents(config.seed * 1_000_003 + index, shares)
    out = np.empty((rows, CONTEXT), np.uint16)
    for r in range(rows):
        row: list[int] = []
        while len(row) < CONTEXT:
            row += [end, *tokenizer.encode(next(stream)[1], add_special_tokens=False)]
        out[r] = row[:CONTEXT]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{random.random()}.part.npy")
    np.save(part, out)
    part.replace(path)
    return out


def corpus_hash(config: PretrainConfig) -> str:
    """SHA-256 of the token ids that a run reads, shard by shard; the shards must have been made."""
    digest = hashlib.sha256()
    for index in range(-(-config.num_steps * config.batch_rows // SHARD_ROWS)):
        digest.update(np.load(shard_path(config, index)).tobytes())
    return digest.hexdigest()


def batches(tokenizer, config: PretrainConfig, first_step: int) -> Iterator[torch.Tensor]:
    """(batch_rows, 512) ids of every step from `first_step` on, or (2 batch_rows, 256).

    Short rows first: attention costs half as much, and long documents are few.
    """
    per_shard = SHARD_ROWS // config.batch_rows
    for step in range(first_step, config.num_steps):
        if step == first_step or step % per_shard == 0:
            rows = shard(tokenizer, config, step // per_shard)
        at = step % per_shard * config.batch_rows
        ids = torch.from_numpy(rows[at : at + config.batch_rows].astype(np.int64))
        yield ids.view(-1, CONTEXT // 2) if step < config.short_share * config.num_steps else ids


def rate_factor(step: int, config: PretrainConfig) -> float:
    """Warm-up, constant, then linear decay to `floor`: one for every learning rate."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = (config.num_steps - step) / (config.decay_share * config.num_steps)
    return max(config.floor, min(1.0, left))


def optimisers(model, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in named.items() if p.ndim < 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices,
            lr=config.muon_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW(
            rest, lr=config.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def save_state(folder: Path, model, opts, step: int, seconds: float) -> None:
    """Weights, optimiser tensors and position, written whole or not at all."""
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for o, opt in enumerate(opts):
        params = [p for group in opt.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            for key, value in opt.state.get(p, {}).items():
                tensors[f"opt{o}.{i}.{key}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, folder / "state.part", metadata={"step": str(step), "s": str(seconds)})
    (folder / "state.part").replace(folder / "state.safetensors")


def load_state(folder: Path, model, opts) -> tuple[int, float]:
    """Restore what `save_state` wrote; returns (step, seconds so far), (0, 0) for a new run."""
    path = folder / "state.safetensors"
    if not path.exists():
        return 0, 0.0
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as handle:
        meta = handle.metadata()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
    for o, opt in enumerate(opts):
        params = [p for group in opt.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            prefix = f"opt{o}.{i}."
            opt.state[p] = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
    return int(meta["step"]), float(meta["s"])


def next_token_loss(model, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each token given those before it; `ids` (B, T)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def pretrain(config: PretrainConfig, *, progress=print, compile: bool = True) -> Path:
    """Train one pocket model from its config, from where it stopped; returns the run's folder.

    The folder holds `log.jsonl` (step, tokens, loss, tokens/s, fraction of the measured matmul
    peak) and a `snapshots/<share>` model folder for each share of the run in `config.snapshots`.

    Raises:
        CourseError: on a non-finite loss; the last good state stays on disk.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = FOLDER / config.size
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = pocket_tokenizer()
    torch.manual_seed(config.seed)
    # Plain products: compiled on a CPU they are a fifth faster than the fused attention kernel.
    model = AutoModelForCausalLM.from_config(
        pocket_config(config.size), attn_implementation="eager"
    )
    opts = optimisers(model, config)
    base_rates = [opt.param_groups[0]["lr"] for opt in opts]
    done, seconds = load_state(folder, model, opts)
    bf16 = bf16_pays()
    peak = matmul_peak("bfloat16" if bf16 else "float32")
    size = sum(p.numel() for p in model.parameters())
    forward = torch.compile(next_token_loss, dynamic=False) if compile else next_token_loss
    saves = {max(1, round(s * config.num_steps)): s for s in config.snapshots}
    recipe = {"config": asdict(config), "machine": describe(), "parameters": size}
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")

    log = (folder / "log.jsonl").open("a", encoding="utf-8")
    window, tokens_step = [], config.batch_rows * CONTEXT
    saved, clock = time.monotonic(), time.perf_counter()
    for step, ids in enumerate(batches(tokenizer, config, done), start=done):
        for opt, rate in zip(opts, base_rates, strict=True):
            opt.param_groups[0]["lr"] = rate * rate_factor(step, config)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = forward(model, ids)
        loss.backward()
        if not math.isfinite(loss.item()):
            raise CourseError(
                f"The loss became {loss.item()} at step {step}; the state of the last save is in "
                f"{folder}; lower the learning rates and run again."
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        window.append(loss.item())
        now = time.perf_counter()
        seconds, clock, took = seconds + now - clock, now, now - clock
        if (step + 1) % 20 == 0 or step + 1 == config.num_steps:
            row = {
                "step": step + 1,
                "tokens": (step + 1) * tokens_step,
                "loss": round(float(np.mean(window)), 4),
                "tokens_per_s": round(tokens_step / took),
                "peak_share": round(6 * size * tokens_step / took / peak, 3),
                "seconds": round(seconds, 1),
            }
            window = []
            log.write(json.dumps(row) + "\n")
            log.flush()
            left = (config.num_steps - step - 1) * seconds / (step + 1)
            progress(
                f"{config.size} step {row['step']}/{config.num_steps}  loss {row['loss']:.3f}  "
                f"{row['tokens_per_s']:,} tokens/s  {row['peak_share']:.0%} of peak  "
                f"{left / 60:.0f} min left"
            )
        if step + 1 in saves:
            target = folder / "snapshots" / f"{saves[step + 1]:g}"
            save_model(model, tokenizer, target, dtype="bfloat16")
        if time.monotonic() - saved > 120 or step + 1 == config.num_steps:
            save_state(folder, model, opts, step + 1, seconds)
            saved = time.monotonic()
    return folder
