"""Policies trained on preferences, PPO's and DPO's: stages. `testbench` measures them.

All start from the policy of `preferences.load_policy`. What PPO's completions are truly worth is
noted beside the reward model's score; where nobody knows the truth a stand-in takes its place
(`sources.scorer`), and false statements are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib import chat, dpo, generate, loop, ppo, reward, sft, sources
from course_lib.dpo import DPOConfig, Pair
from course_lib.models import frozen_copy
from course_lib.ppo import PPOConfig, SamplingConfig, ValueHead
from course_lib.preferences import (
    SAMPLING,
    comparisons,
    policy_of,
    prompts_that_fit,
    reward_model,
    trained,
)
from course_lib.stages import SMALL, parameters_of, sft_config
from course_lib.world import judge

if TYPE_CHECKING:
    from course_lib.profiles import Course

Progress = Callable[[int], Callable[[dict], None]]  # from a number of steps to a progress bar
PPO_PROMPTS = 2000  # at most; nobody ranks answers to them
PTX_TOKENS = 128  # of each document of the pretraining term
WATCHED = ("truth", "proxy", "false")  # noted of every completion of a training
TRUTH_UNIT = 2.5  # points: about the spread of the true scores of the policy's answers


class Scorer:
    """The scores of PPO's completions: a reward model's, normalised, or the truth itself.

    Called with prompts and completions as ids. A completion that was cut, or that ended as a
    document does, is read with the end of its turn: labellers and reward model know no other. What
    the judge says of the same
    completions is noted in `seen`, by iteration; PPO never gets to know it.

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


def judged(course: Course, rows: Sequence[dict], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The "truth" of each text (n,), and how many "false" statements it makes (0 if unknown)."""
    texts = [text.strip() for text in texts]
    if not course.truth_known:
        truth = sources.scorer(course)(list(rows), texts)
        return {"truth": truth, "false": np.zeros(len(texts))}
    verdicts = [judge.judge(row, text) for row, text in zip(rows, texts, strict=True)]
    return {
        "truth": np.array([verdict.score for verdict in verdicts]),
        "false": np.array([verdict.parts.get("false", 0.0) / -2 for verdict in verdicts]),
    }


# ---- PPO ---------------------------------------------------------------------------------------


def ppo_config(course: Course, base: str, **changes: Any) -> PPOConfig:
    """The course's settings of PPO for a policy made from a model of that size."""
    small = parameters_of(course, base) < SMALL
    settings = {"learning_rate": 1e-4 if small else 3e-6, "minibatch_size": 16, "num_epochs": 1}
    # In so few iterations the value learns next to nothing. Then lam < 1 is a discount: with 0.95
    # the score at the end of 60 tokens reaches the first of them with a twentieth of its size.
    settings["lam"] = 1.0
    return PPOConfig(**{**settings, **changes})


def sampling_config(tokenizer: Any, **changes: Any) -> SamplingConfig:
    """What an iteration of PPO writes: 32 prompts, two completions each."""
    longest = SAMPLING["max_new_tokens"]
    settings = {"num_prompts": 32, "max_new_tokens": longest, **changes}
    return SamplingConfig(chat.stop_ids(tokenizer), **settings)


def ppo_policy(
    course: Course,
    n: int,
    k: int = 4,
    *,
    base: str | None = None,
    panel: str = "unbiased",
    seed: int = 0,
    progress: Progress | None = None,
    **changes: Any,
) -> str:
    """The folder of a policy that PPO trained against the reward model on `n` prompts: a stage.

    Args:
        n, k: as in `preferences.reward_model`, whose model gives the score.
        base: the model that the policy was made from; None: the profile's base model.
        panel: that the reward model learned from; "nobody" makes the true score the reward.
        changes: fields of `PPOConfig` that differ from `ppo_config`.
    """
    base = base or course.model("base")
    start = policy_of(course, base, seed)
    config = ppo_config(course, base, **changes)
    judged_by = None if panel == "nobody" else reward_model(course, n, k, panel=panel, seed=seed)

    def train(policy: Any, tokenizer: Any) -> tuple[Any, list[dict]]:
        rows = prompts_that_fit(course, policy, tokenizer, "train", PPO_PROMPTS, seed)
        score = judged_by and reward.load_reward_model(judged_by, course.device)
        scorer = Scorer(course, score, tokenizer, rows)
        history = ppo.train_ppo(
            policy,
            frozen_copy(policy),
            ValueHead(policy.config.hidden_size).to(policy.device),
            [chat.render_prompt(tokenizer, row["prompt"]) for row in rows],
            scorer,
            sampling_config(tokenizer, seed=seed),
            config,
            documents=ptx_rows(course, tokenizer, seed) if config.ptx_coef else (),
            progress=progress(config.num_steps) if progress else None,
        )
        return policy, [{**row, **seen} for row, seen in zip(history, scorer.seen, strict=True)]

    data = [Path(judged_by or "truth").name, seed, SAMPLING, PPO_PROMPTS, PTX_TOKENS, TRUTH_UNIT]
    code = [ppo, generate, reward, sft, judge, ppo_policy, Scorer, judged, prompts_that_fit]
    code += [sampling_config, ptx_rows]
    return trained("ppo", course, start, config, data, train, code)


def ptx_rows(course: Course, tokenizer: Any, seed: int, n: int = 512) -> list[chat.Row]:
    """Documents as in pretraining, each cut to `PTX_TOKENS`, for PPO's pretraining term."""
    texts = sources.document_texts(course, n, seed=1000 + seed)
    rows = [chat.render_text(tokenizer, text) for text in texts]
    return [{name: ids[:PTX_TOKENS] for name, ids in row.items()} for row in rows]


# ---- DPO ---------------------------------------------------------------------------------------


def dpo_config(course: Course, base: str, **changes: Any) -> DPOConfig:
    """The course's settings of DPO for a policy made from a model of that size."""
    like = sft_config(course, base, lora=False)
    small = parameters_of(course, base) < SMALL
    settings = {
        "learning_rate": 6e-5 if small else 1e-6,
        "batch_size": 4 if small else 16,
        "num_epochs": 2 if small else 1,
        "max_length": course.context,
        "dtype": like.dtype,
        "gradient_checkpointing": like.gradient_checkpointing,
    }
    return DPOConfig(**{**settings, **changes})


def preference_pairs(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4, **options: Any
) -> list[Pair]:
    """Of each prompt's ranking the best and the worst answer, as rendered pairs for DPO.

    An answer of our own policy that was cut stands without an end, as its writer set none: else
    DPO learns not to end wherever a cut answer was rejected, and writes without end. (Answers are
    kept as texts. A few cut ones have fewer tokens when they are read again, and keep their end.)
    """
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["completions"][int(np.argmin(row["ranks"]))],
            "rejected": row["completions"][int(np.argmax(row["ranks"]))],
        }
        for row in comparisons(course, split, n, k, **options)
    ]
    pairs = dpo.render_pairs(tokenizer, rows)
    if course.truth_known:
        for pair in pairs:
            for side in ("chosen_ids", "rejected_ids"):
                pair[side] = pair[side][: SAMPLING["max_new_tokens"]]
    return pairs


def dpo_policy(
    course: Course,
    n: int,
    k: int = 4,
    *,
    base: str | None = None,
    panel: str = "unbiased",
    seed: int = 0,
    progress: Progress | None = None,
    **changes: Any,
) -> str:
    """The folder of a policy that DPO trained on the rankings of `n` prompts: a stage.

    The same rankings as `preferences.reward_model` learns from; arguments as in `ppo_policy`.
    """
    base = base or course.model("base")
    start = policy_of(course, base, seed)
    config = dpo_config(course, base, seed=seed, **changes)
    pairs = comparisons(course, "train", n, k, panel=panel, seed=seed)

    def train(policy: Any, tokenizer: Any) -> tuple[Any, list[dict]]:
        rows = preference_pairs(course, tokenizer, "train", n, k, panel=panel, seed=seed)
        good, _ = dpo.check_pairs(rows, config.max_length)
        bar = progress(loop.steps_of(config, len(good))) if progress else None
        return policy, dpo.train_dpo(policy, rows, config, bar)

    code = [dpo, dpo_policy, preference_pairs]
    return trained("dpo", course, start, config, [pairs, SAMPLING], train, code)
