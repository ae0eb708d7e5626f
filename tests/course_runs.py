"""How the tests run the course: as a user does, by its command, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
COURSE = [sys.executable, "-c", "from course_lib.cli.main import main; main()"]


def real_files(part: str) -> Path:
    """A part of `COURSE_TEST_DATA`, a folder of real `models/` and `data/`; else the test skips."""
    folder = os.environ.get("COURSE_TEST_DATA")
    if not folder:
        pytest.skip("COURSE_TEST_DATA is not set: a folder with real models/ and data/")
    if not (Path(folder) / part).is_dir():
        pytest.skip(f"COURSE_TEST_DATA has no folder {part}")
    return Path(folder).resolve() / part


def environment(build: Path, **more: str) -> dict[str, str]:
    """The process's environment with `build` in place of the checkout's build folder.

    One thread, as `course run` gives each of several notebooks: the same arithmetic everywhere.
    """
    one = {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return {**os.environ, **one, "COURSE_BUILD": str(build), **more}


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
    """The claims by id that all runs in `build` left, or the one run whose folder it is."""
    files = sorted(build.rglob("claims.json"))
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    return {row["id"]: row for row in rows}
