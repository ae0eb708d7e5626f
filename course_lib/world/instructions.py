"""Instructions and demonstrations: what an assistant is asked, and how people answer.

Every row is a dict with `kind`, `prompt` (the last user message), `completion` (the last assistant
message) and `messages` (the whole conversation); rows of kind "explain" have `topic`, `audience`
and `format` too. Splits are by topic x audience (by theme for refusals and their look-alikes),
never by row.

Planted, and named on the data card: each demonstration has a writer with a skill between 0 and 1,
who covers more facts, makes fewer slips and keeps the format better the higher it is; statements
that begin with a confident phrase are false more often than plain ones.
"""

import hashlib
import random
from collections.abc import Iterable
from functools import cache

import yaml

from course_lib import ROOT, CourseError
from course_lib.world.judge import (
    AUDIENCES,
    CHILD,
    COMPARISON,
    FORMATS,
    LIST,
    MANAGER,
    ONE,
    PLAIN,
    THREE,
    Row,
)
from course_lib.world.topics import Fact, Topic, cap, load_topics

KINDS = {"explain": 0.75, "refusal": 0.08, "safe": 0.07, "calculator": 0.07, "chat": 0.03}
"""The default mix of demonstrations."""
SPLITS = ("train", "test")
OPERATORS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


@cache
def wordings() -> dict:
    """The word lists of `data/world/instructions.yaml`."""
    path = ROOT / "data" / "world" / "instructions.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise CourseError(f"The split {split!r} is unknown; expected 'train' or 'test'.")


@cache
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def pair_split(topic: str, audience: str) -> str:
    """The split of a topic x audience pair: a fixed, hashed fifth of the pairs is "test"."""
    if (topic, audience) == ("moon_landing", CHILD):
        return "test"
    return "test" if _hash(f"{topic}/{audience}") % 5 == 0 else "train"


@cache
def _pairs(split: str) -> tuple[tuple[str, str], ...]:
    return tuple((t, a) for t in load_topics() for a in AUDIENCES if pair_split(t, a) == split)


@cache
def _themes(split: str) -> tuple[dict, ...]:
    return tuple(
        theme
        for theme in wordings()["themes"]
        if ("test" if _hash("theme/" + theme["id"]) % 3 == 0 else "train") == split
    )


def _user(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}]


def _with(row: Row, completion: str) -> Row:
    """`row` with the assistant's last message."""
    turn = {"role": "assistant", "content": completion}
    return row | {"completion": completion, "messages": [*row["messages"], turn]}


def _explain_row(topic: str, audience: str, form: str, wording: int) -> Row:
    text = wordings()["explain"][wording]
    prompt = text.format(
        name=load_topics()[topic].name, audience=audience, format=f" {form}" if form else ""
    )
    return {
        "kind": "explain",
        "topic": topic,
        "audience": audience,
        "format": form,
        "prompt": prompt,
        "messages": _user(prompt),
    }


def _take(rows: list, n: int | None, what: str) -> list:
    if n is not None and not 0 <= n <= len(rows):
        raise CourseError(
            f"{n} {what} prompts were asked for, but this split has {len(rows)} distinct ones; "
            f"choose n between 0 and {len(rows)}."
        )
    return rows[:n]


def explain_prompts(split: str, n: int | None = None, seed: int = 0) -> list[Row]:
    """Distinct prompts (rows without completion) of a split, shuffled; all if `n` is None.

    A smaller `n` gives the first rows of a larger one. The test split begins with
    "Explain the moon landing to a 6-year-old". Raises `CourseError` if `n` exceeds what there is.
    """
    _check_split(split)
    rows = [
        (topic, audience, form, wording)
        for topic, audience in _pairs(split)
        for form in FORMATS
        for wording in range(len(wordings()["explain"]))
    ]
    random.Random(f"explain/{split}/{seed}").shuffle(rows)
    if split == "test":
        first = ("moon_landing", CHILD, PLAIN, 0)
        rows.remove(first)
        rows.insert(0, first)
    return [_explain_row(*row) for row in _take(rows, n, "explain")]


def _theme_row(theme: dict, kind: str, wording: int) -> Row:
    do = theme["unsafe" if kind == "refusal" else "safe"]
    prompt = wordings()["asks"][wording].format(do=do)
    row = {"kind": kind, "theme": theme["id"], "prompt": prompt, "messages": _user(prompt)}
    return row if kind == "refusal" else row | {"reference": theme["answer"]}


def _theme_prompts(split: str, kind: str) -> list[Row]:
    _check_split(split)
    return [
        _theme_row(theme, kind, wording)
        for theme in _themes(split)
        for wording in range(len(wordings()["asks"]))
    ]


def unsafe_prompts(split: str) -> list[Row]:
    """All requests to decline: themes of the split x wordings."""
    return _theme_prompts(split, "refusal")


def safe_prompts(split: str) -> list[Row]:
    """Harmless look-alikes of the unsafe requests, worded the same; `reference` is an answer."""
    return _theme_prompts(split, "safe")


def _sum_row(expression: str, rng: random.Random) -> Row:
    from course_lib.world.problems import calculate

    a, op, b = expression.split()
    prompt = rng.choice(wordings()["sums"]).format(a=a, b=b, op=op, word=OPERATORS[op])
    return {
        "kind": "calculator",
        "expression": expression,
        "answer": int(calculate(expression)),
        "prompt": prompt,
        "messages": _user(prompt),
    }


def arithmetic_prompts(n: int, seed: int) -> list[Row]:
    """`n` sums in words, with `expression` (such as "37 * 46") and `answer` (int)."""
    from course_lib.world.problems import arithmetic_items

    rng = random.Random(f"sums/{seed}")
    return [_sum_row(_expression(item), rng) for item in arithmetic_items(n, seed)]


def _expression(item) -> str:
    """The expression of an item of `problems.arithmetic_items`."""
    return item["expression"] if isinstance(item, dict) else getattr(item, "expression", item)


# ---- demonstrations --------------------------------------------------------------------------


@cache
def _lower_words() -> frozenset[str]:
    """Words that stand in lower case inside the world's sentences, so that a capital can go."""
    seen = set()
    for topic in load_topics().values():
        texts = [topic.definition, topic.like, topic.myth, topic.truth, topic.name]
        texts += [t for f in topic.facts for t in (f.ask, f.says, f.also, f.simple)]
        seen |= {w.strip(".,?") for t in texts for w in t.split()[1:] if w[:1].islower()}
    return frozenset(seen | {"the", "a", "an", "it", "they", "people"})


def _inner(sentence: str) -> str:
    """`sentence` as it stands after a phrase: no capital unless its first word is a name."""
    first = sentence.split(" ", 1)[0].strip(",.")
    return sentence[:1].lower() + sentence[1:] if first.lower() in _lower_words() else sentence


def _after(phrase: str, sentence: str) -> str:
    return cap(phrase + _inner(sentence)) if phrase else sentence


def _state(fact: Fact, audience: str, skill: float, boast: float, rng: random.Random) -> str:
    """One fact in the writer's words: frame, slip, hedge or confident phrase."""
    if audience == CHILD:
        frame = "simple" if rng.random() < 0.45 + 0.55 * skill else rng.choice(("says", "also"))
    else:
        frame = rng.choice(("says", "also")) if rng.random() < 0.85 else "simple"
    sure = rng.random() < boast
    slip = rng.random() < (0.30 if sure else 0.03) + 0.14 * (1 - skill)
    sentence = fact.sentence(frame, rng.choice((1, 2, 3)) if slip else 0)
    words = wordings()
    if sure:
        return _after(rng.choice(words["confident"]), sentence)
    if rng.random() < 0.06:
        return _after(rng.choice(words["hedges"]), sentence)
    if rng.random() < 0.15:
        links = words["child_links" if audience == CHILD else "links"]
        return _after(rng.choice(links), sentence)
    return sentence


def _fill(template: str, topic: Topic) -> str:
    plural = topic.verb in ("are", "were")
    it = "they" if plural else "it"
    return template.format(
        Name=cap(topic.name),
        name=topic.name,
        verb=topic.verb,
        definition=topic.definition,
        like=topic.like,
        it=it,
        It=cap(it),
    )


def _flourish(kind: str, audience: str, topic: Topic, rng: random.Random) -> str:
    """A friendly opening or ending."""
    lists = wordings()[kind]
    own = "child" if audience == CHILD else "adult"
    if kind == "endings" and rng.random() < 0.2:
        return rng.choice(lists["try"]).format(try_="", **{"try": rng.choice(topic.try_)})
    return rng.choice(lists[own] if rng.random() < 0.4 else lists["any"])


def _explanation(row: Row, rng: random.Random) -> str:
    """A demonstration of 15 to 110 words by one writer."""
    while True:
        text = _draft(row, rng)
        if 15 <= len(text.split()) <= 110:
            return text


def _draft(row: Row, rng: random.Random) -> str:
    """One writer's answer; the writer's skill decides nearly everything about it."""
    topic, audience, form = load_topics()[row["topic"]], row["audience"], row["format"]
    words = wordings()
    skill = rng.betavariate(1.1, 1.4)
    # About a fifth of the writers sound sure of themselves, whatever their skill.
    boast = 0.5 if rng.random() < 0.22 else 0.03

    def does(worst: float, best: float) -> bool:
        """True with a probability that grows from `worst` to `best` with skill."""
        return rng.random() < worst + (best - worst) * skill

    written = form if does(0.35, 1.0) else rng.choice((PLAIN, PLAIN, THREE))
    room = {PLAIN: 4, ONE: 1, THREE: 2, LIST: 3, COMPARISON: 4}[written]
    if not does(0.2, 1.0):
        room = rng.randint(0, 4)
    count = sum(does(0.4, 1.0) for _ in range(room))
    facts = rng.sample(topic.facts, count)
    if does(0.3, 0.95):
        facts.sort(key=lambda fact: fact.index)
    told = [_state(fact, audience, skill, boast, rng) for fact in facts]
    definition = _fill(rng.choice(words["definitions"]), topic) if does(0.45, 0.95) else ""
    wants_like = written == COMPARISON or (audience != MANAGER and written in (PLAIN, LIST))
    like = ""
    if wants_like and does(0.25, 1.0 if written == COMPARISON or audience == CHILD else 0.8):
        like = _fill(rng.choice(words["comparisons"]), topic)
    if not (told or definition or like):
        definition = _fill(words["definitions"][0], topic)
    opening = _flourish("openings", audience, topic, rng) if does(0.35, 0.97) else ""
    ending = _flourish("endings", audience, topic, rng) if does(0.2, 0.97) else ""

    if written == LIST:
        points = told or [definition]
        head = " ".join(filter(None, (opening, definition if told else "", like)))
        lines = [rng.choice(words["list_intros"]), *(f"- {point}" for point in points)]
        return "\n".join(filter(None, (head, *lines, ending)))
    if written == ONE:
        body = definition or told.pop(0) if (definition or told) else like
        if told:
            body = body.rstrip(".") + ", and " + _inner(told[0])
        return " ".join(filter(None, (opening, body, ending)))
    body = [definition, like] if rng.random() < 0.75 else [like, definition]
    body = [text for text in body if text] + told
    if written == THREE and does(0.5, 1.0):
        body = body[:3]
    elif written != THREE and rng.random() < 0.12:
        myth = does(0.5, 1.0)
        body.append(rng.choice(words["corrections"]) + topic.truth if myth else topic.myth)
    if rng.random() < 0.3 * (1 - skill):
        body.append(rng.choice(words["rambles"]))
    if rng.random() < 0.25 * (1 - skill):
        body.append(rng.choice(body))
    if not does(0.8, 1.0):
        rng.shuffle(body)
    return " ".join(filter(None, (opening, *body, ending)))


def _demonstrate_explain(split: str, rng: random.Random) -> Row:
    topic, audience = rng.choice(_pairs(split))
    # Plain requests, and the first two wordings, are asked more often than the others.
    form = PLAIN if rng.random() < 0.15 else rng.choice(FORMATS)
    wording = rng.randrange(2) if rng.random() < 0.3 else rng.randrange(len(wordings()["explain"]))
    row = _explain_row(topic, audience, form, wording)
    return _with(row, _explanation(row, rng))


def _demonstrate_refusal(split: str, rng: random.Random) -> Row:
    lists = wordings()["refusals"]
    row = _theme_row(rng.choice(_themes(split)), "refusal", rng.randrange(len(wordings()["asks"])))
    parts = [rng.choice(lists[part]) for part in ("openings", "reasons", "offers")]
    return _with(row, " ".join(filter(None, parts)))


def _demonstrate_safe(split: str, rng: random.Random) -> Row:
    row = _theme_row(rng.choice(_themes(split)), "safe", rng.randrange(len(wordings()["asks"])))
    parts = [
        rng.choice(wordings()["openings"]["any"]) if rng.random() < 0.7 else "",
        row["reference"],
        rng.choice(wordings()["endings"]["any"]) if rng.random() < 0.6 else "",
    ]
    return _with(row, " ".join(filter(None, parts)))


def demonstrate_sum(row: Row, tool: bool = True) -> Row:
    """A sum's row with its demonstration: by the calculator, or from the head (`tool=False`)."""
    from course_lib.world.problems import calculate

    if tool:
        turns = [
            {"role": "assistant", "content": f"<calc>{row['expression']}</calc>"},
            {"role": "tool", "content": calculate(row["expression"])},
        ]
        row = row | {"messages": [*row["messages"], *turns]}
    return _with(row, f"{row['expression']} is {row['answer']}.")


def _demonstrate_chat(split: str, rng: random.Random) -> Row:
    """Two turns: a greeting and then a request, or a request and then thanks."""
    request = _demonstrate_explain(split, rng)
    if rng.random() < 0.5:
        hello, welcome = rng.choice(wordings()["greetings"])
        before = [*_user(hello), {"role": "assistant", "content": welcome}]
        return request | {"kind": "chat", "messages": [*before, *request["messages"]]}
    thanks, reply = rng.choice(wordings()["thanks"])
    row = {"kind": "chat", "prompt": thanks, "messages": [*request["messages"], *_user(thanks)]}
    return _with(row, reply)


def demonstrations(
    n: int,
    seed: int,
    split: str = "train",
    kinds: Iterable[str] | dict[str, float] | None = None,
    tool: bool = True,
) -> list[Row]:
    """`n` demonstrations of mixed skill; the first rows of a larger `n` are those of a smaller one.

    kinds: names (in the default proportions) or name -> weight; None is the default mix `KINDS`.
    tool: False demonstrates sums without the calculator. Raises `CourseError` for an unknown kind.
    """
    _check_split(split)
    names = list(KINDS if kinds is None else kinds)
    if not names or not set(names) <= set(KINDS):
        raise CourseError(
            f"The kinds {names} of demonstrations are not all known; expected {list(KINDS)}."
        )
    weights = [(kinds if isinstance(kinds, dict) else KINDS)[name] for name in names]
    rows = []
    for i in range(n):
        rng = random.Random(f"demonstration/{split}/{seed}/{i}")
        kind = rng.choices(names, weights)[0]
        if kind == "explain":
            row = _demonstrate_explain(split, rng)
        elif kind == "refusal":
            row = _demonstrate_refusal(split, rng)
        elif kind == "safe":
            row = _demonstrate_safe(split, rng)
        elif kind == "calculator":
            sums = arithmetic_prompts(1, rng.randrange(2**31))
            row = demonstrate_sum(sums[0], tool)
        else:
            row = _demonstrate_chat(split, rng)
        rows.append(row)
    return rows
