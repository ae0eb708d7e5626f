"""What several test files share: one live run of all notebooks, from an empty cache."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from course_runs import NOTEBOOKS, ROOT, claims, course, tail

# Small models are no faster with two threads, and much slower beside another busy process.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs notebooks; leave out with -m 'not slow'")


@dataclass(frozen=True)
class LiveRun:
    """`course run` as the README has it, into a build folder of the test's own."""

    build: Path
    output: str
    seconds: float
    claims: dict[str, dict]
    before: dict[str, str]


def tracked_state() -> dict[str, str]:
    """Hash of each file in the folders that a run must leave as they are."""
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("notebooks", "figures", "data")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and ".ipynb_checkpoints" not in path.parts
    }


@pytest.fixture(scope="session")
def live_run(tmp_path_factory) -> LiveRun:
    """All notebooks, pocket profile, live effort, from an empty cache: made once, used by many."""
    if not NOTEBOOKS:
        pytest.skip("there is no notebook in notebooks/")
    build = tmp_path_factory.mktemp("build")
    before, start = tracked_state(), time.perf_counter()
    process = course("run", build=build, timeout=600 * len(NOTEBOOKS))
    assert process.returncode == 0, f"`course run` failed:\n{tail(process)}"
    seconds = time.perf_counter() - start
    return LiveRun(build, process.stdout, seconds, claims(build), before)
