"""Notebook 10, a model and a population: conditions, claims, and the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.algorithms.population import numeric_weights
from course_lib.experiments import baselines, recipes, survey_bench
from course_lib.experiments.experiment import Claim, Experiment
from course_lib.experiments.survey_bench import PLACES, TEMPERATURES
from course_lib.kit.figures import COLORS, beside_trl, points, save_figure, series, subplots
from course_lib.kit.results import committed, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course

PENALTY = {"alpha": 0.5, "d": 10.0}  # ours: the paper's could not be read
WIDTHS = (2.0, 5.0, 10.0, 20.0)
AMOUNTS = (75, 150, 300, 600, 1200, 2400)  # of 3,236 training people
SIZES = {"s": "small", "m": "base", "l": "large"}
PER_PERSON = {"truth all": "per-person KL to the truth (nats)"}
PAIR = {"rmse": "RMSE (points of 100)", "kl": "KL(people ‖ model), nats"}


def _numeric(**options: Any) -> dict[str, Any]:
    return {"loss": "numeric", "options": PENALTY | options}


def _lacks(course: Course, settings: Mapping[str, Any]) -> str:
    role, survey, models = settings.get("role"), settings["survey"], course.profile.models
    if survey.get("form") and survey.get("file"):
        return "on the pocket world's people alone"
    own = role in (None, "base") or models.get(role) not in (None, models["base"])
    return "" if own else "needs a second model"


SWEEP = Experiment(
    "10",
    make=recipes.survey_model,
    measure=survey_bench.measure,
    live={"LoRA": {}, "QLoRA": {"quantize": "nf4"}, "numeric penalty": _numeric()},
    full={f"d = {d:g}": _numeric(d=d) for d in WIDTHS if d != PENALTY["d"]}
    | {f"d = {d:g}, normalised": _numeric(d=d, normalised=True) for d in WIDTHS}
    | {f"{n} people": {"people": n} for n in AMOUNTS}
    | {f"size {name}": {"role": role} for name, role in SIZES.items()}
    | {f"size {name}, before": {"role": role, "num_steps": 0} for name, role in SIZES.items()}
    | {loss: {"loss": loss} for loss in ("number-token", "forward KL", "Wasserstein")}
    | {"all weights": {"lora": 0, "learning_rate": 5e-4}}
    | {f"{name}, 0-100": {"survey": lambda shared: shared["survey"] | {"form": "0-100"}} | own
       for name, own in {"LoRA": {}, "QLoRA": {"quantize": "nf4"}}.items()},
    skip=_lacks,
)  # fmt: skip

RMSE_BY_T = [f"rmse all t={t:g}" for t in TEMPERATURES]
KEPT = [*RMSE_BY_T, "kl all t=0", "kl all t=1", "rmse all mean", "truth all"]  # person by person
CLAIMS = [
    Claim("10.1a", "A higher temperature costs individual fit", "2403.20252",
          "slope of RMSE on t, 0 to 1, points", "> 0",
          lambda ran: ran.slope(TEMPERATURES, RMSE_BY_T, "LoRA")),
    Claim("10.1b", "A higher temperature fits the population", "2403.20252",
          "KL at t = 1 minus greedy, nats", "< 0",
          lambda ran: ran.change("kl all t=1", "kl all t=0", "LoRA")),
    Claim("10.2a", "QLoRA fits the population as LoRA does", "2403.20252",
          "KL at t = 1, QLoRA minus LoRA, nats", "within 0.02",
          lambda ran: ran.gain("kl all t=1", "QLoRA", "LoRA")),
    Claim("10.2b", "QLoRA fits the individual as LoRA does", "2403.20252",
          "greedy RMSE, QLoRA minus LoRA, points", "within 1",
          lambda ran: ran.gain("rmse all t=0", "QLoRA", "LoRA")),
    Claim("10.3", "The numeric penalty lowers greedy RMSE", "2403.20252",
          "greedy RMSE, with minus without, points", "< 0",
          lambda ran: ran.gain("rmse all t=0", "numeric penalty", "LoRA")),
    Claim("10.4a", "The model knows people, not just the population", "beyond the paper",
          "per-person KL to the truth, LoRA minus marginal, nats", "< 0",
          lambda ran: ran.gain("truth all", "LoRA", "marginal")),
    Claim("10.4b", "The expected value is a better guess than greedy", "beyond the paper",
          "RMSE, expected value minus greedy, points", "< 0",
          lambda ran: ran.change("rmse all mean", "rmse all t=0", "LoRA")),
]  # fmt: skip


def look_figure(course: Course) -> None:
    """Three people: what is true of them, and what the model says before and after tuning.

    From the committed full run; until there is one, from the committed live run. They are invented
    people, so beside a survey of the reader's own there is no such picture.
    """
    if course.knobs.get("survey"):
        print("The truth about the people of your survey is unknown; see *After*.")
        return
    rows = course.full_runs("people")
    if rows.empty and course.profile.name == "pocket":
        rows = select(committed("10", "live"), "people")
    fig, axes = subplots(1, 3, figsize=(10.5, 3.1), sharey=True)
    looks = {"truth": {"color": "#bbbbbb", "lw": 6}, "before": {"color": "#555555", "ls": "--"}}
    looks |= {"LoRA": {"color": COLORS[0], "marker": "."}}
    for ax, place in zip(axes, PLACES, strict=True):
        for name, look in looks.items():
            here = select(rows, measure=f"at {place}%", condition=name)
            mean = here.groupby("x")["value"].mean()
            ax.plot(mean.index, mean, label={"LoRA": "after tuning"}.get(name, name), **look)
        ax.set(title=f"a person at {place} of 100", xlabel="rating")
    axes[0].set(ylabel="probability")
    axes[-1].legend()
    about = "Test people at the 10th, 50th and 90th place of 100 by their true mean rating. Truth: "
    about += "how all people with exactly these fields would answer."
    alt = "Three panels of three lines: the one after tuning follows the broad one, the truth."
    save_figure(fig, "10_look", course=course, data=rows, caption=about, alt=alt)


def idea_figure(course: Course) -> None:
    """What the numeric penalty pays, and what it makes of a person's distribution."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.3))
    for order, d in enumerate((2, 5, 10)):
        left.plot(range(10), numeric_weights(10, d)[6], **series(order, label=f"d = {d}"))
    truth = np.array([0.12, 0.07, 0.09, 0.12, 0.15, 0.16, 0.12, 0.08, 0.04, 0.05])
    right.bar(range(10), truth, 0.9, color="#cccccc", label="a person's shares")
    kinds = {"normalised, d = 2": (2, True), "normalised, d = 10": (10, True)}
    kinds["raw, d = 10 (trained below)"] = 10, False
    for order, (label, kind) in enumerate(kinds.items()):
        wanted = 0.5 * truth + 0.5 * truth @ numeric_weights(10, *kind).numpy()
        right.plot(range(10), wanted / wanted.sum(), **series(order * 2, label=label))
    left.set(title="what level k pays where y = 6", xlabel="level k", ylabel="weight")
    right.set(title="the penalty blurs", xlabel="level", ylabel="probability", ylim=(0, 0.27))
    left.legend()
    right.legend()
    about = "Left: weights of the penalty. Right: the shares at which the loss is smallest."
    alt = "Left: triangles with their tip at 6. Right: bars, and three lines flatter than these."
    save_figure(fig, "10_idea", course=course, data="none", caption=about, alt=alt)


def _means(course: Course, measure: str, condition: str) -> dict[str, float]:
    """The mean of a measure: in this run ("own"), and in the committed full runs ("full")."""
    frames = {"own": course.results.frame("10"), "full": course.full_runs("10")}
    rows = {name: select(f, measure=measure, condition=condition) for name, f in frames.items()}
    return {name: found["value"].mean() for name, found in rows.items() if len(found)}


GREY = "#8a8a8a"
FRONTIER = {"before": (GREY, "D"), "LoRA": (COLORS[1], "s"), "QLoRA": (COLORS[5], "D")}
FRONTIER |= {f"size {s}, before": (GREY, m) for s, m in zip(SIZES, "ov^", strict=True)}
FRONTIER |= {f"size {s}": (COLORS[0], m) for s, m in zip(SIZES, "ov^", strict=True)}
FRONTIER |= {"ridge": (COLORS[2], "P"), "SVR": (COLORS[2], "X"), "CatBoost": (COLORS[2], "h")}
FRONTIER |= {"marginal": (COLORS[3], ">"), "random": (COLORS[3], "<")}


def frontier_figure(course: Course) -> None:
    """KL against RMSE of every model and baseline, greedy and at temperature 1."""
    fig, axes = subplots(1, 2, figsize=(11, 5.2), sharey=True)
    for ax, phase in zip(axes, ("initial", "post"), strict=True):
        for name, (color, marker) in FRONTIER.items():
            found = [_means(course, f"{m} {phase} t={t}", name) for t in (0, 1) for m in PAIR]
            if not all(found):
                continue
            ends = np.reshape([one.get("full", one.get("own")) for one in found], (2, 2))
            look = {"color": color, "marker": marker}
            ax.plot(*ends.T, **look, lw=0.8, mfc="white")
            ax.plot(*ends[:1].T, **look, linestyle="none", label=name)
        title = {"initial": "initial answers", "post": "answers after a sentence"}[phase]
        ax.set(title=title, xlabel=PAIR["rmse"], yscale="log")
    axes[0].set(ylabel=f"{PAIR['kl']}, log scale")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    about = "Greedy (filled), sampled (open): full runs, or else this run. Low and left is good."
    alt = "Points joined in pairs. Of tuned models and regressions the open one lies lower and to "
    alt += "the right; before tuning, lower and to the left."
    save_figure(fig, "10_frontier", course=course, data="10", caption=about, alt=alt)


def _panels(
    course: Course, name: str, titles: Mapping, draw: Callable, xlabel: str, **words: str
) -> None:
    """A panel a measure, `draw(ax, measure)`; titles by measure; caption and alt text."""
    fig, axes = subplots(1, len(titles), figsize=(1.5 + 3.6 * len(titles), 3.4))
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        draw(ax, measure)
        ax.set(title=title, xlabel=xlabel)
        if "KL" in title and ax.get_yscale() == "linear":
            ax.set_ylim(bottom=0)
    axes[0].legend()
    save_figure(fig, f"10_{name}", course=course, data=course.results.frame(), **words)


def _curves(course: Course, claim: str, joined: bool | None = None) -> Callable:
    """What draws a recorded curve of the two arms, by measure."""

    def draw(ax: Axes, measure: str) -> None:
        for order, name in enumerate(("LoRA", "numeric penalty")):
            points(ax, course, claim, measure, name, order=order, label=name, joined=joined)

    return draw


def temperature_figure(course: Course) -> None:
    """RMSE and KL against the temperature."""
    about = "All test answers by temperature; 0 is greedy. Outlined: this run; bands: full runs."
    alt = "Left: RMSE rises with the temperature. Right: KL falls."
    curves = _curves(course, "temperature")

    def draw(ax: Axes, measure: str) -> None:
        curves(ax, measure)
        ax.set_yscale("log" if measure == "kl" else "linear")

    titles = PAIR | {"kl": f"{PAIR['kl']}, log scale"}
    _panels(course, "temperature", titles, draw, "temperature t", caption=about, alt=alt)


def _row(ax: Axes, course: Course, measure: str, names: Mapping, order: int, **look: Any) -> None:
    """The means of conditions, each at its place on the axis."""
    claim = look.pop("claim", "10")
    ax.plot([], [], **series(order, linestyle="none", **look))  # the label, whatever is there
    for name, place in names.items():
        points(ax, course, claim, measure, name, order=order, positions={0: place})


def width_figure(course: Course) -> None:
    """Greedy RMSE and KL at temperature 1 by the slope width d, raw and normalised."""
    raw = {("numeric penalty" if d == PENALTY["d"] else f"d = {d:g}"): d for d in WIDTHS}
    forms = {"raw": raw, "normalised": {f"d = {d:g}, normalised": d for d in WIDTHS}}

    def draw(ax: Axes, measure: str) -> None:
        for order, (label, names) in enumerate(forms.items()):
            _row(ax, course, measure, names, order, label=label)
        _row(ax, course, measure, {"LoRA": 0}, 6, label="without")

    about = "The numeric penalty by its width; at 0 the plain arm. Outlined: this run."
    alt = "Three panels with marks for raw and normalised weights at four widths."
    titles = {"rmse all t=0": "greedy RMSE (points)", "kl all t=1": "KL at t = 1 (nats)"}
    titles |= PER_PERSON
    _panels(course, "width", titles, draw, "slope width d, levels", caption=about, alt=alt)


def learning_figure(course: Course) -> None:
    """Cross-entropy and greedy RMSE over the training, with and without the penalty."""
    about = "Training answers as they are met, in tenths of the training."
    alt = "Two curves a panel that fall and level off."
    titles = {"ce": "cross-entropy (nats)", "rmse": "greedy RMSE (points)"}
    draw = _curves(course, "learning", joined=True)
    _panels(course, "learning", titles, draw, "optimiser step", caption=about, alt=alt)


def success_figure(course: Course) -> None:
    """How often an answer is a number of the scale, before and after tuning."""
    fig, ax = subplots(figsize=(7, 3))
    names = {"before": 0, "LoRA": 1, "QLoRA": 2}
    for order, measure in enumerate(("greedy", "t=1")):
        at = {name: place + 0.12 * order for name, place in names.items()}
        _row(ax, course, measure, at, order, claim="success", label=measure)
    ax.set(xticks=range(3), xticklabels=names, ylim=(-0.03, 1.05), ylabel="share of valid answers")
    ax.legend()
    about = "The first integer in at most 8 tokens counts, if it lies on the scale."
    alt = "Marks for greedy and sampled answers before tuning, after LoRA and after QLoRA."
    save_figure(fig, "10_success", course=course, data="success", caption=about, alt=alt)


def _scatter(ax: Axes, rows: pd.DataFrame, condition: str) -> None:
    """Pairs of levels, recorded as 100 a + b, with areas by how many there are."""
    a, b = rows["x"].astype(int) // 100, rows["x"].astype(int) % 100
    here, top = rows["condition"] == condition, a.max()
    counts = rows["value"][here]
    ax.scatter(a[here], b[here], 400 * counts / max(1, counts.max()), color=COLORS[0])
    ax.axline((0, 0), slope=1, color="black", lw=0.8, ls=":")
    ax.set(xlim=(-0.7, top + 0.7), ylim=(-0.7, top + 0.7))


def scatter_figure(course: Course, phase: str = "initial") -> None:
    """People's answers against the model's, and LoRA's against QLoRA's: areas are counts."""
    panels = {"LoRA greedy": ("people", "LoRA, greedy"), "LoRA t=1": ("people", "LoRA, t = 1")}
    panels["both greedy"] = "LoRA, greedy", "QLoRA, greedy"
    rows, (fig, axes) = course.results.frame("scatter", phase), subplots(1, 3, figsize=(10.5, 3.7))
    rows = rows if len(rows) else select(course.full_runs("scatter"), measure=phase)
    for ax, (name, (x, y)) in zip(axes, panels.items(), strict=True):
        _scatter(ax, rows, name)
        ax.set(xlabel=f"{x} (level)", ylabel=f"{y} (level)")
    kind = {"initial": "Initial answers", "post": "Answers after a sentence"}[phase]
    about = f"{kind} of the test people; areas are counts. Dotted: equal."
    alt = "Three panels of marks on a grid of levels; greedy answers use few levels."
    name = "10_scatter" if phase == "initial" else f"10_{phase}_scatter"
    save_figure(fig, name, course=course, data="scatter", caption=about, alt=alt)


def amount_figure(course: Course) -> None:
    """Fit by the number of training people."""
    names = {f"{n} people": n for n in AMOUNTS} | {"LoRA": 3236}

    def draw(ax: Axes, measure: str) -> None:
        _row(ax, course, measure, names, 0, label="LoRA")
        if level := _means(course, measure, "marginal"):
            height = next(reversed(level.values()))
            ax.axhline(height, color="black", lw=1, ls=":", label="marginal")
        ax.set(xscale="log")

    about = "Marks by the number of people; dotted: everyone gets the population's own shares."
    alt = "Three panels of marks over the number of people, a dotted line in each."
    titles = {"rmse all mean": "RMSE, expected value (points)", "kl all t=1": "KL at t = 1 (nats)"}
    titles |= PER_PERSON
    _panels(course, "amount", titles, draw, "training people (log)", caption=about, alt=alt)


def baselines_figure(course: Course) -> None:
    """Models and baselines, each greedy, sampled and by its expected value."""
    names = ["LoRA", "numeric penalty", *baselines.BASELINES, "before"]
    fig, axes = subplots(1, 2, figsize=(10, 3.8), sharex=True)
    for order, (t, label) in enumerate({"t=0": "greedy", "t=1": "sampled"}.items()):
        for ax, measure in zip(axes, ("rmse", "kl"), strict=True):
            at = {name: place + 0.16 * order for place, name in enumerate(names)}
            _row(ax, course, f"{measure} all {t}", at, order, label=label)
    at = {name: place + 0.32 for place, name in enumerate(names)}
    _row(axes[0], course, "rmse all mean", at, 2, label="expected value")
    for ax, title in zip(axes, PAIR.values(), strict=True):
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
        ax.set(title=title)
    axes[1].set(yscale="log")
    axes[0].legend()
    about = "The same test people for all. Outlined: this run; whiskers: full runs, 95%."
    alt = "Marks by model: for tuned models and regressions sampling has the higher RMSE and the "
    alt += "lower KL; before tuning both are lower."
    save_figure(fig, "10_baselines", course=course, data="10", caption=about, alt=alt)


def post_scatter_figure(course: Course) -> None:
    """The same of the answers after a sentence."""
    scatter_figure(course, "post")


def laptop_figure(course: Course) -> None:
    """SmolLM2 in its committed run: KL and RMSE by temperature, and what it says for whom."""
    rows, (fig, axes) = committed("10", "laptop"), subplots(1, 3, figsize=(10.5, 3.9))
    for order, (name, label) in enumerate({"before": "before tuning", "LoRA": "after"}.items()):
        own = [select(rows, "temperature", m, name).set_index("x")["value"] for m in PAIR]
        axes[0].plot(*own, **series(order, label=label))
        for t, place in {0.0: (6, 3), 1.0: (-34, -4)}.items():
            at = own[0][t], own[1][t]
            axes[0].annotate(f"t = {t:g}", at, place, textcoords="offset points", size=9)
    axes[0].set(xlabel=PAIR["rmse"], ylabel=f"{PAIR['kl']}, log scale", yscale="log")
    axes[0].legend()
    valid = [select(rows, "success", "greedy", name)["value"].mean() for name in ("before", "LoRA")]
    words = "SmolLM2's greedy answers that are a number of the scale: {:.0%} before, {:.0%} after"
    fig.suptitle(words.format(*valid), x=0.02, ha="left")
    for ax, way in zip(axes[1:], ("greedy", "t=1"), strict=True):
        _scatter(ax, select(rows, "scatter", "initial"), f"LoRA {way}")
        ax.set(title=f"after, {way.replace('t=1', 't = 1')}")
        ax.set(xlabel="people (level)", ylabel="SmolLM2 (level)")
    about = "SmolLM2-135M-Instruct, one seed, test people of the pocket world. Left: from greedy "
    about += "(t = 0) to t = 1. Others: initial answers, areas are counts, dotted: equal."
    alt = "Left: two lines over RMSE and KL. Others: marks on a grid of levels."
    save_figure(fig, "10_laptop", course=course, data=rows, caption=about, alt=alt)


def trl_figure(course: Course) -> None:
    """The loss of our loop and of TRL's trainer, step by step."""
    beside_trl(course, "SFTTrainer", "8 rows", "rating")


FIGURES = (look_figure, idea_figure, learning_figure, success_figure, scatter_figure)
FIGURES += (post_scatter_figure, frontier_figure, temperature_figure, width_figure, amount_figure)
FIGURES += (baselines_figure, laptop_figure, trl_figure)
