"""The word problems mean what they say, and the verifiers cannot be talked round."""

import random
import re
from collections import Counter

import pytest

from course_lib import CourseError
from course_lib.world import problems as P

MANY = [P.make_problem(random.Random(i), 1 + i % 6, s) for i in range(900) for s in P.SPLITS]


def test_steps_are_true_whole_and_lead_to_the_answer():
    for p in MANY:
        for i, step in enumerate(p.steps):
            assert P._compute(step.a, step.op, step.b) == step.result
            assert 1 <= step.result <= P.LARGEST
            for value, source in ((step.a, step.a_from), (step.b, step.b_from)):
                assert source < i
                assert source < 0 or p.steps[source].result == value
        assert p.steps[-1].result == p.answer
        assert len(p.steps) in range(1, P.MAX_STEPS + 1)


def test_every_number_of_the_steps_comes_from_the_text_or_from_a_step():
    for p in MANY:
        told = Counter(int(x) for x in re.findall(r"\d+", p.text))
        told.update(100 // x for x in map(int, re.findall(r"(\d+)%", p.text)))
        for step in p.steps:
            assert step.a_from >= 0 or told[step.a]
            assert step.b_from >= 0 or told[step.b]


def test_texts_read_well():
    for p in MANY:
        assert p.text.isascii() and p.text.endswith("?") and "{" not in p.text
        assert not re.search(r"\b[Aa] [aeio]|  | \.|\ba the\b", p.text), p.text
        assert all(s[0].isupper() or s[0].isdigit() for s in re.split(r"(?<=[.?]) ", p.text))
    words = [len(p.text.split()) for p in P.problem_set(300, 0, 3)]
    assert 33 <= sum(words) / len(words) <= 50


@pytest.mark.parametrize("style", P.STYLES)
def test_verifiers_accept_true_solutions(style):
    rng = random.Random(1)
    for p in MANY:
        text = P.solution(p, style, rng)
        for given in (text, " " + text, P.problem_prompt(p) + " " + text):
            assert P.verify_answer(p, given)
            assert P.verify_format(given)
        verdicts = P.verify_steps(text)
        assert len(verdicts) == {"answer": 0, "wait": len(p.steps) + 1}.get(style, len(p.steps))
        if style == "wait":
            at = verdicts.index(False)
            assert verdicts.count(False) == 1 and verdicts[at + 1] and " wait, " in text
            assert len(P.notation(text)) == 1
        else:
            assert all(verdicts)
            assert P.notation(text) == ({style} if style != "answer" else set())


@pytest.mark.parametrize("style", P.STYLES)
def test_verifiers_reject_slips(style):
    rng = random.Random(2)
    for p in MANY:
        text = P.solution(p, style, rng, slip=True)
        assert not P.verify_answer(p, text)
        assert P.verify_format(text)
        if style != "answer":
            false = P.verify_steps(text).count(False)
            assert false == (2 if style == "wait" else 1)
            assert P.extract_answer(text) == P.read_steps(text)[-1].result


def test_splits_share_no_text_and_no_sums():
    sets = {s: P.problem_set(3000, 0, (1, 2, 3), s) for s in P.SPLITS}
    texts = {s: {p.text for p in ps} for s, ps in sets.items()}
    assert all(len(t) == 3000 for t in texts.values())
    assert not texts["train"] & texts["test"]
    templates = {s: {p.template for p in ps} for s, ps in sets.items()}
    assert templates["train"] == templates["test"] and len(templates["train"]) >= 12
    assert len(templates["transfer"]) >= 4 and not templates["train"] & templates["transfer"]

    def sums(split):
        return {
            (p.template, tuple(re.findall(r"\d+", p.text)), tuple(s.op for s in p.steps))
            for p in sets[split]
            if len(p.steps) == 3
        }

    # A held-out sum with other words around it would not be held out.
    assert not sums("train") & sums("test")


def test_same_seed_same_problems():
    assert P.problem_set(50, 7) == P.problem_set(50, 7)
    assert P.problem_set(50, 7) != P.problem_set(50, 8)
    p = P.problem_set(1, 7)[0]
    twice = [P.solution(p, "wait", random.Random(3), slip=True) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("num_steps", range(1, 7))
def test_answers_cannot_be_guessed(num_steps):
    rng = random.Random(num_steps)
    answers = Counter(P.make_problem(rng, num_steps).answer for _ in range(3000))
    assert answers.most_common(1)[0][1] / 3000 < 0.05


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 17.", 17),
        ("The answer is 17", 17),
        ("The answer is -3.", -3),
        ("The answer is 1. The answer is 2.", 2),
        ("The answer is 17.\n\nProblem: more", 17),
        ("The answer is 17. The answer is", None),
        ("The answer is 17.5.", None),
        ("The answer is 17 or 18.", None),
        ("The answer is 1,700.", None),
        ("The answer is 8 + 9.", None),
        ("The answer is " + "9" * 5000 + ".", None),
        ("The answer is \u0661\u0667.", None),
        ("the answer", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert P.extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("3 * 4 = 12. 12 plus 5 is 17.", [True, True]),
        ("3 * 4 = 13. wait, 3 * 4 = 12.", [False, True]),
        ("12 divided by 4 is 3. 13 / 4 = 3. 3 / 0 = 0.", [True, False, False]),
        ("3 * 4 = 12 + 5 = 17.", [False]),
        ("1 + 3 * 4 = 12.", [False]),
        ("3 * 4 = 12.5.", [False]),
        ("So 3 * 4 = 12.", [False]),
        ("3 - 5 = -2.", [True]),
        ("She buys 3 times as much. The answer is 4.", []),
        ("__import__('os') = 1.", [False]),
    ],
)
def test_verify_steps(text, verdicts):
    assert P.verify_steps(text) == verdicts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "17.",
        "The answer is 17",
        "The answer is 17. Thanks!",
        "The answer is 17. The answer is 17.",
        "I think so. The answer is 17.",
        "3 * 4 = 12.",
        "The answer is 17.5.",
        "wait, The answer is 17.",
        "The answer is 17. 3 * 4 = 12.",
    ],
)
def test_verify_format_rejects(text):
    assert not P.verify_format(text)


def test_format_does_not_judge_truth_and_notation_sees_mixtures():
    mixed = "3 * 4 = 13. 12 plus 5 is 17. The answer is 9."
    assert P.verify_format(mixed)
    assert P.notation(mixed) == {"symbols", "words"}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("37 * 46", "1702"),
        (" 903-278 ", "625"),
        ("7 / 2", "3.5"),
        ("-1 / 9999", "0"),
        ("8 / 4", "2"),
        ("1 / 0", "error"),
        ("9 ** 9", "error"),
        ("9" * 40 + " * 2", "error"),
        ("2 + 2 + 2", "error"),
        ("__import__('os').getcwd()", "error"),
        ("", "error"),
        (" " * 10**6, "error"),
    ],
)
def test_calculate_never_runs_code(expression, result):
    assert P.calculate(expression) == result


def test_arithmetic_items_agree_with_the_calculator():
    items = P.arithmetic_items(500, 0)
    assert len({s.expression for s in items}) == 500 and items == P.arithmetic_items(500, 0)
    assert all(P.calculate(s.expression) == str(s.result) for s in items)
    assert {s.op for s in items} == {"+", "-", "*"}


def test_wrong_use_is_told():
    with pytest.raises(CourseError, match="split"):
        P.make_problem(random.Random(0), 3, "dev")
    with pytest.raises(CourseError, match="num_steps"):
        P.make_problem(random.Random(0), 7)
    with pytest.raises(CourseError, match="style"):
        P.solution(MANY[0], "prose", random.Random(0))


def test_steps_of_a_solution_are_checked_one_by_one():
    rng = random.Random(2)
    for p in MANY[:300]:
        for style in ("answer", "symbols", "words"):
            sentences = P.sentences_of(P.solution(p, style, rng))
            assert P.check_steps(p, sentences) == [True] * len(sentences)
        sentences = P.sentences_of(P.solution(p, "symbols", rng, slip=True))
        assert not P.check_steps(p, sentences)[-1] and not all(P.check_steps(p, sentences)[:-1])
    mended = P.sentences_of(P.solution(MANY[1], "wait", rng))
    assert P.check_steps(MANY[1], mended).count(False) in (0, 1)  # in one sentence with its slip


def test_a_step_has_to_be_the_problems_own_and_in_time():
    p = P.Problem("", 18, (P.Step(4, "*", 3, 12), P.Step(12, "+", 6, 18, 0)), "t", "test")
    for text, expected in {
        "3 * 4 = 12. 6 plus 12 is 18. The answer is 18.": [True] * 3,
        "12 + 6 = 18. The answer is 18.": [False, True],  # 12 is not there yet
        "4 * 3 = 12. 4 * 3 = 12. 12 + 6 = 18.": [True, False, True],  # once is enough
        "4 * 3 = 13. 13 + 6 = 19. The answer is 19.": [False] * 3,
        "4 + 3 = 7. The answer is 7": [False, False],  # true, and of no use
        "So what. The answer is 18.": [False, True],
    }.items():
        assert P.check_steps(p, P.sentences_of(text)) == expected
