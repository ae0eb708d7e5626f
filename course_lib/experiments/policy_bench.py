"""The test bench of notebooks 04 and 05: what a policy writes to held-out prompts, and its worth.

All policies of one seed start from the same reference, answer the same prompts, and are compared
prompt by prompt with what the reference wrote (`Bench`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib.algorithms import search
from course_lib.core.cache import read_json, stage
from course_lib.core.stats import mean, share
from course_lib.experiments.answers import WATCHED, prompts_that_fit
from course_lib.experiments.experiment import Items
from course_lib.experiments.measures import Written, wins, write
from course_lib.experiments.recipes import load, load_policy, pinned, policy_of, reward_model
from course_lib.inputs.models import frozen_copy, load_reward_model

if TYPE_CHECKING:
    from course_lib.kit.course import Course

POOL = 16  # those of the policy before training, from which best-of-n picks, too
COLUMNS = {"truth": "true score", "proxy": "reward model's score", "kl": "KL (nats)"}
COLUMNS |= {"length": "tokens", "cut": "share cut", "false": "false statements"}


@dataclass
class Bench:
    """What all policies of one seed are measured with."""

    course: Course
    seed: int
    start: str  # the policy before training: its folder, or its name on the hub
    reference: Any  # that policy, frozen
    tokenizer: Any
    reward_model: Any
    reward_folder: str
    rows: list[dict]  # of P held-out prompts
    before: Written  # what the reference wrote, (P, N): where all start; best-of-n's usual pool


@dataclass
class Point:
    """A policy, or best-of-n, on the plot of true score against distance."""

    kl: float  # KL(policy ‖ reference) in nats
    truth: np.ndarray  # (P,) mean true score at each prompt
    wins: np.ndarray  # (P,) how often its answers beat the reference's there


def load_bench(
    course: Course, n: int, num_prompts: int, seed: int, place: tuple, progress: Any = None
) -> Bench:
    """The bench of one seed; its policy and its reward model, on `n` prompts, are made if needed.

    What the reference wrote is recorded at `place`, a claim and a condition.
    """
    start = policy_of(course, course.model("base"), seed)
    policy, tokenizer = load_policy(course, start)
    folder = reward_model(course, n, seed=seed, progress=progress)
    rows = prompts_that_fit(course, policy, tokenizer, "test", num_prompts, seed)
    before = reference_answers(course, start, folder, rows, POOL * (4 if course.full else 1), seed)
    model = load_reward_model(folder, course.device)
    bench = Bench(course, seed, start, frozen_copy(policy), tokenizer, model, folder, rows, before)
    record(bench, (*place, 0, seed), before)
    return bench


def reference_answers(
    course: Course, start: str, reward_folder: str, rows: Sequence[dict], tries: int, seed: int
) -> Written:
    """What the policy of `start` writes as it came: made once, which notebooks share."""
    place = "before", "", tries, seed
    settings = {"place": place, "batch": course.profile.batch["generate"]}
    read = [pinned(course, start), reward_folder, list(rows)]
    with stage("before", settings, read) as entry:
        if entry.new:
            policy, tokenizer = load_policy(course, start)
            model = load_reward_model(reward_folder, course.device)
            found = write(course, policy, None, model, tokenizer, rows, tries, draw(place))
            arrays = {f.name: getattr(found, f.name).tolist() for f in fields(found)[1:]}
            entry.write("answers.json", arrays)
    arrays = read_json(entry.folder / "answers.json")
    texts = np.array(arrays.pop("texts"), dtype=object)
    return Written(list(rows), texts, **{name: np.array(v) for name, v in arrays.items()})


def measure(
    bench: Bench, policy: Any, claim: str, condition: str, x: float = 0, reference: Any = None
) -> Written:
    """Let a policy, or the one in a folder, answer the bench's prompts; the means are recorded."""
    place, tokenizer = (claim, condition, x, bench.seed), bench.tokenizer
    if isinstance(policy, str):
        policy, tokenizer = load(bench.course, policy)
    by = reference or bench.reference, bench.reward_model, tokenizer
    written = write(bench.course, policy, *by, bench.rows, seed=draw(place))
    record(bench, place, written)
    return written


def policy_items(
    course: Course, folder: str, condition: str, seed: int, settings: Mapping, bench: Bench
) -> Items:
    """What a trained policy writes to its bench's prompts, for `experiment.run`; claim "4.1"."""
    reference = None
    if base := settings.get("base"):  # another size, whose KL is to its own reference
        start = load_policy(course, policy_of(course, course.model(base), seed))[0]
        reference = frozen_copy(start)
    return as_items(bench, measure(bench, folder, "4.1", condition, reference=reference))


def as_items(bench: Bench, written: Written) -> Items:
    """What was written as arrays by measure, for `experiment.Ran`."""
    values = {name: getattr(written, name) for name in (*WATCHED, "kl", "length")}
    values["wins"] = over_before(bench, written)
    return Items(values, written.rows, written.texts, written)


def draw(place: tuple[str, str, float, int]) -> int:
    """The random seed of what is written at a place, (claim, condition, x, seed).

    Each has its own: with the same random numbers two policies would begin their answers alike.
    """
    return zlib.crc32(repr(place).encode())


def record(bench: Bench, place: tuple[str, str, float, int], written: Written) -> None:
    """Record the means of what a policy wrote, and its wins over the bench's `before`."""
    for name, values in as_items(bench, written).values.items():
        bench.course.results.add(*place, name, values.mean())


def over_before(bench: Bench, written: Written) -> np.ndarray:
    """How often what a policy wrote beats what the reference did, (P,)."""
    return wins(written.truth, bench.before.truth)


def point(bench: Bench, written: Written) -> Point:
    """Where what a policy wrote lies."""
    return Point(float(written.kl.mean()), written.truth.mean(1), over_before(bench, written))


def best_of_n(
    bench: Bench, claim: str, condition: str, pool: Written | None = None
) -> dict[int, Point]:
    """Best-of-n by the reward model, n = 1, 2, 4 ... up to the size of a pool of answers, recorded.

    Means over all subsets of the pool (None: what the reference wrote); wins are over answers that
    it was not picked from, so NaN beyond half of the pool. "kl" counts equal texts as one, and is a
    little low where n comes near the pool's size; "textbook kl" is log n - (n - 1) / n.
    """
    pool = pool or bench.before
    ns = [2**i for i in range(pool.truth.shape[1].bit_length())]
    kl = np.mean([search.best_of_n_kl(ns, search.score_masses(p)) for p in pool.proxy], axis=0)
    named = {"truth": pool.truth, "proxy": pool.proxy, "length": pool.length}
    found = {name: search.best_of_n(pool.proxy, ns, values) for name, values in named.items()}
    known = [n for n in ns if n <= pool.truth.shape[1] // 2]
    won = search.best_of_n_wins(pool.proxy, pool.truth, known)
    found["wins"] = np.pad(won, ((0, 0), (0, len(ns) - len(known))), constant_values=np.nan)
    found["gain"] = found["truth"] - found["truth"][:, :1]
    curves = {name: values.mean(0) for name, values in found.items()}
    curves |= {"kl": np.maximum(kl, 0.0), "textbook kl": search.best_of_n_kl(ns)}
    for name, curve in curves.items():
        for n, value in zip(ns, curve[np.isfinite(curve)], strict=False):
            bench.course.results.add(claim, condition, n, bench.seed, name, value)
    columns = zip(curves["kl"], found["truth"].T, found["wins"].T, strict=True)
    return {n: Point(float(d), t, w) for n, (d, t, w) in zip(ns, columns, strict=True)}


def table(
    benches: Mapping[int, Bench], runs: Mapping[str, Mapping[int, Written]]
) -> list[dict[str, str]]:
    """What was written, by run and seed, as a table with intervals over prompts or seeds."""
    rows = []
    for name, by_seed in runs.items():
        row = {"": name}
        for field, title in COLUMNS.items():
            kind = share if field == "cut" else mean
            row[title] = str(kind([getattr(w, field).mean(1) for w in by_seed.values()]))
        if not any(written.kl.any() for written in by_seed.values()):
            row[COLUMNS["kl"]] = "0"  # as it came
        won = [over_before(benches[seed], written) for seed, written in by_seed.items()]
        rows.append(row | {"wins over before": str(share(won))})
    return rows


def answers_beside(
    runs: Mapping[str, Mapping[int, Written]], seed: int, prompts: slice
) -> list[dict[str, str]]:
    """What was written first to some prompts, by run, as a table: true score and text."""
    shown = {name: by_seed[seed] for name, by_seed in runs.items()}
    table = [{"prompt": row["prompt"]} for row in next(iter(shown.values())).rows]
    for name, one in shown.items():
        for row, truth, text in zip(table, one.truth[:, 0], one.texts[:, 0], strict=True):
            row[f"{name}: true score, answer"] = f"{truth:.1f}  {text}"
    return table[prompts]


def first_answers(runs: Mapping[str, Mapping[int, Written]], seed: int) -> list[dict[str, Any]]:
    """What was written to the first prompt, by run, as a table; of four answers the first one."""
    head = ("", "true scores of four answers", "the first of them")
    shown = {name: by_seed[seed] for name, by_seed in runs.items()}
    rows = [(name, one.truth[0, :4].round(1), one.texts[0, 0]) for name, one in shown.items()]
    return [dict(zip(head, row, strict=True)) for row in rows]
