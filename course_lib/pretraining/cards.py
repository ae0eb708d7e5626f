"""What a base model can do, measured: the numbers and the figure of the pocket models' cards.

One measure per ability that the course builds on, each on held-out prompts: loss on unseen
documents, the exam in MMLU's format, word problems (greedy, at temperature 1, and in 16 tries),
and how often a raw request is answered at all.
"""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from course_lib.algorithms.chat import complete
from course_lib.algorithms.evaluate import (
    multiple_choice,
    multiple_choice_by_text,
    pass_at_k,
    solve_problems,
)
from course_lib.algorithms.sft import document_losses
from course_lib.core import stats
from course_lib.core.cache import write_text
from course_lib.inputs.models import MODELS, load_model, load_tokenizer
from course_lib.kit.course import committed_course
from course_lib.kit.figures import save_figure, series, subplots
from course_lib.pretraining.pretrain import FOLDER, PretrainConfig, corpus_hash
from course_lib.world.documents import documents
from course_lib.world.exam import exam_items, render_prompt
from course_lib.world.instructions import explain_prompts
from course_lib.world.judge import is_answer
from course_lib.world.problems import problem_prompt, problem_set, verify_answer

NUM_STEPS = (1, 2)  # of the word problems that the notebooks use


def measure_abilities(
    folder: str | Path, *, items: int = 400, problems: int = 100, prompts: int = 200
) -> dict[str, list[float]]:
    """Abilities of the base model in `folder`: name -> [estimate, low, high] (95% intervals).

    `document_loss` is in nats per token; the others are shares.
    """
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    texts = [text for _, text in islice(documents(seed=9_000_000), 200)]
    losses, counts = document_losses(model, tokenizer, texts)
    questions = exam_items(items, seed=1)
    letters = multiple_choice(model, tokenizer, questions, render_prompt).correct
    named = multiple_choice_by_text(model, tokenizer, questions, render_prompt).correct
    sums = problem_set(problems, seed=9_000_000, num_steps=list(NUM_STEPS), split="test")
    asked = [problem_prompt(problem) for problem in sums]

    def right(i: int, text: str) -> bool:
        return verify_answer(sums[i], text)

    greedy = solve_problems(model, tokenizer, asked, right, temperature=0.0)
    tries = solve_problems(model, tokenizer, asked, right, num_generations=16)
    rows = explain_prompts("test", prompts, seed=1)
    answers = complete(
        model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=120, seed=1
    )
    answered = [is_answer(row, text) for row, text in zip(rows, answers, strict=True)]
    return {
        "document_loss": list(stats.mean([losses / counts])),
        "exam": list(stats.wilson(int(named.sum()), items)),
        "exam_letters": list(stats.wilson(int(letters.sum()), items)),
        "problems_greedy": list(stats.wilson(int(greedy.sum()), len(sums))),
        "problems_pass1": list(stats.share([tries.mean(1)])),
        "problems_pass16": list(stats.share([[pass_at_k(row, 16) for row in tries]])),
        "answers": list(stats.wilson(int(np.sum(answered)), len(rows))),
    }


def sample_thread(folder: str | Path, seed: int = 1) -> str:
    """How the base model goes on after the lecture's request."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    prompt = "Explain the moon landing to a 6-year-old"
    return prompt + complete(model, tokenizer, [prompt], max_new_tokens=160, seed=seed)[0]


def evaluate_snapshots(size: str, progress=print) -> Path:
    """Measure every snapshot of a pretraining run that has not been measured; one JSON a run."""
    path = FOLDER / size / "abilities.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for folder in sorted((FOLDER / size / "snapshots").iterdir(), key=lambda f: float(f.name)):
        if folder.name not in known:
            known[folder.name] = measure_abilities(folder)
            write_text(path, json.dumps(known, indent=1))
            found = ", ".join(f"{k} {v[0]:.2f}" for k, v in known[folder.name].items())
            progress(f"{size} at {float(folder.name):.0%}: {found}")
    return path


def ship(size: str) -> list[Path]:
    """Put a finished run's models into `data/models`, each with its card; returns the folders.

    `m` ships three times: after 10% and 30% of its training, and at the end. The curves of the run
    go to `data/models/pretraining.csv` (size, tokens, measure, value, low, high).
    """

    run = FOLDER / size
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    abilities = json.loads((run / "abilities.json").read_text(encoding="utf-8"))
    log = pd.read_json(run / "log.jsonl", lines=True).drop_duplicates("step", keep="last")
    total, shares = int(log["tokens"].max()), {"1": size}
    if size == "m":
        shares |= {"0.1": "m-10", "0.3": "m-30"}
    for share, name in shares.items():
        target = MODELS / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (run / "snapshots" / share).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        done = log[log["tokens"] <= float(share) * total + 1]
        card = {
            "name": f"pocket/{name}",
            "parameters": recipe["parameters"],
            "tokens": int(float(share) * total),
            "seconds": round(float(done["seconds"].max())),
            "tokens_per_second": round(float(done["tokens"].max() / done["seconds"].max())),
            "loss": float(done["loss"].iloc[-1]),
            "data_sha256": corpus_hash(PretrainConfig(**recipe["config"])),
            "abilities": abilities[share],
            "recipe": recipe["config"],
            "machine": recipe["machine"],
        }
        write_text(target / "card.json", json.dumps(card, indent=1) + "\n")
        write_text(target / "README.md", _card_text(card, share, sample_thread(target)))
    curves = [
        {"size": size, "tokens": row.tokens, "measure": "training_loss", "value": row.loss}
        for row in log.itertuples()
        if row.step % 40 == 0 or row.tokens == total
    ]
    curves += [
        dict(size=size, tokens=round(float(share) * total), measure=name, value=v, low=a, high=b)
        for share, measures in abilities.items()
        for name, (v, a, b) in measures.items()
    ]
    path = MODELS / "pretraining.csv"
    others = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["size"])
    frame = pd.concat([others[others["size"] != size], pd.DataFrame(curves)])
    write_text(path, frame.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    return [MODELS / name for name in shares.values()]


WORDS = {
    "document_loss": "loss on unseen documents, nats per token",
    "exam": "exam in MMLU's format, 0-shot, by the options' texts (chance: 0.25)",
    "exam_letters": "the same by the options' letters, as MMLU is scored",
    "problems_greedy": "word problems of 1-2 steps, greedy",
    "problems_pass1": "word problems, one try at temperature 1",
    "problems_pass16": "word problems, 16 tries at temperature 1 (pass@16)",
    "answers": "raw requests that it answers, by the judge",
}


def _card_text(card: dict, share: str, thread: str) -> str:
    """The model card, in Markdown."""
    early = (
        ""
        if share == "1"
        else f"\nThis is the model after {float(share):.0%} of its training, before the learning "
        "rate falls: shipped to show what post-training owes to pretraining.\n"
    )
    rows = "\n".join(
        f"| {WORDS[name]} | {value:.3f} | {low:.3f} to {high:.3f} |"
        for name, (value, low, high) in card["abilities"].items()
    )
    return f"""# {card["name"]}

A base language model of {card["parameters"]:,} parameters (plain Llama, context 512, bf16),
pretrained on the course's synthetic pocket world and on nothing else. It continues documents; it
does not answer requests, and it knows 64 topics.
{early}
| | |
|---|---|
| tokens | {card["tokens"]:,} |
| time on two CPU cores | {card["seconds"]:,} s, {card["tokens_per_second"]:,} tokens/s |
| training loss at the end | {card["loss"]:.3f} nats per token |
| data (SHA-256 of its token shards) | `{card["data_sha256"][:16]}` |
| made by | `course pretrain {card["recipe"]["size"]}`, seed {card["recipe"]["seed"]} |

## What it can and cannot do

Measured on held-out prompts, with 95% intervals; over its training in
`figures/00_pocket_models.png`.

| ability | measured | interval |
|---|---|---|
{rows}

It has no knowledge beyond its world, no safety training, and fails on anything unlike its
documents.
One sample, temperature 1, from the first line on:

```
{thread.strip()}
```
"""


def draw_abilities():
    """The figure of the pocket models' cards: loss and abilities against tokens."""

    course = committed_course("00", "live", {})
    frame = pd.read_csv(MODELS / "pretraining.csv")
    fig, axes = subplots(2, 4, figsize=(12.5, 5.4), sharex=True)
    panels = [
        ("training_loss", "training loss (nats per token)"),
        ("exam", "exam, by the options' texts"),
        ("exam_letters", "exam, by the options' letters"),
        ("answers", "raw requests answered"),
        ("problems_greedy", "word problems, greedy"),
        ("problems_pass1", "word problems, one try"),
        ("problems_pass16", "word problems, 16 tries"),
    ]
    for ax, (measure, title) in zip(axes.flat[:-1], panels, strict=True):
        of_measure = frame[frame["measure"] == measure].sort_values("tokens")
        for order, size in enumerate("sml"):
            rows = of_measure[of_measure["size"] == size]
            look = series(order, label=size)
            if measure == "training_loss":
                look["marker"] = None
            else:
                ax.fill_between(
                    rows["tokens"], rows["low"], rows["high"], alpha=0.15, color=look["color"], lw=0
                )
                ax.set_ylim(-0.03, 1.03)
            ax.plot(rows["tokens"], rows["value"], **look)
        if measure.startswith("exam"):
            ax.axhline(0.25, color="#777777", lw=1, ls=":", label="chance")
        ax.set(xscale="log", title=title, xlabel="tokens of pretraining")
        ax.xaxis.set_tick_params(labelbottom=True)
    axes[1, 3].axis("off")
    axes[1, 3].legend(*axes[0, 1].get_legend_handles_labels(), title="model", loc="center")
    save_figure(
        fig,
        "00_pocket_models",
        course=course,
        data=frame,
        caption="What the pocket models learn, against tokens of pretraining (log scale). Bands: "
        "95% intervals over test items; `l` was measured at its end. The learning rate falls over "
        "the last half of each run.",
        alt="Seven panels with one line each for the models s, m and l: training loss falls; exam "
        "accuracy and word problem accuracy rise from chance, later for the smaller models; the "
        "share of raw requests that are answered stays low.",
    )
