"""Verdicts follow from interval and target alone; the file survives notebooks in parallel."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from course_lib import CourseError
from course_lib.core.stats import Interval
from course_lib.kit.claims import (
    Claim,
    claim,
    claims_table,
    load_claims,
    refuted,
    verdict,
    verdict_table,
)

LOW, HIGH, WIDE = Interval(0.1, 0.05, 0.15), Interval(0.9, 0.85, 0.95), Interval(0.5, 0.0, 1.0)


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    profile = SimpleNamespace(name="pocket")
    return SimpleNamespace(profile=profile, effort="live", seeds=[0], seed=0, notebook="01")


def record(course, id="1.1a", interval=HIGH, target=">= 0.8", **more):
    words = {"source": "slide 5", "measure": "share of <answers>"} | more
    return claim(
        course, id, "a base & an instruct model", interval=interval, target=target, **words
    )


@pytest.mark.parametrize(
    ("interval", "target", "holds"),
    [
        (HIGH, ">= 0.8", True),
        (HIGH, ">= 0.9", None),
        (HIGH, ">= 0.99", False),
        (LOW, "<= 0.2", True),
        (LOW, "<= 0.1", None),
        (LOW, "<= 0.01", False),
        (HIGH, "> 0", True),
        (WIDE, "> 0", None),
        (Interval(0, 0, 0), "> 0", False),
        (Interval(0, 0, 0), ">= 0", True),
        (Interval(-0.1, -0.2, -0.05), "< 0", True),
        (Interval(-0.1, -0.2, -0.05), "> -0.01", False),
        (LOW, "within 0.2", True),
        (LOW, "within 0.1", None),
        (LOW, "within 0.04", False),
        (Interval(-0.1, -0.15, -0.05), "within 0.04", False),
        (WIDE, "computed", None),
    ],
)
def test_verdict(interval, target, holds):
    assert verdict(interval, target) is holds


def test_a_target_and_its_mirror_image_agree():
    for interval in (LOW, HIGH, WIDE):
        mirrored = Interval(-interval.estimate, -interval.high, -interval.low)
        for x in (-0.1, 0.0, 0.05, 0.15, 0.5, 0.9, 1.0):
            assert verdict(interval, f">= {x}") is verdict(mirrored, f"<= {-x}")
            assert verdict(interval, f"> {x}") is verdict(mirrored, f"< {-x}")


@pytest.mark.parametrize("target", ["about 0.9", "", ">= many", "= 1", "rising"])
def test_a_target_that_cannot_be_read_is_named(target):
    with pytest.raises(CourseError, match="cannot be read"):
        verdict(HIGH, target)


def test_a_nan_is_no_verdict():
    with pytest.raises(ValueError):
        verdict(Interval(float("nan"), float("nan"), float("nan")), "> 0")


def test_recorded_as_the_design_says(course, tmp_path):
    record(course)
    (row,) = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    wanted = "id statement source measure effect low high target holds profile effort seeds"
    assert list(row) == [*wanted.split(), "notebook", "items_fixed"]
    assert (row["effect"], row["low"], row["high"], row["holds"]) == (0.9, 0.85, 0.95, True)
    assert (row["profile"], row["effort"], row["seeds"]) == ("pocket", "live", [0])


def test_a_second_run_replaces_and_another_effort_does_not(course):
    record(course)
    record(course, interval=LOW)
    course.effort = "full"
    record(course)
    rows = load_claims()
    assert [(row.effort, row.holds) for row in rows] == [("full", True), ("live", False)]


def test_order_is_that_of_the_notebooks(course):
    for id in ("10.1", "9.6", "1.1b", "1.10", "1.1a", "1.2"):
        record(course, id)
    assert [row.id for row in load_claims()] == ["1.1a", "1.1b", "1.2", "1.10", "9.6", "10.1"]


def test_many_notebooks_at_once_lose_nothing(course):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: record(course, f"2.{i}"), range(40)))
    assert len(load_claims()) == 40


def test_a_measurement_needs_no_interval_and_has_no_verdict(course):
    row = record(course, interval=6.4e12, target="computed")
    assert row.holds is None and row.word == "measured"
    with pytest.raises(CourseError, match="bare number"):
        record(course, interval=0.5)


def test_shown_with_words_and_escaped(course):
    record(course, "1.1"), record(course, "1.2", LOW), record(course, "1.3", WIDE)
    record(course, "1.4", WIDE, "computed")
    page = claims_table("01")._repr_html_()
    for word in ("holds", "does not hold here", "undecided at this sample size", "measured"):
        assert word in page and word in repr(claims_table("01"))
    assert "&lt;answers&gt;" in page and "base &amp; an" in page and "<answers>" not in page
    assert "0.900 [0.850, 0.950]" in page
    assert repr(claims_table("02")) == "no claims yet"


def test_a_live_claim_stands_beside_that_of_the_full_run(course):
    live = record(course, "1.1", WIDE)
    full = [replace(live, effort="full", effect=0.7, seeds=[0, 1]), replace(live, id="1.2")]
    assert "full run" not in repr(verdict_table([live]))
    table = verdict_table([live], full)
    assert table.head[-1] == "full run, 2 seeds" and all(len(row) == 7 for row in table.cells)
    first, second = table.cells
    assert "0.700" in first[-1] and "undecided" in first[-1]
    assert second[3] == "" and second[5] == "not in this run"
    assert "full run: 0.700" in repr(table)


def test_refuted_only_what_held_and_now_does_not(course):
    base = record(course)
    assert isinstance(base, Claim)
    run = replace(base, holds=False)
    assert refuted([base], [run]) == [(base, run)]
    assert refuted([base], [replace(base, holds=None)]) == []
    assert refuted([replace(base, holds=None)], [run]) == []
    assert refuted([base], [replace(run, effort="full")]) == []
    assert refuted([base], []) == []


def test_committed_rows_may_hold_more_than_a_claim(course, tmp_path):
    record(course)
    path = tmp_path / "claims.json"
    rows = [{**row, "share": 1.0} for row in json.loads(path.read_text(encoding="utf-8"))]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert load_claims()[0].id == "1.1a"


@pytest.mark.parametrize("text", ["[{", "[{}]", '{"a": 1}'])
def test_a_damaged_file_says_what_to_do(course, tmp_path, text):
    (tmp_path / "claims.json").write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match="delete the file"):
        load_claims()
