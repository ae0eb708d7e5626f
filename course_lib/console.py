"""What `course run` shows in the terminal: one line a notebook while it runs, tables at the end."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from course_lib import ROOT
from course_lib.notebooks import Notebook
from course_lib.run import Outcome, Plan

console = Console(highlight=False, soft_wrap=True)


def expected_seconds(plan: Plan, notebook: Notebook) -> float | None:
    """Seconds that the committed runs took, where there are any for this profile and effort."""
    path = ROOT / "data" / "results" / f"{notebook.number}_{plan.effort}.json"
    if plan.profile != "pocket" or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("seconds")


class RunProgress:
    """A line per notebook: cell, elapsed, expected. Plain lines where there is no terminal."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("cell {task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[expected]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.tasks: dict[str, int] = {}

    def __enter__(self) -> "RunProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def reused(self, notebook: Notebook, outcome: Outcome) -> None:
        console.print(
            f"{notebook.path.stem}: done before ({outcome.seconds:.0f} s); --fresh redoes"
        )

    def begin(self, notebook: Notebook) -> None:
        usual = expected_seconds(self.plan, notebook)
        expected = f"of about {usual:.0f} s" if usual else ""
        if not console.is_terminal:
            console.print(f"{notebook.path.stem}: started {expected}".rstrip())
        self.tasks[notebook.number] = self.bars.add_task(
            notebook.path.stem, total=1, expected=expected
        )

    def cell(self, notebook: Notebook, at: int, total: int) -> None:
        self.bars.update(self.tasks[notebook.number], completed=at + 1, total=total)

    def end(self, notebook: Notebook, outcome: Outcome) -> None:
        self.bars.remove_task(self.tasks.pop(notebook.number))
        if outcome.error:
            console.print(outcome.error, markup=False, style="bold")
        else:
            console.print(f"{notebook.path.stem}: done in {outcome.seconds:.0f} s")

    def tick(self) -> None:
        """The clock of the bars runs by itself."""


def show_summary(plan: Plan, outcomes: list[Outcome], outside: list[str], refuted: list) -> None:
    """Claims, times and memory, figures, and what needs attention."""
    from course_lib.summary import as_claims

    claims = as_claims([row for outcome in outcomes for row in outcome.claims])
    if claims:
        table = Table(
            "claim", "statement", "effect [interval]", "target", "verdict", title="Claims"
        )
        for c in claims:
            effect = f"{c.effect:.3f} [{c.low:.3f}, {c.high:.3f}]"
            table.add_row(c.id, c.statement, effect, c.target, c.word)
        console.print(table)
    table = Table("notebook", "seconds", "peak memory", "claims", "figures", "state")
    for notebook, outcome in zip(plan.notebooks, outcomes, strict=True):
        peak = outcome.peak_memory_gb
        table.add_row(
            notebook.path.stem,
            f"{outcome.seconds:.0f}",
            "" if peak is None else f"{peak:.2f} GB",
            str(len(outcome.claims)),
            str(len(outcome.figures)),
            "failed" if outcome.error else "done before" if outcome.reused else "done",
        )
    console.print(table)
    for path in (p for outcome in outcomes for p in outcome.figures):
        console.print(f"figure {shorten(Path(path))}")
    for line in outside:
        console.print(f"outside its band: {line}", markup=False)
    for claim in refuted:
        console.print(
            f"Claim {claim.id} is refuted by this run, though the committed results say that it "
            f"holds: {claim.statement} ({claim.effect:.3f}, target {claim.target})",
            style="bold",
            markup=False,
        )


def shorten(path: Path) -> str:
    """A path inside the checkout relative to it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
