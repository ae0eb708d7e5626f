"""Notebook 01: the exam, the same fine-tuning of several base models, what it costs; figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.algorithms.evaluate import LETTERS, multiple_choice, multiple_choice_by_text
from course_lib.core.cache import read_json
from course_lib.core.stats import bootstrap, over_seeds
from course_lib.experiments.measures import Answers, answer_rows
from course_lib.experiments.recipes import instruct_model, load, training_history
from course_lib.inputs.models import model_path
from course_lib.world.exam import render_prompt

if TYPE_CHECKING:
    from course_lib.kit.course import Course


def answers_after_sft(
    course: Course, model: str, rows: list[dict], num_examples: int, progress=None, **sampling: Any
) -> list[Answers]:
    """Each seed's answers after `instruct_model` has trained `model`, a name or a folder."""
    found = []
    for seed in course.seeds:
        path = instruct_model(course, model, num_examples, seed, own=False, progress=progress)
        found.append(answer_rows(course, *load(course, path), rows, seed=seed, **sampling))
    return found


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
        "letter, 0-shot": lambda *pair: multiple_choice(*pair, items, render_prompt),
        "letter, 5-shot": lambda *pair: multiple_choice(*pair, items, render_prompt, 5, dev.get),
        "text, 0-shot": lambda *pair: multiple_choice_by_text(*pair, items, render_prompt),
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


def pretraining_share(model: str) -> float:
    """How much of its pretraining a model has behind it, by its name: 0.1 for `pocket/m-10`."""
    end = re.search(r"-(\d+)$", model)
    return int(end[1]) / 100 if end else 1.0


def model_card(name: str) -> dict[str, Any]:
    """The card of a shipped model (parameters, tokens and seconds of its pretraining, ...).

    Empty where a model has none: nobody knows from a folder what its training took.
    """
    path = Path(model_path(name)) / "card.json"
    return read_json(path) if path.is_file() else {}
