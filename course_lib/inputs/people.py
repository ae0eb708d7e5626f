"""The pocket world's population as a survey, and surveys as the rows that a model reads.

A `Survey` is what `inputs.survey.load_survey` reads from a file, or what is asked here of the
population of `world.population`: `people` (fields to text), `person_ids`, `weights`, and `answers`,
a row an answer, with `person` (index into people), `item` ("" for the initial answer), `text` (what
was shown, "" at first) and `rating`; `low`, `high`, `question` and `about` (the system text).
"""

import numpy as np
import pandas as pd

from course_lib.inputs.survey import Survey
from course_lib.world import population

ABOUT = "You are this person: {values}."  # values that need no names make a shorter prompt


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
