"""A population of invented people: who they are, and what they say when they are asked.

A person has 14 fields, drawn from a joint distribution (each field given earlier ones). What they
think of something is a latent opinion

    u = centre + effects of their fields + effects of what they were told + noise,   0 to 100,

and an answer is u, cut to the scale and rounded as people round (`Scale`). So the probability of
every answer given the fields, `rating_probs`, is known exactly, and with it the best that any
model can do. A person's noise is the same to four fifths from one answer to the next; it is what
no field explains.

Planted, in `data/world/population.yaml`: all effects, the size of the noise, the shares that round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import yaml
from scipy.special import ndtr
from scipy.stats import t as student

from course_lib import ROOT, check_checkout

DEGREES = 5  # of freedom of the noise
POSTS = 5  # sentences that each person reads, as in the survey of the paper
# Effects of the other surveys: a share of those on cars, as who likes one new thing likes another,
# and a normal part of their own with this deviation, in points.
ALIKE, SPREAD_OF_DRAWN = 0.6, 4.0
Person = dict[str, str]


@dataclass(frozen=True)
class Scale:
    """Whole numbers from `low` to `high`, and who rounds to steps of how much."""

    low: int
    high: int
    rounding: tuple[tuple[int, float], ...] = ((1, 1.0),)

    @property
    def levels(self) -> np.ndarray:
        return np.arange(self.low, self.high + 1)


@cache
def facts() -> dict[str, Any]:
    """What `population.yaml` says, its keys as text."""
    check_checkout()
    path = ROOT / "data" / "world" / "population.yaml"

    def as_text(node: Any) -> Any:
        if isinstance(node, dict):
            return {str(key): as_text(value) for key, value in node.items()}
        return node

    return as_text(yaml.safe_load(path.read_text(encoding="utf-8")))


def scale(name: str) -> Scale:
    """The scale "0-100" with people's rounding, "0-9" or "1-5" (Likert)."""
    low, high = map(int, name.split("-"))
    if high < 100:
        return Scale(low, high)
    return Scale(low, high, tuple((int(k), v) for k, v in facts()["rounding"].items()))


@cache
def items(survey: str = "cars") -> dict[str, str]:
    """The sentences of a survey by id; "" is the question without any."""
    if survey == "cars":
        themes = facts()["themes"].items()
        pairs = [(f"{name}-{i}", each[1]) for name, t in themes for i, each in enumerate(t["says"])]
        return {"": "", **dict(pairs)}
    _, *said = facts()["surveys"][survey]
    return {"": "", **{f"{survey}-{i}": text for i, text in enumerate(said)}}


def theme(item: str) -> str:
    """The theme of an intervention's id."""
    return item.rpartition("-")[0]


def question(survey: str, form: str) -> str:
    """What is asked after every sentence, on the scale `form`."""
    asked = facts()["question"] if survey == "cars" else facts()["surveys"][survey][0]
    low, high = form.split("-")
    return f"From {low} to {high}, {asked} Just a single number."


def draw_people(n: int, seed: int) -> list[Person]:
    """`n` people; person i is the same for every n."""
    uniform = np.random.default_rng([seed, 1]).random((n, len(facts()["fields"])))
    drawn: dict[str, np.ndarray] = {}
    for column, (name, about) in enumerate(facts()["fields"].items()):
        levels = list(about["shares"])
        weights = np.tile(np.array(list(about["shares"].values()), float), (n, 1))
        for other, factors in about.get("given", {}).items():
            table = np.array(
                [
                    [factors.get(v, {}).get(level, 1.0) for level in levels]
                    for v in facts()["fields"][other]["shares"]
                ]
            )
            weights *= table[drawn[other]]
        cdf = weights.cumsum(1)
        drawn[name] = (uniform[:, [column]] * cdf[:, [-1]] > cdf).sum(1)
    named = [
        np.array(list(about["shares"]))[drawn[name]] for name, about in facts()["fields"].items()
    ]
    return [dict(zip(drawn, map(str, row), strict=True)) for row in zip(*named, strict=True)]


@cache
def _effects(survey: str, item: str) -> tuple[float, dict[str, dict[str, float]]]:
    """(points for everyone, points by field and level) of an item of a survey."""
    world = facts()
    if survey != "cars":
        own, told = np.random.default_rng(_number(survey)), np.random.default_rng(_number(item))
        drawn = {
            name: {
                level: ALIKE * v + SPREAD_OF_DRAWN * own.normal()
                for level, v in world["effects"][name].items()
            }
            for name in world["fields"]
        }
        return world["enthusiasts"] + (5 * told.normal() if item else 0), drawn
    fields = {
        name: {level: world["spread"] * v for level, v in by.items()}
        for name, by in world["effects"].items()
    }
    if not item:
        return world["centre"], fields
    about = world["themes"][theme(item)]
    for name, by in about["moves"].items():
        fields[name] = {level: v + by.get(level, 0) for level, v in fields[name].items()}
    return world["centre"] + about["says"][int(item.rpartition("-")[2])][0], fields


def _number(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 2**32


def opinions(people: Sequence[Person], told: Sequence[str], survey: str = "cars") -> np.ndarray:
    """The latent opinion without noise, (n,): of each person after the item of the same place."""
    told = np.asarray(told)
    found = np.zeros(len(people))
    for item in set(told.tolist()):
        here = np.flatnonzero(told == item)
        points, fields = _effects(survey, item)
        found[here] = [
            points + sum(fields[name][level] for name, level in people[i].items()) for i in here
        ]
    return found


def rating_probs(opinion: np.ndarray, answer: Scale) -> np.ndarray:
    """P(rating | opinion), exactly: (n,) to (n, levels of the scale)."""
    span, world = answer.high - answer.low, facts()
    total = 0.0
    for step, share in answer.rounding:
        marks = np.arange(0, span + 1, step)
        edges = (marks[:-1] + marks[1:]) / 2 * 100 / span  # between neighbours, on the latent scale
        below = student.cdf((edges - opinion[:, None]) / world["noise"], DEGREES)
        ends = np.zeros((len(opinion), 1))
        part = np.diff(np.hstack([ends, below, ends + 1]))
        whole = np.zeros((len(opinion), span + 1))
        whole[:, marks] = part
        total = total + share * whole
    return total


def answer(opinion: np.ndarray, z: np.ndarray, habit: np.ndarray, form: Scale) -> np.ndarray:
    """Ratings (n,) of opinions with noise: `z` standard normal, `habit` uniform, both (n,)."""
    span = form.high - form.low
    latent = opinion + facts()["noise"] * student.ppf(ndtr(z), DEGREES)
    steps = np.array([step for step, _ in form.rounding])
    bounds = np.cumsum([share for _, share in form.rounding])
    step = steps[np.minimum(np.searchsorted(bounds, habit), len(steps) - 1)]
    on_scale = np.clip(latent, 0, 100) * span / 100
    return form.low + (np.floor(on_scale / step + 0.5) * step).astype(int)


@dataclass(frozen=True)
class Sample:
    """People and their answers: one row an answer, all arrays (answers,)."""

    people: list[Person]
    person: np.ndarray  # index into people
    item: list[str]
    rating: np.ndarray


def ask_people(
    n: int, seed: int, survey: str = "cars", form: str = "0-100", posts: int = POSTS
) -> Sample:
    """`n` people answer the plain question, and again after each of `posts` sentences.

    The same people with the same opinions whatever the `form`; the first of them whatever `n`.
    """
    people = draw_people(n, seed)
    names = [name for name in items(survey) if name]
    posts = min(posts, len(names))
    rng = np.random.default_rng([seed, 2])
    draws = rng.random((n, len(names)))
    noise = np.random.default_rng([seed, 3]).normal(size=(n, 1 + len(names)))
    habits = np.random.default_rng([seed, 4]).random(n)  # who rounds, rounds always
    order = draws.argsort(1)[:, :posts]
    person = np.repeat(np.arange(n), 1 + posts)
    told = [name for row in order for name in ("", *(names[k] for k in row))]
    same = facts()["same"]
    z = np.sqrt(same) * noise[:, :1] + np.sqrt(1 - same) * noise[:, 1 : 2 + posts]
    opinion = opinions([people[i] for i in person], told, survey)
    rating = answer(opinion, z.ravel(), habits[person], scale(form))
    return Sample(people, person, told, rating)
