"""Published numbers: Table 5 of DeepSeek-R1 redrawn; and the paper of notebook 10 beside ours."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from course_lib.algorithms.population import noise_floor, spearman
from course_lib.kit.figures import COLORS, save_figure, series, subplots
from course_lib.kit.results import select
from course_lib.kit.tables import Table, side_by_side

if TYPE_CHECKING:
    from course_lib.experiments.survey_bench import Bench
    from course_lib.kit.course import Course

# Table 5 of DeepSeek-R1 (arXiv:2501.12948): AIME 2024 pass@1 and cons@64, MATH-500, GPQA Diamond,
# LiveCodeBench (pass@1, per cent), CodeForces rating; billions of parameters where they are known.
TABLE_5 = {
    "GPT-4o-0513": (None, 9.3, 13.4, 74.6, 49.9, 32.9, 759),
    "Claude-3.5-Sonnet-1022": (None, 16.0, 26.7, 78.3, 65.0, 38.9, 717),
    "OpenAI-o1-mini": (None, 63.6, 80.0, 90.0, 60.0, 53.8, 1820),
    "QwQ-32B-Preview": (32, 50.0, 60.0, 90.6, 54.5, 41.9, 1316),
    "R1-Distill-Qwen-1.5B": (1.5, 28.9, 52.7, 83.9, 33.8, 16.9, 954),
    "R1-Distill-Qwen-7B": (7, 55.5, 83.3, 92.8, 49.1, 37.6, 1189),
    "R1-Distill-Qwen-14B": (14, 69.7, 80.0, 93.9, 59.1, 53.1, 1481),
    "R1-Distill-Qwen-32B": (32, 72.6, 83.3, 94.3, 62.1, 57.2, 1691),
    "R1-Distill-Llama-8B": (8, 50.4, 80.0, 89.1, 49.0, 39.6, 1205),
    "R1-Distill-Llama-70B": (70, 70.0, 86.7, 94.5, 65.2, 57.5, 1633),
}
RL_32B = 47.0  # AIME pass@1 of Qwen-32B after RL of its own, by the same paper


def published_figure(course: Course) -> None:
    """Table 5 at a glance: distilled models by size, beside models that were not distilled."""
    names = ("parameters", "AIME", "cons@64", "MATH-500", "GPQA", "LiveCodeBench", "CodeForces")
    rows = pd.DataFrame.from_dict(TABLE_5, "index", columns=names).rename_axis("model")
    fig, (left, right) = subplots(1, 2, figsize=(10.5, 4), width_ratios=(3, 1.3), sharey=True)
    for order, family in enumerate(("Qwen", "Llama")):
        here = rows[rows.index.str.startswith(f"R1-Distill-{family}")]
        label = f"{family}, distilled from R1"
        left.plot(here["parameters"], here["AIME"], **series(order, label=label))
    for name in ("OpenAI-o1-mini", "Claude-3.5-Sonnet-1022", "GPT-4o-0513"):
        left.axhline(rows.loc[name, "AIME"], color="#444444", lw=1.2, ls=":")
        left.text(1.26, rows.loc[name, "AIME"] + 1, name, color="#444444", size=9)
    left.set(xscale="log", xlabel="parameters of the student, billions (log scale)", xlim=(1.2, 80))
    left.set_xticks([1.5, 7, 14, 32, 70], ["1.5", "7", "14", "32", "70"])
    left.minorticks_off()
    left.set(ylabel="AIME 2024 solved, pass@1 (%)", ylim=(0, 80))
    left.set_title("On AIME a distilled 1.5B beats GPT-4o, a distilled 32B o1-mini")
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.24))
    three = {"RL on\nthe 32B": RL_32B, "QwQ\nPreview": 50.0, "distilled\nfrom R1": 72.6}
    bars = right.bar(list(three), list(three.values()), color=["#999999", "#999999", COLORS[0]])
    right.bar_label(bars, fmt="%.0f")
    right.set_title("32B: two ways, and QwQ")
    about = (
        "Published numbers: DeepSeek-R1, Table 5 and section 4.1. The figure's data hold all six "
    )
    about += "benchmarks of the ten models."
    alt = "Left: AIME against size rises from 29% at 1.5B to 73% at 32B, above the line of GPT-4o "
    alt += "throughout. Right: three bars, 47 for RL, 50 for QwQ, 73 distilled."
    save_figure(fig, "08_published", course=course, data=rows.reset_index(), caption=about, alt=alt)


# arXiv:2403.20252, Llama-2-chat: KL in nats with ten bins and RMSE in points of 100, of initial
# answers and of those after a sentence; the last number is Spearman's correlation of the greedy
# answers of LoRA and QLoRA, in the same order.
SURVEYED = {
    "7B, QLoRA, t = 1": (0.063, 37.9, 0.026, 37.4),
    "13B, QLoRA, t = 1": (0.046, 38.0, 0.025, 37.0),
    "70B, QLoRA, t = 1": (0.042, 37.8, 0.019, 37.3),
    "7B, QLoRA, greedy": (0.694, 31.3, 0.628, 33.7),
    "7B, LoRA, greedy": (0.670, 31.6, 0.673, 33.1),
}
ALIKE = (0.90, 0.81)


def beside_paper(course: Course, bench: Bench) -> Table:
    """KL, RMSE and LoRA's likeness to QLoRA in the paper, and in this run; what chance leaves."""
    names = ("KL, initial", "RMSE, initial", "KL, after a sentence", "RMSE, after a sentence")
    alike = ("Spearman, LoRA with QLoRA, initial", "and after a sentence")
    rows = [
        {"": f"paper, {name}"} | dict(zip(names, each, strict=True))
        for name, each in SURVEYED.items()
    ]
    rows[-1] |= dict(zip(alike, ALIKE, strict=True))
    own, scatter = course.results.frame("10"), course.results.frame("scatter")
    trained = [name for name in ("QLoRA", "LoRA") if name in set(own["condition"])]
    for t, name in product((1, 0), trained):
        measures = [f"{m} {phase} t={t}" for phase in ("initial", "post") for m in ("kl", "rmse")]
        means = [select(own, measure=m, condition=name)["value"].mean() for m in measures]
        label = f"here, {name}, {'t = 1' if t else 'greedy'}"
        rows.append({"": label} | dict(zip(names, map(float, means), strict=True)))
    for label, phase in zip(alike, ("initial", "post"), strict=True):
        pairs = select(scatter, measure=phase, condition="both greedy")
        both = np.repeat(pairs["x"].to_numpy(int), pairs["value"].to_numpy(int))
        rows[-1][label] = spearman(both // 100, both % 100) if len(both) else ""
    chance, here = {"": "KL of chance, paper"}, bench.phases()
    asked = {"initial": 4045, "post": 20217}  # a tenth of them are tested
    ours = {"": "KL of chance, here"}
    for name, phase in zip(names[::2], ("initial", "post"), strict=True):
        chance[name] = noise_floor(10, asked[phase] // 10, asked[phase] // 10)
        if phase in here:
            n = here[phase].sum()
            ours[name] = noise_floor(bench.test.high - bench.test.low + 1, n, n)
    return side_by_side([*rows, chance, ours], ["", *names, *alike])
