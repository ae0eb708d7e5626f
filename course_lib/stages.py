"""Trained models that notebooks share, made on demand and kept under `build/cache`; their answers.

What decides a model enters the key of its cache entry: the base model's weights, the rows, every
setting, and the code that trains. So two notebooks that ask for the same model train it once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from course_lib import ROOT, chat, loop, losses, sft, sources
from course_lib.cache import stage, write_text
from course_lib.chat import ask, complete
from course_lib.evaluate import LETTERS, multiple_choice, multiple_choice_by_text
from course_lib.machine import bf16_pays
from course_lib.models import (
    add_lora,
    load_model,
    load_tokenizer,
    model_path,
    num_parameters,
    save_model,
)
from course_lib.sft import SFTConfig
from course_lib.stats import bootstrap, over_seeds
from course_lib.world import instructions
from course_lib.world.judge import is_answer

if TYPE_CHECKING:
    from course_lib.profiles import Course

NUM_EXAMPLES = 1600  # demonstrations of the course's standard instruct model
SMALL, LARGE = 50e6, 500e6  # parameters: below, a higher learning rate; above, LoRA
HISTORY = "history.json"


def instruct_model(
    course: Course,
    role: str = "base",
    num_examples: int = NUM_EXAMPLES,
    seed: int = 0,
    *,
    own: bool = True,
    progress: Callable[[int], Callable[[dict], None]] | None = None,
    **changes: Any,
) -> str:
    """The folder (or hub id) of an instruct model made from the model in `role`.

    Args:
        role: a role of the profile, or a model itself, such as one of `course.models("early")`.
        num_examples: demonstrations, `instruction_rows(course, num_examples, seed=seed)`.
        own: whether the profile's own instruct model, where it has one, is taken for role "base".
        progress: called with the number of steps if training is needed; what it returns, such as a
            `report.LiveCurve`, is called with the row of each step.
        changes: fields of `SFTConfig` that differ from `sft_config`.
    """
    if own and role == "base" and "instruct" in course.profile.models:
        return course.model("instruct")
    base = course.model(role) if role in course.profile.models else role
    revision = course.profile.revisions.get(base)
    config = sft_config(course, base, seed=seed, **changes)

    def make(folder: Path) -> None:
        tokenizer = load_tokenizer(base, revision)
        model = load_model(base, revision=revision, dtype=course.dtype, device=course.device)
        if num_parameters(model) >= LARGE:
            model = add_lora(model, r=16)  # the optimiser's state of all weights would not fit
        rows = sources.instruction_rows(course, num_examples, seed=seed)
        rendered = [chat.render_chat(tokenizer, row["messages"]) for row in rows]
        rendered = [row for row in rendered if sum(row["completion_mask"][1 : config.max_length])]
        bar = progress(loop.steps_of(config, len(rendered))) if progress else None
        history = sft.train_sft(model, rendered, config, progress=bar)
        save_model(model, tokenizer, folder)
        write_text(folder / HISTORY, json.dumps(history))

    key = {"config": asdict(config), "num_examples": num_examples, "seed": seed, "rev": revision}
    key |= {"data": course.profile.data["instructions"], "dtype": course.dtype}
    code = [sft, chat, loop, losses, sources, instructions, instruct_model]
    inputs = [base, ROOT / "data" / "world"]
    return str(stage("instruct-" + Path(base).name.lower(), key, make, code, inputs))


def sft_config(course: Course, base: str, lora: bool | None = None, **changes: Any) -> SFTConfig:
    """The course's settings of supervised fine-tuning for a model of that size.

    `lora`: LoRA's matrices start at zero and take ten times the learning rate; None takes what
    `instruct_model` does, LoRA for large models.
    """
    size = parameters_of(course, base)
    lora = size >= LARGE if lora is None else lora
    rate = 3e-4 if size < SMALL else 5e-5 if size < LARGE else 2e-5
    # A CPU's bf16 pays in large products; a small model's few rows a step get a quarter slower.
    bf16 = course.device != "cpu" or (size >= SMALL and bf16_pays())
    settings: dict[str, Any] = {
        "learning_rate": rate * (10 if lora else 1),
        "num_epochs": 2 if size < SMALL else 1,
        "batch_size": 4 if size < SMALL else 32,  # a small model gains more from more steps
        "max_length": course.context,
        "dtype": "bfloat16" if bf16 else "float32",
        "gradient_checkpointing": size >= SMALL,
    }
    return SFTConfig(**settings | changes)


def parameters_of(course: Course, base: str) -> int:
    """Parameters of a model by its config alone: nothing is loaded, no memory is taken."""
    config = AutoConfig.from_pretrained(
        model_path(base), revision=course.profile.revisions.get(base) or "main"
    )
    with torch.device("meta"):
        return num_parameters(AutoModelForCausalLM.from_config(config))


def training_history(folder: str) -> list[dict]:
    """The steps of the training that made `folder`; empty where it was not trained here."""
    path = Path(folder) / HISTORY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


@dataclass
class Answers:
    """What a model wrote to n rows of prompts, and what it is worth."""

    texts: list[str]
    scores: np.ndarray  # (n,) about 0 to 10, from `sources.scorer`
    is_answer: np.ndarray | None  # (n,) 0 or 1, by the judge; None where the truth is not known


def answer_rows(
    course: Course,
    model: Any,
    tokenizer: Any,
    rows: list[dict],
    *,
    chat: bool = True,
    **sampling: Any,
) -> Answers:
    """Let the model answer the rows' prompts, or continue them as raw text (`chat=False`)."""
    batch = {"batch_size": course.profile.batch["generate"]}
    write = ask if chat else complete
    texts = write(model, tokenizer, [row["prompt"] for row in rows], **batch | sampling)
    right = None
    if course.truth_known:
        right = np.array(
            [float(is_answer(row, text)) for row, text in zip(rows, texts, strict=True)]
        )
    return Answers(texts, sources.scorer(course)(rows, texts), right)


def answer_by_seed(
    course: Course, models: dict[int, tuple[Any, Any]], rows: list[dict], **options: Any
) -> list[Answers]:
    """`answer_rows` of each seed's (model, tokenizer), sampled with that seed."""
    return [answer_rows(course, *pair, rows, seed=seed, **options) for seed, pair in models.items()]


def share_answered(runs: list[Answers]) -> Any:
    """The share of prompts answered, with its interval; "unknown" where the truth is not known."""
    if any(run.is_answer is None for run in runs):
        return "unknown"
    return over_seeds([run.is_answer for run in runs])


def answers_after_sft(
    course: Course, model: str, rows: list[dict], num_examples: int, progress=None, **sampling: Any
) -> list[Answers]:
    """Each seed's answers after `instruct_model` has trained `model`, a name or a folder."""
    found = []
    for seed in course.seeds:
        path = instruct_model(course, model, num_examples, seed, own=False, progress=progress)
        found.append(answer_rows(course, *load(course, path), rows, seed=seed, **sampling))
    return found


def load(course: Course, model: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a name or folder, in fp32 on the profile's device."""
    revision = course.profile.revisions.get(model)
    loaded = load_model(model, device=course.device, revision=revision)
    return loaded, load_tokenizer(model, revision)


def load_pair(course: Course, model: str, num_examples: int) -> list[tuple[Any, Any]]:
    """(model, tokenizer) of a base model, and of the instruct model made from it."""
    made = instruct_model(course, model, num_examples, course.seed, own=False)
    return [load(course, model), load(course, made)]


def exam_by_seed(
    course: Course,
    name: str,
    models: dict[int, tuple[Any, Any]],
    items: list[dict],
    dev: dict[str, list[dict]],
) -> dict[str, list[Any]]:
    """The exam by letter, 0-shot and 5-shot, and by text: one `MCResult` a seed; claim 1.2's rows.

    A model that stands for several seeds is scored once.
    """
    ways: dict[str, Callable] = {
        "letter, 0-shot": lambda *pair: multiple_choice(*pair, items, 0),
        "letter, 5-shot": lambda *pair: multiple_choice(*pair, items, 5, dev.get),
        "text, 0-shot": lambda *pair: multiple_choice_by_text(*pair, items),
    }
    found: dict[str, list[Any]] = {way: [] for way in ways}
    for way, score in ways.items() if items else ():
        scored: dict[int, Any] = {}
        for seed, pair in models.items():
            if id(pair[0]) not in scored:
                scored[id(pair[0])] = score(*pair)
            mark = scored[id(pair[0])]
            found[way].append(mark)
            course.results.add("1.2", name, way, seed, "accuracy", mark.accuracy)
            for letter, share in zip(LETTERS, mark.letter_shares, strict=True):
                if way == "letter, 0-shot":
                    course.results.add("1.2", name, letter, seed, "chosen", share)
    return found


def by_question(items: list[dict], correct: np.ndarray) -> np.ndarray:
    """Share of right answers to each question, (questions,).

    Items that ask one question with its options in other orders are no independent trials.
    """
    asked = pd.Series([item["question"] for item in items])
    return pd.Series(correct * 1.0).groupby(asked, sort=False).mean().to_numpy()


def exam_gain(items: list[dict], before: list[Any], after: list[Any]) -> tuple[Any, Any]:
    """(gain, weaker): accuracy after less before, and the lower of the two, with intervals.

    `before` and `after` are the `MCResult` of each seed; the items' questions are the units.
    """
    old, new = ([by_question(items, run.correct) for run in runs] for runs in (before, after))
    gain = over_seeds([b - a for a, b in zip(old, new, strict=True)])
    return gain, min(bootstrap(np.mean(runs, axis=0)) for runs in (old, new))


def loss_by_tenth(folder: str) -> list[float]:
    """Mean training loss in each tenth of the steps; empty where nothing was trained here."""
    losses = [row["loss"] for row in training_history(folder)]
    return [float(part.mean()) for part in np.array_split(losses, 10)] if len(losses) > 9 else []


def training_operations(course: Course, model: str, num_examples: int) -> dict[str, float]:
    """6 N D floating-point operations of pretraining and of SFT; empty where no card tells D."""
    card = model_card(model)
    if not {"parameters", "tokens"} <= set(card):
        return {}
    folder = instruct_model(course, model, num_examples, course.seed, own=False)
    tokens = sum(row["num_tokens"] for row in training_history(folder))
    return {
        "pretraining": 6.0 * card["parameters"] * card["tokens"],
        "SFT": 6.0 * card["parameters"] * tokens,
    }


def fitting(model: Any, rows: list[dict], render: Callable[[dict], list[int]], spare: int = 32):
    """The rows whose ids (`render(row)`) leave `spare` tokens of the model's context free."""
    room = model.config.max_position_embeddings - spare
    return [row for row in rows if len(render(row)) <= room]


def pretraining_share(model: str) -> float:
    """How much of its pretraining a model has behind it, by its name: 0.1 for `pocket/m-10`."""
    end = re.search(r"-(\d+)$", model)
    return int(end[1]) / 100 if end else 1.0


def model_card(name: str) -> dict[str, Any]:
    """The card of a shipped model (parameters, tokens and seconds of its pretraining, ...).

    Empty where a model has none: nobody knows from a folder what its training took.
    """
    path = Path(model_path(name)) / "card.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
