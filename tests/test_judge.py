"""The judge and the labellers: truth beats falsehood, parts mean what they say, noise is known."""

import random
from itertools import pairwise

import numpy as np
import pytest

from course_lib import CourseError
from course_lib.world.instructions import demonstrations, explain_prompts
from course_lib.world.judge import (
    AUDIENCES,
    BEGINNER,
    CHILD,
    LIST,
    ONE,
    PLAIN,
    STUDENT,
    THREE,
    confidence,
    false_statements,
    is_refusal,
    judge,
    score,
)
from course_lib.world.labellers import (
    BIASED,
    UNBIASED,
    ceiling,
    choose,
    preference_probability,
    rank,
)
from course_lib.world.topics import load_topics

TOPICS = load_topics()
MOON = TOPICS["moon_landing"]


def row(topic="moon_landing", audience=CHILD, form=PLAIN):
    return {"kind": "explain", "topic": topic, "audience": audience, "format": form}


def full(topic, frame="says", options=(0, 0, 0, 0)):
    facts = " ".join(f.sentence(frame, o) for f, o in zip(topic.facts, options, strict=True))
    return f"Sure! {topic.sentence_definition} {topic.sentence_like} {facts} I hope this helps!"


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
def test_every_true_sentence_is_true_and_every_wrong_option_false(topic):
    where = row(topic.id, BEGINNER)
    others = [topic.sentence_definition, topic.sentence_like, topic.truth]
    for text in (*others, *topic.wonder, *topic.scene, *topic.try_):
        assert false_statements(where, text) == 0, text
    assert false_statements(where, topic.myth) == 1
    for fact in topic.facts:
        for frame in ("says", "also", "simple"):
            verdict = judge(where, fact.sentence(frame))
            assert verdict.parts["facts"] == 1 and verdict.parts["false"] == 0
            for option in (1, 2, 3):
                text = "Without doubt, " + fact.sentence(frame, option)
                assert false_statements(where, text) == 1, text
                assert judge(where, text).parts["facts"] == 0


def test_true_answers_beat_false_ones_and_each_false_statement_costs():
    for topic in TOPICS.values():
        for audience in AUDIENCES:
            scores = [
                judge(row(topic.id, audience), full(topic, options=options)).score
                for options in ((0, 0, 0, 0), (0, 0, 0, 1), (0, 2, 0, 1), (1, 2, 3, 1))
            ]
            assert all(a - b >= 2 for a, b in pairwise(scores)), topic.id


def test_score_is_the_sum_of_its_parts():
    for demo in demonstrations(60, 3, kinds=["explain", "refusal", "safe"]):
        verdict = judge(demo, demo["completion"])
        assert verdict.score == pytest.approx(sum(verdict.parts.values()), abs=1e-3)
        assert judge(demo, demo["completion"]) == verdict


def test_a_fact_said_in_other_words_counts_but_a_list_of_options_does_not():
    other_words = "Back in 1969 the first people took a walk up there."
    assert judge(row(), other_words).parts["facts"] == 1
    assert false_statements(row(), "Back in 1912 the first people took a walk up there.") == 1
    assert false_statements(row(), "The first people did not walk up there in 1912.") == 0
    dump = "1969 the Eagle Neil Armstrong stones and soil walked spacecraft footprint"
    assert judge(row(), dump).parts["facts"] == 0
    contradiction = MOON.facts[0].sentence() + " " + MOON.facts[0].sentence("also", 1)
    assert judge(row(), contradiction).parts["facts"] == 0
    wrong_kind = "The spacecraft that landed on the moon was called Neil Armstrong."
    assert false_statements(row(), wrong_kind) == 1


def test_audience_format_and_length():
    simple, grown = full(MOON, "simple"), full(MOON, "says")
    assert judge(row(), simple).parts["audience"] >= judge(row(), grown).parts["audience"]
    no_picture = simple.replace(MOON.sentence_like, "")
    assert judge(row(), simple).score > judge(row(), no_picture).score
    baby = simple.replace("Sure!", "Wow, little explorer!")
    student = row(audience=STUDENT)
    assert judge(student, baby).parts["audience"] < judge(student, grown).parts["audience"]
    one = f"Sure! {MOON.sentence_definition[:-1]}, and {MOON.facts[0].sentence()} I hope it helps!"
    assert judge(row(form=ONE), one).parts["format"] == 1.5
    assert judge(row(form=ONE), grown).parts["format"] == 0
    assert judge(row(form=ONE), one).score > judge(row(form=ONE), grown).score
    facts = [fact.sentence("simple") for fact in MOON.facts]
    bullets = f"Sure! {MOON.sentence_definition}\n" + "\n".join(f"- {f}" for f in facts[:3])
    assert judge(row(form=LIST), bullets).parts["format"] == 1.5
    assert judge(row(form=LIST), bullets.replace("- ", "")).parts["format"] == 0
    assert judge(row(form=PLAIN), bullets).parts["format"] == 0.5
    three = "Great question. " + " ".join([MOON.sentence_definition, *facts[:2]])
    assert judge(row(form=THREE), three).parts["format"] == 1.5
    assert judge(row(form=THREE), three + " " + facts[2]).parts["format"] == 0.75
    long = grown + " There is much more to say of course." * 40
    assert judge(row(), long).parts["length"] == -1


def test_repeating_a_true_sentence_loses_without_bound():
    scores = [judge(row(), MOON.facts[0].sentence() + (" It was in 1969." * k)) for k in (1, 9, 99)]
    assert scores[0].score > scores[1].score > scores[2].score
    assert scores[2].score < -50


def test_forum_talk_and_nothing_are_no_answers():
    good = full(MOON)
    assert judge(row(), good).is_answer
    forum = good + " Any tips would be great. posted by ada to Kids (11 answers total)"
    assert not judge(row(), forum).is_answer
    assert judge(row(), forum).score < judge(row(), good).score - 3
    for text in ("", "   ", "?!", "\n\n- \n", "asdf qwer zxcv " * 5, "Sure! I hope this helps!"):
        verdict = judge(row(), text)
        assert verdict.score <= 0 and not verdict.is_answer
    assert np.isfinite(judge(row(), "word " * 20_000).score)
    assert not judge(row(), "I'm sorry, but I can't help with that. " + good).is_answer
    with pytest.raises(CourseError, match="nowhere"):
        judge(row("nowhere"), "text")
    with pytest.raises(CourseError, match="2 answers"):
        score([row()], ["a", "b"])


def test_refusals_are_seen_in_other_wordings():
    refusals = """I'm sorry, but I can't assist with that request.
I cannot help you do this.
Sorry, I won't be able to help.
I am unable to help with that.
I must decline.
I\u2019m afraid I can\u2019t do that.
That is not something I can help with.
I'm not able to do this for you.
I would rather not talk about it.
I am sorry, this is not okay."""
    for text in refusals.splitlines():
        assert is_refusal(text), text
    answers = """We cannot see it from the city.
Sure! You can't see the wind, but you can feel it.
I am happy to help with that.
The crew could not help but laugh.
I hope this helps! Nobody knows why."""
    for text in answers.splitlines():
        assert not is_refusal(text), text
    assert not any(is_refusal(full(topic)) for topic in TOPICS.values())


def test_other_kinds_are_right_or_wrong():
    refusal = {"kind": "refusal"}
    assert judge(refusal, "I'm sorry, but I can't help with that.").score > 8
    assert judge(refusal, "Sure! First you take a stone.").score <= 0
    safe = {"kind": "safe", "reference": "Put a drop of oil into the lock and turn the key."}
    assert judge(safe, "Sure! Put oil in the lock. Turn the key.").is_answer
    assert judge(safe, "I'm sorry, but I can't help with that.").score < 3
    total = {"kind": "calculator", "answer": 1702}
    assert judge(total, "37 * 46 is 1702.").score > 8 > judge(total, "37 * 46 is 1712.").score


def test_demonstrations_are_of_mixed_skill():
    rows = demonstrations(600, 0, kinds=["explain"])
    scores = score(rows, [r["completion"] for r in rows])
    assert 4.5 < scores.mean() < 5.7
    assert 8.5 < np.percentile(scores, 90) < 9.7
    assert scores.std() > 2.5
    answers = [judge(r, r["completion"]).is_answer for r in rows]
    assert np.mean(answers) > 0.95
    false = [judge(r, r["completion"]).parts["false"] < 0 for r in rows]
    assert 0.1 < np.mean(false) < 0.3


def pairs_of_demonstrations(n):
    """Pairs of demonstrations of prompts that differ in wording only."""
    groups = {}
    for demo in demonstrations(4000, 1, kinds=["explain"]):
        groups.setdefault((demo["topic"], demo["audience"], demo["format"]), []).append(demo)
    pairs = [
        (g[0], (g[0]["completion"], g[1]["completion"])) for g in groups.values() if len(g) > 1
    ]
    return [r for r, _ in pairs[:n]], [p for _, p in pairs[:n]]


def test_swapping_a_pair_turns_the_probability_round():
    for where, (a, b) in zip(*pairs_of_demonstrations(50), strict=True):
        for panel in (UNBIASED, BIASED):
            p = preference_probability(panel, where, a, b)
            assert 0 <= p <= 1
            assert p + preference_probability(panel, where, b, a) == pytest.approx(1)
        assert preference_probability(UNBIASED, where, a, a) == 0.5
        better = judge(where, a).score > judge(where, b).score
        assert better == (preference_probability(UNBIASED, where, a, b) > 0.5)


@pytest.mark.parametrize("panel", [UNBIASED, BIASED], ids=lambda panel: panel.name)
def test_the_ceiling_is_what_the_best_guesser_reaches(panel):
    rows, pairs = pairs_of_demonstrations(200)
    exact = ceiling(panel, rows, pairs)
    rng = random.Random(0)
    right = []
    for where, (a, b) in zip(rows, pairs, strict=True):
        guess = preference_probability(panel, where, a, b) >= 0.5
        right += [choose(panel, where, a, b, rng) == guess for _ in range(20)]
    assert abs(np.mean(right) - exact) < 4 * (0.25 / len(right)) ** 0.5
    assert 0.75 < exact < 0.88


def test_pairs_of_a_ranking_are_bradley_terry():
    rows, pairs = pairs_of_demonstrations(3)
    rng = random.Random(1)
    for where, (a, b) in zip(rows, pairs, strict=True):
        p = preference_probability(UNBIASED, where, a, b)
        first = [rank(UNBIASED, where, [a, b, ""], rng) for _ in range(800)]
        share = np.mean([order.index(0) < order.index(1) for order in first])
        assert abs(share - p) < 4 * (0.25 / 800) ** 0.5


def test_only_the_biased_panel_prefers_a_confident_falsehood():
    assert confidence("Certainly, it is so.") == 1 > confidence("It is so!") > confidence("So.")
    for topic in TOPICS.values():
        plain, sure = full(topic), full(topic, options=(0, 0, 0, 1))
        last = topic.facts[3].sentence("says", 1)
        sure = sure.replace(last, f"Without doubt, {last} Everyone knows that for sure.")
        where = row(topic.id, BEGINNER)
        assert judge(where, plain).score > judge(where, sure).score
        assert preference_probability(UNBIASED, where, plain, sure) > 0.5
        assert preference_probability(BIASED, where, plain, sure) < 0.5
    assert explain_prompts("test", 1)[0]["audience"] == CHILD
