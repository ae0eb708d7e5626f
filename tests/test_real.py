"""The runs on a real model, with a pocket model in its place; and what they left."""

import numpy as np
import pytest

from course_lib.experiments import real
from course_lib.inputs.gsm8k import Question
from course_lib.kit.course import setup
from course_lib.kit.results import Results, committed, select


def course(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.setattr(real, "RESULTS", tmp_path)
    made = setup("pocket", notebook=notebook)
    made.profile.models |= {"surveyed": "pocket/m", "instruct": "pocket/m"}
    made.results = Results(notebook, "laptop")
    return made


def test_the_survey_is_measured_before_and_after_and_with_thoughts(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "SURVEY", {"people": 100})
    monkeypatch.setattr(real, "TUNING", {"num_steps": 2, "batch_size": 2, "end": True})
    monkeypatch.setattr(real, "THINKERS", 3)
    made = course("10", tmp_path, monkeypatch)
    found = real.run_survey(made)
    assert found["settings"]["test people"] == 10 and len(found["texts"]) == 6
    assert {row["way"] for row in found["thoughts"]} == {"direct", "thoughts first"}
    rows = made.results.frame("thinking", "success")
    assert len(rows) == 4 and rows["value"].between(0, 1).all()
    assert set(made.results.frame("success")["condition"]) == {"before", "LoRA"}
    made.results.save(tmp_path)
    assert "per-person" not in repr(real.table("10", "success"))
    assert "ridge" in repr(real.table("10", "10", "truth all", only=["ridge"]))


def test_problems_are_solved_once(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "NUM_PROBLEMS", {"world": 4, "GSM8K": 2})
    monkeypatch.setattr(real, "SAMPLING", real.SAMPLING | {"max_new_tokens": 4})
    monkeypatch.setattr(real, "gsm8k", lambda n: [Question(f"{i} and 2?", i + 2) for i in range(n)])
    made = course("06", tmp_path, monkeypatch)
    found = real.run_problems(made)
    monkeypatch.setattr(real, "solve", None)
    assert real.run_problems(made) == found
    assert len(found["texts"]) == 5  # of 1 to 4 steps, and of GSM8K
    table = select(made.results.frame(), "problems", "problems")
    assert table["value"].sum() == 4 + 4 + 2


def test_it_learns_from_its_own_right_solutions(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "OWN", {"taught": 10, "tested": 3, "steps": 1, "solutions": 2})
    monkeypatch.setattr(real, "LEARNING", {"num_steps": 2, "batch_size": 2})
    monkeypatch.setattr(real, "SAMPLING", real.SAMPLING | {"max_new_tokens": 4})
    right = []

    def odd(text):  # in place of an answer that is right
        right.append(len(text) % 2)
        return right[-1]

    monkeypatch.setattr(real, "read_number", odd)
    asked = lambda n, *_: [Question(f"{i} and 2?", 1) for i in range(n)]  # noqa: E731
    monkeypatch.setattr(real, "problem_set", asked)
    made = course("08", tmp_path, monkeypatch)
    found = real.run_own_solutions(made)
    counts = found["settings"]
    assert 0 < counts["right ones"] == sum(right[: counts["distinct solutions"]]) < 20
    models = ["before", "own right solutions", "own solutions, unchecked"]
    rows = made.results.frame("own", "one sample")
    assert list(rows["condition"]) == models and rows["value"].between(0, 1).all()
    assert [list(row) for row in found["texts"]] == [["problem", *models]] * 3


def test_a_vote_and_pass_at_k_by_hand():
    problems = [Question("a", 4), Question("b", 6)]
    found = real.accuracy(problems, [["#### 4"] * 4, ["5", "6", "6 or so: 6", "#### 5"]])
    assert found["one sample"] == 0.75 and found["pass@4"] == 1
    assert found["majority of 4"] == 0.5  # 5 and 6 have two votes each, 5 was first
    assert real.accuracy(problems, [["none"] * 2, ["none"] * 2])["no answer"] == 1


@pytest.mark.parametrize("notebook", ["06", "08", "10"])
def test_what_is_committed_is_whole(notebook):
    rows = committed(notebook, "laptop")
    assert len(rows) and np.isfinite(rows["value"]).all()
    for claim in rows["claim"].unique():
        assert repr(real.table(notebook, claim))
    assert repr(real.about(notebook))
