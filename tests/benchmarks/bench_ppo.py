"""PPO of `m`: where an iteration's time goes, and how near each phase is to the matmul peak.

FLOPs are 2 per parameter and token read (6 where it is learned from), pads not counted: sampling
reads each prompt once and each new token, scoring reads all with policy and reference, an epoch of
the update learns from all. The score itself costs nothing here. The median of the iterations but
the first counts.

    python tests/benchmarks/bench_ppo.py [--threads 2] [--rounds 3] [--size m]
"""

import argparse
import random
import statistics

import torch
from transformers import LlamaForCausalLM

from course_lib.algorithms.ppo import PPOConfig, SamplingConfig, ValueHead, train_ppo
from course_lib.core.machine import keep_freed_memory, matmul_peak
from course_lib.inputs.models import frozen_copy, num_parameters
from course_lib.pretraining.pocket import pocket_config

PROMPTS, GENERATIONS, NEW = 32, 2, 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="m")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    policy = LlamaForCausalLM(pocket_config(options.size)).eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(4, 2048) for _ in range(rng.randint(24, 48))] for _ in range(PROMPTS)]
    sampling = SamplingConfig([0], PROMPTS, GENERATIONS, NEW)
    config = PPOConfig(num_steps=options.rounds + 1, learning_rate=1e-6)
    history = train_ppo(
        policy,
        frozen_copy(policy),
        ValueHead(policy.config.hidden_size),
        prompts,
        lambda prompts, completions: torch.zeros(len(completions)),
        sampling,
        config,
    )
    peak = matmul_peak()
    new = statistics.median(row["num_tokens"] for row in history[1:])
    read = sum(map(len, prompts))
    whole = read * GENERATIONS + new
    tokens = {
        "sampling": read + new,
        "scoring": 2 * whole,
        "update": 3 * config.num_epochs * whole,
    }
    seconds = {
        name: statistics.median(row[f"seconds/{name}"] for row in history[1:]) for name in tokens
    }
    total = sum(seconds.values())
    print(
        f"{options.size}, {options.threads} threads, {PROMPTS * GENERATIONS} completions of "
        f"{new / PROMPTS / GENERATIONS:.0f} tokens: {total:.2f} s an iteration, "
        f"{new / total:.0f} new tokens/s, peak {peak / 1e9:.0f} GFLOP/s (fp32)"
    )
    for name, count in tokens.items():
        share = 2 * num_parameters(policy) * count / seconds[name] / peak
        print(
            f"  {name:10}{seconds[name]:6.2f} s {seconds[name] / total:4.0%}  of peak {share:4.0%}"
        )


if __name__ == "__main__":
    main()
