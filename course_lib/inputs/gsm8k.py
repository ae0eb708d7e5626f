"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021, MIT licence).

`read_number` finds the answer in a text, the set's own or a model's. It looks

1. behind the first "####", with which the set's solutions end: what stands behind a second one
   belongs to a further problem that a model went on to write;
2. else behind the last "answer is" or "answer:", on the same line;
3. else at the last number of the text.

In 1 and 2 it is the first number of the sentence, or the one behind its last "=", as in "The answer
is 4 - 2 = 2 apples".

A number is digits with a sign, thousands separators and decimals, as they come; a currency sign, a
unit or words around it do not matter. `Decimal` reads the digits, no text is ever evaluated. More
than `MOST_DIGITS` are no answer. Left out: fractions, powers of ten, numbers in words.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from course_lib import CourseError
from course_lib.inputs.download import data_folder
from course_lib.inputs.rows import read_rows

MOST_DIGITS = 20  # of an answer, its decimals included; Decimal compares so many exactly
# A minus is a sign unless it stands behind a number or a word, as in 16-3.
_NUMBER = re.compile(
    r"((?<![\w.)])-)?[$€£]?((?<=[$€£])-)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_MARK = "####"
_END = re.compile(r"\n|\.\s")
_STATED = re.compile(r"answer(?: is|:)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A word problem, as `world.problems.Problem` has them: what is asked, and the answer."""

    text: str
    answer: Decimal


def read_number(text: str) -> Decimal | None:
    """The answer that a text states; None where there is none."""
    if _MARK in text:
        return _first(text.split(_MARK)[1])
    *_, last = _STATED.split(text)
    if last is not text and (found := _first(last)) is not None:
        return found
    numbers = list(_NUMBER.finditer(text))
    return _decimal(numbers[-1]) if numbers else None


def _first(text: str) -> Decimal | None:
    """The first number of the text's first sentence, or the one behind its last "="."""
    sentence = _END.split(text.lstrip(" :*\n"), maxsplit=1)[0]
    found = _NUMBER.search(sentence.rpartition("=")[2]) or _NUMBER.search(sentence)
    return _decimal(found) if found else None


def _decimal(found: re.Match) -> Decimal | None:
    before, inside, digits = found.groups()
    digits = digits.replace(",", "")
    if len(digits) > MOST_DIGITS:
        return None
    return Decimal(digits) * (-1 if before or inside else 1)


def gsm8k(n: int, split: str = "test") -> list[Question]:
    """The first `n` problems of "test" or "train"; fetched once, see `inputs.download`.

    Raises:
        CourseError: a row whose question or answer is no text, or states no number after "####".
    """
    path = data_folder("gsm8k") / f"{split}.jsonl"
    rows, found = read_rows(path), []
    if n > len(rows):
        raise CourseError(f"{n} problems were asked for and {path} has {len(rows)}; ask for fewer.")
    for i, row in enumerate(rows[:n], start=1):
        question, answer = row.get("question"), row.get("answer")
        stated = isinstance(answer, str) and _MARK in answer and read_number(answer)
        if not isinstance(question, str) or not question.strip() or not isinstance(stated, Decimal):
            raise CourseError(
                f"Row {i} of {path} is {str(row)[:80]!r}; expected a question and an answer, both "
                f"texts, the answer with a number after {_MARK!r}."
            )
        found.append(Question(question, stated))
    return found
