"""How policies answer: the prompts that fit, the sampling, and what an answer is worth.

Where nobody knows the truth a stand-in takes its place (`rows.scorer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib.algorithms import chat, reward
from course_lib.algorithms.ppo import SamplingConfig
from course_lib.inputs.rows import num_demonstrations, prompt_rows, scorer
from course_lib.world import judge

if TYPE_CHECKING:
    from course_lib.kit.course import Course

TEMPERATURE = 0.7  # folded into every policy, which then samples at 1
SAMPLING = {"temperature": 1.0, "max_new_tokens": 110}  # of the answers that are ranked
WATCHED = ("truth", "proxy", "false")  # noted of every completion of a training
TRUTH_UNIT = 2.5  # points: about the spread of the true scores of the policy's answers


def fitting(model: Any, rows: list[dict], render: Callable[[dict], list[int]], spare: int = 32):
    """The rows whose ids (`render(row)`) leave `spare` tokens of the model's context free."""
    room = model.config.max_position_embeddings - spare
    return [row for row in rows if len(render(row)) <= room]


def prompts_that_fit(
    course: Course, model: Any, tokenizer: Any, split: str, n: int, seed: int = 0
) -> list[dict]:
    """Rows of at most `n` prompts of a split that leave room for an answer."""
    rows = prompt_rows(course, split, num_demonstrations(course, n, split), seed)
    spare = SAMPLING["max_new_tokens"]
    return fitting(model, rows, lambda row: chat.render_prompt(tokenizer, row["prompt"]), spare)


def sampling_config(tokenizer: Any, **changes: Any) -> SamplingConfig:
    """What an iteration of PPO writes: 32 prompts, two completions each."""
    longest = SAMPLING["max_new_tokens"]
    settings = {"num_prompts": 32, "max_new_tokens": longest, **changes}
    return SamplingConfig(chat.stop_ids(tokenizer), **settings)


def judged(course: Course, rows: Sequence[dict], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The "truth" of each text (n,), and how many "false" statements it makes (0 if unknown)."""
    texts = [text.strip() for text in texts]
    if not course.truth_known:
        truth = scorer(course)(list(rows), texts)
        return {"truth": truth, "false": np.zeros(len(texts))}
    verdicts = [judge.judge(row, text) for row, text in zip(rows, texts, strict=True)]
    return {
        "truth": np.array([verdict.score for verdict in verdicts]),
        "false": np.array([verdict.parts.get("false", 0.0) / -2 for verdict in verdicts]),
    }


class Scorer:
    """The scores of PPO's completions: a reward model's, normalised, or the truth itself.

    Called with prompts and completions as ids. A completion that was cut, or that ended as a
    document does, is read with the end of its turn: labellers and reward model know no other. What
    the judge says of them is noted in `seen`, by iteration; PPO never gets to know it.

    Args:
        model: the reward model; None makes the true score the reward, in units of `TRUTH_UNIT`.
        rows: of all prompts that will come.
    """

    def __init__(self, course: Course, model: Any, tokenizer: Any, rows: Sequence[dict]):
        self.course, self.model, self.tokenizer = course, model, tokenizer
        self.stops = chat.stop_ids(tokenizer)
        self.end = tokenizer.convert_tokens_to_ids(chat.end_of_turn(tokenizer))
        self.rows = {tuple(chat.render_prompt(tokenizer, row["prompt"])): row for row in rows}
        self.seen: list[dict[str, list[float]]] = []

    def __call__(self, prompts: list[list[int]], completions: list[list[int]]) -> torch.Tensor:
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
        found = judged(self.course, [self.rows[tuple(prompt)] for prompt in prompts], texts)
        if self.model is None:
            found["proxy"] = found["truth"] / TRUTH_UNIT
        else:
            said = (ids[:-1] if ids[-1] in self.stops else ids for ids in completions)
            both = zip(prompts, said, strict=True)
            read = [[*prompt, *ids, self.end] for prompt, ids in both]
            found["proxy"] = reward.normalise(self.model, reward.score_ids(self.model, read))
        self.seen.append({name: np.round(found[name], 4).tolist() for name in WATCHED})
        return torch.tensor(found["proxy"])
