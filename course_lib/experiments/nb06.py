"""Notebook 06, test-time scaling: claims, tables and figures of what `search_trials` runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from course_lib import ROOT
from course_lib.core import stats
from course_lib.core.cache import read_json
from course_lib.core.stats import Interval
from course_lib.experiments import solutions
from course_lib.experiments.experiment import Claim, Missing
from course_lib.experiments.search_trials import (
    LEVELS,
    STRATEGIES,
    Searched,
    agreement,
    by_difficulty,
    compute_ratio,
    matched,
)
from course_lib.kit.figures import points, save_figure, series, subplots
from course_lib.kit.results import select
from course_lib.kit.tables import Table, side_by_side
from course_lib.world.problems import Problem, check_steps, sentences_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course

SHARES = np.array([len(steps) for steps in LEVELS.values()]) / len(solutions.STEPS)
LOOKS = {name: i for i, name in enumerate([*STRATEGIES, "beam", "beam, exact checker"])}


def _gain(name: str, other: str) -> Callable[[Searched], Interval | Missing]:
    return lambda found: found.ran.gain("right", name, other, stats.paired_share)


SNELL, SLIDE = "Snell et al. 2024", "lecture, slide 23"
S1 = "lecture, slide 25; Muennighoff et al. 2025"
CLAIMS = [
    Claim(
        *("6.1a", "many samples and a vote are right more often than one sample", SLIDE),
        *("share solved, majority of 64 minus one sample", "> 0"),
        _gain("majority, n = 64", "majority, n = 1"),
    ),
    Claim(
        *("6.1b", "a learned verifier picks better than a vote", SLIDE),
        *("share solved, best of 64 by a learned verifier minus majority of 64", "> 0"),
        _gain("best by process, n = 64", "majority, n = 64"),
    ),
    Claim(
        *("6.2", "the best strategy depends on difficulty", SNELL),
        *("compute by difficulty over the best single strategy's, equal accuracy", "< 1"),
        compute_ratio,
    ),
    Claim(
        *("6.3a", "a small model that searches beats a larger one on easy problems", SNELL),
        *("share of 1-step problems solved, m with search minus l greedy, equal FLOPs", "> 0"),
        partial(matched, level="1 step"),
    ),
    Claim(
        *("6.3b", "and does not on hard ones", SNELL),
        *("share solved at 3 and 4 steps, m with search minus l greedy, equal FLOPs", "< 0"),
        partial(matched, level="3 and 4 steps"),
    ),
    Claim(
        *("6.4", "a forced budget costs accuracy: the thoughts are of use", S1),
        *("share solved by the instruct model, the full budget minus half", "> 0"),
        _gain("budget, 1", "budget, 0.5"),
    ),
]
LIKELY = "best by likelihood, n = 64"
ALSO = {
    "majority of 64 minus m greedy": ("majority, n = 64", "base, greedy, n = 1"),
    "pass@64 minus majority of 64": ("pass, n = 64", "majority, n = 64"),
    "weighted minus plain majority of 64": ("weighted majority, n = 64", "majority, n = 64"),
    "best of 64 by outcome minus majority of 64": ("best by outcome, n = 64", "majority, n = 64"),
    "best of 64 by likelihood minus majority of 64": (LIKELY, "majority, n = 64"),
    "best of 64 by process minus by likelihood": ("best by process, n = 64", LIKELY),
    "best of 64 minus best of 4, by outcome": ("best by outcome, n = 64", "best by outcome, n = 4"),
    "beam of 16 minus best of 16, process verifier": ("beam, n = 16", "best by process, n = 16"),
    "beam of 16, exact checker minus learned": ("beam, exact checker, n = 16", "beam, n = 16"),
    "m greedy minus one sample": ("base, greedy, n = 1", "majority, n = 1"),
    "s greedy minus m greedy": ("small, greedy, n = 1", "base, greedy, n = 1"),
    "majority of 256 minus majority of 64": ("majority, n = 256", "majority, n = 64"),
    "no thoughts minus all of them": ("budget, 0", "budget, 1"),
    "four times wait minus not at all": ("wait, 4", "budget, 1"),
}


def also_measured(found: Searched) -> Table:
    """What has no verdict: shares of problems solved and a ratio, with intervals."""
    rows = {words: _gain(*pair)(found) for words, pair in ALSO.items()}
    pair = "gflops", "best by process, n = 16", "beam, n = 16"
    rows["FLOPs, best of 16 over beam of 16"] = found.ran.gain(*pair, stats.ratio)
    return side_by_side({"measure": words, "": str(value)} for words, value in rows.items())


# ---- tables ------------------------------------------------------------------------------------


def mark(problem: Problem, text: str) -> str:
    """A solution, a line for each sentence, with whether it is right by the exact checker."""
    sentences = sentences_of(text)
    pairs = zip(sentences, check_steps(problem, sentences), strict=True)
    return "\n".join(f"{'✔' if right else '✘'} {sentence}." for sentence, right in pairs)


def look_first(rules: tuple[str, ...] = ("largest gain", "smallest gain")) -> Table | None:
    """Of the committed full run: two problems where the vote gained, one where it lost."""
    path = ROOT / "data" / "results" / "06_texts.json"
    if not path.exists():
        print("These texts are of the committed full run, which is still to come; see *Before*.")
        return None
    texts = read_json(path)
    kept = [[item for item in texts if item["rule"] == rule] for rule in rules]
    rows = []
    for item in [*kept[0][:2], *kept[1][:1]]:
        problem = solutions.held_out(item["item"] + 1)[-1]
        one, vote = (mark(problem, answer["text"]) for answer in item["answers"].values())
        rows.append({"problem": problem.text, "one sample": one, "majority of 64": vote})
    return side_by_side(rows, ["problem", "one sample", "majority of 64"])


def difficulty_table(found: Searched) -> Table:
    """By agreement of the first four samples: how common, how hard, what the policy chooses."""
    seed = next(iter(found.grid))
    level, policy = agreement(found.pools[seed], found.orders), by_difficulty(found, seed)
    one, most = (found.ran.items[f"{name}"][seed].values["right"] for name in _ends(found, seed))
    return side_by_side(
        {
            "first four that agree": k,
            "share of cases": float((level == k).mean()),
            "one sample right": float(one[level == k].mean()) if (level == k).any() else "",
            "largest majority right": float(most[level == k].mean()) if (level == k).any() else "",
            "chosen at equal accuracy": policy.chosen[k],
            "best single strategy": f"{policy.name}: {policy.single[1]:.2f} GFLOPs a problem",
        }
        for k in range(1, 5)
    )


def greedy_table(course: Course, problems: list[Problem], n: int = 3) -> Table:
    """Greedy solutions of the first `n` one-step problems; how many are bare answers, by steps."""
    easy = [p for p in problems if len(p.steps) == 1][:n]
    rows, bare = [{"problem": p.text} for p in easy], []
    for role in [role for role in ("base", "large") if role in course.profile.models]:
        reader, model = solutions.reader_of(course, role), course.model(role)
        found = solutions.sampled(course, model, problems, 1, 0, temperature=0)
        texts = {p.text: reader.text(row[0]) for p, row in zip(problems, found, strict=True)}
        for row, problem in zip(rows, easy, strict=True):
            row[f"{role}, greedy"] = mark(problem, texts[problem.text])
        for name, steps in LEVELS.items():
            here = [texts[p.text] for p in problems if len(p.steps) in steps]
            share = np.mean([len(sentences_of(text)) < 2 for text in here]) if here else 0.0
            bare.append(f"{role} {name} {share:.2f}")
    print("share of greedy solutions without a written step:", ", ".join(bare))
    return side_by_side(rows)


def _ends(found: Searched, seed: int) -> tuple[str, str]:
    most = max(n for name, n in found.grid[seed] if name == "majority")
    return "majority, n = 1", f"majority, n = {most}"


# ---- figures -----------------------------------------------------------------------------------


def _means(course: Course, claim: str) -> pd.DataFrame:
    """Means over seeds of the committed full run, or of this one: measure, condition, x, value."""
    rows = course.full_runs(claim)
    rows = rows if len(rows) else course.results.frame(claim)
    return rows.groupby(["measure", "condition", "x"], as_index=False)["value"].mean()


def _value(rows: pd.DataFrame, condition: str, measure: str) -> float:
    return float(select(rows, condition=condition, measure=measure)["value"].mean())


def _curve(rows: pd.DataFrame, condition: str) -> pd.DataFrame:
    """A condition's means: a row for each x, a column for each measure."""
    here = rows[rows["condition"] == condition]
    return here.pivot_table(index="x", columns="measure", values="value")


def _overall(rows: pd.DataFrame, condition: str, x: float) -> float:
    """Share of all problems solved; nan where it was not measured."""
    curve, shares = _curve(rows, condition), [f"right, {level}" for level in LEVELS]
    return float(curve.loc[x, shares] @ SHARES) if x in curve.index else np.nan


def _log_gflops(ax: Axes) -> None:
    ax.set(xscale="log", xlabel="GFLOPs a problem (log scale)")
    ticks = [0.1, 0.3, 1, 3, 10, 30, 100]
    low, high = ax.get_xlim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def compute_figure(course: Course) -> None:
    """Share solved against compute, by difficulty, for every strategy."""
    fig, axes = subplots(1, 3, figsize=(11, 4.6), sharey=True)
    rows = _means(course, "6")
    for ax, level in zip(axes, LEVELS, strict=True):
        for name, order in LOOKS.items():
            at = {"distance": f"gflops, {level}", "joined": True, "label": name}
            points(ax, course, "6", f"right, {level}", name, order=order, **at)
        for role, words in {"base": "m greedy", "large": "l greedy"}.items():
            x, y = (_value(rows, f"{role}, greedy", f"{m}, {level}") for m in ("gflops", "right"))
            if x == x:  # there is such a model
                ax.plot(x, y, "*", color="black", ms=12, zorder=6)
                ax.annotate(words, (x, y), (0, 9), textcoords="offset points", ha="center", size=9)
        best = select(rows, condition="pass", measure=f"right, {level}").nlargest(1, "x")
        for n, y in zip(best["x"], best["value"], strict=True):
            ax.axhline(y, color="#666666", lw=1, ls=":")
            words = {"transform": ax.get_yaxis_transform(), "ha": "right", "color": "#444444"}
            ax.text(0.99, y + 0.01, f"{n:g} samples hold a right one", size=8, **words)
        vote = _curve(rows, "majority")
        for n in vote.index.intersection([4, 16, 64, 256]):
            at = tuple(vote.loc[n, [f"gflops, {level}", f"right, {level}"]])
            ax.annotate(f"{n:g}", at, (-3, 6), textcoords="offset points", ha="right", size=8)
        ax.set(title=level, ylim=(0, 1.06))
        _log_gflops(ax)
    axes[0].set_ylabel("share of problems solved")
    one, many = (_overall(rows, "majority", n) for n in (1, 64))
    likely = _overall(rows, "base, greedy", 1)
    if many > one:
        words = f"A vote of 64 samples solves {many:.0%}, one sample {one:.0%}, "
        words += f"one greedy answer {likely:.0%}"
        fig.suptitle(words, x=0.02, ha="left")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    about = "Problems solved for the operations spent on each, prompts and verifiers included, by "
    about += "the steps that they need. Lines and shades: full runs, mean and 95% over seeds. "
    about += "Outlined: this run; numbers: samples. Stars: one greedy answer. Dotted: no picking "
    about += "can exceed it."
    alt = "Three panels. The share solved by a majority rises with compute, later and less the "
    alt += "more steps there are. Lines of verifiers are drawn beside it; the outcome verifier's "
    alt += "falls where there are many samples. The beam with the exact checker lies far above."
    save_figure(fig, "06_compute", course=course, data="6", caption=about, alt=alt)


def difficulty_figure(course: Course) -> None:
    """The policy that looks at the first samples against every single strategy."""
    fig, ax = subplots(figsize=(7, 3.8))
    rows, policy = _means(course, "6"), _means(course, "6.2")
    for name in STRATEGIES:
        here = _curve(rows, name)
        if len(here):
            x, y = (here[[f"{m}, {k}" for k in LEVELS]] @ SHARES for m in ("gflops", "right"))
            ax.plot(x, y, **series(LOOKS[name], label=name, ms=4))
    path = _curve(policy, "policy")
    if len(path):
        path = path.sort_values("gflops")
        look = series(6, marker="", lw=3.5, linestyle="-", label="by difficulty")
        ax.plot(path["gflops"], path["right"], **look)
    single = _curve(policy, "best single")
    if len(single):
        at = single["gflops"].mean(), single["right"].mean()
        ax.plot(*at, "*", color="black", ms=13, zorder=6, label="best single strategy")
    ax.set(ylabel="share of problems solved", ylim=(0, 1.03))
    _log_gflops(ax)
    ax.legend(fontsize=8)
    about = "All problems. Thick: strategy and number of samples by how far the first four samples "
    about += "agree, fitted on one half of the problems and tested on the other. Star: with "
    about += "hindsight the cheapest single strategy that is about as good as the best."
    alt = "Share solved over compute: a thick line for the policy by difficulty, thin ones for "
    alt += "the single strategies."
    save_figure(fig, "06_difficulty", course=course, data="6.2", caption=about, alt=alt)


def larger_figure(course: Course) -> None:
    """What the small model gains or loses when the larger one's pretraining counts, too."""
    fig, ax = subplots(figsize=(7, 3.4))
    rows, reuse = _means(course, "6"), np.geomspace(0.1, 100, 60)  # D_inf / D_pre
    for order, level in enumerate(LEVELS):
        vote = _curve(rows, "majority")
        one, large = (_value(rows, f"{r}, greedy", f"gflops, {level}") for r in ("base", "large"))
        times = large / one  # M, by what an answer costs
        budget = one * (times + 3 * (times - 1) / reuse)
        if len(vote) and large == large:
            x, y = (vote[f"{m}, {level}"] for m in ("gflops", "right"))
            gap = np.interp(budget, x, y) - _value(rows, "large, greedy", f"right, {level}")
            ax.plot(reuse, gap, **series(order, marker="", label=level))
    ax.axhline(0, color="black", lw=1)
    ax.set(xscale="log", xlabel="tokens answered over tokens pretrained, $D_{inf}/D_{pre}$ (log)")
    ax.set(ylabel="share solved,\nm's vote minus l greedy")
    ax.legend()
    about = "Equal FLOPs in all: what the larger model's pretraining cost more, m spends on votes. "
    about += "Far right: inference alone. Left end: all samples are used up. Means over seeds."
    alt = "A line for each difficulty over the ratio of tokens: all fall to the right."
    save_figure(fig, "06_larger", course=course, data="6", caption=about, alt=alt)


def budget_figure(course: Course) -> None:
    """Share solved against tokens: thoughts cut short, drawn out, or begun anew."""
    fig, ax = subplots(figsize=(7, 3.8))
    names = {
        "budget": "cut, answer forced",
        "wait": "“wait” appended",
        "fresh samples": "vote, samples at t = 1",
    }
    for order, (name, words) in enumerate(names.items()):
        at = {"distance": "tokens", "joined": True, "label": words}
        points(ax, course, "6.4", "right", name, order=order, **at)
    cut = _curve(_means(course, "6.4"), "budget")
    if len(cut) and cut["right"][1.0] > cut["right"][0.5]:
        half, all_of_them = cut["right"][0.5], cut["right"][1.0]
        ax.set_title(f"Half of its thoughts: {half:.0%} solved. All: {all_of_them:.0%}")
    ax.set(xlabel="tokens written for a problem", ylabel="share of problems solved", ylim=(0, 1.03))
    ax.legend()
    about = "The instruct model. Cut: its thoughts end after 0 to 4 quarters and the answer is "
    about += (
        "forced. Wait: in place of the answer, 1, 2 and 4 times; both are greedy. Vote: of 1 to 8 "
    )
    about += "samples. Lines and shades: full runs, 95% over seeds. Outlined: this run."
    alt = "Share solved over tokens: near zero until the thoughts are nearly whole, then high; "
    alt += "waiting and fresh samples go on from there."
    save_figure(fig, "06_budget", course=course, data="6.4", caption=about, alt=alt)


FIGURES = (compute_figure, difficulty_figure, larger_figure, budget_figure)
