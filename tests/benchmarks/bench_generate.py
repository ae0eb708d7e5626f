"""Sampling from `m`: ours beside `transformers`' generate, batch 256, 64 new tokens.

In fp32 the peers sample from the whole distribution (equal work), and with `generate`'s own
default, which is the best 50 tokens; beside them ours in bf16. No row ends early, so all write the
same number of tokens. With one thread, CPU seconds are counted, which other jobs on the machine
disturb less; with more, seconds.

    python tests/benchmarks/bench_generate.py [--threads 2] [--rounds 5]
"""

import argparse
import copy
import random
import statistics
import time

import torch
import transformers
from transformers import LlamaForCausalLM

from course_lib.algorithms.sampling import generate
from course_lib.core.machine import keep_freed_memory
from course_lib.pretraining.pocket import pocket_config

BATCH, NEW, PAD = 256, 64, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    torch.manual_seed(0)
    model = LlamaForCausalLM(pocket_config("m")).eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(4, 2048) for _ in range(rng.randint(24, 48))] for _ in range(BATCH)]
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[PAD] * n + p for n, p in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])

    def ours(temperature: float = 1.0, model=model) -> torch.Tensor:
        sampling = {"max_new_tokens": NEW, "eos_ids": -1, "pad_id": PAD, "seed": 0}
        return generate(model, prompts, temperature=temperature, **sampling).completion_ids

    @torch.inference_mode()
    def theirs(**sampling) -> torch.Tensor:
        length = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": PAD}
        return model.generate(ids, attention_mask=mask, **length, **sampling)[:, longest:]

    small = copy.deepcopy(model).bfloat16()
    same = (ours(0.0) == theirs(do_sample=False)).float().mean()
    runs = {
        "ours": ours,
        "ours, bf16": lambda: ours(model=small),
        "generate, all tokens": lambda: theirs(do_sample=True, top_k=0),
        "generate, default": lambda: theirs(do_sample=True),
    }
    times = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    print(
        f"{options.threads} threads, {options.rounds} rounds; greedy tokens that agree: {same:.2%}"
    )
    base = statistics.median(times["ours"])
    for name, values in times.items():
        median = statistics.median(values)
        rate = BATCH * NEW / median
        print(
            f"  {name:22}{median:6.2f} s{rate:7.0f} tokens/s{median / base:6.2f}x our time in fp32"
        )


if __name__ == "__main__":
    main()
