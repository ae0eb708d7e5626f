"""What a full run keeps beside its means: every item's measures, and a few answers to read.

`NN_items.npz` has one array (seeds, items) in float16 for each experiment, condition and measure:
what intervals need that count the luck of seeds and of items. `NN_texts.json` has at most 40 items
with their prompts and answers, chosen by a stated rule that a test applies again.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from course_lib import CourseError
from course_lib.core.cache import read_json, write_text
from course_lib.world.judge import false_spans

MOST_BYTES, MOST_TEXTS = 1_500_000, 40
Place = tuple[str, str, str]  # experiment, condition, measure
RULES = ("median gain", "largest gain", "smallest gain", "first")


def save_items(path: Path, items: Mapping[Place, np.ndarray], seeds: Sequence[int]) -> None:
    """Add arrays (seeds, items) to the file, in place of those of the same place.

    Raises `CourseError` where a name has a slash, or the file gets larger than `MOST_BYTES`.
    """
    arrays = {}
    if path.exists():
        with np.load(path) as old:
            arrays = dict(old)
    for place, values in items.items():
        if any("/" in name for name in place):
            raise CourseError(f"The names {place} hold a slash, which parts them; choose others.")
        arrays["/".join(place)] = np.asarray(values, dtype=np.float16)
    arrays["seeds"] = np.asarray(seeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    if part.stat().st_size > MOST_BYTES:
        size = part.stat().st_size
        part.unlink()
        raise CourseError(
            f"The items of {path.name} take {size / 1e6:.1f} MB, more than "
            f"{MOST_BYTES / 1e6:.1f} MB; keep fewer measures or fewer items."
        )
    part.replace(path)


def load_items(path: Path) -> tuple[dict[Place, np.ndarray], list[int]]:
    """(arrays (seeds, items) by experiment, condition and measure; the seeds)."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        seeds = arrays.pop("seeds").tolist()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CourseError(
            f"The items {path} cannot be read ({type(error).__name__}); restore the file or make "
            "it again with `course reference --effort full`."
        ) from error
    return {tuple(name.split("/")): as_kept(a) for name, a in arrays.items()}, seeds


def as_kept(values: np.ndarray) -> np.ndarray:
    """The values as `load_items` will give them: what is chosen by them can be chosen again."""
    return np.asarray(values, dtype=np.float16).astype(float)


def chosen(gains: np.ndarray, rule: str, n: int) -> list[int]:
    """The indices of `n` items (of gains (items,)) by a rule of `RULES`; ties go to the first."""
    gains = np.asarray(gains)
    order = {
        "median gain": np.abs(gains - np.median(gains)),
        "largest gain": -gains,
        "smallest gain": gains,
        "first": np.arange(len(gains)),
    }
    if rule not in order:
        raise CourseError(f"The rule is {rule!r}; expected one of {', '.join(RULES)}.")
    return np.argsort(order[rule], kind="stable")[:n].tolist()


def save_texts(
    path: Path,
    place: Place,
    rule: str,
    n: int,
    gains: np.ndarray,
    rows: Sequence[dict],
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]],
    seed: int,
) -> None:
    """Keep `n` items that `rule` chooses by their gains (items,); the file's others stay.

    An item has its place, rule, index, seed, prompt and gain, and the answers by condition: text,
    score, and where the sentences stand that state something false.

    Args:
        place: experiment, condition and measure whose gain over the start it is.
        rows: of the prompts. answers, scores: by condition, one an item.
    """
    old = read_json(path) if path.exists() else []
    kept = [item for item in old if (*item["place"], item["rule"]) != (*place, rule)]
    for i in chosen(gains, rule, n):
        item = {"place": list(place), "rule": rule, "item": i, "seed": seed}
        item |= {"prompt": rows[i]["prompt"], "gain": round(float(gains[i]), 3), "answers": {}}
        for name, texts in answers.items():
            spans = false_spans(rows[i], texts[i]) if "topic" in rows[i] else []
            found = {"text": texts[i], "score": round(float(scores[name][i]), 3), "false": spans}
            item["answers"][name] = found
        kept.append(item)
    if len(kept) > MOST_TEXTS:
        raise CourseError(f"{path.name} would hold {len(kept)} items; keep {MOST_TEXTS} at most.")
    write_text(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
