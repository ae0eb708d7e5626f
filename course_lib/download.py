"""Real data sets: fetched once from the place that published them, checked, kept.

`COURSE_DATA_BASE` names another place (a folder, `file://` or `http(s)://`) that holds
`<set>/<file>`: a classroom's mirror, or a disk without a network.
"""

import csv
import io
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from course_lib import ROOT, CourseError
from course_lib.cache import disk_error, file_hash
from course_lib.checks import check_choice

RAW = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
GSM8K = f"{RAW}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
Report = Callable[[str, int, int], None]  # file, bytes so far, bytes in all (0: not known)


@dataclass(frozen=True)
class File:
    """A file of a set; a mirror may hold another version of it (`mirror_sha256`)."""

    name: str
    url: str = ""  # "" is in mirrors only
    sha256: str = ""
    mirror_sha256: str = ""  # "" is the published file; "-" is not in mirrors


@dataclass(frozen=True)
class DataSet:
    title: str
    licence: str
    rows: str
    files: tuple[File, ...]
    unpack: Callable[[Path], None] | None = None  # of what was published; a mirror is unpacked


def unpack_mmlu(folder: Path) -> None:
    """`data.tar` into dev.jsonl and test.jsonl: subject, question, choices, answer (0-3).

    Members are read one by one, nothing is extracted to a path that an archive names.
    """
    rows: dict[str, list[dict]] = {"dev": [], "test": []}
    with tarfile.open(folder / "data.tar") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            split = Path(member.name).parent.name
            if split not in rows or not member.name.endswith(".csv"):
                continue
            subject = Path(member.name).stem.removesuffix(f"_{split}")
            text = io.TextIOWrapper(archive.extractfile(member), encoding="utf-8", newline="")
            for question, *choices, answer in csv.reader(text):
                item = {"subject": subject, "question": question, "choices": choices}
                rows[split].append(item | {"answer": "ABCD".index(answer)})
    for split, items in rows.items():
        lines = [json.dumps(item, ensure_ascii=False) for item in items]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "data.tar").unlink()


SETS = {
    "mmlu": DataSet(
        "Multiple-choice exam in 57 subjects (Hendrycks et al. 2021)",
        "MIT",
        "285 dev, 14,042 test",
        (
            File(
                "data.tar",
                f"{HUB}/cais/mmlu/resolve/c30699e8356da336a370243923dbaf21066bb9fe/data.tar",
                "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b",
                "-",
            ),
            File(
                "dev.jsonl",
                mirror_sha256="071a8344f0bfe8e13a2a056fd45825c8ab8ff40ff793c8396f51cbde9ea911c5",
            ),
            File(
                "test.jsonl",
                mirror_sha256="7966baa568408a8221833cee9c41ea57e84abb94b08728d3480d17ee9ecd1a5d",
            ),
        ),
        unpack_mmlu,
    ),
    "gsm8k": DataSet(
        "Grade-school word problems (Cobbe et al. 2021)",
        "MIT",
        "7,473 train, 1,319 test",
        (
            File(
                "train.jsonl",
                f"{GSM8K}/grade_school_math/data/train.jsonl",
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
                "45926aa7b33a4d57392a712ec0fc718a68cc2e33422658ddda76af4c305f24ce",
            ),
            File(
                "test.jsonl",
                f"{GSM8K}/grade_school_math/data/test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
        ),
    ),
    "rasbt_instruction": DataSet(
        "Instructions of 'Build a Large Language Model (From Scratch)' (Raschka)",
        "Apache-2.0",
        "1,100",
        (
            File(
                "instruction-data.json",
                f"{RAW}/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57"
                "/ch07/01_main-chapter-code/instruction-data.json",
                "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            ),
        ),
    ),
    "hh_rlhf": DataSet(
        "Human preference pairs, test splits (Bai et al. 2022); offensive content by design",
        "MIT",
        "2,312 harmless, 2,354 helpful",
        (
            File(
                "harmless-base-test.jsonl.gz",
                f"{RAW}/anthropics/hh-rlhf/354e5c3cb8960630860dd5774a6ac2a58313bf4d"
                "/harmless-base/test.jsonl.gz",
                "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
            ),
            File(
                "helpful-base-test.jsonl.gz",
                f"{RAW}/DaehanKim/EasyRLHF/45eccb72ddb8c18aa52dc2a184516380e06582fe"
                "/data/helpful-base/test.jsonl.gz",
                "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
            ),
        ),
    ),
}


def downloads_dir() -> Path:
    """Where data sets are kept: `build/data`, or the folder in `COURSE_DATA`."""
    return Path(os.environ.get("COURSE_DATA") or ROOT / "build" / "data")


def data_folder(name: str, report: Report | None = None) -> Path:
    """The folder of a data set, fetched first where it is not there; a folder's path is itself.

    Raises:
        CourseError: unknown set, no network, a file that is missing or has another checksum.
    """
    if Path(name).is_absolute():
        return Path(name)
    check_choice("The data set", name, tuple(SETS))
    folder = downloads_dir() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.is_dir():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                _fetch_set(name, part, report)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _fetch_set(name: str, folder: Path, report: Report | None) -> None:
    data, base = SETS[name], os.environ.get("COURSE_DATA_BASE")
    for file in data.files:
        if base and file.mirror_sha256 != "-":
            url, wanted = f"{_as_url(base)}/{name}/{file.name}", file.mirror_sha256 or file.sha256
        elif not base and file.url:
            url, wanted = file.url, file.sha256
        else:
            continue
        fetch(url, folder / file.name, wanted, report)
    if data.unpack and not base:
        data.unpack(folder)


def _as_url(base: str) -> str:
    if "://" in base:
        return base.rstrip("/")
    return Path(base).expanduser().resolve().as_uri()


def fetch(url: str, target: Path, sha256: str, report: Report | None = None) -> None:
    """Download `url` to `target` and check it; nothing stays of a file that fails.

    Raises:
        CourseError: not reachable, no such file, or another checksum than `sha256`.
    """
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as out:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while chunk := answer.read(1 << 18):
                out.write(chunk)
                done += len(chunk)
                if report:
                    report(target.name, done, total)
    except urllib.error.URLError as error:
        target.unlink(missing_ok=True)
        raise CourseError(
            f"The file {url} cannot be fetched ({getattr(error, 'reason', error)}); check the "
            "network or COURSE_DATA_BASE; the profile 'pocket' needs no download."
        ) from error
    except OSError as error:
        target.unlink(missing_ok=True)
        raise disk_error(error, target) from error
    if (got := file_hash(target)) != sha256:
        target.unlink()
        raise CourseError(
            f"The file {url} has the checksum {got[:12]}…, expected {sha256[:12]}…; it changed or "
            "the transfer was cut: try again, or use another COURSE_DATA_BASE."
        )
