"""What several test files share: one live run of all notebooks, from an empty cache.

What each slow test shows that no other does:

live_run                  the README's first command: claims, figures, report, memory; it leaves the
                          checkout as it was, and measures every claim that is committed
executed_again            each notebook says the same again, from a warm cache
every kind of training    repeats bit by bit from an empty cache (SFT, reward model, PPO, DPO)
laptop                    all notebooks on Llama folders as a hub has them, a chat template with a
                          system message of its own, real data, people's preferences
gpu                       a notebook that samples and trains on Qwen3's architecture and template
a real pretrained model   a tokenizer and weights that are not of this course's making
SmolLM2                   a real model from the package index: its bytes, an answer, LoRA
JupyterLab                `course lab` in a browser: all cells run, figures show, the form answers
"""

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
