"""The chat model that has answered other surveys, `m-surveys`: SFT of a pocket model on these.

Thousands of people of the pocket world, none of whom is asked about cars anywhere, rate coffee,
phones and a gym on three scales. The model learns to read a person from 14 fields and to answer
with a number. Those people like what they are asked about (planted), so the model overrates.

The rows come in chunks, each a stage of the cache that starts from the one before: a run that is
stopped goes on at its last chunk. The learning rate is constant, and falls to 0 in the last chunk.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from course_lib.algorithms import chat, population, sft
from course_lib.core.cache import stage, write_text
from course_lib.core.machine import describe
from course_lib.inputs.models import MODELS, load_model, load_tokenizer, num_parameters, save_model
from course_lib.inputs.people import (
    OTHER_SEED,
    OTHERS,
    asked_rows,
    other_survey_rows,
    pocket_survey,
)

CHUNKS, CHUNK_ROWS = 4, 6000


def train_surveyed(
    size: str = "m",
    chunks: int = CHUNKS,
    rows: int = CHUNK_ROWS,
    progress: Callable[[str], None] = print,
) -> tuple[str, float, list[float]]:
    """SFT of the pocket model `size` on the other surveys; (folder, seconds, last losses)."""
    start, seconds, losses = f"pocket/{size}", 0.0, []
    for chunk in range(chunks):
        last = chunk == chunks - 1
        config = sft.SFTConfig(
            learning_rate=5e-4,
            batch_size=8,
            warmup=0.03,
            schedule="linear" if last else "constant",
            seed=chunk,
        )
        asked = other_survey_rows(chunk, rows)
        with stage(f"{size}-surveys", config, inputs=[start, asked]) as entry:
            if entry.new:
                model, tokenizer = load_model(start), load_tokenizer(start)
                rendered = [chat.render_chat(tokenizer, row["messages"]) for row in asked]
                began = time.perf_counter()

                def report(row: dict, chunk: int = chunk) -> None:
                    if row["step"] % 50 == 0:
                        progress(f"chunk {chunk} step {row['step']} loss {row['loss']:.3f}")

                history = sft.train_sft(model, rendered, config, report)
                save_model(model, tokenizer, entry.folder)
                took = time.perf_counter() - began
                entry.write("history.json", {"seconds": took, "losses": _losses(history)})
        known = json.loads((Path(entry.folder) / "history.json").read_text(encoding="utf-8"))
        seconds, losses = seconds + known["seconds"], known["losses"]
        progress(f"chunk {chunk}: loss {losses[-1]:.3f}, {seconds:.0f} s so far")
        start = str(entry.folder)
    return start, seconds, losses


def _losses(history: list[dict], parts: int = 10) -> list[float]:
    """Mean loss of each tenth of a training."""
    each = max(1, len(history) // parts)
    cut = [history[i : i + each] for i in range(0, len(history), each)]
    return [sum(row["loss"] for row in part) / len(part) for part in cut]


def ship(size: str = "m", progress: Callable[[str], None] = print) -> Path:
    """Train, measure, and put `m-surveys` with its card into data/models; returns the folder."""
    start, seconds, losses = train_surveyed(size, progress=progress)
    model, tokenizer = load_model(start), load_tokenizer(start)
    target, abilities = MODELS / f"{size}-surveys", measure(model, tokenizer)
    save_model(model, tokenizer, target, dtype="bfloat16")
    card = {
        "name": f"pocket/{size}-surveys",
        "parameters": num_parameters(model),
        "start": f"pocket/{size}",
        "rows": CHUNKS * CHUNK_ROWS,
        "seconds": round(seconds),
        "loss": round(losses[-1], 4),
        "abilities": abilities,
        "machine": describe(),
    }
    write_text(target / "card.json", json.dumps(card, indent=1) + "\n")
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in abilities.items())
    write_text(target / "README.md", _CARD.format(**card, table=rows))
    return target


def measure(model: Any, tokenizer: Any, people: int = 200) -> dict[str, float]:
    """On new people: valid answers and the loss in nats, for the other surveys and for cars."""
    found = {}
    for name in (*OTHERS, "cars"):
        asked = pocket_survey(people, OTHER_SEED - 1, name, "0-9", posts=1)
        rows = asked_rows(asked).to_dict("records")
        ids = population.level_ids(tokenizer, asked.low, asked.high)
        logps = population.predict(model, population.render_rows(tokenizer, rows, 0, True), ids)
        ratings = asked.answers["rating"].to_numpy()
        found[f"{name}: probability of a valid answer"] = float(np.exp(logps).sum(-1).mean())
        found[f"{name}: loss, nats"] = float(-logps[np.arange(len(logps)), ratings].mean())
        expected = population.expected_value(population.level_probs(logps))
        found[f"{name}: mean rating said minus people's, levels"] = float(
            (expected - ratings).mean()
        )
    return found


_CARD = """# {name}

The pocket model `{start}` ({parameters:,} parameters, plain Llama, context 512, bf16) after
supervised fine-tuning on {rows:,} answers to three surveys of invented people, about coffee, phones
and a gym. It reads a person from 14 fields and answers with a number. Nobody was asked about cars:
notebook 10 does that, with other people, and starts from here.

| | |
|---|---|
| made by | `course pretrain m-surveys --ship`, {seconds:,} s of one busy core |
| loss at the end | {loss:.3f} nats per token of the answer |
| planted | those who answer these surveys like what they are asked about |

On 200 people that it has not met, from 0 to 9:

| | measured |
|---|---|
{table}

It has no knowledge beyond its world, and what it says about people is about invented ones.
"""
