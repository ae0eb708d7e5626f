"""Samples of the pocket world as text, for `course world show`."""

import random

from course_lib import CourseError
from course_lib.checks import suggest
from course_lib.world.topics import Topic, load_topics

OTHERS = ("topics", "problem", "exam", "instructions", "judge")


def show(what: str, n: int, rng: random.Random, seed: int) -> str:
    """`n` samples of a kind of text, or the card of a topic."""
    from course_lib.world.documents import SHARES, document

    topics = load_topics()
    kinds = {kind.removesuffix("s"): kind for kind in SHARES} | {kind: kind for kind in SHARES}
    if what not in (*OTHERS, *kinds, *topics):
        raise CourseError(
            f"There is no sample called {what!r}{suggest(what, (*OTHERS, *kinds, *topics))}; "
            f"expected {', '.join((*OTHERS, *SHARES))}, or a topic that "
            "`course world show topics` lists."
        )
    if what == "topics":
        return "\n".join(f"{t.id:24} {t.subject}" for t in topics.values())
    if what in topics and what not in kinds:
        return topic_card(topics[what])
    if what == "problem":
        samples = [_problem(rng) for _ in range(n)]
    elif what in kinds:
        samples = [document(kinds[what], rng) for _ in range(n)]
    elif what == "exam":
        from course_lib.world.exam import exam_items, render_item

        samples = [render_item(item, with_answer=True) for item in exam_items(n, seed)]
    else:
        samples = _demonstrations(n, seed, judged=what == "judge")
    return f"\n{'-' * 60}\n".join(sample.strip() for sample in samples)


def topic_card(topic: Topic) -> str:
    """Everything that the world knows about a topic; the first option of a fact is true."""
    lines = [f"{topic.name} ({topic.subject})", topic.sentence_definition, topic.sentence_like]
    for fact in topic.facts:
        lines += [f"- {fact.sentence()}", f"    false: {', '.join(fact.slot[1:])}"]
    return "\n".join([*lines, f"Myth: {topic.myth}", f"Truth: {topic.truth}"])


def _problem(rng: random.Random) -> str:
    from course_lib.world.problems import make_problem, problem_prompt, solution

    problem = make_problem(rng, rng.randint(1, 4))
    styles = ("answer", "symbols", "words", "wait")
    answers = [f"  [{style}] {solution(problem, style, rng)}" for style in styles]
    return "\n".join([problem_prompt(problem), *answers])


def _demonstrations(n: int, seed: int, judged: bool) -> list[str]:
    from course_lib.world.instructions import demonstrations

    samples = []
    for row in demonstrations(n, seed, kinds=["explain"] if judged else None):
        turns = [f"{m['role']}: {m['content']}" for m in row["messages"]]
        if judged:
            from course_lib.world.judge import judge

            verdict = judge(row, row["completion"])
            parts = ", ".join(f"{k} {v:+.2f}" for k, v in verdict.parts.items())
            turns.append(f"judge: {verdict.score:.2f} ({parts})")
        samples.append("\n".join(turns))
    return samples
