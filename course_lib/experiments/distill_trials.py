"""What notebook 08 runs beside `reasoners`: soft and hard labels, agents, a closer look, TRL."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib.algorithms import chat, distill, loop
from course_lib.algorithms.distill import DistillConfig
from course_lib.core.cache import stage
from course_lib.experiments.answers import SAMPLING, TEMPERATURE
from course_lib.experiments.experiment import Items, Ran
from course_lib.experiments.measures import TRIES
from course_lib.experiments.reasoners import load_teacher, student_of
from course_lib.experiments.recipes import (
    Progress,
    instruct_model,
    keep,
    load,
    pinned,
    policy_of,
)
from course_lib.experiments.records import chosen
from course_lib.inputs.rows import instruction_rows, num_demonstrations, prompt_rows, scorer

if TYPE_CHECKING:
    from course_lib.kit.course import Course

MOST = 400  # demonstrations that the students see
PROMPTS = 120  # held-out ones


def without_square(student, teacher, labels, mask, alpha, temperature) -> torch.Tensor:
    """`kd_loss` without the factor T² before its soft part."""
    soft = distill.kd_loss(student, teacher, labels, mask, 1.0, temperature) / temperature**2
    hard = distill.kd_loss(student, teacher, labels, mask, 0.0, temperature)
    return alpha * soft + (1 - alpha) * hard


def demonstrations(course: Course, tokenizer: Any, amount: int, seed: int) -> list[chat.Row]:
    """The first `amount` demonstrations of the seed's list, rendered."""
    most = num_demonstrations(course, 4 * MOST, "train")
    rows = instruction_rows(course, most, seed=seed)[:amount]
    rows = [chat.render_chat(tokenizer, row["messages"]) for row in rows]
    rows = [{name: ids[: course.context] for name, ids in row.items()} for row in rows]
    return [row for row in rows if any(row["completion_mask"][1:])]


def soft_config(course: Course, seed: int, **changes: Any) -> DistillConfig:
    """The settings of a student of the instruct model: hard and soft labels share them."""
    settings = {"learning_rate": 1e-3, "num_steps": 200, "batch_size": 4, "seed": seed}
    settings |= {"alpha": 1.0, "temperature": 1.0}
    return DistillConfig(**settings | changes)


def soft_student(
    course: Course,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    amount: int,
    square: bool = True,
    experience: int | None = None,
    **changes: Any,
) -> str:
    """The folder of a student that has read `amount` demonstrations, again and again.

    Args:
        square: whether the soft part has its factor T².
        experience: demonstrations that it was fine-tuned on before; None starts from the base.
        changes: fields of `DistillConfig`, such as alpha, that differ from `soft_config`.
    """
    start, config = student_of(course), soft_config(course, seed, **changes)
    if experience:
        start = instruct_model(course, start, experience, seed, num_epochs=1)
    teacher = policy_of(course, course.model("base"), seed) if config.alpha else None
    if config.num_steps == 0:
        return start
    with stage("soft", config, [pinned(course, start), teacher, amount, square]) as entry:
        if entry.new:
            student, tokenizer = load(course, start)
            expert = load_teacher(course, teacher, tokenizer)
            rows = demonstrations(course, tokenizer, amount, seed)
            bar = progress(config.num_steps) if progress else None
            loss_fn = distill.kd_loss if square else without_square
            history = distill.train_kd(student, expert, rows, config, loss_fn, bar)
            keep(entry, student, tokenizer, history)
    return str(entry.folder)


def judge(course: Course, folder: str, name: str, seed: int, settings: Any, by: Any) -> Items:
    """The judge's points for the answers to held-out prompts, (prompts, tries)."""
    model, tokenizer = load(course, folder)
    rows = prompt_rows(course, "test", num_demonstrations(course, PROMPTS, "test"), 8)
    options = SAMPLING | {"temperature": TEMPERATURE, "seed": seed, "num_generations": TRIES}
    many = [row for row in rows for _ in range(TRIES)]
    found = chat.ask(model, tokenizer, [row["prompt"] for row in rows], **options)
    texts = np.array(found, dtype=object).reshape(len(rows), TRIES)
    return Items({"truth": scorer(course)(many, found).reshape(texts.shape)}, rows, texts)


def save_all(rans: Mapping[str, Ran]) -> None:
    """The records of a full run: items, and answers to a few prompts."""
    rans["8.1"].save([("soft, 25", "truth", "median gain", 4)], "hard, 25")
    rans["8.2"].save([("traces", "right", "largest gain", 4)], "RL", ["right"])
    rans["8.3"].save(measures=["right"])
    rans["agents"].save()


def record_tokens(course: Course, teacher: str, seed: int, n: int = 14) -> None:
    """The teacher's distribution at the first `n` tokens of a held-out answer, as claim "tokens".

    By place, each token's probability: the one that was "written", and the three likeliest others.
    """
    model, tokenizer = load(course, teacher)
    row = instruction_rows(course, 1, split="test", seed=8)[0]
    row = chat.render_chat(tokenizer, row["messages"])
    batch = loop.batch_of([row])
    with loop.evaluating(model):
        probs = distill.completion_logits(model, batch)[:n].softmax(-1)
    for x, token in enumerate(distill.completion_labels(batch)[:n].tolist()):
        others = [i for i in probs[x].argsort(descending=True)[:4].tolist() if i != token][:3]
        names = {"written": token} | {f"other {rank}": i for rank, i in enumerate(others, 1)}
        for measure, i in names.items():
            text = tokenizer.decode([i]).replace("\n", "⏎") or "∅"
            course.results.add("tokens", text, x, seed, measure, float(probs[x, i]))


def answers_table(course: Course, ran: Ran, n: int = 2) -> list[dict[str, str]]:
    """Answers of the students with hard and with soft labels: prompts of the median gain."""
    if "hard, 25" in ran.missing:
        return [{"students": ran.missing["hard, 25"]}]
    hard, soft = (ran.items[f"{kind}, 25"][course.seed] for kind in ("hard", "soft"))
    gains = soft.values["truth"].mean(1) - hard.values["truth"].mean(1)
    rows = []
    for i in chosen(gains, "median gain", n):
        row = {"prompt": hard.rows[i]["prompt"]}
        for kind, found in (("hard", hard), ("soft", soft)):
            row[f"{kind} labels"] = (
                f"{found.texts[i, 0]}\n({found.values['truth'][i, 0]:.1f} points)"
            )
        rows.append(row)
    return rows


def trl_batch(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Rows as TRL's trainers want them: the mask as labels of -100."""
    batch = chat.collate(rows, 0)
    mask = batch.pop("completion_mask").bool()
    return batch | {"labels": batch["input_ids"].masked_fill(~mask, -100)}


def in_order(rows: Sequence[dict], seed: int) -> list[dict]:
    """The rows in the order in which our loop with that seed reads them first."""
    order = loop.endless(len(rows), random.Random(seed))
    return [rows[next(order)] for _ in rows]
