"""Notebook 10's experiment at toy size: conditions, measures, claims, figures, a file's survey."""

import numpy as np
import pytest

from course_lib.algorithms import population
from course_lib.experiments import nb10, published, survey_bench
from course_lib.experiments.experiment import Claim, Missing, decide, run
from course_lib.kit.course import setup
from course_lib.kit.results import select

POCKET = {"people": 120}


def ran_on(survey, tmp_path, monkeypatch):
    """(course, what the live conditions gave, bench) with a model that has read no survey."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    course = setup("pocket", "live", notebook="10")
    course.profile.models["surveyed"] = "pocket/m"
    benches = {0: survey_bench.load_bench(course, 0, survey)}
    ran = run(course, nb10.SWEEP, by=benches, survey=survey, num_steps=2)
    survey_bench.add_others(course, ran, benches)
    return course, ran, benches[0]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield ran_on(POCKET, tmp_path_factory.mktemp("build"), patch)


def test_every_condition_is_measured_person_by_person(pocket):
    course, ran, bench = pocket
    assert {"LoRA", "QLoRA", "numeric penalty", "before", *survey_bench.baselines.BASELINES} == set(
        ran.items
    )
    people = len(bench.test.people)
    for by_seed in ran.items.values():
        for values in by_seed[0].values.values():
            assert values.shape == (people,) and np.isfinite(values).all()
    rows = course.results.frame("10", "rmse all t=1", "LoRA")
    assert rows["value"].item() == pytest.approx(ran.items["LoRA"][0].values["rmse all t=1"].mean())
    said = ran.items["LoRA"][0].whole["answers"][1.0]
    by_hand = np.sqrt(np.square(said - bench.ratings).mean()) * 100 / 9
    assert rows["value"].item() == pytest.approx(by_hand)
    assert ran.missing["75 people"] == "in the full run"


def test_the_truth_is_no_way_off_and_everything_else_is(pocket):
    _, ran, bench = pocket
    exact = survey_bench.measured(bench, np.log(bench.truth)).values["truth all"]
    assert np.abs(exact).max() < 1e-6
    for name in ("marginal", "random", "ridge", "before"):
        assert ran.items[name][0].values["truth all"].mean() > 0.03


def test_claims_are_decided_or_missing_with_a_reason(pocket, capsys):
    course, ran, _ = pocket
    table = decide(course, ran, "10.1", "10.2", "10.3", "10.4")
    text = repr(table)
    assert all(claim.id in text for claim in nb10.CLAIMS) and not capsys.readouterr().out
    assert {claim.id.rstrip("ab") for claim in nb10.CLAIMS} == {"10.1", "10.2", "10.3", "10.4"}
    lacks = Claim("10.9", "x", "y", "z", "> 0", lambda ran: ran.gain("truth all", "d = 2", "LoRA"))
    assert isinstance(lacks.effect(ran), Missing)


def test_a_closer_look(pocket):
    course, ran, bench = pocket
    survey_bench.record_figures(course, ran, bench)
    assert len(survey_bench.median_people(ran, bench)) == 4
    beside = repr(published.beside_paper(course, bench))
    said = {name: ran.items[name][0].whole["answers"][0.0] for name in ("LoRA", "QLoRA")}
    first = bench.phases()["initial"]
    alike = population.spearman(*(levels[first] for levels in said.values()))
    assert "paper, 70B, QLoRA" in beside and f"QLoRA, initial: {alike:.3f}" in beside
    as_it_is, swapped = survey_bench.under_other_names(ran, bench)
    assert swapped["KL of the population"] == pytest.approx(
        as_it_is["KL of the population"], abs=0.2
    )
    shifts = survey_bench.sentence_shifts(course, ran.folders["LoRA"][0], bench, people=2)
    assert len(shifts) == 35 and shifts[0]["expected"] >= shifts[-1]["expected"]
    assert {"KL of the truth itself, sampled"} < survey_bench.floors(bench).keys()
    for figure in nb10.FIGURES[:-1]:  # the last one draws what TRL's trainer did
        figure(course)
    counts = select(course.results.frame("scatter"), measure="initial", condition="LoRA t=1")
    assert counts["value"].sum() == len(bench.test.people)


CODEBOOK = """
about: Answer for this person.
question: How much do you like trains, from 0 to 100?
fields: {years: {bands: [18, 40, 65]}, town: {levels: {"1": large, "2": small}}}
person: no
initial: first
items: {cheap: A ticket costs half., quick: The trip takes an hour less.}
scale: [0, 100]
"""


def test_a_survey_of_a_file_goes_through_to_the_end(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    lines = ["no,years,town,first,cheap,quick"]
    for i in range(80):
        ratings = np.clip(rng.normal(55, 25, 3), 0, 100).astype(int)
        lines.append(",".join(map(str, [i, rng.integers(18, 80), rng.integers(1, 3), *ratings])))
    (tmp_path / "trains.csv").write_text("\n".join(lines))
    (tmp_path / "trains.yaml").write_text(CODEBOOK)
    files = {"file": str(tmp_path / "trains.csv"), "codebook": str(tmp_path / "trains.yaml")}
    course, ran, bench = ran_on(files, tmp_path, monkeypatch)
    assert bench.truth is None and (bench.test.low, bench.test.high) == (0, 9)
    assert "truth all" not in ran.items["LoRA"][0].values
    decide(course, ran, "10.1", "10.4")
    assert "10.4a" in (out := capsys.readouterr().out) and "truth unknown" in out
    assert "10.1a" not in out and "10.4b" not in out
    survey_bench.record_figures(course, ran, bench)
    assert "planted" not in survey_bench.sentence_shifts(course, ran.folders["LoRA"][0], bench)[0]
    for figure in nb10.FIGURES[:-1]:
        figure(course)


def test_a_row_for_trl_ends_with_the_rating():
    rows = [{"input_ids": [5, 6], "completion_mask": [0, 0], "target": 3}]
    (one,) = survey_bench.as_demonstrations(rows, list(range(10, 20)), 0)
    assert one == {"input_ids": [5, 6, 13], "completion_mask": [0, 0, 1]}
    assert population.first_integer("13", 0, 9) is None
