"""Named stages: what a notebook needs is made on demand, once, and kept under `build/cache`.

    key = sha256(name, config, source code that makes it, content of its inputs)

An entry is a folder with a manifest of checksums. It appears whole (made beside its place, then
renamed) or not at all; a damaged one is noticed and made again; a lock keeps two processes off it.
"""

import errno
import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout

from course_lib import ROOT, CourseError

MANIFEST = "manifest.json"


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


def disk_error(error: OSError, path: Path) -> Exception:
    """A full disk as a sentence with a remedy; any other error as it is."""
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return CourseError(
            f"The disk is full: {path} could not be written; free some space (`course clean` "
            "removes what can be made again) and run the same command again."
        )
    return error


def stage(
    name: str,
    config: dict[str, Any],
    make: Callable[[Path], None],
    code: Iterable[Callable | ModuleType] = (),
    inputs: Iterable[str | Path] = (),
) -> Path:
    """The folder of the stage `name`, made by `make(folder)` unless it is there and whole.

    Args:
        name: readable part of the folder's name, e.g. "sft-m".
        config: everything that the result depends on; JSON values.
        make: writes its files into the folder it is given.
        code: functions and modules whose source enters the key: an edit makes the stage anew.
        inputs: model names (`pocket/m`), folders or files whose content enters the key; a hub id
            enters by its name (put its revision into `config`).

    Raises:
        CourseError: the disk is full.
    """
    entry = cache_dir() / f"{name}-{stage_key(name, config, code, inputs)}"
    with locked(entry):
        if entry.exists():
            damage = find_damage(entry)
            if damage is None:
                return entry
            print(f"The cached stage {name!r} is damaged ({damage}); made again.", file=sys.stderr)
        with whole_folder(entry) as folder:
            start = time.perf_counter()
            make(folder)
            seconds = round(time.perf_counter() - start, 1)
            manifest = {"name": name, "config": config, "seconds": seconds}
            manifest["files"] = _checksums(folder)
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1, default=str))
    return entry


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Keep other processes off an entry; one that has to wait says so."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"Another process is making {entry.name}; waiting for it.", file=sys.stderr)
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
    except OSError as error:
        raise disk_error(error, target) from error
    finally:  # also after Ctrl-C
        shutil.rmtree(part, ignore_errors=True)


def stage_key(name: str, config: dict, code: Iterable, inputs: Iterable[str | Path]) -> str:
    """The first 16 hexadecimal digits of the hash of all that a stage depends on."""
    digest = hashlib.sha256(name.encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for item in code:
        digest.update(inspect.getsource(item).encode())
    for item in inputs:
        digest.update(content_hash(item).encode())
    return digest.hexdigest()[:16]


def content_hash(item: str | Path) -> str:
    """Hash of a file's or folder's content; the name itself where it is neither (a hub id)."""
    pocket = str(item).startswith("pocket/")
    path = ROOT / "data" / "models" / Path(item).name if pocket else Path(item)
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        return str(item)
    return hashlib.sha256(json.dumps(_checksums(path)).encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def find_damage(entry: Path) -> str | None:
    """What is wrong with an entry in a few words, or None if every checksum holds."""
    try:
        files = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    found = _checksums(entry)
    changed = [name for name, checksum in files.items() if found.get(name) != checksum]
    return f"{changed[0]} is missing or changed" if changed else None
