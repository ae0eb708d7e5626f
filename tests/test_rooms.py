"""The rooms of the library: what each may import, held by import-linter's contracts."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from course_runs import ROOT

ROOMS = {"algorithms", "cli", "core", "exercises", "experiments"}
ROOMS |= {"inputs", "kit", "pretraining", "world"}
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
# For each contract a file and an import that breaks it: plain, inside of a function, for types.
PLAIN = "\nfrom course_lib.{} import {}\n"
LATE = "\n\ndef late():\n    from course_lib.{} import {}\n"
TYPES = "\nif TYPE_CHECKING:\n    from course_lib.{} import {}\n"
OFFENCES = {
    "no circles between rooms, or inside of one": ("algorithms/chat", LATE, "algorithms", "ppo"),
    "world imports no room": ("world/topics", PLAIN, "core", "checks"),
    "core imports no room": ("core/stats", LATE, "inputs", "profiles"),
    "algorithms import core.stats alone": ("algorithms/losses", PLAIN, "core", "cache"),
    "inputs import core, algorithms and world": ("inputs/rows", TYPES, "kit.course", "Course"),
    "kit imports inputs, core and algorithms": ("kit/tables", LATE, "world", "judge"),
    "exercises import kit, core and algorithms": ("exercises/nb01", PLAIN, "inputs", "models"),
    "pretraining imports neither exercises nor experiments": (
        "pretraining/cards",
        LATE,
        "experiments",
        "recipes",
    ),
    "experiments import all but pretraining and cli": (
        "experiments/nb01",
        TYPES,
        "pretraining.pretrain",
        "PretrainConfig",
    ),
}


def lint(folder):
    """The linter on the package in `folder`, by the contracts in its pyproject.toml."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONUTF8": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def test_every_file_is_in_a_room():
    package = ROOT / "course_lib"
    places = [path.relative_to(package) for path in package.rglob("*.py")]
    assert [str(path) for path in places if path.parts[0] not in ROOMS] == ["__init__.py"]


def test_every_room_keeps_to_what_it_may_import():
    found = lint(ROOT)
    assert found.returncode == 0 and "0 broken" in found.stdout, found.stdout


def test_there_is_an_offence_for_every_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert [rule["name"] for rule in project["tool"]["importlinter"]["contracts"]] == list(OFFENCES)


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_forbidden_import_is_noticed(contract, tmp_path):
    shutil.copytree(ROOT / "course_lib", tmp_path / "course_lib")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place, words, module, name = OFFENCES[contract]
    with (tmp_path / "course_lib" / f"{place}.py").open("a", encoding="utf-8") as file:
        file.write(words.format(module, name))
    found = lint(tmp_path)
    assert found.returncode == 1 and f"{contract} BROKEN" in found.stdout, found.stdout
