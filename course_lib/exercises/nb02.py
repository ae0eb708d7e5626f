"""Exercises of notebook 02: reference, inputs, and the mistakes that are recognised.

Every mistake differs from the reference, and from the other mistakes, on at least one input: a test
makes sure.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from course_lib.algorithms.losses import sft_loss
from course_lib.exercises.exercise import Exercise

START, END, NEWLINE = "<|im_start|>", "<|im_end|>", "\n"


def _chat(*turns: tuple[str, str]) -> list[str]:
    """A chat as tokens: header, words, end and newline of every turn."""
    tokens = []
    for role, text in turns:
        words = text.split(" ") if text else []
        tokens += [START, role, NEWLINE, *words, END, NEWLINE]
    return tokens


def _chat_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    words = [f"w{i}" for i in rng.integers(0, 99, size=4)]
    ask, reply = ("user", "what is it"), ("assistant", " ".join(words))
    calculate = [("assistant", "<calc>37 * 46</calc>"), ("tool", "1702"), ("assistant", "1702 .")]
    chats = {
        "one turn": _chat(ask, reply),
        "a system message": _chat(("system", "be kind"), ask, reply),
        "two questions": _chat(ask, reply, ("user", "and why"), ("assistant", "so")),
        "a tool's result": _chat(ask, *calculate),
        "the word assistant in a question": _chat(("user", "who is assistant here"), reply),
        "a line break in an answer": _chat(ask, ("assistant", "one \n two"), ask),
        "an empty answer": _chat(ask, ("assistant", "")),
        "an answer cut off": _chat(ask, ("assistant", "a b c d e"))[:-3],
        "a prompt to be answered": [*_chat(ask), START, "assistant", NEWLINE],
        "no answer at all": _chat(ask),
    }
    return [(label, (tokens,)) for label, tokens in chats.items()]


def _mask(
    tokens: list[str],
    roles: tuple[str, ...] = ("assistant",),
    end: bool = True,
    header: bool = False,
    newline: bool = False,
) -> list[int]:
    """1 on what `roles` wrote, with or without end token, header and the newline after the end."""
    mask, role, place = [], None, "outside"
    for i, token in enumerate(tokens):
        if token == START:
            role, place, start = tokens[i + 1], "header", i
        elif place == "header" and i == start + 3:
            place = "text"
        ends = place == "text" and token == END
        keep = {"header": header, "text": end if ends else True, "after": newline}.get(place, False)
        mask.append(int(role in roles and keep))
        if ends:
            place = "after"
    return mask


def _only_last(tokens: list[str]) -> list[int]:
    """The mask of the last answer alone."""
    pairs = list(itertools.pairwise(tokens))
    last = max((i for i, pair in enumerate(pairs) if pair == (START, "assistant")), default=0)
    return [int(i >= last and keep) for i, keep in enumerate(_mask(tokens))]


def _from_first(tokens: list[str]) -> list[int]:
    """Everything from the first answer on."""
    mask = _mask(tokens)
    first = mask.index(1) if 1 in mask else len(mask)
    return [int(i >= first) for i in range(len(mask))]


def _sft_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """logprobs (B, T - 1) and mask (B, T - 1), aligned."""

    def case(mask: list[list[int]], filler: float | None = None) -> tuple:
        mask = np.array(mask, dtype=float)
        logprobs = -rng.exponential(2.0, size=mask.shape) - 0.1
        if filler is not None:
            logprobs = np.where(mask == 1, logprobs, filler)
        return torch.tensor(logprobs, dtype=torch.float32), torch.tensor(mask, dtype=torch.float32)

    return [
        ("random", case([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]])),
        ("answers of very different length", case([[0, 1, 1, 1, 1, 1, 1, 1], [0, 1] + [0] * 6])),
        ("a row without an answer", case([[0, 0, 0, 0], [0, 0, 1, 1]])),
        ("garbage in the padding", case([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], filler=-1e4)),
        ("impossible prompt tokens", case([[0, 0, 1, 1], [0, 1, 1, 0]], filler=-1e9)),
        ("two answers in one chat", case([[0, 1, 1, 0, 0, 1, 1]])),
        ("one token", case([[1]])),
    ]


def _gain_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    """The score before training and the scores by rising amount of data."""
    return [
        ("random", (float(rng.normal()), list(5 + np.sort(rng.normal(size=6))))),
        ("a negative score before", (-1.5, [0.5, 3.0, 4.5])),
        ("the best is not the last", (1.0, [3.0, 5.5, 5.0])),
        ("worse than before at first", (2.0, [1.0, 4.0, 6.0])),
        ("one amount of data", (0.5, [4.0])),
    ]


def _lora_inputs(rng: np.random.Generator) -> list[tuple[str, tuple]]:
    return [
        ("random", tuple(int(n) for n in rng.integers(3, 300, size=3))),
        ("a square matrix", (160, 160, 8)),
        ("a wide matrix", (160, 448, 8)),
        ("a tall matrix", (448, 160, 8)),
        ("rank one", (80, 216, 1)),
        ("one input", (1, 64, 4)),
    ]


EXERCISES: dict[str, Exercise] = {
    "completion_mask": Exercise(
        task="completion_mask(tokens): a chat as a list of tokens (<|im_start|>, role, line break, "
        "text, <|im_end|>, line break); returns a list with 1 on every token the assistant writes, "
        "its <|im_end|> included, else 0.",
        reference=_mask,
        inputs=_chat_inputs,
        mistakes={
            "the end of the turn is left out: the model would never learn to stop.": (
                lambda tokens: _mask(tokens, end=False)
            ),
            "the header is marked: the template writes it, not the model.": (
                lambda tokens: _mask(tokens, header=True)
            ),
            "the line break after <|im_end|> is marked: nobody is to learn what comes after the "
            "stop.": lambda tokens: _mask(tokens, newline=True),
            "only the last answer is marked: each of the assistant's turns is a completion.": (
                _only_last
            ),
            "everything after the first answer is marked, later questions too.": _from_first,
            "a tool's result is marked: the model would learn to make it up.": (
                lambda tokens: _mask(tokens, ("assistant", "tool"))
            ),
            "the questions are marked and the answers are not: the mask is the wrong way round.": (
                lambda tokens: [1 - keep for keep in _mask(tokens)]
            ),
            "everything is marked: the model would learn to write the questions, too.": (
                lambda tokens: [1] * len(tokens)
            ),
        },
        hint="walk through the tokens, remember whose turn it is (the token after <|im_start|>), "
        "and switch on after the header, off after <|im_end|>.",
    ),
    "sft_loss": Exercise(
        task="sft_loss(logprobs, mask): log-probabilities of the tokens, (B, T - 1), and the "
        "completion mask, aligned with them; returns the mean loss per completion token, a tensor.",
        reference=lambda logprobs, mask: sft_loss(logprobs, mask)[0],
        inputs=_sft_inputs,
        mistakes={
            "the sign is flipped: a loss falls as log-probabilities rise.": (
                lambda logprobs, mask: (logprobs * mask).sum() / mask.sum()
            ),
            "the mask is not used: prompt and padding are learnt, too.": (
                lambda logprobs, mask: -logprobs.mean()
            ),
            "this is the sum; divide by the number of completion tokens.": (
                lambda logprobs, mask: -(logprobs * mask).sum()
            ),
            "the masked sum is divided by all tokens, not by those in the mask.": (
                lambda logprobs, mask: -(logprobs * mask).mean()
            ),
            "each row is averaged first: a token of a short answer would weigh more.": (
                lambda logprobs, mask: -((logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
            ),
            "the sum is divided by the number of chats, not of completion tokens.": (
                lambda logprobs, mask: -(logprobs * mask).sum() / len(mask)
            ),
            "the mask is the wrong way round: this is the loss on the prompt.": (
                lambda logprobs, mask: (
                    -(logprobs * (1 - mask)).sum() / (1 - mask).sum().clamp(min=1)
                )
            ),
            "this shifts by one token; logprobs and mask are already aligned.": (
                lambda logprobs, mask: sft_loss(logprobs[:, :-1], mask[:, 1:])[0]
            ),
        },
        hint="keep what is in the mask, sum, and divide by the mask's sum; mind the sign.",
        gradient=True,
    ),
    "judge_gain": Exercise(
        task="judge_gain(before, scores): the score before training, and the scores after training "
        "on more and more data; returns for each the share of the gain that the most data brings.",
        reference=lambda before, scores: [(s - before) / (scores[-1] - before) for s in scores],
        inputs=_gain_inputs,
        mistakes={
            "this is a ratio of scores; take the score before training off both.": (
                lambda before, scores: [s / scores[-1] for s in scores]
            ),
            "this measures from the first amount of data; measure from before training.": (
                lambda before, scores: [
                    (s - scores[0]) / ((scores[-1] - scores[0]) or 1) for s in scores
                ]
            ),
            "this divides by the best score's gain; the question is about the most data.": (
                lambda before, scores: [(s - before) / (max(scores) - before) for s in scores]
            ),
            "this is the gain itself; divide by the gain of the most data.": (
                lambda before, scores: [s - before for s in scores]
            ),
            "this is the relative rise over the score before, which may be 0 or negative.": (
                lambda before, scores: [(s - before) / before for s in scores]
            ),
        },
        hint="a gain is a score minus the score before; the last entry comes out as 1.",
    ),
    "lora_params": Exercise(
        task="lora_params(d_in, d_out, r): the number of trainable parameters that LoRA of rank r "
        "adds to one weight matrix of shape (d_out, d_in).",
        reference=lambda d_in, d_out, r: r * (d_in + d_out),
        inputs=_lora_inputs,
        mistakes={
            "this is the whole matrix; LoRA trains two thin ones.": (
                lambda d_in, d_out, r: d_in * d_out
            ),
            "A and B are counted as one block; A is (r, d_in) and B is (d_out, r).": (
                lambda d_in, d_out, r: r * d_in * d_out
            ),
            "this counts A alone; B, of shape (d_out, r), is trained, too.": (
                lambda d_in, d_out, r: r * d_in
            ),
            "this counts B alone; A, of shape (r, d_in), is trained, too.": (
                lambda d_in, d_out, r: r * d_out
            ),
            "this holds for square matrices only: 2 · r · d_in.": (
                lambda d_in, d_out, r: 2 * r * d_in
            ),
            "the frozen matrix is counted, too; only A and B are trained.": (
                lambda d_in, d_out, r: r * (d_in + d_out) + d_in * d_out
            ),
        },
        hint="the update is B A with A of shape (r, d_in) and B of shape (d_out, r).",
    ),
}
