"""Aligning a model to a population: losses, decoding, measures and the loop, on toy numbers."""

import numpy as np
import pytest
import torch
from tiny import tiny

from course_lib import CourseError
from course_lib.algorithms import loop, population
from course_lib.algorithms.population import PopulationConfig
from course_lib.inputs.people import (
    asked_rows,
    group_rows,
    on_ten_levels,
    pocket_survey,
    survey_parts,
    true_probs,
)

SHARES = torch.tensor([[0.1, 0.2, 0.4, 0.25, 0.05]])


def minimum(loss_of):
    """The distribution over five levels at which a loss of their log-probabilities is smallest."""
    logits = torch.zeros(1, 5, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-9)

    def closure():
        optimiser.zero_grad()
        loss = loss_of(logits.log_softmax(-1))
        loss.backward()
        return loss

    for _ in range(20):
        optimiser.step(closure)
    return logits.softmax(-1).detach()


def answers_as_rows(logps):
    """The same people one by one: 20 rows whose shares are SHARES."""
    ratings = torch.repeat_interleave(torch.arange(5), (SHARES[0] * 20).long())
    return logps.expand(20, 5), ratings


def test_the_population_loss_is_smallest_exactly_at_the_surveys_shares():
    found = minimum(lambda logps: population.rating_loss(*answers_as_rows(logps)))
    torch.testing.assert_close(found, SHARES, atol=1e-4, rtol=0)
    found = minimum(lambda logps: population.forward_kl_loss(logps, SHARES))
    torch.testing.assert_close(found, SHARES, atol=1e-4, rtol=0)
    assert population.forward_kl_loss(SHARES.log(), SHARES).abs() < 1e-6
    at = population.wasserstein_loss(SHARES.log(), SHARES)
    moved = SHARES.roll(1, -1)
    assert at.abs() < 1e-6 < population.wasserstein_loss(moved.log(), SHARES)


def test_the_numeric_penalty_is_smallest_at_the_blurred_shares():
    def loss(logps):
        return population.numeric_loss(*answers_as_rows(logps), 0.5, 2.0, normalised=True)

    weights = population.numeric_weights(5, 2.0, normalised=True)
    blurred = 0.5 * SHARES + 0.5 * SHARES @ weights
    torch.testing.assert_close(minimum(loss), blurred, atol=1e-4, rtol=0)


def test_the_numeric_penalty_at_its_ends():
    logps = torch.randn(4, 10).log_softmax(-1)
    ratings = torch.tensor([0, 3, 9, 5])
    ce = population.rating_loss(logps, ratings)
    for normalised in (False, True):  # a slope of one level leaves only the right answer
        found = population.numeric_loss(logps, ratings, 0.7, 1.0, normalised)
        torch.testing.assert_close(found, ce)
    torch.testing.assert_close(population.numeric_loss(logps, ratings, 0.0, 10.0), ce)
    near = torch.full((1, 10), 1e-3)
    far, near[0, 4] = near.clone(), 0.9
    far[0, 9] = 0.9
    five = torch.tensor([5])
    assert population.numeric_loss(near.log(), five) < population.numeric_loss(far.log(), five)
    assert population.number_token_loss(near.log(), five) < population.number_token_loss(
        far.log(), five
    )


def test_by_hand_as_the_notebook_has_it():
    weights = population.numeric_weights(3, 2.0)
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0.5, 0.0]))
    logps = torch.tensor([[0.5, 0.3, 0.2]]).log()
    by_hand = -0.5 * np.log(0.5) - 0.5 * (np.log(0.5) + 0.5 * np.log(0.3))
    found = population.numeric_loss(logps, torch.tensor([0]), 0.5, 2.0)
    assert float(found) == pytest.approx(by_hand, abs=1e-6)


def test_decoding_greedy_sampled_and_expected():
    rng = np.random.default_rng(0)
    logps = np.log(np.tile(SHARES.numpy(), (20_000, 1)))
    assert set(population.decode(logps, 0, rng.random(20_000))) == {2}
    drawn = population.decode(logps, 1.0, rng.random(20_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, SHARES[0], atol=0.012)
    cold = population.decode(logps, 0.2, rng.random(20_000))
    assert (cold == 2).mean() > (drawn == 2).mean() + 0.3
    assert population.expected_value(SHARES.numpy())[0] == pytest.approx(1.95)
    less = population.level_probs(logps[:1] + np.log(0.6))  # part of it is on other tokens
    np.testing.assert_allclose(less, SHARES.numpy(), atol=1e-7)


def test_a_calibrated_models_rmse_at_temperature_one_is_root_two_of_the_means():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(10), 60_000)
    truth, answer = (population.decode(np.log(probs), 1, rng.random(60_000)) for _ in "ab")
    sampled = population.rmse_rows(truth, answer).mean()
    mean = population.rmse_rows(truth, population.expected_value(probs)).mean()
    greedy = population.rmse_rows(truth, probs.argmax(-1)).mean()
    assert sampled / mean == pytest.approx(np.sqrt(2), abs=0.01)
    assert mean < greedy < sampled
    assert population.calibration(probs, truth) < 0.01
    assert population.calibration(probs, np.full(60_000, 9)) > 0.3


@pytest.mark.parametrize(
    "text, value",
    [("7", 7), ("A 100.", None), ("I say 3 of 9", 3), ("-4", None), ("", None), ("ten", None)],
)
def test_success_is_the_first_integer_in_range(text, value):
    assert population.first_integer(text, 0, 9) == value


def test_after_thoughts_it_is_the_last_integer():
    assert population.last_integer("In their 70s with 2 cars, so: 8.", 0, 9) == 8
    assert population.last_integer("From 0 to 10, say 10", 0, 9) is None
    assert population.last_integer("I would rather not", 0, 9) is None


def test_a_measures_rows_have_the_measure_as_their_mean_and_its_spread():
    rng = np.random.default_rng(2)
    p, q = np.array([0.1, 0.3, 0.4, 0.2]), np.array([0.2, 0.3, 0.3, 0.2])
    kls, spreads = [], []
    for _ in range(300):
        human, model = rng.choice(4, 400, p=p), rng.choice(4, 400, p=q)
        values = population.kl_rows(human, model, 4)
        h = np.bincount(human, minlength=4) / 400
        s = (np.bincount(model, minlength=4) + 0.5) / 402
        assert values.mean() == pytest.approx((h * np.log(h / s)).sum())
        kls.append(values.mean())
        spreads.append(values.std() / 20)
    assert np.mean(spreads) == pytest.approx(np.std(kls), rel=0.15)
    person = np.repeat(np.arange(200), 2)
    assert population.by_person(values, person).mean() == pytest.approx(values.mean())
    weighted = population.kl_rows(human, human, 4, np.linspace(0.5, 1.5, 400))
    assert abs(weighted.mean()) < 0.001


def test_the_noise_floor_is_what_a_perfect_model_gets_and_people_can_tell_it():
    rng = np.random.default_rng(3)
    p, n = np.full(10, 0.1), 500
    draws = [(rng.choice(10, n, p=p), rng.choice(10, n, p=p)) for _ in range(400)]
    found = np.mean([population.kl_rows(a, b, 10).mean() for a, b in draws])
    assert found == pytest.approx(population.noise_floor(10, n, n), rel=0.1)
    split = [population.split_floor(a, np.arange(n), 10, seed=i) for i, (a, _) in enumerate(draws)]
    assert np.mean(split) == pytest.approx(found, rel=0.15)


def test_no_person_is_in_two_parts_and_each_part_has_all_of_a_persons_answers():
    parts = survey_parts(people=400)
    ids = [set(part.person_ids) for part in parts]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 400 and len(ids[0]) == 320
    for part in parts:
        assert (part.answers.groupby("person").size() == 6).all()
        assert part.answers["person"].max() == len(part.people) - 1
    rows = asked_rows(parts[2], posts=2)
    assert len(rows) == 3 * len(parts[2].people)


def test_a_long_scale_becomes_ten_levels():
    long, short = pocket_survey(30, form="0-100"), pocket_survey(30, form="1-5")
    found = on_ten_levels(long)
    assert (found.low, found.high) == (0, 9) and "9 for 100" in found.question
    assert abs(found.answers["rating"] * 100 / 9 - long.answers["rating"]).max() <= 5.6
    assert on_ten_levels(short) is short


def test_groups_have_the_shares_of_their_people():
    survey = pocket_survey(600)
    rows = group_rows(survey)
    assert len(rows) > 100 and all(abs(sum(row["shares"]) - 1) < 1e-9 for row in rows)
    first = survey.answers[survey.answers["item"] == ""]["rating"].to_numpy()
    city = [p["area"] == "city" and p["gender"] == "man" for p in survey.people]
    shares = np.bincount(first[city], minlength=10) / sum(city)
    row = next(r for r in rows if r["messages"][0]["content"] == "You are this person: city, man.")
    np.testing.assert_allclose(row["shares"], shares)


def test_the_truth_is_of_the_answers_rows():
    survey = pocket_survey(2000, posts=1)
    probs = true_probs(survey)
    assert probs.shape == (4000, 10)
    mean, rating = population.expected_value(probs), survey.answers["rating"].to_numpy()
    assert np.polyfit(mean, rating, 1)[0] == pytest.approx(1, abs=0.15)


def test_the_prompt_has_the_fields_as_the_paper_or_their_values_alone():
    person = {"age": "18-25", "gender": "woman"}
    system, user = population.messages(person, "It is cheap.", "How much, 0 to 9?", "Answer as:")
    assert system == {"role": "system", "content": "Answer as: {age: 18-25, gender: woman}"}
    assert user["content"] == "It is cheap. How much, 0 to 9?"
    short = population.messages(person, "", "How much?", "You are {values}.")
    assert [m["content"] for m in short] == ["You are 18-25, woman.", "How much?"]


@pytest.fixture(scope="module")
def toy():
    """(rows, ids of the levels) of twelve people, for the tiny Llama."""
    _, tokenizer = tiny()
    asked = pocket_survey(12, posts=1)
    said = [
        {
            "messages": population.messages(asked.people[r.person], r.text, asked.question, "Be"),
            "rating": r.rating,
        }
        for r in asked.answers.itertuples()
    ]
    ids = population.level_ids(tokenizer, asked.low, asked.high)
    return population.render_rows(tokenizer, said, asked.low, one_token=True), ids


def config(**more):
    return PopulationConfig(**{"learning_rate": 3e-3, "num_steps": 4, "warmup": 0} | more)


def test_levels_are_tokens_only_where_they_are_one_token_each():
    _, tokenizer = tiny()
    assert len(set(population.level_ids(tokenizer, 0, 9))) == 10
    assert len(population.level_ids(tokenizer, 1, 5)) == 5
    assert population.level_ids(tokenizer, 0, 100) is None


def test_training_lowers_the_loss_and_repeats_bit_by_bit(toy):
    rows, ids = toy
    runs = []
    for _ in "ab":
        model, _ = tiny()
        history = population.train_population(model, rows, config(num_steps=12), ids)
        runs.append([row["loss"] for row in history])
    assert runs[0] == runs[1] and runs[0][-1] < runs[0][0] - 0.5
    assert {"ce", "levels", "learning_rate", "grad_norm", "num_tokens"} <= history[0].keys()
    sure = np.exp(population.predict(model, rows, ids)).sum(-1)
    assert sure.shape == (24,) and (sure <= 1 + 1e-6).all()


def test_fit_with_accumulation_takes_the_same_steps(toy):
    rows, ids = toy
    found = []
    for size in ({"batch_size": 8}, {"batch_size": 2, "gradient_accumulation_steps": 4}):
        model, _ = tiny()
        history = population.train_population(model, rows, config(**size), ids)
        found.append([row["loss"] for row in history])
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_fit_stops_before_a_step_that_is_not_finite(toy):
    rows, ids = toy
    model, _ = tiny()
    kept = [p.detach().clone() for p in model.parameters()]

    def broken(logps, ratings):
        return population.rating_loss(logps, ratings) * float("nan")

    with pytest.raises(loop.Diverged, match="loss at step 1 is nan"):
        population.train_population(model, rows, config(), ids, broken)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    assert issubclass(loop.Diverged, CourseError)


def test_predict_equals_the_plain_forward(toy):
    rows, ids = toy
    model, _ = tiny()
    found = population.predict(model, rows[:3], ids)
    for row, logps in zip(rows, found, strict=False):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, -1]
        np.testing.assert_allclose(logps, logits.log_softmax(-1)[ids], atol=1e-4)


def test_answers_of_several_tokens_are_trained_and_read_as_text():
    model, tokenizer = tiny()
    asked = pocket_survey(6, form="0-100", posts=0)
    said = [
        {"messages": population.messages(p, "", asked.question, "Be"), "rating": r}
        for p, r in zip(asked.people, asked.answers["rating"], strict=True)
    ]
    rows = population.render_rows(tokenizer, said, 0, one_token=False)
    history = population.train_population(model, rows, config(batch_size=4), None)
    assert history[-1]["loss"] < history[0]["loss"]
    prompts = [one["messages"] for one in said]
    values, texts = population.ask_numbers(model, tokenizer, prompts, 0, 100, seed=0)
    for value, text in zip(values, texts, strict=True):
        assert population.first_integer(text, 0, 100) == (None if np.isnan(value) else value)


def test_ten_bins_of_every_scale():
    assert population.bins_of(np.array([0, 5, 9, 10, 99, 100]), 0, 100).tolist() == [
        *(0, 0, 0, 1),
        *(9, 9),
    ]
    assert population.bins_of(np.array([0, 9]), 0, 9).tolist() == [0, 9]
    assert population.bins_of(np.array([1, 5]), 1, 5).tolist() == [0, 4]
