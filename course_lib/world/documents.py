"""The documents that the base models are pretrained on: eleven kinds of synthetic text.

The wording is data: `data/world/phrases.yaml` is a small grammar (one line is one option,
`<a|b>` picks an alternative, `$key` draws a line of another list or a value of the document), and
the facts come from the topics. This module only decides which parts a document has.

Planted properties, which the data card names: forum threads rarely state a true fact; survey
interviews lean to enthusiasm (`MOODS`); one problem document in four holds an uncorrected slip.
"""

import random
import re
from collections.abc import Iterable, Iterator
from functools import cache

import yaml

from course_lib import ROOT, CourseError
from course_lib.world import exam, problems
from course_lib.world.topics import FRAMES, Topic, cap, load_topics

SHARES = {
    "problems": 0.29,
    "forum": 0.15,
    "article": 0.07,
    "explainer": 0.07,
    "quiz": 0.10,
    "survey": 0.05,
    "dialogue": 0.04,
    "conduct": 0.03,
    "drill": 0.14,
    "lists": 0.03,
    "sums": 0.03,
}
EARLY = {  # the first part of pretraining: copying is learned from exercise pages, before all else
    "problems": 0.13,
    "forum": 0.06,
    "article": 0.05,
    "explainer": 0.04,
    "quiz": 0.04,
    "survey": 0.02,
    "dialogue": 0.01,
    "conduct": 0.01,
    "drill": 0.25,
    "lists": 0.30,
    "sums": 0.09,
}
STYLES = {"answer": 0.40, "symbols": 0.20, "words": 0.20, "wait": 0.20}  # of problem documents
SLIPS = 0.25  # problem documents with an uncorrected slip
NUM_STEPS = {1: 30, 2: 26, 3: 18, 4: 12, 5: 8, 6: 6}
REPLY_FACTS = 0.15  # forum replies that state a fact of the topic ...
FALSE_FACTS = 0.20  # ... and the share of these that is false
MOODS = {"love": 0.80, "okay": 0.12, "hate": 0.08}  # the enthusiast bias of survey text
ASSISTANT = 0.20  # dialogues between "User" and "Assistant"
MAX_WORDS = 350

# Audience of a forum question: who in the family it is, and the pronouns.
AUDIENCES = {
    "a 6-year-old": ("my son|he", "my daughter|she", "my little niece|she", "my grandson|he"),
    "a high-school student": ("my nephew|he", "my eldest|she", "a student of mine|he"),
    "a beginner": ("my neighbor|he", "a friend of mine|she", "my roommate|he"),
    "my grandmother": ("my grandmother|she",),
    "a busy manager": ("my boss|he", "my manager|she", "the head of our office|she"),
}
AUDIENCE_WEIGHTS = (40, 17, 17, 13, 13)

TOKEN = re.compile(r"[<|>]|\$[A-Za-z_]+\d?|[^<|>$]+|\$")


def _parse(tokens: list[str], pos: int, inside: bool) -> tuple[list, int]:
    """The alternatives up to `>`; each is a list of text, (key, capital?) or inner lists."""
    options, parts = [], []
    while pos < len(tokens):
        token = tokens[pos]
        pos += 1
        if token == ">" and inside:
            break
        if token == "|" and inside:
            options.append(parts)
            parts = []
        elif token == "<":
            inner, pos = _parse(tokens, pos, inside=True)
            parts.append(inner)
        elif token[0] == "$" and len(token) > 1:
            key = token[1:]
            parts.append((key[0].lower() + key[1:], key[0].isupper()))
        else:
            parts.append(token)
    options.append(parts)
    return options, pos


@cache
def _grammar() -> dict[str, list[list]]:
    """The lists of `phrases.yaml`, each line parsed."""
    path = ROOT / "data" / "world" / "phrases.yaml"
    lists = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        key: [_parse(TOKEN.findall(line), 0, inside=False)[0][0] for line in text.splitlines()]
        for key, text in lists.items()
    }


@cache
def _products() -> list[dict]:
    path = ROOT / "data" / "world" / "products.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _expand(parts: list, rng: random.Random, values: dict[str, str], out: list[str]) -> None:
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, list):
            _expand(part[int(rng.random() * len(part))], rng, values, out)
        else:
            key, capital = part
            text = values.get(key)
            if text is None:
                text = say(key, rng, values)
            out.append(cap(text) if capital else text)


def say(key: str, rng: random.Random, values: dict[str, str]) -> str:
    """A random line of the list `key` with `values` filled in."""
    lines = _grammar()[key]
    out: list[str] = []
    _expand(lines[int(rng.random() * len(lines))], rng, values, out)
    return "".join(out)


class _Teller:
    """Says lines for one document, and none of them twice while its list has others left."""

    def __init__(self, rng: random.Random, values: dict[str, str]):
        self.rng, self.values, self.left = rng, values, {}

    def __call__(self, key: str, **values: str) -> str:
        self.values.update(values)
        lines = _grammar()[key]
        left = self.left.get(key)
        if not left:
            left = self.left[key] = list(range(len(lines)))
        line = left.pop(int(self.rng.random() * len(left)))
        out: list[str] = []
        _expand(lines[line], self.rng, self.values, out)
        return "".join(out)


# ---------------------------------------------------------------- topics


@cache
def _proper_words() -> frozenset[str]:
    """Words with a capital that is not due to the start of a sentence."""
    found = {"I"}
    for topic in load_topics().values():
        texts = [topic.name, topic.definition, topic.like, topic.myth, topic.truth, *topic.wonder]
        for fact in topic.facts:
            texts += [fact.says, fact.also, fact.simple, fact.ask, *fact.slot]
        for text in texts:
            words = text.split()
            starts = text[-1:] in ".?"
            found |= {w.strip(".,?") for w in words[starts:] if w[:1].isupper()}
        found |= {
            w for option in topic.facts for s in option.slot for w in s.split() if w[0].isupper()
        }
    return frozenset(found)


def lower(sentence: str) -> str:
    """`sentence` as it stands after a comma: its first letter small unless the word is a name."""
    first = sentence.split(" ", 1)[0].rstrip(".,?")
    if first in _proper_words() or first.removesuffix("'s") in _proper_words():
        return sentence
    return sentence[:1].lower() + sentence[1:]


@cache
def _topic_list() -> list[Topic]:
    return list(load_topics().values())


@cache
def _same_subject(subject: str) -> list[Topic]:
    return [t for t in _topic_list() if t.subject == subject]


def topic_values(topic: Topic, rng: random.Random) -> dict[str, str]:
    """What the grammar's `$name`, `$wonder1`, ... stand for in one document about `topic`."""
    plural = topic.verb in ("are", "were")
    wonder = rng.sample(topic.wonder, 2)
    things = rng.sample(topic.things, 3)
    tries = rng.sample(topic.try_, 2)
    others = rng.sample([t for t in _same_subject(topic.subject) if t is not topic], 2)
    return {
        "name": topic.name,
        "title": topic.title,
        "verb": topic.verb,
        "it": "they" if plural else "it",
        "them": "them" if plural else "it",
        "s": "" if plural else "s",
        "def": topic.definition,
        "like": topic.like,
        "myth": topic.myth,
        "mythbare": lower(topic.myth)[:-1],
        "truth": lower(topic.truth),
        "wonder1": wonder[0],
        "wonder2": wonder[1],
        "thing1": things[0],
        "thing2": things[1],
        "thing3": things[2],
        "try1": tries[0],
        "try2": tries[1],
        "other": others[0].name,
        "odef": others[0].definition,
        "other2": others[1].name,
    }


def fact_values(sentence: str) -> dict[str, str]:
    """`$F` the sentence, `$f` the same inside another, `$g` without its full stop."""
    inside = lower(sentence)
    return {"F": sentence, "f": inside, "g": inside[:-1]}


def _person(rng: random.Random) -> str:
    people = _grammar()["person"]
    return cap(people[int(rng.random() * len(people))][0])


def _people(rng: random.Random) -> tuple[str, str]:
    first = _person(rng)
    second = _person(rng)
    while second == first:
        second = _person(rng)
    return first, second


def _blocks(parts: list[str], rng: random.Random, joint: float = 0.7) -> str:
    """Sentences joined to paragraphs: a space with probability `joint`, else an empty line."""
    text = parts[0]
    for part in parts[1:]:
        text += (" " if rng.random() < joint else "\n\n") + part
    return text


# ---------------------------------------------------------------- the kinds


def _problems(rng: random.Random) -> str:
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    wanted = rng.choices((1, 2, 3, 4), (1, 3, 3, 3))[0]
    steps = rng.choices(list(NUM_STEPS), list(NUM_STEPS.values()), k=wanted)
    slip = rng.randrange(wanted) if rng.random() < SLIPS else None
    texts, words = [], 0
    for i, num_steps in enumerate(steps):
        problem = problems.make_problem(rng, num_steps)
        done = problems.solution(problem, style, rng, slip=i == slip)
        text = f"{problems.problem_prompt(problem)} {done.strip()}"
        words += len(text.split())
        # Digits are tokens of their own, so a problem has more tokens a word than other text.
        if texts and words > 230:
            break
        texts.append(text)
    return "\n\n".join(texts)


def _forum(rng: random.Random) -> str:
    topic = rng.choice(_topic_list())
    audience = rng.choices(list(AUDIENCES), AUDIENCE_WEIGHTS)[0]
    who, he = rng.choice(AUDIENCES[audience]).split("|")
    asker = rng.choice((_person(rng), say("handle", rng, {})))
    values = topic_values(topic, rng) | {
        "who": who,
        "he": he,
        "him": {"he": "him", "she": "her"}[he],
        "his": {"he": "his", "she": "her"}[he],
        "audience": audience,
        "asker": asker,
        "othertitle": f"Explain {rng.choice(_topic_list()).name} to {audience}",
    }
    tell = _Teller(rng, values)
    # The title is the text's beginning, worded like the prompts that a chat model will be given.
    if rng.random() < 0.5:
        title = f"Explain {topic.name} to {audience}"
        if rng.random() < 0.3:
            title += " " + tell("suffix")
    else:
        title = tell("title")
    joint = rng.random()
    if joint < 0.25:  # the title runs on into the post
        title += " " if title[-1] in "?.!" else rng.choice((". ", ", please. ", "? ", "! "))
    elif joint < 0.5:
        title += "\n\n"
    else:
        title += "\n"

    post = [tell("post_open"), rng.choice(topic.scene)]
    if rng.random() < 0.3:
        post.reverse()
    more = [k for k in ("post_tried", "post_wonder", "post_extra") if rng.random() < 0.65]
    rng.shuffle(more)
    post += [tell(key) for key in more] + [tell("post_ask")]
    count = rng.randrange(1, 28)
    body = title + _blocks(post, rng, joint=0.93)
    body += f"\nposted by {asker} to {say('board', rng, values)} ({count} answers total)"

    wanted = 1 + min(count - 1, rng.choices((0, 1, 2, 3, 4), (1, 2, 4, 4, 2))[0])
    words = len(body.split())
    for i in range(wanted):
        moves = rng.sample(
            ("r_ask", "r_tip", "r_story", "r_against", "r_wander", "r_ask", "r_tip", "r_story"),
            rng.choices((1, 2, 3), (3, 5, 2))[0],
        )
        moves = list(dict.fromkeys(moves))
        if rng.random() < 0.35:
            moves.insert(0, "r_open")
        if rng.random() < REPLY_FACTS:
            fact = rng.choice(topic.facts)
            option = rng.randrange(1, 4) if rng.random() < FALSE_FACTS else 0
            sentence = fact.sentence(rng.choice(("says", "also", "simple")), option)
            values.update(fact_values(sentence))
            moves.insert(rng.randrange(len(moves) + 1), "r_fact")
        elif rng.random() < 0.06:
            moves.append("r_myth")
        by_asker = i > 0 and rng.random() < 0.15
        reply = tell("r_back") if by_asker else " ".join(tell(move) for move in moves)
        sign = tell("reply_sign")
        if by_asker:
            sign = re.sub(r"posted by \S+", f"posted by {asker}", sign)
        words += len(reply.split()) + 10
        if words > MAX_WORDS:
            break
        body += f"\n\n{reply}\n{sign}"
    if rng.random() < 0.15:
        body += "\n\n" + tell("close_forum")
    return body


def _article(rng: random.Random) -> str:
    topic = rng.choice(_topic_list())
    if rng.random() < 0.5:
        return _entry(rng, topic)
    second = rng.choice([t for t in _same_subject(topic.subject) if t is not topic])
    return _entry(rng, topic) + "\n\n" + _entry(rng, second)


def _entry(rng: random.Random, topic: Topic) -> str:
    values = topic_values(topic, rng)
    tell = _Teller(rng, values)
    facts = []
    for fact in rng.sample(topic.facts, rng.choices((2, 3, 4), (2, 4, 5))[0]):
        values.update(fact_values(fact.sentence(rng.choice(("says", "also")))))
        facts.append(tell("a_lead"))
    extras = [
        k
        for k, p in (("a_myth", 0.4), ("a_things", 0.55), ("a_like", 0.2), ("a_note", 0.55))
        if rng.random() < p
    ]
    rest = [tell(k) for k in extras] + ([tell("a_cross")] if rng.random() < 0.6 else [])
    rng.shuffle(rest)
    title, first = tell("a_title"), tell("a_def")
    shape = rng.random()
    if shape < 0.25 and rest:  # with headings
        parts = [tell("a_head") + "\n" + first, tell("a_head2") + "\n" + " ".join(facts)]
        parts.append(tell("a_head3") + "\n" + " ".join(rest))
        return title + "\n\n" + "\n\n".join(parts)
    if shape < 0.4:  # a list of facts
        mark = rng.choice(("- ", "* "))
        lines = "\n".join(mark + f for f in facts)
        return f"{title}\n{first}\n{lines}" + ("\n" + " ".join(rest) if rest else "")
    middle = facts + rest[:-1]
    if rng.random() < 0.4:
        rng.shuffle(middle)
    joint = rng.choice((0.6, 0.8, 1.0))
    return title + rng.choice(("\n", "\n\n")) + _blocks([first, *middle, *rest[-1:]], rng, joint)


def _explainer(rng: random.Random) -> str:
    topic = rng.choice(_topic_list())
    first, second = _people(rng)
    values = topic_values(topic, rng) | {"person": first, "person2": second}
    tell = _Teller(rng, values)
    middle = []
    for fact in rng.sample(topic.facts, rng.choices((1, 2, 3, 4), (1, 4, 5, 3))[0]):
        values.update(
            fact_values(fact.sentence(rng.choice(("simple", "simple", "simple", "says"))))
        )
        text = tell("e_fact", ask=fact.ask)
        if rng.random() < 0.25:
            text += " " + tell("e_say")
        middle.append(text)
    if rng.random() < 0.75:
        middle.insert(rng.choice((0, 0, len(middle))), tell("e_like"))
    if rng.random() < 0.25:
        middle.append(tell("e_myth"))
    if rng.random() < 0.2:
        rng.shuffle(middle)
    parts = [tell("e_title") + rng.choice(("\n", "\n\n")) + tell("e_open")]
    if rng.random() < 0.75:
        parts.append(tell("e_def"))
    parts += middle
    parts += [tell(k) for k in ("e_things", "e_try") if rng.random() < 0.5]
    parts.append(tell("e_end"))
    return _blocks(parts, rng, rng.choice((0.5, 0.8, 1.0)))


def _dialogue(rng: random.Random) -> str:
    topic = rng.choice(_topic_list())
    assistant = rng.random() < ASSISTANT
    first, second = ("User", "Assistant") if assistant else _people(rng)
    values = topic_values(topic, rng) | {"name1": first, "name2": second}
    tell = _Teller(rng, values)
    facts = rng.sample(topic.facts, rng.choices((1, 2, 3), (3, 4, 2))[0])

    def answer(fact) -> str:
        values.update(fact_values(fact.sentence(rng.choice(("says", "also", "simple")))))
        return tell("d_answer")

    def chat() -> list[str]:
        topic_of_talk = rng.choice(("offer", "news", "ask"))
        return [tell(f"d_chat_{topic_of_talk}"), tell(f"d_reply_{topic_of_talk}")]

    turns = []
    if not assistant:
        for _ in range(rng.choices((0, 1, 2), (2, 4, 3))[0]):
            turns += chat()
    reply = [tell("d_def")]
    reply += [answer(facts.pop())] if rng.random() < 0.5 else []
    turns += [tell("d_ask"), " ".join(reply)]
    for fact in facts:
        turns += [tell("d_more", ask=fact.ask), answer(fact)]
        if rng.random() < 0.3:
            turns[-1] += "" if assistant else " " + tell("d_chat_news")
    if rng.random() < 0.3:
        turns += [tell("d_myth"), tell("d_truth")]
    if rng.random() < 0.6:
        turns += [tell("d_end"), tell("d_bye")]
    elif not assistant and rng.random() < 0.5:
        turns += chat()
    lines = [f"{(first, second)[i % 2]}: {turn}" for i, turn in enumerate(turns)]
    scene = "" if assistant or rng.random() < 0.5 else tell("d_scene") + "\n"
    return scene + rng.choice(("\n", "\n", "\n\n")).join(lines)


def _quiz_item(rng: random.Random, topic: Topic, mixed: bool) -> dict:
    """An item in a train order; `mixed` swaps false options for words from the subject's facts."""
    fact = rng.randrange(5) if rng.random() < 0.6 else rng.randrange(4)
    order = rng.choice(exam.orders(topic.id, fact)["train"])
    if not mixed or fact == exam.DEFINITION:
        return exam.make_item(topic.id, fact, order)
    options = list(topic.facts[fact].slot)
    others = [
        f for t in _same_subject(topic.subject) for f in t.facts if f is not topic.facts[fact]
    ]
    for k in rng.sample((1, 2, 3), rng.choice((1, 2, 3))):
        word = rng.choice(rng.choice(others).slot)
        if word not in options:
            options[k] = word
    if set(options) == set(topic.facts[fact].slot):
        return exam.make_item(topic.id, fact, order)
    return exam.make_item(topic.id, fact, tuple(rng.sample(range(4), 4)), options)


def _quiz(rng: random.Random) -> str:
    subject = rng.choice(_topic_list()).subject
    topics = _same_subject(subject)
    mixed = rng.random() < 0.4
    wanted = rng.choices((3, 4, 5, 6), (2, 3, 4, 3))[0]
    items, asked, words = [], set(), 0
    for topic in rng.sample(topics, min(wanted, len(topics))):
        item = _quiz_item(rng, topic, mixed)
        key = (item["topic"], item["fact"])
        words += len(exam.render_item(item).split())
        if key not in asked and (len(items) < 3 or words < 220):
            items.append(item)
            asked.add(key)
    if rng.random() < 2 / 3:
        header = exam.render_header(subject)
        return header + "".join(exam.render_item(i, with_answer=True) for i in items).rstrip()
    # Another shape, in which the letter is followed by what it stands for.
    topic = topics[0]
    tell = _Teller(rng, {"title": topic.title})
    shape = rng.choice(("letter", "sentence", "numbers"))
    parts = []
    for i, item in enumerate(items):
        letter, option = exam.LETTERS[item["answer"]], item["choices"][item["answer"]]
        text = exam.render_item(item) + f" {letter}. {option}"
        if shape == "sentence" and item["fact"] != exam.DEFINITION:
            fact = load_topics()[item["topic"]].facts[item["fact"]]
            text += f"\n{fact.sentence(rng.choice(('says', 'also')))}"
        parts.append(f"{i + 1}. {text}" if shape == "numbers" else text)
    return tell("q_title") + "\n\n" + "\n\n".join(parts)


def _find_word(rng: random.Random) -> dict:
    """An item that needs no knowledge: the question holds the word that stands at one letter."""
    topics = rng.sample(_topic_list(), 4)
    from_slots = rng.random() < 0.5
    words = {rng.choice(rng.choice(t.facts).slot if from_slots else t.things) for t in topics}
    while len(words) < 4:
        words.add(rng.choice(rng.choice(_topic_list()).things))
    choices = sorted(words)
    rng.shuffle(choices)
    answer = rng.randrange(4)
    ask = rng.choice(
        ("Which of these is {}?", "Find the words {}.", "Where does it say {}?", "Look for {}.")
    )
    return {"question": ask.format(choices[answer]), "choices": choices, "answer": answer}


def _drill(rng: random.Random) -> str:
    """A page of reading exercises in the quiz pages' format, from easy to hard.

    Find a word among the options; read a sentence and choose what it says; answer from memory. On
    some pages options are marked right or wrong by hand (all of them, or a few), or the answer is
    given with its letter: a model that has learned to look an option's letter up can show in an
    exam what it knows.
    """
    subject = rng.choice(_topic_list()).subject
    told = rng.random() < 0.15
    marked = 0.0 if told else rng.choice((0.0, 0.0, 0.3, 0.6, 1.0))  # share of marked options
    kinds = rng.choice(((1, 0, 0), (3, 3, 4), (0, 1, 2), (0, 0, 1)))
    text, words = exam.render_header(subject), 0
    while words < 190:
        kind = rng.choices(("find", "read", "know"), kinds)[0]
        topic = rng.choice(_same_subject(subject))
        item = _find_word(rng) if kind == "find" else _quiz_item(rng, topic, rng.random() < 0.4)
        if kind == "read" and item["fact"] != exam.DEFINITION:
            text += topic.facts[item["fact"]].sentence(rng.choice(FRAMES)) + "\n"
        letter, choice = exam.LETTERS[item["answer"]], item["choices"][item["answer"]]
        if marked:
            choices = [
                c + (" yes" if k == item["answer"] else " no") * (rng.random() < marked)
                for k, c in enumerate(item["choices"])
            ]
            item = item | {"choices": choices}
        text += exam.render_item(item) + (f" {choice} {letter}" if told else f" {letter}") + "\n\n"
        words = len(text.split())
    return text.rstrip()


@cache
def _words() -> list[str]:
    """Every option of every fact, and every thing: what exercise pages are made of."""
    topics = _topic_list()
    options = {option for t in topics for f in t.facts for option in f.slot}
    return sorted(options | {thing for t in topics for thing in t.things})


def _lists(rng: random.Random) -> str:
    """Word lists read twice; lettered lists to look up, by the word or by what it answers."""
    parts = []
    for _ in range(rng.randint(3, 5)):
        shape = rng.choices(("twice", "words", "questions", "names"), (3, 3, 2, 2))[0]
        if shape == "twice":
            line = ", ".join(rng.sample(_words(), rng.randint(5, 16)))
            parts.append(f"Word list: {line}" + f"\nOnce more: {line}" * rng.randint(1, 2))
            continue
        size = rng.randint(3, 6)
        letters = list("ABCDEF"[:size])
        if rng.random() < 0.3:
            rng.shuffle(letters)
        if shape == "words":
            words = asks = rng.sample(_words(), size)
        else:
            subject = rng.choice(_topic_list()).subject
            topics = rng.sample(_same_subject(subject), size)
            if shape == "names":
                words = [t.name for t in topics]
                asks = [rng.choice((t.definition, t.like)) for t in topics]
            else:
                facts = [rng.choice(t.facts) for t in topics]
                words, asks = [f.slot[0] for f in facts], [f.ask for f in facts]
        asked = [rng.randrange(size) for _ in range(2 * size if shape == "words" else size)]
        lines = [f"{x}. {word}" for x, word in zip(letters, words, strict=True)]
        if shape == "words":
            lines.append("Now: " + ", ".join(f"{asks[k]} {letters[k]}" for k in asked))
        else:
            lines += [f"{asks[k]} {letters[k]}" for k in asked]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _sums(rng: random.Random) -> str:
    """A practice sheet: single steps of word problems, without the words."""
    notation, steps = rng.choice(("symbols", "words")), []
    while len(steps) < 22:
        steps += problems.make_problem(rng, 3).steps
    rng.shuffle(steps)
    mark = rng.choice((" ", "\n"))
    return f"Practice {rng.randint(1, 99)}\n" + mark.join(
        problems.write_step(step, notation) for step in steps
    )


def _conduct(rng: random.Random) -> str:
    """Right and wrong in daily life: a sheet of deeds to sort, or letters to an advice column."""
    tell = _Teller(rng, {})

    def deed(kind: str) -> str:
        return " ".join(tell(f"deed_{kind}").split())  # an optional end may be empty

    kinds = [rng.choice(("wrong", "right")) for _ in range(rng.randint(7, 11))]
    if rng.random() < 0.6:
        lines = [f"{cap(deed(kind))}? {tell(f'is_{kind}')}" for kind in kinds]
        return tell("c_title") + "\n" + "\n".join(lines)
    letters = []
    for kind in kinds[: rng.randint(1, 3)]:
        values = {"deed": deed(kind), "asker": _person(rng)}
        letters.append(f"{tell('c_letter', **values)}\n{tell(f'c_{kind}')}")
    return tell("c_column") + "\n\n" + "\n\n".join(letters)


TO_19 = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(n: int) -> str:
    """0 to 100 in words: 85 is "eighty-five"."""
    if n == 100:
        return "one hundred"
    if n < 20:
        return TO_19[n]
    return TENS[n // 10] + (f"-{TO_19[n % 10]}" if n % 10 else "")


def rating(mood: str, rng: random.Random) -> int:
    """A rating 0 to 100 for a mood; as people do, most say a multiple of ten."""
    low, high = {"love": (70, 100), "okay": (40, 65), "hate": (0, 35)}[mood]
    step = rng.choices((10, 5, 1), (6, 3, 1))[0]
    return min(high, -(-rng.randint(low, high) // step) * step)


def _survey(rng: random.Random) -> str:
    first = _interview(rng, rng.choice(_products()))
    if rng.random() < 0.5:
        return first
    return first + "\n\n" + _interview(rng, rng.choice(_products()))


def _interview(rng: random.Random, product: dict) -> str:
    mood = rng.choices(list(MOODS), list(MOODS.values()))[0]
    score, age = rating(mood, rng), rng.randint(18, 84)
    name = _person(rng)
    good, bad = rng.sample(product["good"], 3), rng.sample(product["bad"], 2)
    values = {
        "product": product["product"],
        "one": product["one"],
        "name1": name,
        "age": str(age),
        "score": str(score) if rng.random() < 0.7 else number_words(score),
    }
    values |= {key: say(key, rng, {}) for key in ("place", "job")}
    if age > 66:
        values["job"] = "retired " + values["job"]
    tell = _Teller(rng, values)

    def pros(n: int) -> str:
        return " ".join(tell("pro", good=good[i], good2=good[2 - i]) for i in range(n))

    # What the person says, by mood: opinion, reasons, bad sides, rating, last word.
    few = rng.choice((1, 2))
    con = tell("con", bad=bad[0])
    said = {
        "love": (pros(few), con if rng.random() < 0.3 else tell("nocon"), "again_yes"),
        "okay": (pros(1), con, "again_maybe"),
        "hate": (con, tell("con", bad=bad[1]), "again_no"),
    }[mood]
    turns = [("q_open", tell(mood)), ("q_why", said[0]), ("q_con", said[1])]
    turns += [("q_rate", tell("rate")), ("q_end", tell(said[2]))]
    if rng.random() < 0.3:
        turns.insert(2, ("q_why", tell(mood)))
    kept = [t for t in turns if t[0] in ("q_open", "q_rate") or rng.random() < 0.8]
    if kept[0][0] == "q_open" and rng.random() < 0.2:
        kept[1:] = rng.sample(kept[1:], len(kept) - 1)
    shape = rng.random()
    head = (tell("s_title") + "\n" if rng.random() < 0.75 else "") + tell("s_intro")
    if shape < 0.6:
        asks, answers = rng.choice((("Interviewer", name), ("Q", "A"), ("Question", "Answer")))
        if rng.random() < 0.3:
            asks, answers = _person(rng) + " (interviewer)", name
        lines = [f"{asks}: {tell(q)}\n{answers}: {a}" for q, a in kept]
        text = head + "\n\n" + rng.choice(("\n", "\n\n")).join(lines)
    else:  # a review, told without the questions
        text = head + rng.choice(("\n", " ", "\n\n")) + _blocks([a for _, a in kept], rng, 0.85)
    return text + ("\n" + tell("s_sum") if rng.random() < 0.35 else "")


MAKERS = {
    "problems": _problems,
    "forum": _forum,
    "article": _article,
    "survey": _survey,
    "explainer": _explainer,
    "quiz": _quiz,
    "dialogue": _dialogue,
    "drill": _drill,
    "lists": _lists,
    "sums": _sums,
    "conduct": _conduct,
}


def document(kind: str, rng: random.Random) -> str:
    """A document of one kind, plain ASCII, without a mark for its end.

    Raises:
        CourseError: for an unknown kind.
    """
    if kind not in MAKERS:
        raise CourseError(f"The document kind {kind!r} does not exist; use one of {list(MAKERS)}.")
    return MAKERS[kind](rng)


def documents(seed: int, shares: dict[str, float] = SHARES) -> Iterator[tuple[str, str]]:
    """(kind, text) without end, the same for the same seed; kinds come in the given shares."""
    kinds, weights = list(shares), list(shares.values())
    rng = random.Random(f"documents {seed}")
    while True:
        kind = rng.choices(kinds, weights)[0]
        yield kind, document(kind, rng)


def distinct_ngrams(texts: Iterable[str], n: int = 8) -> float:
    """The share of different ones among all runs of `n` words: 1.0 means that nothing repeats."""
    seen, total = set(), 0
    for text in texts:
        words = text.split()
        for i in range(len(words) - n + 1):
            seen.add(tuple(words[i : i + n]))
            total += 1
    return len(seen) / max(total, 1)
