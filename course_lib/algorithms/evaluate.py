"""Measuring what a model can do: multiple choice and word problems.

Functions return one number per item where an interval is wanted, so that `stats` can draw it. What
is asked, and who verifies it, is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from course_lib import CourseError
from course_lib.algorithms.chat import ask, batches, complete, document_ends
from course_lib.algorithms.logprobs import backbone_and_head, hidden_states
from course_lib.algorithms.sft import completion_losses

LETTERS = "ABCD"
Render = Callable[[dict, list[dict]], str]  # an item and its worked examples -> the prompt


@dataclass
class MCResult:
    """What a model answered to n multiple-choice items with K = 4 options."""

    correct: np.ndarray  # (n,) bool
    predicted: np.ndarray  # (n,) index of the likeliest option
    probs: np.ndarray  # (n, K) probabilities of the options, rescaled to sum to 1
    answers: np.ndarray  # (n,) index of the right letter

    @property
    def accuracy(self) -> float:
        """Share of items answered correctly; 0.25 is chance."""
        return float(self.correct.mean())

    @property
    def letter_shares(self) -> np.ndarray:
        """How often each letter is predicted, (K,): even for a model without letter bias."""
        return np.bincount(self.predicted, minlength=4) / len(self.predicted)


def _mc_prompt(tokenizer, item: dict, render: Render, shots: list[dict], longest: int) -> list[int]:
    """The item's prompt as ids; worked examples are dropped from the front until it fits."""
    start, _ = document_ends(tokenizer)
    while True:
        text = render(item, shots)
        ids = start + tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= longest or not shots:
            return ids
        shots = shots[1:]


def letter_tails(tokenizer) -> list[list[int]]:
    """The ids of " A", " B", " C" and " D" after "Answer:".

    In most tokenizers one token each; some write the space as a token of its own, and a few do so
    before rare letters only.
    """
    stem = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
    tails = []
    for letter in LETTERS:
        ids = tokenizer(f"Answer: {letter}", add_special_tokens=False)["input_ids"]
        tails.append(ids[len(stem) :])
        if ids[: len(stem)] != stem:
            raise CourseError(
                f"The tokenizer {tokenizer.name_or_path!r} reads 'Answer: {letter}' as one piece; "
                "expected the letter to be a token; choose another model."
            )
    return tails


@torch.no_grad()
def multiple_choice(
    model: torch.nn.Module,
    tokenizer,
    items: Sequence[dict],
    render: Render,
    shots: int = 0,
    dev: Callable[[str], list[dict]] | None = None,
) -> MCResult:
    """Score `items` as MMLU does: the likeliest of " A", " B", " C", " D" after "Answer:".

    Args:
        model: base or instruct; both read the same raw text.
        tokenizer: of the model.
        items: dicts with MMLU's columns subject, question, choices (4), answer (0 to 3).
        render: the prompt of an item, such as `world.exam.render_prompt`.
        shots: worked examples before each item (MMLU has 5), as many as fit into the context.
        dev: subject -> worked examples; needed with `shots`.

    Source: Hendrycks et al. 2021, arXiv:2009.03300, and its evaluation code.
    """
    tails = letter_tails(tokenizer)
    longest, prompts = model.config.max_position_embeddings, []
    for item in items:
        examples = list(dev(item["subject"]))[:shots] if shots else []
        room = longest - max(map(len, tails))
        prompts.append(_mc_prompt(tokenizer, item, render, examples, room))
    if len({tuple(tail[:-1]) for tail in tails}) > 1:  # only some letters are one with their space
        return _by_sums(model, items, prompts, [tails] * len(items))
    rows = [{"input_ids": (prompt + tails[0][:-1])[1 - longest :]} for prompt in prompts]
    letters = [tail[-1] for tail in tails]
    _, head = backbone_and_head(model)
    probs = np.zeros((len(items), len(LETTERS)))
    was_training = model.training
    model.eval()
    for group in batches(rows, tokens_per_batch=4096 if model.device.type == "cpu" else 32768):
        lengths = torch.tensor([len(rows[i]["input_ids"]) for i in group])
        padded = [torch.tensor(rows[i]["input_ids"]) for i in group]
        ids = torch.nn.utils.rnn.pad_sequence(padded, batch_first=True).to(model.device)
        states = hidden_states(model, ids)[torch.arange(len(group)), lengths - 1]  # (B, H)
        logits = head(states)[:, letters]
        probs[group] = logits.double().softmax(-1).cpu().numpy()
    model.train(was_training)
    return _mc_result(items, probs)


def multiple_choice_by_text(
    model: torch.nn.Module, tokenizer, items: Sequence[dict], render: Render
) -> MCResult:
    """Score `items` by what the options say: the likeliest text in place of a letter, 0-shot.

    The prompt is that of `multiple_choice`, options included; an option's score is the sum of its
    tokens' log-probabilities. A small model often knows an answer and cannot name its letter. (The
    usual cloze form leaves the options out of the prompt and often divides by their lengths.)

    Source: Gu et al. 2024 (OLMES), arXiv:2406.08446, on why small models are scored like this.
    """
    longest = model.config.max_position_embeddings
    prompts = [_mc_prompt(tokenizer, item, render, [], longest) for item in items]
    options = [
        [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in item["choices"]]
        for item in items
    ]
    return _by_sums(model, items, prompts, options)


def _by_sums(
    model: torch.nn.Module,
    items: Sequence[dict],
    prompts: list[list[int]],
    options: list[list[list[int]]],
) -> MCResult:
    """Score the options of each item (as ids) by the sums of their tokens' log-probabilities."""
    longest, rows = model.config.max_position_embeddings, []
    for prompt, texts in zip(prompts, options, strict=True):
        for text in texts:
            mask = [0] * len(prompt) + [1] * len(text)
            row = {"input_ids": prompt + text, "completion_mask": mask}
            rows.append({name: values[-longest:] for name, values in row.items()})
    losses, _ = completion_losses(model, rows, longest)
    logps = -losses.reshape(len(items), -1)  # (n, K)
    probs = np.exp(logps - logps.max(-1, keepdims=True))
    return _mc_result(items, probs / probs.sum(-1, keepdims=True))


def _mc_result(items: Sequence[dict], probs: np.ndarray) -> MCResult:
    predicted = probs.argmax(-1)
    answers = np.array([item["answer"] for item in items])
    return MCResult(predicted == answers, predicted, probs, answers)


def solve_problems(
    model: torch.nn.Module,
    tokenizer,
    prompts: Sequence[str],
    verify: Callable[[int, str], bool],
    num_generations: int = 1,
    temperature: float = 1.0,
    *,
    chat: bool = False,
    **sampling,
) -> np.ndarray:
    """(n, G) bool: is the answer of each of G tries at each word problem right?

    A base model continues the prompt; with `chat=True` it is asked the same text. A document goes
    on with the next problem, so a solution ends at the first empty line. `verify` is called with
    the index of the problem and a solution.
    """
    options = {"max_new_tokens": 120, "seed": 0} | sampling
    texts = (ask if chat else complete)(
        model,
        tokenizer,
        list(prompts),
        num_generations=num_generations,
        temperature=temperature,
        **options,
    )
    solutions = [text.partition("\n\n")[0] for text in texts]
    right = [verify(i // num_generations, t) for i, t in enumerate(solutions)]
    return np.array(right, dtype=bool).reshape(len(prompts), num_generations)


def pass_at_k(correct: np.ndarray, k: int) -> float:
    """Chance that at least one of k tries is right, without bias from G >= k tries.

    The mean over problems of 1 - C(G - c, k) / C(G, k), where c of G tries are right.
    `correct` is (n, G), or (G,) for one problem.

    Source: Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    from scipy.special import comb

    correct = np.atleast_2d(correct)
    tries = correct.shape[1]
    if not 1 <= k <= tries:
        raise CourseError(
            f"pass_at_k was asked for k={k} with {tries} tries; expected 1 to {tries}."
        )
    wrong = tries - correct.sum(1)
    return float((1 - comb(wrong, k) / comb(tries, k)).mean())
