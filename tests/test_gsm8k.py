"""GSM8K: what is read as an answer, what is refused, and the way from a model to pass@k."""

import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from tiny import tiny

from course_lib import CourseError
from course_lib.experiments import real
from course_lib.inputs.download import data_folder
from course_lib.inputs.gsm8k import MOST_DIGITS, gsm8k, read_number

REAL = Path(os.environ.get("COURSE_TEST_DATA") or "none") / "data"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 = 13\n#### 13", "13"),
        ("#### 13\nNext: 4 + 4\n#### 8", "13"),  # it went on to a further problem
        ("He has 5.\n#### $1,234.50 a day", "1234.5"),
        ("#### -7", "-7"),
        ("#### twelve, not 12.5.\n9", "12.5"),
        ("#### twelve", None),
        ("The answer is 12.", "12"),
        ("The answer is 4 - 2 = 2 pallets. 5 were ruined.", "2"),
        ("The answer is $1.50 = 3 x $0.50. Or is it 7?", "3"),  # a sum the wrong way round
        ("The answer is 3. No: the final answer is: 4 apples, as 2 + 2 = 4, not 5", "4"),
        ("The answer is:\n\n2 x 6 = 12 apples, in 3 boxes", "12"),
        ("So she has 40 - 4 = 36 eggs.", "36"),
        ("16-3", "3"),
        ("It costs $-5 or -$5", "-5"),
        ("80,000 + 50,000 is 130,000.", "130000"),
        ("that is 50%", "50"),
        ("half of it is .5", "0.5"),
        ("nobody knows", None),
        ("", None),
        ("#### " + "9" * MOST_DIGITS, "9" * MOST_DIGITS),
        ("#### " + "9" * (MOST_DIGITS + 1), None),
        ("9" * 1_000_000, None),
        ("1," * 200_000, "1"),
    ],
)
def test_the_number_that_a_text_states(text, number):
    assert read_number(text) == (None if number is None else Decimal(number))


def test_eighteen_is_eighteen_however_it_is_written():
    assert read_number("#### 18.00") == read_number("$18") == 18


def rows_of(folder, monkeypatch, *rows):
    monkeypatch.setenv("COURSE_DATA", str(folder))
    (folder / "gsm8k").mkdir(exist_ok=True)
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "gsm8k" / "test.jsonl").write_text(lines, encoding="utf-8")


GOOD = {"question": "2 and 2?", "answer": "<<2+2=4>>\n#### 4"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "2 and 2?", "answer": 4},
        {"question": "2 and 2?", "answer": None},
        {"question": "2 and 2?", "answer": "It is 4."},
        {"question": "2 and 2?", "answer": "#### four"},
        {"question": ["2 and 2?"], "answer": "#### 4"},
        {"answer": "#### 4"},
    ],
)
def test_a_row_of_the_wrong_type_is_named(row, tmp_path, monkeypatch):
    rows_of(tmp_path, monkeypatch, GOOD, row)
    assert gsm8k(1)[0].answer == 4
    with pytest.raises(CourseError, match=r"Row 2 of .*test.jsonl is .*expected a question"):
        gsm8k(2)
    with pytest.raises(CourseError, match="3 problems were asked for"):
        gsm8k(3)


@pytest.mark.skipif(not REAL.is_dir(), reason="COURSE_TEST_DATA has no folder data")
def test_every_published_answer_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA_BASE", str(REAL))
    data_folder("gsm8k")
    for split, n in {"test": 1319, "train": 2000}.items():
        problems = gsm8k(n, split)
        assert len({problem.text for problem in problems}) == n
    assert gsm8k(3)[2].answer == 70000


def test_a_model_answers_them_to_the_end(tmp_path, monkeypatch):
    """Sampling, reading and pass@k, with a model that knows nothing."""
    rows_of(tmp_path, monkeypatch, GOOD, GOOD | {"question": "3 and 3?", "answer": "#### 6"})
    (policy, tokenizer), problems = tiny(), gsm8k(2)
    solved = real.solve(policy, tokenizer, problems, 4, seed=0, max_new_tokens=5)
    assert [len(row) for row in solved] == [4, 4]
    found = real.accuracy(problems, solved)
    assert 1 >= found["pass@4"] >= found["one sample"] >= 0
