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
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from course_lib import ROOT, CourseError
from course_lib.core.cache import file_hash, locked, whole_folder
from course_lib.core.checks import check_choice

RAW = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
GSM8K = f"{RAW}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"


@dataclass(frozen=True)
class DataSet:
    title: str
    licence: str
    rows: str
    published: dict[str, tuple[str, str]]  # file -> URL, SHA-256
    mirrored: dict[str, str] = field(default_factory=dict)  # file -> SHA-256, where these differ


SETS = {
    "mmlu": DataSet(
        "Multiple-choice exam in 57 subjects (Hendrycks et al. 2021)",
        "MIT",
        "285 dev, 14,042 test",
        {
            "data.tar": (
                f"{HUB}/cais/mmlu/resolve/c30699e8356da336a370243923dbaf21066bb9fe/data.tar",
                "bec563ba4bac1d6aaf04141cd7d1605d7a5ca833e38f994051e818489592989b",
            )
        },
        {
            "dev.jsonl": "071a8344f0bfe8e13a2a056fd45825c8ab8ff40ff793c8396f51cbde9ea911c5",
            "test.jsonl": "7966baa568408a8221833cee9c41ea57e84abb94b08728d3480d17ee9ecd1a5d",
        },
    ),
    "gsm8k": DataSet(
        "Grade-school word problems (Cobbe et al. 2021)",
        "MIT",
        "7,473 train, 1,319 test",
        {
            "train.jsonl": (
                f"{GSM8K}/grade_school_math/data/train.jsonl",
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            ),
            "test.jsonl": (
                f"{GSM8K}/grade_school_math/data/test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
        },
        {
            "train.jsonl": "45926aa7b33a4d57392a712ec0fc718a68cc2e33422658ddda76af4c305f24ce",
            "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        },
    ),
    "rasbt_instruction": DataSet(
        "Instructions of 'Build a Large Language Model (From Scratch)' (Raschka)",
        "Apache-2.0",
        "1,100",
        {
            "instruction-data.json": (
                f"{RAW}/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57"
                "/ch07/01_main-chapter-code/instruction-data.json",
                "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            )
        },
    ),
    "hh_rlhf": DataSet(
        "Human preference pairs, test splits (Bai et al. 2022); offensive content by design",
        "MIT",
        "2,312 harmless, 2,354 helpful",
        {
            "harmless-base-test.jsonl.gz": (
                f"{RAW}/anthropics/hh-rlhf/354e5c3cb8960630860dd5774a6ac2a58313bf4d"
                "/harmless-base/test.jsonl.gz",
                "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
            ),
            "helpful-base-test.jsonl.gz": (
                f"{RAW}/DaehanKim/EasyRLHF/45eccb72ddb8c18aa52dc2a184516380e06582fe"
                "/data/helpful-base/test.jsonl.gz",
                "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
            ),
        },
    ),
}


def downloads_dir() -> Path:
    """Where data sets are kept: `build/data`, or the folder in `COURSE_DATA`."""
    return Path(os.environ.get("COURSE_DATA") or ROOT / "build" / "data")


def data_folder(name: str, progress: bool = False) -> Path:
    """The folder of a data set, fetched first where it is not there; a folder's path is itself.

    Raises:
        CourseError: unknown set, no network, a file that is missing or has another checksum.
    """
    if Path(name).is_absolute():
        return Path(name)
    name = name.replace("-", "_")  # as some sets are spelt elsewhere
    check_choice("The data set", name, tuple(SETS))
    entry = downloads_dir() / name
    with locked(entry):
        if not entry.is_dir():
            with whole_folder(entry) as folder:
                for file, (url, sha256) in _places(name).items():
                    fetch(url, folder / file, sha256, progress)
                if (folder / "data.tar").exists():
                    unpack_mmlu(folder)
    return entry


def _places(name: str) -> dict[str, tuple[str, str]]:
    """URL and SHA-256 of the files of a set, as published or in `COURSE_DATA_BASE`."""
    data, base = SETS[name], os.environ.get("COURSE_DATA_BASE")
    if not base:
        return data.published
    if "://" not in base:
        base = Path(base).expanduser().resolve().as_uri()
    sums = data.mirrored or {file: sha256 for file, (_, sha256) in data.published.items()}
    return {file: (f"{base.rstrip('/')}/{name}/{file}", sha256) for file, sha256 in sums.items()}


def fetch(url: str, target: Path, sha256: str, progress: bool = False) -> None:
    """Download `url` to `target` and check it.

    Raises:
        CourseError: not reachable, no such file, or another checksum than `sha256`.
    """
    off = None if progress else True  # None: off where there is no terminal
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as out:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm.wrapattr(answer, "read", size, desc=target.name, disable=off) as body:
                shutil.copyfileobj(body, out)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise CourseError(
            f"The file {url} cannot be fetched ({error}); check the network or COURSE_DATA_BASE, "
            "or take the pocket world's rows with --set exam_data=world, likewise "
            "instructions_data, documents_data and preferences_data."
        ) from error
    if (got := file_hash(target)) != sha256:
        raise CourseError(
            f"The file {url} has the checksum {got[:12]}…, expected {sha256[:12]}…; it changed or "
            "the transfer was cut: try again, or use another COURSE_DATA_BASE."
        )


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
