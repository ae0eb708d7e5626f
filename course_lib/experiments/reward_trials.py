"""How reward models do on held-out comparisons, and the experiments that compare them.

Where the labellers are known, so is everything about their labels: how often the best possible
model is right (the ceiling), how often a given one will be with fresh labels, and how much of what
it learned is this time's coin flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit

from course_lib.algorithms import reward
from course_lib.algorithms.reward import Comparison, pairs_of
from course_lib.core.stats import Interval, smallest_step
from course_lib.experiments.preferences import PANELS, pair_probabilities
from course_lib.experiments.recipes import policy_of, rendered, reward_model_on, training_history
from course_lib.inputs.models import load_reward_model
from course_lib.kit.results import select
from course_lib.world import instructions, judge, labellers

if TYPE_CHECKING:
    from course_lib.kit.course import Course

# Points that the judge takes off, named by what is scored higher.
PARTS = {"false": "not false", "repetition": "not repeated", "forum": "no forum talk"}
Place = tuple[str, str, float, int]  # (claim, condition, x, seed) of recorded results


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
    agreement, loss = by_prompt(correct), by_prompt(np.logaddexp(0, -margins))
    predicted = expit(np.where(first, margins, -margins))
    marks = Marks(agreement, agreement, None, loss, predicted, first.astype(float), None)
    if all("utilities" in row for row in rows):
        p = pair_probabilities(rows)
        marks.accuracy = by_prompt(correct * p + (1 - correct) * (1 - p))
        marks.ceiling, marks.known = by_prompt(sure(p)), np.where(first, p, 1 - p)
    return marks


def mark_by(rows: Sequence[Comparison], score: Callable[[str], float]) -> Marks:
    """The marks of a rule that scores an answer's text, such as its length."""
    scores = [score(text) for row in rows for text in row["texts"]]
    return marks_of(rows, *reward.pair_margins(rows, scores))


def record(course: Course, marks: Marks, place: Place) -> Marks:
    """Record the means of the marks at `place`: accuracy, loss, the ceiling where it is known."""
    for name in ("accuracy", "loss", "ceiling"):
        if (values := getattr(marks, name)) is not None:
            course.results.add(*place, name, values.mean())
    return marks


def num_words(text: str) -> int:
    """How long an answer looks to a reader: its words."""
    return len(text.split())


def longer_is_better(course: Course, rows: Sequence[Comparison], seed: int) -> Marks:
    """The marks of the rule that prefers the answer of more words, recorded."""
    return record(course, mark_by(rows, num_words), ("3.1", "longer is better", 0, seed))


# ---- how sure ----------------------------------------------------------------------------------


def sure(p: np.ndarray) -> np.ndarray:
    """max(p, 1 - p): how probable the likelier answer of each pair is."""
    return np.maximum(p, 1 - p)


def record_sureness(course: Course, condition: str, p: np.ndarray, seed: int) -> None:
    """Record the mean of `sure(p)`, and the share of the pairs in each bin of width 0.05."""
    place, edges = ("3.1", condition), np.linspace(0.5, 1, 11)
    course.results.add(*place, 0, seed, "mean", sure(p).mean())
    shares = np.histogram(sure(p), edges)[0] / len(p)
    for low, share in zip(edges[:-1], shares, strict=True):
        course.results.add(*place, round(low + 0.025, 3), seed, "share of pairs", share)


def record_calibration(course: Course, marks: Marks, seed: int) -> None:
    """Record ten groups of pairs by predicted probability (x their number), sureness, accuracy."""
    for name in ("observed",) if marks.known is None else ("observed", "known"):
        predicted, mean, _ = reward.calibration(marks.predicted, getattr(marks, name))
        for i, (here, there) in enumerate(zip(predicted, mean, strict=True)):
            course.results.add("3.1", "reward model", i, seed, "predicted", here)
            course.results.add("3.1", "reward model", i, seed, name, there)
    record_sureness(course, "reward model", marks.predicted, seed)
    course.results.add("3.1", "reward model", 0, seed, "accuracy", marks.accuracy.mean())


def record_parts(course: Course, model: Any, rows: Sequence[Comparison], seed: int) -> None:
    """Record what the true score and the model's go along with: "correlation", x the judge's part.

    Correlations are of differences, over all pairs of answers to the same prompt; "words" is no
    part of the judge's. And record the accuracy of who knows every part "but one". Nothing is
    recorded where nobody knows the truth.
    """
    if not course.truth_known:
        return

    def differences(values: Sequence[float]) -> np.ndarray:
        table = np.asarray(values, dtype=float).reshape(len(rows), -1)  # (prompts, K)
        first, second = np.triu_indices(table.shape[1], 1)
        return (table[:, first] - table[:, second]).ravel()

    answers = [(row, text) for row in rows for text in row["texts"]]
    parts = pd.DataFrame([judge.judge(*answer).parts for answer in answers]).fillna(0)
    parts["words"] = [num_words(text) for _, text in answers]
    truth = parts.drop(columns="words").sum(axis=1)
    own = reward.score_ids(model, [ids for row in rows for ids in row["completions"]])
    for part, points in parts.items():
        for name, score in (("truth", truth), ("reward model", own)):
            along = np.corrcoef(differences(score), differences(points))[0, 1]
            course.results.add("3.1", name, part, seed, "correlation", np.nan_to_num(along))
        if part != "words":
            blind = marks_of(rows, *reward.pair_margins(rows, (truth - points).tolist()))
            course.results.add("3.1", "but one", part, seed, "accuracy", blind.accuracy.mean())


def not_seen(course: Course) -> list[dict[str, Any]]:
    """The accuracies "but one" of `record_parts` as a table: of this run, and of the full runs."""
    if not course.truth_known:
        return []
    frames = {"this run": course.results.frame("3.1")}
    frames |= {} if course.full else {"full runs": course.full_runs("3.1")}
    means = {}
    for name, rows in frames.items():
        blind = select(rows, "3.1", "accuracy", "but one").groupby("x")["value"].mean()
        exact = pd.Series({"nothing (the ceiling)": select(rows, "3.1", "ceiling")["value"].mean()})
        means[name] = pd.concat([blind.rename(PARTS), exact])
    table = pd.DataFrame(means).sort_values("this run").rename_axis("not seen").reset_index()
    return table.to_dict("records")


def by_heart(model: Any, rows: Sequence[Comparison]) -> dict[str, float]:
    """On the training rows: agreement with the labels trained on and, if known, with fresh ones."""
    found = mark(model, rows)
    table = {"agreement with its training labels": float(found.agreement.mean())}
    if found.ceiling is not None:
        table["with fresh labels of them"] = float(found.accuracy.mean())
        table["their ceiling"] = float(found.ceiling.mean())
    return table


def held_out_summary(marks: Marks) -> dict[str, float]:
    """Means on held-out rows, for a table; with the ceiling where it is known."""
    table = {"held-out accuracy": marks.accuracy, "its ceiling": marks.ceiling}
    table |= {"how sure": sure(marks.predicted), "held-out loss": marks.loss}
    return {name: float(values.mean()) for name, values in table.items() if values is not None}


# ---- experiments -------------------------------------------------------------------------------


def trial(
    course: Course,
    start: str,
    rows: Sequence[Comparison],
    held_out: Sequence[Comparison],
    place: Place,
    **changes: Any,
) -> tuple[Any, Marks, list[dict]]:
    """A fresh reward model from `start` on rendered rows: model, held-out marks, history.

    The marks are recorded at `place`; `changes` are fields of `RewardConfig`.
    """
    folder = reward_model_on(course, start, list(rows), place[-1], **changes)
    model = load_reward_model(folder, course.device)
    return model, record(course, mark(model, held_out), place), training_history(folder)


def sweep(
    course: Course,
    grid: Iterable[tuple[str, int]],
    train: Mapping[int, Sequence[Comparison]],
    held_out: Mapping[int, Sequence[Comparison]],
    trained: Mapping[tuple[str, int, int], Any],
) -> dict[tuple[str, int, int], Marks]:
    """Held-out marks by (model's name, prompts, seed), each from the instruct model of its size.

    `grid` has (model, prompts); what is in `trained`, with the same keys, is not trained again.
    """
    found = {}
    for model, n in grid:
        for seed, rows in train.items():
            key = short(model), n, seed
            held, place = held_out[seed], ("3.3", *key)
            if key in trained:
                found[key] = record(course, mark(trained[key], held), place)
            else:
                start = policy_of(course, model, seed)
                found[key] = trial(course, start, rows[:n], held, place)[1]
    return found


def short(model: str) -> str:
    """A model's name without its owner: "m" for "pocket/m"."""
    return model.rsplit("/", 1)[-1]


def smallest_gain(
    course: Course, runs: Mapping[tuple, Marks], line: Iterable[tuple[str, int]]
) -> Interval:
    """`stats.smallest_step` of the accuracy along a line of (model's name, prompts)."""
    return smallest_step([[runs[*at, seed].accuracy for seed in course.seeds] for at in line])


def batching(
    course: Course,
    tokenizer: Any,
    k: int,
    num_pairs: int,
    held_out: Sequence[Comparison],
    seed: int,
    step_answers: int = 8,
    passes_together: float = 1.0,
) -> dict[str, np.ndarray]:
    """The same comparisons "together" (all of a prompt in one step) and "shuffled" (pair by pair).

    Both see every comparison once (together: `passes_together` times), from the same start, and
    read about `step_answers` in a step, so that shuffled takes about k - 1 times as many steps.
    What is learned by heart is the agreement with the labels trained on, less the expected
    agreement with fresh labels of the same answers.

    Returns, by prompt: "accuracy" on held-out rows, together less shuffled; "loss" there and "by
    heart" on the training rows, shuffled less together; and "cost", the ratio of tokens read per
    comparison, together to shuffled (a number, twice).
    """
    start = policy_of(course, course.model("base"), seed)
    rows = rendered(course, tokenizer, "train", num_pairs // (k * (k - 1) // 2), k, seed=seed)
    settings = {"batch_size": max(1, step_answers // k), "num_epochs": passes_together}
    arms = {"together": (rows, settings)}
    arms["shuffled"] = (reward.to_pairs(rows), {"batch_size": step_answers // 2})
    held, heart, cost = {}, {}, {}
    for name, (data, settings) in arms.items():
        place = ("3.2", name, k, seed)
        model, held[name], history = trial(course, start, data, held_out, place, **settings)
        seen = mark(model, rows)
        heart[name] = seen.agreement - seen.accuracy
        read, pairs = (sum(step[n] for step in history) for n in ("num_tokens", "num_pairs"))
        cost[name] = read / pairs
        course.results.add(*place, "learned by heart", heart[name].mean())
        course.results.add(*place, "tokens per comparison", cost[name])
    return {
        "accuracy": held["together"].accuracy - held["shuffled"].accuracy,
        "loss": held["shuffled"].loss - held["together"].loss,
        "by heart": heart["shuffled"] - heart["together"],
        "cost": np.full(2, cost["together"] / cost["shuffled"]),
    }


def taken_in(
    course: Course, rows: Sequence[dict], models: Mapping[str, Any], tokenizer: Any, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Who is taken in by what: the value of an answer less that of a plain, true one, by row (n,).

    By who judges (the judge, the biased panel, the reward models by the panel they learned from)
    and variant of `instructions.contrast`, in points of the judge: a reward model's 1 is one
    `noise` of its labellers. The means are recorded.
    """
    texts, prompts = [instructions.contrast(row) for row in rows], [row["prompt"] for row in rows]
    values, found = {}, {}
    for variant in ("plain, true", "plain, false", "confident, true", "confident, false"):
        answers = [text[variant] for text in texts]
        told = [labellers.utility(PANELS["biased"], *p) for p in zip(rows, answers, strict=True)]
        values["judge", variant] = judge.score(rows, answers)
        values["biased labellers", variant] = np.array(told)
        for panel, model in models.items():
            scores = reward.score_texts(model, tokenizer, prompts, answers)
            values[f"learned from {panel}", variant] = PANELS[panel].noise * scores
    for name, variant in values:
        if variant != "plain, true":
            found[name, variant] = values[name, variant] - values[name, "plain, true"]
            course.results.add("3.4", name, variant, seed, "points", found[name, variant].mean())
    return found


def taste(found: Mapping[tuple[str, str], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of `taken_in`, for a confident, false answer: how much more the model that learned from the
    biased panel gives it than the fair one's, and the panel itself more than the judge; (n,) each.
    """
    value = {name: found[name, "confident, false"] for name, _ in found}
    learned = value["learned from biased"] - value["learned from unbiased"]
    return learned, value["biased labellers"] - value["judge"]
