"""Tables that a notebook shows as HTML and a terminal as text; everything in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(repr=False)
class Table:
    """A table that a notebook shows as HTML and a terminal as text; its cells are already HTML."""

    head: list[str]
    cells: list[list[str]]
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        style = ' style="text-align:left; vertical-align:top; white-space:pre-wrap"'
        head = "".join(f'<th scope="col"{style}>{html.escape(name)}</th>' for name in self.head)
        body = "\n".join(
            "<tr>" + "".join(f"<td{style}>{cell}</td>" for cell in row) + "</tr>"
            for row in self.cells
        )
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


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
