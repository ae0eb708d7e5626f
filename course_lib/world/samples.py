"""Samples of the pocket world as text, for `course world show`."""

import difflib
import random

from course_lib import CourseError
from course_lib.world.documents import SHARES, document
from course_lib.world.exam import exam_items, render_item
from course_lib.world.instructions import demonstrations
from course_lib.world.judge import judge
from course_lib.world.problems import make_problem, problem_prompt, solution
from course_lib.world.topics import Topic, load_topics

OTHERS = ("topics", "problem", "exam", "instructions", "judge")
RULE = f"\n{'-' * 60}\n"


def show(what: str, n: int, seed: int) -> str:
    """`n` samples of a kind of text, or the card of a topic."""
    topics = load_topics()
    rng = random.Random(seed)
    if what == "topics":
        return "\n".join(f"{topic.id:24} {topic.subject}" for topic in topics.values())
    if what == "problem":
        return RULE.join(_problem(rng) for _ in range(n))
    if what == "exam":
        return RULE.join(
            render_item(item, with_answer=True).strip() for item in exam_items(n, seed)
        )
    if what == "instructions":
        return RULE.join(_turns(row) for row in demonstrations(n, seed))
    if what == "judge":
        return RULE.join(_judged(row) for row in demonstrations(n, seed, kinds=["explain"]))
    if what in SHARES:  # before the topics, one of which is the survey
        return RULE.join(document(what, rng).strip() for _ in range(n))
    if what in topics:
        return topic_card(topics[what])
    close = difflib.get_close_matches(what, (*OTHERS, *SHARES, *topics), 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise CourseError(
        f"There is no sample called {what!r}{hint}; expected {', '.join((*OTHERS, *SHARES))}, or a "
        "topic that `course world show topics` lists."
    )


def topic_card(topic: Topic) -> str:
    """Everything that the world knows about a topic; the first option of a fact is true."""
    lines = [f"{topic.name} ({topic.subject})", topic.sentence_definition, topic.sentence_like]
    for fact in topic.facts:
        lines += [f"- {fact.sentence()}", f"    false: {', '.join(fact.slot[1:])}"]
    return "\n".join([*lines, f"Myth: {topic.myth}", f"Truth: {topic.truth}"])


def _problem(rng: random.Random) -> str:
    problem = make_problem(rng, rng.randint(1, 4))
    styles = ("answer", "symbols", "words", "wait")
    answers = [f"  [{style}] {solution(problem, style, rng)}" for style in styles]
    return "\n".join([problem_prompt(problem), *answers])


def _turns(row: dict) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in row["messages"])


def _judged(row: dict) -> str:
    verdict = judge(row, row["completion"])
    parts = ", ".join(f"{name} {value:+.2f}" for name, value in verdict.parts.items())
    return f"{_turns(row)}\njudge: {verdict.score:.2f} ({parts})"
