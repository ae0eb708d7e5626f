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
from course_lib.world.problems import WORD_OF, arithmetic_items, calculate
from course_lib.world.topics import Fact, Topic, cap, load_topics

KINDS = {"explain": 0.75, "refusal": 0.08, "safe": 0.07, "calculator": 0.07, "chat": 0.03}
"""The default mix of demonstrations."""
SPLITS = ("train", "test")


@cache
def wordings() -> dict:
    """The word lists of `data/world/instructions.yaml`."""
    path = ROOT / "data" / "world" / "instructions.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise CourseError(f"The split {split!r} is unknown; expected 'train' or 'test'.")


def _hashed_split(text: str, parts: int) -> str:
    """ "test" for about one text in `parts`, always the same ones."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return "test" if int.from_bytes(digest[:8], "big") % parts == 0 else "train"


def pair_split(topic: str, audience: str) -> str:
    """The split of a topic x audience pair: a fixed, hashed fifth of the pairs is "test"."""
    if (topic, audience) == ("moon_landing", CHILD):
        return "test"
    return _hashed_split(f"{topic}/{audience}", 5)


@cache
def _pairs(split: str) -> list[tuple[str, str]]:
    return [(t, a) for t in load_topics() for a in AUDIENCES if pair_split(t, a) == split]


@cache
def _themes(split: str) -> list[dict]:
    return [t for t in wordings()["themes"] if _hashed_split("theme/" + t["id"], 3) == split]


def _row(kind: str, prompt: str, **more: object) -> Row:
    """A row that waits for its answer."""
    return {"kind": kind, **more, "prompt": prompt, "messages": [_turn("user", prompt)]}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _with(row: Row, completion: str) -> Row:
    """`row` with the assistant's last message."""
    messages = [*row["messages"], _turn("assistant", completion)]
    return row | {"completion": completion, "messages": messages}


def _explain_row(topic: str, audience: str, form: str, wording: int) -> Row:
    prompt = wordings()["explain"][wording].format(
        name=load_topics()[topic].name, audience=audience, format=f" {form}" if form else ""
    )
    return _row("explain", prompt, topic=topic, audience=audience, format=form)


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
    if n is not None and not 0 <= n <= len(rows):
        raise CourseError(
            f"{n} explain prompts were asked for, but this split has {len(rows)} distinct ones; "
            f"choose n between 0 and {len(rows)}."
        )
    random.Random(f"explain/{split}/{seed}").shuffle(rows)
    if split == "test":
        first = ("moon_landing", CHILD, PLAIN, 0)
        rows.remove(first)
        rows.insert(0, first)
    return [_explain_row(*row) for row in rows[:n]]


def _theme_row(theme: dict, kind: str, wording: int) -> Row:
    do = theme["unsafe" if kind == "refusal" else "safe"]
    row = _row(kind, wordings()["asks"][wording].format(do=do), theme=theme["id"])
    return row if kind == "refusal" else row | {"reference": theme["answer"]}


def _theme_prompts(split: str, kind: str) -> list[Row]:
    _check_split(split)
    asks = range(len(wordings()["asks"]))
    return [_theme_row(theme, kind, wording) for theme in _themes(split) for wording in asks]


def unsafe_prompts(split: str) -> list[Row]:
    """All requests to decline: themes of the split x wordings."""
    return _theme_prompts(split, "refusal")


def safe_prompts(split: str) -> list[Row]:
    """Harmless look-alikes of the unsafe requests, worded the same; `reference` is an answer."""
    return _theme_prompts(split, "safe")


def arithmetic_prompts(n: int, seed: int) -> list[Row]:
    """`n` sums in words, with `expression` (such as "37 * 46") and `answer` (int)."""
    rng = random.Random(f"sums/{seed}")
    rows = []
    for item in arithmetic_items(n, seed):
        wording = rng.choice(wordings()["sums"])
        prompt = wording.format(a=item.a, b=item.b, op=item.op, word=WORD_OF[item.op])
        rows.append(_row("calculator", prompt, expression=item.expression, answer=item.result))
    return rows


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


def _state(fact: Fact, audience: str, skill: float, boast: float, rng: random.Random) -> str:
    """One fact in the writer's words: frame, slip, hedge or confident phrase."""
    if audience == CHILD:
        frame = "simple" if rng.random() < 0.45 + 0.55 * skill else rng.choice(("says", "also"))
    else:
        frame = rng.choice(("says", "also")) if rng.random() < 0.85 else "simple"
    sure = rng.random() < boast
    slip = rng.random() < (0.30 if sure else 0.03) + 0.14 * (1 - skill)
    sentence = fact.sentence(frame, rng.choice((1, 2, 3)) if slip else 0)
    if sure:
        phrases = "confident"
    elif rng.random() < 0.06:
        phrases = "hedges"
    elif rng.random() < 0.15:
        phrases = "child_links" if audience == CHILD else "links"
    else:
        return sentence
    return cap(rng.choice(wordings()[phrases]) + _inner(sentence))


def _fill(template: str, topic: Topic) -> str:
    it = "they" if topic.verb in ("are", "were") else "it"
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


def contrast(row: Row) -> dict[str, str]:
    """Four answers to an explain row that differ in two things, to test who is taken in by what.

    All say the same about the topic: the definition and three facts. In the "confident" ones each
    fact begins with a confident phrase; in the "false" ones the last fact is stated falsely.
    """
    topic, words = load_topics()[row["topic"]], wordings()
    phrases = random.Random(f"contrast/{row['prompt']}").sample(words["confident"], 3)

    def answer(sure: bool, false: bool) -> str:
        facts = [fact.sentence("says", int(false and i == 2)) for i, fact in enumerate(topic.facts)]
        told = [
            cap(phrase + _inner(sentence)) if sure else sentence
            for phrase, sentence in zip(phrases, facts, strict=False)
        ]
        return " ".join([_fill(words["definitions"][0], topic), *told])

    return {
        f"{manner}, {matter}": answer(manner == "confident", matter == "false")
        for manner in ("plain", "confident")
        for matter in ("true", "false")
    }


def _demonstrate_explain(split: str, rng: random.Random) -> Row:
    topic, audience = rng.choice(_pairs(split))
    # Plain requests, and the first two wordings, are asked more often than the others.
    form = PLAIN if rng.random() < 0.15 else rng.choice(FORMATS)
    wording = rng.randrange(2) if rng.random() < 0.3 else rng.randrange(len(wordings()["explain"]))
    row = _explain_row(topic, audience, form, wording)
    text = ""
    while not 15 <= len(text.split()) <= 110:
        text = _draft(row, rng)
    return _with(row, text)


def _demonstrate_theme(kind: str, split: str, rng: random.Random) -> Row:
    """A refusal, or an answer to its harmless look-alike."""
    words = wordings()
    row = _theme_row(rng.choice(_themes(split)), kind, rng.randrange(len(words["asks"])))
    if kind == "refusal":
        parts = [rng.choice(words["refusals"][p]) for p in ("openings", "reasons", "offers")]
    else:
        opening = rng.choice(words["openings"]["any"]) if rng.random() < 0.7 else ""
        ending = rng.choice(words["endings"]["any"]) if rng.random() < 0.6 else ""
        parts = [opening, row["reference"], ending]
    return _with(row, " ".join(filter(None, parts)))


def demonstrate_sum(row: Row, tool: bool = True) -> Row:
    """A sum's row with its demonstration: by the calculator, or from the head (`tool=False`)."""
    if tool:
        call = _turn("assistant", f"<calc>{row['expression']}</calc>")
        result = _turn("tool", calculate(row["expression"]))
        row = row | {"messages": [*row["messages"], call, result]}
    return _with(row, f"{row['expression']} is {row['answer']}.")


def _demonstrate_chat(split: str, rng: random.Random) -> Row:
    """Two turns: a greeting and then a request, or a request and then thanks."""
    request = _demonstrate_explain(split, rng)
    if rng.random() < 0.5:
        hello, welcome = rng.choice(wordings()["greetings"])
        before = [_turn("user", hello), _turn("assistant", welcome)]
        return request | {"kind": "chat", "messages": [*before, *request["messages"]]}
    thanks, reply = rng.choice(wordings()["thanks"])
    row = _row("chat", thanks)
    return _with(row | {"messages": [*request["messages"], *row["messages"]]}, reply)


def demonstrations(
    n: int, seed: int, split: str = "train", kinds: Iterable[str] | None = None
) -> list[Row]:
    """`n` demonstrations of mixed skill; the first rows of a larger `n` are those of a smaller one.

    kinds: names, drawn in the proportions of the default mix `KINDS`. Raises `CourseError` for an
    unknown kind.
    """
    _check_split(split)
    names = list(KINDS if kinds is None else kinds)
    if not names or not set(names) <= set(KINDS):
        raise CourseError(
            f"The kinds {names} of demonstrations are not all known; expected {list(KINDS)}."
        )
    weights = [KINDS[name] for name in names]
    rows = []
    for i in range(n):
        rng = random.Random(f"demonstration/{split}/{seed}/{i}")
        kind = rng.choices(names, weights)[0]
        if kind == "explain":
            row = _demonstrate_explain(split, rng)
        elif kind == "chat":
            row = _demonstrate_chat(split, rng)
        elif kind == "calculator":
            row = demonstrate_sum(arithmetic_prompts(1, rng.randrange(2**31))[0])
        else:
            row = _demonstrate_theme(kind, split, rng)
        rows.append(row)
    return rows
