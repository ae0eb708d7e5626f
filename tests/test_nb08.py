"""Notebook 08 at toy size: every condition of a full run, its figures, what is committed."""

import json

import pytest
from test_recipes import course, folder  # noqa: F401  a tiny base model

from course_lib import CourseError
from course_lib.algorithms import distill
from course_lib.exercises.check import yours
from course_lib.experiments import distill_trials, nb08, reasoners, recipes
from course_lib.experiments.experiment import Missing, conditions, decide, run
from course_lib.experiments.published import TABLE_5
from course_lib.world.problems import extract_answer, verify_answer

SMALL = {"MAX_TOKENS": 8, "PROBLEMS": 12, "NUM_PROMPTS": 4, "NUM_SOLUTIONS": 2, "UPDATES": 2}
SMALL |= {"REASONER": 2, "TRACED": 2, "HELD_OUT": 4, "START": 2, "TEACHER": 2, "TRIES": 2}


@pytest.fixture
def toy(course, folder, monkeypatch, tmp_path):  # noqa: F811
    """Teacher and student are the same tiny model; a solution is right if its length is even."""
    for name, value in SMALL.items():
        monkeypatch.setattr(reasoners, name, value)
    for name, value in {"MOST": 8, "PROMPTS": 4, "TRIES": 2}.items():
        monkeypatch.setattr(distill_trials, name, value)
    monkeypatch.setattr(reasoners, "verify_answer", lambda problem, text: len(text) % 2 == 0)
    monkeypatch.setattr(distill_trials, "SAMPLING", {"max_new_tokens": 8})
    other = tmp_path / "other"  # the student has a folder of its own
    other.symlink_to(folder)
    course.profile.models["small"] = str(other)
    course.notebook = course.results.notebook = "08"
    course.effort = "full"
    monkeypatch.setattr(type(course), "seeds", property(lambda self: [0]))
    made = recipes.instruct_model
    few = lambda course, start, n, seed, **more: made(course, start, 8, seed, **more)  # noqa: E731
    monkeypatch.setattr(distill_trials, "instruct_model", few)
    return course


def test_every_condition_of_a_full_run_is_trained_measured_and_drawn(toy, capsys):
    shared = {"8.1": {"num_steps": 2}, "8.3": {"steps": 2}, "agents": {"num_steps": 2}, "8.2": {}}
    rans = {one.claim: run(toy, one, **shared[one.claim]) for one in nb08.EXPERIMENTS}
    for one in nb08.EXPERIMENTS:
        assert rans[one.claim].items.keys() == {**one.live, **one.full}.keys()
        assert not rans[one.claim].missing
    ways = rans["8.2"].items
    own, paid = (
        {name: each[0].values[f"gflops {m}"][0] for name, each in ways.items()}
        for m in ("own", "all")
    )
    assert own["before"] == 0 and own["traces"] == pytest.approx(own["RL"], rel=0.5)
    assert paid["traces"] > own["traces"] and paid["RL"] == own["RL"]
    longer = rans["8.2"].folders["RL, all compute"][0]  # pays for the teacher as well
    assert len(recipes.training_history(longer)) > 2
    shown = repr(decide(toy, rans, "8.1", "8.2", "8.3"))
    assert all(claim.id in shown for claim in nb08.CLAIMS) and not capsys.readouterr().out
    assert "T = 8" in repr(nb08.also_measured(rans))
    teacher = recipes.policy_of(toy, toy.model("base"), 0)
    distill_trials.record_tokens(toy, teacher, 0, 3)
    tokens = toy.results.frame("tokens")
    assert tokens.groupby("x")["value"].sum().max() <= 1 + 1e-6 and len(tokens) == 12
    assert len(distill_trials.answers_table(toy, rans["8.1"])) == 2
    reasoners.record_reasoner(toy)
    reasoners.record_teacher(toy)
    distill_trials.save_all(rans)
    for figure in nb08.FIGURES[:-1]:  # the last one draws what TRL's trainer did
        figure(toy)


def test_on_own_samples_and_on_traces_the_student_learns_from_as_many_tokens(toy):
    kinds = {kind: reasoners.own_student(toy, kind=kind, steps=4) for kind in ("reverse", "traces")}
    tokens = {
        kind: sum(row["completion_length"] for row in recipes.training_history(made))
        for kind, made in kinds.items()
    }
    assert tokens["traces"] == pytest.approx(tokens["reverse"], rel=0.4)


def test_a_profile_with_one_model_leaves_the_students_out_and_says_so(toy):
    toy.effort = "live"
    toy.profile.models["small"] = toy.model("base")
    ran = run(toy, nb08.WAYS)
    assert not ran.items and ran.missing["RL"] == "needs a second model"
    rans = {one.claim: run(toy, one) for one in nb08.EXPERIMENTS}
    assert all(isinstance(claim.effect(rans), Missing) for claim in nb08.CLAIMS)


def test_a_live_run_lacks_what_only_a_full_run_has(toy):
    toy.effort = "live"
    settings, missing = conditions(toy, nb08.WAYS, {})
    assert "RL" in settings and missing == {"RL, all compute": "in the full run"}


def test_a_teacher_of_another_tokenizer_is_refused_before_it_reads(toy):
    from course_lib.inputs.models import load_tokenizer

    with pytest.raises(CourseError, match="different tokenizers"):
        reasoners.load_teacher(toy, "pocket/s", load_tokenizer(toy.model("base")))


def test_the_committed_traces_are_right_and_of_training_problems():
    path = reasoners.ROOT / "data" / "results" / "08_traces.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    problems = reasoners.taught(found["seed"])
    assert path.stat().st_size < 300_000 and "GRPO" in found["about"]
    assert len(problems) == len(found["solutions"]) and 0 < found["right"] < 1
    assert sum(map(len, found["solutions"])) > 1000
    for problem, written in zip(problems, found["solutions"], strict=True):
        assert all(verify_answer(problem, text) for text in written)
        assert len(set(written)) == len(written)
    assert extract_answer(found["solutions"][0][0]) == problems[0].answer


def test_the_published_table_is_that_of_the_paper():
    assert len(TABLE_5) == 10 and all(len(row) == 7 for row in TABLE_5.values())
    best = {name: row[1] for name, row in TABLE_5.items()}
    assert max(best, key=best.get) == "R1-Distill-Qwen-32B"


def test_a_solved_function_is_used(capsys):
    assert yours("kd_loss", distill.kd_loss, max) is distill.kd_loss
    assert yours("reverse_kl", lambda *_: None, distill.reverse_kl) is distill.reverse_kl
    assert "your own" in capsys.readouterr().out
