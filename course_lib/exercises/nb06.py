"""Exercises of notebook 06: reference, inputs, and the mistakes that are recognised."""

from __future__ import annotations

from collections import Counter
from math import comb

import numpy as np

from course_lib.algorithms.evaluate import pass_at_k
from course_lib.algorithms.search import majority
from course_lib.exercises.exercise import Exercise


def _pass_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """correct (N,) zeros and ones, k."""

    def row(right: int, size: int) -> np.ndarray:
        values = np.zeros(size)
        values[rng.permutation(size)[:right]] = 1
        return values

    return [
        ("some right", (row(3, 16), 4)),
        ("late ones right", (np.array([0, 0, 0, 0, 1, 1.0]), 2)),
        ("none right", (row(0, 8), 4)),
        ("all right", (row(8, 8), 3)),
        ("fewer wrong ones than k", (row(6, 8), 4)),
        ("k is 1", (row(2, 9), 1)),
        ("k is all of them", (row(1, 5), 5)),
        ("a large pool", (row(20, 256), 64)),
    ]


def _vote_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """Answers of n samples, None where there is none."""
    return [
        ("random", (rng.integers(10, 14, 21).tolist(),)),
        ("a clear winner, not the first", ([41, 42, 42, 7, 42],)),
        ("a tie", ([9, 30, 30, 9, 12],)),
        ("a tie, the other way round", ([30, 9, 9, 30, 12],)),
        ("most samples without an answer", ([None, 17, None, 17, None, 3],)),
        ("the first one without", ([None, 5, 8, 8],)),
        ("no answer at all", ([None, None],)),
        ("a single sample", ([150],)),
    ]


def _counts(answers: list, none_votes: bool = False) -> list[tuple]:
    """(answer, votes), the most frequent first, equals as they came."""
    return Counter(a for a in answers if none_votes or a is not None).most_common()


def _top(answers: list, choose) -> object:
    votes = _counts(answers)
    return choose([a for a, n in votes if n == votes[0][1]]) if votes else None


def _mean_answer(answers: list) -> float | None:
    given = [a for a in answers if a is not None]
    return float(np.mean(given)) if given else None


EXERCISES: dict[str, Exercise] = {
    "pass_at_k": Exercise(
        task="pass_at_k(correct, k): zeros and ones (N,) of a pool of N samples, 1 where one is "
        "right; returns the chance that at least one of k samples drawn from the pool is right.",
        reference=pass_at_k,
        inputs=_pass_inputs,
        mistakes={
            "this is biased: 1 - (1 - c/N)^k draws the same sample twice; count subsets.": (
                lambda correct, k: 1 - (1 - np.mean(correct)) ** k
            ),
            "this looks at the first k samples only; use all N, as the mean over subsets of k.": (
                lambda correct, k: float(np.any(correct[:k]))
            ),
            "this is the chance that all k are right; one is enough.": (
                lambda correct, k: comb(int(sum(correct)), k) / comb(len(correct), k)
            ),
            "this is the chance that none is right; take it from 1.": (
                lambda correct, k: 1 - pass_at_k(correct, k)
            ),
            "k times the share right counts a group with two right samples twice.": (
                lambda correct, k: min(1.0, k * np.mean(correct))
            ),
            "this asks whether any of the N is right, whatever k is.": (
                lambda correct, k: float(np.any(correct))
            ),
        },
        hint="of the C(N, k) groups of k samples, C(N - c, k) hold none of the c right ones.",
    ),
    "majority": Exercise(
        task="majority(answers): the answers of n samples, None where there is none; returns "
        "the most frequent answer, of equally frequent ones the first given, None without any.",
        reference=majority,
        inputs=_vote_inputs,
        mistakes={
            "None is no answer and has no vote.": (lambda a: _counts(a, none_votes=True)[0][0]),
            "in a tie this takes the smallest number, which favours small answers; take the one "
            "that was given first.": (lambda answers: _top(answers, min)),
            "in a tie this takes the largest number; take the one that was given first.": (
                lambda answers: _top(answers, max)
            ),
            "in a tie this takes the answer that came last; take the one that was given first.": (
                lambda answers: _top(answers, lambda tied: tied[-1])
            ),
            "this is the number of votes; return the answer.": (
                lambda answers: _counts(answers)[0][1] if _counts(answers) else None
            ),
            "an average of answers is an answer that nobody gave; count votes.": _mean_answer,
            "this is the first answer, which is one sample.": (
                lambda answers: next((a for a in answers if a is not None), None)
            ),
        },
        hint="count with a dict in the order of the answers; `max(votes, key=votes.get)` takes the "
        "first of equals.",
    ),
}
