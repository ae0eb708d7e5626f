"""Tables that a notebook shows as HTML and a terminal as text; everything in them is escaped."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTE = ""  # set by `setup`: what stands in for the base model


def noted(text: str) -> str:
    """`text`, with `NOTE` behind it where it names the base model."""
    return f"{text} ({NOTE})" if NOTE and re.search(r"\bbase\b", text) else text


@dataclass(repr=False)
class Table:
    """A table that a notebook shows as HTML and a terminal as text; its cells are already HTML."""

    head: list[str]
    cells: list[list[str]]
    text: str

    def __repr__(self) -> str:
        return noted(self.text)

    def _repr_html_(self) -> str:
        style = ' style="text-align:left; vertical-align:top; white-space:pre-wrap"'
        head = "".join(f'<th scope="col"{style}>{html.escape(name)}</th>' for name in self.head)
        body = "\n".join(
            "<tr>" + "".join(f"<td{style}>{cell}</td>" for cell in row) + "</tr>"
            for row in self.cells
        )
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        return table if noted(self.text) == self.text else f"{table}\n<p>{html.escape(NOTE)}</p>"


def _shown(value: Any) -> str:
    """A value as printed in tables: at most 3 decimals, so that two runs print the same."""
    return f"{value:.3f}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def side_by_side(rows: Iterable[Mapping[str, Any]], columns: list[str] | None = None) -> Table:
    """Prompts and answers as a table: one row a mapping, one column a key, everything escaped."""
    rows = list(rows)
    columns = columns or (list(rows[0]) if rows else [])
    shown = [{name: _shown(row.get(name, "")) for name in columns} for row in rows]
    texts = ["\n".join(f"{name}: {cell}" for name, cell in row.items()) for row in shown]
    cells = [[html.escape(cell) for cell in row.values()] for row in shown]
    return Table(columns, cells, "\n\n".join(texts))


def show_settings(config: Any) -> Table:
    """The fields of a config dataclass, with the comments that stand beside them in its source."""
    meaning = dict(re.findall(r"^    (\w+):.*?  # (.+)$", inspect.getsource(type(config)), re.M))
    rows = [(name, repr(value), meaning.get(name, "")) for name, value in vars(config).items()]
    head = ("setting", "value", "meaning")
    return side_by_side(dict(zip(head, row, strict=True)) for row in rows)


def show_guesses(guesses: Mapping[str, Any], came: Sequence[Any]) -> Table:
    """What a student guessed beside what came, in the same order."""
    rows = zip(guesses.items(), came, strict=True)
    return side_by_side(
        {"": asked, "your guess": "" if guess is None else guess, "what came": str(value)}
        for (asked, guess), value in rows
    )
