"""What a training loop hands back: one row of numbers per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


class History(list):
    """A list of dicts, one per step: `{"step": 3, "loss": 1.2, ...}`; columns may differ."""

    def append(self, row: dict | None = None, **metrics: float) -> None:
        """Add a row, given as a dict or as keywords."""
        super().append({**(row or {}), **metrics})

    def frame(self) -> pd.DataFrame:
        """All rows as a table, with NaN where a row lacks a column."""
        import pandas as pd

        return pd.DataFrame(list(self))

    def column(self, key: str) -> list[float]:
        """The values of `key`, of the rows that have it."""
        return [row[key] for row in self if key in row]

    def last(self, key: str, k: int = 10) -> float:
        """The mean of `key` over the last `k` rows that have it (NaN where none has)."""
        values = self.column(key)[-k:]
        return sum(values) / len(values) if values else float("nan")
