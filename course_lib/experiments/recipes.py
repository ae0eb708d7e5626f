"""How a trained model comes about: each recipe trains it, or finds it again in the cache.

A recipe reads straight down: its inputs (a base model, rows), its settings, and a `with stage(...)`
block that trains where the cache has no such entry. What decides a model is in the key: the content
of the inputs, every setting, and the code (`core.cache`). So two notebooks that ask for the same
model train it once, and an edit of a loop trains anew what that loop made.

Everything here starts from an instruct model. In the pocket world it then answers each prompt K
times and a panel of `world.labellers` ranks the answers (`comparisons`); with real data people
compared two answers. Reward models, PPO and DPO learn from these rankings.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from course_lib.algorithms import chat, dpo, loop, population, ppo, reward, sft
from course_lib.algorithms.dpo import DPOConfig, Pair
from course_lib.algorithms.population import PopulationConfig
from course_lib.algorithms.ppo import PPOConfig
from course_lib.algorithms.reward import Comparison, RewardConfig
from course_lib.algorithms.sft import SFTConfig
from course_lib.core.cache import Entry, read_json, stage
from course_lib.core.machine import bf16_pays
from course_lib.experiments.answers import (
    SAMPLING,
    TEMPERATURE,
    Scorer,
    prompts_that_fit,
    sampling_config,
)
from course_lib.experiments.preferences import PANELS, ranked
from course_lib.inputs.models import (
    add_lora,
    fold_temperature,
    frozen_copy,
    load_both,
    load_reward_model,
    meta_model,
    num_parameters,
    save_model,
)
from course_lib.inputs.people import asked_rows, group_rows, other_survey_rows, survey_parts
from course_lib.inputs.rows import (
    document_texts,
    instruction_rows,
    num_demonstrations,
    preference_rows,
    prompt_rows,
)
from course_lib.world import judge

if TYPE_CHECKING:
    from course_lib.inputs.survey import Survey
    from course_lib.kit.course import Course

Progress = Callable[[int], Callable[[dict], None]]  # from a number of steps to a progress bar
NUM_EXAMPLES = 1600  # demonstrations of the course's standard instruct model
SMALL, LARGE = 50e6, 500e6  # parameters: below, a higher learning rate; above, LoRA
NUM_SCALE = 32  # prompts whose answers set the scale of scores where people ranked those of others
PPO_PROMPTS = 2000  # at most; nobody ranks answers to them
PTX_DOCUMENTS, PTX_TOKENS = 512, 128  # of PPO's pretraining term, and how much of each is read
HISTORY = "history.json"


def keep(entry: Entry, model: Any, tokenizer: Any, history: list[dict]) -> None:
    """Write a trained model, its tokenizer and the rows of its training into the entry."""
    save_model(model, tokenizer, entry.folder)
    entry.write(HISTORY, history)


def training_history(folder: str) -> list[dict]:
    """The steps of the training that made `folder`; empty where it was not trained here."""
    path = Path(folder) / HISTORY
    return read_json(path) if path.is_file() else []


def load(course: Course, model: str, quantize: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of a name or folder, in fp32 on the profile's device, or in 4 bits."""
    options = {"device": course.device, "quantize": quantize}
    return load_both(model, course.profile.revisions.get(model), **options)


def pinned(course: Course, model: str) -> str:
    """A model as an input of a stage: one on a hub with its commit."""
    revision = course.profile.revisions.get(model)
    return f"{model}@{revision}" if revision else model


def parameters_of(course: Course, base: str) -> int:
    """Parameters of a model by its config alone: nothing is loaded, no memory is taken."""
    return num_parameters(meta_model(base, course.profile.revisions.get(base)))


# ---- supervised fine-tuning --------------------------------------------------------------------


def sft_config(course: Course, base: str, lora: bool | None = None, **changes: Any) -> SFTConfig:
    """The course's settings of supervised fine-tuning for a model of that size.

    `lora`: LoRA's matrices start at zero and take ten times the learning rate; None takes what
    `instruct_model` does, LoRA for large models.
    """
    size = parameters_of(course, base)
    lora = size >= LARGE if lora is None else lora
    rate = 3e-4 if size < SMALL else 5e-5 if size < LARGE else 2e-5
    # A CPU's bf16 pays in large products; a small model's few rows a step get a quarter slower.
    bf16 = course.device != "cpu" or (size >= SMALL and bf16_pays())
    settings: dict[str, Any] = {
        "learning_rate": rate * (10 if lora else 1),
        "num_epochs": 2 if size < SMALL else 1,
        "batch_size": 4 if size < SMALL else 32,  # a small model gains more from more steps
        "max_length": course.context,
        "dtype": "bfloat16" if bf16 else "float32",
        "gradient_checkpointing": size >= SMALL,
    }
    return SFTConfig(**settings | changes)


def instruct_model(
    course: Course,
    role: str = "base",
    num_examples: int = NUM_EXAMPLES,
    seed: int = 0,
    *,
    own: bool = True,
    progress: Progress | None = None,
    **changes: Any,
) -> str:
    """The folder (or hub id) of an instruct model made from the model in `role`.

    Args:
        role: a role of the profile, or a model itself, such as one of `course.models("early")`.
        num_examples: demonstrations, `instruction_rows(course, num_examples, seed=seed)`.
        own: whether the profile's own instruct model, where it has one, is taken for role "base".
        progress: called with the number of steps if training is needed; what it returns, such as a
            `figures.LiveCurve`, is called with the row of each step.
        changes: fields of `SFTConfig` that differ from `sft_config`.
    """
    if own and role == "base" and "instruct" in course.profile.models:
        return course.model("instruct")
    base = course.model(role) if role in course.profile.models else role
    revision = course.profile.revisions.get(base)
    config = sft_config(course, base, seed=seed, **changes)
    rows = instruction_rows(course, num_examples, seed=seed)
    name, inputs = "instruct-" + Path(base).name.lower(), [pinned(course, base), rows, course.dtype]
    with stage(name, config, inputs) as entry:
        if entry.new:
            options = {"dtype": course.dtype, "device": course.device}
            model, tokenizer = load_both(base, revision, **options)
            if num_parameters(model) >= LARGE:
                model = add_lora(model, r=16)  # the optimiser's state of all weights would not fit
            rendered = [chat.render_chat(tokenizer, row["messages"]) for row in rows]
            rendered = [r for r in rendered if sum(r["completion_mask"][1 : config.max_length])]
            bar = progress(loop.steps_of(config, len(rendered))) if progress else None
            keep(entry, model, tokenizer, sft.train_sft(model, rendered, config, progress=bar))
    return str(entry.folder)


def policy_of(course: Course, model: str, seed: int) -> str:
    """The instruct model made from `model`; the profile's own for its base model, if it has one.

    It reads the demonstrations once, as the largest training of notebook 02 does.
    """
    role = "base" if model == course.model("base") else model
    return instruct_model(course, role, seed=seed, num_epochs=1)


def load_policy(course: Course, folder: str) -> tuple[Any, Any]:
    """(model, tokenizer) of what `policy_of` returned, with `TEMPERATURE` folded in."""
    model, tokenizer = load(course, folder)
    return fold_temperature(model, TEMPERATURE), tokenizer


# ---- preference data ---------------------------------------------------------------------------


def comparisons(
    course: Course, split: str, n: int, k: int = 4, *, panel: str = "unbiased", seed: int = 0
) -> list[Comparison]:
    """`n` prompts of a split with K answers each, ranked; the same answers for every panel.

    A row has "prompt", "completions" (K texts) and "ranks" (1 the best). In the pocket world it
    also has the prompt's own columns, "scores" (K, the judge's) and "utilities" (K): what the panel
    values in each answer, in units of its noise. Real data: at most `n` pairs that people compared,
    whatever `k` and `panel` say.
    """
    if course.profile.data["preferences"] != "world":
        return preference_rows(course, split, n, seed)
    rows = sampled_answers(course, split, n, k, seed)
    draws = [random.Random(f"labels {panel} {split} {seed} {i}") for i in range(len(rows))]
    return [ranked(row, PANELS[panel], rng) for row, rng in zip(rows, draws, strict=True)]


def sampled_answers(course: Course, split: str, n: int, k: int, seed: int) -> list[dict]:
    """K answers of the instruct model to each of `n` prompts, and their scores."""
    start = policy_of(course, course.model("base"), seed)
    asked = prompt_rows(course, split, n, seed)
    settings = {"k": k, "seed": seed, "batch": course.profile.batch["generate"]}
    with stage("answers", settings, inputs=[pinned(course, start), asked]) as entry:
        if entry.new:
            rows = answered(course, *load_policy(course, start), split, n, k, seed)
            for row in rows:
                row["scores"] = judge.score([row] * k, row["completions"]).tolist()
            entry.write("answers.json", rows)
    return read_json(entry.folder / "answers.json")


def answered(
    course: Course, policy: Any, tokenizer: Any, split: str, n: int, k: int, seed: int
) -> list[dict]:
    """`prompts_that_fit`, each with K "completions" of the policy, as texts."""
    rows = prompts_that_fit(course, policy, tokenizer, split, n, seed)
    many = {"batch_size": course.profile.batch["generate"], "num_generations": k, "seed": seed}
    asked = [row["prompt"] for row in rows]
    texts = chat.ask(policy, tokenizer, asked, **many, **SAMPLING)
    return [row | {"completions": texts[k * i : k * (i + 1)]} for i, row in enumerate(rows)]


def rendered(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4, **options: Any
) -> list[Comparison]:
    """`comparisons` with "completions" as ids, their words kept as "texts"."""
    rows = comparisons(course, split, n, k, **options)
    rows = [row | {"texts": row["completions"]} for row in rows]
    return reward.render_comparisons(tokenizer, rows, course.context)


def by_seed(
    course: Course, tokenizer: Any, split: str, n: int, k: int = 4
) -> dict[int, list[Comparison]]:
    """`rendered` for each of the run's seeds."""
    return {seed: rendered(course, tokenizer, split, n, k, seed=seed) for seed in course.seeds}


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


# ---- reward models -----------------------------------------------------------------------------


def reward_config(course: Course, base: str, **changes: Any) -> RewardConfig:
    """The course's settings of reward modeling for a model of that size: those of SFT."""
    like = sft_config(course, base, lora=False)
    settings = {
        name: getattr(like, name) for name in ("learning_rate", "dtype", "gradient_checkpointing")
    }
    return RewardConfig(**{**settings, "batch_size": 2, **changes})


def reward_model(
    course: Course,
    n: int,
    k: int = 4,
    *,
    panel: str = "unbiased",
    seed: int = 0,
    progress: Progress | None = None,
    **changes: Any,
) -> str:
    """The folder of a reward model on `n` prompts x `k` answers.

    It starts from the instruct model. Its scores are normalised: the policy's own answers, those
    that were ranked or, with real data, some to the same kind of prompts, have mean 0 and spread 1
    (`reward.set_normalisation`).
    """
    start = policy_of(course, course.model("base"), seed)
    config = reward_config(course, start, seed=seed, **changes)
    rows = comparisons(course, "train", n, k, panel=panel, seed=seed)
    with stage("reward", config, inputs=[pinned(course, start), rows, course.context]) as entry:
        if entry.new:
            policy, tokenizer = load_policy(course, start)
            ranked_rows = reward.render_comparisons(tokenizer, rows, course.context)
            model = reward.make_reward_model(policy, seed)
            steps = loop.steps_of(config, sum(bool(row["pairs"]) for row in ranked_rows))
            bar = progress(steps) if progress else None
            history = reward.train_reward(model, ranked_rows, config, bar)
            if course.profile.data["preferences"] != "world":  # people ranked those of others
                own = answered(course, policy, tokenizer, "train", NUM_SCALE, k, seed)
                nobody = [row | {"pairs": []} for row in own]
                ranked_rows = reward.render_comparisons(tokenizer, nobody, course.context)
            ids = [answer for row in ranked_rows for answer in row["completions"]]
            reward.set_normalisation(model, reward.score_ids(model, ids))
            keep(entry, model, tokenizer, history)
    return str(entry.folder)


def reward_model_on(
    course: Course, start: str, rows: list[Comparison], seed: int, **changes: Any
) -> str:
    """The folder of a reward model from the policy `start` on rendered rows; not normalised."""
    config = reward_config(course, start, seed=seed, **changes)
    with stage("reward-on", config, inputs=[pinned(course, start), rows]) as entry:
        if entry.new:
            policy, tokenizer = load_policy(course, start)
            model = reward.make_reward_model(policy, seed)
            keep(entry, model, tokenizer, reward.train_reward(model, rows, config))
    return str(entry.folder)


# ---- PPO and DPO -------------------------------------------------------------------------------


def ppo_config(course: Course, base: str, **changes: Any) -> PPOConfig:
    """The course's settings of PPO for a policy made from a model of that size."""
    small = parameters_of(course, base) < SMALL
    settings = {"learning_rate": 1e-4 if small else 3e-6, "minibatch_size": 16, "num_epochs": 1}
    # In so few iterations the value learns next to nothing. Then lam < 1 is a discount: with 0.95
    # the score at the end of 60 tokens reaches the first of them with a twentieth of its size.
    settings["lam"] = 1.0
    return PPOConfig(**{**settings, **changes})


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
    """The folder of a policy that PPO trained against the reward model on `n` prompts.

    Args:
        n, k: as in `reward_model`, whose model gives the score.
        base: the role of the model that the policy was made from; None: the profile's base model.
        panel: that the reward model learned from; "nobody" makes the true score the reward.
        changes: fields of `PPOConfig` that differ from `ppo_config`.
    """
    base = course.model(base or "base")
    start = policy_of(course, base, seed)
    config = ppo_config(course, base, **changes)
    by = None if panel == "nobody" else reward_model(course, n, k, panel=panel, seed=seed)
    asked = prompt_rows(course, "train", num_demonstrations(course, PPO_PROMPTS, "train"), seed)
    texts = document_texts(course, PTX_DOCUMENTS, seed=1000 + seed) if config.ptx_coef else []
    with stage("ppo", config, inputs=[pinned(course, start), by, asked, texts, seed]) as entry:
        if entry.new:
            policy, tokenizer = load_policy(course, start)
            rows = prompts_that_fit(course, policy, tokenizer, "train", PPO_PROMPTS, seed)
            model = by and load_reward_model(by, course.device)
            scorer = Scorer(course, model, tokenizer, rows)
            history = ppo.train_ppo(
                policy,
                frozen_copy(policy),
                ppo.ValueHead(policy.config.hidden_size).to(policy.device),
                [chat.render_prompt(tokenizer, row["prompt"]) for row in rows],
                scorer,
                sampling_config(tokenizer, seed=seed),
                config,
                documents=ptx_rows(tokenizer, texts),
                progress=progress(config.num_steps) if progress else None,
            )
            seen = zip(history, scorer.seen, strict=True)
            keep(entry, policy, tokenizer, [row | noted for row, noted in seen])
    return str(entry.folder)


def ptx_rows(tokenizer: Any, texts: list[str]) -> list[chat.Row]:
    """Documents as in pretraining, each cut to `PTX_TOKENS`, for PPO's pretraining term."""
    rows = [chat.render_text(tokenizer, text) for text in texts]
    return [{name: ids[:PTX_TOKENS] for name, ids in row.items()} for row in rows]


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
    """The folder of a policy that DPO trained on the rankings of `n` prompts.

    The same rankings as `reward_model` learns from; arguments as in `ppo_policy`.
    """
    base = course.model(base or "base")
    start = policy_of(course, base, seed)
    config = dpo_config(course, base, seed=seed, **changes)
    ranking = comparisons(course, "train", n, k, panel=panel, seed=seed)
    with stage("dpo", config, inputs=[pinned(course, start), ranking]) as entry:
        if entry.new:
            policy, tokenizer = load_policy(course, start)
            pairs = preference_pairs(course, tokenizer, "train", n, k, panel=panel, seed=seed)
            good, _ = dpo.check_pairs(pairs, config.max_length)
            bar = progress(loop.steps_of(config, len(good))) if progress else None
            keep(entry, policy, tokenizer, dpo.train_dpo(policy, pairs, config, bar))
    return str(entry.folder)


# ---- a population ------------------------------------------------------------------------------

LOSSES = {  # on the levels of a survey's scale, by name; the last two learn from groups' shares
    "cross-entropy": population.rating_loss,
    "numeric": population.numeric_loss,
    "number-token": population.number_token_loss,
    "forward KL": population.forward_kl_loss,
    "Wasserstein": population.wasserstein_loss,
}
GROUP_LOSSES = ("forward KL", "Wasserstein")
LORA_RANK = 16
OTHER_ROWS = 12_000  # answers to other surveys that a model of any size reads before tuning


def surveyed(course: Course, role: str = "") -> str:
    """The chat model that stands before tuning: one that has answered other surveys.

    Args:
        role: "" takes the profile's own, `surveyed`, or else its instruct model; "small", "base"
            or "large" trains that one on other surveys of the pocket world's people.
    """
    if not role:
        return course.model("surveyed" if "surveyed" in course.profile.models else "instruct")
    start = course.model(role)
    config = sft_config(course, start, num_epochs=1, learning_rate=5e-4, batch_size=8)
    rows = other_survey_rows(90, OTHER_ROWS)
    with stage("surveyed", config, inputs=[pinned(course, start), rows]) as entry:
        if entry.new:
            model, tokenizer = load(course, start)
            read = [chat.render_chat(tokenizer, row["messages"]) for row in rows]
            keep(entry, model, tokenizer, sft.train_sft(model, read, config))
    return str(entry.folder)


def population_config(course: Course, base: str, **changes: Any) -> PopulationConfig:
    """The course's settings for LoRA on a survey; all weights take a third of its rate."""
    small = parameters_of(course, base) < SMALL
    settings = {"learning_rate": 1.5e-3 if small else 3e-4, "num_steps": 300}
    like = sft_config(course, base, lora=False)
    settings |= {"dtype": like.dtype, "gradient_checkpointing": like.gradient_checkpointing}
    return PopulationConfig(**{**settings, **changes})


def steps_for(config: PopulationConfig, num_rows: int) -> int:
    """The config's steps, or fewer: few answers are not read more often than five times."""
    return min(config.num_steps, max(1, 5 * num_rows // config.batch_size))


def survey_model(
    course: Course,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    survey: Mapping[str, Any],
    role: str = "",
    people: int | None = None,
    posts: int = 1,
    loss: str = "cross-entropy",
    options: Mapping[str, Any] | None = None,
    quantize: str | None = None,
    lora: int = LORA_RANK,
    end: bool | None = None,
    **changes: Any,
) -> str:
    """The folder of a model that has read a survey's training people, one rating a row.

    Args:
        survey: arguments of `inputs.people.survey_parts`.
        role: of the model that it starts from, as in `surveyed`.
        people: the first so many of the training people; None takes all.
        posts: answers after sentences that are read of each person, beside the initial one.
        loss, options: a loss of `LOSSES` and its own settings.
        quantize: "nf4" for QLoRA. lora: the rank; 0 trains all weights.
        end: whether to learn the end of an answer, too, by cross-entropy on the whole of it; None
            where the model has answered no survey, as it goes on after the number otherwise.
        changes: fields of `PopulationConfig` that differ from `population_config`; with 0 as
            num_steps it is the model before tuning.
    """
    start, (train, _, _) = surveyed(course, role), survey_parts(**survey)
    config = population_config(course, start, seed=seed, **changes)
    if config.num_steps == 0:
        return start
    asked = group_rows(train) if loss in GROUP_LOSSES else training_rows(train, people, posts)
    config.num_steps = steps_for(config, len(asked))
    settings = {"loss": loss, "options": dict(options or {}), "quantize": quantize, "lora": lora}
    if end is None:
        end = loss == "cross-entropy" and "surveyed" not in course.profile.models
    settings |= {"end": end}
    inputs = [pinned(course, start), asked, settings, course.dtype]
    with stage("survey", config, inputs) as entry:
        if entry.new:
            torch.manual_seed(seed)  # of LoRA's matrices
            model, tokenizer = load(course, start, quantize)
            model = add_lora(model, r=lora) if lora else model
            ids = None if end else population.level_ids(tokenizer, train.low, train.high)
            rows = population.render_rows(tokenizer, asked, train.low, ids is not None)
            bar = progress(config.num_steps) if progress else None
            loss_fn = functools.partial(LOSSES[loss], **settings["options"])
            history = population.train_population(model, rows, config, ids, loss_fn, bar)
            keep(entry, model, tokenizer, history)
    return str(entry.folder)


def training_rows(train: Survey, people: int | None = None, posts: int = 1) -> list[dict]:
    """Rows with `messages` and `rating` of the first `people` of a survey's part."""
    rows = asked_rows(train, posts)
    rows = rows if people is None else rows[rows["person"] < people]
    return rows[["messages", "rating"]].to_dict("records")
