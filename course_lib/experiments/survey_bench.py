"""What is measured of a model that answers for a survey's test people, and of the baselines.

Items are people: every measure has one value a person, whose mean is the measure (the delta method
of `population.kl_rows`), so intervals count the luck of who was asked. RMSE is in points of 100.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.algorithms import population
from course_lib.experiments import baselines, records
from course_lib.experiments.experiment import Items, Ran
from course_lib.experiments.recipes import load, surveyed, training_history
from course_lib.inputs.people import asked_rows, survey_parts, true_probs
from course_lib.inputs.survey import Survey

if TYPE_CHECKING:
    from course_lib.kit.course import Course

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEST_POSTS = 2  # answers after sentences of each test person, beside the initial one
PLACES = (10, 50, 90)  # per cent: whose distributions are shown, by their expected value
ASKED = 64  # people who are asked in words, for the success rate


@dataclass
class Bench:
    """A survey's parts, the rows of its test people, and the truth about them, if it is known."""

    train: Survey
    validation: Survey
    test: Survey
    rows: pd.DataFrame  # of the test people, with `messages`
    truth: np.ndarray | None  # P(rating | person, item) of the rows
    uniform: np.ndarray  # (rows,) what sampled answers are drawn with

    @property
    def points(self) -> float:
        """Points of 100 that one level is worth."""
        return 100 / (self.test.high - self.test.low)

    @property
    def ratings(self) -> np.ndarray:
        """What the test people said, levels from 0."""
        return self.rows["rating"].to_numpy() - self.test.low

    def phases(self) -> dict[str, np.ndarray]:
        """Which rows are "all", "initial" and "post"; those that have rows."""
        first = (self.rows["item"] == "").to_numpy()
        found = {"all": first | True, "initial": first, "post": ~first}
        return {name: here for name, here in found.items() if here.any()}


def load_bench(course: Course, seed: int, survey: Mapping[str, Any]) -> Bench:
    """The bench of one seed; `survey` as in `inputs.people.survey_parts`."""
    train, validation, test = survey_parts(**survey)
    rows = asked_rows(test, TEST_POSTS)
    uniform = np.random.default_rng([seed, 10]).random(len(rows))
    truth = None if survey.get("file") else true_probs(test)[_places(test, rows)]
    return Bench(train, validation, test, rows, truth, uniform)


def _places(test: Survey, rows: pd.DataFrame) -> np.ndarray:
    """Where the rows stand among all answers of the test people."""
    keys = test.answers.set_index(["person", "item"]).index
    return keys.get_indexer(pd.MultiIndex.from_frame(rows[["person", "item"]]))


def measured(bench: Bench, logps: np.ndarray, guess: np.ndarray | None = None) -> Items:
    """Every measure of log-probabilities (rows, levels), with one value a test person.

    `guess` (rows,): levels that stand for the greedy answer, of a regression.
    """
    probs, ratings, found = population.level_probs(logps), bench.ratings, {}
    answers = {t: population.decode(logps, t, bench.uniform) for t in TEMPERATURES}
    answers |= {} if guess is None else {0.0: guess}
    mean, num_levels = population.expected_value(probs), logps.shape[-1]
    for phase, here in bench.phases().items():
        person, human = bench.rows["person"].to_numpy()[here], ratings[here]
        weights = bench.test.weights[person]

        def by_person(values: np.ndarray, person: np.ndarray = person) -> np.ndarray:
            return population.by_person(values, person)

        for t, answer in answers.items():
            if phase == "all" or t in (0, 1):
                kl = population.kl_rows(human, answer[here], num_levels, weights)
                error = population.rmse_rows(human, answer[here], weights) * bench.points
                found[f"kl {phase} t={t:g}"] = by_person(kl)
                found[f"rmse {phase} t={t:g}"] = by_person(error)
        error = population.rmse_rows(human, mean[here], weights) * bench.points
        found[f"rmse {phase} mean"] = by_person(error)
        if bench.truth is not None:
            apart = population.person_kl(bench.truth[here], probs[here])
            found[f"truth {phase}"] = by_person(apart)
    return Items(found, whole={"probs": probs, "answers": answers})


def measure(
    course: Course,
    folder: str,
    condition: str,
    seed: int,
    settings: Mapping[str, Any],
    bench: Bench,
) -> Items:
    """The measures of a trained model, as an `Experiment` wants them."""
    if settings["survey"].get("form") == "0-100":
        return measured_in_words(course, folder, condition, seed, settings, bench)
    model, tokenizer = load(course, folder, settings.get("quantize"))
    ids = population.level_ids(tokenizer, bench.test.low, bench.test.high)
    rows = population.render_rows(tokenizer, bench.rows.to_dict("records"), bench.test.low, True)
    items = measured(bench, population.predict(model, rows, ids))
    items.whole["texts"] = success(course, model, tokenizer, condition, seed, bench)
    record_more(course, condition, seed, bench, items)
    record_learning(course, folder, condition, seed, bench)
    return items


def record_learning(course: Course, folder: str, condition: str, seed: int, bench: Bench) -> None:
    """The training's curve in ten parts, by rows read: each row was new when it was read."""
    history = training_history(folder)
    for part in np.array_split(np.arange(len(history)), 10) if len(history) >= 10 else ():
        rows = [history[i] for i in part if "squared" in history[i]]
        for name, value in {"ce": "ce", "rmse": "squared"}.items() if rows else ():
            mean = float(np.mean([row[value] for row in rows]))
            mean = np.sqrt(mean) * bench.points if name == "rmse" else mean
            course.results.add("learning", condition, int(part[-1]) + 1, seed, name, mean)


def record_more(course: Course, condition: str, seed: int, bench: Bench, items: Items) -> None:
    """Measures that are no means over people: rank correlation and calibration."""
    probs, answers, human = items.whole["probs"], items.whole["answers"], bench.ratings
    add = course.results.add
    for name, said in {"greedy": answers[0.0], "t=1": answers[1.0]}.items():
        add("10", condition, 0, seed, f"spearman {name}", population.spearman(human, said))
    add("10", condition, 0, seed, "calibration", population.calibration(probs, human))
    for t in TEMPERATURES:
        for name in ("kl", "rmse"):
            value = items.values[f"{name} all t={t:g}"].mean()
            add("temperature", condition, t, seed, name, value)


def success(
    course: Course, model: Any, tokenizer: Any, condition: str, seed: int, bench: Bench
) -> dict[str, list[str]]:
    """The share of answers that are a number of the scale, by the paper's rule; the texts."""
    first = bench.rows[bench.rows["item"] == ""][:ASKED] if "initial" in bench.phases() else None
    rows = bench.rows[:ASKED] if first is None else first
    found = {}
    for name, t in {"greedy": 0.0, "t=1": 1.0}.items():
        asked = list(rows["messages"]), bench.test.low, bench.test.high
        values, texts = population.ask_numbers(model, tokenizer, *asked, temperature=t, seed=seed)
        share = float(np.isfinite(values).mean())
        course.results.add("success", condition, 0, seed, name, share)
        found[name] = texts
    return found


def measured_in_words(
    course: Course, folder: str, condition: str, seed: int, settings: Mapping, _: Bench
) -> Items:
    """The measures on the 0-100 scale, where an answer is sampled and not computed."""
    bench = load_bench(course, seed, settings["survey"])
    model, tokenizer = load(course, folder, settings.get("quantize"))
    low, high, found = bench.test.low, bench.test.high, {}
    human = population.bins_of(bench.rows["rating"].to_numpy(), low, high)
    for t in (0.0, 1.0):
        asked = list(bench.rows["messages"]), low, high
        values, _ = population.ask_numbers(model, tokenizer, *asked, temperature=t, seed=seed)
        valid = np.isfinite(values)
        course.results.add("success", condition, 0, seed, f"all t={t:g}", valid.mean())
        values = np.where(valid, values, 50)  # a failure is an answer in the middle
        for phase, here in bench.phases().items():
            person, said = bench.rows["person"].to_numpy()[here], values[here].astype(int)
            kl = population.kl_rows(human[here], population.bins_of(said, low, high), 10)
            error = population.rmse_rows(bench.rows["rating"].to_numpy()[here], said)
            found[f"kl {phase} t={t:g}"] = population.by_person(kl, person)
            found[f"rmse {phase} t={t:g}"] = population.by_person(error, person)
    return Items(found)


def before(course: Course, seed: int, bench: Bench, condition: str = "before") -> Items:
    """The measures of the model before tuning."""
    start, settings = surveyed(course), {"survey": {}}
    return measure(course, start, condition, seed, settings, bench)


def baseline(bench: Bench, name: str, seed: int) -> Items:
    """The measures of a baseline of `baselines.BASELINES`."""
    low, num_levels = bench.test.low, bench.test.high - bench.test.low + 1
    people, tables, offset = [], [], 0
    rows = (asked_rows(bench.train, 1), asked_rows(bench.validation, 1), bench.rows)
    for part, table in zip((bench.train, bench.validation, bench.test), rows, strict=True):
        rating, person = table["rating"] - low, table["person"] + offset
        tables.append(table.assign(rating=rating, person=person))
        people += part.people
        offset += len(part.people)
    guess, probs = baselines.predicted(name, people, *tables, num_levels, seed)
    return measured(bench, np.log(np.maximum(probs, 1e-6)), guess)


def add_others(course: Course, ran: Ran, benches: Mapping[int, Bench]) -> None:
    """The model before tuning, and the baselines, beside the trained ones."""
    ran.add("before", {s: before(course, s, bench) for s, bench in benches.items()}, record=True)
    for name in baselines.BASELINES:
        found = {s: baseline(bench, name, s) for s, bench in benches.items()}
        ran.add(name, found, record=True)


def floors(bench: Bench) -> dict[str, float]:
    """How small KL and RMSE can be at all: by the truth where it is known, and from data alone."""
    ratings, n, num_levels = bench.ratings, len(bench.rows), bench.test.high - bench.test.low + 1
    person = bench.rows["person"].to_numpy()
    found = {
        "KL of chance, by the formula": population.noise_floor(num_levels, n, n),
        "KL of chance, by splitting people": population.split_floor(ratings, person, num_levels),
    }
    if bench.truth is not None:
        mean = population.expected_value(bench.truth)
        kls = [_chance(bench, seed) for seed in range(20)]
        found["KL of the truth itself, sampled"] = float(np.mean(kls))
        rmse = population.rmse_rows(ratings, mean).mean() * bench.points
        found["RMSE of the true expected value"] = float(rmse)
    return found


def _chance(bench: Bench, seed: int) -> float:
    """KL of the people to a draw from the truth about them."""
    uniform = np.random.default_rng(seed).random(len(bench.rows))
    answer = population.decode(np.log(bench.truth + 1e-12), 1.0, uniform)
    return population.kl_rows(bench.ratings, answer, bench.truth.shape[-1]).mean()


# ---- for a closer look -------------------------------------------------------------------------


def median_people(ran: Ran, bench: Bench, n: int = 4) -> list[dict[str, Any]]:
    """Initial answers of the `n` test people whose gain by tuning is nearest to the median."""
    seed = ran.course.seed
    first = bench.phases().get("initial", np.ones(len(bench.rows), bool))
    names, human = ("before", "LoRA"), bench.ratings[first]
    whole = {name: ran.items[name][seed].whole for name in names}
    means = {n: population.expected_value(one["probs"][first]) for n, one in whole.items()}
    errors = {name: np.abs(mean - human) for name, mean in means.items()}
    table = []
    for i in records.chosen(errors["before"] - errors["LoRA"], "median gain", n):
        row = bench.rows[first].iloc[i]
        cells = {"asked": row["messages"][0]["content"], "said": row["rating"]}
        for name, one in whole.items():
            greedy, drawn = (one["answers"][t][first][i] + bench.test.low for t in (0.0, 1.0))
            mean = means[name][i] + bench.test.low
            cells[name] = f"greedy {greedy}, sampled {drawn}, mean {mean:.1f}"
        table.append(cells)
    return table


def under_other_names(ran: Ran, bench: Bench, seed: int = 0) -> list[dict[str, Any]]:
    """The tuned model's measures, and those where each test person gets another one's answers."""
    probs, order = ran.items["LoRA"][seed].whole["probs"], np.arange(len(bench.rows))
    for phase, here in bench.phases().items():
        if phase != "all":
            order[here] = np.random.default_rng(seed).permutation(order[here])
    found = {"as it is": measured(bench, np.log(probs))}
    found["under another's name"] = measured(bench, np.log(probs[order]))
    shown = {"KL of the population": "kl all t=1", "RMSE, expected value": "rmse all mean"}
    shown |= {"per-person KL to the truth": "truth all"} if bench.truth is not None else {}
    return [
        {"": name} | {label: float(items.values[m].mean()) for label, m in shown.items()}
        for name, items in found.items()
    ]


def sentence_shifts(course: Course, folder: str, bench: Bench, people: int = 30) -> list[dict]:
    """The shift of the mean rating that a model expects of each sentence, in points, best first.

    Of some test people, all asked all; beside the planted shift of the same people, if known.
    """
    texts = dict(bench.train.answers[["item", "text"]].drop_duplicates("item").to_numpy())
    texts = {"": ""} | {item: text for item, text in texts.items() if item}
    pairs = [(p, item) for p in range(min(people, len(bench.test.people))) for item in texts]
    answers = pd.DataFrame(pairs, columns=["person", "item"]).assign(rating=bench.test.low)
    answers["text"] = answers["item"].map(texts)
    every = replace(bench.test, answers=answers)
    model, tokenizer = load(course, folder)
    ids = population.level_ids(tokenizer, every.low, every.high)
    asked = asked_rows(every).to_dict("records")
    rows = population.render_rows(tokenizer, asked, every.low, one_token=True)
    probs = {"expected": population.level_probs(population.predict(model, rows, ids))}
    if bench.truth is not None:
        probs["planted"] = true_probs(every)
    shape = -1, len(texts)
    means = {n: population.expected_value(p).reshape(shape).mean(0) for n, p in probs.items()}
    shifts = {n: (mean - mean[0]) * bench.points for n, mean in means.items()}
    order = np.argsort(-shifts["expected"][1:]) + 1
    said = list(texts.values())
    return [{"sentence": said[i]} | {n: float(s[i]) for n, s in shifts.items()} for i in order]


def ranking(shifts: Sequence[Mapping[str, Any]]) -> str:
    """How alike the order of `sentence_shifts` is to that of the planted shifts, in a sentence."""
    if not all("planted" in row for row in shifts):
        return "What the sentences do in truth is unknown."
    found = population.spearman(*([row[n] for row in shifts] for n in ("expected", "planted")))
    return f"rank correlation of expected and planted shifts, {len(shifts)} sentences: {found:.2f}"


def as_demonstrations(rows: Sequence[dict], ids: Sequence[int], seed: int) -> list[dict]:
    """Rendered rows with the rating's token at their end, in the order of our loop, for TRL."""
    rows = [
        {
            "input_ids": [*row["input_ids"], ids[row["target"]]],
            "completion_mask": [0] * len(row["input_ids"]) + [1],
        }
        for row in rows
    ]
    random.Random(seed).shuffle(rows)
    return rows


def record_figures(course: Course, ran: Ran, bench: Bench) -> None:
    """What the figures of single people and of pairs of answers are drawn from, of one seed."""
    seed = course.seed
    names = [name for name in ("LoRA", "QLoRA") if name in ran.items]
    said = {(n, t): ran.items[n][seed].whole["answers"][t] for n in names for t in (0.0, 1.0)}
    pairs = {"LoRA greedy": (bench.ratings, said["LoRA", 0.0])}
    pairs["LoRA t=1"] = bench.ratings, said["LoRA", 1.0]
    if "QLoRA" in names:
        pairs["QLoRA greedy"] = bench.ratings, said["QLoRA", 0.0]
        pairs["both greedy"] = said["LoRA", 0.0], said["QLoRA", 0.0]
    pairs["greedy and t=1"] = said["LoRA", 0.0], said["LoRA", 1.0]
    for name, (a, b) in pairs.items():
        for phase, here in bench.phases().items():
            places, counts = np.unique(100 * a[here] + b[here], return_counts=True)
            for x, n in zip(places, counts, strict=True):
                course.results.add("scatter", name, int(x), seed, phase, n)
    probs = {n: ran.items[n][seed].whole["probs"] for n in ("before", "LoRA")}
    probs |= {} if bench.truth is None else {"truth": bench.truth}
    first = np.flatnonzero(bench.phases().get("initial", np.ones(len(bench.rows), bool)))
    order = first[np.argsort(population.expected_value(probs.get("truth", probs["LoRA"])[first]))]
    for place in PLACES:  # from the lowest to the highest expected value
        row = order[int(place / 100 * (len(order) - 1))]
        for name, p in probs.items():
            for level, value in enumerate(p[row]):
                course.results.add("people", name, level, seed, f"at {place}%", value)
