"""Preference data, the reward models trained on it, and how these do on held-out comparisons.

In the pocket world the course's instruct model answers each prompt K times at temperature 1 (as the
policy that PPO will start from writes), and a panel of `world.labellers` ranks the K answers. The
answers are a stage: sampled once, found again by every notebook that asks for them. With real data
people compared two answers (`sources.preference_rows`).

A row is a `reward.Comparison`: "prompt", "completions" (K texts) and "ranks" (1 the best). In the
pocket world it also has the prompt's own columns, "scores" (K, the judge's) and "utilities" (K):
what the panel values in each answer, in units of its noise. So the probability that it prefers
answer a to answer b is sigmoid(utilities[a] - utilities[b]), and the best accuracy is known.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from course_lib import chat, generate, loop, losses, reward, sources
from course_lib.cache import stage, write_text
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
SAMPLING = {"temperature": 1.0, "max_new_tokens": 110}  # of the answers that are ranked


# ---- data --------------------------------------------------------------------------------------


def comparisons(
    course: Course, split: str, n: int, k: int = 4, *, panel: str = "unbiased", seed: int = 0
) -> list[Comparison]:
    """`n` prompts of a split with K answers each, ranked; the same answers for every panel.

    Real data: `n` pairs that people compared, whatever `k` and `panel` say.
    """
    if course.profile.data["preferences"] != "world":
        return sources.preference_rows(course, split, n, seed)
    entry = sampled_answers(course, split, n, k, seed)
    rows = json.loads((entry / "answers.json").read_text(encoding="utf-8"))
    draws = [random.Random(f"labels {panel} {split} {seed} {i}") for i in range(len(rows))]
    return [ranked(row, PANELS[panel], rng) for row, rng in zip(rows, draws, strict=True)]


def sampled_answers(course: Course, split: str, n: int, k: int, seed: int) -> Path:
    """The stage with K answers of the instruct model to each of `n` prompts, and their scores."""
    policy = instruct_model(course, "base", seed=seed)
    config = {"policy": Path(policy).name, "split": split, "n": n, "k": k, "seed": seed}

    def make(folder: Path) -> None:
        model, tokenizer = load(course, policy)
        wanted = sources.prompt_rows(course, split, n, seed)
        rows = fitting(
            model,
            wanted,
            lambda row: chat.render_prompt(tokenizer, row["prompt"]),
            SAMPLING["max_new_tokens"],
        )
        prompts = [row["prompt"] for row in rows]
        texts = chat.ask(
            model,
            tokenizer,
            prompts,
            num_generations=k,
            seed=seed,
            batch_size=course.profile.batch["generate"],
            **SAMPLING,
        )
        found = []
        for i, row in enumerate(rows):
            answers = texts[k * i : k * (i + 1)]
            scores = judge.score([row] * k, answers).tolist()
            found.append(row | {"completions": answers, "scores": scores})
        write_text(folder / "answers.json", json.dumps(found))

    code = [generate, chat, instructions, judge, sampled_answers]
    return stage("answers", config | SAMPLING, make, code=code)


def ranked(row: Comparison, panel: labellers.Panel, rng: random.Random) -> Comparison:
    """The row with the "ranks" that a panel gives its completions this time, and "utilities"."""
    texts = row["completions"]
    order = labellers.rank(panel, row, texts, rng)
    utilities = [labellers.utility(panel, row, text) / panel.noise for text in texts]
    return row | {"ranks": [order.index(i) + 1 for i in range(len(texts))], "utilities": utilities}


def pair_probabilities(rows: Iterable[Comparison]) -> np.ndarray:
    """P(the winner is preferred) of each known pair, row by row, (n,); exact, as the world has it.

    Below 0.5 where this time the labellers' noise made the worse answer the winner.
    """
    gaps = [row["utilities"][i] - row["utilities"][j] for row in rows for i, j in pairs_of(row)]
    return expit(np.array(gaps))


# ---- reward models -----------------------------------------------------------------------------


def reward_config(course: Course, base: str, **changes: Any) -> RewardConfig:
    """The course's settings of reward modeling for a model of that size: those of SFT."""
    like = sft_config(course, base, lora=False)
    settings = {
        name: getattr(like, name) for name in ("learning_rate", "dtype", "gradient_checkpointing")
    }
    return RewardConfig(**{**settings, "batch_size": 8, **changes})


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

    It starts from the instruct model. Its scores are normalised on the answers that it was trained
    on: the policy's own have mean 0 and spread 1 (`reward.set_normalisation`).
    """
    policy = instruct_model(course, "base", seed=seed)
    config = reward_config(course, policy, seed=seed, **changes)
    rows = comparisons(course, "train", n, k, panel=panel, seed=seed)

    def make(folder: Path) -> None:
        from course_lib.models import save_model

        model, tokenizer = load(course, policy)
        rendered = render_comparisons(tokenizer, rows, course.context)
        model = make_reward_model(model)
        steps = max(1, round(config.num_epochs * len(rendered) / config.batch_size))
        history = train_reward(model, rendered, config, progress(steps) if progress else None)
        ids = [answer for row in rendered for answer in row["completions"]]
        reward.set_normalisation(model, reward.score_ids(model, ids))
        save_model(model, tokenizer, folder)
        write_text(folder / HISTORY, json.dumps(history))

    key = {"policy": Path(policy).name, "config": asdict(config), "rows": rows}
    return str(stage("reward", key, make, code=[reward, chat, loop, losses, reward_model]))


# ---- held-out comparisons ----------------------------------------------------------------------


@dataclass
class Marks:
    """How a reward model does on comparisons; by prompt (n,), and by pair (m,).

    `accuracy` and `ceiling` are expectations over fresh labels where the labellers are known: the
    coin flips of this time's labels are averaged out, and no model gets above the ceiling. Where
    nobody knows the labellers, `accuracy` is `agreement`, and there is no ceiling (None).
    """

    agreement: np.ndarray  # (n,) share of the pairs whose winner has the higher score
    accuracy: np.ndarray  # (n,) the same with fresh labels, in expectation
    ceiling: np.ndarray | None  # (n,) the best possible accuracy
    loss: np.ndarray  # (n,) mean of -log sigmoid(margin), in nats
    predicted: np.ndarray  # (m,) P(first answer preferred) by the model: sigmoid of the margin
    observed: np.ndarray  # (m,) 1 where the labellers preferred the first answer
    known: np.ndarray | None  # (m,) the true P(first answer preferred)


def mark(model: Any, rows: Sequence[Comparison]) -> Marks:
    """A reward model's marks on rendered comparisons. "First" is by place, not by label."""
    found = reward.evaluate_reward(model, rows)
    return marks_of(rows, found["margins"], found["prompts"])


def marks_of(rows: Sequence[Comparison], margins: np.ndarray, prompts: np.ndarray) -> Marks:
    """Marks from each pair's margin (winner's score minus loser's) and its row's index."""
    _, prompts = np.unique(prompts, return_inverse=True)  # rows without a pair are left out

    def by_prompt(values: np.ndarray) -> np.ndarray:
        return np.bincount(prompts, values) / np.bincount(prompts)

    first = np.array([winner < loser for row in rows for winner, loser in pairs_of(row)])
    correct = (np.sign(margins) + 1) / 2  # equal scores are half right
    agreement = by_prompt(correct)
    expected, ceiling, known = agreement, None, None
    if all("utilities" in row for row in rows):
        p = pair_probabilities(rows)
        expected = by_prompt(correct * p + (1 - correct) * (1 - p))
        ceiling = by_prompt(np.maximum(p, 1 - p))
        known = np.where(first, p, 1 - p)
    return Marks(
        agreement=agreement,
        accuracy=expected,
        ceiling=ceiling,
        loss=by_prompt(np.logaddexp(0, -margins)),
        predicted=expit(np.where(first, margins, -margins)),
        observed=first.astype(float),
        known=known,
    )


def mark_by(rows: Sequence[Comparison], score: Callable[[str], float]) -> Marks:
    """The marks of a rule that scores an answer's text, such as its length."""
    margins, prompts = [], []
    for index, row in enumerate(rows):
        scores = [score(text) for text in row["texts"]]
        found = [scores[winner] - scores[loser] for winner, loser in pairs_of(row)]
        margins += found
        prompts += [index] * len(found)
    return marks_of(rows, np.array(margins, dtype=float), np.array(prompts))


def rendered(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4, **options: Any
) -> list[Comparison]:
    """`comparisons` as ids, "completions" still readable as "texts"."""
    rows = comparisons(course, split, n, k, **options)
    rows = [row | {"texts": row["completions"]} for row in rows]
    return render_comparisons(tokenizer, rows, course.context)


def trial(
    course: Course,
    start: str,
    rows: Sequence[Comparison],
    held_out: Sequence[Comparison],
    place: tuple[str, str, float, int],
    **changes: Any,
) -> tuple[Any, Marks, list[dict]]:
    """A fresh reward model from `start` on rendered rows: model, held-out marks, history.

    Means of the marks are recorded at `place`: (claim, condition, x, seed).
    """
    model = make_reward_model(load(course, start)[0])
    config = reward_config(course, start, seed=place[-1], **changes)
    history = train_reward(model, rows, config)
    marks = mark(model, held_out)
    record(course, marks, place)
    return model, marks, history


def record(course: Course, marks: Marks, place: tuple[str, str, float, int]) -> None:
    """Record the means of the marks: accuracy, loss, and the ceiling where it is known."""
    for name in ("accuracy", "loss", "ceiling"):
        if (values := getattr(marks, name)) is not None:
            course.results.add(*place, name, values.mean())


def record_calibration(course: Course, marks: Marks, condition: str, num_bins: int = 10) -> None:
    """Record a reliability diagram, x the bin's number, and how sure model and labellers are.

    Sure is max(p, 1 - p): the mean of it over a calibrated model's pairs is its accuracy, and over
    the true probabilities the ceiling. Its shares are recorded by bins of width 0.05.
    """
    place, edges = ("3.1", condition), np.linspace(0.5, 1, 11)
    for name in ("observed", "known"):
        p = marks.predicted if name == "observed" else marks.known
        if p is None:
            continue
        at, mean, _ = reward.calibration(marks.predicted, getattr(marks, name), num_bins)
        for i, values in enumerate(zip(at, mean, strict=True)):
            for measure, value in zip(("predicted", name), values, strict=True):
                course.results.add(*place, i, course.seed, measure, value)
        who = {"observed": "model", "known": "labellers"}[name]
        sure = np.maximum(p, 1 - p)
        course.results.add(*place, 0, course.seed, f"mean sureness of the {who}", sure.mean())
        for low, share in zip(edges, np.histogram(sure, edges)[0] / len(sure), strict=False):
            course.results.add(*place, low + 0.025, course.seed, f"sureness of the {who}", share)


def batching(
    course: Course,
    tokenizer: Any,
    start: str,
    k: int,
    num_pairs: int,
    held_out: Sequence[Comparison],
    seed: int,
    step_pairs: int = 72,
) -> dict[str, tuple[Marks, np.ndarray]]:
    """The same comparisons "together" (all of a prompt in one step) and "shuffled" (pair by pair).

    Both see every comparison once, `step_pairs` of them in each step, from the same start. Returns
    the held-out marks, and by training prompt what was learned by heart: agreement with the labels
    that were trained on, less the expected agreement with fresh labels of the same answers.
    """
    each = k * (k - 1) // 2
    rows = rendered(course, tokenizer, "train", num_pairs // each, k, seed=seed)
    arms = {"together": (rows, step_pairs // each), "shuffled": (reward.to_pairs(rows), step_pairs)}
    found = {}
    for name, (data, batch_size) in arms.items():
        place = ("3.2", name, k, seed)
        model, marks, history = trial(course, start, data, held_out, place, batch_size=batch_size)
        trained = mark(model, rows)
        by_heart = trained.agreement - trained.accuracy
        reads = sum(row["num_tokens"] for row in history) / sum(row["num_pairs"] for row in history)
        course.results.add(*place, "learned by heart", by_heart.mean())
        course.results.add(*place, "tokens per comparison", reads)
        found[name] = marks, by_heart
    return found


def bias(model: Any, tokenizer: Any, rows: Sequence[dict], noise: float) -> dict[str, np.ndarray]:
    """What confidence and falsehood add to a score, in points of the judge, by row (n,).

    For each variant of `instructions.contrast`, the score less that of the plain, true answer. A
    reward model's unit is one `noise` of the labellers.
    """
    texts = [instructions.contrast(row) for row in rows]
    prompts = [row["prompt"] for row in rows]
    scores = {
        name: reward.score_texts(model, tokenizer, prompts, [text[name] for text in texts])
        for name in texts[0]
    }
    plain = scores.pop("plain, true")
    return {name: noise * (values - plain) for name, values in scores.items()}
