"""Notebook 08, distillation: conditions, claims, tables and figures of `distill_trials`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.core import stats
from course_lib.experiments import distill_trials, reasoners
from course_lib.experiments.distill_trials import MOST
from course_lib.experiments.experiment import Claim, Experiment, Ran
from course_lib.experiments.published import published_figure
from course_lib.kit.figures import COLORS, beside_trl, known, points, save_figure, series, subplots
from course_lib.kit.results import select
from course_lib.kit.tables import Table, side_by_side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course

AMOUNTS = (25, 100, 400)  # demonstrations
TEMPERATURES = (1, 2, 4, 8)
HALF = {"amount": 25, "alpha": 0.5}  # without a hard part T² is no more than a larger rate
WHEN = {"before": "before", "after": "after, the expert's labels", "hard": "after, hard labels"}
EXPERIENCE = (25, 100, 400, 1600)  # demonstrations that an agent has read before


def _lacks(course: Course, settings: Mapping[str, Any]) -> str:
    models = course.profile.models
    alike = models.get("small") in (None, models["base"])
    return "needs a second model" if alike else ""


def _labels(amount: int) -> dict[str, dict]:
    hard = {f"hard, {amount}": {"amount": amount, "alpha": 0.0}}
    return hard | {f"soft, {amount}": {"amount": amount}}


def _agents(experience: int) -> dict[str, dict]:
    own = {"amount": MOST, "experience": experience}
    found = {f"before, {experience}": own | {"num_steps": 0}, f"after, {experience}": own}
    return found | {f"hard, {experience}": own | {"alpha": 0.0}}


SOFT = Experiment(
    "8.1",
    make=distill_trials.soft_student,
    measure=distill_trials.judge,
    live=_labels(25) | _labels(400),
    full=_labels(100)
    | {f"T = {t}": HALF | {"temperature": float(t)} for t in TEMPERATURES}
    | {f"T = {t}, no T²": HALF | {"temperature": float(t), "square": False}
       for t in TEMPERATURES[1:]},
    skip=_lacks,
)  # fmt: skip
AGENTS = Experiment(
    "agents",
    make=distill_trials.soft_student,
    measure=distill_trials.judge,
    live=_agents(25),
    full=_agents(100) | _agents(400) | _agents(1600),
    skip=_lacks,
)
WAYS = Experiment(
    "8.2",
    make=reasoners.solver_student,
    measure=reasoners.solve,
    live={
        "before": {},
        "RL": {"updates": lambda shared: reasoners.UPDATES},
        "traces": {"share": 1.0},
        "traces, then RL": {"share": 0.5, "updates": lambda shared: reasoners.UPDATES // 2},
    },
    full={"RL, all compute": {"updates": 0, "all_compute": True}},
    skip=_lacks,
)
OWN = Experiment(
    "8.3",
    make=reasoners.own_student,
    measure=reasoners.solve,
    live={"start": {"kind": ""}, "sequence level": {"kind": "traces"},
          "reverse KL, own": {"kind": "reverse"}},
    full={"forward KL, own": {"kind": "forward"}, "soft labels, traces": {"kind": "soft"}},
    skip=_lacks,
)  # fmt: skip

EXPERIMENTS = (SOFT, WAYS, OWN, AGENTS)
Rans = Mapping[str, Ran]  # by the experiment's claim


def _gain(which: str, measure: str, name: str, other: str, kind: Callable = stats.gain) -> Callable:
    """The effect of a claim: what `name` has over `other` in one of the experiments."""
    return lambda rans: rans[which].gain(measure, name, other, kind)


HINTON, TABLE = "lecture, slide 27; Hinton et al. 2015", "lecture, slide 27, Table 5"
CLAIMS = [
    Claim(
        *("8.1", "soft labels teach more than hard ones", HINTON),
        *("judge score after 25 demonstrations, soft minus hard labels, points", "> 0"),
        _gain("8.1", "truth", "soft, 25", "hard, 25"),
    ),
    Claim(
        *("8.2a", "a distilled reasoner beats RL on the small model", TABLE),
        *("share solved, SFT on traces minus RL, equal compute of the student", "> 0"),
        _gain("8.2", "right", "traces", "RL"),
    ),
    Claim(
        *("8.2b", "it does so even where its teacher is paid for", TABLE),
        *("share solved, SFT on traces minus RL, equal compute of all", "> 0"),
        _gain("8.2", "right", "traces", "RL, all compute"),
    ),
    Claim(
        *("8.3", "on-policy distillation uses tokens better", "Agarwal et al. 2024"),
        *("share solved, reverse KL on own samples minus traces, equal student tokens", "> 0"),
        _gain("8.3", "right", "reverse KL, own", "sequence level"),
    ),
]
ALSO = {
    "points, soft minus hard labels, 400": ("8.1", "truth", "soft, 400", "hard, 400"),
    "points, soft labels, T = 8 minus T = 1": ("8.1", "truth", "T = 8", "T = 1"),
    "points, T = 8, with T² minus without": ("8.1", "truth", "T = 8", "T = 8, no T²"),
    "share solved, RL minus before": ("8.2", "right", "RL", "before"),
    "share solved, traces, then RL minus traces": ("8.2", "right", "traces, then RL", "traces"),
    "share solved, forward KL on own samples minus traces": (
        *("8.3", "right", "forward KL, own", "sequence level"),
    ),
    "share solved, soft minus hard labels on traces": (
        *("8.3", "right", "soft labels, traces", "sequence level"),
    ),
    "points, novice after minus before": ("agents", "truth", "after, 25", "before, 25"),
    "points, veteran after minus before": ("agents", "truth", "after, 1600", "before, 1600"),
    "points, novice, expert's labels minus hard ones": ("agents", "truth", "after, 25", "hard, 25"),
}


def also_measured(rans: Rans) -> Table:
    """What has no verdict, with intervals."""
    rows = {words: _gain(*pair)(rans) for words, pair in ALSO.items()}
    return side_by_side({"measure": words, "": str(value)} for words, value in rows.items())


# ---- figures of this run -----------------------------------------------------------------------


def _rows(course: Course, claim: str) -> pd.DataFrame:
    """The rows of a claim: of the committed full run, else of this one."""
    full = course.full_runs(claim)
    return full if len(full) else course.results.frame(claim)


def _mean(course: Course, claim: str, condition: str, measure: str) -> float:
    return float(select(_rows(course, claim), None, measure, condition)["value"].mean())


def _ahead(course: Course, claim: str, measure: str, name: str, other: str) -> list[float]:
    """The means of two conditions where the first is ahead over the seeds, for a title; else []."""
    rows = select(_rows(course, claim), None, measure)
    both = [rows[rows["condition"] == n].set_index("seed")["value"] for n in (name, other)]
    gaps = (both[0] - both[1]).dropna()
    sure = len(gaps) > 1 and stats.t_interval(gaps).low > 0
    return [float(values.mean()) for values in both] if sure else []


def _row(
    ax: Axes, course: Course, claim: str, measure: str, names: Mapping[str, float], **look: Any
) -> None:
    """The means of conditions, each at its place on the axis, under one label."""
    order = look.pop("order")
    ax.plot([], [], **series(order, linestyle="none", **look))
    for name, place in names.items():
        points(ax, course, claim, measure, name, order=order, positions={0: place})
    here = [(at, _mean(course, claim, name, measure)) for name, at in names.items()]
    here = np.array([pair for pair in here if pair[1] == pair[1]])
    if len(here):
        ax.plot(*here.T, **series(order, marker="", lw=1.2))
    else:
        ax.text(0.5, 0.5, "in the full run", transform=ax.transAxes, ha="center")


def _by_amount(ax: Axes, ticks: tuple[int, ...], xlabel: str) -> None:
    ax.set(xscale="log", xlabel=xlabel, ylabel="judge score (points)")
    ax.set_xticks(ticks, [f"{n}" for n in ticks])
    ax.minorticks_off()
    ax.legend()


def tokens_figure(course: Course) -> None:
    """Token by token: what the teacher holds possible beside the token that was written."""
    rows = _rows(course, "tokens")
    rows = rows[rows["seed"] == rows["seed"].min()]
    fig, ax = subplots(figsize=(11, 4.2))
    shades = [COLORS[1], "#f0a860", "#f7d3ab"]
    for x, here in rows.groupby("x"):
        bottom = 0.0
        for measure, color in ({"written": COLORS[0]} | dict(enumerate(shades, 1))).items():
            name = measure if measure == "written" else f"other {measure}"
            for _, one in here[here["measure"] == name].iterrows():
                ax.bar(x, one["value"], 0.86, bottom, color=color, edgecolor="white")
                if one["value"] > 0.045:
                    light = "white" if name in ("written", "other 1") else "black"
                    at = x, bottom + one["value"] / 2
                    ax.text(*at, one["condition"], ha="center", va="center", size=8, color=light)
                bottom += one["value"]
    written = rows[rows["measure"] == "written"].sort_values("x")
    ax.set_xticks(written["x"].astype(float), written["condition"], rotation=40, ha="right")
    ax.set(ylabel="teacher's probability", ylim=(0, 1), xlabel="the answer, token by token")
    ax.grid(axis="x", visible=False)
    ax.set_title("A hard label is the blue part, raised to 1. The rest is what soft labels add")
    about = "One held-out answer. Blue: the token that was written. Orange: the teacher's three "
    about += "likeliest other tokens. White: all others."
    alt = "A stacked bar a token. Some are blue throughout; others hold several orange parts."
    save_figure(fig, "08_tokens", course=course, data="tokens", caption=about, alt=alt)


def soft_figure(course: Course) -> None:
    """Judge score by the number of demonstrations, and by temperature."""
    fig, (left, right) = subplots(1, 2, figsize=(10.5, 3.8), sharey=True)
    for order, kind in enumerate(("hard", "soft")):
        names = {f"{kind}, {n}": n for n in AMOUNTS}
        _row(left, course, "8.1", "truth", names, order=order, label=f"{kind} labels")
    _by_amount(left, AMOUNTS, "demonstrations (log scale)")
    if ahead := _ahead(course, "8.1", "truth", "soft, 25", "hard, 25"):
        left.set_title(f"On 25 demonstrations soft labels gain {ahead[0] - ahead[1]:.1f} points")
    at = {t: np.log2(t) for t in TEMPERATURES}
    with_square = {f"T = {t}": x for t, x in at.items()}
    _row(right, course, "8.1", "truth", with_square, order=1, label="with T²")
    without = {f"T = {t}, no T²": x for t, x in at.items()}
    _row(right, course, "8.1", "truth", without, order=2, label="without")
    right.set(xlabel="temperature T (log scale)", xticks=list(at.values()))
    right.set(xticklabels=list(at), title="25 demonstrations, half soft labels (α = ½)")
    right.legend()
    about = "Held-out prompts. The same steps on the same demonstrations, read again and again. "
    about += "Outlined: this run. Whiskers: full runs, 95%. The right panel needs a full run."
    alt = "Left: two lines over the number of demonstrations. Right: marks over temperature."
    save_figure(fig, "08_soft", course=course, data="8.1", caption=about, alt=alt)


def ways_figure(course: Course) -> None:
    """Problems solved by the student three ways, against compute without and with the teacher's."""
    fig, axes = subplots(1, 2, figsize=(10.5, 3.9), sharey=True)
    names = ("RL", "traces", "traces, then RL", "RL, all compute")
    for ax, paid in zip(axes, ("own", "all"), strict=True):
        for order, name in enumerate(names):
            where = {"distance": f"gflops {paid}", "joined": False}
            points(ax, course, "8.2", "right", name, order=order, label=name, **where)
        ax.axhline(_mean(course, "8.2", "before", "right"), color="black", lw=1, ls=":")
        ax.set(xscale="log", xlim=(100, 10_000), xlabel="GFLOPs (log scale)")
        ax.set_xticks([100, 300, 1000, 3000, 10_000], ["100", "300", "1,000", "3,000", "10,000"])
        ax.minorticks_off()
    axes[0].set_ylim(0, 1.3 * axes[0].get_ylim()[1])  # shared
    teacher = f"its teacher, m: {_mean(course, '8.2', 'reasoner', 'right'):.0%}"
    axes[0].annotate(f"{teacher} ↑", (0.02, 0.92), xycoords="axes fraction")
    axes[0].set(title="paid: the student's own compute", ylabel="share of problems solved")
    axes[1].set(title="paid: the teacher's RL and writing, too")
    if "RL, all compute" not in known(course, "8.2"):
        place = {"transform": axes[1].transAxes, "ha": "center"}
        axes[1].text(0.5, 0.08, "RL at the same cost: in the full run", **place)
    axes[1].legend(loc="upper right")
    if ahead := _ahead(course, "8.2", "right", "traces", "RL"):
        words = f"At equal compute the traces bring {ahead[0]:.0%}, RL of its own {ahead[1]:.0%}"
        fig.suptitle(words, x=0.02, ha="left")
    about = "Held-out problems of one and two steps, student s. Dotted: before. Outlined: this "
    about += "run; whiskers: full runs. Right: in the full run RL may spend what the teacher cost."
    alt = "Two panels of marks over compute, one a way to learn; dotted: student and teacher."
    save_figure(fig, "08_ways", course=course, data="8.2", caption=about, alt=alt)


def own_figure(course: Course) -> None:
    """On its own samples or on the teacher's, at equal tokens."""
    names = {"start": "at the start", "sequence level": "traces,\nhard labels"}
    names |= {"soft labels, traces": "traces,\nsoft labels"}
    names |= {"forward KL, own": "own samples,\nforward KL"}
    names |= {"reverse KL, own": "own samples,\nreverse KL"}
    here = [name for name in names if name in known(course, "8.3")]
    fig, ax = subplots(figsize=(8, 3.5))
    for place, name in enumerate(here):
        points(ax, course, "8.3", "right", name, order=place, positions={0: place})
    ax.set_xticks(range(len(here)), [names[name] for name in here])
    ax.set(ylim=(0, 1.3 * ax.get_ylim()[1]), xlim=(-0.5, len(here) - 0.5))
    ax.set_ylabel("share of problems solved")
    if ahead := _ahead(course, "8.3", "right", "reverse KL, own", "sequence level"):
        ax.set_title(f"Equal tokens: own samples bring {ahead[0]:.0%}, traces {ahead[1]:.0%}")
    teacher = _mean(course, "8.3", "teacher", "right")
    if teacher == teacher:  # it was measured
        ax.annotate(f"their teacher: {teacher:.0%} ↑", (0.02, 0.92), xycoords="axes fraction")
    about = "Student s after the same short start; the teacher is m, tuned on the traces. Behind "
    about += "it all learn from as many tokens. Outlined: this run; whiskers: full runs, 95%."
    alt = "A mark for each way to learn, beside one for the start that they share."
    save_figure(fig, "08_own", course=course, data="8.3", caption=about, alt=alt)


def agents_figure(course: Course) -> None:
    """What an expert's labels bring to students of different experience, and the field's figure."""
    fig, (left, right) = subplots(1, 2, figsize=(10.5, 3.7), width_ratios=(2, 1))
    for order, (when, label) in enumerate(WHEN.items()):
        names = {f"{when}, {n}": n for n in EXPERIENCE}
        _row(left, course, "agents", "truth", names, order=order, label=label)
    _by_amount(left, EXPERIENCE, "demonstrations read before: experience (log scale)")
    ends = [
        _mean(course, "agents", f"{w}, {n}", "truth")
        for n in (25, 1600)
        for w in ("before", "after")
    ]
    novice, veteran = ends[1] - ends[0], ends[3] - ends[2]
    if novice > veteran:
        left.set_title(f"The novice gains {novice:.1f} points, the veteran {veteran:.1f}")
    field = {"all agents": 15, "novices": 34, "most\nexperienced": 0}  # per cent; slide 25
    bars = right.bar(list(field), list(field.values()), color=["#999999", COLORS[0], "#999999"])
    right.bar_label(bars, fmt="%+d%%")
    right.set(title="published: issues an hour", ylabel="change (%)", ylim=(0, 40))
    about = (
        "Left: students s, before and after 400 demonstrations with one expert's labels, or with "
    )
    about += "hard ones. Right: agents with an assistant, as on slide 25 (Generative AI at work)."
    alt = "Left: marks before and after, by experience. Right: bars of 15, 34 and 0 per cent."
    save_figure(fig, "08_agents", course=course, data="agents", caption=about, alt=alt)


def trl_figure(course: Course) -> None:
    """The loss of our loop and of TRL's trainer, step by step."""
    beside_trl(course, "GKDTrainer", "4 rows", "token")


FIGURES = (published_figure, tokens_figure, soft_figure, ways_figure, own_figure, agents_figure)
FIGURES += (trl_figure,)
