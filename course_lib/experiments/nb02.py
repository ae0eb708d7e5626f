"""Notebook 02, supervised fine-tuning: its figures, from the rows that `sft_trials` records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from course_lib.kit.figures import COLORS, beside_trl, points, save_figure, series, subplots

if TYPE_CHECKING:
    from course_lib.kit.course import Course


def mask_figure(course: Course) -> None:
    """Seventeen tokens of a conversation: the answer and its end token carry the loss."""
    text = r"<|im_start|> user \n Explain tides <|im_end|> \n <|im_start|> assistant \n "
    words = (text + "The moon pulls the sea . <|im_end|>").split()
    mask = [0] * 10 + [1] * 7
    fig, ax = subplots(figsize=(9, 1.9))
    ax.bar(range(17), [0.6 * m + 0.05 for m in mask], color=COLORS[0], width=0.8)
    for t, (word, m) in enumerate(zip(words, mask, strict=True)):
        ax.text(t - 0.3, 0.75, word, rotation=35, fontsize=9, weight="bold" if m else "normal")
        ax.text(t, -0.1, f"$m$ = {m}", ha="center", va="top", fontsize=8)
    ax.set(xlim=(-0.6, 18.4), ylim=(-0.4, 2))
    ax.axis("off")
    about = "Which tokens of a conversation carry loss (tall bars): the assistant's words and the "
    about += "token that ends its turn."
    alt = "Seventeen tokens in a row. Ten belong to the user's turn and the assistant's header and "
    alt += "have mask 0. The last seven, the answer and its end token, have mask 1 and tall bars."
    data = pd.DataFrame({"token": words, "mask": mask})
    save_figure(fig, "02_mask", course=course, data=data, caption=about, alt=alt)


def instructgpt_data_figure(course: Course) -> None:
    """InstructGPT's data: fewer demonstrations than ranked prompts, and mostly by labelers."""
    sizes = {"labeler": [11295, 6623, 0], "customer": [1430, 26584, 31144]}
    table6 = pd.DataFrame(sizes, index=["demonstrations", "ranked prompts", "prompts for PPO"])
    fig, ax = subplots(figsize=(7, 2.2))
    table6.plot.barh(stacked=True, ax=ax, color=[COLORS[0], COLORS[5]], width=0.6)
    for y, total in enumerate(table6.sum(axis=1)):
        ax.text(total + 400, y, f"{total:,}", va="center")
    ax.set(xlabel="prompts for training", xlim=(0, 42_000))
    ax.invert_yaxis()
    about = "InstructGPT's training sets by who wrote the prompts (lecture, slide 17; Ouyang et "
    about += "al. 2022, Table 6; its validation sets are left out)."
    alt = "Three horizontal bars. Demonstrations: 12,725 prompts, mostly from labelers. Ranked "
    alt += "prompts: 33,207, mostly from customers. Prompts for PPO: 31,144, all from customers."
    data = table6.reset_index(names="data")
    save_figure(fig, "02_instructgpt_data", course=course, data=data, caption=about, alt=alt)


def demonstrations_figure(course: Course) -> None:
    """The score by amount of data, and how the scores are spread."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.6), width_ratios=[3, 2])
    points(left, course, "2.1", "score", "sft")
    rows, across = course.results.frame("2.1"), left.get_yaxis_transform()
    for order, name in enumerate(("model", "demonstrations")):
        shares = course.results.frame("2.1", "share", name)
        right.plot(shares["x"], 100 * shares["value"], **series(order, label=name, ms=4))
    for order, name, measure in ((1, "demonstrations", "mean"), (6, "base", "score")):
        height = course.results.frame("2.1", measure, name)["value"].mean()
        left.axhline(height, **series(order, marker="", lw=1.2))
        left.text(0.02, height, name, va="bottom", color=COLORS[order], transform=across)
    left.set(xscale="log", xlabel="demonstrations (log scale)", ylabel="judge score")
    right.set(xlabel="judge score", ylabel="share of answers (%)", ylim=(0, None))
    right.legend(fontsize=8)
    about = "Left: score by amount of data. Line and shade: mean of five seeds, 95% interval; "
    about += "thick bars: where one live run falls (95%); dots: this run, one a seed. Right: how "
    about += "the scores are spread."
    alt = "Left: score against the number of demonstrations, with level lines for the base model "
    alt += "and for the demonstrations. Right: how the scores of model and demonstrations are "
    alt += "spread."
    save_figure(fig, "02_demonstrations", course=course, data=rows, caption=about, alt=alt)


def prompt_loss_figure(course: Course) -> None:
    """With the mask and without, rows as they are and after a pasted page."""
    fig, axes = subplots(1, 3, figsize=(9.5, 3.2))
    names = {"score": "judge score (higher is better)"}
    names |= {"completion_loss": "loss on held-out answers", "document_loss": "loss on documents"}
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        for order, condition in enumerate(("mask", "no mask")):
            at = {"as they are": order / 4 - 0.1, "with a page": order / 4 + 0.9}
            points(ax, course, "2.2", name, condition, order=order, positions=at, label=condition)
        ax.set(title=title, xlim=(-0.5, 1.5))
        ax.set_xticks([0, 1], ["rows as\nthey are", "with a\npasted page"])
    axes[0].legend()
    about = "Loss on completions only (circles) or on all tokens (squares), same rows and steps. "
    about += "Losses are in nats per token; lower is better."
    alt = "Three panels with two cases each, rows as they are and with a pasted page: score, loss "
    alt += "on answers, loss on documents; with and without the mask."
    save_figure(fig, "02_prompt_loss", course=course, data="2.2", caption=about, alt=alt)


def manners_figure(course: Course) -> None:
    """Requests declined, of known and of new themes; sums done right, from the head and by tool."""
    names = ["refusal, known", "safe, known", "refusal", "safe", "head", "tool"]
    places = dict(zip(names, (0, 1, 2.3, 3.3, 4.6, 5.6), strict=True))
    rows = course.results.frame("2.3")
    fig, ax = subplots(figsize=(7, 3.2))
    heights = [rows[rows["x"] == name]["value"].mean() for name in places]
    ax.bar(places.values(), heights, width=0.6, color="#e4e4e4", edgecolor="#888888")
    points(ax, course, "2.3", "share", "share", positions=places)
    known = ["declined:\nharmful,\ntrained", "declined:\nharmless,\ntrained"]
    ax.set(xticks=list(places.values()), ylabel="share", ylim=(0, 1.05))
    new = [name.replace("trained", "new") for name in known]
    ax.set_xticklabels([*known, *new, "right sums:\nfrom the\nhead", "right sums:\nby\ncalculator"])
    about = "Requests that are declined, of themes trained on and of new themes (100 of each kind, "
    about += "two answers each), and 100 new sums done right. Grey: this run; dashes: the full "
    about += "runs' mean."
    alt = "Six bars: shares of harmful and of harmless requests that are declined, of trained and "
    alt += "of new themes, and of sums right from the head and by calculator."
    save_figure(fig, "02_manners", course=course, data=rows, caption=about, alt=alt)


def lora_figure(course: Course) -> None:
    """Loss and memory of LoRA and QLoRA, by rank, beside full fine-tuning."""
    rows = course.results.frame("2.4")
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.4), width_ratios=[3, 2])
    ranks = sorted(rows["x"].unique())[1:]
    for order, name in enumerate(("LoRA", "QLoRA", "full")):
        at = {r: place + (name == "QLoRA") / 6 for place, r in enumerate([*ranks, 0])}
        look = {"order": order, "positions": at, "label": name}
        points(left, course, "2.4", "completion_loss", name, **look)
    level = course.results.frame("2.4", "completion_loss", "full")["value"].mean()
    left.axhspan(0.97 * level, 1.03 * level, color="#eeeeee", zorder=0)
    left.set(xticks=range(len(at)), ylabel="loss on held-out answers", xlabel="rank of the update")
    left.set_xticklabels([*(f"r = {r:.0f}" for r in ranks), "full"])
    left.legend()
    parts = ["weights", "gradients and AdamW"]
    sizes = rows.assign(part=rows["measure"].str.removeprefix("MB of "))
    sizes = sizes.pivot_table(index=["condition", "x"], columns="part", values="value")[parts]
    sizes = sizes.sort_index(ascending=False)  # the first is drawn lowest
    sizes.index = [f"{name} r = {r:.0f}" if r else name for name, r in sizes.index]
    sizes.plot.barh(stacked=True, ax=right, color=[COLORS[0], COLORS[5]], xlabel="megabytes")
    about = "Left: loss on held-out answers (nats per token, lower is better); grey: within 3% of "
    about += "full fine-tuning. Right: memory for weights and for what training adds to them."
    alt = "Left: losses of LoRA, QLoRA and full fine-tuning, and a grey band of 3% around the "
    alt += "last. Right: stacked bars of megabytes, one for each method."
    save_figure(fig, "02_lora", course=course, data=rows, caption=about, alt=alt)


def forgetting_figure(course: Course) -> None:
    """The loss on documents, by amount of data and by learning rate."""
    fig, (left, right) = subplots(1, 2, figsize=(9.5, 3.3))
    points(left, course, "2.1", "document_loss", "sft")
    points(right, course, "2.5", "document_loss", "rate", order=1)
    start = course.results.frame("2.1", "document_loss", "base")["value"].mean()
    for ax in (left, right):
        ax.axhline(start, color="black", ls=":", lw=1.2, label="base model")
        ax.set(xscale="log", ylabel="loss on documents (nats per token)")
    left.set(xlabel="demonstrations")
    right.set(xlabel="learning rate, as a multiple of the course's")
    left.legend()
    about = "Loss on documents of pretraining after SFT. Above the dotted line: forgotten."
    alt = "Two panels with the loss on documents, against the number of demonstrations and against "
    alt += "the learning rate; dotted: the base model."
    data = pd.concat([course.results.frame("2.1", "document_loss"), course.results.frame("2.5")])
    save_figure(fig, "02_forgetting", course=course, data=data, caption=about, alt=alt)


def trl_figure(course: Course) -> None:
    """The loss of our loop and of TRL's trainer, step by step."""
    about = "The same rows, order and settings in our loop (wide line) and in TRL (dots)."
    alt = "Two training curves: ours as a wide line, TRL's as dots."
    beside_trl(course, "SFTTrainer", "4 conversations", "token", caption=about, alt=alt)


FIGURES = (mask_figure, instructgpt_data_figure, demonstrations_figure, prompt_loss_figure)
FIGURES += (manners_figure, lora_figure, forgetting_figure, trl_figure)
