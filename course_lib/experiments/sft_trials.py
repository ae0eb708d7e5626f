"""What the experiments of a notebook repeat: one more training, measured on the same held-out rows.

Each function treats all models of a comparison alike, so that they differ in what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from transformers import PrinterCallback

from course_lib.algorithms.chat import Row, render_chat, render_prompt, run_conversation, stop_ids
from course_lib.algorithms.sampling import generate
from course_lib.algorithms.sft import completion_losses, document_losses, train_sft
from course_lib.core.cache import stage
from course_lib.experiments.measures import answer_rows
from course_lib.experiments.recipes import keep, load, pinned, sft_config
from course_lib.inputs.models import add_lora, model_bytes, num_parameters
from course_lib.inputs.rows import document_texts, instruction_rows, prompt_rows, scorer
from course_lib.world.instructions import demonstrate_sum
from course_lib.world.judge import is_refusal, judge
from course_lib.world.problems import calculate

if TYPE_CHECKING:
    from course_lib.kit.course import Course

SAMPLING = {"max_new_tokens": 110, "temperature": 0.7}  # of every answer


@dataclass
class HeldOut:
    """What every model of a comparison answers and reads; none of it was trained on."""

    prompts: list[dict]  # to answer
    rows: list[dict]  # demonstrations, to read
    documents: list[str]  # as in pretraining, to read
    tries: int = 1  # answers to each prompt
    left_out: int = 0  # prompts too long for the model's context

    def half(self) -> HeldOut:
        """Every second prompt and row, where an effect is large enough for half the time."""
        return replace(self, prompts=self.prompts[::2], rows=self.rows[::2])


@dataclass
class Measured:
    """One model's results, an array per measure with one number per item."""

    texts: list[str]  # the answers, those to all prompts first, then the second try of each, ...
    score: np.ndarray  # of the answers
    completion_loss: np.ndarray  # nats per completion token of each held-out demonstration
    document_loss: np.ndarray  # nats per token of each document


def load_held_out(course: Course, tokenizer, num_prompts: int) -> HeldOut:
    """Prompts, 128 demonstrations and 64 documents; four tries per prompt with `full` effort."""
    prompts = prompt_rows(course, "test", num_prompts)
    room = course.context - SAMPLING["max_new_tokens"]
    fit = [row for row in prompts if len(render_prompt(tokenizer, row["prompt"])) <= room]
    rows = instruction_rows(course, 128, split="test", seed=7, kinds=["explain"])
    documents = document_texts(course, 64, seed=9)
    return HeldOut(fit, rows, documents, 4 if course.full else 1, len(prompts) - len(fit))


def render_rows(course: Course, tokenizer, rows: Sequence[dict]) -> list[Row]:
    """Conversations as ids and masks, without those whose answers lie beyond the context."""
    rendered = [render_chat(tokenizer, row["messages"]) for row in rows]
    return [row for row in rendered if sum(row["completion_mask"][1 : course.context])]


def finetune(
    course: Course,
    rows: Sequence[Row],
    seed: int,
    *,
    r: int = 0,
    quantize: str | None = None,
    rate: float = 1.0,
    progress: Callable[[dict], None] | None = None,
    **changes: Any,
) -> tuple[Any, list[dict]]:
    """A fresh copy of the base model, trained on `rows`, and the history of its training.

    Args:
        r: rank of LoRA; 0 trains all weights.
        quantize: "nf4" for 4-bit frozen weights (QLoRA).
        rate: factor on the course's learning rate for this model.
        changes: fields of `SFTConfig` that differ from the course's.
    """
    model, tokenizer = course.load("base", quantize=quantize)
    if r:
        read = {token for row in rows for token in row["input_ids"]}
        torch.manual_seed(seed)  # LoRA's A starts at random
        model = add_lora(model, r, new_tokens=sorted(read & set(tokenizer.all_special_ids)))
    config = sft_config(course, course.model("base"), lora=r > 0, seed=seed, **changes)
    config.learning_rate *= rate
    return model, train_sft(model, rows, config, progress)


def tuned(
    course: Course, tokenizer, rows: Sequence[Row], seed: int, r: int = 0, **options: Any
) -> Any:
    """The model of `finetune`, found again in the cache where all its weights were trained.

    LoRA's are trained anew: an adapter beside 4-bit weights, or merged, has other bits.
    """
    if r:
        return finetune(course, rows, seed, r=r, **options)[0]
    start = pinned(course, course.model("base"))
    with stage("sft-trial", {"seed": seed, **options}, inputs=[start, rows]) as entry:
        if entry.new:
            model, history = finetune(course, rows, seed, **options)
            keep(entry, model, tokenizer, history)
    return load(course, str(entry.folder))[0]


def measure(
    course: Course, model, tokenizer, held_out: HeldOut, *place: Any, chat: bool = True
) -> Measured:
    """Let a model answer the prompts and read the rest; one number per item.

    `place` is (claim, condition, x, seed): the means are recorded there, as "score",
    "completion_loss" and "document_loss". `chat=False` continues the prompts as raw text.
    """
    claim, condition, x, seed = place
    prompts = held_out.prompts * held_out.tries
    answers = answer_rows(course, model, tokenizer, prompts, chat=chat, seed=seed, **SAMPLING)
    rendered = render_rows(course, tokenizer, held_out.rows)
    loss, tokens = completion_losses(model, rendered, course.context)
    nats, length = document_losses(model, tokenizer, held_out.documents, course.context)
    found = Measured(answers.texts, answers.scores, loss / tokens, nats / length)
    for name in ("score", "completion_loss", "document_loss"):
        course.results.add(claim, condition, x, seed, name, getattr(found, name).mean())
    return found


def paste(rows: Sequence[dict], pages: Sequence[str], words: int) -> list[dict]:
    """The rows, where the user first pastes the first `words` of a page, one page for each row."""
    if words == 0:
        return list(rows)
    pasted = []
    for row, page in zip(rows, pages, strict=False):
        text = " ".join(page.split()[:words]) + "\n\n" + row["messages"][0]["content"]
        first = {"role": "user", "content": text}
        pasted.append(row | {"prompt": text, "messages": [first, *row["messages"][1:]]})
    return pasted


def trial(
    course: Course,
    tokenizer,
    held_out: HeldOut,
    rows: Sequence[Row],
    place: tuple[str, str, float | str, int],
    **options: Any,
) -> Measured:
    """`tuned` on `rows` with the seed of `place`, then `measure`.

    Trainable parameters and megabytes are recorded, too: of weights, and of gradients and AdamW's
    two averages.
    """
    model = tuned(course, tokenizer, rows, place[-1], **options)
    trainable = num_parameters(model, trainable=True)
    course.results.add(*place, "trainable parameters", trainable)
    course.results.add(*place, "MB of weights", model_bytes(model) / 1e6)
    course.results.add(*place, "MB of gradients and AdamW", 12 * trainable / 1e6)
    return measure(course, model, tokenizer, held_out, *place)


def demonstrations(course: Course, tokenizer, n: int, seed: int, kinds=None) -> list[Row]:
    """`n` demonstrations, rendered; a smaller `n` gives the first rows of a larger one."""
    return render_rows(course, tokenizer, instruction_rows(course, n, seed=seed, kinds=kinds))


def with_pages(held_out: HeldOut, pages: Sequence[str], words: int) -> HeldOut:
    """The same prompts and demonstrations with a page before each; none if `words` is 0."""
    prompts = paste(held_out.prompts, pages, words)
    rows = paste(held_out.rows, pages[len(prompts) :], words)
    return replace(held_out, prompts=prompts, rows=rows)


def manners(course: Course, n: int, seed: int, tool: bool = True) -> list[dict]:
    """`n` demonstrations that decline, answer harmless look-alikes, or do sums.

    `tool`: whether the sums are demonstrated with the calculator or from the head.
    """
    rows = instruction_rows(course, n, seed=seed, kinds=["refusal", "safe", "calculator"])
    for i, row in enumerate(rows):
        if row["kind"] == "calculator" and not tool:
            rows[i] = demonstrate_sum(row | {"messages": row["messages"][:1]}, tool=False)
    return rows


def without(rows: Sequence[Row], tokens: Sequence[int]) -> list[Row]:
    """The rows with a mask of 0 on these tokens."""
    masked = []
    for row in rows:
        pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
        mask = [int(learned and token not in tokens) for token, learned in pairs]
        masked.append(row | {"completion_mask": mask})
    return masked


def use_again(course: Course, runs: dict[tuple, Measured], old: tuple, new: tuple) -> None:
    """Give the place `new` what was measured at `old`: one training serves two comparisons."""
    runs[new] = runs[old]
    claim, condition, x, seed = old
    rows = course.results.frame(claim, condition=condition)
    for row in rows[(rows["x"] == x) & (rows["seed"] == seed)].itertuples():
        course.results.add(*new, row.measure, row.value)


def trl_settings(course: Course, ours: Sequence[dict], batch_size: int) -> dict[str, Any]:
    """Arguments of TRL's trainer: full precision, rows as they come, no files but the losses.

    The learning rate is that of our loop's history `ours`, all the way.
    """
    return {
        "learning_rate": ours[0]["learning_rate"],
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": batch_size,
        "max_length": course.context,
        "output_dir": str(course.build / "trl"),
        "use_cpu": course.device == "cpu",
        "bf16": False,
        "activation_checkpointing": False,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_beside(course: Course, trainer: Any, ours: Sequence[dict]) -> None:
    """Train with TRL's `trainer`; record its losses and our loop's by step, as claim "trl"."""
    trainer.remove_callback(PrinterCallback)  # the losses are drawn
    trainer.train()
    for name, log in (("our loop", ours), ("TRL", trainer.state.log_history)):
        for step, row in enumerate((row for row in log if "loss" in row), start=1):
            course.results.add("trl", name, step, course.seed, "loss", float(row["loss"]))


def share_learned(rows: Sequence[Row]) -> float:
    """Share of all tokens that belong to completions."""
    return sum(sum(r["completion_mask"]) for r in rows) / sum(len(r["input_ids"]) for r in rows)


def taught(course: Course, held_out: HeldOut) -> np.ndarray:
    """The scores of the held-out demonstrations themselves, (n,)."""
    return scorer(course)(held_out.rows, [row["completion"] for row in held_out.rows])


def train_manners(
    course: Course, tokenizer, n: int, sums: Sequence[dict], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, list]]:
    """Two models of manners, sums by calculator ("tool") and from the head ("head").

    Returns arrays: 1 for each sum that a model does right ("tool", "head");
    by theme, the share of "refusal" and "safe" requests that "tool" declines, on new themes and,
    as "refusal, known", on those it was trained on; and the talks about the sums.
    """
    found, talks = {}, {}
    for name in ("head", "tool"):
        rows = render_rows(course, tokenizer, manners(course, n, seed, tool=name == "tool"))
        model = tuned(course, tokenizer, rows, seed, num_epochs=6, batch_size=8, rate=3.0)
        found[name], talks[name] = do_sums(model, tokenizer, sums)
    for kind in ("refusal", "safe"):
        found[kind] = refusals(course, model, tokenizer, kind, "test", seed)
        found[f"{kind}, known"] = refusals(course, model, tokenizer, kind, "train", seed)
    return found, talks


def record_shares(course: Course, claim: str, condition: str, scores: np.ndarray) -> None:
    """How scores are spread: their mean, and the share in each bin of width 1 from -4 to 10."""
    course.results.add(claim, condition, 0, course.seed, "mean", scores.mean())
    bins = np.floor(np.clip(scores, -4, 9.99))
    for low in range(-4, 10):
        course.results.add(claim, condition, low + 0.5, course.seed, "share", (bins == low).mean())


def refusals(course: Course, model, tokenizer, kind: str, split: str, seed: int) -> np.ndarray:
    """Share of answers that decline, one number a theme; two answers to each of 100 prompts.

    A theme comes in eight wordings, which are no independent trials; a real prompt is a theme.
    """
    rows = prompt_rows(course, split, 100, kind=kind) * 2
    texts = answer_rows(course, model, tokenizer, rows, seed=seed, **SAMPLING).texts
    declined = pd.Series([float(is_refusal(text)) for text in texts])
    themes = [row.get("theme", row["prompt"]) for row in rows]
    return declined.groupby(themes, sort=False).mean().to_numpy()


def do_sums(model, tokenizer, rows: Sequence[dict]) -> tuple[np.ndarray, list[list[dict]]]:
    """1 where a sum's last answer is right, greedy, with the calculator at hand; and the talks."""
    asked, tools = [row["messages"] for row in rows], {"calc": calculate}
    greedy = {"max_new_tokens": 40, "temperature": 0.0}
    talks = run_conversation(model, tokenizer, asked, tools, **greedy)
    scored = zip(rows, talks, strict=True)
    right = [judge(row, talk[-1]["content"]).parts["right"] > 0 for row, talk in scored]
    return np.array(right, dtype=float), talks


def ends_itself(model, tokenizer, rows: Sequence[dict], seed: int) -> tuple[np.ndarray, list[str]]:
    """1 where an answer ends by itself within 150 tokens; and the texts, special tokens shown."""
    ids = [render_prompt(tokenizer, row["prompt"]) for row in rows]
    stops = stop_ids(tokenizer)
    options = {"eos_ids": stops, "pad_id": tokenizer.pad_token_id, "seed": seed}
    answers = generate(model, ids, **options | SAMPLING | {"max_new_tokens": 150}).lists
    ended = np.array([float(answer[-1] in stops) for answer in answers])
    return ended, [tokenizer.decode(answer) for answer in answers]
