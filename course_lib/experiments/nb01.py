"""Notebook 01: the exam, one fine-tuning of several base models, its cost; and all its figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.algorithms.evaluate import LETTERS, multiple_choice, multiple_choice_by_text
from course_lib.core import stats
from course_lib.core.cache import read_json
from course_lib.experiments.measures import Answers, answer_rows
from course_lib.experiments.recipes import instruct_model, load, training_history
from course_lib.inputs.models import model_path
from course_lib.inputs.rows import exam_rows
from course_lib.kit.figures import points, save_figure, subplots
from course_lib.world.exam import render_prompt

if TYPE_CHECKING:
    from course_lib.algorithms.evaluate import MCResult
    from course_lib.kit.course import Course

# DeepSeek-V3's training in thousand H800 GPU hours (lecture, slide 8)
HOURS = {"pre-training": 2664, "context extension": 119, "post-training": 5}


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
    course: Course, name: str, models: dict[int, tuple], items: list[dict], dev: dict[str, list]
) -> dict[str, list[MCResult]]:
    """The exam by letter, 0-shot and 5-shot, and by text: one `MCResult` a seed; claim 1.2's rows.

    A model that stands for several seeds is scored once.
    """
    ways: dict[str, Any] = {
        "letter, 0-shot": lambda *pair: multiple_choice(*pair, items, render_prompt),
        "letter, 5-shot": lambda *pair: multiple_choice(*pair, items, render_prompt, 5, dev.get),
        "text, 0-shot": lambda *pair: multiple_choice_by_text(*pair, items, render_prompt),
    }
    found: dict[str, list[MCResult]] = {way: [] for way in ways}
    for way, score in ways.items() if items else ():
        scored: dict[int, MCResult] = {}
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


def exam_gain(items: list[dict], before: list[MCResult], after: list[MCResult]) -> tuple:
    """(gain, weaker), intervals over questions: accuracy after less before, the lower of both."""
    old, new = ([by_question(items, run.correct) for run in runs] for runs in (before, after))
    return stats.gain(new, old), min(stats.share(runs) for runs in (old, new))


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
    read = sum(row["num_tokens"] for row in training_history(folder))
    tokens = {"pretraining": card["tokens"], "SFT": read}
    return {stage: 6.0 * card["parameters"] * number for stage, number in tokens.items()}


def pretraining_share(model: str) -> float:
    """How much of its pretraining a model has behind it, by its name: 0.1 for `pocket/m-10`."""
    end = re.search(r"-(\d+)$", model)
    return int(end[1]) / 100 if end else 1.0


def model_card(name: str) -> dict[str, Any]:
    """A shipped model's card (parameters, tokens, ...); empty for others, whose past is unknown."""
    path = Path(model_path(name)) / "card.json"
    return read_json(path) if path.is_file() else {}


def stage_bars(ax: Any, costs: dict[str, float], words: list[str], **options: Any) -> None:
    """A bar with words for each stage, on a log axis from the top down; post-training is orange."""
    colors = ["#D55E00" if x.endswith(("post-training", "SFT")) else "#9db8cc" for x in costs]
    ax.barh(list(costs), list(costs.values()), color=colors, **options)
    for row, (value, text) in enumerate(zip(costs.values(), words, strict=True)):
        ax.text(value, row, text, va="center")
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


def costs_figure(course: Course) -> None:
    """DeepSeek-V3's training costs: post-training is the smallest bar by far."""
    total = sum(HOURS.values())
    words = [f"  {h:,}K hours, ${2 * h / 1000:.2f}M, {h / total:.2%}" for h in HOURS.values()]
    fig, ax = subplots(figsize=(7, 2.3))
    stage_bars(ax, HOURS, words, height=0.6)
    ax.set(xlim=(1, 3e5), xlabel="thousand H800 GPU hours (log scale)")
    about = "Training costs of DeepSeek-V3 at $2 an hour (DeepSeek-V3 technical report, Table 1; "
    about += "lecture, slide 8). Post-training is the orange bar."
    alt = "Three horizontal bars on a logarithmic axis: pre-training 2,664 thousand GPU hours, "
    alt += "context extension 119 thousand, post-training 5 thousand."
    data = pd.DataFrame(HOURS.items(), columns=["stage", "thousand_hours"])
    save_figure(fig, "01_costs", course=course, data=data, caption=about, alt=alt)


def short_item(course: Course) -> dict:
    """An exam item that is short enough to be shown: the format's example."""
    return min(exam_rows(course, 40, 3)[0], key=lambda item: len(render_prompt(item)))


def mmlu_figure(course: Course) -> None:
    """An exam item as a model reads it, with notes on how its choice is read off."""
    item = short_item(course)
    fig, ax = subplots(figsize=(7.4, 2.7))
    ax.axis("off")
    shown = render_prompt(item).replace(" about ", "\nabout ", 1)
    box = {"facecolor": "#f2f6fa", "edgecolor": "#9db8cc", "pad": 8}
    ax.text(0.02, 0.95, shown, family="monospace", size=9, va="top", linespacing=1.45, bbox=box)
    notes = "The header names the subject.\n\n\nThe question and four options.\n\n\n\n\n"
    notes += "The next token decides: is\n' A', ' B', ' C' or ' D' likeliest?"
    ax.text(0.70, 0.95, notes, size=9, va="top", linespacing=1.45)
    about = "The format of MMLU (Hendrycks et al. 2021; lecture, slide 12) with an item of this "
    about += "course's exam. MMLU has 57 subjects and four options; 5-shot puts five solved items "
    about += "first."
    alt = "A multiple choice question in a box, with header, question, options A to D and the word "
    alt += "Answer, and notes beside it on how a model's choice is read off."
    data = pd.DataFrame([item]).astype(str)
    save_figure(fig, "01_mmlu", course=course, data=data, caption=about, alt=alt)


def training_figure(course: Course) -> None:
    """The loss of supervised fine-tuning along its steps."""
    fig, ax = subplots(figsize=(6, 2.8))
    points(ax, course, "1.1", "loss")
    ax.set(xlabel="share of the training done (%)", ylabel="loss (nats per token)", xlim=(0, 104))
    about = "The loss of supervised fine-tuning; each point is the mean over a tenth of the steps. "
    about += "Dots: this run. Line and shade: mean of the full runs with its 95% interval over "
    about += "seeds; upright bars: where one live run falls (95%)."
    alt = "Training loss in nats per token against the share of the training done, ten points."
    data = course.results.frame("1.1", "loss")
    save_figure(fig, "01_training", course=course, data=data, caption=about, alt=alt)


def answers_figure(course: Course) -> None:
    """The share of prompts that are answered, by the base and by the instruct model."""
    places = {"base, raw": 0, "base, chat": 1, "instruct, chat": 2}
    fig, ax = subplots(figsize=(6, 3))
    points(ax, course, "1.1", "answers", positions=places)
    for level, words in ((0.2, "target: base at most"), (0.9, "target: instruct at least")):
        ax.axhline(level, color="#777777", lw=1, ls=":")
        ax.text(-0.45, level + 0.02, words, size=8, color="#555555")
    ax.set(ylim=(-0.03, 1.05), xlim=(-0.5, 2.5), ylabel="share of prompts answered")
    names = ["base,\nraw prompt", "base,\nchat template", "instruct,\nchat template"]
    ax.set_xticks([0, 1, 2], names)
    about = "Share of held-out prompts that the judge calls answered. Dots: this run. Dashes with "
    about += "whiskers: mean of the full runs, 95% interval over seeds; light bars: one live run "
    about += "(95%)."
    alt = "Three points with bars, from 0 to 1: the share answered by the base model on raw "
    alt += "prompts, by the base model in the chat template, and by the instruct model; two dotted "
    alt += "target lines."
    data = course.results.frame("1.1", "answers")
    save_figure(fig, "01_answers", course=course, data=data, caption=about, alt=alt)


def exam_figure(course: Course) -> None:
    """The exam before and after: accuracies side by side, and the letters that are chosen."""
    fig, axes = subplots(1, 2, figsize=(8.2, 3.1), width_ratios=(1.3, 1.2), sharey=True)
    ways = ["letter, 0-shot", "letter, 5-shot", "text, 0-shot"]
    for order, name in enumerate(("base", "instruct")):
        for ax, measure, ticks in ((axes[0], "accuracy", ways), (axes[1], "chosen", "ABCD")):
            places = {tick: at + (0.3 * order - 0.15) for at, tick in enumerate(ticks)}
            points(ax, course, "1.2", measure, name, label=name, order=order, positions=places)
            ax.axhline(0.25, color="#777777", lw=1, ls=":")
            ax.set_xticks(range(len(ticks)), [tick.replace(", ", ",\n") for tick in ticks])
    axes[0].set(ylim=(0, 1), xlim=(-0.5, 2.5), ylabel="share of items", title="right answers")
    axes[1].set(xlim=(-0.5, 3.5), title="letter chosen (0-shot)")
    axes[1].legend(loc="upper right")
    about = "Left: exam accuracy of base and instruct model, by letter and by text; dotted: "
    about += "chance. Right: how often each letter is chosen; without letter bias all would lie "
    about += "near the dotted line. Bars as before."
    alt = "Left panel: accuracy of both models by letter with 0 and 5 shots, and by text. Right "
    alt += "panel: shares of the four letters."
    save_figure(fig, "01_exam", course=course, data="1.2", caption=about, alt=alt)


def base_matters_figure(course: Course) -> None:
    """The score after the same fine-tuning, by pretraining and by size of the base model."""
    fig, axes = subplots(1, 2, figsize=(7.4, 3), sharey=True)
    for order, (ax, name) in enumerate(zip(axes, ("pretraining", "size"), strict=True)):
        points(ax, course, "1.3", "score", name, order=order)
        x = sorted(set(course.results.frame("1.3", "score", name)["x"]))
        ax.set(xscale="log", xlim=(min(x, default=1) / 1.5, max(x, default=1) * 1.5))
        ax.set_xticks(x, [f"{at:.0%}" if at <= 1 else f"{at / 1e6:.1f}M" for at in x])
        ax.set_xticks([], minor=True)
    axes[0].set(xlabel="share of the pretraining of m (log scale)", ylabel="score after SFT")
    axes[1].set(xlabel="parameters of the base model (log scale)")
    about = "The judge's mean score (10 is perfect) after the same fine-tuning of different base "
    about += "models. Left: m at three points of its pretraining; right: three sizes. Marks as "
    about += "before."
    alt = "Two panels with the score after fine-tuning on the vertical axis: against the share of "
    alt += "pretraining on the left, against the number of parameters on the right."
    save_figure(fig, "01_base_matters", course=course, data="1.3", caption=about, alt=alt)


def compute_figure(course: Course) -> None:
    """Each stage's share of a model's training."""
    bars = {f"DeepSeek-V3: {name}": hours / sum(HOURS.values()) for name, hours in HOURS.items()}
    ours = course.results.frame("1.4").groupby(["condition", "x"], sort=False)["value"].mean()
    bars |= {f"pocket {model}: {stage}": share for (model, stage), share in ours.items()}
    fig, ax = subplots(figsize=(7.4, 0.8 + 0.3 * len(bars)))
    stage_bars(ax, bars, [f" {share:.2%}" for share in bars.values()])
    ax.set(xlim=(min(bars.values()) / 3, 4), xlabel="share of the model's training (log scale)")
    most = course.knobs["num_examples"]
    about = "Where the cost goes: GPU hours of DeepSeek-V3 (lecture, slide 8) beside the "
    about += "operations of this course's stages so far. SFT of the base model read "
    about += f"{most:,} demonstrations, the others {most // 5:,}. Orange: post-training."
    alt = "Horizontal bars on a log axis with the share of each training stage: three stages of "
    alt += "DeepSeek-V3, then pretraining and fine-tuning of each pocket model."
    data = pd.DataFrame(bars.items(), columns=["stage", "share"])
    save_figure(fig, "01_compute", course=course, data=data, caption=about, alt=alt)


FIGURES = (costs_figure, mmlu_figure, training_figure, answers_figure, exam_figure)
FIGURES += (base_matters_figure, compute_figure)
