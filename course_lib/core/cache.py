"""Named stages: what a recipe makes is made once and kept under `build/cache`.

    key = sha256(name, config, content of the inputs, code)

The code is found, never listed: the function (or notebook cell) that holds the `with stage(...)`
block, the functions of its own module that it calls, and the modules of the course that all these
use, with what they import in turn; comments and docstrings do not count.

An entry is a folder with a manifest of checksums. It appears whole (made beside its place, then
renamed) or not at all; a damaged one is noticed and made again; a lock keeps two processes off it.
"""

import ast
import errno
import hashlib
import inspect
import json
import os
import shutil
import symtable
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from filelock import FileLock, Timeout

from course_lib import ROOT, CourseError

MANIFEST = "manifest.json"
RUN = "COURSE_RUN"  # the variable in which `course run` names the folder of a notebook's run
NOTE = "note.json"  # in that folder: seconds and peak memory
PACKAGE = "course_lib."
BASE = "base_model_name_or_path"  # in an adapter's config


def build_dir() -> Path:
    """Where a run writes: `build/` in the checkout, or the folder in `COURSE_BUILD`."""
    return Path(os.environ.get("COURSE_BUILD") or ROOT / "build")


def cache_dir() -> Path:
    """Where stages are kept: `cache/` in the build folder, or the folder in `COURSE_CACHE`."""
    return Path(os.environ.get("COURSE_CACHE") or build_dir() / "cache")


def figures_dir() -> Path:
    """Where figures are written: `figures/` in the checkout, or the folder in `COURSE_FIGURES`."""
    return Path(os.environ.get("COURSE_FIGURES") or ROOT / "figures")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def disk_error(error: Exception, path: Path) -> Exception:
    """A full disk as a sentence with a remedy; any other error as it is."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return CourseError(
            f"The disk is full: {path} could not be written; free some space (`course clean` "
            "removes what can be made again) and run the same command again."
        )
    return error


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Entry:
    """An entry of the cache: where it is, and whether it has yet to be made."""

    folder: Path
    new: bool

    def write(self, name: str, value: Any) -> None:
        """Write a JSON value into the entry."""
        write_text(self.folder / name, json.dumps(value))


def stage(name: str, config: Any, inputs: Iterable[Any] = ()) -> AbstractContextManager[Entry]:
    """`with stage(...) as entry:` make the entry inside the block if it is `new`.

    A new entry's `folder` is beside its place until the block ends; then it appears, whole.

    Args:
        name: readable part of the folder's name, e.g. "sft-m".
        config: the settings: a dataclass, or a dict of JSON values.
        inputs: what is read: model names (`pocket/m`), folders and files, which count by their
            content, and JSON values such as rows. A hub id counts by its name; give its revision.

    Raises:
        CourseError: the disk is full.
    """
    config = asdict(config) if is_dataclass(config) else dict(config)
    frame = sys._getframe(1)
    code = used_code(frame.f_code, frame.f_globals)
    return _stage(name, config, stage_key(name, config, inputs, code))


@contextmanager
def _stage(name: str, config: dict[str, Any], key: str) -> Iterator[Entry]:
    place = cache_dir() / f"{name}-{key}"
    with locked(place):
        if place.exists():
            damage = find_damage(place)
            if damage is None:
                yield Entry(place, False)
                return
            print(f"The cached stage {name!r} is damaged ({damage}); made again.", file=sys.stderr)
        with whole_folder(place) as folder:
            start, entry = time.perf_counter(), Entry(folder, True)
            yield entry
            seconds = round(time.perf_counter() - start, 1)
            manifest = {"name": name, "config": config, "seconds": seconds}
            manifest["files"] = _checksums(folder)
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1, default=str))
        entry.folder = place


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Keep other processes off an entry; one that has to wait says so."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        # to the terminal: it is no output of a notebook's cell
        print(f"Another process is making {entry.name}; waiting for it.", file=sys.__stderr__)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of `target` when the block is done, else leaves nothing."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
    try:
        part.mkdir()
        yield part
        if target.exists():
            shutil.rmtree(target)
        part.replace(target)
    except Exception as error:  # safetensors raises no OSError where the disk is full
        if (told := disk_error(error, target)) is error:
            raise
        raise told from error
    finally:  # also after Ctrl-C
        shutil.rmtree(part, ignore_errors=True)


def stage_key(name: str, config: dict, inputs: Iterable[Any], code: str) -> str:
    """The first 16 hexadecimal digits of the hash of all that a stage depends on."""
    parts = [name, config, [content_hash(item) for item in inputs], code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content_hash(item: Any) -> str:
    """Hash of a file's, a folder's or a JSON value's content; a hub id stands for itself.

    Of a stage's folder: of what was made, and not how long it took.
    """
    if not isinstance(item, str | Path):
        return hashlib.sha256(json.dumps(item, sort_keys=True, default=str).encode()).hexdigest()
    pocket = str(item).startswith("pocket/")
    path = ROOT / "data" / "models" / Path(item).name if pocket else Path(item)
    if os.path.isfile(path):  # unlike Path.is_file, no error where a text is too long for a path
        return file_hash(path)
    if not os.path.isdir(path):
        return str(item)
    if (path / MANIFEST).is_file():
        files = read_json(path / MANIFEST)["files"]
        files = {name: sha for name, sha in files.items() if not name.startswith("history")}
    else:
        files = _checksums(path)
    if (path / "adapter_config.json").is_file():  # the model is the adapter and what it lies on
        files |= {"": content_hash(read_json(path / "adapter_config.json")[BASE])}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


# ---- the code that a stage depends on ----------------------------------------------------------


def used_code(code: CodeType, names: Mapping[str, Any]) -> str:
    """What a function or notebook cell uses, without comments and docstrings; `names`: its globals.

    A local variable that bears the name of another function does not make it used.
    """
    module, name = names["__name__"], code.co_name
    own = _definitions(module) if module.startswith(PACKAGE) else {}
    parts, modules, todo = {}, set(), {name: own.get(name) or _parsed(_source(code))}
    while todo:
        name, tree = todo.popitem()
        parts[name] = ast.unparse(tree)
        for used in _global_names(parts[name]) - set(parts):
            if used in own:
                todo[used] = own[used]
            elif used in names:
                home = _home(names[used], used, module)
                if home.startswith(PACKAGE):
                    modules |= import_closure(home)
                elif home == module and inspect.isfunction(names[used]):  # of a notebook
                    todo[used] = _parsed(_source(names[used]))
    parts |= {module: _bare(source_of(module)) for module in modules}
    return "\n".join(f"{name}: {parts[name]}" for name in sorted(parts))


def _global_names(source: str) -> set[str]:
    """The names that code looks up outside of its functions."""
    tables, found = [symtable.symtable(source, "", "exec")], set()
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table is tables[0]):
                found.add(symbol.get_name())
    return found


def _source(thing: Any) -> str:
    """Of a function, or of a whole cell, of which `getsource` gives the first statement alone."""
    if getattr(thing, "co_name", "") == "<module>":
        return "".join(inspect.findsource(thing)[0])
    return textwrap.dedent(inspect.getsource(thing))


def _home(thing: Any, name: str, module: str) -> str:
    """The module that a name of `module` comes from; a constant's is where it was imported from."""
    if isinstance(thing, ModuleType):
        return thing.__name__
    imported = _imports(module).get(name) if module.startswith(PACKAGE) else None
    return imported or getattr(thing, "__module__", None) or ""


@cache
def import_closure(module: str) -> frozenset[str]:
    """A module of the course and all others that it imports, however far away."""
    found, todo = set(), {module}
    while todo:
        found.add(module := todo.pop())
        todo |= {home for home in _imports(module).values() if home.startswith(PACKAGE)} - found
    return frozenset(found)


@cache
def _imports(module: str) -> dict[str, str]:
    """Name -> module of every import of a module, also inside functions; not those for types."""
    found = {}
    for node in _code(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.startswith(PACKAGE) and _path(whole).is_file()
                found[alias.asname or alias.name] = whole if is_module else node.module
    return found


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _code(node)


def _definitions(module: str) -> Mapping[str, ast.AST]:
    """The functions, classes and constants of a module, by name."""
    found = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = (name for name in ast.walk(node) if isinstance(name, ast.Name))
            found |= {name.id: node for name in names if isinstance(name.ctx, ast.Store)}
    return found


def _tree(module: str) -> ast.Module:
    return _parsed(source_of(module))


@cache  # as it was imported: an edit counts from the next process on
def source_of(module: str) -> str:
    """The source of a module of the course."""
    return _path(module).read_text(encoding="utf-8")


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _parsed(source: str) -> ast.Module:
    """The tree of a source without docstrings; comments are gone anyway."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return tree


@cache  # a module stands behind many stages
def _bare(source: str) -> str:
    return ast.unparse(_parsed(source))


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def find_damage(entry: Path) -> str | None:
    """What is wrong with an entry in a few words, or None if every checksum holds."""
    try:
        files = read_json(entry / MANIFEST)["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    found = _checksums(entry)
    changed = [name for name, checksum in files.items() if found.get(name) != checksum]
    return f"{changed[0]} is missing or changed" if changed else None
