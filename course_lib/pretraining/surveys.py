"""The chat model that has answered other surveys, `m-surveys`: SFT of a pocket model on these.

Thousands of people of the pocket world, none of whom is asked about cars anywhere, rate coffee,
phones and a gym on three scales. The model learns to read a person from 14 fields and to answer
with a number. Those people like what they are asked about (planted), so the model overrates.

The rows come in chunks, each a stage of the cache that starts from the one before: a run that is
stopped goes on at its last chunk. The learning rate is constant, and falls to 0 in the last chunk.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from course_lib.algorithms import chat, sft
from course_lib.algorithms.population import messages
from course_lib.core.cache import stage
from course_lib.inputs.models import load_model, load_tokenizer, save_model
from course_lib.inputs.people import pocket_survey

CHUNKS, CHUNK_ROWS = 6, 6000
FORMS = {"0-9": 0.6, "0-100": 0.25, "1-5": 0.15}  # share of the people asked on each scale
SURVEYS = ("coffee", "phones", "gym")
FIRST_SEED = 50_000  # of these people; the survey on cars asks people of other seeds


def chunk_rows(chunk: int, rows: int = CHUNK_ROWS) -> list[dict]:
    """Answered questions, as messages: each person answers twice, first without a sentence."""
    found, each = [], rows // (2 * len(SURVEYS))
    for k, survey in enumerate(SURVEYS):
        for j, (form, share) in enumerate(FORMS.items()):
            seed = FIRST_SEED + 100 * chunk + 10 * k + j
            asked = pocket_survey(max(1, round(each * share)), seed, survey, form, posts=1)
            for row in asked.answers.itertuples():
                person = asked.people[row.person]
                turn = {"role": "assistant", "content": str(row.rating)}
                said = messages(person, row.text, asked.question, asked.about)
                found.append({"messages": [*said, turn]})
    random.Random(chunk).shuffle(found)
    return found


def train_surveyed(size: str = "m", chunks: int = CHUNKS, rows: int = CHUNK_ROWS, progress=print):
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
        asked = chunk_rows(chunk, rows)
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
