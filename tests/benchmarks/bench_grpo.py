"""GRPO of `m` on word problems: an update of ours beside one of TRL's GRPOTrainer.

The same model, problems, groups, lengths and rule: right answers earn 1. TRL runs with our settings
(fp32, no checkpointing) and with its own defaults (bf16 autocast, checkpointing). All learn; the
mean reward of the last third shows that they learn alike. An update is what happens from one set of
prompts to the next: writing, judging, learning. The median of the updates but the first counts.

With one thread, CPU seconds are counted, which other jobs on the machine disturb less.

    python tests/benchmarks/bench_grpo.py [--threads 2] [--steps 12]
"""

import argparse
import itertools
import statistics
import tempfile
import time

import torch
import transformers

from course_lib import ROOT
from course_lib.algorithms.chat import document_ends
from course_lib.algorithms.grpo import GRPOConfig, train_grpo
from course_lib.algorithms.ppo import SamplingConfig
from course_lib.core.machine import keep_freed_memory
from course_lib.inputs.models import load_model, load_tokenizer
from course_lib.world.problems import problem_prompt, problem_set, verify_answer

PROMPTS, GROUP, NEW, RATE = 16, 8, 64, 2e-4
OURS = {"bf16": False, "gradient_checkpointing": False, "warmup_steps": 1}
MODEL = str(ROOT / "data" / "models" / "m")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    problems = problem_set(PROMPTS * options.steps, 0, (1, 2), "train")
    tokenizer = load_tokenizer(MODEL)
    start, _ = document_ends(tokenizer)
    texts = [tokenizer.decode(start) + problem_prompt(problem) for problem in problems]
    by_text = dict(zip(texts, problems, strict=True))
    clock = time.process_time if options.threads == 1 else time.perf_counter
    runs = {
        "ours": (ours, {}),
        "TRL, our settings": (theirs, OURS),
        "TRL, its defaults": (theirs, {}),
    }
    base = None
    for name, (run, settings) in runs.items():
        seconds, rewards = run(tokenizer, by_text, options.steps, clock, **settings)
        median = statistics.median(seconds[1:])
        base = base or median
        late = statistics.mean(rewards[-(len(rewards) // 3) :])
        print(
            f"{name:20}{median:6.2f} s an update{median / base:6.2f}x ours; "
            f"mean reward {statistics.mean(rewards[:3]):.3f} to {late:.3f}",
            flush=True,
        )


def ours(tokenizer, by_text: dict, steps: int, clock) -> tuple[list[float], list[float]]:
    """Seconds and mean reward of each update."""
    times = [clock()]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in by_text]
    known = {tuple(ids): p for ids, p in zip(prompts, by_text.values(), strict=True)}

    def score(asked: list[list[int]], written: list[list[int]]) -> torch.Tensor:
        said = tokenizer.batch_decode(written, skip_special_tokens=True)
        pairs = zip(asked, said, strict=True)
        return torch.tensor([float(verify_answer(known[tuple(ids)], text)) for ids, text in pairs])

    ends = SamplingConfig([tokenizer.eos_token_id], PROMPTS, GROUP, NEW)
    config = GRPOConfig(num_steps=steps, learning_rate=RATE, minibatch_size=PROMPTS * GROUP)
    seen = lambda row: times.append(clock())  # noqa: E731
    history = train_grpo(load_model(MODEL), None, prompts, score, ends, config, seen)
    return [b - a for a, b in itertools.pairwise(times)], [row["scores/mean"] for row in history]


def theirs(tokenizer, by_text: dict, steps: int, clock, **settings):
    """The same of TRL's trainer."""
    from datasets import Dataset
    from trl import GRPOConfig as Config
    from trl import GRPOTrainer

    rewards: list[float] = []

    def score(prompts, completions, **_) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        found = [float(verify_answer(by_text[prompt], text)) for prompt, text in pairs]
        rewards.append(statistics.mean(found))
        return found

    with tempfile.TemporaryDirectory() as folder:
        args = Config(
            folder,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW,
            loss_type="grpo",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        rows = Dataset.from_list([{"prompt": text} for text in by_text])
        times = [clock()]

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_, **__) -> None:
                times.append(clock())

        model = load_model(MODEL)
        trainer = GRPOTrainer(
            model, score, args, rows, processing_class=tokenizer, callbacks=[Clock()]
        )
        trainer.train()
    return [b - a for a, b in itertools.pairwise(times)], rewards


if __name__ == "__main__":
    main()
