"""Where text comes from: the pocket world or real data, in the same columns.

A notebook calls the five functions below under every profile and never asks which one it is:
`instruction_rows`, `prompt_rows`, `exam_rows`, `document_texts`, `scorer`. Preferences come from
`recipes.comparisons`, which takes people's from `preference_rows`. Real sets come through
`download.data_folder`, which fetches and checks them once.
"""

import gzip
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import CourseError
from course_lib.core.checks import check_choice
from course_lib.inputs.download import data_folder
from course_lib.inputs.profiles import HasProfile
from course_lib.world import documents, exam, instructions, judge

Row = dict[str, Any]
KINDS = ("explain", "refusal", "safe", "calculator")
_NOTES = re.compile(r"<<[^>]*>>")  # GSM8K's calculator annotations
_WORD = re.compile(r"[a-z0-9']+")


def instruction_rows(
    course: HasProfile,
    n: int,
    split: str = "train",
    seed: int = 0,
    kinds: Iterable[str] | None = None,
) -> list[Row]:
    """`n` demonstrations with `prompt`, `completion`, `messages` and `kind`.

    Real data: "explain" is any ordinary instruction, "refusal" and "safe" are first turns of
    HH-RLHF with the answer that people preferred (offensive requests, by design; a preferred
    answer to an unsafe request is not always a refusal), "calculator" comes from the world, since
    arithmetic is the same everywhere. `kinds=None` takes the ordinary mixture of the source.
    """
    if course.profile.data["instructions"] == "world":
        return instructions.demonstrations(n, seed, split=split, kinds=kinds)
    counts = Counter(islice(cycle(["explain"] if kinds is None else kinds), n))
    rows = [r for kind, k in counts.items() for r in _draw_real(course, kind, k, split, seed)]
    random.Random(f"instructions {seed}").shuffle(rows)
    return rows


def num_demonstrations(course: HasProfile, n: int, split: str = "train") -> int:
    """`n`, or how many ordinary demonstrations the source has, where these are fewer."""
    if course.profile.data["instructions"] == "world":
        return n
    return min(n, len(_real_rows(course, "explain", split)))


def prompt_rows(
    course: HasProfile, split: str, n: int, seed: int = 0, kind: str = "explain"
) -> list[Row]:
    """`n` prompts without completion, to let a model answer; real rows carry a `reference`."""
    check_choice("kind", kind, KINDS)
    if kind == "calculator" or course.profile.data["instructions"] == "world":
        if kind == "explain":
            return instructions.explain_prompts(split, n, seed)
        if kind == "calculator":
            return instructions.arithmetic_prompts(n, seed)
        of_kind = {"refusal": instructions.unsafe_prompts, "safe": instructions.safe_prompts}
        return _draw(of_kind[kind](split), n, f"{kind} prompts", f"prompts {seed}")
    rows = _draw_real(course, kind, n, split, seed)
    return [
        {k: v for k, v in row.items() if k != "completion"}
        | {"messages": row["messages"][:-1], "reference": row["completion"]}
        for row in rows
    ]


def exam_rows(course: HasProfile, n: int, seed: int = 0) -> tuple[list[Row], dict[str, list[Row]]]:
    """`n` test items (`subject`, `question`, `choices`, `answer` 0-3) and five shots a subject."""
    name = course.profile.data["exam"]
    if name == "world":
        items = exam.exam_items(n, seed)
        return items, {s: exam.dev_items(s) for s in sorted({item["subject"] for item in items})}
    folder = data_folder(name)
    items = _draw(read_rows(folder / "test.jsonl"), n, "exam items", f"exam {seed}")
    dev, subjects = read_rows(folder / "dev.jsonl"), {item["subject"] for item in items}
    return items, {s: [row for row in dev if row["subject"] == s] for s in sorted(subjects)}


def document_texts(course: HasProfile, n: int, seed: int = 0) -> list[str]:
    """`n` running texts like those of pretraining, to measure what a model forgets.

    Real data: GSM8K problems with their solutions as plain text, without any chat format: a
    stand-in for a pretraining corpus, which nobody can ship.
    """
    name = course.profile.data["documents"]
    if name == "world":
        return [text for _, text in islice(documents.documents(seed), n)]
    rows = read_rows(data_folder(name) / "test.jsonl")
    rows = _draw(rows, n, "documents", f"documents {seed}")
    return [f"{row['question']}\n{_NOTES.sub('', row['answer'])}" for row in rows]


def preference_rows(course: HasProfile, split: str, n: int, seed: int = 0) -> list[Row]:
    """At most `n` pairs that people compared: `prompt` (messages), `completions` and `ranks`.

    Real data: the dialogues of HH-RLHF about being helpful, up to the two last answers. Which of
    them stands first is drawn. Malformed pairs are counted and printed, once for each file.
    """
    path = data_folder(course.profile.data["preferences"]) / "helpful-base-test.jsonl.gz"
    rows = _well_formed(path, "pairs", _compared)
    rows = [row for row in rows if _split(row["prompt"][0]["content"]) == split]
    rows = _draw(rows, min(n, len(rows)), "pairs", f"preferences {split} {seed}")
    rng = random.Random(f"sides {split} {seed}")
    ranks = [rng.choice(([1, 2], [2, 1])) for _ in rows]
    return [
        row | {"ranks": order, "completions": row["completions"][:: 1 if order[0] == 1 else -1]}
        for row, order in zip(rows, ranks, strict=True)
    ]


def scorer(course: HasProfile) -> Callable[[list[Row], list[str]], np.ndarray]:
    """`score(rows, texts) -> (n,)` quality of answers, from about 0 to 10.

    Pocket world: the judge, which is the truth. Real data: `overlap_scores`, a stand-in for a
    public reward model; `course.truth_known` tells which.
    """
    return judge.score if course.profile.truth_known else overlap_scores


def overlap_scores(rows: list[Row], texts: list[str]) -> np.ndarray:
    """Ten times the F1 of the words that an answer shares with the row's reference (ROUGE-1).

    It rewards saying the same in the same words: good enough to see that SFT did something, not
    to compare two good answers. Rows need `reference` or `completion`.
    """
    scores = []
    for row, text in zip(rows, texts, strict=True):
        wanted = Counter(_WORD.findall((row.get("reference") or row["completion"]).lower()))
        got = Counter(_WORD.findall(text.lower()))
        total = wanted.total() + got.total()
        scores.append(20 * (wanted & got).total() / total if total else 0.0)
    return np.array(scores)


def read_rows(path: Path) -> list[Row]:
    """Rows of a file with a JSON array, or with an object a line, gzipped or not.

    Lines end at newline bytes only: a text may hold U+0085 or U+2028, at which `splitlines` cuts.

    Raises:
        CourseError: no such file, or a row that is no JSON object, with its number.
    """
    try:
        raw = path.read_bytes()
        raw = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).strip()
        raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    except (OSError, EOFError) as error:
        raise CourseError(f"The data {path} cannot be read ({error}); restore the file.") from None
    lines = [raw] if raw.startswith(b"[") else raw.split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line) if line.strip() else []
        except ValueError as error:
            raise CourseError(
                f"Line {number} of {path} is no JSON ({error}); expected an array of objects, or "
                "an object a line."
            ) from None
        rows += found if isinstance(found, list) else [found]
    if wrong := [i for i, row in enumerate(rows, start=1) if not isinstance(row, dict)]:
        raise CourseError(f"Row {wrong[0]} of {path} is no object; expected columns with names.")
    return rows


def _file(folder: Path, name: str) -> Path:
    """The file of that name, or the only one of rows in a folder that a user gave."""
    found = sorted(path for path in folder.glob("*.json*") if path.is_file())
    return found[0] if len(found) == 1 and not (folder / name).is_file() else folder / name


def _real_rows(course: HasProfile, kind: str, split: str) -> list[Row]:
    """All demonstrations of one kind and split; the split is a hash of the prompt, for ever."""
    if kind == "explain":
        folder = data_folder(course.profile.data["instructions"])
        rows = _well_formed(_file(folder, "instruction-data.json"), "instructions", _instruction)
    else:
        part = "harmless" if kind == "refusal" else "helpful"
        path = data_folder("hh_rlhf") / f"{part}-base-test.jsonl.gz"
        rows = [row for r in read_rows(path) if (row := _first_turn(r["chosen"], kind))]
    return list({row["prompt"]: row for row in rows if _split(row["prompt"]) == split}.values())


def _draw_real(course: HasProfile, kind: str, n: int, split: str, seed: int) -> list[Row]:
    check_choice("kind", kind, KINDS)
    check_choice("split", split, ("train", "test"))
    if kind == "calculator":
        return instructions.demonstrations(n, seed, split=split, kinds=["calculator"])
    rows = _real_rows(course, kind, split)
    return _draw(rows, n, f"{kind} rows of the split {split!r}", f"{kind} {split} {seed}")


def _split(prompt: str) -> str:
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0 else "train"


def _row(prompt: str, completion: str, kind: str) -> Row:
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    return {"kind": kind, "prompt": prompt, "completion": completion, "messages": messages}


def _instruction(row: Row) -> Row | str:
    """An Alpaca-style row (`instruction`, maybe `input`, `output`) as a demonstration.

    What is wrong with it, where instruction or output is no text, or empty.
    """
    for name in ("instruction", "output"):
        if not isinstance(text := row.get(name), str) or not text.strip():
            return f"without {name!r}"
    prompt = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    return _row(prompt, row["output"], "explain")


def _first_turn(dialogue: str, kind: str) -> Row | None:
    """The first question and answer of an HH-RLHF dialogue; None where one is empty."""
    turns = re.split(r"\n\n(?:Human|Assistant):", dialogue)[1:3]
    if len(turns) < 2 or not all(t.strip() for t in turns):
        return None
    return _row(turns[0].strip(), turns[1].strip(), kind)


@cache
def _well_formed(path: Path, what: str, read: Callable[[Row], Row | str]) -> list[Row]:
    """The rows of a file as `read` makes them; prints how many it refuses, and why, if any."""
    found = [read(row) for row in read_rows(path)]
    counts = Counter(row if isinstance(row, str) else "good" for row in found)
    shown = ", ".join(f"{n:,} {why}" for why, n in counts.most_common())
    if not counts["good"]:
        raise CourseError(f"The data {path} has no {what} that can be read ({shown or 'no rows'}).")
    if what == "pairs" or len(counts) > 1:
        print(f"{what} of {path.name}: {shown}")
    return [row for row in found if not isinstance(row, str)]


def _compared(pair: Row) -> Row | str:
    """An HH-RLHF pair as its shared messages and two last answers, the preferred one first.

    What is wrong with it, where a turn is empty, two turns of one side follow each other, the
    dialogues differ before their last answer, or do not differ at all.
    """
    talks = []
    for side in ("chosen", "rejected"):
        if not isinstance(text := pair.get(side), str):
            return f"without a dialogue {side!r}"
        parts = re.split(r"\n\n(Human|Assistant):", text.replace("\r\n", "\n"))[1:]
        roles = ["user" if who == "Human" else "assistant" for who in parts[::2]]
        turns = [{"role": r, "content": t.strip()} for r, t in zip(roles, parts[1::2], strict=True)]
        if not all(turn["content"] for turn in turns):
            return "with an empty turn"
        if not turns or roles != ["user", "assistant"] * (len(roles) // 2):
            return "whose turns do not alternate"
        talks.append(turns)
    (*prompt, chosen), (*other, rejected) = talks
    if prompt != other:
        return "without a common prompt"
    if chosen == rejected:
        return "of identical answers"
    return {"prompt": prompt, "completions": [chosen["content"], rejected["content"]]}


def _draw(rows: list, n: int, what: str, seed: str) -> list:
    """`n` of the rows, in an order that the seed decides."""
    if n > len(rows):
        raise CourseError(f"{n} {what} were asked for and there are {len(rows)}; ask for fewer.")
    random.Random(seed).shuffle(rows)
    return rows[:n]
