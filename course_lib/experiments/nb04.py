"""Notebook 04: what PPO on a reward model gains and costs, by β, data and model size; figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from course_lib.experiments.experiment import Experiment, Missing
from course_lib.experiments.policy_bench import policy_items
from course_lib.experiments.recipes import ppo_policy
from course_lib.experiments.rlhf_trials import AMOUNTS
from course_lib.kit.figures import COLORS, known, points, save_figure, subplots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.core.stats import Interval
    from course_lib.kit.course import Course


ALONE = Missing("needs a second model")


def unlike(course: Course, settings: Mapping) -> str:
    """Why a condition of the sweep cannot be here; "" where it can."""
    roles = course.profile.models
    if (role := settings.get("base")) and roles.get(role, roles["base"]) == roles["base"]:
        return ALONE.why
    known_panel = course.truth_known or settings.get("panel") != "biased"
    return "" if known_panel else "needs a known truth"


def larger(found: Mapping) -> Interval | Missing:
    """The wins over a larger model with a prompt, where there is one."""
    return found.get("4.5a", ALONE)


def share(wins: Interval | Missing) -> str:
    """A share of wins in per cent, or why there is none."""
    return str(wins) if isinstance(wins, Missing) else f"{wins[0]:.0%}"


# Pushed on without a penalty, PPO's own guard against it off.
LONGER = {"num_steps": lambda shared: shared["num_steps"] * 3 // 2, "beta": 0.0, "max_kl": 1e4}
SWEEP = Experiment(
    "4.1",
    make=ppo_policy,
    measure=policy_items,
    live={"PPO": {}, "no penalty": {"beta": 0.0}},
    full={
        "β = 0.05": {"beta": 0.05},
        "β = 0.8": {"beta": 0.8},
        **{f"{n} prompts": LONGER | {"n": n} for n in AMOUNTS},
        "γ = 0.1": {"ptx_coef": 0.1},
        "γ = 1.0": {"ptx_coef": 1.0},
        "small": {"base": "small"},
        "large": {"base": "large"},
        "λ = 0.95": {"lam": 0.95},
        "the truth": {"panel": "nobody"},
        "biased labellers": {"panel": "biased"},
    },
    skip=unlike,
)
# Answers that a full run keeps: by the median and the worst gain in truth over SFT.
TEXTS = [("PPO", "truth", "median gain", 8), ("no penalty", "truth", "smallest gain", 8)]

BOXES = {  # of the figure of models: the middle of each, and its words
    "prompt": (0.35, 2, "prompt\n$x$"),
    "policy": (2.6, 2, "POLICY $\\pi_\\theta$\nwrites the answer,\ntoken by token"),
    "reference": (5.8, 3.4, "REFERENCE $\\pi_{ref}$\nhow likely was this\ntoken at the start?"),
    "reward model": (5.8, 2, "REWARD MODEL $r_\\phi$\nhow good is the\nwhole answer?"),
    "value": (5.8, 0.6, "VALUE $V$\nhow much reward\nis still to come?"),
    "update": (
        *(9.5, 2),
        "reward of a token:\n$-\\beta \\log(\\pi_\\theta/\\pi_{ref})$,\nplus the score "
        "at the last\n\nadvantage: better or\nworse than $V$ expected?",
    ),
}


def models_figure(course: Course) -> None:
    """Which models PPO holds, what each of them says, and which two learn from it."""
    fig, ax = subplots(figsize=(9.5, 3.9))
    ax.set(xlim=(0, 11.2), ylim=(-1.1, 4.2))
    ax.axis("off")
    trained, frozen = {"fc": "#cfe8ff"}, {"fc": "#eeeeee", "ls": "--"}
    looks = {"policy": trained, "value": trained, "reference": frozen, "reward model": frozen}
    patches = {}
    for name, (x, y, words) in BOXES.items():
        box = {"boxstyle": "round,pad=0.5"} | looks.get(name, {"fc": "white", "ec": "white"})
        patches[name] = ax.text(x, y, words, ha="center", va="center", bbox=box).get_bbox_patch()
    middle, bends = ("reference", "reward model", "value"), {"policy": -0.55, "value": -0.25}
    arrows = [("prompt", "policy"), *(("policy", name) for name in middle)]
    arrows += [*((name, "update") for name in middle), *(("update", name) for name in bends)]
    for start, end in arrows:
        look = {"arrowstyle": "->", "lw": 1.5, "shrinkA": 2, "shrinkB": 2}
        look |= {"patchA": patches[start], "patchB": patches[end]}
        if start == "update":
            look |= {"color": COLORS[0], "connectionstyle": f"arc3,rad={bends[end]}"}
        ax.annotate("", BOXES[end][:2], BOXES[start][:2], arrowprops=look)
    back = "make tokens with a positive advantage likelier, others less so; fit $V$ to what came"
    ax.text(6.05, -0.85, back, color=COLORS[0], ha="center")
    about = "The four models of PPO. Blue, solid frame: trained. Grey, dashed frame: frozen."
    alt = "Boxes and arrows: prompt to policy; its answer to reference, reward model and value; "
    alt += "all three to each token's reward and advantage; from there back to the policy."
    data = pd.Series({name: words for name, (_, _, words) in BOXES.items()}).reset_index()
    save_figure(fig, "04_models", course=course, data=data, caption=about, alt=alt)


def tilt_figure(course: Course) -> None:
    """A small penalty moves all mass to what the score likes best, however rare it was."""
    answers = ["garbled", "too short", "fair", "good", "flattery"]
    pi_ref, r = np.array([0.15, 0.25, 0.40, 0.18, 0.02]), np.array([-1.5, -0.5, 0.3, 1.0, 1.6])
    bars = {"reference (β = ∞)": np.inf, "β = 1": 1.0, "β = 0.4": 0.4, "β = 0.15": 0.15}
    betas = np.array([*bars.values(), *np.geomspace(0.08, 100, 80)])
    tilted = pi_ref * np.exp(r / betas[:, None])
    tilted /= tilted.sum(1, keepdims=True)
    kl, gain = (tilted * np.log(tilted / pi_ref)).sum(1), tilted @ r
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.4), width_ratios=[1.4, 1])
    right.plot(kl[4:], gain[4:], color="black", lw=1)
    shades = "#dddddd", "#9ecae1", "#4292c6", "#084594"
    for i, (name, color) in enumerate(zip(bars, shades, strict=True)):
        place, look = np.arange(5) + 0.2 * i - 0.3, {"color": color, "ec": "black", "lw": 0.4}
        left.bar(place, tilted[i], 0.2, label=name, **look)
        right.plot(kl[i], gain[i], "o", color=color, mec="black", ms=8)
    left.set_xticks(range(5), [f"{a}\nr = {s}" for a, s in zip(answers, r, strict=True)])
    left.legend(title="best policy for")
    left.set(ylabel="probability")
    right.set(xlabel="KL to the reference (nats)", ylabel="expected reward")
    about = "Left: the best policy for several β. Right: all of them lie on one curve, the most "
    about += "reward that a distance from the reference can buy; dots: the policies of the left "
    about += "panel."
    alt = "Left: bars of five answers; as β falls, mass moves to answers of high reward, last to "
    alt += "one called flattery. Right: a concave curve of reward over KL with four dots."
    data = pd.DataFrame({"kl": kl, "reward": gain})
    save_figure(fig, "04_tilt", course=course, data=data, caption=about, alt=alt)


def training_figure(course: Course) -> None:
    """Score, truth, KL and more along the training, with the penalty and without."""
    fig, axes = subplots(2, 3, figsize=(9.5, 5), sharex=True)
    titles = {"proxy": "score (standard deviations)", "truth": "true score (points)"}
    titles |= {"kl": "KL (nats)", "entropy": "entropy (nats a token)"}
    titles |= {"explained_variance": "explained variance", "completion_length": "length (tokens)"}
    for ax, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for order, run in enumerate(("PPO", "no penalty")):
            points(ax, course, "along", name, run, order=order, joined=True, label=run)
        ax.set(title=title)
    axes[0, 0].legend()
    for ax in axes[1]:
        ax.set(xlabel="iteration")
    about = "With and without the penalty. A point: the mean of the four iterations up to it; at "
    about += "0: of the ranked answers. Outlined: this run; thin: other live runs; line and shade: "
    about += "the mean of the full runs and its 95% interval over seeds."
    alt = "Six panels over iterations for two trainings: score, true score, KL, entropy, explained "
    alt += "variance, length."
    data = course.results.frame("along")
    save_figure(fig, "04_training", course=course, data=data, caption=about, alt=alt)


def beta_figure(course: Course) -> None:
    """What β controls: distance, score, truth and wins."""
    fig, axes = subplots(1, 4, figsize=(9.5, 2.9))
    betas = {"no penalty": "0", "β = 0.05": "0.05"}
    betas |= {"PPO": f"{course.knobs['beta']:g}", "β = 0.8": "0.8"}
    titles = {"kl": "KL (nats)", "proxy": "score (deviations)", "truth": "true score (points)"}
    _by_run(axes, course, "4.1", betas, titles | {"wins": "wins over SFT"})
    for ax in axes:
        ax.set(xlabel="β")
    axes[3].axhline(0.5, color="black", lw=1)
    about = "What β controls, on held-out prompts. Outlined: this run; pale: other live runs; "
    about += "whiskers: the mean of the full runs and its 95% interval over seeds."
    alt = "Four panels over β from zero upwards: KL, the reward model's score, the true score, "
    alt += "wins."
    data = course.results.frame("4.1")
    save_figure(fig, "04_beta", course=course, data=data, caption=about, alt=alt)


def _by_run(
    axes: Iterable[Axes], course: Course, claim: str, runs: Mapping, titles: Mapping
) -> None:
    """One panel a measure (`titles`) with the known ones of `runs` (name -> tick) side by side."""
    shown = [name for name in runs if name in known(course, claim)]
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for place, run in enumerate(shown):
            points(ax, course, claim, measure, run, positions={0: place})
        ax.set(title=title, xlim=(-0.5, len(shown) - 0.5))
        ax.set_xticks(range(len(shown)), [runs[run] for run in shown])


def hacking_figure(course: Course) -> None:
    """Score and gain in truth by distance, for three amounts of data."""
    fig, axes = subplots(2, 2, figsize=(9.5, 7), sharex="row")
    sizes = {f"{n} prompts": order for order, n in enumerate(AMOUNTS, start=2)}
    climbed = {"PPO": ("with a penalty", 0)}
    climbed |= {} if course.full else {"no penalty": ("without", 1)}  # "512 prompts" continues it
    climbed |= {size: (f"without, {size}", order) for size, order in sizes.items()}
    picks = {"best of n" + ("" if "512" in s else f", {s}"): (s, at) for s, at in sizes.items()}
    for row, way, lines in zip(axes, ("PPO", "best of n"), (climbed, picks), strict=True):
        for run, (label, order) in lines.items():
            for ax, name in zip(row, ("proxy", "gain"), strict=True):
                look = {"order": order, "distance": "kl", "joined": True, "label": label}
                points(ax, course, "along", name, run, **look)
        row[0].set(title=f"{way}: the score, which is climbed", ylabel="standard deviations")
        row[1].set(title=f"{way}: the gain in truth, which is wanted", ylabel="points of the judge")
        row[1].axhline(0, color="black", lw=1)
        row[1].set_ylim(max(-6, row[1].get_ylim()[0]), None)
        row[0].legend(loc="upper left")
    for ax in axes.flat:
        ax.set(xlabel="distance from the start, √KL")
    about = "Over-optimisation with unbiased labellers, by prompts that the reward model learned "
    about += "from; each has its own score. PPO: four iterations from mark to mark. Best of n: n "
    about += "doubles. The truth is cut at -6. Lines and shades as in 04_training."
    alt = "Score and gain in truth over the root of KL, for three amounts of data. Scores always "
    alt += "rise. The truth falls under PPO without a penalty, and for best-of-n with the least "
    alt += "data."
    data = course.results.frame("along")
    save_figure(fig, "04_hacking", course=course, data=data, caption=about, alt=alt)


def costs_figure(course: Course) -> None:
    """What is forgotten of pretraining, with γ and without, and whether answers turn false."""
    fig, axes = subplots(1, 3, figsize=(9.5, 3.2))
    weights = {name: name.replace(" ", "") for name in ("base", "SFT", "PPO", "γ = 0.1", "γ = 1.0")}
    titles = {"document_loss": "loss on documents (nats a token)"}
    titles |= {"exam": "share of the exam right"}
    _by_run(axes[:2], course, "4.4", weights, titles)
    labellers = {"PPO": "unbiased labellers", "biased labellers": "biased labellers"}
    for order, (run, label) in enumerate(labellers.items()):
        points(axes[2], course, "along", "false", run, order=order, joined=True, label=label)
    axes[2].set(title="false statements an answer", xlabel="iteration")
    axes[2].set_ylim(0, 1.2 * axes[2].get_ylim()[1])
    axes[2].legend()
    data = pd.concat([course.results.frame("4.4"), course.results.frame("along", "false")])
    about = "What RLHF costs: what is forgotten of pretraining, without and with the pretraining "
    about += "term (left, middle; marks as in 04_beta), and falsehood along the training (right)."
    alt = "Three panels: loss on documents and exam score for SFT and PPO; false statements along "
    alt += "the training."
    save_figure(fig, "04_costs", course=course, data=data, caption=about, alt=alt)


def matrix_figure(course: Course) -> None:
    """How often each model beats each other one."""
    results = course.results.frame("4.5")
    matrix = results.pivot_table(index="condition", columns="x", values="value")
    order = matrix.mean(axis=1).sort_values(ascending=False).index
    matrix = matrix.reindex(index=order, columns=order)
    fig, ax = subplots(figsize=(1.6 + 0.95 * len(order), 1.0 + 0.5 * len(order)))
    image = ax.imshow(100 * matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, j in zip(*np.nonzero(matrix.notna().to_numpy()), strict=True):
        value = 100 * matrix.iloc[i, j]
        color = "white" if value > 60 else "black"
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
    ax.set_xticks(range(len(order)), [name.replace(", ", "\n") for name in order])
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel="against", ylabel="how often this one wins (%)")
    ax.set_facecolor("#cccccc")
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, label="wins (%)")
    about = "How often the model of the row writes a truly better answer than that of the column, "
    about += "at the same held-out prompts; sorted by mean. 50 is a draw."
    alt = "A square table of win rates between models, coloured from 0 to 100 percent, sorted from "
    alt += "the strongest model to the weakest."
    save_figure(fig, "04_matrix", course=course, data=results, caption=about, alt=alt)


FIGURES = (models_figure, tilt_figure, training_figure, beta_figure, hacking_figure)
FIGURES += (costs_figure, matrix_figure)
