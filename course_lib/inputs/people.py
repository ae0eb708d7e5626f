"""Surveys for notebook 10: the pocket world's population, or a researcher's file, in one shape.

A `Survey` is what `inputs.survey.load_survey` reads, or what is asked here of the population of
`world.population`: `people` (fields to text), `person_ids`, `weights`, and `answers`, a row an
answer, with `person` (index into people), `item` ("" for the initial answer), `text` (what was
shown, "" at first) and `rating`; `low`, `high`, `question` and `about` (the system text).
"""

import random
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from course_lib.algorithms.population import messages
from course_lib.inputs.survey import Survey, load_survey, split_people
from course_lib.world import population

ABOUT = "You are this person: {values}."  # values that need no names make a shorter prompt
OTHERS = ("coffee", "phones", "gym")
OTHER_FORMS = {"0-9": 0.7, "0-100": 0.2, "1-5": 0.1}  # share of the people asked on each scale
OTHER_SEED = 50_000  # of these people, and up; the survey on cars asks people of smaller seeds
MOST_LEVELS = 10


def pocket_survey(
    n: int, seed: int = 0, survey: str = "cars", form: str = "0-9", posts: int = population.POSTS
) -> Survey:
    """`n` people of the pocket world asked about electric cars, or about something else.

    Args:
        seed: of the people, the same for every `n` and `form`; so their ids begin with it.
        survey: "cars", or one of the other surveys: "coffee", "phones", "gym".
        form: the scale: "0-9", "0-100" or "1-5".
        posts: answers of a person after sentences, beside the initial one.
    """
    asked = population.ask_people(n, seed, survey, form, posts)
    texts = population.items(survey)
    answers = pd.DataFrame(
        {
            "person": asked.person,
            "item": asked.item,
            "text": [texts[item] for item in asked.item],
            "rating": asked.rating,
        }
    )
    scale = population.scale(form)
    ids = [f"{survey}-{seed}-{i}" for i in range(n)]
    asks = population.question(survey, form)
    return Survey(asked.people, ids, np.ones(n), answers, scale.low, scale.high, asks, ABOUT)


def true_probs(survey: Survey) -> np.ndarray:
    """P(rating | person, item) of each answer of a pocket survey on cars, (answers, levels)."""
    people = [survey.people[i] for i in survey.answers["person"]]
    opinion = population.opinions(people, survey.answers["item"].tolist())
    return population.rating_probs(opinion, population.scale(f"{survey.low}-{survey.high}"))


def on_ten_levels(survey: Survey) -> Survey:
    """The survey with ratings 0 to 9, where a rating is one token; a shorter scale stays."""
    if survey.high - survey.low < MOST_LEVELS:
        return survey
    share = (survey.answers["rating"] - survey.low) / (survey.high - survey.low)
    rating = np.floor(9 * share + 0.5).astype(int)
    asks = f"{survey.question} One digit: 0 stands for {survey.low}, 9 for {survey.high}."
    answers = survey.answers.assign(rating=rating)
    return replace(survey, answers=answers, low=0, high=9, question=asks)


@lru_cache(maxsize=8)
def survey_parts(
    file: str = "", codebook: str = "", people: int = 4045, form: str = "0-9"
) -> tuple[Survey, Survey, Survey]:
    """(train, validation, test), 8 : 1 : 1 by person: of a file, or of the pocket world's people.

    No two parts have a person in common, since whole people are dealt out, never rows.
    """
    found = load_survey(file, codebook) if file else pocket_survey(people, form=form)
    return split_people(found if form == "0-100" else on_ten_levels(found))


def asked_rows(survey: Survey, posts: int | None = None) -> pd.DataFrame:
    """`answers` with a column `messages`; at most `posts` answers after sentences a person."""
    rows = survey.answers
    if posts is not None:
        after = (rows["item"] != "").groupby(rows["person"]).cumsum()
        rows = rows[(rows["item"] == "") | (after <= posts)]
    said = [
        messages(survey.people[row.person], row.text, survey.question, survey.about)
        for row in rows.itertuples()
    ]
    return rows.assign(messages=said).reset_index(drop=True)


def group_rows(survey: Survey, min_people: int = 30) -> list[dict]:
    """Groups in place of people: every pair of fields, with the `shares` of its initial answers.

    A row has `messages`, with two fields where a person has all, `rating` (the group's mode) and
    `shares` (levels). Groups of fewer than `min_people` are left out.
    """
    first = survey.answers[survey.answers["item"] == ""]
    table = pd.DataFrame([survey.people[i] for i in first["person"]])
    table["rating"] = first["rating"].to_numpy() - survey.low
    fields, found = [name for name in table if name != "rating"], []
    pairs = [(a, b) for i, a in enumerate(fields) for b in fields[i + 1 :]]
    for pair in pairs:
        for levels, group in table.groupby(list(pair))["rating"]:
            if len(group) >= min_people:
                counts = np.bincount(group, minlength=survey.high - survey.low + 1)
                person = dict(zip(pair, levels, strict=True))
                said = messages(person, "", survey.question, survey.about)
                shares = (counts / counts.sum()).tolist()
                mode = int(counts.argmax()) + survey.low
                found.append({"messages": said, "rating": mode, "shares": shares})
    return found


def other_survey_rows(chunk: int, num_rows: int) -> list[dict[str, Any]]:
    """Answered questions about coffee, phones and a gym as `messages`, for SFT; new people a chunk.

    Each person answers twice, the second time after a sentence.
    """
    found, each = [], num_rows // (2 * len(OTHERS))
    for k, survey in enumerate(OTHERS):
        for j, (form, share) in enumerate(OTHER_FORMS.items()):
            seed = OTHER_SEED + 100 * chunk + 10 * k + j
            asked = pocket_survey(max(1, round(each * share)), seed, survey, form, posts=1)
            for said, rating in asked_rows(asked)[["messages", "rating"]].itertuples(index=False):
                found.append({"messages": [*said, {"role": "assistant", "content": str(rating)}]})
    random.Random(chunk).shuffle(found)
    return found
