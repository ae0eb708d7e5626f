"""SFT of `l`: our loop beside TRL's SFTTrainer, the same rows in the same order, interleaved.

Two kinds of rows: of one length (so that nobody pads) and of mixed lengths, as chats have. TRL runs
at equal precision without checkpointing, and with its defaults (bf16 and checkpointing), beside
which stands our bf16 autocast. MFU counts 6 FLOPs per parameter and non-padding token, over the
fp32 matmul peak measured in between. With one thread, CPU seconds are counted, which other jobs on
the machine disturb less; with more, seconds.

    python tests/benchmarks/bench_sft.py [--threads 2] [--rounds 3] [--steps 4]
"""

import argparse
import random
import statistics
import tempfile
import time

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from transformers import LlamaForCausalLM
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from course_lib.algorithms.sft import SFTConfig, train_sft
from course_lib.core.machine import keep_freed_memory
from course_lib.inputs.models import num_parameters
from course_lib.pretraining.pocket import pocket_config, train_tokenizer

BATCH = 32


def make_rows(n: int, mixed: bool) -> list[dict]:
    """Prompts of about 40 tokens and answers of about 90, as the pocket world's chats have."""
    rng = random.Random(0)
    rows = []
    for _ in range(n):
        prompt, answer = (rng.randint(20, 60), rng.randint(40, 140)) if mixed else (40, 88)
        ids = [rng.randrange(4, 2048) for _ in range(prompt + answer)]
        rows.append({"input_ids": ids, "completion_mask": [0] * prompt + [1] * answer})
    return rows


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(pocket_config("l"))


def ours(rows: list[dict], steps: int, clock, dtype: str = "float32") -> tuple[float, list[float]]:
    """Seconds of the training loop, and its losses."""
    config = SFTConfig(
        num_steps=steps, batch_size=BATCH, warmup=0.0, schedule="constant", dtype=dtype
    )
    model = make_model()
    start = clock()
    history = train_sft(model, rows, config)
    return clock() - start, [row["loss"] for row in history]


def trl(rows: list[dict], steps: int, clock, **options) -> tuple[float, list[float]]:
    """The same with TRL, in the order in which our loop draws the rows."""
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    with tempfile.TemporaryDirectory() as folder:
        args = TRLConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            use_cpu=True,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        trainer = SFTTrainer(
            make_model(),
            args=args,
            train_dataset=Dataset.from_list([rows[i] for i in order]),
            processing_class=train_tokenizer(["a"], folder),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        start = clock()
        trainer.train()
        seconds = clock() - start
    return seconds, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def peak(clock) -> float:
    """Matmul peak in GFLOP/s, fp32, the best of a few sizes."""
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        _ = a @ b
        start = clock()
        for _ in range(3):
            _ = a @ b
        best = max(best, 3 * 2 * n**3 / (clock() - start) / 1e9)
    return best


def compare(title: str, rows: list[dict], runs: dict, rounds: int, clock) -> None:
    """Run all, in turn, `rounds` times; print medians. A run is compared with `runs[name][1]`."""
    times, losses, peaks = {name: [] for name in runs}, {}, []
    for _ in range(rounds):
        for name, (run, _) in runs.items():
            peaks.append(peak(clock))
            seconds, losses[name] = run()
            times[name].append(seconds)
    tokens = sum(len(row["input_ids"]) for row in rows)
    flops = 6 * num_parameters(make_model()) * tokens / 1e9
    best, medians = statistics.median(peaks), {n: statistics.median(t) for n, t in times.items()}
    print(f"\n{title}: {tokens} tokens, matmul peak {best:.0f} GFLOP/s (fp32)")
    for name, (_, base) in runs.items():
        s = medians[name]
        ratio = f"{s / medians[base]:5.2f}x the time of {base}" if base else ""
        print(
            f"  {name:14}{s:7.2f} s{tokens / s:7.0f} tokens/s  MFU {flops / s / best:4.0%}  {ratio}"
        )
    for name, curve in losses.items():
        print(f"  {name:14}loss", " ".join(f"{loss:.4f}" for loss in curve))


def read_options():
    """Options of the command line, and the clock that goes with the number of threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    return options, clock


def main() -> None:
    options, clock = read_options()
    steps = options.steps
    print(f"{options.threads} threads, {options.rounds} rounds of {steps} steps of {BATCH} rows")
    same = {"bf16": False, "gradient_checkpointing": False}
    for title, mixed in (("one length", False), ("mixed lengths", True)):
        rows = make_rows(BATCH * steps, mixed)
        runs = {
            "ours, fp32": (lambda r=rows: ours(r, steps, clock), None),
            "TRL, fp32": (lambda r=rows: trl(r, steps, clock, **same), "ours, fp32"),
            "ours, bf16": (lambda r=rows: ours(r, steps, clock, "bfloat16"), None),
            "TRL, defaults": (lambda r=rows: trl(r, steps, clock), "ours, bf16"),
        }
        compare(title, rows, runs, options.rounds, clock)


if __name__ == "__main__":
    main()
