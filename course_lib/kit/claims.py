"""Claims and their verdicts: `holds` is computed from an interval and a target, never typed.

A verdict has three values: True (the whole interval is on the target's side), False (the whole
interval is on the other side) and None (undecided at this sample size). A target "computed" is a
measurement without a verdict.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from course_lib import ROOT, CourseError
from course_lib.core.cache import build_dir, write_text
from course_lib.core.stats import Interval, Rough, equivalent
from course_lib.kit.tables import Table

_TARGET = re.compile(r"(>=|<=|>|<|within)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
# Colour is never alone: each verdict has its words and its sign. The colours reach 4.5:1 on white.
_LOOK = {
    "holds": ("✔", "#00664b"),
    "does not hold here": ("✘", "#a33c00"),
    "undecided at this sample size": ("?", "#5a5a5a"),
    "measured": ("•", "#0059a3"),
}


@dataclass(frozen=True)
class Claim:
    """One row of claims.json; `target` as in `verdict`, `seeds` those of the numbers."""

    id: str
    statement: str
    source: str
    measure: str
    effect: float
    low: float
    high: float
    target: str
    holds: bool | None
    profile: str
    effort: str
    seeds: list[int]
    notebook: str
    items_fixed: bool = False  # its interval leaves out the luck of the items that its seeds share

    @property
    def word(self) -> str:
        """The verdict in words."""
        if self.target == "computed":
            return "measured"
        if self.holds is None:
            return "undecided at this sample size"
        return "holds" if self.holds else "does not hold here"

    @property
    def interval(self) -> Interval:
        return Interval(self.effect, self.low, self.high)

    def _repr_html_(self) -> str:
        return verdict_table([self])._repr_html_()

    def __repr__(self) -> str:
        return (
            f"{self.id} {self.word}: {self.statement}\n"
            f"    {self.measure}: {self.interval}, target {self.target}"
        )


def verdict(interval: Interval, target: str) -> bool | None:
    """True, False or None (undecided) for an interval and a target.

    Targets: ">= x", "> x", "<= x", "< x", "within x" (equivalence: the interval of a difference
    inside ±x), and "computed" (always None). A trend is an effect with its interval and "> 0".
    An interval that is `Rough` decides nothing.
    """
    if target == "computed":
        return None
    parts = _TARGET.fullmatch(target.strip())
    if parts is None:
        raise CourseError(
            f"The target {target!r} of a claim cannot be read; write '>= 0.9', '> 0', '<= 0.2', "
            "'< 0', 'within 0.05' or 'computed'."
        )
    relation, x = parts[1], float(parts[2])
    _, low, high = interval
    if not low <= high:  # also catches nan
        raise ValueError(f"an interval needs low <= high, got [{low}, {high}]")
    if isinstance(interval, Rough):
        return None
    if relation == "within":
        return equivalent(interval, x)
    if relation in ("<=", "<"):  # the mirror image of >= and >
        low, high, x = -high, -low, -x
    if relation in (">=", "<="):
        return True if low >= x else False if high < x else None
    return True if low > x else False if high <= x else None


def claim(
    course,
    id: str,
    statement: str,
    *,
    source: str,
    measure: str,
    interval: Interval | tuple[float, float, float] | float,
    target: str,
) -> Claim:
    """Decide a claim, record it in build/claims.json, and return it for display.

    Args:
        course: what `setup` returned; gives notebook, profile, effort and seeds.
        id: notebook and statement, with a letter where it is tested in parts ("1.1a").
        interval: estimate, low and high; a bare number is allowed where the target is "computed".
        target: see `verdict`.
    """
    if isinstance(interval, (int, float)):
        if target != "computed":
            raise CourseError(
                f"Claim {id} has the bare number {interval} as its interval, but the target "
                f"{target!r} needs (estimate, low, high); use a function of course_lib.stats."
            )
        interval = (interval, interval, interval)
    kind = Rough if isinstance(interval, Rough) else Interval
    interval = kind(*(float(value) for value in interval))
    row = Claim(
        id=id,
        statement=statement,
        source=source,
        measure=measure,
        effect=round(interval.estimate, 6),
        low=round(interval.low, 6),
        high=round(interval.high, 6),
        target=target,
        holds=verdict(interval, target),
        profile=course.profile.name,
        effort=course.effort,
        seeds=course.seeds,
        notebook=course.notebook,
    )
    _store(row, build_dir() / "claims.json")
    return row


def claim_rows(
    course, lines: Iterable[str], found: Mapping[str, Any], source: Mapping[str, str]
) -> Table:
    """Decide the claims of lines "id | statement | measure | target"; the table of the notebook.

    `found` has intervals, or numbers, by id; the lines that it lacks are named as not measured.
    `source` says who made the statement, by the id without its letter.
    """
    missing = []
    for line in lines:
        id, statement, measure, target = line.split(" | ")
        if id in found:
            words = {"source": source[id.rstrip(ascii_lowercase)], "measure": measure}
            claim(course, id, statement, interval=found[id], target=target, **words)
        else:
            missing.append(id)
    if missing:
        print("not in this run (more time, or a known truth, is needed):", ", ".join(missing))
    return claims_table(course.notebook)


def _key(row: Claim) -> tuple[str, str, str]:
    return row.id, row.profile, row.effort


def _order(row: Claim) -> tuple:
    """10.1 after 9.6 and 1.1b after 1.1a."""
    return [int(n) for n in re.findall(r"\d+", row.id)], row.id, row.profile, row.effort


def _store(row: Claim, path: Path) -> None:
    """Put `row` in the file in place of its predecessor; notebooks may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        rows = [old for old in load_claims(path) if _key(old) != _key(row)]
        table = [asdict(each) for each in sorted([*rows, row], key=_order)]
        write_text(path, json.dumps(table, indent=1, ensure_ascii=False) + "\n")


def load_claims(path: Path | None = None) -> list[Claim]:
    """The claims of a file (by default of this build), none if there is no such file.

    Fields that a claim does not have (the share of live runs in which it held) are passed over.
    Raises `CourseError` if the file is damaged.
    """
    path = path or build_dir() / "claims.json"
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[Claim]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise CourseError(
            f"The claims in {path} cannot be read ({error.errors()[0]['msg']}); delete the file "
            "and run again."
        ) from None


def claims_table(notebook: str) -> Table:
    """The claims of a notebook in this build as a table, live ones beside those of the full run."""
    return beside_full([row for row in load_claims() if row.notebook == notebook])


def beside_full(rows: Sequence[Claim]) -> Table:
    """Claims as a table; live ones of the pocket models beside those of the committed full run."""
    full = load_claims(ROOT / "data" / "results" / "claims.json")
    if not rows or any((row.profile, row.effort) != ("pocket", "live") for row in rows):
        full = []
    notebooks = {row.notebook for row in rows}
    return verdict_table(rows, [row for row in full if row.notebook in notebooks])


def verdict_table(rows: Sequence[Claim], full: Sequence[Claim] = ()) -> Table:
    """Claims as a table; with a column for a `full` run, and its rows that `rows` lack."""
    mine, theirs = ({row.id: row for row in each} for each in (rows, full))
    cells, lines = [], []
    for row in sorted({**theirs, **mine}.values(), key=_order):
        effect, words, text = "", "not in this run", f"{row.id} not in this run: {row.statement}"
        if row.id in mine:
            effect, words, text = str(row.interval), _marked(row), repr(row)
        cells.append([*map(html.escape, (row.id, row.statement, row.measure, effect, row.target))])
        cells[-1].append(words)
        if full:
            other = theirs.get(row.id)
            of = " (over seeds, items fixed)" if other and other.items_fixed else ""
            cells[-1].append(f"{other.interval}{of}<br>{_marked(other)}" if other else "")
            text += f"\n    full run: {other.interval}{of}, {other.word}" if other else ""
        lines.append(text)
    head = ["claim", "statement", "measure", "effect [interval]", "target", "verdict"]
    head += [f"full run, {len(full[0].seeds)} seeds"] if full else []
    return Table(head, cells, "\n".join(lines) or "no claims yet")


def _marked(row: Claim) -> str:
    sign, color = _LOOK[row.word]
    return f'<b style="color:{color}">{sign} {row.word}</b>'


def refuted(committed: Iterable[Claim], run: Iterable[Claim]) -> list[tuple[Claim, Claim]]:
    """Pairs (committed, run) of the same id, profile and effort that held and now do not.

    An undecided run refutes nothing, and a claim that is new or was never committed as holding
    cannot be refuted.
    """
    held = {_key(row): row for row in committed if row.holds}
    return [(held[_key(row)], row) for row in run if row.holds is False and _key(row) in held]
