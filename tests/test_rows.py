"""Real data and the pocket world give the same columns; downloads are checked and whole."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from course_lib import CourseError
from course_lib.inputs.download import SETS, data_folder, fetch, unpack_mmlu
from course_lib.inputs.profiles import load_profile
from course_lib.inputs.rows import (
    document_texts,
    exam_rows,
    instruction_rows,
    overlap_scores,
    prompt_rows,
    scorer,
)
from course_lib.kit.course import Course

REAL = Path(os.environ.get("COURSE_TEST_DATA") or "none") / "data"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="COURSE_TEST_DATA has no folder data")


@pytest.fixture(autouse=True)
def places(tmp_path_factory, monkeypatch):
    # One download folder for the file: the sets are fetched once, as a user fetches them.
    folder = tmp_path_factory.getbasetemp() / "data"
    monkeypatch.setenv("COURSE_DATA", str(folder))
    monkeypatch.setenv("COURSE_DATA_BASE", str(REAL))


def course(name):
    return Course("01", load_profile(name), "live", 0)


@pytest.fixture(params=["pocket", pytest.param("laptop", marks=needs_data)])
def each(request):
    return course(request.param)


@pytest.mark.parametrize("kind", ["explain", "refusal", "safe", "calculator"])
def test_instructions_have_the_same_columns(each, kind):
    rows = instruction_rows(each, 6, kinds=[kind])
    assert len(rows) == 6
    for row in rows:
        assert row["kind"] == kind and row["prompt"] and row["completion"]
        assert row["messages"][0] == {"role": "user", "content": row["prompt"]}
        assert row["messages"][-1]["role"] == "assistant"
    assert rows == instruction_rows(each, 6, kinds=[kind])
    if kind != "refusal":
        assert rows != instruction_rows(each, 6, seed=1, kinds=[kind])


@pytest.mark.parametrize("kind", ["explain", "refusal", "safe", "calculator"])
def test_prompts_hold_no_completion(each, kind):
    for row in prompt_rows(each, "test", 4, kind=kind):
        assert "completion" not in row and row["messages"][-1]["role"] == "user"


def test_splits_share_no_prompt(each):
    train = {row["prompt"] for row in instruction_rows(each, 400, kinds=["explain"])}
    assert not train & {row["prompt"] for row in prompt_rows(each, "test", 100)}


def test_exam_has_mmlus_columns(each):
    items, dev = exam_rows(each, 30, seed=1)
    assert len(items) == 30
    for item in items:
        assert len(item["choices"]) == 4 and item["answer"] in range(4) and item["question"]
        assert len(dev[item["subject"]]) == 5
        assert item not in dev[item["subject"]]


def test_documents_are_plain_text(each):
    texts = document_texts(each, 5)
    assert len(texts) == 5 and all(len(text) > 40 and "<<" not in text for text in texts)
    assert texts == document_texts(each, 5) != document_texts(each, 5, seed=1)


def test_scorer_is_the_judge_where_the_truth_is_known():
    pocket = course("pocket")
    rows = instruction_rows(pocket, 8, kinds=["explain"])
    score = scorer(pocket)
    good = score(rows, [row["completion"] for row in rows])
    assert good.shape == (8,) and good.mean() > score(rows, ["posted by ada to Kids"] * 8).mean()
    assert scorer(course("laptop")) is overlap_scores


def test_overlap_scores():
    rows = [{"reference": "The sun is hot."}] * 4
    scores = overlap_scores(rows, ["the SUN is hot", "the moon is cold", "", "xyz"])
    np.testing.assert_allclose(scores, [10, 5, 0, 0])


def test_asking_for_too_much_says_how_much_there_is(each):
    with pytest.raises(CourseError, match=r"\d+"):
        prompt_rows(each, "test", 10**6)


@needs_data
@pytest.mark.parametrize("name", SETS)
def test_downloader_fetches_every_set_from_a_local_base(name, monkeypatch):
    folder = data_folder(name)
    assert {p.name for p in folder.iterdir()} == set(SETS[name].mirrored or SETS[name].published)
    monkeypatch.setenv("COURSE_DATA_BASE", "file:///nowhere")
    assert data_folder(name.replace("_", "-")) == folder  # it is here: nothing is fetched again


def test_changed_file_is_refused_and_nothing_stays(tmp_path, monkeypatch):
    base = tmp_path / "mirror"
    (base / "gsm8k").mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl"):
        (base / "gsm8k" / name).write_text("{}", encoding="utf-8")
    monkeypatch.setenv("COURSE_DATA_BASE", base.as_uri())
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    with pytest.raises(CourseError, match="checksum"):
        data_folder("gsm8k")
    assert not [p for p in (tmp_path / "data").iterdir() if p.is_dir()]


def test_missing_file_and_unknown_set_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match=r"cannot be fetched.*COURSE_DATA_BASE"):
        fetch((tmp_path / "none").as_uri(), tmp_path / "x", "")
    with pytest.raises(CourseError, match=r"'mmlo'.*mean 'mmlu'"):
        data_folder("mmlo")


def test_published_mmlu_archive_is_unpacked(tmp_path):
    for split, question in (("dev", 'What, "so"?'), ("test", "Two\nlines")):
        (tmp_path / "data" / split).mkdir(parents=True)
        quoted = '"' + question.replace('"', '""') + '"'
        path = tmp_path / "data" / split / f"world_religions_{split}.csv"
        path.write_text(f"{quoted},a,b,c,d,C\n", encoding="utf-8")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "data", "data")
    unpack_mmlu(tmp_path)
    row = json.loads((tmp_path / "dev.jsonl").read_text(encoding="utf-8"))
    assert row == {
        "subject": "world_religions",
        "question": 'What, "so"?',
        "choices": ["a", "b", "c", "d"],
        "answer": 2,
    }
    assert not (tmp_path / "data.tar").exists()
    assert "Two" in (tmp_path / "test.jsonl").read_text(encoding="utf-8")


def test_a_folder_stands_in_for_a_set(tmp_path):
    assert data_folder(str(tmp_path)) == tmp_path
    assert os.environ["COURSE_DATA_BASE"]
