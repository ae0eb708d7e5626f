"""Recorded results: one tidy CSV schema for live runs, full runs and what is committed."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from course_lib import ROOT, CourseError
from course_lib.core.cache import write_text

COLUMNS = ["notebook", "claim", "condition", "x", "seed", "measure", "value"]


class Results:
    """What a run of a notebook measured, as tidy rows (`COLUMNS`): the points of its figures.

    Adding a row again (a cell run twice) replaces it, so that an interactive session and a run
    from top to bottom hold the same rows.
    """

    def __init__(self, notebook: str, effort: str):
        self.notebook, self.effort = notebook, effort
        self._values: dict[tuple, float] = {}  # all columns but the last -> the last

    def add(
        self, claim: str, condition: str, x: float | str, seed: int, measure: str, value: float
    ) -> None:
        """Record one value, a plain number; raises ValueError if it is not finite."""
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{measure} of {condition} at x={x}, seed {seed} is {value}")
        # x as it was read or written: 8, 8.0 and "8" are one point
        self._values[self.notebook, claim, condition, _number(x), int(seed), measure] = value

    def frame(
        self, claim: str | None = None, measure: str | None = None, condition: str | None = None
    ) -> pd.DataFrame:
        """The rows with this claim, measure and condition (None: any), in the order of adding."""
        rows = [[*key, value] for key, value in self._values.items()]
        return select(pd.DataFrame(rows, columns=COLUMNS), claim, measure, condition)

    def load(self, rows: pd.DataFrame) -> None:
        """Add the rows of a frame, for example what `committed` gives."""
        for row in rows[COLUMNS[1:]].itertuples(index=False):
            self.add(*row)

    def save(self, folder: Path) -> Path:
        """Write `<notebook>_<effort>.csv` into `folder`."""
        path = folder / f"{self.notebook}_{self.effort}.csv"
        table = self.frame().to_csv(index=False, float_format="%.10g", lineterminator="\n")
        write_text(path, table)
        return path


def select(
    frame: pd.DataFrame,
    claim: str | None = None,
    measure: str | None = None,
    condition: str | None = None,
) -> pd.DataFrame:
    """The rows with this claim, measure and condition; x is numeric where all of it is numbers."""
    for name, wanted in (("claim", claim), ("measure", measure), ("condition", condition)):
        if wanted is not None:
            frame = frame[frame[name] == wanted]
    return frame.reset_index(drop=True).infer_objects()


def committed(notebook: str, effort: str = "full", folder: Path | None = None) -> pd.DataFrame:
    """The committed rows of a notebook; no rows where nothing has been committed yet.

    Raises `CourseError` if the file lacks a column.
    """
    path = (folder or ROOT / "data" / "results") / f"{notebook}_{effort}.csv"
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in COLUMNS:
        if name not in frame:
            raise CourseError(
                f"The results {path} lack the column {name!r} of {', '.join(COLUMNS)}; restore "
                "the file or make it again with `course reference`."
            )
    x = pd.Series(map(_number, frame["x"]), dtype=object)
    return frame.assign(x=x, seed=frame["seed"].astype(int), value=frame["value"].astype(float))


def _number(x: float | str) -> float | str:
    """A number where x is one, else its text (a model's size, say)."""
    try:
        return float(x)
    except ValueError:
        return str(x)
