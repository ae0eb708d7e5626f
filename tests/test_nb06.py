"""Notebook 06 at toy size, and its measures on pools whose result is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_recipes import course, folder  # noqa: F401  a tiny base model

from course_lib.algorithms import search
from course_lib.core.cache import read_json
from course_lib.exercises.check import yours
from course_lib.experiments import nb06, search_trials, solutions
from course_lib.experiments.experiment import Items, Missing, Ran, decide
from course_lib.kit.results import Results
from course_lib.world.problems import Problem, Step, solution


@pytest.fixture
def toy(course, monkeypatch):  # noqa: F811
    """Short solutions of a model that knows nothing, whose steps and answers are drawn."""
    small = {"MAX_TOKENS": 16, "TRAIN": 8, "PER_PROBLEM": 4, "NUM_SOLUTIONS": 16, "FRESH": 8}
    for name, value in small.items():
        monkeypatch.setattr(solutions, name, value)
    monkeypatch.setattr(
        solutions, "check_steps", lambda problem, texts: [len(t) % 2 == 0 for t in texts]
    )
    monkeypatch.setattr(solutions, "extract_answer", lambda text: 10 + len(text) % 3)
    course.notebook = "06"
    course.results.notebook = "06"
    return course


def test_the_whole_notebook_at_toy_size(toy):
    found = search_trials.run_search(toy, 8, 16)
    search_trials.run_budgets(toy, found, {seed: solutions.solver(toy, seed) for seed in toy.seeds})
    table = nb06.also_measured(found)
    assert "wait" in str(table)
    ran = found.ran
    for n in (1, 4, 16):  # the exact expectation over subsets lies near the mean over orders
        items = ran.items[f"majority, n = {n}"][0].values
        assert items["right"].shape == items["gflops"].shape == (8, search_trials.ORDERS)
        passed = ran.items[f"pass, n = {n}"][0].values["right"]
        assert (passed >= items["right"].min(1) - 1e-9).all()
    judged = ran.items["best by process, n = 4"][0].values["gflops"]
    np.testing.assert_allclose(judged, 2 * ran.items["majority, n = 4"][0].values["gflops"])
    assert str(ran.mean("right", "majority, n = 128")) == "in the full run"
    shown = decide(toy, found, "6.1", "6.2", "6.3", "6.4")
    assert "6.1a" not in str(shown) and "6.4" in str(shown)  # 64 samples are not here
    again = search_trials.run_search(toy, 8, 16)  # from the cache
    assert ran.items["beam, n = 4"][0].values["right"].tolist() == (
        again.ran.items["beam, n = 4"][0].values["right"].tolist()
    )


def test_a_larger_pool_begins_with_the_smaller_one(toy, monkeypatch):
    monkeypatch.setattr(solutions, "BLOCK", 2)
    base = toy.model("base")
    few = solutions.sampled(toy, base, solutions.held_out(3), 2, seed=1)
    many = solutions.sampled(toy, base, solutions.held_out(5), 4, seed=1)
    assert [row[:2] for row in many[:3]] == few
    assert solutions.held_out(3) == solutions.held_out(5)[:3]


def test_solutions_are_read_up_to_their_answer_and_labelled_step_by_step(toy, monkeypatch):
    from course_lib.experiments.recipes import load
    from course_lib.world import problems

    monkeypatch.setattr(solutions, "extract_answer", problems.extract_answer)
    monkeypatch.setattr(solutions, "check_steps", problems.check_steps)
    monkeypatch.setattr(solutions, "MAX_TOKENS", 400)
    _, tokenizer = load(toy, "pocket/s")
    reader = solutions.Reader(tokenizer)
    problem = Problem("", 18, (Step(4, "*", 3, 12), Step(12, "+", 6, 18, 0)), "t", "test")
    text = " 4 * 3 = 12. 12 + 6 = 17. The answer is 17.\n\nProblem: another one."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = reader.solution(ids)
    assert reader.text(kept).strip() == "4 * 3 = 12. 12 + 6 = 17. The answer is 17."
    assert reader.answer(kept) == 17 and not reader.finished(kept[:-6])
    row = reader.judged(problem, [5, 6], kept)
    assert row["labels"] == [1, 0, 0] and row["input_ids"] == [5, 6, *kept]
    assert [row["input_ids"][end] for end in row["ends"]] == [kept[-1]] * 3  # the points
    true = solution(problem, "words", __import__("random").Random(0))
    assert reader.judged(problem, [], tokenizer(true)["input_ids"])["labels"] == [1, 1, 1]


def searched(answers, steps):
    """A run whose pools hold these answers (P, N); 1 is right, a token each."""
    shape = np.array(answers).shape
    pool = search.Pool(
        [list(row) for row in answers], [1] * shape[0], np.zeros(shape[0]), np.ones(shape), {}
    )
    orders = search.draw_orders(*shape, 8)
    run = SimpleNamespace(results=Results("06", "live"), seeds=[0], full=False, notebook="06")
    found = search_trials.Searched(
        Ran(run, "6", {}, {}), np.array(steps), orders, {0: pool}, {}, {0: {}}
    )
    for n in (1, 4, 16, 64):
        right, cost = search.pick(pool, found.orders, n, lambda a, _: search.majority(a))
        found.grid[0]["majority", n] = Items({"right": right, "gflops": cost.flops(1)})
    return found


def test_compute_by_difficulty_is_saved_where_easy_problems_are_easy():
    rng = np.random.default_rng(0)
    easy = np.ones((40, 64), dtype=int)
    hard = np.where(rng.random((40, 64)) < 0.3, 1, rng.integers(2, 12, (40, 64)))
    found = searched(np.concatenate([easy, hard]), [1] * 40 + [3] * 40)
    levels = search_trials.agreement(found.pools[0], found.orders)
    assert (levels[:40] == 4).all() and levels[40:].mean() < 2.5
    ratio = search_trials.compute_ratio(found)
    assert 0.3 < ratio.estimate < 0.7 and ratio.low < 0.7
    for n in (1, 4, 16, 64):  # as good for the price of four: nothing is left to save
        cheap = found.grid[0]["majority", 4].values["gflops"]
        most = found.grid[0]["majority", 64].values["right"]
        found.grid[0]["best by likelihood", n] = Items({"right": most, "gflops": cheap})
    policy = search_trials.by_difficulty(found, 0)
    assert policy.ratio > 0.95 and policy.name.startswith("best by likelihood")
    alike = searched(hard, [3] * 40)
    assert search_trials.by_difficulty(alike, 0).ratio > 0.6


def test_the_smaller_model_gets_what_the_larger_one_costs():
    found = searched([[1] * 64] * 30 + [[2] * 64] * 30, [1] * 30 + [3] * 30)
    assert isinstance(search_trials.matched(found, "1 step"), Missing)
    large = {"right": np.array([0] * 30 + [1] * 30), "gflops": np.full(60, 10.0)}
    found.ran.items["large, greedy, n = 1"] = {0: Items(large)}
    assert search_trials.matched(found, "1 step").low > 0
    assert search_trials.matched(found, "3 and 4 steps").high < 0


def test_a_solved_function_is_used_and_any_other_is_not(capsys):
    assert yours("majority", search.majority, max) is search.majority
    assert yours("majority", lambda answers: None, search.majority) is search.majority
    assert "your own" in capsys.readouterr().out


def test_a_full_run_keeps_texts_that_can_be_marked(toy, monkeypatch):
    toy.effort = "full"
    monkeypatch.setattr(type(toy), "seeds", property(lambda self: [0]))
    found = search_trials.run_search(toy, 4, 16)
    search_trials.save(found)
    texts = read_json(toy.build / "results" / "06_texts.json")
    assert len(texts) == 8 and all(len(item["answers"]) == 2 for item in texts)
    monkeypatch.setattr(nb06, "ROOT", toy.build)
    (toy.build / "data").mkdir()
    (toy.build / "results").rename(toy.build / "data" / "results")
    assert len(nb06.look_first().cells) == 3
    assert len(nb06.difficulty_table(found).cells) == 4
