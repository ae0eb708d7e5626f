"""Notebook 10, a model and a population: conditions, claims, and the figures that the paper names.

Figures are functions of recorded rows: of this run, and of the committed full runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib.algorithms.population import numeric_weights
from course_lib.experiments import recipes, survey_bench
from course_lib.experiments.baselines import BASELINES
from course_lib.experiments.experiment import Claim, Experiment, Ran
from course_lib.experiments.survey_bench import TEMPERATURES, Bench
from course_lib.kit.figures import COLORS, MARKERS, points, save_figure, series, subplots
from course_lib.kit.results import select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course

PENALTY = {"alpha": 0.5, "d": 10.0}  # the paper's
WIDTHS = (2.0, 5.0, 10.0, 20.0)
AMOUNTS = (75, 150, 300, 600, 1200, 2400)  # of 3,236 training people
SIZES = {"s": "small", "m": "base", "l": "large"}


def _numeric(**options: Any) -> dict[str, Any]:
    return {"loss": "numeric", "options": PENALTY | options}


def _in_words(shared: Mapping[str, Any]) -> dict[str, Any]:
    return shared["survey"] | {"form": "0-100"}


def _lacks(course: Course, settings: Mapping[str, Any]) -> str:
    role = settings.get("role")
    if settings["survey"].get("form") and settings["survey"].get("file"):
        return "on the pocket world's people alone"
    if role and course.profile.models.get(role) in (None, course.model("base")) and role != "base":
        return "needs a second model"
    return ""


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
    | {f"{name}, 0-100": {"survey": _in_words} | own for name, own in {
        "LoRA": {}, "QLoRA": {"quantize": "nf4"}}.items()},
    skip=_lacks,
)  # fmt: skip

PAPER, OURS = "2403.20252", "beyond the paper"
CLAIMS = [
    Claim(
        "10.1a", "A higher temperature costs individual fit", PAPER,
        "slope of RMSE on t, 0 to 1, points", "> 0",
        lambda ran: ran.slope(TEMPERATURES, [f"rmse all t={t:g}" for t in TEMPERATURES], "LoRA"),
    ),
    Claim(
        "10.1b", "A higher temperature fits the population", PAPER,
        "KL at t = 1 minus greedy, nats", "< 0",
        lambda ran: ran.change("kl all t=1", "kl all t=0", "LoRA"),
    ),
    Claim(
        "10.2a", "QLoRA fits the population as LoRA does", PAPER,
        "KL at t = 1, QLoRA minus LoRA, nats", "within 0.02",
        lambda ran: ran.gain("kl all t=1", "QLoRA", "LoRA"),
    ),
    Claim(
        "10.2b", "QLoRA fits the individual as LoRA does", PAPER,
        "greedy RMSE, QLoRA minus LoRA, points", "within 1",
        lambda ran: ran.gain("rmse all t=0", "QLoRA", "LoRA"),
    ),
    Claim(
        "10.3", "The numeric penalty lowers greedy RMSE", PAPER,
        "greedy RMSE, with minus without, points", "< 0",
        lambda ran: ran.gain("rmse all t=0", "numeric penalty", "LoRA"),
    ),
    Claim(
        "10.4a", "The model knows people, not just the population", OURS,
        "per-person KL to the truth, LoRA minus marginal, nats", "< 0",
        lambda ran: ran.gain("truth all", "LoRA", "marginal"),
    ),
    Claim(
        "10.4b", "The expected value is a better guess than greedy", OURS,
        "RMSE, expected value minus greedy, points", "< 0",
        lambda ran: ran.change("rmse all mean", "rmse all t=0", "LoRA"),
    ),
]  # fmt: skip


def add_others(course: Course, ran: Ran, benches: Mapping[int, Bench]) -> None:
    """The model before tuning, and the baselines, beside the trained ones."""
    ran.add("before", {s: survey_bench.before(course, s, b) for s, b in benches.items()}, True)
    for name in BASELINES:
        found = {s: survey_bench.baseline(b, name, s) for s, b in benches.items()}
        ran.add(name, found, record=True)
    for name, value in survey_bench.floors(benches[course.seed]).items():
        course.results.add("floor", name, 0, course.seed, "value", value)


def record_scatter(course: Course, ran: Ran, bench: Bench) -> None:
    """Counts of (people's level, model's level) by phase, for `scatter_figure`: x is 100 a + b."""
    said = {
        (name, t): ran.items[name][course.seed].whole["answers"][t]
        for name in ("LoRA", "QLoRA")
        for t in (0.0, 1.0)
    }
    pairs = {"LoRA greedy": (bench.ratings, said["LoRA", 0.0])}
    pairs["LoRA t=1"] = bench.ratings, said["LoRA", 1.0]
    pairs["QLoRA greedy"] = bench.ratings, said["QLoRA", 0.0]
    pairs["both greedy"] = said["LoRA", 0.0], said["QLoRA", 0.0]
    pairs["own greedy"] = said["LoRA", 0.0], said["LoRA", 1.0]
    for name, (a, b) in pairs.items():
        for phase, here in bench.phases().items():
            places, counts = np.unique(100 * a[here] + b[here], return_counts=True)
            for x, n in zip(places, counts, strict=True):
                course.results.add("scatter", name, int(x), course.seed, phase, n)


# ---- figures -----------------------------------------------------------------------------------


def idea_figure(course: Course) -> None:
    """What the numeric penalty pays, and what it makes of a person's distribution."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.3))
    for order, d in enumerate((2, 5, 10)):
        left.plot(range(10), numeric_weights(10, d)[6], **series(order, label=f"d = {d}"))
    truth = np.array([0.12, 0.07, 0.09, 0.12, 0.15, 0.16, 0.12, 0.08, 0.04, 0.05])
    right.bar(range(10), truth, 0.9, color="#cccccc", label="the person's answers")
    for order, d in enumerate((2, 10)):
        blurred = 0.5 * truth + 0.5 * truth @ numeric_weights(10, d, True).numpy()
        right.plot(range(10), blurred, **series(order * 2, label=f"what the loss wants, d = {d}"))
    left.set(title="what level k pays where y = 6", xlabel="level k", ylabel="weight")
    right.set(title="the penalty blurs", xlabel="level", ylabel="probability")
    left.legend()
    right.legend()
    about = "Left: weights of the numeric penalty. Right: the distribution with the smallest "
    about += "normalised loss, beside the person's own."
    alt = "Left: three triangles over the levels, with their tip at 6. Right: bars, and two "
    alt += "lines that are flatter than the bars, the more so the wider the slope."
    data = course.results.frame("none")
    save_figure(fig, "10_idea", course=course, data=data, caption=about, alt=alt)


def _means(course: Course, measure: str, condition: str) -> dict[str, float]:
    """The mean of a measure: in this run ("own"), and in the committed full runs ("full")."""
    frames = {"own": course.results.frame("10"), "full": course.full_runs("10")}
    rows = {name: select(f, measure=measure, condition=condition) for name, f in frames.items()}
    return {name: found["value"].mean() for name, found in rows.items() if len(found)}


def _there(course: Course, names: list[str]) -> list[str]:
    return [name for name in names if _means(course, "rmse all t=0", name)]


def frontier_figure(course: Course) -> None:
    """KL against RMSE of every model and baseline, greedy and at temperature 1."""
    names = [f"size {s}, before" for s in SIZES] + [f"size {s}" for s in SIZES]
    names = _there(course, ["before", "LoRA", "QLoRA", *names, "SVR", "CatBoost", "random"])
    fig, axes = subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for ax, phase in zip(axes, ("initial", "post"), strict=True):
        for order, name in enumerate(names):
            ends = []
            for t in (0, 1):
                rmse, kl = (_means(course, f"{m} {phase} t={t}", name) for m in ("rmse", "kl"))
                if not rmse:
                    continue
                use = "full" if "full" in rmse else "own"
                ends.append((rmse[use], kl[use]))
                look = {"color": COLORS[order % 7], "marker": MARKERS[order % 7]}
                face = "white" if t else COLORS[order % 7]
                ax.plot(*ends[-1], ls="none", mfc=face, **look)
            ax.plot(*np.transpose(ends), color=COLORS[order % 7], lw=0.8)
            if ends:
                ax.annotate(name, ends[0], (5, 3), textcoords="offset points", size=8)
        ax.set(title=f"{phase} answers", xlabel="RMSE (points of 100)", yscale="log")
    axes[0].set(ylabel="KL(people ‖ model), nats, log scale")
    about = "Each model and baseline, greedy (filled) and at temperature 1 (open). Means of the "
    about += "committed full runs where there are any, else this run. Low and left is good."
    alt = "Two panels of points, joined in pairs: the open one of a pair lies lower and to the "
    alt += "right of the filled one."
    save_figure(fig, "10_frontier", course=course, data="10", caption=about, alt=alt)


def temperature_figure(course: Course) -> None:
    """RMSE and KL against the temperature."""
    fig, axes = subplots(1, 2, figsize=(9.5, 3.4))
    titles = {"rmse": "RMSE (points of 100)", "kl": "KL(people ‖ model), nats"}
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for order, name in enumerate(("LoRA", "numeric penalty")):
            points(ax, course, "temperature", measure, name, order=order, label=name)
        ax.set(title=title, xlabel="temperature")
    axes[0].legend()
    about = "All test answers by temperature; 0 is greedy. Outlined: this run; lines and bands: "
    about += "full runs, mean and 95%."
    alt = "Left: RMSE rises with the temperature. Right: KL falls."
    save_figure(fig, "10_temperature", course=course, data="temperature", caption=about, alt=alt)


def _row(ax: Axes, course: Course, measure: str, names: Mapping[str, Any], order: int, **look: Any):
    """The means of conditions, each at its place on the axis."""
    for name, place in names.items():
        points(ax, course, "10", measure, name, order=order, positions={0: place}, **look)
        look.pop("label", None)


def width_figure(course: Course) -> None:
    """Greedy RMSE and KL at temperature 1 by the slope width d, raw and normalised."""
    fig, axes = subplots(1, 2, figsize=(9.5, 3.4))
    raw = {("numeric penalty" if d == PENALTY["d"] else f"d = {d:g}"): d for d in WIDTHS}
    blurred = {f"d = {d:g}, normalised": d for d in WIDTHS}
    titles = {"rmse all t=0": "greedy RMSE (points)", "kl all t=1": "KL at t = 1 (nats)"}
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for order, (label, names) in enumerate({"raw": raw, "normalised": blurred}.items()):
            _row(ax, course, measure, names, order, label=label)
        _row(ax, course, measure, {"LoRA": 0}, 6, label="without")
        ax.set(title=title, xlabel="slope width d, levels")
    axes[0].legend()
    about = "The numeric penalty by its width; at 0 the plain arm. Outlined: this run."
    alt = "Two panels with marks for raw and normalised weights at four widths."
    save_figure(fig, "10_width", course=course, data="10", caption=about, alt=alt)


def learning_figure(course: Course) -> None:
    """Cross-entropy and greedy RMSE over the training, with and without the penalty."""
    fig, axes = subplots(1, 2, figsize=(9.5, 3.4))
    titles = {"ce": "cross-entropy (nats)", "rmse": "greedy RMSE (points)"}
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for order, name in enumerate(("LoRA", "numeric penalty")):
            look = {"order": order, "joined": True, "label": name}
            points(ax, course, "learning", measure, name, **look)
        ax.set(title=title, xlabel="optimiser step")
    axes[0].legend()
    about = "Training answers as they are met, each new at that time, in tenths of the training."
    alt = "Two curves a panel that fall and level off."
    save_figure(fig, "10_learning", course=course, data="learning", caption=about, alt=alt)


def success_figure(course: Course) -> None:
    """How often an answer is a number of the scale, before and after tuning."""
    fig, ax = subplots(figsize=(7, 3))
    names = {name: place for place, name in enumerate(("before", "LoRA", "QLoRA"))}
    for order, measure in enumerate(("greedy", "t=1")):
        for name, place in names.items():
            at, label = {0: place + 0.12 * order}, measure if place == 0 else None
            points(ax, course, "success", measure, name, order=order, positions=at, label=label)
    ax.set(xticks=range(3), xticklabels=names, ylim=(-0.03, 1.05), ylabel="share of valid answers")
    ax.legend()
    about = "The first integer in at most 8 tokens counts, if it lies on the scale."
    alt = "Marks for greedy and sampled answers before tuning, after LoRA and after QLoRA."
    save_figure(fig, "10_success", course=course, data="success", caption=about, alt=alt)


def scatter_figure(course: Course, phase: str = "initial") -> None:
    """People's answers against the model's, and LoRA's against QLoRA's: areas are counts."""
    panels = {"LoRA greedy": ("people", "LoRA, greedy"), "LoRA t=1": ("people", "LoRA, t = 1")}
    panels["both greedy"] = "LoRA, greedy", "QLoRA, greedy"
    fig, axes = subplots(1, 3, figsize=(10.5, 3.7))
    rows = course.results.frame("scatter", phase)
    rows = rows if len(rows) else select(course.full_runs("scatter"), measure=phase)
    for ax, (name, (x, y)) in zip(axes, panels.items(), strict=True):
        here = rows[rows["condition"] == name]
        a, b = here["x"].astype(int) // 100, here["x"].astype(int) % 100
        ax.scatter(a, b, 400 * here["value"] / max(1, here["value"].max()), color=COLORS[0])
        line = [0, max(1, a.max(), b.max())] if len(here) else [0, 1]
        ax.plot(line, line, color="black", lw=0.8, ls=":")
        ax.set(xlabel=f"{x} (level)", ylabel=f"{y} (level)")
    about = f"{phase.capitalize()} answers of the test people; the area of a mark is how many "
    about += "there are. Dotted: the same answer."
    alt = "Three panels of marks on a grid of levels; greedy answers use few levels."
    name = f"10_scatter_{phase}"
    save_figure(fig, name, course=course, data="scatter", caption=about, alt=alt)


def amount_figure(course: Course) -> None:
    """Fit by the number of training people."""
    fig, axes = subplots(1, 3, figsize=(10.5, 3.3))
    names = {f"{n} people": n for n in AMOUNTS} | {"LoRA": 3236}
    titles = {"truth all": "per-person KL to the truth", "rmse all mean": "RMSE, expected value"}
    titles["kl all t=1"] = "KL at t = 1"
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        _row(ax, course, measure, names, 0)
        if level := _means(course, measure, "marginal"):
            ax.axhline(next(reversed(level.values())), color="black", lw=1, ls=":")
        ax.set(title=title, xlabel="training people (log scale)", xscale="log")
    about = "More people, better fit; dotted: everyone gets the population's own shares."
    alt = "Three panels of marks that fall as the number of people grows."
    save_figure(fig, "10_amount", course=course, data="10", caption=about, alt=alt)


def baselines_figure(course: Course) -> None:
    """Models and baselines, each greedy, sampled and by its expected value."""
    names = _there(course, ["LoRA", "numeric penalty", *BASELINES, "before"])
    fig, axes = subplots(1, 2, figsize=(10, 3.8), sharex=True)
    for order, (t, label) in enumerate({"t=0": "greedy", "t=1": "sampled"}.items()):
        for ax, measure in zip(axes, ("rmse", "kl"), strict=True):
            at = {name: place + 0.16 * order for place, name in enumerate(names)}
            _row(ax, course, f"{measure} all {t}", at, order, label=label)
    at = {name: place + 0.32 for place, name in enumerate(names)}
    _row(axes[0], course, "rmse all mean", at, 2, label="expected value")
    titles = "RMSE (points of 100)", "KL(people ‖ model), nats, log scale"
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
        ax.set(title=title)
    axes[1].set(yscale="log")
    axes[0].legend()
    about = "The same test people for all. Outlined: this run; whiskers: full runs, 95%."
    alt = "Marks by model: sampling has the higher RMSE and the lower KL for all of them."
    save_figure(fig, "10_baselines", course=course, data="10", caption=about, alt=alt)


def post_scatter_figure(course: Course) -> None:
    """`scatter_figure` of the answers after a sentence."""
    scatter_figure(course, "post")


FIGURES = (idea_figure, frontier_figure, temperature_figure, width_figure, learning_figure)
FIGURES += (success_figure, scatter_figure, post_scatter_figure, amount_figure, baselines_figure)
