"""What notebook 05 measures on its benches: DPO beside PPO and best-of-n, the implicit reward."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from course_lib.algorithms import chat, dpo, reward
from course_lib.algorithms.dpo import DPOConfig
from course_lib.algorithms.loop import Diverged, endless
from course_lib.algorithms.ppo import PPOConfig
from course_lib.algorithms.reward import Comparison
from course_lib.algorithms.sft import completion_losses
from course_lib.core.cache import MANIFEST, read_json
from course_lib.experiments import policy_bench, recipes, reward_trials
from course_lib.experiments.answers import SAMPLING, prompts_that_fit, sampling_config
from course_lib.experiments.measures import Written
from course_lib.experiments.policy_bench import Bench, Point
from course_lib.experiments.recipes import load, training_history
from course_lib.inputs.models import num_parameters
from course_lib.kit.results import committed, select

if TYPE_CHECKING:
    from course_lib.kit.course import Course

METHODS = {  # how each trains a policy, and its usual settings
    "DPO": (recipes.dpo_policy, recipes.dpo_config),
    "PPO": (recipes.ppo_policy, recipes.ppo_config),
}
METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy")


# ---- the data ----------------------------------------------------------------------------------


def pair_summary(rows: Sequence[Comparison], tokenizer: Any) -> list[dict[str, Any]]:
    """Of rankings as from `recipes.comparisons`: the best and worst answers, and all pairs.

    A table with the number of pairs, how often the label agrees with the true score (a tie counts
    one half; "unknown" without a truth), and of chosen and rejected answers the mean number of
    tokens and, where our own policy wrote them, the share that was cut.
    """
    own = all("scores" in row for row in rows)
    most = SAMPLING["max_new_tokens"]
    read = [tokenizer(row["completions"], add_special_tokens=False)["input_ids"] for row in rows]
    ends = [[(int(np.argmin(row["ranks"])), int(np.argmax(row["ranks"])))] for row in rows]
    kinds = {"best and worst": ends, "all pairs": [reward.pairs_of(row) for row in rows]}
    table = []
    for name, pairs in kinds.items():
        each = zip(rows, read, pairs, strict=True)
        found = [(row, ids, *pair) for row, ids, some in each for pair in some]
        right: Any = "unknown"
        if own:
            gaps = [row["scores"][i] - row["scores"][j] for row, _, i, j in found]
            right = float(np.mean(np.sign(gaps)) / 2 + 0.5)
        table.append({"": name, "pairs": len(found), "label agrees with the truth": right})
        for side, words in ((2, "chosen"), (3, "rejected")):
            tokens = np.array([len(one[1][one[side]]) for one in found])
            table[-1] |= {f"tokens of {words}": float(tokens.mean())}
            table[-1] |= {f"{words}: share cut": float((tokens >= most).mean())} if own else {}
    return table


def show_pair(tokenizer: Any, pair: dict) -> str:
    """HTML of both answers of a rendered pair after their prompt, tokens that count in colour."""
    shown = []
    for side in ("chosen", "rejected"):
        mask = [0] * len(pair["prompt_ids"]) + [1] * len(pair[f"{side}_ids"])
        tokens = chat.show_tokens(tokenizer, pair["prompt_ids"] + pair[f"{side}_ids"], mask)
        shown.append(f"<p><b>{side}</b></p>{tokens}")
    return "".join(shown)


# ---- how far, and what for ---------------------------------------------------------------------


def at_kl(bench: Bench, points: Sequence[Point], kl: float) -> np.ndarray:
    """The true score (P,) that a method reaches at a distance of `kl` nats.

    From the reference and between the points of its frontier, a straight line in the square root of
    KL, along which scores rise about evenly at first (Gao et al. 2022). Beyond the last point that
    one counts: nobody has to spend all the distance that is allowed.
    """
    points = sorted(points, key=lambda one: one.kl)
    places = np.sqrt([0.0, *(one.kl for one in points)])
    scores = np.array([bench.before.truth.mean(1), *(one.truth for one in points)])
    right = int(np.clip(np.searchsorted(places, np.sqrt(kl)), 1, len(points)))
    width = places[right] - places[right - 1]
    share = 1.0 if width == 0 else np.clip((np.sqrt(kl) - places[right - 1]) / width, 0, 1)
    return (1 - share) * scores[right - 1] + share * scores[right]


def ahead(bench: Bench, points: Sequence[Point], rival: Point) -> np.ndarray:
    """True score (P,) that a method's frontier has more than the rival, at the rival's KL."""
    return at_kl(bench, points, rival.kl) - rival.truth


def trace(
    bench: Bench,
    usual: Mapping[str, Written],
    n: int,
    settings: Mapping[str, dict],
    betas: Mapping[str, Sequence[float]],
    progress: Callable | None = None,
) -> dict[str, list[Point]]:
    """The frontier of each method along its beta, recorded.

    `usual` is what its policy with the usual `settings` wrote; policies with the other `betas` are
    trained here.
    """
    found: dict[str, list[Point]] = {}
    for method, written in usual.items():
        place = "5.2", method, settings[method]["beta"], bench.seed
        policy_bench.record(bench, place, written)
        found[method] = [policy_bench.point(bench, written)]
        for beta in betas[method]:
            if beta != settings[method]["beta"]:
                options = {**settings[method], "beta": beta, "progress": progress}
                folder = METHODS[method][0](bench.course, n, seed=bench.seed, **options)
                other = policy_bench.measure(bench, folder, "5.2", method, beta)
                found[method].append(policy_bench.point(bench, other))
    return found


# ---- training, as it went ----------------------------------------------------------------------


def in_order(pairs: Sequence[dict], seed: int) -> list[dict]:
    """The ids alone of rendered pairs, in the order in which `train_dpo` reads them first."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    order = itertools.islice(endless(len(pairs), random.Random(seed)), len(pairs))
    return [{name: pairs[i][name] for name in names} for i in order]


def fresh(bench: Bench) -> Any:
    """A copy of the reference that can be trained."""
    return copy.deepcopy(bench.reference).requires_grad_(True)


def trial(
    bench: Bench, rows: Sequence[dict], config: DPOConfig, name: str
) -> tuple[float, Written]:
    """A short DPO training on rendered pairs: its first loss, and what the policy then writes.

    Recorded as claim "break".
    """
    policy = fresh(bench)
    first = dpo.train_dpo(policy, rows, config)[0]
    return first["loss"], policy_bench.measure(bench, policy, "break", name)


def broken_runs() -> pd.DataFrame:
    """What the trials "break" of the committed live runs wrote, means by condition and measure."""
    rows = select(committed("05", "live"), "break")
    if rows.empty:
        return rows
    return rows.pivot_table("value", "condition", "measure")[["truth", "kl", "length"]].round(2)


def record_training(
    course: Course, folder: str, num_passes: float, seed: int, bins: int = 16
) -> None:
    """Record means of a DPO training's metrics, in bins of steps; x is passes over the pairs."""
    history = np.array(training_history(folder), dtype=object)
    parts = np.array_split(history, min(bins, len(history)))
    for i, rows in enumerate(parts):
        at = round((i + 0.5) / len(parts) * num_passes, 3)
        for name in METRICS:
            course.results.add("train", "DPO", at, seed, name, np.mean([r[name] for r in rows]))


def record_held_out(course: Course, metrics: Mapping[str, Any], passes: float, seed: int) -> None:
    """Record what `evaluate_dpo` said of held-out pairs after so many passes."""
    for name in METRICS:
        course.results.add("train", "held-out", passes, seed, name, float(metrics[name]))


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    """`operations` as a table, in per cent of PPO's total."""
    whole, table = sum(costs["PPO"].values()), []
    for method, parts in costs.items():
        for part, n in {**parts, "total": sum(parts.values())}.items():
            table.append({"": method, "part": part, "% of PPO's total": f"{100 * n / whole:.1f}"})
    return table


def longer_ppo(costs: Mapping[str, Mapping[str, float]], num_steps: int, ratio: float) -> float:
    """How many iterations PPO would have to run for DPO to take `ratio` of its operations."""
    once = sum(n for part, n in costs["PPO"].items() if part.startswith("reward model"))
    each = (sum(costs["PPO"].values()) - once) / num_steps
    return (sum(costs["DPO"].values()) / ratio - once) / each


def seconds(folder: str) -> float:
    """How long the stage in `folder` took, wherever it was made; 0 for what was not made here."""
    path = Path(folder) / MANIFEST
    return read_json(path)["seconds"] if path.is_file() else 0.0


def operations(
    bench: Bench, dpo_folder: str, num_passes: float, ppo_folder: str, **ppo_changes: Any
) -> dict[str, dict[str, float]]:
    """Floating-point operations of "DPO" and "PPO" by part, recorded: 2 N a token read or written,
    6 N a token trained on (Kaplan et al. 2020, arXiv:2001.08361), N the policy's parameters.

    Not counted: the reference's own training, the ranked answers and their labels, what is measured
    afterwards, and PPO's value head, a single row of weights.
    """
    course, tokenizer, n = bench.course, bench.tokenizer, num_parameters(bench.reference)
    pairs = sum(row["num_tokens"] for row in training_history(dpo_folder))
    ranked = sum(row["num_tokens"] for row in training_history(bench.reward_folder))
    history = training_history(ppo_folder)
    sampling = sampling_config(tokenizer)
    config = recipes.ppo_config(course, course.model("base"), **ppo_changes)
    asked = "train", recipes.PPO_PROMPTS, bench.seed
    rows = prompts_that_fit(course, bench.reference, tokenizer, *asked)
    prompt = np.mean([len(chat.render_prompt(tokenizer, row["prompt"])) for row in rows])
    prompts = prompt * len(history) * min(sampling.num_prompts, len(rows))
    written = sum(row["num_tokens"] for row in history)
    texts = sampling.num_generations * prompts + written
    found = {"DPO": {"reference reads the pairs": 2 * pairs / num_passes, "training": 6 * pairs}}
    found["PPO"] = {
        "reward model: training": 6 * ranked,
        "reward model: its scale": 2 * ranked,
        "writing answers": 2 * (prompts + written),
        "scoring them": 2 * texts,
        "policy and reference read them": 4 * texts,
        "training": 6 * config.num_epochs * texts,
    }
    for method, parts in found.items():
        for name, tokens in parts.items():
            parts[name] = float(n * tokens)
            course.results.add("5.1", method, name, bench.seed, "operations", parts[name])
    return found


# ---- the implicit reward -----------------------------------------------------------------------


def answer_logps(
    model: Any, tokenizer: Any, rows: Sequence[Comparison], most: int = 10**9
) -> np.ndarray:
    """Log-probability (n,) of the first `most` tokens of each completion, row after row."""
    answers = []
    for row in rows:
        start = len(chat.render_prompt(tokenizer, row["prompt"]))
        for ids in row["completions"]:
            mask = [int(start <= i < start + most) for i in range(len(ids))]
            answers.append({"input_ids": ids, "completion_mask": mask})
    return -completion_losses(model, answers, max_length=10**9)[0]


def implicit_marks(
    bench: Bench, judges: Mapping[str, tuple[str, float]], rows: Sequence[Comparison]
) -> dict[str, reward_trials.Marks]:
    """How beta log π/π_ref does as a reward model on rendered comparisons, recorded.

    `judges` has a folder and a beta by name. A cut answer counts without an end, as DPO learned it.
    """
    most = SAMPLING["max_new_tokens"] if bench.course.truth_known else 10**9
    read = bench.tokenizer, rows, most
    reference, found = answer_logps(bench.reference, *read), {}
    for name, (folder, beta) in judges.items():
        policy, _ = load(bench.course, folder)
        rewards = beta * (answer_logps(policy, *read) - reference)
        found[name] = reward_trials.marks_of(rows, *reward.pair_margins(rows, rewards))
        reward_trials.record(bench.course, found[name], ("5.4", name, 0, bench.seed))
    return found


def reward_marks(bench: Bench, rows: Sequence[Comparison]) -> reward_trials.Marks:
    """The same of the reward model itself."""
    place = "5.4", "reward model", 0, bench.seed
    return reward_trials.record(bench.course, reward_trials.mark(bench.reward_model, rows), place)


# ---- how much it depends on the learning rate and the seed -------------------------------------


def tuned(bench: Bench, method: str, n: int, factor: float, **changes: Any) -> Written | None:
    """What "DPO" or "PPO" writes after training at `factor` times its usual learning rate.

    None where the training stopped itself, because KL or a loss exploded.
    """
    course, base = bench.course, bench.course.model("base")
    train, config = METHODS[method]
    rate = factor * config(course, base).learning_rate
    try:
        folder = train(course, n, seed=bench.seed, learning_rate=rate, **changes)
    except Diverged:
        return None
    return policy_bench.measure(bench, folder, "5.3", method, factor)


def gains_by_rate(
    benches: Mapping[int, Bench],
    runs: Mapping[str, Mapping[int, Written]],
    n: int,
    settings: Mapping[str, dict],
    factors: Sequence[float],
) -> dict[tuple[str, float, int], float]:
    """Points gained by (method, factor on its learning rate, seed), recorded.

    `runs` are those at the usual rate, factor 1; the others are trained with the same `settings`.
    A training that stopped itself, or went so far that PPO would have, gains nothing: one keeps
    the reference.
    """
    gains = {}
    for method, by_seed in runs.items():
        for (seed, usual), factor in itertools.product(by_seed.items(), (1.0, *factors)):
            bench, written = benches[seed], usual
            if factor != 1:
                written = tuned(bench, method, n, factor, **settings[method])
            lost = written is None or written.kl.mean() > PPOConfig.max_kl
            gain = 0.0 if lost else float(written.truth.mean() - bench.before.truth.mean())
            bench.course.results.add("5.3", method, factor, seed, "gain", gain)
            gains[method, factor, seed] = gain
    return gains


def spread(gains: Mapping[tuple[str, float, int], float], method: str) -> dict[str, np.ndarray]:
    """By seed (S,): "seeds", the distance from the seeds' mean at the usual rate, in points; and
    "rates", the best gain less the worst over the learning rates.

    `gains` has keys (method, factor, seed). The mean of "seeds" is Levene's measure of spread.
    """
    table = pd.Series(gains).loc[method].unstack(0)  # a row a seed, a column a factor
    usual = table[1.0].to_numpy()
    rates = (table.max(axis=1) - table.min(axis=1)).to_numpy()
    return {"seeds": np.abs(usual - usual.mean()), "rates": rates}
