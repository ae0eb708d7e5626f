"""Notebook 05, DPO: its figures, from the rows that `dpo_trials` records; its bandit needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from course_lib.algorithms.losses import dpo_loss
from course_lib.core.stats import t_interval
from course_lib.kit.figures import COLORS, beside_trl, points, save_figure, series, subplots
from course_lib.kit.results import select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from course_lib.kit.course import Course

# Four answers to one prompt, A to D, as in the notebook's cells.
REWARDS = np.array([-0.5, 0.2, 1.0, 1.5])
REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])


def bandit_descent(
    reference: torch.Tensor, shares: torch.Tensor, beta: float, num_steps: int
) -> torch.Tensor:
    """Gradient descent on DPO's loss over all pairs of K answers to one prompt.

    From the probabilities `reference` (K,), with the `shares` (K, K) of comparisons in which answer
    i is preferred to j, exact or counted. Returns log-probabilities, (num_steps + 1, K). The rate
    is 1 / beta², so that the implicit rewards move at a pace that does not depend on beta.
    """
    start, (i, j) = reference.log(), torch.triu_indices(len(reference), len(reference), 1)
    logits = start.clone().requires_grad_()
    path = [start]
    for _ in range(num_steps):
        logps = logits.log_softmax(-1)
        loss, _ = dpo_loss(logps[i], logps[j], start[i], start[j], beta, 1 - shares[i, j])
        (slope,) = torch.autograd.grad(loss, logits)
        logits.data -= slope / beta**2
        path.append(logits.detach().log_softmax(-1))
    return torch.stack(path)


def curve(course: Course, condition: str, measure: str, full: bool = False) -> pd.DataFrame:
    """A method's frontier: columns x, d = sqrt(KL), mean, low, high, in the order of d.

    Of this run, or of the committed full runs: means over seeds with their 95% t-interval, without
    width for a single seed. It starts at the model before training, without an x.
    """
    rows_of = course.full_runs if full else course.results.frame
    before = select(rows_of("5.1"), condition="before")
    rows = select(rows_of("5.2"), condition=condition)
    places = [] if condition == "best-of-n" else [(None, before)]  # best of 1 is where it starts
    found = []
    for x, here in [*places, *rows.groupby("x")]:
        values = here[here["measure"] == measure]["value"]
        if len(values):
            interval = t_interval(values) if len(values) > 1 else [values.mean()] * 3
            d = np.sqrt(max(0.0, here[here["measure"] == "kl"]["value"].mean()))
            found.append((x, d, *interval))
    table = pd.DataFrame(found, columns=["x", "d", "mean", "low", "high"], dtype=float)
    return table.sort_values("d")


def idea_figure(course: Course) -> None:
    """The best policy by beta, and the reward read back from each of them."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.5))
    shades = "#dddddd", "#9ecae1", "#4292c6", "#084594"
    for order, beta in enumerate((np.inf, 2.0, 0.5, 0.1)):  # infinite: the reference itself
        tilted = softmax(np.log(REFERENCE) + REWARDS / beta)
        look = {"color": shades[order], "label": f"β = {beta}" if order else "reference"}
        left.bar(np.arange(4) + 0.2 * order - 0.3, tilted, 0.19, edgecolor="black", lw=0.5, **look)
        if order:
            right.plot(REWARDS, beta * np.log(tilted / REFERENCE), **series(order) | look)
    names = [f"{name}\nr = {reward}" for name, reward in zip("ABCD", REWARDS, strict=True)]
    left.set(xticks=range(4), xticklabels=names, ylabel="probability", title="the best policy")
    left.grid(axis="x", visible=False)
    right.set(title="and the reward read back from it", xlabel="reward r of the answer")
    right.set(xticks=REWARDS, ylabel="implicit reward $\\beta\\,\\log\\,\\pi^*/\\pi_{ref}$")
    left.legend()
    right.legend()
    about = "Four answers. Left: the best policy for a reward, by β: a small price moves it far "
    about += "from the reference. Right: from each of these policies the reward is read back, up "
    about += "to a shift."
    alt = "Left: bars of four answers; the reference likes A most, and the smaller β, the more "
    alt += "goes to D, which has the highest reward. Right: three parallel straight lines of "
    alt += "slope one."
    save_figure(fig, "05_idea", course=course, data=course.results.frame(), caption=about, alt=alt)


def bandit_figure(course: Course) -> None:
    """Where DPO's loss goes: to the best policy with exact labels, to one answer with one each."""
    r, ref = torch.tensor(REWARDS).float(), torch.tensor(REFERENCE).float()
    best = (ref.log() + r / 0.5).softmax(-1)
    share = (r[:, None] - r).sigmoid()  # how often the answer of the row beats that of the column
    labels = {"compared without end": share, "each pair compared once": (share > 0.5).float()}
    fig, axes = subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
    for ax, (title, shares) in zip(axes, labels.items(), strict=True):
        path = bandit_descent(ref, shares, 0.5, 1000).exp().numpy()
        for order, name in enumerate("ABCD"):
            ax.plot(range(1, 1002), path[:, order], **series(order, marker="", label=name))
            ax.axhline(best[order], color="#999999", lw=1, zorder=0)
            ax.text(1400, float(best[order]), name, color="#666666", va="center")
        ax.set(title=title, xscale="log", xlabel="step of gradient descent + 1 (log scale)")
    axes[0].set(ylabel="probability of the answer", ylim=(0, 1.02))
    axes[0].legend(ncols=2, loc="upper left")
    about = "DPO's loss on the six pairs of four answers, β = 0.5. Grey: the best policy. With "
    about += "exact labels it is reached; with one label a pair the favourite takes everything."
    alt = "Left: four curves that settle on grey lines. Right: D rises towards 1, the others to "
    alt += "0."
    data = course.results.frame()
    save_figure(fig, "05_bandit", course=course, data=data, caption=about, alt=alt)


def training_figure(course: Course) -> None:
    """Loss, order and implicit rewards over the passes, and of held-out pairs at the end."""
    fig, axes = subplots(1, 3, figsize=(10, 3.4))
    panels = {"loss (nats per pair)": ["loss"], "share in the right order": ["rewards/accuracy"]}
    panels["implicit rewards"] = ["rewards/chosen", "rewards/rejected"]
    coins = np.log(2), 0.5, 0
    for ax, (title, measures), coin in zip(axes, panels.items(), coins, strict=True):
        for order, name in enumerate(measures):
            look = {"order": order, "joined": True, "label": name.split("/")[-1]}
            points(ax, course, "train", name, "DPO", **look)
            points(ax, course, "train", name, "held-out", order=order, positions={2: 2.15})
        ax.axvline(1, color="#888888", lw=1)
        ax.set_xticks([0, 1, 2.15], ["0", "1", "held\nout"])
        ax.set(title=title, xlabel="passes over the pairs")
        ax.axhline(coin, color="black", lw=1, ls=":")
    axes[2].legend()
    about = "Training pairs as they are met, and held-out pairs at the end (to the right). Grey: "
    about += "the first pass ends, pairs come again. Dotted: a coin; no change. Outlined: this "
    about += "run; thin lines and pale bars: other live runs; shades and whiskers: full runs, 95%."
    alt = "The loss drops after the first pass, and nearly all pairs are then in the right "
    alt += "order. Both rewards fall in the first pass; then the chosen are near 0, the rejected "
    alt += "far below."
    save_figure(fig, "05_training", course=course, data="train", caption=about, alt=alt)


def after_figure(course: Course) -> None:
    """What the policies write after training: true score, wins, distance, length."""
    fig, axes = subplots(1, 4, figsize=(10, 3.2))
    titles = {"truth": "true score (points)", "wins": "wins over before"}
    titles |= {"kl": "KL (nats)", "length": "length (tokens)"}
    looks = {"before": 6, "DPO": 0, "PPO": 1}
    for ax, (measure, title) in zip(axes, titles.items(), strict=True):
        for place, (name, order) in enumerate(looks.items()):
            points(ax, course, "5.1", measure, name, order=order, positions={0: place})
        ax.set(title=title, xticks=range(3), xticklabels=looks, xlim=(-0.5, 2.5))
        ax.grid(axis="x", visible=False)
    axes[1].axhline(0.5, color="black", lw=1, ls=":")
    about = "Answers to held-out prompts. Outlined: this run. Whiskers: mean of the full runs with "
    about += "its 95% interval over seeds; pale: other live runs."
    alt = "Four panels with marks for the model before training, DPO and PPO: true score, wins, "
    alt += "KL and length. On average both score higher than before, and DPO's answers are "
    alt += "longest."
    save_figure(fig, "05_after", course=course, data="5.1", caption=about, alt=alt)


def frontier_figure(course: Course) -> None:
    """What each method gains, by true score and wins, for how far it goes."""
    fig, axes = subplots(1, 2, figsize=(10, 4.2))
    labels = {"truth": "true score (points)", "wins": "wins over before"}
    for ax, (measure, label) in zip(axes, labels.items(), strict=True):
        for order, name in enumerate(("DPO", "PPO", "best-of-n")):
            full, color = curve(course, name, measure, full=True), COLORS[order]
            own = curve(course, name, measure)
            ax.fill_between(full["d"], full["low"], full["high"], color=color, alpha=0.2, lw=0)
            ax.plot(full["d"], full["mean"], color=color, lw=1)
            ax.plot(own["d"], own["mean"], **series(order, lw=1, mec="black", label=name))
            _name_points(ax, own, name, color)
        ax.set(xlabel="distance: square root of KL in nats", ylabel=label)
        ax.margins(x=0.14, y=0.1)
    axes[0].legend(loc="lower right")
    about = "What each method gains for how far it goes. Marks: this run (n doubles; PPO's β is in "
    about += "deviations of the score). Plain lines and shades: full runs, mean and 95% over seeds."
    alt = "True score and wins against the square root of KL. In the full runs best-of-n is "
    alt += "highest as far as it reaches; DPO and PPO rise below it; then both fall, PPO sooner."
    save_figure(fig, "05_frontier", course=course, data="5.2", caption=about, alt=alt)


def _name_points(ax: Axes, own: pd.DataFrame, name: str, color: str) -> None:
    """The beta, or some n, beside a frontier's points, where the other methods leave room."""
    shown = own[own["x"].isin((2, 8))] if name == "best-of-n" else own.dropna()
    for i, x, d, mean in shown[["x", "d", "mean"]].reset_index(drop=True).itertuples():
        words = f"{'n' if name == 'best-of-n' else 'β'} = {x:g}"
        ways = {"PPO": ("right", -6, -14), "DPO": (("right", -6, 6), ("left", 6, -13))[i % 2]}
        ha, *at = ways.get(name, ("right", -6, 6))
        look = {"textcoords": "offset points", "ha": ha, "size": 8, "color": color}
        ax.annotate(words, (d, mean), at, **look)


def rates_figure(course: Course) -> None:
    """How much is still gained at a lower and at a higher learning rate."""
    fig, ax = subplots(figsize=(7, 3.4))
    for order, name in enumerate(("DPO", "PPO")):
        at = {factor: place + order / 6 - 0.08 for place, factor in enumerate((0.3, 1.0, 3.0))}
        points(ax, course, "5.3", "gain", name, order=order, positions=at, label=name)
    ax.axhline(0, color="black", lw=1)
    ax.set(xticks=range(3), xticklabels=["0.3 times", "usual", "three times"], xlim=(-0.5, 2.5))
    ax.set(xlabel="learning rate", ylabel="points gained over before")
    ax.grid(axis="x", visible=False)
    ax.legend()
    about = "True score gained at three learning rates. Marks: this run, one a seed. Whiskers: "
    about += "mean of the full runs, 95% interval over seeds; pale: other live runs."
    alt = "Marks for DPO and PPO at 0.3 times, at, and at three times the usual learning rate."
    save_figure(fig, "05_rates", course=course, data="5.3", caption=about, alt=alt)


def trl_figure(course: Course) -> None:
    """The loss of our loop and of TRL's trainer, step by step."""
    alt = "Two training curves that start at log 2 and lie on each other at every step."
    beside_trl(course, "DPOTrainer", "8 pairs", "pair", alt=alt)


FIGURES = (idea_figure, bandit_figure, training_figure, after_figure, frontier_figure, rates_figure)
FIGURES += (trl_figure,)
