"""Notebook 03, reward models: its figures, from the rows that `reward_trials` records."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.experiments.preferences import PANELS
from course_lib.experiments.reward_trials import PARTS, short
from course_lib.kit.figures import COLORS, beside_trl, points, save_figure, series, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course


def idea_figure(course: Course) -> None:
    """How noise blurs a choice, and how many comparisons the ranking of K answers gives."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.3))
    gap, ks = np.linspace(-8, 8, 200), np.array([2, 4, 9])
    for order, noise in enumerate((0.7, 1.4, 2.8)):
        ours = noise == PANELS["unbiased"].noise
        look = series(order, marker="", lw=3 if ours else 1.5)
        left.plot(gap, 1 / (1 + np.exp(-gap / noise)), label=f"noise {noise}", **look)
    left.set(xlabel="points that answer a is better than b")
    left.set(ylabel="probability that a is preferred")
    left.legend(title="labellers with")
    pairs = ks * (ks - 1) // 2
    for shift, height, color in ((-0.2, ks, COLORS[4]), (0.2, pairs, COLORS[1])):
        bars = right.bar(np.arange(3) + shift, height, 0.38, color=color, edgecolor="black", lw=0.5)
        right.bar_label(bars)
    right.set(xticks=range(3), xticklabels=[f"K = {k}" for k in ks], ylabel="for one prompt")
    right.legend(["answers that the model reads", "comparisons that it learns from"])
    right.grid(axis="x", visible=False)
    about = "Left: Bradley and Terry's model of a choice; the labellers of this world have noise "
    about += "1.4 (thick line). Right: ranking K answers gives K (K - 1) / 2 comparisons for K "
    about += "readings."
    alt = "Left: three S-shaped curves through one half at equal quality, steeper for less noise."
    alt += " Right: pairs of bars, 2 and 1 for K = 2, 4 and 6 for K = 4, 9 and 36 for K = 9."
    data = pd.DataFrame({"k": ks, "pairs": pairs})
    save_figure(fig, "03_idea", course=course, data=data, caption=about, alt=alt)


def labellers_figure(course: Course) -> None:
    """How many of the pairs are nearly coin flips, and the ceiling as their mean."""
    rows = course.results.frame("3.1", condition="labellers")
    shares = rows[rows["measure"] == "share of pairs"].groupby("x")["value"].mean()
    fig, ax = subplots(figsize=(7, 3))
    ax.bar(100 * shares.index, 100 * shares, 4.6, color=COLORS[4], edgecolor="black", lw=0.5)
    if len(rows):  # none where nobody knows the labellers
        mean = rows[rows["measure"] == "mean"]["value"].mean()
        ax.axvline(100 * mean, color="black", lw=2)
        said = f"the mean, {mean:.1%}, is the ceiling  "
        ax.text(100 * mean, 99 * shares.max(), said, va="top", ha="right")
    ax.set(xlabel="how often labellers prefer the better answer of a pair (%)", xlim=(49, 101))
    ax.set(ylabel="share of pairs (%)")
    about = "Where the ceiling comes from: for each held-out pair the known probability that the "
    about += "better answer is preferred. Left: pairs that are nearly coin flips; right: clear "
    about += "cases."
    alt = "A histogram from 50 percent, nearly coin flips, to 100 percent, nearly certain; a line"
    alt += " marks the mean, which is the ceiling."
    save_figure(fig, "03_labellers", course=course, data=rows, caption=about, alt=alt)


def ceiling_figure(course: Course) -> None:
    """Accuracy by amount of data and size of model, between a coin and the exact ceiling."""
    rows = pd.concat([course.results.frame("3.3"), course.results.frame("3.1", "accuracy")])
    fig, ax = subplots(figsize=(8, 4.2))
    _levels(ax, rows, course.truth_known)
    models = [m for role in ("small", "medium", "large") for m in course.models(role)]
    names = dict.fromkeys(map(short, models))
    for order, name in enumerate(names if course.truth_known else rows["condition"].unique()):
        points(ax, course, "3.3", "accuracy", name, order=order, label=f"model {name}")
    # wherever a line of numbers of prompts has a point; the levels' lines go from 0 to 1
    ticks = sorted({n for line in ax.lines for n in line.get_xdata() if n > 1})
    ax.set(xscale="log", xlabel="prompts with ranked answers", ylabel="accuracy on held-out pairs")
    ax.set_xticks(ticks, [f"{n:,.0f}" for n in ticks])
    ax.set_xticks([], minor=True)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
    about = "Accuracy by amount of data and size of model, and the exact ceiling. Dots: one a seed."
    about += " Lines and shades: full runs, 95% over seeds; pale bars: where one live run falls "
    about += "(95%)."
    alt = "Marks by number of prompts for each model, above a coin and below the hatched ceiling."
    save_figure(fig, "03_ceiling", course=course, data=rows, caption=about, alt=alt)


def _levels(ax: Axes, rows: pd.DataFrame, ceiling: bool) -> None:
    """Lines for a coin and the rule about length, and the ceiling, if known, hatched above."""
    exact = rows[rows["measure"] == "ceiling"]["value"].mean()
    simple = rows[rows["condition"] == "longer is better"]["value"].mean()
    lines = {"a coin": (0.5, ":"), "longer is better": (simple, ":")}
    lines |= {"the ceiling: nobody can do better": (exact, "-")} if ceiling else {}
    place = {"transform": ax.get_yaxis_transform(), "bbox": {"fc": "white", "ec": "none", "pad": 1}}
    for words, (height, style) in lines.items():
        ax.axhline(height, color="black", ls=style, lw=2 if style == "-" else 1)
        ax.text(0.99, height + 0.006, words, va="bottom", ha="right", **place)
    if ceiling:
        ax.axhspan(exact, 1, facecolor="#eeeeee", edgecolor="#aaaaaa", hatch="//", lw=0)
        ax.set_ylim(top=exact + 0.05)


def calibration_figure(course: Course) -> None:
    """Whether what the model predicts is what is observed, and how sure it is on the whole."""
    rows = course.results.frame("3.1")
    kinds = {"observed": "this run's labels", "known": "fresh labels, expected"}
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 4.2))
    left.plot([0, 1], [0, 1], color="black", lw=1)
    for order, (measure, words) in enumerate(kinds.items()):
        look = {"order": order, "distance": "predicted", "joined": False, "label": words}
        points(left, course, "3.1", measure, "reward model", **look)
    left.set(xlabel="predicted: P(a preferred)", ylabel="observed: how often a is preferred")
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    left.legend(loc="upper left")
    _sureness(right, rows)
    about = "Left: predicted and observed preference in ten groups of pairs; calibrated on the "
    about += "line. Right: how sure both are; dotted: the means; thin line: how often the model is "
    about += "right. Outlined: this run; whiskers: full runs, 95% over seeds; pale: other live "
    about += "runs."
    alt = "Left: ten groups beside a diagonal. Right: how sure the model is, and the labellers "
    alt += "are."
    save_figure(fig, "03_calibration", course=course, data=rows, caption=about, alt=alt)


def _sureness(ax: Axes, rows: pd.DataFrame) -> None:
    """How sure the model and the labellers are: shares of pairs, means, how often it is right."""
    for order, name in enumerate(("reward model", "labellers")):
        mine = rows[rows["condition"] == name]
        if len(mine):
            means = mine.groupby("measure")["value"].mean()
            shares = mine[mine["measure"] == "share of pairs"].groupby("x")["value"].mean()
            ax.plot(100 * shares, **series(order, label=f"{name}, mean {means['mean']:.3f}"))
            ax.axvline(means["mean"], **series(order, marker="", ls=":"))
            ax.axvline(means.get("accuracy", np.nan), **series(order, marker="", ls="-", lw=1))
    ax.set(xlabel="probability of the likelier answer", ylabel="share of pairs (%)")
    ax.legend(loc="upper center", frameon=True, framealpha=1, edgecolor="white")


def parts_figure(course: Course) -> None:
    """What the true score and the model's go along with, the judge's parts and the length."""
    fig, ax = subplots(figsize=(9.5, 3.6))
    ax.axhline(0, color="black", lw=1)
    rows = course.results.frame("3.1", "correlation")
    truth = rows[rows["condition"] == "truth"].groupby("x")["value"].mean()
    parts = truth.sort_values().index[::-1]  # what matters most comes first
    _two(ax, ("truth", "reward model"), parts, 0.25, course, "3.1", "correlation")
    ax.set_xticks(range(len(parts)), [PARTS.get(part, part) for part in parts])
    ax.set(ylabel="correlation with the score", xlim=(-0.5, max(len(parts), 1) - 0.5))
    ax.legend()
    about = "What the two scores go along with, over pairs of answers to the same held-out prompt: "
    about += "the parts of the judge, and the number of words. Outlined circles: true score; "
    about += "squares: the model's; whiskers: mean of the full runs, 95% over seeds; pale: where "
    about += "one live run falls."
    alt = "Pairs of marks, for the true score and the model's: nine parts, and the number of "
    alt += "words."
    save_figure(fig, "03_parts", course=course, data=rows, caption=about, alt=alt)


def _two(ax: Axes, names: tuple[str, str], ticks: Collection, apart: float, *rows: Any) -> None:
    """The points of two conditions side by side at each tick; `rows` are course, claim, measure."""
    for order, name in enumerate(names):
        at = {tick: place + apart * (order - 0.5) for place, tick in enumerate(ticks)}
        points(ax, *rows, name, order=order, positions=at, label=name)


def batches_figure(course: Course) -> None:
    """Comparisons learned together or shuffled: how good, how much by heart, at what cost."""
    fig, axes = subplots(1, 4, figsize=(10.5, 3.3))
    titles = {"accuracy": "held-out accuracy", "loss": "held-out loss (nats)"}
    titles["learned by heart"] = "by heart (share)"
    titles["tokens per comparison"] = "tokens a comparison"
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        _two(ax, ("together", "shuffled"), (4, 9), 0.25, course, "3.2", measure)
        ax.set(title=title, xlim=(-0.5, 1.5), xticks=[0, 1], xticklabels=["K = 4", "K = 9"])
    axes[0].set_ylim(0.5, None)
    axes[1].axhline(np.log(2), color="black", lw=1, ls=":")
    axes[2].axhline(0, color="black", lw=1)
    axes[3].set_ylim(0, None)
    axes[0].legend()
    about = "The same comparisons, all of a prompt together (circles) or shuffled (squares). "
    about += "Dotted: the loss of a coin. Learned by heart: agreement with the labels trained on, "
    about += "less that with fresh labels of the same pairs. Whiskers: full runs, 95%; pale: where "
    about += "a live run falls."
    alt = "Four panels for K = 4 and K = 9: accuracy and loss on held-out pairs, what was "
    alt += "learned by heart, and tokens read per comparison, which is several times higher for "
    alt += "shuffled pairs."
    save_figure(fig, "03_batches", course=course, data="3.2", caption=about, alt=alt)


def bias_figure(course: Course) -> None:
    """What falsehood and confidence are worth to who judges, and to models that learned from it."""
    fig, axes = subplots(1, 2, figsize=(9.5, 3.6))
    variants = "plain, false", "confident, true", "confident, false"
    lines = [variant.replace(" ", "\n") for variant in variants]
    panels = [("judge", "biased labellers"), ("learned from unbiased", "learned from biased")]
    for ax, names, title in zip(axes, panels, ("who judges", "what models learned"), strict=True):
        _two(ax, names, variants, 0.2, course, "3.4", "points")
        ax.axhline(0, color="black", lw=1)
        ax.set(xticks=range(3), xticklabels=lines, xlim=(-0.5, 2.5), title=title)
        ax.legend(loc="upper left")
    axes[0].set(ylabel="points more than\nplain and true")
    about = "What falsehood and confident phrases add to an answer, in points of the judge; mind "
    about += "the two scales. The panel's bias is planted. A model's score is multiplied by its "
    about += "labellers' noise. Outlined: this run; whiskers: full runs, 95% over seeds; pale: "
    about += "where one live run falls (95%)."
    alt = "Left: the judge at or below zero, the biased labellers far above it where an answer "
    alt += "is confident. Right: the models that learned from unbiased and from biased labellers."
    save_figure(fig, "03_bias", course=course, data="3.4", caption=about, alt=alt)


def trl_figure(course: Course) -> None:
    """The loss of our loop and of TRL's trainer, step by step."""
    alt = "Two training curves that lie on each other at every step, about log 2 at first."
    beside_trl(course, "RewardTrainer", "8 pairs", "pair", alt=alt)


FIGURES = (idea_figure, labellers_figure, ceiling_figure, calibration_figure, parts_figure)
FIGURES += (batches_figure, bias_figure, trl_figure)
