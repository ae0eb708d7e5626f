"""`course run`: check everything, run what is not done, keep what is finished.

A notebook is done when it was executed from the same source, with the same parameters, by the same
library and data: then it is not run again unless `fresh`.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from course_lib import ROOT, CourseError, check_checkout
from course_lib.cli.execute import end_kernels, execute
from course_lib.cli.notebooks import Notebook, find_notebooks, split_settings
from course_lib.core.cache import (
    NOTE,
    RUN,
    build_dir,
    content_hash,
    file_hash,
    read_json,
    stage_key,
    write_text,
)
from course_lib.core.checks import check_choice, check_value
from course_lib.core.offline import OFFLINE_ENV, available_memory_gb, silence
from course_lib.inputs.profiles import (
    EFFORTS,
    Profile,
    absolute,
    apply_overrides,
    check_machine,
    load_profile,
)
from course_lib.kit.claims import CLAIMS, load_claims

OUTCOME = "outcome.json"
AFTER = {"04": "03", "05": "04"}  # notebooks that find in the cache what another one trains


@dataclass(frozen=True)
class Plan:
    """A checked run: nothing in it can be a typing mistake any more."""

    notebooks: list[Notebook]
    profile: str
    effort: str
    seed: int
    changed: dict[str, Any]  # settings other than the defaults
    parameters: dict[str, dict[str, Any]]  # number -> what papermill injects
    env: dict[str, str]  # of the kernels
    inputs: dict[str, str]  # part of the profile that is replaced -> hash of its content
    jobs: int

    @property
    def folder(self) -> Path:
        return build_dir() / "runs" / f"{self.profile}-{self.effort}"

    def place(self, notebook: Notebook) -> Path:
        """The folder of this notebook's run, by its parameters: all that it leaves lies there."""
        key = stage_key("", self.parameters[notebook.number], [self.inputs], "")[:8]
        return self.folder / f"{notebook.path.stem}-{key}"

    @property
    def is_default(self) -> bool:
        """Whether the run can be held against the committed results."""
        return self.profile == "pocket" and not self.changed


@dataclass
class Outcome:
    """What one notebook did."""

    number: str  # "01"
    folder: str  # where all that it left lies
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
    jobs: int | None = None,
) -> Plan:
    """Check every parameter of a run before anything starts.

    Raises:
        CourseError: unknown notebook, name or value, incomplete model folder, or a machine that
            cannot run the profile.
    """
    check_checkout()
    check_choice("--effort", effort, EFFORTS)
    check_value("--seed", seed, (0, 2**31 - 1), 0)
    described = load_profile(profile)
    notebooks = find_notebooks(numbers)
    own, overrides = split_settings(notebooks, settings or {})
    files = {}  # of a notebook's own parameters, such as a survey: they count by their content
    for values in own.values():
        files |= {k: os.path.abspath(v) for k, v in values.items() if v and os.path.isfile(str(v))}
        values |= {name: file for name, file in files.items() if name in values}
    if {"SURVEY", "CODEBOOK"} <= set(own.get("10", {})):  # all that is wrong is said at once
        from course_lib.inputs.survey import load_survey

        load_survey(own["10"]["SURVEY"], own["10"]["CODEBOOK"])
    silence()
    described = apply_overrides(described, overrides)
    check_machine(described)
    jobs = jobs_for(described, len(notebooks)) if jobs is None else jobs
    check_value("--jobs", jobs, (1, 64), 1)
    overrides = {
        name: absolute(value) if name.endswith(("_model", "_data")) else value
        for name, value in overrides.items()
    }
    changed = overrides | {name: v for values in own.values() for name, v in values.items()}
    shared = {"PROFILE": profile, "EFFORT": effort, "SEED": seed}
    parameters = {number: shared | values for number, values in own.items()}
    env = {"COURSE_SET": json.dumps(overrides)} if overrides else {}
    if profile == "pocket":
        env |= OFFLINE_ENV
    env |= threads_for(min(jobs, len(notebooks)))
    inputs = {name: content_hash(value) for name, value in (overrides | files).items()}
    return Plan(notebooks, profile, effort, seed, changed, parameters, env, inputs, jobs)


def jobs_for(profile: Profile, num_notebooks: int) -> int:
    """How many notebooks to run at once: one a core, as far as memory goes; on a GPU one."""
    if profile.device != "cpu":
        return 1
    most = int(available_memory_gb() / profile.memory_gb)
    return max(1, min(os.cpu_count() or 1, most, num_notebooks))


def threads_for(jobs: int) -> dict[str, str]:
    """The kernels' threads: one each where several notebooks run at once, else all cores.

    Two small matrix products in two processes are faster than each in two threads. A thread that
    waits for another sleeps: spinning, it takes the core of whatever else is busy, and a training
    beside another program gets ten times slower. What the user has set stays.
    """
    wanted = {"OMP_WAIT_POLICY": "PASSIVE"} | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the output folder; a second run says so at once instead of mixing its files in."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "run.pid"
    try:
        with FileLock(folder / "run.lock", timeout=0):
            write_text(owner, str(os.getpid()))
            yield
    except Timeout:
        raise CourseError(
            f"Another `course run` (process {owner.read_text(encoding='utf-8')}) is writing to "
            f"{folder}; wait until it ends, or stop it with Ctrl-C where it runs."
        ) from None


@cache
def code_hash() -> str:
    """Hash of everything but the notebook that a result depends on: library, world, models."""
    digest = hashlib.sha256()
    for pattern in (
        "course_lib/**/*.py",
        "data/world/**/*.yaml",
        "data/profiles/*.yaml",
        "data/models/*/*.safetensors",
        "data/models/*/*.json*",
        "data/models/*/*.jinja",
    ):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(file_hash(path).encode())
    return digest.hexdigest()[:16]


def notebook_key(plan: Plan, notebook: Notebook) -> str:
    """Hash of all that decides what a run of this notebook gives; its saved outputs do not."""
    cells = nbformat.read(notebook.path, as_version=4).cells
    source = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells]
    parts = [source, plan.parameters[notebook.number], plan.inputs, code_hash()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_outcome(plan: Plan, notebook: Notebook) -> Outcome | None:
    """The outcome of an earlier run, if the notebook is done and what it left is still there."""
    place = plan.place(notebook)
    try:
        outcome = Outcome(**read_json(place / OUTCOME) | {"reused": True})
    except (OSError, ValueError, TypeError):  # none, or damaged: made anew
        return None
    left = [place / notebook.path.name, *map(Path, outcome.figures)]
    done = outcome.key == notebook_key(plan, notebook) and all(path.exists() for path in left)
    return outcome if done else None


def run_one(plan: Plan, notebook: Notebook, bars: Progress) -> Outcome:
    """Run one notebook, shown as a line of `bars`; a failure becomes the outcome's `error`."""
    place = plan.place(notebook)
    shutil.rmtree(place, ignore_errors=True)  # what an earlier version left
    expected = _expected(plan, notebook)
    if not bars.console.is_terminal:
        bars.console.print(f"{notebook.path.stem}: started {expected}".rstrip())
    task = bars.add_task(notebook.path.stem, total=1, expected=expected)

    def on_cell(begun: int, total: int) -> None:
        bars.update(task, completed=begun, total=total)

    outcome = Outcome(notebook.number, str(place), notebook_key(plan, notebook))
    start, env = time.perf_counter(), plan.env | {RUN: str(place)}
    try:
        parameters = plan.parameters[notebook.number]
        execute(notebook.path, place / notebook.path.name, parameters, env, on_cell)
        outcome.claims = [asdict(claim) for claim in load_claims(place / CLAIMS)]
        # One that finished may have nothing to claim: every claim of 08 needs a second model.
        if not outcome.claims and not (place / NOTE).exists():
            raise CourseError(
                f"{notebook.path.name} ran to its end and left no claims in {place}; it must call "
                "`setup` and `claim`, as the committed notebook does."
            )
    except CourseError as error:
        outcome.error = str(error)
    bars.remove_task(task)
    outcome.seconds = round(time.perf_counter() - start, 1)
    if outcome.error:
        return outcome
    if (place / NOTE).exists():
        outcome.peak_memory_gb = read_json(place / NOTE)["peak_memory_gb"]
    outcome.figures = [str(path) for path in sorted((place / "figures").glob("*.png"))]
    write_text(place / OUTCOME, json.dumps(asdict(outcome), indent=1))
    return outcome


def _expected(plan: Plan, notebook: Notebook) -> str:
    """The seconds that the committed runs took, where there are any for this profile and effort."""
    path = ROOT / "data" / "results" / f"{notebook.number}_{plan.effort}.json"
    if plan.profile != "pocket" or not path.exists():
        return ""
    return f"of about {read_json(path)['seconds']:.0f} s"


def next_notebook(todo: list[Notebook], running: set[str]) -> Notebook:
    """Of the notebooks to do the one to start: first those that others wait for.

    One whose models another notebook is making just now would only wait for them: it comes later,
    unless nothing else is left.
    """

    def followers(number: str) -> int:
        return sum(1 + followers(other) for other, first in AFTER.items() if first == number)

    free = [notebook for notebook in todo if AFTER.get(notebook.number) not in running]
    return max(free or todo, key=lambda notebook: followers(notebook.number))


def run_plan(plan: Plan, console: Console, fresh: bool = False) -> list[Outcome]:
    """Run the plan's notebooks, `plan.jobs` at once, with a line for each on `console`.

    Raises:
        KeyboardInterrupt: after the running kernels were ended; finished notebooks are kept.
    """
    outcomes: dict[str, Outcome] = {}
    if not fresh:
        earlier = [load_outcome(plan, notebook) for notebook in plan.notebooks]
        outcomes = {outcome.number: outcome for outcome in earlier if outcome}
    names = {notebook.number: notebook.path.stem for notebook in plan.notebooks}
    for number, outcome in outcomes.items():
        console.print(f"{names[number]}: done before ({outcome.seconds:.0f} s); --fresh redoes")
    todo = [notebook for notebook in plan.notebooks if notebook.number not in outcomes]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f} cells"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[expected]}"),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bars, ThreadPoolExecutor(plan.jobs) as pool:
        running: dict[Future, str] = {}
        try:
            while todo or running:
                while todo and len(running) < plan.jobs:
                    numbers = set(running.values())
                    notebook = todo[0] if plan.jobs == 1 else next_notebook(todo, numbers)
                    todo.remove(notebook)
                    running[pool.submit(run_one, plan, notebook, bars)] = notebook.number
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    outcome = future.result()
                    outcomes[outcome.number] = outcome
                    words = f"{names[outcome.number]}: done in {outcome.seconds:.0f} s"
                    style = "bold" if outcome.error else None
                    console.print(outcome.error or words, markup=False, style=style)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in running):
                end_kernels()
                time.sleep(0.2)
            raise
    return [outcomes[notebook.number] for notebook in plan.notebooks]
