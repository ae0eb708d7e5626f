"""`course run`: check everything, run what is not done, keep what is finished, sum up.

A notebook is done when it was executed from the same source, with the same parameters, by the same
library and data: then it is not run again unless `fresh`.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from course_lib import ROOT, CourseError, check_checkout
from course_lib.cache import build_dir, file_hash, write_text
from course_lib.checks import check_choice, check_value
from course_lib.execute import execute, stop_all
from course_lib.notebooks import Notebook, find_notebooks, split_settings
from course_lib.offline import OFFLINE_ENV
from course_lib.profiles import EFFORTS, apply_overrides, check_machine, load_profile


@dataclass(frozen=True)
class Plan:
    """A checked run: nothing in it can be a typing mistake any more."""

    notebooks: list[Notebook]
    profile: str
    effort: str
    seed: int
    parameters: dict[str, dict[str, Any]]  # number -> name -> value
    overrides: dict[str, str]
    jobs: int = 1

    @property
    def folder(self) -> Path:
        return build_dir() / "notebooks" / f"{self.profile}-{self.effort}"

    @property
    def is_default(self) -> bool:
        """Whether the run can be held against the committed results."""
        return self.profile == "pocket" and not self.overrides and not any(self.parameters.values())


@dataclass
class Outcome:
    """What one notebook did."""

    number: str
    key: str = ""
    seconds: float = 0.0
    peak_memory_gb: float | None = None
    claims: list[dict] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    error: str = ""
    reused: bool = False


def make_plan(
    numbers: list[str] | None = None,
    profile: str = "pocket",
    effort: str = "live",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    jobs: int = 1,
) -> Plan:
    """Check every parameter of a run before anything starts.

    Raises:
        CourseError: unknown notebook, name or value, incomplete model folder, or a machine that
            cannot run the profile.
    """
    check_checkout()
    check_choice("--effort", effort, EFFORTS)
    check_value("--seed", seed, (0, 2**31 - 1), 0)
    check_value("--jobs", jobs, (1, 64), 1)
    described = load_profile(profile)
    notebooks = find_notebooks(numbers)
    parameters, overrides = split_settings(notebooks, settings or {})
    check_machine(apply_overrides(described, overrides))
    # A relative path means one from where the user stands, not from the notebook's folder.
    overrides = {k: os.path.abspath(v) if os.path.isdir(v) else v for k, v in overrides.items()}
    return Plan(notebooks, profile, effort, seed, parameters, overrides, jobs)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the output folder; a second run says so at once instead of mixing its files in."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "run.lock"), folder / "run.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "?"
        raise CourseError(
            f"Another `course run` (process {who}) is writing to {folder}; wait until it ends, or "
            "stop it with Ctrl-C where it runs."
        ) from None
    try:
        write_text(owner, str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@cache
def code_hash() -> str:
    """Hash of everything but the notebook that a result depends on: library, world, models."""
    digest = hashlib.sha256()
    for pattern in ("course_lib/**/*.py", "data/world/**/*.yaml", "data/profiles/*.yaml"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    for path in sorted(ROOT.glob("data/models/*/*.safetensors")):
        digest.update(file_hash(path).encode())
    return digest.hexdigest()[:16]


def notebook_key(plan: Plan, notebook: Notebook) -> str:
    """Hash of all that decides what a run of this notebook gives; its saved outputs do not."""
    import nbformat

    cells = nbformat.read(notebook.path, as_version=4).cells
    source = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells]
    parts = [source, kernel_parameters(plan, notebook), plan.overrides, code_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def kernel_parameters(plan: Plan, notebook: Notebook) -> dict[str, Any]:
    """What papermill injects, of the names that the notebook has."""
    own = {"PROFILE": plan.profile, "EFFORT": plan.effort, "SEED": plan.seed}
    own = {name: value for name, value in own.items() if name in notebook.parameters}
    return own | plan.parameters[notebook.number]


def kernel_env(plan: Plan) -> dict[str, str]:
    """Environment of the kernels: replaced parts of the profile, shared cores, no network."""
    env = {"COURSE_SET": json.dumps(plan.overrides)} if plan.overrides else {}
    if plan.profile == "pocket":
        env |= OFFLINE_ENV
    if plan.jobs > 1:  # spinning threads of several processes would take each other's cores
        share = max(1, (os.cpu_count() or 1) // plan.jobs)
        env |= {"OMP_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
    return env


def load_outcome(plan: Plan, notebook: Notebook) -> Outcome | None:
    """The outcome of an earlier run, if the notebook is done."""
    path = plan.folder / f"{notebook.path.stem}.json"
    if not (path.exists() and (plan.folder / notebook.path.name).exists()):
        return None
    try:
        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
    return outcome if outcome.key == notebook_key(plan, notebook) else None


def run_one(plan: Plan, notebook: Notebook, on_cell) -> Outcome:
    """Run one notebook; a failure becomes the outcome's `error`."""
    path = plan.folder / f"{notebook.path.stem}.json"
    path.unlink(missing_ok=True)
    outcome = Outcome(notebook.number, notebook_key(plan, notebook))
    forget_claims(plan, notebook)
    note = build_dir() / "runs" / f"{notebook.number}.json"
    note.unlink(missing_ok=True)
    began, start = time.time(), time.perf_counter()
    try:
        execute(
            notebook.path,
            plan.folder / notebook.path.name,
            kernel_parameters(plan, notebook),
            kernel_env(plan),
            on_cell,
        )
    except CourseError as error:
        outcome.error = str(error)
    outcome.seconds = round(time.perf_counter() - start, 1)
    if outcome.error:
        return outcome
    if note.exists():
        outcome.peak_memory_gb = json.loads(note.read_text(encoding="utf-8"))["peak_memory_gb"]
    outcome.claims = [row for row in read_claims() if _is_mine(row, plan, notebook)]
    outcome.figures = [str(p) for p in figures_since(plan, notebook, began)]
    write_text(path, json.dumps(asdict(outcome), indent=1))
    return outcome


def read_claims(path: Path | None = None) -> list[dict]:
    """Rows of a claims file, none where there is no file."""
    path = path or build_dir() / "claims.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _is_mine(row: dict, plan: Plan, notebook: Notebook) -> bool:
    mine = (plan.profile, plan.effort, notebook.number)
    return (row["profile"], row["effort"], row["notebook"]) == mine


def forget_claims(plan: Plan, notebook: Notebook) -> None:
    """Drop what an earlier version of the notebook claimed."""
    path = build_dir() / "claims.json"
    if path.exists():
        with FileLock(path.with_name(path.name + ".lock")):
            rows = [row for row in read_claims() if not _is_mine(row, plan, notebook)]
            write_text(path, json.dumps(rows, indent=1, ensure_ascii=False))


def figures_since(plan: Plan, notebook: Notebook, began: float) -> list[Path]:
    """Figures of this notebook that were written since `began` (seconds since the epoch)."""
    folder = build_dir() / "figures" / plan.profile
    found = sorted(folder.glob(f"{notebook.number}_*.png"))
    return [p for p in found if p.stat().st_mtime >= began - 2]  # coarse clocks of file systems


def run_plan(plan: Plan, progress, fresh: bool = False) -> list[Outcome]:
    """Run the plan's notebooks, `plan.jobs` at once; `progress` is told of every step.

    Raises:
        KeyboardInterrupt: after the running kernels were ended; finished notebooks are kept.
    """
    done: dict[str, Outcome] = {}
    todo = []
    for notebook in plan.notebooks:
        earlier = None if fresh else load_outcome(plan, notebook)
        if earlier:
            earlier.reused = True
            done[notebook.number] = earlier
            progress.reused(notebook, earlier)
        else:
            todo.append(notebook)
    stop = threading.Event()

    def work(notebook: Notebook) -> Outcome:
        if stop.is_set():
            return Outcome(notebook.number, error="not started")
        progress.begin(notebook)
        outcome = run_one(plan, notebook, lambda at, n: progress.cell(notebook, at, n))
        if not stop.is_set():
            progress.end(notebook, outcome)
        return outcome

    with ThreadPoolExecutor(plan.jobs) as pool:
        futures = [pool.submit(work, notebook) for notebook in todo]
        try:
            while wait(futures, timeout=0.2).not_done:
                progress.tick()
        except KeyboardInterrupt:
            stop.set()
            stop_all()
            raise
    for future in futures:
        outcome = future.result()
        done[outcome.number] = outcome
    return [done[notebook.number] for notebook in plan.notebooks]
