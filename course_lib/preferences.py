"""Preference data and the reward models trained on it: stages that notebooks share.

In the pocket world the policy answers each prompt K times, and a panel of `world.labellers` ranks
the K answers. The policy is the course's instruct model with the temperature of notebook 02 folded
in (`load_policy`): reward models, PPO and DPO all start from it. The answers are a stage: sampled
once, found again by every notebook that asks for them. With real data people compared two answers
(`sources.preference_rows`). Whatever is trained from the policy is a stage, too (`trained`).

A row is a `reward.Comparison`: "prompt", "completions" (K texts) and "ranks" (1 the best). In the
pocket world it also has the prompt's own columns, "scores" (K, the judge's) and "utilities" (K):
what the panel values in each answer, in units of its noise. So the probability that it prefers
answer a to answer b is sigmoid(utilities[a] - utilities[b]), and the best accuracy is known.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import entr, expit

from course_lib import chat, generate, logprobs, loop, losses, reward, sources
from course_lib.cache import stage, write_text
from course_lib.models import fold_temperature, save_model
from course_lib.reward import (
    Comparison,
    RewardConfig,
    make_reward_model,
    pairs_of,
    render_comparisons,
    train_reward,
)
from course_lib.stages import HISTORY, fitting, instruct_model, load, sft_config
from course_lib.world import instructions, judge, labellers

if TYPE_CHECKING:
    from course_lib.profiles import Course

PANELS = {panel.name: panel for panel in (labellers.UNBIASED, labellers.BIASED)}
TEMPERATURE = 0.7  # folded into the policy, from which everything else then samples at 1
SAMPLING = {"temperature": 1.0, "max_new_tokens": 110}  # of the answers that are ranked
NUM_SCALE = 32  # prompts whose answers set the scale of scores where people ranked those of others


def comparisons(
    course: Course, split: str, n: int, k: int = 4, *, panel: str = "unbiased", seed: int = 0
) -> list[Comparison]:
    """`n` prompts of a split with K answers each, ranked; the same answers for every panel.

    Real data: at most `n` pairs that people compared, whatever `k` and `panel` say.
    """
    if course.profile.data["preferences"] != "world":
        return sources.preference_rows(course, split, n, seed)
    entry = sampled_answers(course, split, n, k, seed)
    rows = json.loads((entry / "answers.json").read_text(encoding="utf-8"))
    draws = [random.Random(f"labels {panel} {split} {seed} {i}") for i in range(len(rows))]
    return [ranked(row, PANELS[panel], rng) for row, rng in zip(rows, draws, strict=True)]


def rendered(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4, **options: Any
) -> list[Comparison]:
    """`comparisons` with "completions" as ids, their words kept as "texts"."""
    rows = comparisons(course, split, n, k, **options)
    rows = [row | {"texts": row["completions"]} for row in rows]
    return render_comparisons(tokenizer, rows, course.context)


def by_seed(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4
) -> dict[int, list[Comparison]]:
    """`rendered` for each of the run's seeds."""
    return {seed: rendered(course, tokenizer, split, n, k, seed=seed) for seed in course.seeds}


def policy_of(course: Course, model: str, seed: int) -> str:
    """The instruct model made from `model`; the profile's own for its base model, if it has one.

    It reads the demonstrations once, as the largest training of notebook 02 does.
    """
    role = "base" if model == course.model("base") else model
    return instruct_model(course, role, seed=seed, num_epochs=1)


def load_policy(course: Course, folder: str) -> tuple[Any, Any]:
    """(model, tokenizer) of what `policy_of` returned, with `TEMPERATURE` folded in."""
    model, tokenizer = load(course, folder)
    return fold_temperature(model, TEMPERATURE), tokenizer


def prompts_that_fit(
    course: Course, model: Any, tokenizer: Any, split: str, n: int, seed: int = 0
) -> list[dict]:
    """Rows of at most `n` prompts of a split that leave room for an answer."""
    n = sources.num_demonstrations(course, n, split)
    rows = sources.prompt_rows(course, split, n, seed)
    spare = SAMPLING["max_new_tokens"]
    return fitting(model, rows, lambda row: chat.render_prompt(tokenizer, row["prompt"]), spare)


def answered(
    course: Course, policy: Any, tokenizer: Any, split: str, n: int, k: int, seed: int
) -> list[dict]:
    """`prompts_that_fit`, each with K "completions" of the policy, as texts."""
    rows = prompts_that_fit(course, policy, tokenizer, split, n, seed)
    many = {"batch_size": course.profile.batch["generate"], "num_generations": k, "seed": seed}
    asked = [row["prompt"] for row in rows]
    texts = chat.ask(policy, tokenizer, asked, **many, **SAMPLING)
    return [row | {"completions": texts[k * i : k * (i + 1)]} for i, row in enumerate(rows)]


def sampled_answers(course: Course, split: str, n: int, k: int, seed: int) -> Path:
    """The stage with K answers of the instruct model to each of `n` prompts, and their scores."""
    policy = policy_of(course, course.model("base"), seed)
    config = {"policy": Path(policy).name, "split": split, "n": n, "k": k, "seed": seed}
    config |= {"folded": TEMPERATURE, **SAMPLING}

    def make(folder: Path) -> None:
        rows = answered(course, *load_policy(course, policy), split, n, k, seed)
        for row in rows:
            row["scores"] = judge.score([row] * k, row["completions"]).tolist()
        write_text(folder / "answers.json", json.dumps(rows))

    code = [generate, chat, instructions, judge, sampled_answers, answered, prompts_that_fit]
    return stage("answers", config, make, code=code)


def ranked(row: Comparison, panel: labellers.Panel, rng: random.Random) -> Comparison:
    """The row with the "ranks" that a panel gives its completions this time, and "utilities"."""
    texts = row["completions"]
    order = labellers.rank(panel, row, texts, rng)
    utilities = [labellers.utility(panel, row, text) / panel.noise for text in texts]
    return row | {"ranks": [order.index(i) + 1 for i in range(len(texts))], "utilities": utilities}


def most_varied(rows: Sequence[Comparison]) -> Comparison:
    """The row whose answers differ most in true score; the first where nobody knows it."""
    return max(rows, key=lambda row: np.ptp(row.get("scores", [0.0])))


def show_answers(row: Comparison, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """The answers of a rendered row as a table, best first: rank, true score, `columns`, text."""
    shown = {"rank": row["ranks"]}
    shown |= {"true score": row.get("scores", ["unknown"] * len(row["texts"]))}
    shown |= {**columns, "answer": row["texts"]}
    table = [dict(zip(shown, cells, strict=True)) for cells in zip(*shown.values(), strict=True)]
    return sorted(table, key=lambda answer: answer["rank"])


def exact_ceiling(rows: Iterable[Comparison], panel: str = "unbiased") -> float:
    """`labellers.ceiling` of all pairs of rendered rows, from their texts."""
    pairs = [(row, (row["texts"][i], row["texts"][j])) for row in rows for i, j in pairs_of(row)]
    return labellers.ceiling(PANELS[panel], *map(list, zip(*pairs, strict=True)))


def pair_probabilities(rows: Iterable[Comparison]) -> np.ndarray:
    """P(the winner is preferred) of each known pair, row by row, (n,); exact, as the world has it.

    Below 0.5 where this time the labellers' noise made the worse answer the winner.
    """
    gaps = [row["utilities"][i] - row["utilities"][j] for row in rows for i, j in pairs_of(row)]
    return expit(np.array(gaps))


def least_loss(p: np.ndarray) -> float:
    """Mean loss, nats a pair, of who knows the probabilities p (n,): the labels' entropy."""
    return float((entr(p) + entr(1 - p)).mean())


def reward_config(course: Course, base: str, **changes: Any) -> RewardConfig:
    """The course's settings of reward modeling for a model of that size: those of SFT."""
    like = sft_config(course, base, lora=False)
    settings = {
        name: getattr(like, name) for name in ("learning_rate", "dtype", "gradient_checkpointing")
    }
    return RewardConfig(**{**settings, "batch_size": 2, **changes})


def reward_model(
    course: Course,
    n: int,
    k: int = 4,
    *,
    panel: str = "unbiased",
    seed: int = 0,
    progress: Callable[[int], Callable[[dict], None]] | None = None,
    **changes: Any,
) -> str:
    """The folder of a reward model on `n` prompts x `k` answers: a stage, as `instruct_model`.

    It starts from the instruct model. Its scores are normalised: the policy's own answers, those
    that were ranked or, with real data, some to the same kind of prompts, have mean 0 and spread 1
    (`reward.set_normalisation`).
    """
    policy = policy_of(course, course.model("base"), seed)
    config = reward_config(course, policy, seed=seed, **changes)
    rows = comparisons(course, "train", n, k, panel=panel, seed=seed)

    def train(start: Any, tokenizer: Any) -> tuple[Any, list[dict]]:
        rendered = render_comparisons(tokenizer, rows, course.context)
        model = make_reward_model(start, seed)
        steps = loop.steps_of(config, sum(bool(row["pairs"]) for row in rendered))
        history = train_reward(model, rendered, config, progress(steps) if progress else None)
        if course.profile.data["preferences"] != "world":  # people ranked the answers of others
            own = answered(course, start, tokenizer, "train", NUM_SCALE, k, seed)
            nobody = [row | {"pairs": []} for row in own]
            rendered = render_comparisons(tokenizer, nobody, course.context)
        ids = [answer for row in rendered for answer in row["completions"]]
        reward.set_normalisation(model, reward.score_ids(model, ids))
        return model, history

    code = [reward, generate, reward_model, answered, prompts_that_fit]
    return trained("reward", course, policy, config, [rows, SAMPLING], train, code)


def trained(
    name: str,
    course: Course,
    start: str,
    config: Any,
    data: Any,
    train: Callable[[Any, Any], tuple[Any, list[dict]]],
    code: Iterable[Any],
) -> str:
    """The folder of the model that `train(policy, tokenizer)` makes, with its history: a stage.

    The policy is that of `load_policy(course, start)`. The key has the settings `config` (a
    dataclass), all `data` (JSON values) that the training reads, and the `code` that it runs.
    """

    def make(folder: Path) -> None:
        policy, tokenizer = load_policy(course, start)
        model, history = train(policy, tokenizer)
        save_model(model, tokenizer, folder)
        write_text(folder / HISTORY, json.dumps(history))

    read = hashlib.sha256(json.dumps(data, default=str).encode()).hexdigest()
    key = {"start": Path(start).name, "config": asdict(config), "data": read}
    key |= {"folded": TEMPERATURE}
    code = [chat, loop, losses, logprobs, trained, *code]
    return str(stage(name, key, make, code=code))
