"""The codebook of a survey: YAML that says what the columns of a CSV mean (see the README)."""

import codecs
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from course_lib import CourseError
from course_lib.core.checks import suggest

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")


class Persona(BaseModel, extra="forbid"):
    """A persona field. Levels go before bands: a code for "refused" can stand beside numbers."""

    column: str = ""  # the field's name if left out
    levels: dict[str, str] = {}  # code to text, or a list of texts; any text if left out
    bands: list[float] = []  # lower ends of the bands of a number

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, page: Any) -> Any:
        levels = page.get("levels") if isinstance(page, dict) else None
        listed = {"levels": {level: level for level in levels}} if isinstance(levels, list) else {}
        return (page or {}) | listed if isinstance(page or {}, dict) else page


class Codebook(BaseModel, extra="forbid"):
    about: str  # who is asked about what, as a system text
    question: str  # with the scale, as it is put to the model after each item
    fields: dict[str, Persona] = Field(min_length=1)
    person: str = ""  # column of ids; a wide file may leave it out: its rows count
    weight: str = ""  # column
    item: str = ""  # column of item ids: then the file is long, else wide
    rating: str = ""  # column, in a long file
    initial: str = ""  # wide: column of the initial answer; long: what `item` says of it
    items: dict[str, str] = {}  # id to text; in a wide file the ids are columns
    scale: tuple[int, int] | None = None  # that of the labels if left out
    labels: dict[str, int] = {}  # answer in words to rating
    missing: list[str] = ["NA"]  # cells that count as empty
    decimal: Literal["", ".", ","] = ""  # as each column has it if left out
    repeats: bool = False  # whether a person may answer an item twice

    @model_validator(mode="after")
    def _complete(self) -> "Codebook":
        levels = sorted(self.labels.values())
        if not (self.scale or levels):
            raise ValueError("expected `scale: [0, 100]`, `labels`, or both")
        low, high = self.scale = self.scale or (levels[0], levels[-1])
        if low >= high or (levels and not low <= levels[0] <= levels[-1] <= high):
            raise ValueError(f"the scale {low} to {high} must rise and hold all `labels`")
        if self.item and not (self.person and self.rating):
            raise ValueError("a long file (`item`) needs the columns `person` and `rating`")
        if not self.item and not (self.initial or self.items):
            raise ValueError("no answers are named; give `initial`, `items` or both")
        if self.initial in self.items:
            raise ValueError(f"{self.initial!r} is both `initial` and one of the `items`")
        return self


class _Once(yaml.BaseLoader):
    """Every value is text (`no` is not false), and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = Counter(str(key.value) for key, _ in node.value)
        if twice := [key for key, _ in node.value if keys[str(key.value)] > 1]:
            what = f"the key {twice[-1].value!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, what, twice[-1].start_mark)
        return super().construct_mapping(node, deep)


def read_codebook(path: Path) -> Codebook:
    """The checked codebook; a `CourseError` lists all that is wrong with it."""
    try:
        return Codebook.model_validate(yaml.load(read_text(path)[0], _Once))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {error.problem}" if mark else f"{error}".splitlines()[0]
        raise CourseError(f"{path}, {what}; write it as YAML.") from None
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            *above, key = [str(part) for part in problem["loc"]] or ["codebook"]
            hint = suggest(key, list((Persona if above else Codebook).model_fields))
            hint = hint if problem["type"] == "extra_forbidden" else ""
            lines.append(f"{'.'.join([*above, key])}: {problem['msg']}{hint}.")
        raise CourseError("\n  ".join([f"{path} cannot be used:", *lines])) from None


def read_text(path: Path) -> tuple[str, list[str]]:
    """A text of any usual encoding and line ends, with `\\n`, and what is to be noted of it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CourseError(f"{path} cannot be read ({error.strerror}); give a text file.") from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raw = raw.decode("utf-16", errors="replace").encode()
    lines, old = [], 0
    for line in raw.removeprefix(codecs.BOM_UTF8).splitlines():
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
            old += 1
        if "\0" in lines[-1] or "\ufffd" in lines[-1]:
            what = f"{path}, line {len(lines)} is neither UTF-8 nor Windows-1252"
            raise CourseError(f"{what}; save it as text (a survey as CSV) in UTF-8.")
    if not any(map(str.strip, lines)):
        raise CourseError(f"{path} is empty; check that it was exported whole.")
    note = f"{old} of {len(lines)} lines are not UTF-8 and were read as Windows-1252"
    return unicodedata.normalize("NFC", "\n".join(lines)), [note] * bool(old)


def persona_reader(
    cells: Iterable[str | None], about: Persona, decimal: str
) -> Callable[[str], str]:
    """What turns a cell into the text of a persona field."""
    known = {same(code): text for code, text in about.levels.items()}
    ends, number = sorted(about.bands), _number(cells, decimal)

    def text(cell: str) -> str:
        if same(cell) in known:
            return known[same(cell)]
        if known and not ends:
            hint = suggest(cell, list(about.levels))
            raise ValueError(f"is no level{hint}; correct it, or add it to `levels`")
        return _band(number(cell), ends) if ends else cell

    return text


def _band(value: float, ends: list[float]) -> str:
    place = bisect_right(ends, value)
    if not place:
        raise ValueError(
            f"lies below the lowest of `bands`, {ends[0]:.12g}; correct it, or add one"
        )
    low, high = ends[place - 1], ends[place] if place < len(ends) else None
    if high is None:
        return f"{low:.12g}+"
    if any(end % 1 for end in ends):
        return f"{low:.12g} to {high:.12g}"
    return f"{low:.12g}-{high - 1:.12g}" if high > low + 1 else f"{low:.12g}"


def rating_reader(cells: Iterable[str | None], book: Codebook) -> Callable[[str], int]:
    """What turns a cell into a rating: a label, or a whole number on the scale."""
    labels = {same(label): level for label, level in book.labels.items()}
    (low, high), number = book.scale, _number(cells, book.decimal)

    def rating(cell: str) -> int:
        if same(cell) in labels:
            return labels[same(cell)]
        if labels and not _NUMBER.fullmatch(cell):
            hint = suggest(cell, list(book.labels))
            raise ValueError(f"is no label{hint}; correct it, or add it to `labels` or `missing`")
        value = number(cell)
        if value % 1 or not low <= value <= high:
            what = f"is no whole number from {low} to {high}"
            raise ValueError(f"{what}; correct it, or list it under `missing`")
        return int(value)

    return rating


def weight_reader(cells: Iterable[str | None], decimal: str) -> Callable[[str], float]:
    number = _number(cells, decimal)

    def weight(cell: str) -> float:
        if not 0 < number(cell) < float("inf"):
            raise ValueError("is not above 0; correct it, or delete the person")
        return number(cell)

    return weight


def _number(cells: Iterable[str | None], decimal: str) -> Callable[[str], float]:
    """What reads a number of this column; the decimal mark is the codebook's or the column's.

    Where every fraction could as well be thousands (1,234), reading it would be a guess: an error.
    """
    marked = [c for c in cells if c and _NUMBER.fullmatch(c) and re.search("[.,]", c)]
    unclear = not decimal and all(map(_THOUSANDS.fullmatch, marked))
    mark = decimal or max(".,", key=lambda m: sum(m in cell for cell in marked))

    def number(cell: str) -> float:
        if not _NUMBER.fullmatch(cell):
            raise ValueError("is no number; correct it, or list it under `missing`")
        if unclear and _THOUSANDS.fullmatch(cell):
            raise ValueError("is a fraction or thousands; say `decimal: ','` or `'.'`")
        if {".", ","} - {mark} & set(cell):
            raise ValueError(f"has not the decimal mark {mark!r} of the other numbers; mend it")
        return float(cell.replace(",", "."))

    return number


def same(text: str) -> str:
    """By what labels and codes are compared: case does not count, and 1.0 is 1."""
    return re.sub(r"^([+-]?\d+)[.,]0+$", r"\1", " ".join(text.split())).casefold()
