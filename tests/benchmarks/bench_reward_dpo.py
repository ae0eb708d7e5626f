"""Reward model and DPO of `l`: our loops beside TRL's trainers, the same pairs in the same order.

fp32 without checkpointing, and TRL's defaults (bf16 and checkpointing) beside our bf16, as in
bench_sft, which also says what tokens and MFU are. Pairs of one length and of mixed lengths. The
training alone is timed: both sides have the reference's log-probabilities before. The third run of
the reward model reads the same answers as rankings of K = 4: six comparisons for four reads.

    python tests/benchmarks/bench_reward_dpo.py [--threads 2] [--rounds 3] [--steps 4]
"""

import random
import tempfile

import transformers
from bench_sft import compare, make_model, make_rows, read_options
from datasets import Dataset
from trl import DPOConfig as TRLDPOConfig
from trl import DPOTrainer, RewardTrainer
from trl import RewardConfig as TRLRewardConfig

from course_lib.algorithms.dpo import DPOConfig, add_reference_logps, train_dpo
from course_lib.algorithms.reward import RewardConfig, make_reward_model, train_reward
from course_lib.pretraining.pocket import train_tokenizer


class Prepared(DPOTrainer):
    """Takes pairs that are rendered."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


BATCH = 16  # pairs
SHARED = {"batch_size": BATCH, "warmup": 0.0, "schedule": "constant", "learning_rate": 1e-4}


def make_pairs(n: int, mixed: bool) -> list[dict]:
    rows = make_rows(2 * n, mixed)
    pairs = []
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        start = one["completion_mask"].count(0)
        rejected = other["input_ids"][other["completion_mask"].count(0) :]
        ids = one["input_ids"]
        pairs.append(
            {"prompt_ids": ids[:start], "chosen_ids": ids[start:], "rejected_ids": rejected}
        )
    return pairs


def answers(pair: dict) -> list[list[int]]:
    return [pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")]


def ours_dpo(pairs: list[dict], steps: int, clock, dtype="float32") -> tuple[float, list[float]]:
    model = make_model()
    pairs = add_reference_logps(model, pairs, dtype)
    start = clock()
    history = train_dpo(model, pairs, DPOConfig(num_steps=steps, dtype=dtype, **SHARED))
    return clock() - start, [row["loss"] for row in history]


def ours_reward(
    pairs: list[dict], steps: int, clock, k: int = 2, dtype: str = "float32"
) -> tuple[float, list[float]]:
    """k = 4 puts the answers of two pairs into one ranking."""
    lists = [answers(pair) for pair in pairs]
    if k == 4:
        lists = [one + other for one, other in zip(lists[::2], lists[1::2], strict=True)]
    rows = [{"completions": ids, "ranks": list(range(k))} for ids in lists]
    model = make_reward_model(make_model())
    own = {"batch_size": 2 * BATCH // k, "dtype": dtype}
    config = RewardConfig(num_steps=steps, **SHARED | own)
    start = clock()
    history = train_reward(model, rows, config)
    return clock() - start, [row["loss"] for row in history]


def trl(pairs: list[dict], steps: int, clock, kind: str, **changes) -> tuple[float, list[float]]:
    order = list(range(len(pairs)))
    random.Random(0).shuffle(order)
    options = {
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": SHARED["learning_rate"],
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **changes,
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(["a"], folder)
        if kind == "dpo":
            rows, model = [pairs[i] for i in order], make_model()
            args = TRLDPOConfig(folder, precompute_ref_log_probs=True, **options)
            trainer_class = Prepared
        else:
            rows, model = [], make_reward_model(make_model())
            for i in order:
                rows.append(
                    dict(zip(("chosen_ids", "rejected_ids"), answers(pairs[i]), strict=True))
                )
            args, trainer_class = TRLRewardConfig(folder, **options), RewardTrainer
        trainer = trainer_class(
            model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.remove_callback(transformers.PrinterCallback)
        start = clock()
        trainer.train()
        seconds = clock() - start
    return seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    options, clock = read_options()
    steps = options.steps
    print(f"{options.threads} threads, {options.rounds} rounds of {steps} steps of {BATCH} pairs")
    same = {"bf16": False, "gradient_checkpointing": False}
    bf16 = {"dtype": "bfloat16"}
    for title, mixed in (("one length", False), ("mixed lengths", True)):
        pairs = make_pairs(BATCH * steps, mixed)
        read = [{"input_ids": ids} for pair in pairs for ids in answers(pair)]
        runs = {
            "reward, ours": (lambda p=pairs: ours_reward(p, steps, clock), None),
            "reward, TRL": (lambda p=pairs: trl(p, steps, clock, "reward", **same), "reward, ours"),
            "reward, K = 4": (lambda p=pairs: ours_reward(p, steps, clock, 4), "reward, ours"),
            "reward, bf16": (lambda p=pairs: ours_reward(p, steps, clock, **bf16), None),
            "reward, TRL's": (lambda p=pairs: trl(p, steps, clock, "reward"), "reward, bf16"),
            "DPO, ours": (lambda p=pairs: ours_dpo(p, steps, clock), None),
            "DPO, TRL": (lambda p=pairs: trl(p, steps, clock, "dpo", **same), "DPO, ours"),
            "DPO, bf16": (lambda p=pairs: ours_dpo(p, steps, clock, **bf16), None),
            "DPO, TRL's": (lambda p=pairs: trl(p, steps, clock, "dpo"), "DPO, bf16"),
        }
        compare(title, read, runs, options.rounds, clock)


if __name__ == "__main__":
    main()
