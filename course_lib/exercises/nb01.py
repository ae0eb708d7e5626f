"""Exercises of notebook 01: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import numpy as np

from course_lib.exercises.exercise import Exercise


def _choice_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """logits (N, V) and the four letters' token ids."""

    def logits(n: int, best: list[int] | None = None) -> np.ndarray:
        values = rng.normal(size=(n, 12))
        if best:
            values[np.arange(n), best] += 9.0
        return values

    masked = np.full((2, 12), -1e30)
    masked[:, [3, 4, 5, 6]] = rng.normal(size=(2, 4))
    return [
        ("random", (logits(5), [3, 4, 5, 6])),
        ("each letter once", (logits(4, [3, 4, 5, 6]), [3, 4, 5, 6])),
        ("the likeliest token is no letter", (logits(3, [0, 11, 8]), [3, 4, 5, 6])),
        ("letters' ids out of order", (logits(4, [9, 2, 7, 5]), [9, 2, 7, 5])),
        ("all other tokens impossible", (masked, [3, 4, 5, 6])),
        ("a single question", (logits(1, [6]), [3, 4, 5, 6])),
    ]


def _accuracy_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """letter_logprobs (N, 4) and answers (N,)."""

    def logprobs(n: int) -> np.ndarray:
        values = rng.normal(size=(n, 4))
        return values - np.log(np.exp(values).sum(axis=1, keepdims=True))

    right = logprobs(5)
    biased = logprobs(8) - np.array([0.0, 30.0, 30.0, 30.0])
    return [
        ("random", (logprobs(20), rng.integers(0, 4, size=20))),
        ("all right", (right, right.argmax(axis=1))),
        ("all wrong", (right, (right.argmax(axis=1) + 1) % 4)),
        ("always the letter A", (biased, np.array([0, 1, 2, 3, 0, 1, 2, 3]))),
        ("a single question", (logprobs(1), np.array([2]))),
    ]


def _ranked(values: np.ndarray, order: int) -> np.ndarray:
    return np.asarray(values).argsort(axis=1)[:, order]


def _flops(training: int, inference: int):
    """So many operations per parameter and token."""
    return lambda n, d, is_training: (training if is_training else inference) * n * d


def _flops_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    return [
        ("training", (int(rng.integers(1e5, 1e6)), int(rng.integers(1e3, 1e5)), True)),
        ("inference", (int(rng.integers(1e5, 1e6)), int(rng.integers(1e3, 1e5)), False)),
        ("one token", (1_600_000, 1, False)),
        ("no tokens", (1_600_000, 0, True)),
        ("a large run", (671 * 10**9, 14_800 * 10**9, True)),
    ]


EXERCISES: dict[str, Exercise] = {
    "mc_choice": Exercise(
        task="mc_choice(logits, letter_ids): logits (N, V) of the token after 'Answer:', the "
        "ids of the tokens A to D; returns the chosen option of each question, (N,), from 0 for A "
        "to 3 for D.",
        reference=lambda logits, ids: np.asarray(logits)[:, ids].argmax(axis=1),
        inputs=_choice_inputs,
        mistakes={
            "these are tokens of the whole vocabulary; MMLU compares the four letters only.": (
                lambda logits, ids: np.asarray(logits).argmax(axis=1)
            ),
            "these are the letters' token ids; return their place among the four, 0 to 3.": (
                lambda logits, ids: np.array(ids)[np.asarray(logits)[:, ids].argmax(axis=1)]
            ),
            "this is the least likely letter; take the likeliest.": (
                lambda logits, ids: np.asarray(logits)[:, ids].argmin(axis=1)
            ),
            "the letters are sorted by their ids; keep the order A, B, C, D of letter_ids.": (
                lambda logits, ids: np.asarray(logits)[:, sorted(ids)].argmax(axis=1)
            ),
            "options count from 0: A is 0 and D is 3.": (
                lambda logits, ids: np.asarray(logits)[:, ids].argmax(axis=1) + 1
            ),
        },
        hint="pick the four columns first, then take the argmax along them.",
    ),
    "letter_accuracy": Exercise(
        task="letter_accuracy(letter_logprobs, answers): log-probabilities of A to D, (N, 4), and "
        "the right options, (N,); returns the share of questions whose likeliest letter is right.",
        reference=lambda logprobs, answers: np.mean(_ranked(logprobs, -1) == answers),
        inputs=_accuracy_inputs,
        mistakes={
            "this is the number of right answers; divide by the number of questions.": (
                lambda logprobs, answers: np.sum(_ranked(logprobs, -1) == answers)
            ),
            "this is in percent; a share goes from 0 to 1.": (
                lambda logprobs, answers: 100 * np.mean(_ranked(logprobs, -1) == answers)
            ),
            "this is the mean probability of the right letter; an answer counts as 0 or 1.": (
                lambda logprobs, answers: np.exp(logprobs[np.arange(len(answers)), answers]).mean()
            ),
            "this counts the least likely letter.": (
                lambda logprobs, answers: np.mean(_ranked(logprobs, 0) == answers)
            ),
            "this is the share of wrong answers.": (
                lambda logprobs, answers: np.mean(_ranked(logprobs, -1) != answers)
            ),
            "this counts an answer as right if it is among the two likeliest letters.": (
                lambda logprobs, answers: np.mean(
                    (_ranked(logprobs, -1) == answers) | (_ranked(logprobs, -2) == answers)
                )
            ),
        },
        hint="compare the argmax of each row with the answer, and take the mean.",
    ),
    "flops": Exercise(
        task="flops(num_parameters, num_tokens, training): floating-point operations of a dense "
        "transformer, for training (True) or for inference (False).",
        reference=_flops(6, 2),
        inputs=_flops_inputs,
        mistakes={
            "the backward pass is missing: training costs three forward passes, 6ND.": _flops(2, 2),
            "inference has no backward pass: it costs 2ND.": _flops(6, 6),
            "training and inference are the wrong way round.": _flops(2, 6),
            "a multiplication and an addition are two operations: the forward pass costs 2ND.": (
                _flops(3, 1)
            ),
            "the backward pass costs twice the forward one, which itself counts, too: 6ND.": (
                _flops(4, 2)
            ),
        },
        hint="each parameter takes part in one multiplication and one addition a token; the "
        "backward pass costs twice the forward pass.",
    ),
}
