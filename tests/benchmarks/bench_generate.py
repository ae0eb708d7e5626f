"""Sampling from `m`: ours beside `transformers`' generate, in two kinds of work.

Equal rows: 256 prompts, 64 new tokens each, no row ends early, no prompt comes twice. As the course
samples: 8 solutions of each of 32 word problems, each up to its end, as GRPO and notebooks 06 and
08 want them; there a prompt is read once for its samples, and rows that have ended leave the batch.
The peers sample from the whole distribution (equal work), and with `generate`'s own default, which
is the best 50 tokens; beside them ours in bf16. With one thread, CPU seconds are counted, which
other jobs on the machine disturb less; with more, seconds. Tokens are those up to each row's end.

    python tests/benchmarks/bench_generate.py [--threads 2] [--rounds 5]
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from transformers import LlamaForCausalLM

from course_lib.algorithms.sampling import generate
from course_lib.core.machine import keep_freed_memory
from course_lib.experiments.solutions import ids_with, prompts_of
from course_lib.inputs.models import load_both
from course_lib.pretraining.pocket import pocket_config
from course_lib.world.problems import problem_set

BATCH, NEW, PAD = 256, 64, 3
SOLUTIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = LlamaForCausalLM(pocket_config("m")).eval()
    rng = random.Random(0)
    prompts = [[rng.randrange(4, 2048) for _ in range(rng.randint(24, 48))] for _ in range(BATCH)]
    runs = peers(model, prompts, [-1], 1)
    same = (runs["ours"](temperature=0.0) == runs["generate, all tokens"](do_sample=False)).float()
    print(f"{options.threads} threads, {options.rounds} rounds")
    print(f"Equal rows; greedy tokens that agree: {same.mean():.2%}")
    timed(runs, [-1], options)

    model, tokenizer = load_both("pocket/m")
    problems = problem_set(BATCH // SOLUTIONS, 300, (1, 2), "train")
    ends = ids_with(tokenizer, "\n")
    print("As the course samples")
    timed(peers(model, prompts_of(tokenizer, problems), ends, SOLUTIONS), ends, options)


def peers(
    model: torch.nn.Module, prompts: list[list[int]], ends: list[int], n: int
) -> dict[str, Callable[..., torch.Tensor]]:
    """Functions that return `n` completions of each prompt as ids, (N, at most NEW)."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[PAD] * k + p for k, p in zip(pads, prompts, strict=True)])
    mask = torch.tensor([[0] * k + [1] * (longest - k) for k in pads])
    small = copy.deepcopy(model).bfloat16()

    def ours(model=model, **sampling) -> torch.Tensor:
        sampling |= {"max_new_tokens": NEW, "eos_ids": ends, "pad_id": PAD, "seed": 0}
        return generate(model, prompts, num_generations=n, **sampling).completion_ids

    @torch.inference_mode()
    def theirs(do_sample: bool = True, **sampling) -> torch.Tensor:
        torch.manual_seed(0)
        sampling |= {"max_new_tokens": NEW, "pad_token_id": PAD, "num_return_sequences": n}
        sampling |= {"eos_token_id": ends} if ends != [-1] else {"min_new_tokens": NEW}
        out = model.generate(ids, attention_mask=mask, do_sample=do_sample, **sampling)
        return out[:, longest:]

    return {
        "ours": ours,
        "ours, bf16": lambda: ours(model=small),
        "generate, all tokens": lambda **sampling: theirs(**{"top_k": 0} | sampling),
        "generate, default": theirs,
    }


def timed(runs: dict[str, Callable], ends: list[int], options: argparse.Namespace) -> None:
    """Print the median seconds of each, its tokens a second, and how many times ours it takes."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    times, written = {name: [] for name in runs}, {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = clock()
            ids = run()
            times[name].append(clock() - start)
            ended = torch.isin(ids, torch.tensor(ends)).cumsum(-1)
            written[name] = int((ended == 0).sum()) + int((ended[:, -1] > 0).sum())
    rates = {name: written[name] / statistics.median(each) for name, each in times.items()}
    for name, rate in rates.items():
        seconds, times_ours = statistics.median(times[name]), rates["ours"] / rate
        print(f"  {name:22}{seconds:6.2f} s{rate:7.0f} tokens/s{times_ours:6.2f}x our time a token")


if __name__ == "__main__":
    main()
