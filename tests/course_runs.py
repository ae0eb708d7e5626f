"""How the tests run the course: as a user does, by its command, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SHARED = ROOT.parent / "shared"
COURSE = [sys.executable, "-c", "from course_lib.cli import main; main()"]


def environment(build: Path, **more: str) -> dict[str, str]:
    """The process's environment with `build` in place of the checkout's build folder."""
    return {**os.environ, "COURSE_BUILD": str(build), "PYTHONUTF8": "1", **more}


def course(*arguments: str, build: Path, timeout: float = 900, **more: str):
    """Run `course ARGUMENTS` and return the finished process, its two streams in `stdout`."""
    return subprocess.run(
        [*COURSE, *arguments],
        env=environment(build, **more),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
    )


def tail(process: subprocess.CompletedProcess, lines: int = 40) -> str:
    """The end of what a process wrote, for an assertion's message."""
    return "\n".join(process.stdout.splitlines()[-lines:])


def executed(build: Path, notebook: Path) -> Path:
    """The executed copy of `notebook` in `build`."""
    found = sorted(build.rglob(notebook.name))
    found = [path for path in found if ".ipynb_checkpoints" not in path.parts]
    assert len(found) == 1, f"expected one executed {notebook.name} in {build}, found {found}"
    return found[0]


def claims(build: Path) -> dict[str, dict]:
    """The run's claims by id."""
    rows = json.loads((build / "claims.json").read_text(encoding="utf-8"))
    return {row["id"]: row for row in rows}
