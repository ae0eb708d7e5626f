"""An exam about the pocket world's facts, in the columns and the exact prompt of MMLU.

Each topic has five questions: one per fact (the slot's four options) and one on its definition. The
24 orders of a question's options are divided for good: 6 are for "test", 2 for "dev", 16 for
"train" (the only ones that quiz pages of the pretraining corpus use). So the models have met the
facts and the format, but never a test item itself.
"""

import itertools
import random
import zlib
from functools import cache

from course_lib import CourseError
from course_lib.world.topics import load_topics

LETTERS = "ABCD"
SPLITS = ("test", "dev", "train")
NUM_SHOTS = 5
DEFINITION = 4  # the `fact` number of a topic's definition question


def _hash(*parts) -> int:
    """A number that is the same on every machine and in every run (`hash` is not)."""
    return zlib.crc32("|".join(map(str, parts)).encode("utf-8"))


@cache
def question(topic_id: str, fact: int) -> tuple[str, tuple[str, ...]]:
    """The wording and the four options (the true one first) of question 0 to 4 of a topic."""
    topic = load_topics()[topic_id]
    if fact != DEFINITION:
        return topic.facts[fact].ask, topic.facts[fact].slot
    others = [t for t in load_topics().values() if t.subject == topic.subject and t is not topic]
    others.sort(key=lambda t: _hash(topic_id, t.id))
    options = (topic.definition, *(t.definition for t in others[:3]))
    return f"Which of these describes {topic.name}?", options


@cache
def orders(topic_id: str, fact: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The 24 orders of a question's options by split; `order[k]` is the option at letter k.

    The true option stands at each letter once or twice in "test", and four times in "train".
    """
    first = _cells().index((topic_id, fact)) % 4  # letters that get a second test order
    found: dict[str, list] = {split: [] for split in SPLITS}
    for letter in range(4):
        perms = [p for p in itertools.permutations(range(4)) if p[letter] == 0]
        perms.sort(key=lambda p: _hash(topic_id, fact, p))
        found["test"].append(perms.pop())
        extra = "test" if letter in (first, (first + 1) % 4) else "dev"
        found[extra].append(perms.pop())
        found["train"] += perms
    return {split: tuple(found[split]) for split in SPLITS}


@cache
def _cells() -> tuple[tuple[str, int], ...]:
    return tuple((t, f) for f in range(5) for t in load_topics())


@cache
def _shot_cells(subject: str) -> tuple[tuple[str, int], ...]:
    """The facts that the subject's five worked examples ask for; they are not in the test."""
    topics = [t for t in load_topics().values() if t.subject == subject]
    topics.sort(key=lambda t: _hash("shots", t.id))
    return tuple((t.id, _hash("shot", t.id) % 4) for t in topics[:NUM_SHOTS])


def make_item(topic_id: str, fact: int, order: tuple[int, ...], options=None) -> dict:
    """An item with the question's options, or with `options` (the true one first), in `order`."""
    ask, own = question(topic_id, fact)
    options = options or own
    return {
        "subject": load_topics()[topic_id].subject,
        "question": ask,
        "choices": [options[k] for k in order],
        "answer": order.index(0),
        "topic": topic_id,
        "fact": fact,
    }


def exam_items(n: int | None = None, seed: int = 0, split: str = "test") -> list[dict]:
    """The first `n` (None: all) items of a split, shuffled by `seed`, in MMLU's columns.

    Every question is asked once before one is asked again, with the right answers balanced over
    the letters. The facts of `dev_items` are left out of "test".

    Raises:
        CourseError: for an unknown split or more items than there are.
    """
    if split not in SPLITS:
        raise CourseError(f"The exam's split {split!r} does not exist; use one of {SPLITS}.")
    subjects = {t.subject for t in load_topics().values()}
    reserved = {c for s in subjects for c in _shot_cells(s)} if split == "test" else set()
    cells = [c for c in _cells() if c not in reserved]
    rng = random.Random(f"exam {split} {seed}")
    rng.shuffle(cells)
    left = {c: {k: [] for k in range(4)} for c in cells}
    for cell in cells:
        for order in orders(*cell)[split]:
            left[cell][order.index(0)].append(order)
    items, turn = [], 0
    while any(any(v.values()) for v in left.values()):
        for cell in cells:
            # The letter whose turn it is; where the question has no such order left, the next one.
            for letter in ((turn + k) % 4 for k in range(4)):
                if left[cell][letter]:
                    items.append(make_item(*cell, left[cell][letter].pop()))
                    turn = letter + 1
                    break
    if n is not None and n > len(items):
        raise CourseError(f"The exam has {len(items)} {split} items, not {n}; ask for fewer.")
    return items[:n]


def dev_items(subject: str) -> list[dict]:
    """The five worked examples of a subject for 5-shot prompts, always the same.

    Raises:
        CourseError: for an unknown subject.
    """
    cells = _shot_cells(subject)
    if not cells:
        known = sorted({t.subject for t in load_topics().values()})
        raise CourseError(f"The exam has no subject {subject!r}; use one of {known}.")
    return [
        make_item(*cell, orders(*cell)["dev"][(i + _hash(subject)) % 2])
        for i, cell in enumerate(cells)
    ]


def subject_title(subject: str) -> str:
    """The subject in words; a subject of the real MMLU has its underscores replaced."""
    for topic in load_topics().values():
        if topic.subject == subject:
            return topic.title
    return subject.replace("_", " ")


def render_header(subject: str) -> str:
    """MMLU's first line, with the empty line after it."""
    return (
        "The following are multiple choice questions (with answers) about "
        f"{subject_title(subject)}.\n\n"
    )


def render_item(item: dict, with_answer: bool = False) -> str:
    """Question, options and "Answer:"; with the answer also its letter and an empty line."""
    lines = [item["question"]]
    lines += [f"{x}. {c}" for x, c in zip(LETTERS, item["choices"], strict=True)]
    text = "\n".join(lines) + "\nAnswer:"
    return text + f" {LETTERS[item['answer']]}\n\n" if with_answer else text


def render_prompt(item: dict, shots: list[dict] | tuple = ()) -> str:
    """MMLU's prompt: header, the worked `shots`, then the item up to "Answer:" (no space after)."""
    return (
        render_header(item["subject"])
        + "".join(render_item(shot, with_answer=True) for shot in shots)
        + render_item(item)
    )
