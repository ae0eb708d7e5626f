"""Reading the course's notebooks: which there are, their parameters and limits, where a cell is."""

import ast
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from course_lib import ROOT, CourseError
from course_lib.core.checks import check_value, suggest
from course_lib.inputs.profiles import ROLES, is_override

OWN = ("PROFILE", "EFFORT", "SEED")


@dataclass(frozen=True)
class Notebook:
    """A notebook before it runs."""

    number: str  # "01"
    path: Path
    title: str  # its first heading, a question
    minutes: str  # as its strip says, e.g. "2 min"
    parameters: dict[str, Any]  # name -> default
    limits: dict[str, tuple]  # name -> as in `check_value`


def notebooks_dir() -> Path:
    """`notebooks/` in the checkout, or the folder in `COURSE_NOTEBOOKS`."""
    return Path(os.environ.get("COURSE_NOTEBOOKS") or ROOT / "notebooks")


def find_notebooks(numbers: list[str] | None = None) -> list[Notebook]:
    """The notebooks of these numbers (`1`, `01`) or names (`01_name`, a path), or all, in order.

    A number means the course's own notebook, not a copy, whose name begins with the own one's.

    Raises:
        CourseError: a number or name that no notebook has, two notebooks of one number, or one that
            cannot be read.
    """
    files = {p.stem: p for p in notebooks_dir().glob("[0-9][0-9]_*.ipynb")}
    own: dict[str, Path] = {}
    for stem in sorted(files):  # a copy comes after its original
        first = own.setdefault(stem[:2], files[stem])
        if not stem.startswith(first.stem):
            raise CourseError(
                f"{first.name} and {stem}.ipynb in {notebooks_dir()} have one number; give one of "
                "them a name that does not begin with it."
            )
    if not own:
        raise CourseError(f"There are no notebooks in {notebooks_dir()}; restore the checkout.")
    wanted: dict[str, Path] = {}
    for given in numbers or own:
        path = own.get(given.zfill(2)) or files.get(Path(given).name.removesuffix(".ipynb"))
        elsewhere = path and os.path.dirname(given) and Path(given).resolve() != path.resolve()
        if not path or elsewhere or wanted.setdefault(path.name[:2], path) != path:
            raise CourseError(
                f"There is no notebook {given!r}, or another of its number is chosen; expected one "
                f"of {', '.join(own)}."
            )
    return [read_notebook(path) for path in wanted.values()]


def read_notebook(path: Path) -> Notebook:
    """Title, parameters and limits of a notebook, read without running it."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:
        raise CourseError(
            f"The notebook {path} cannot be read ({type(error).__name__}); restore it with git."
        ) from error
    parameters, limits = {}, {}
    with suppress(SyntaxError, ValueError):  # the run itself will show it, with its place
        for cell in cells:
            if "parameters" in tags(cell):
                parameters = _constants(ast.parse(cell.source))
            elif "setup" in tags(cell):
                limits = _limits(ast.parse(cell.source))
    intro = next((c.source for c in cells if c.cell_type == "markdown"), "")
    title = next((x.lstrip("# ") for x in intro.splitlines() if x.startswith("#")), path.stem)
    minutes = re.search(r"(\d[\d.–-]*)\s*min", intro)
    return Notebook(path.name[:2], path, title, minutes[0] if minutes else "", parameters, limits)


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Names and literal values that a cell assigns; None for what is no literal."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                found[node.targets[0].id] = None
    return found


def _limits(tree: ast.Module) -> dict[str, tuple]:
    """Limits that a cell gives to `setup`: `batch=(BATCH, 1, 64)` gives {"BATCH": (1, 64)}."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    knobs = [k.value for c in calls if ast.unparse(c.func) == "setup" for k in c.keywords]
    return {
        ast.unparse(knob.elts[0]): tuple(ast.literal_eval(limit) for limit in knob.elts[1:])
        for knob in knobs
        if isinstance(knob, ast.Tuple)
    }


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """`["beta=0.1", "base_model=PATH"]` as a dict of texts; `split_settings` makes them values."""
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise CourseError(f"--set got {text!r}; expected name=value, such as --set SEED=1.")
        if name.strip() in settings:
            raise CourseError(f"--set gives {name.strip()!r} twice; give it once.")
        settings[name.strip()] = value.strip()
    return settings


def _value(given: Any, default: Any) -> Any:
    """A text as a value of the default's kind, where it is one; `007` stays text for a text."""
    if isinstance(default, str) or not isinstance(given, str):
        return str(given) if isinstance(default, str) else given
    if given.lower() in ("true", "false"):
        return given.lower() == "true"
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given


def split_settings(
    notebooks: list[Notebook], settings: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Check all settings and say where each goes: ({number: parameters}, profile overrides).

    Raises:
        CourseError: a name that no chosen notebook has, or a value outside its type or limits.
    """
    parameters: dict[str, dict[str, Any]] = {nb.number: {} for nb in notebooks}
    overrides: dict[str, str] = {}
    known = sorted({name for nb in notebooks for name in nb.parameters if name not in OWN})
    for name, value in settings.items():
        upper = name.upper()
        if upper in OWN:
            raise CourseError(f"{upper} is not set with --set; use --{upper.lower()} {value}.")
        owners = [nb for nb in notebooks if upper in nb.parameters]
        if not owners and is_override(name.lower()):
            overrides[name.lower()] = str(value)
            continue
        if not owners:
            models = [f"{role}_model" for role in ROLES]
            hint = suggest(upper, known) or suggest(name.lower(), models)
            raise CourseError(
                f"The parameter {name!r} is unknown{hint}; the chosen notebooks have "
                f"{', '.join(known) or 'none'}; parts of the profile: {', '.join(models)}, "
                "instructions_data, exam_data, documents_data, preferences_data, device, dtype."
            )
        for nb in owners:
            default = nb.parameters[upper]
            shown = _value(value, default)
            check_value(upper, shown, nb.limits.get(upper, ()), default)
            parameters[nb.number][upper] = shown
    return parameters, overrides
