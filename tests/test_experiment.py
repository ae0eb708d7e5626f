"""The runner of experiments and its records, on models that are numbers."""

import json

import numpy as np
import pytest

from course_lib import CourseError
from course_lib.core import stats
from course_lib.core.cache import read_json
from course_lib.experiments import records
from course_lib.experiments.experiment import Experiment, Items, Missing, run
from course_lib.kit import results
from course_lib.kit.course import setup
from course_lib.world.instructions import contrast, explain_prompts
from course_lib.world.judge import false_spans

ROWS = explain_prompts("test", 6)
MADE = []


def make(course, *, seed, progress, n, rate=1.0):
    MADE.append((seed, n, rate))
    return f"{n} {rate} {seed}"


def measure(course, folder, condition, seed, settings, by):
    n, rate, _ = map(float, folder.split())
    noise = np.random.default_rng(seed).normal(size=(6, 2))
    truth = rate * n + noise * by
    return Items({"truth": truth}, ROWS, np.full((6, 2), f"{condition}."), whole=folder)


SWEEP = Experiment(
    "9.1",
    make=make,
    measure=measure,
    live={"usual": {}, "twice": {"n": lambda shared: 2 * shared["n"]}},
    full={"slow": {"rate": 0.5}, "large": {"n": 50}},
    skip=lambda course, settings: "needs a second model" if settings["n"] == 50 else "",
)


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path))
    monkeypatch.setattr(results, "ROOT", tmp_path)  # nothing is committed
    MADE.clear()
    return tmp_path


def ran_at(effort, **options):
    return run(setup("pocket", effort, notebook="90"), SWEEP, n=3, **options)


def test_a_live_run_is_a_prefix_of_the_full_one():
    scales = dict.fromkeys(range(5), 0.1)
    live, full = (ran_at(effort, by=scales) for effort in ("live", "full"))
    assert list(live.items) == ["usual", "twice"] and list(full.items) == [*live.items, "slow"]
    assert [len(each) for each in full.items.values()] == [5, 5, 5]
    for name in live.items:
        assert (live.values("truth", name)[0] == full.values("truth", name)[0]).all()
    assert live.missing == {"slow": "in the full run", "large": "needs a second model"}
    rows = full.course.results.frame("9.1", "truth", "twice")
    assert rows["value"].tolist() == [v.mean() for v in full.values("truth", "twice")]


def test_effects_are_paired_by_item_and_seed():
    ran = ran_at("full", by=dict.fromkeys(range(5), 5.0))
    assert ran.gain("truth", "twice", "usual").estimate == pytest.approx(3.0)
    spread = ran.gain("truth", "twice", "usual")
    assert spread.high - spread.low < 1e-6  # the same noise on both sides
    assert ran.mean("truth", "usual") == stats.mean(ran.values("truth", "usual"))
    assert ran.wins("usual", "usual").estimate == 0.5
    assert [row[""] for row in ran.table("truth")] == ["usual", "twice", "slow", "large"]


def test_what_the_notebook_has_trained_is_not_trained_again():
    ran = ran_at("live", by={0: 0.1}, trained={"usual": {0: "3 1.0 0"}})
    assert MADE == [(0, 6, 1.0)] and ran.folders["usual"][0] == "3 1.0 0"
    ran.add("start", {0: Items({"truth": np.zeros((6, 2))})})
    assert ran.gain("truth", "usual", "start").estimate == pytest.approx(3, abs=0.2)
    with pytest.raises(CourseError, match="did you mean 'usual'"):
        ran.mean("truth", "usal")


def test_a_missing_condition_prints_what_the_full_run_found(build):
    missing = ran_at("live", by={0: 0.1}).gain("truth", "slow", "usual")
    assert isinstance(missing, Missing) and str(missing) == "in the full run"
    folder = build / "data" / "results"
    folder.mkdir(parents=True)
    head = "notebook,claim,condition,x,seed,measure,value\n"
    lines = [
        f"90,9.1,{n},0,{s},truth,{v}\n" for n, v in (("slow", 1.5), ("usual", 3)) for s in (0, 1)
    ]
    (folder / "90_full.csv").write_text(head + "".join(lines), encoding="utf-8")
    ran = ran_at("live", by={0: 0.1})
    assert str(ran.gain("truth", "slow", "usual")) == "in the full run: -1.500"
    assert ran.table("truth")[2] == {"": "slow", "truth": "in the full run: 1.500"}
    assert str(ran.mean("truth", "large")) == "needs a second model"


def test_records_hold_every_item_and_the_selection_can_be_made_again(build):
    ran = ran_at("full", by=dict.fromkeys(range(5), 2.0))
    ran.save([("slow", "truth", "median gain", 2), ("slow", "truth", "largest gain", 1)], "usual")
    items, seeds = records.load_items(build / "results" / "90_items.npz")
    assert seeds == ran.course.seeds and items["9.1", "slow", "truth"].shape == (5, 6)
    assert items["9.1", "slow", "truth"] == pytest.approx(
        np.stack(ran.values("truth", "slow")), abs=0.01
    )
    gains = items["9.1", "slow", "truth"][0] - items["9.1", "usual", "truth"][0]
    texts = read_json(build / "results" / "90_texts.json")
    for rule, n in (("median gain", 2), ("largest gain", 1)):
        kept = [text for text in texts if text["rule"] == rule]
        assert [text["item"] for text in kept] == records.chosen(gains, rule, n)
    assert texts[0]["prompt"] == ROWS[texts[0]["item"]]["prompt"]
    assert list(texts[0]["answers"]) == ["usual", "slow"]
    ran.save([("slow", "truth", "median gain", 2)], "usual")  # again: in place of the first
    assert read_json(build / "results" / "90_texts.json")[-1]["rule"] == "median gain"
    assert len(read_json(build / "results" / "90_texts.json")) == 3


def test_rules_choose_by_gain_and_ties_go_to_the_first():
    gains = np.array([0.0, 3.0, -1.0, 3.0, 1.0])
    assert records.chosen(gains, "largest gain", 2) == [1, 3]
    assert records.chosen(gains, "smallest gain", 1) == [2]
    assert records.chosen(gains, "median gain", 2) == [4, 0]
    assert records.chosen(gains, "first", 2) == [0, 1]
    with pytest.raises(CourseError, match="the best"):
        records.chosen(gains, "the best", 1)


def test_records_that_get_too_large_or_are_damaged_are_said(build, monkeypatch):
    path = build / "90_items.npz"
    records.save_items(path, {("9.1", "a", "b"): np.ones((1, 3))}, [0])
    before = path.read_bytes()
    monkeypatch.setattr(records, "MOST_BYTES", 100)
    noise = np.random.default_rng(0).normal(size=(1, 1000))
    with pytest.raises(CourseError, match="keep fewer"):
        records.save_items(path, {("9.1", "c", "d"): noise}, [0])
    assert path.read_bytes() == before and not list(build.glob("*.part*"))
    with pytest.raises(CourseError, match="slash"):
        records.save_items(path, {("9.1", "a/b", "c"): noise}, [0])
    path.write_bytes(before[:50])
    with pytest.raises(CourseError, match="cannot be read"):
        records.load_items(path)


def test_false_sentences_are_marked_where_they_stand():
    row = ROWS[0]
    texts = contrast(row)
    assert false_spans(row, texts["plain, true"]) == []
    spans = false_spans(row, texts["plain, false"])
    assert len(spans) == 1
    (start, end), text = spans[0], texts["plain, false"]
    assert text[start:end].strip() and json.loads(json.dumps(spans)) == [[start, end]]
