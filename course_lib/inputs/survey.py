"""A survey of people: who they are, and how they answered before and after each stimulus.

`load_survey` reads any CSV by its codebook (YAML; the README has both) and says all that is wrong
with it at once, `split_people` splits by person. What a survey holds: `survey_profile.describe`.
"""

import csv
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from course_lib import CourseError
from course_lib.core.checks import suggest
from course_lib.inputs.codebook import (
    Codebook,
    persona_reader,
    rating_reader,
    read_codebook,
    read_text,
    same,
    weight_reader,
)

Person = dict[str, str]
MOST_SHOWN = 20  # problems in one message
LEAST = 10  # people, so that each part of 8:1:1 has someone


@dataclass(frozen=True)
class Survey:
    """The answers of one population.

    `answers` has one row per answer: `person` (index into the lists by person), `item` (the
    stimulus's id, "" for the initial answer), `text` (what was shown, "" at first) and `rating`
    (an integer from `low` to `high`).
    """

    people: list[Person]  # n personas: field to text, in the codebook's order
    person_ids: list[str]  # n
    weights: np.ndarray  # (n,) how many people each stands for; mean 1 over the whole file
    answers: pd.DataFrame
    low: int
    high: int
    question: str  # asked after every stimulus
    about: str  # the system text: who answers, and what about
    notes: list[str] = field(default_factory=list)  # what the reader decided or left out


class _Problems(dict[str, list[int]]):
    """What is wrong, each once, with the rows in which it is."""

    def add(self, row: int, what: str) -> None:
        self.setdefault(what, []).append(row)

    def read(self, cells: pd.Series, meaning: Callable[[str], Any], empty: str = "") -> pd.Series:
        """`meaning` of each cell; None where it raises, or where the cell is empty or hidden."""

        def read(row: int, cell: str | None) -> Any:
            try:
                if cell == "" and empty:
                    raise ValueError(f"is empty: {empty}")
                return meaning(cell) if cell else None
            except ValueError as error:
                self.add(row, f"column {cells.name!r}: {cell!r} {error}")

        return pd.Series([read(*pair) for pair in cells.items()], cells.index, object, cells.name)

    def raise_any(self, path: Path) -> None:
        if self:
            first = sorted(self.items(), key=lambda problem: problem[1][0])
            more = [f"and {len(first) - MOST_SHOWN} more"] if len(first) > MOST_SHOWN else []
            lines = [
                f"row {rows[0]}{f' and {len(rows) - 1} more' * (len(rows) > 1)}, {what}."
                for what, rows in first[:MOST_SHOWN]
            ]
            raise CourseError("\n  ".join([f"{path} cannot be used:", *lines, *more]))


def load_survey(file: str | Path, codebook: str | Path) -> Survey:
    """Read a survey. The README says what is done about each thing that can be amiss.

    Raises:
        CourseError: all problems of the codebook, else all of the file, each with its row (as a
            spreadsheet counts: the header is row 1), column, value and remedy.
    """
    file, book, problems = Path(file), read_codebook(Path(codebook)), _Problems()
    cells, notes = _read_cells(file, book, problems)
    ids = pd.Series(map(str, cells.index), cells.index, object)
    if book.person:
        ids = problems.read(cells[book.person], str, empty="give every row its person's id")
    personas = {
        name: problems.read(column, persona_reader(column, about, book.decimal))
        for name, about in book.fields.items()
        for column in [cells[about.column or name]]
    }
    if book.weight:  # beside the fields, under a name that none of them has
        meaning = weight_reader(cells[book.weight], book.decimal)
        personas[""] = problems.read(cells[book.weight], meaning, "give every row a weight")
    people = _by_person(problems, pd.DataFrame(personas), ids, book)
    answers = _answers(problems, cells, ids, book)
    problems.raise_any(file)

    silent = ~people.index.isin(answers["person"])
    asked = len(cells) * (1 if book.item else len(book.items) + bool(book.initial))
    if gone := asked - len(answers):
        notes.append(f"without an answer: {gone} of {asked} cells")
    if gone := silent.sum():
        notes.append(f"without any answer: {gone} of {len(people)} people, left out")
    people = people[~silent].fillna("no answer")
    if len(people) < LEAST:
        raise CourseError(f"{file} has {len(people)} people with an answer; expected {LEAST}.")
    answers["person"] = people.index.get_indexer(answers["person"])
    # Of each person's answers after items the first few are read: none is always the first.
    pairs = answers["person"].map(people.index.__getitem__) + "\n" + answers["item"]
    drawn = pairs.map(lambda pair: zlib.crc32(pair.encode()))
    answers["drawn"] = drawn.where(answers["item"] != "", -1)
    answers = answers.sort_values(["person", "drawn"], kind="stable", ignore_index=True)
    weights = people.pop("").to_numpy(float) if book.weight else np.ones(len(people))
    return Survey(
        people.to_dict("records"),
        people.index.tolist(),
        weights / weights.mean(),
        answers.drop(columns="drawn"),
        *book.scale,
        book.question,
        book.about,
        notes,
    )


def split_people(
    survey: Survey, shares: Sequence[float] = (8, 1, 1), seed: int = 0
) -> tuple[Survey, ...]:
    """Parts of a survey with disjoint people, each with all answers of its people."""
    order = np.random.default_rng(seed).permutation(len(survey.people))
    ends = np.round(np.cumsum(shares) / np.sum(shares) * len(order)).astype(int)
    parts = [np.sort(part) for part in np.split(order, ends[:-1])]
    if not all(map(len, parts)):
        raise CourseError(f"{len(order)} people are too few for parts of {tuple(shares)}.")
    return tuple(_only(survey, part) for part in parts)


def _only(survey: Survey, chosen: np.ndarray) -> Survey:
    """The survey of some people, `chosen` in rising order."""
    answers = survey.answers[survey.answers["person"].isin(chosen)].reset_index(drop=True)
    return replace(
        survey,
        people=[survey.people[i] for i in chosen],
        person_ids=[survey.person_ids[i] for i in chosen],
        weights=survey.weights[chosen],
        answers=answers.assign(person=np.searchsorted(chosen, answers["person"])),
    )


def _read_cells(file: Path, book: Codebook, problems: _Problems) -> tuple[pd.DataFrame, list[str]]:
    """The codebook's columns, tidy; a cell is "" if empty, None if a problem hides it."""
    text, notes = read_text(file)
    fields = [about.column or name for name, about in book.fields.items()]
    answers = [book.item, book.rating] if book.item else [book.initial, *book.items]
    wanted = [n for n in dict.fromkeys([book.person, book.weight, *fields, *answers]) if n]

    def rows(separator: str) -> Iterator[list[str]]:
        lines = io.StringIO(text.removeprefix(f"sep={separator}"))  # Excel's own first line
        for row in csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True):
            yield [" ".join(cell.split()) for cell in row]

    def header(separator: str) -> list[str]:
        try:
            return next(filter(any, rows(separator)))
        except csv.Error:
            return []

    separator = max(",;\t|", key=lambda s: (len({*wanted} & {*header(s)}), len(header(s))))
    table, number = {}, 0
    try:
        for number, row in enumerate(rows(separator), 1):
            table |= {number: row} if any(row) else {}
    except csv.Error as error:
        what = f"{file}: the quotes of row {number + 1} do not balance ({error})"
        raise CourseError(f"{what}; close them, and double those inside of a text.") from None
    top, names = next(iter(table.items()))
    for name in wanted:
        if names.count(name) > 1:
            problems.add(top, f"column {name!r} stands twice; rename or delete one")
        elif name not in names:
            hint = suggest(name, names)
            problems.add(top, f"column {name!r} is missing{hint}; mend the header or the codebook")
    for number, row in list(table.items())[1:]:
        if len(row) < len(names) or any(row[len(names) :]):
            what = f"{len(row)} cells where the header has {len(names)}"
            problems.add(number, f"{what}; quote texts that hold {separator!r}")
            del table[number]
    del table[top]
    if not table and not problems:
        raise CourseError(f"{file} has a header and no rows; check that it was exported whole.")
    missing = {"", *map(same, book.missing)}
    columns = {
        name: [
            None if names.count(name) != 1 else "" if same(cell) in missing else cell
            for row in table.values()
            for cell in [row[names.index(name)] if name in names else ""]
        ]
        for name in wanted
    }
    unused = [name for name in names if name and name not in wanted]
    notes += [f"columns that the codebook does not name: {', '.join(unused)}"] * bool(unused)
    return pd.DataFrame(columns, list(table), dtype=object), notes


def _by_person(
    problems: _Problems, table: pd.DataFrame, ids: pd.Series, book: Codebook
) -> pd.DataFrame:
    """One row a person, in the file's order; the rows of a person agree where they say anything."""
    if not book.item:
        for row, person in ids[ids.duplicated() & ids.notna()].items():
            what = f"column {book.person!r}: {person!r} stands in an earlier row already"
            problems.add(row, f"{what}; delete one of the rows (a long file needs `item`)")
        table = table[~ids.duplicated()]
    ids = ids[table.index]
    people = table.groupby(ids, sort=False).first()
    first = people.reindex(ids).set_axis(table.index)
    differ = table.notna() & first.notna() & (table != first)
    for row, name in differ.stack()[lambda cells: cells].index:
        what = f"{name!r} of {ids[row]!r} is {table.at[row, name]!r}, but {first.at[row, name]!r}"
        problems.add(row, f"{what} in an earlier row; make them one")
    return people


def _answers(
    problems: _Problems, cells: pd.DataFrame, ids: pd.Series, book: Codebook
) -> pd.DataFrame:
    """One row per answer, as in `Survey`, but with the person's id."""
    if book.item:
        known = {same(item): item for item in book.items} | {same(book.initial): ""}

        def item_of(cell: str) -> str:
            if same(cell) not in known:
                hint = suggest(cell, list(book.items))
                raise ValueError(f"is no item{hint}; correct it, or add its text to `items`")
            return known[same(cell)]

        empty = f"expected {book.initial!r} or an item" if book.initial else ""
        items = problems.read(cells[book.item], item_of, empty)
        parts = {book.rating: items.mask(cells[book.item] == "", "")}
    else:
        named = ({book.initial: ""} if book.initial else {}) | {name: name for name in book.items}
        parts = {name: pd.Series(item, cells.index) for name, item in named.items()}
    answers = pd.concat(
        pd.DataFrame(
            {
                "person": ids,
                "item": items,
                "rating": problems.read(cells[name], rating_reader(cells[name], book)),
            }
        )
        for name, items in parts.items()
    ).dropna()
    if book.item and not book.repeats:
        for row, person, item in (
            answers[answers.duplicated(["person", "item"])].iloc[:, :2].itertuples()
        ):
            what = (
                f"{person!r} answers {item or 'the initial question'!r} in an earlier row already"
            )
            problems.add(row, f"{what}; delete one, or say `repeats: true` in the codebook")
    answers.insert(2, "text", answers["item"].map({"": ""} | book.items))
    return answers.astype({"item": str, "text": str, "rating": int})
