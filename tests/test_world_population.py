"""The invented population: its planted numbers, its exact probabilities, and who is who."""

import numpy as np
import pytest

from course_lib.inputs.people import pocket_survey
from course_lib.world import population

N = 4000


@pytest.fixture(scope="module")
def people():
    return population.draw_people(N, seed=0)


def truth(people, item="", form="0-100", survey="cars"):
    opinion = population.opinions(people, [item] * len(people), survey)
    scale = population.scale(form)
    return population.rating_probs(opinion, scale), scale.levels


def moments(probs, levels):
    mean = probs @ levels
    return mean, probs @ levels**2 - mean**2


def test_the_planted_numbers(people):
    probs, levels = truth(people)
    mean, within = moments(probs, levels)
    shares = probs.mean(0)
    assert mean.var() / (mean.var() + within.mean()) == pytest.approx(0.13, abs=0.02)
    assert np.sqrt(within.mean()) == pytest.approx(27, abs=1)
    np.testing.assert_allclose(shares[[0, 50, 100]], [0.12, 0.11, 0.09], atol=0.02)
    assert shares[::10].sum() == pytest.approx(0.8, abs=0.02)
    rounded = shares[[k for k in range(101) if k % 5 == 0 and k % 10]].sum()
    assert 0.05 < rounded < 0.2  # most of the rest is on the fives
    on_nine, nine = truth(people, form="0-9")
    assert np.sqrt(moments(on_nine, nine * 100 / 9)[1].mean()) == pytest.approx(27, abs=1)
    assert on_nine.mean(0).argmax() in (3, 4, 5, 6)  # the mode is inside


def test_the_sentences_shift_the_mean_as_planted(people):
    levels = np.arange(101)
    before = moments(*truth(people[:1500]))[0].mean()
    items = [item for item in population.items() if item]
    shifts = [(truth(people[:1500], item)[0] @ levels).mean() - before for item in items]
    assert len(items) == 35 and len({population.theme(item) for item in items}) == 6
    assert -2 < min(shifts) < 0 and 6 < max(shifts) < 8


def test_the_fields_are_the_papers_and_hang_together(people):
    assert len(people[0]) == 14

    def share(field, level, **given):
        those = [p for p in people if all(p[k] == v for k, v in given.items())]
        return np.mean([p[field] == level for p in those])

    assert share("work", "retired", age="70s") > 0.6 > 0.05 > share("work", "retired", age="30s")
    assert share("politics", "right", area="country") > share("politics", "right", area="city")
    assert share("income", "200k", school="graduate") > 2 * share(
        "income", "200k", school="no degree"
    )
    assert share("kids", "no kids", age="70s") > 0.9
    assert share("home", "house of 1", family="married") < 0.05
    assert not any(p["home"] == "house of 1" and p["kids"] == "2 kids" for p in people)


def test_probabilities_are_those_of_the_answers(people):
    for form in ("0-100", "0-9", "1-5"):
        asked = population.ask_people(N, 0, form=form, posts=1)
        first = np.array(asked.item) == ""
        probs, levels = truth(people, form=form)
        counts = [(asked.rating[first] == level).mean() for level in levels]
        np.testing.assert_allclose(probs.sum(1), 1)
        np.testing.assert_allclose(counts, probs.mean(0), atol=0.02)
        mean = probs @ levels  # and person by person: those whom the model finds high rate high
        slope = np.polyfit(mean, asked.rating[first], 1)[0]
        assert slope == pytest.approx(1, abs=0.12)


def test_the_same_people_whatever_the_form_and_the_number():
    many, few = pocket_survey(50, 1), pocket_survey(20, 1, form="0-100")
    assert many.people[:20] == few.people and many.person_ids[:20] == few.person_ids
    rated = many.answers["rating"].to_numpy()[:120], few.answers["rating"].to_numpy()
    assert np.corrcoef(*rated)[0, 1] > 0.95  # the same opinions
    assert (many.answers["item"][:120] == few.answers["item"]).all()
    assert pocket_survey(5, 2).people != few.people[:5]


def test_a_person_answers_alike_and_enthusiasts_answer_the_other_surveys(people):
    rating = population.ask_people(N, 0, posts=2).rating.reshape(N, 3)
    assert 0.7 < np.corrcoef(rating[:, 0], rating[:, 1])[0, 1] < 0.9
    cars = moments(*truth(people[:500]))[0].mean()
    for survey in ("coffee", "phones", "gym"):
        assert moments(*truth(people[:500], survey=survey))[0].mean() > cars + 5
        assert len(population.items(survey)) == 5
