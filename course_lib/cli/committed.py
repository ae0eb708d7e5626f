"""`course reference` and `course figures`: the committed results, and the figures drawn from them.

Reference runs are ordinary runs in folders of their own under `build/reference`, one a seed, each
kept when it is finished; what they measured is collected in `data/results`.
"""

import json
import shutil
import statistics
from dataclasses import asdict
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from course_lib import ROOT, CourseError
from course_lib.cli.execute import execute
from course_lib.cli.notebooks import OWN, Notebook, find_notebooks
from course_lib.cli.run import code_hash, make_plan, notebook_key
from course_lib.core.cache import NOTE, RUN, build_dir, read_json, write_text
from course_lib.core.machine import describe
from course_lib.kit.claims import CLAIMS, load_claims
from course_lib.kit.course import committed_course
from course_lib.kit.results import committed

FIRST_LIVE_SEED = 101  # the student's own run has seed 0 and must not be part of its band


def make_reference(numbers: list[str] | None, effort: str, runs: int) -> list[Path]:
    """All reference runs of the notebooks and what is collected from them.

    A full run holds its seeds itself; live runs have one each.
    """
    seeds = [0] if effort == "full" else range(FIRST_LIVE_SEED, FIRST_LIVE_SEED + runs)
    written = []
    for notebook in find_notebooks(numbers):
        folders = [run_reference(notebook, effort, seed) for seed in seeds]
        written += collect(notebook, effort, folders)
        written.append(merge_claims(notebook, effort, folders))
    return written


def run_reference(notebook: Notebook, effort: str, seed: int) -> Path:
    """One reference run, unless it is finished; its folder holds results, claims and a note."""
    plan = make_plan([notebook.number], effort=effort, seed=seed)
    folder = build_dir() / "reference" / notebook.number / f"{effort}-{seed}"
    note, key = folder / NOTE, notebook_key(plan, notebook)
    if note.exists() and read_json(note).get("key") == key:
        print(f"{notebook.path.stem} {effort} seed {seed}: done before")
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier version left
    target, env = folder / notebook.path.name, plan.env | {RUN: str(folder)}
    execute(notebook.path, target, plan.parameters[notebook.number], env)
    run = read_json(note)
    write_text(note, json.dumps(run | {"key": key}, indent=1))
    print(f"{notebook.path.stem} {effort} seed {seed}: {run['seconds']:.0f} s")
    return folder


def collect(notebook: Notebook, effort: str, folders: list[Path]) -> list[Path]:
    """Write `<nb>_<effort>.csv` and its provenance as .json; returns the two paths."""
    rows = pd.concat([committed(notebook.number, effort, f / "results") for f in folders])
    rows = rows.infer_objects()  # x as numbers where all are
    table = ROOT / "data" / "results" / f"{notebook.number}_{effort}.csv"
    write_text(table, rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    for name in (f"{notebook.number}_items.npz", f"{notebook.number}_texts.json"):
        for path in (f / "results" / name for f in folders):
            if path.exists():  # a full run's, of one folder
                shutil.copyfile(path, table.with_name(name))
    notes = [read_json(folder / NOTE) for folder in folders]
    provenance = {
        "notebook": notebook.number,
        "effort": effort,
        "profile": "pocket",
        "parameters": {k: v for k, v in notes[0]["parameters"].items() if k != "SEED"},
        "seeds": sorted({int(seed) for seed in rows["seed"]}),
        "runs": len(notes),
        "seconds": round(statistics.median(n["seconds"] for n in notes), 1),
        "peak_memory_gb": max(n["peak_memory_gb"] for n in notes),
        "machine": describe(),
        "code": code_hash(),
    }
    write_text(table.with_suffix(".json"), json.dumps(provenance, indent=1) + "\n")
    return [table, table.with_suffix(".json")]


def merge_claims(notebook: Notebook, effort: str, folders: list[Path]) -> Path:
    """The notebook's verdicts into claims.json (full) or claims_live.json.

    A live row carries the median effect, the range of the intervals and `share`, the share of runs
    in which it held; `holds` is True only if it held in all, False only if it was refuted in all.
    """
    path = ROOT / "data" / "results" / ("claims.json" if effort == "full" else "claims_live.json")
    old = read_json(path) if path.exists() else []
    rows = [row for row in old if row["notebook"] != notebook.number]
    runs = [load_claims(folder / CLAIMS) for folder in folders]
    for same in zip_longest(*runs):
        if len({claim and claim.id for claim in same}) > 1:
            raise CourseError(
                f"The runs of {notebook.path.name} claim different things; "
                "delete build/reference and run `course reference` again."
            )
        holds = [claim.holds for claim in same]
        row = asdict(same[0]) | {
            "effect": statistics.median(claim.effect for claim in same),
            "low": min(claim.low for claim in same),
            "high": max(claim.high for claim in same),
            "seeds": sorted({seed for claim in same for seed in claim.seeds}),
            "holds": holds[0] if len(set(holds)) == 1 else None,
        }
        if effort == "live":
            row["share"] = holds.count(True) / len(holds)
        rows.append(row)
    rows.sort(key=lambda row: (row["notebook"], row["id"]))
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return path


def redraw(notebook: Notebook) -> None:
    """Draw a notebook's figures from committed results: the functions that the notebook calls."""
    results = ROOT / "data" / "results"
    efforts = [e for e in ("full", "live") if (results / f"{notebook.number}_{e}.csv").exists()]
    if not efforts:
        print(f"{notebook.path.stem}: no committed results yet; make them with `course reference`")
        return
    module = import_module(f"course_lib.experiments.nb{notebook.number}")
    knobs = {k.lower(): v for k, v in notebook.parameters.items() if k not in OWN}
    course = committed_course(notebook.number, efforts[0], knobs)
    for figure in module.FIGURES:
        figure(course)
    print(
        f"{notebook.path.stem}: {len(module.FIGURES)} figures drawn from the {efforts[0]} results"
    )
