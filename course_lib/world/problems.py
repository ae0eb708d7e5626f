"""Business word problems whose every step can be checked, and the verifiers that check them.

A problem is a walk through a situation of `data/world/problems.yaml`: it starts with a number, each
sentence changes it, and the question asks for the result. All results are integers from 1 to 150.
Nothing here calls `eval`: text is read by regular expressions, with bounded numbers.

Left out on purpose: fractions, negative results, brackets, and numbers that do not matter.
"""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from course_lib import ROOT, CourseError, check_checkout
from course_lib.world.topics import cap

STYLES = ("answer", "symbols", "words", "wait")
SPLITS = ("train", "test", "transfer")
LARGEST = 150  # no result is larger
MAX_STEPS = 6
TEST_SHARE = 6  # one sum in six belongs to "test"

WORD_OF = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
OP_OF = {word: op for op, word in WORD_OF.items()}
PERCENT = {2: 50, 4: 25, 5: 20, 10: 10}  # divisor: per cent
# Kinds of sentence and how often they are tried; the last three need two operations.
KINDS = {"+": 10, "-": 10, "*": 16, "/": 12, "%": 5, "-%": 3, "+*": 5, "-*": 5}
TWO_STEPS = ("-%", "+*", "-*")


@dataclass(frozen=True)
class Step:
    """One operation `a op b = result`; `a_from`, `b_from`: the step it came from, -1 = the text."""

    a: int
    op: str
    b: int
    result: int
    a_from: int = -1
    b_from: int = -1

    @property
    def expression(self) -> str:
        """The sum without its result, as in `37 * 46`."""
        return f"{self.a} {self.op} {self.b}"


@dataclass(frozen=True)
class Problem:
    """A word problem; `template` is its situation, `split` one of `SPLITS`."""

    text: str
    answer: int
    steps: tuple[Step, ...]
    template: str
    split: str


@dataclass(frozen=True)
class Situation:
    """The wordings of one situation, by the unit that is counted at that point of the walk."""

    id: str
    goods: list[str]
    places: list[str]
    start: list[tuple[str, str]]  # (unit, wording)
    ask: dict[str, list[str]]  # by unit
    steps: dict[str, dict[str, list[tuple[str, str]]]]  # unit -> kind -> (new unit, wording)
    small: set[str]  # units that hold others (boxes, hours): their numbers stay small


@cache
def load_situations() -> tuple[list[dict[str, str]], dict[str, list[Situation]]]:
    """The people (slots of name and pronouns), and the situations by "train" and "transfer"."""
    check_checkout()
    path = ROOT / "data" / "world" / "problems.yaml"
    page = yaml.safe_load(path.read_text(encoding="utf-8"))
    people = []
    for entry in page["people"]:
        name, she = entry.split()
        her = "her" if she == "she" else "his"
        people.append({"name": name, "she": she, "She": cap(she), "her": her})
    found: dict[str, list[Situation]] = {"train": [], "transfer": []}
    for row in page["situations"]:
        steps: dict[str, dict[str, list[tuple[str, str]]]] = {}
        for key, block in row["steps"].items():
            unit, kind, *new = key.split()
            wordings = [(new[0] if new else unit, line) for line in block.splitlines()]
            steps.setdefault(unit, {}).setdefault(kind, []).extend(wordings)
        found[row["split"]].append(
            Situation(
                id=row["id"],
                goods=row.get("goods", [""]),
                places=row.get("place", [""]),
                start=[
                    (unit, s) for unit, block in row["start"].items() for s in block.splitlines()
                ],
                ask={unit: block.splitlines() for unit, block in row["ask"].items()},
                steps=steps,
                small={
                    unit
                    for unit, kinds in steps.items()
                    if "+*" not in kinds and any(new != unit for new, _ in kinds.get("*", ()))
                },
            )
        )
    return people, found


def _pick(rng: random.Random, items: Sequence):
    return items[int(rng.random() * len(items))]  # three times as fast as rng.choice


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


@cache
def _divisors(state: int) -> tuple[int, ...]:
    """Divisors with a quotient from the tables that a small model can learn by heart."""
    return tuple(
        d
        for d in range(2, 13)
        if state % d == 0 and (3 <= state // d <= 12 or (d == 2 and state >= 6))
    )


def _numbers(rng: random.Random, kind: str, state: int, small: bool) -> tuple[int, int] | None:
    """The numbers {n} and {m} of a sentence of this kind, or None where none fits."""
    if kind in ("+", "-"):
        far = 12 if small else 20 if rng.random() < 0.4 else 70
        high = min(far, state - 1 if kind == "-" else (24 if small else LARGEST) - state)
        return (_between(rng, 2, high), 0) if high >= 2 else None
    if kind == "*":
        if not 2 <= state <= 60:
            return None
        return (2 if state > 12 else _between(rng, 2, 12), 0)
    if kind == "/":
        divisors = _divisors(state)
        return (_pick(rng, divisors), 0) if divisors else None
    if kind in ("%", "-%"):
        divisors = [d for d in _divisors(state) if d in PERCENT]
        return (PERCENT[_pick(rng, divisors)], 0) if divisors else None
    n, m = _between(rng, 2, 9), _between(rng, 2, 9)
    fits = state + n * m <= LARGEST if kind == "+*" else n * m < state
    return (n, m) if fits else None


def _apply(kind: str, state: int, n: int, m: int, last: int, at: int) -> list[Step]:
    """The steps a sentence means; `last`: the step that made `state`, `at`: the next index."""
    if kind in WORD_OF:
        return [Step(state, kind, n, _compute(state, kind, n), last)]
    if kind == "%":
        return [Step(state, "/", 100 // n, state * n // 100, last)]
    if kind == "-%":
        part = state * n // 100
        return [
            Step(state, "/", 100 // n, part, last),
            Step(state, "-", part, state - part, last, at),
        ]
    part = n * m
    total = _compute(state, kind[0], part)
    return [Step(n, "*", m, part), Step(state, kind[0], part, total, last, at)]


def make_problem(rng: random.Random, num_steps: int, split: str = "train") -> Problem:
    """One problem of exactly `num_steps` operations (1 to 6).

    `split`: "train"; "test": situations seen in training, sums (and so texts) that are not;
    "transfer": situations that are never seen in training. Which sums belong to "test" is decided
    by a hash of the situation and all numbers, so no train text is ever a test text.
    """
    if split not in SPLITS:
        raise CourseError(f"The split {split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if not 1 <= num_steps <= MAX_STEPS:
        raise CourseError(f"num_steps is {num_steps}: choose a whole number from 1 to {MAX_STEPS}.")
    people, situations = load_situations()
    while True:
        situation = _pick(rng, situations["transfer" if split == "transfer" else "train"])
        walk = _walk(rng, situation, num_steps)
        if walk is None:
            continue
        (_, _, first, _), *rest = sentences = walk[0]
        key = " ".join([situation.id, str(first), *(f"{kind}{n},{m}" for kind, _, n, m in rest)])
        is_test = zlib.crc32(key.encode("ascii")) % TEST_SHARE == 0
        if split != "transfer" and is_test != (split == "test"):
            continue
        slots = dict(_pick(rng, people))
        slots["g"], slots["p"] = _pick(rng, situation.goods), _pick(rng, situation.places)
        parts = [
            cap(wording.format_map(slots | {"n": n, "m": m})) for _, wording, n, m in sentences
        ]
        _, steps, unit = walk
        parts.append(cap(_pick(rng, situation.ask[unit]).format_map(slots)))
        return Problem(" ".join(parts), steps[-1].result, tuple(steps), situation.id, split)


def _walk(rng: random.Random, situation: Situation, num_steps: int):
    """Sentences (kind, wording, n, m), the first one the start; steps; unit. None: dead end."""
    unit, wording = _pick(rng, situation.start)
    if unit in situation.small:
        state = _between(rng, 4, 12 if rng.random() < 0.7 else 20)
    else:
        state = _between(rng, 6, 12) if rng.random() < 0.3 else _between(rng, 10, 99)
    sentences, steps, used, last = [("start", wording, state, 0)], [], set(), -1
    for _ in range(12 * num_steps):
        kinds = situation.steps[unit]
        kind = _pick(rng, _DRAWS)
        if kind not in kinds or (kind in TWO_STEPS and num_steps - len(steps) < 2):
            continue
        numbers = _numbers(rng, kind, state, unit in situation.small)
        new_unit, wording = _pick(rng, kinds[kind])
        if numbers is None or wording in used:
            continue
        n, m = numbers
        used.add(wording)
        sentences.append((kind, wording, n, m))
        steps.extend(_apply(kind, state, n, m, last, len(steps)))
        state, unit, last = steps[-1].result, new_unit, len(steps) - 1
        if len(steps) == num_steps:
            return sentences, steps, unit
    return None


_DRAWS = tuple(kind for kind, weight in KINDS.items() for _ in range(weight))


def problem_set(
    n: int, seed: int, num_steps: int | Sequence[int] = 3, split: str = "train"
) -> list[Problem]:
    """`n` problems with distinct texts; with several `num_steps`, each is drawn equally often."""
    rng = random.Random(f"problems {split} {seed}")
    choices = [num_steps] if isinstance(num_steps, int) else list(num_steps)
    found: dict[str, Problem] = {}
    while len(found) < n:
        problem = make_problem(rng, choices[len(found) % len(choices)], split)
        found.setdefault(problem.text, problem)
    return list(found.values())


def problem_prompt(problem: Problem) -> str:
    """The text that a model continues; a solution follows after one space."""
    return f"Problem: {problem.text}\nSolution:"


# --- solutions -----------------------------------------------------------------------------------


def _compute(a: int, op: str, b: int) -> int | None:
    """The exact integer result, or None where there is none."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    return a // b if b and a % b == 0 else None


def _slipped(rng: random.Random, step: Step) -> int:
    """A wrong result as people write it: off by one or ten, or by the wrong operation.

    It is neither the true result nor the one in `step`, which may itself be a slip.
    """
    true = _compute(step.a, step.op, step.b)
    other_op = {"+": "-", "-": "+", "*": "+", "/": "-"}[step.op]
    wrong = [true + 1, true - 1, true + 10, true - 10, _compute(step.a, other_op, step.b)]
    return _pick(rng, [w for w in wrong if 1 <= w <= 200 and w not in (true, step.result)])


def _carry(rng: random.Random, steps: Sequence[Step]) -> list[Step]:
    """The steps with one slip that nobody notices, carried on to a wrong answer.

    All steps after the slip are right for the wrong numbers. Where the carried numbers would not
    come out whole, or the answer would come out right, another slip is tried; one in the last
    step always works.
    """
    for attempt in range(8):
        at = _between(rng, 0, len(steps) - 1) if attempt < 7 else len(steps) - 1
        written: list[Step] = []
        for i, step in enumerate(steps):
            a = written[step.a_from].result if step.a_from >= 0 else step.a
            b = written[step.b_from].result if step.b_from >= 0 else step.b
            result = _slipped(rng, step) if i == at else _compute(a, step.op, b)
            if result is None or not 0 <= result <= 200:
                break
            written.append(Step(a, step.op, b, result, step.a_from, step.b_from))
        if len(written) == len(steps) and written[-1].result != steps[-1].result:
            return written
    raise AssertionError("a slip in the last step changes the answer")


def write_step(step: Step, notation: str = "symbols", result: int | None = None) -> str:
    """`3 * 4 = 12.` or `3 times 4 is 12.`; `result` replaces the step's own."""
    result = step.result if result is None else result
    if notation == "symbols":
        return f"{step.a} {step.op} {step.b} = {result}."
    return f"{step.a} {WORD_OF[step.op]} {step.b} is {result}."


def solution(problem: Problem, style: str, rng: random.Random, slip: bool = False) -> str:
    """A written solution, without the word "Solution:" and without a space before it.

    `style`: "answer" (no steps), "symbols", "words", or "wait": one step first has a wrong result
    and is written again after "wait,", in either notation. `slip`: one wrong result that nobody
    notices, carried through to a wrong answer.
    """
    if style not in STYLES:
        raise CourseError(f"The style {style!r} is unknown: choose one of {', '.join(STYLES)}.")
    steps = _carry(rng, problem.steps) if slip else problem.steps
    answer = f"The answer is {steps[-1].result}."
    if style == "answer":
        return answer
    written = style if style != "wait" else _pick(rng, ("symbols", "words"))
    parts = [write_step(step, written) for step in steps]
    if style == "wait":
        at = _between(rng, 0, len(steps) - 1)
        first = write_step(steps[at], written, _slipped(rng, steps[at]))
        parts[at] = f"{first} wait, {parts[at]}"
    return " ".join([*parts, answer])


# --- verifiers -----------------------------------------------------------------------------------

_INT = r"(-?[0-9]{1,9})"
_STEP = re.compile(
    rf"(?:[Ww]ait, )?{_INT} (?:([-+*/]) {_INT} =|(plus|minus|times|divided by) {_INT} is) {_INT}"
)
# Anything that claims a result; where it is not a well-formed step, it counts as a false one.
_LOOKS_LIKE_STEP = re.compile(r"=|[0-9] *([-+*/]|plus|minus|times|divided by) *-?[0-9]")
_ANSWER_START = re.compile(r"\bThe answer is\b")
_ANSWER = re.compile(rf"The answer is {_INT} *(?:\.(?![0-9])|\n|\Z)")
_SENTENCE_END = re.compile(r"\.(?:\s+|\Z)|\n+")


def extract_answer(text: str) -> int | None:
    """The number of the last "The answer is N"; None where that is missing or not one integer."""
    starts = list(_ANSWER_START.finditer(text))
    match = _ANSWER.match(text, starts[-1].start()) if starts else None
    return int(match[1]) if match else None


def verify_answer(problem: Problem, text: str) -> bool:
    """Is the last stated answer the right one? Steps do not matter."""
    return extract_answer(text) == problem.answer


def sentences_of(text: str) -> list[str]:
    """The sentences without their points; of a whole document, those after "Solution:"."""
    _, found, rest = text.partition("Solution:")
    return [s.strip() for s in _SENTENCE_END.split(rest if found else text) if s.strip()]


def read_steps(text: str) -> list[Step | None]:
    """Every written step in either notation with its *written* result; None: not well formed."""
    steps: list[Step | None] = []
    for sentence in sentences_of(text):
        if match := _STEP.fullmatch(sentence):
            a, op, b, word, b_word, result = match.groups()
            steps.append(Step(int(a), op or OP_OF[word], int(b or b_word), int(result)))
        elif _LOOKS_LIKE_STEP.search(sentence):
            steps.append(None)
    return steps


def verify_steps(text: str) -> list[bool]:
    """For every written step: is its arithmetic true? A noticed slip is a False before a True."""
    return [
        step is not None and _compute(step.a, step.op, step.b) == step.result
        for step in read_steps(text)
    ]


def check_steps(problem: Problem, sentences: Sequence[str]) -> list[bool]:
    """For every sentence of a solution: is it right, given those before it?

    A step is right if its arithmetic is true and it is one of the problem's own that is still to be
    done, on numbers that are there by then (the two sides of + and * may be swapped). So what
    follows from a slip is wrong as well, until the slip is mended. The answer sentence is right if
    its number is; any other sentence is not.
    """
    done: set[int] = set()
    found = []
    for sentence in sentences:
        right = verify_answer(problem, sentence)
        for step in read_steps(sentence):
            for i, own in enumerate(problem.steps):
                ready = {own.a_from, own.b_from} <= done | {-1}
                if i not in done and ready and step is not None and _same(step, own):
                    right = True
                    done.add(i)
                    break
        found.append(right)
    return found


def _same(step: Step, own: Step) -> bool:
    sides = [(own.a, own.b), (own.b, own.a)] if own.op in "+*" else [(own.a, own.b)]
    return step.op == own.op and (step.a, step.b) in sides and step.result == own.result


def verify_format(text: str) -> bool:
    """Nothing but written steps (or none) and one answer sentence, which ends the text."""
    *steps, last = sentences_of(text) or [""]
    return (
        re.fullmatch(rf"The answer is {_INT}", last) is not None
        and text.rstrip().endswith(".")
        and all(map(_STEP.fullmatch, steps))
    )


def notation(text: str) -> set[str]:
    """Which notations the written steps use: a subset of {"symbols", "words"}."""
    matches = filter(None, map(_STEP.fullmatch, sentences_of(text)))
    return {"symbols" if match[2] else "words" for match in matches}


# --- sums for the calculator ---------------------------------------------------------------------

_EXPRESSION = re.compile(r"\s*(-?[0-9]{1,9})\s*([-+*/])\s*(-?[0-9]{1,9})\s*")


def arithmetic_items(n: int, seed: int) -> list[Step]:
    """`n` distinct sums too large for the head, such as 37 * 46; `.expression` is their text."""
    rng = random.Random(f"arithmetic {seed}")
    found: dict[str, Step] = {}
    while len(found) < n:
        op = _pick(rng, "+-**")
        low, high = (13, 99) if op == "*" else (201, 999)
        a, b = _between(rng, low, high), _between(rng, low, high)
        if op == "-":
            a, b = max(a, b), min(a, b)
        step = Step(a, op, b, _compute(a, op, b))
        found.setdefault(step.expression, step)
    return list(found.values())


def calculate(expression: str) -> str:
    """The result of `a op b` with op one of + - * / as text; "error" for anything else.

    The text is parsed, never run. Quotients that are not whole are rounded to three decimals.
    """
    match = _EXPRESSION.fullmatch(expression) if len(expression) <= 64 else None
    if match is None:
        return "error"
    a, op, b = int(match[1]), match[2], int(match[3])
    if op == "/" and b == 0:
        return "error"
    exact = _compute(a, op, b)
    if exact is not None:
        return str(exact)
    return f"{round(a / b, 3) + 0.0:.3f}".rstrip("0").rstrip(".")
