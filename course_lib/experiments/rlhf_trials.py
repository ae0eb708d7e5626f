"""The experiments of notebook 04: a policy against its reward model, and what else it costs.

A run is a name and its settings, arguments of `recipes.ppo_policy`; runs are data, and everything
is trained and measured in the same way. What a training wrote is averaged over windows of
iterations, since one iteration's 64 answers are few; a peak is never looked for in the answers that
then have to show the fall.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from course_lib.algorithms import chat, ppo, reward, search
from course_lib.core.stats import Interval, over_seeds, ratio_items, smallest_step, t_interval
from course_lib.experiments import answers, measures, policy_bench, recipes, sft_trials
from course_lib.experiments.answers import WATCHED, prompts_that_fit
from course_lib.experiments.measures import Written, tax
from course_lib.experiments.policy_bench import Bench
from course_lib.experiments.recipes import (
    Progress,
    comparisons,
    load,
    load_policy,
    policy_of,
    reward_model,
    training_history,
)
from course_lib.inputs.models import frozen_copy
from course_lib.inputs.rows import instruction_rows
from course_lib.kit.results import select

if TYPE_CHECKING:
    from course_lib.kit.course import Course

Runs = Mapping[str, Mapping[str, Any]]  # name -> settings
Folders = dict[str, dict[int, str]]  # name -> seed -> folder of the trained policy
WINDOW = 4  # iterations that are averaged
SHOTS = 3  # demonstrations in front of a prompted base model's request
AMOUNTS = (64, 512, 4096)  # prompts that the reward models of a full run learn from
BEST_OF = 64  # demonstrations of which these are the best
NOTED = ("kl", "entropy", "clipfrac", "explained_variance", "completion_length")


# ---- runs --------------------------------------------------------------------------------------


def more_runs(course: Course, ours: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs that a full run adds to that with the settings `ours`."""
    runs = {f"β = {beta}": ours | {"beta": beta} for beta in (0.05, 0.8)}
    longer = {"num_steps": ours["num_steps"] * 3 // 2, "beta": 0.0, "max_kl": 1e4}  # guard off
    runs |= {f"{n} prompts": ours | longer | {"n": n} for n in AMOUNTS}
    runs |= {f"γ = {gamma}": ours | {"ptx_coef": gamma} for gamma in (0.1, 1.0)}
    sizes = {name: course.model(name) for name in ("small", "large")}
    own = course.model("base")
    runs |= {name: ours | {"base": base} for name, base in sizes.items() if base != own}
    runs |= {"λ = 0.95": ours | {"lam": 0.95}, "the truth": ours | {"panel": "nobody"}}
    return runs | ({"biased labellers": ours | {"panel": "biased"}} if course.truth_known else {})


def more_models(course: Course) -> dict[str, str]:
    """The models without RLHF that a full run adds to the matrix, by name; see `no_rlhf`."""
    sizes = {"s": course.model("small"), "l": course.model("large")}
    ways = ("bare", "prompted", "SFT")
    return {f"{size}, {way}": model for size, model in sizes.items() for way in ways}


def train(course: Course, runs: Runs, progress: Progress | None = None) -> Folders:
    """Train all runs with all seeds, each a stage, and record what they wrote along the way."""
    folders: Folders = {}
    most = max(settings["n"] for settings in runs.values())
    truths = {seed: ranked_truth(course, most, seed) for seed in course.seeds}
    for name, settings in runs.items():
        folders[name] = {}
        for seed, truth in truths.items():
            path = recipes.ppo_policy(course, **settings, seed=seed, progress=progress)
            folders[name][seed] = path
            record_training(course, name, path, seed, as_it_came(settings, truth))
    return folders


def measure(
    benches: Mapping[int, Bench], runs: Runs, folders: Folders
) -> dict[str, dict[int, Written]]:
    """What the trained policies write to the held-out prompts, by run and seed, recorded as "4.1".

    The KL of a policy of another size is to its own reference; its wins are over the same answers.
    """
    found: dict[str, dict[int, Written]] = {}
    for name, settings in runs.items():
        found[name] = {}
        for seed, folder in folders[name].items():
            bench, reference = benches[seed], None
            if base := settings.get("base"):
                start = load_policy(bench.course, policy_of(bench.course, base, seed))[0]
                reference = frozen_copy(start)
            found[name][seed] = policy_bench.measure(
                bench, folder, "4.1", name, reference=reference
            )
    return found


def full_wins(course: Course, most: int = 8) -> list[dict[str, str]]:
    """The committed full runs' wins over SFT as a table: each run, and best-of-n to `most`."""
    picks = select(course.full_runs("along"), measure="wins", condition="best of n")
    picks = picks[picks["x"].astype(float).between(2, most)]
    rows = pd.concat(
        [
            select(course.full_runs("4.1"), measure="wins"),
            picks.assign(condition=[f"best of {n:g}" for n in picks["x"]]),
        ]
    )
    means = rows.groupby("condition")["value"].mean().sort_values(ascending=False)
    return [{"full runs": name, "wins over SFT": f"{mean:.3f}"} for name, mean in means.items()]


# ---- along a training --------------------------------------------------------------------------


def windows(history: Sequence[Mapping], name: str) -> list[np.ndarray]:
    """What `ppo_policy` noted of each completion, `name` of `WATCHED`, by window: (iterations, N).

    The completions of a prompt stand side by side. A last window that is not full is left out.
    """
    starts = range(0, len(history) - WINDOW + 1, WINDOW)
    return [np.array([row[name] for row in history[i : i + WINDOW]]) for i in starts]


def record_training(
    course: Course, name: str, folder: str, seed: int, start: Mapping[str, float]
) -> None:
    """Record a training as "along", x the last iteration of a window; `start` stands at x = 0."""
    history = training_history(folder)
    means = {each: [w.mean() for w in windows(history, each)] for each in WATCHED}
    for each in NOTED:
        values = np.array([row[each] for row in history])
        means[each] = values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(1)
    if "truth" in start:
        means["gain"], start = np.array(means["truth"]) - start["truth"], start | {"gain": 0.0}
    for each, value in start.items():
        course.results.add("along", name, 0, seed, each, value)
    for each, values in means.items():
        for i, value in enumerate(values, start=1):
            course.results.add("along", name, WINDOW * i, seed, each, value)


def ranked_truth(course: Course, n: int, seed: int) -> float | None:
    """Mean true score of the ranked answers to `n` training prompts; None where nobody knows it."""
    rows = comparisons(course, "train", n, seed=seed)
    scores = [score for row in rows for score in row.get("scores", [])]
    return float(np.mean(scores)) if scores else None


def as_it_came(settings: Mapping[str, Any], truth: float | None) -> dict[str, float]:
    """The policy before PPO, where a run's curve starts; its `ranked_truth` is given.

    Known for policies of the reward model's own size, whose normalised scores have mean 0 by
    convention.
    """
    if settings.get("base"):
        return {}
    if truth is None:
        return {"proxy": 0.0, "kl": 0.0}
    proxy = truth / answers.TRUTH_UNIT if settings.get("panel") == "nobody" else 0.0
    return {"proxy": proxy, "kl": 0.0, "truth": truth}


def after_the_peak(folders: Mapping[int, str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """From the truth's peak to the end of the training: (fall of the truth, rise of the proxy).

    One array a seed, by prompt. Where there are several seeds, the others choose a seed's peak; one
    seed alone is halved: every second prompt chooses for the others, and the other way round. So
    the luck of the prompts and answers that made the peak is not counted as a fall.
    """
    runs = {seed: training_history(folder) for seed, folder in folders.items()}
    truth = {seed: by_prompt(run, "truth") for seed, run in runs.items()}
    proxy = {seed: by_prompt(run, "proxy") for seed, run in runs.items()}
    falls, rises = [], []
    for seed in runs:
        others = [truth[s].mean(1) for s in runs if s != seed]
        if others:
            parts = [(np.mean(others, axis=0), slice(None))]
        else:
            first, second = slice(0, None, 2), slice(1, None, 2)
            ways = (first, second), (second, first)
            parts = [(truth[seed][:, a].mean(1), b) for a, b in ways]
        fall, rise = [], []
        for chosen_by, own in parts:
            peak = int(np.argmax(chosen_by))
            fall.append(truth[seed][peak, own] - truth[seed][-1, own])
            rise.append(proxy[seed][-1, own] - proxy[seed][peak, own])
        falls.append(np.concatenate(fall))
        rises.append(np.concatenate(rise))
    return falls, rises


def by_prompt(history: Sequence[Mapping], name: str) -> np.ndarray:
    """As `windows`, with the mean over the completions of each prompt: (windows, prompts)."""
    found = np.stack(windows(history, name))  # (W, its, N)
    each = ppo.SamplingConfig.num_generations
    return found.reshape(len(found), -1, each).mean(-1)


def later_peak(folders: Sequence[Mapping[int, str]]) -> Interval:
    """The smallest step of √KL at the truth's peak with the next amount of data, over seeds."""
    found = []
    for runs in folders:
        places = []
        for folder in runs.values():
            history = training_history(folder)
            peak = int(np.argmax([window.mean() for window in windows(history, "truth")]))
            kl = [row["kl"] for row in history[WINDOW * peak : WINDOW * (peak + 1)]]
            places.append(np.array([max(0.0, np.mean(kl)) ** 0.5]))
        found.append(places)
    return smallest_step(found)


def same_distance(course: Course, names: Sequence[str], seeds: Sequence[int]) -> Interval:
    """The smallest step of the gain in truth from one run to the next, as far as all of them went.

    Each seed's gains along its runs are read off at the largest √KL that all of its runs reached.
    """
    found: list[list[np.ndarray]] = [[] for _ in names]
    for seed in seeds:
        paths = []
        for name in names:
            rows = course.results.frame("along", condition=name)
            path = rows[rows["seed"] == seed].pivot_table("value", "x", "measure")
            paths.append(path.assign(d=path["kl"].clip(lower=0) ** 0.5).sort_values("d"))
        reached = min(path["d"].max() for path in paths)
        for steps, path in zip(found, paths, strict=True):
            steps.append(np.array([np.interp(reached, path["d"], path["gain"])]))
    return smallest_step(found)


def best_of_n(bench: Bench) -> dict[int, policy_bench.Point]:
    """Best-of-n from the answers `before`, recorded as "along", "best of n".

    A full run picks from 1,024 answers to each of 16 prompts, and also by the reward models that
    learned from other amounts of data.
    """
    course, pool = bench.course, bench.before
    if course.full:
        by, rows = (bench.start, bench.reward_folder), bench.rows[:16]
        pool = policy_bench.reference_answers(course, *by, rows, 1024, bench.seed)
        for n in (AMOUNTS[0], AMOUNTS[-1]):
            policy_bench.best_of_n(
                bench, "along", f"best of n, {n} prompts", rescored(bench, pool, n)
            )
    return policy_bench.best_of_n(bench, "along", "best of n", pool)


def picks_after_the_peak(along: pd.DataFrame, name: str) -> Interval:
    """Of rows "along" of best-of-n with several seeds: the truth's fall from its peak to most n.

    The other seeds choose a seed's peak, as in `after_the_peak`.
    """
    rows = along[(along["condition"] == name) & (along["measure"] == "gain")]
    gains = rows.pivot_table("value", "seed", "x").to_numpy()  # (seeds, ns)
    others = (gains.sum(0) - gains) / (len(gains) - 1)
    return t_interval(gains[range(len(gains)), others.argmax(1)] - gains[:, -1])


def rescored(bench: Bench, pool: Written, n: int) -> Written:
    """The same answers, scored by the reward model that learned from `n` prompts."""
    course = bench.course
    model = reward.load_reward_model(reward_model(course, n, seed=bench.seed), course.device)
    asked = [row["prompt"] for row in pool.rows for _ in range(pool.texts.shape[1])]
    scores = reward.score_texts(model, bench.tokenizer, asked, pool.texts.ravel().tolist())
    return replace(pool, proxy=reward.normalise(model, scores).reshape(pool.proxy.shape))


def beside(written: Written, picked: policy_bench.Point) -> np.ndarray:
    """True score (P,) less that of best-of-n, at the first P prompts, which that picked from."""
    return written.truth.mean(1)[: len(picked.truth)] - picked.truth


def fitted(along: pd.DataFrame, name: str) -> search.OverOptimisation | None:
    """Gao et al.'s curve through the rows "along" of a run, or of best-of-n.

    None where there are too few points, or the gain over the policy as it came is not known.
    """
    rows, form = along[along["condition"] == name], "bon" if "best" in name else "rl"
    wide = rows.pivot_table(index="seed", columns=["measure", "x"], values="value")
    if not {"gain", "kl"} <= set(wide.columns.get_level_values(0)):
        return None
    gains, kl = wide["gain"].to_numpy(), wide["kl"].to_numpy()
    if gains.shape[1] < 4:
        return None
    gains, kl = (gains, kl) if len(gains) > 1 else (gains[0], kl[0])
    return search.fit_overoptimisation(np.maximum(kl, 0), gains, form)


def fit_rows(course: Course, curves: Sequence[str]) -> list[dict[str, str]]:
    """Fitted curves as a table, of this run and of the committed full runs.

    Intervals are over seeds. One seed's points hang together, so there it has none.
    """
    runs = {"this run": course.results.frame("along")}
    runs |= {} if course.full else {"full runs": course.full_runs("along")}
    table = []
    for whose, along in runs.items():
        for name in curves:
            if fit := fitted(along, name):
                kl = along[(along["condition"] == name) & (along["measure"] == "kl")]["value"].max()
                row = {"curve": name, "fitted to": whose, "R²": fit.r2, "Gao's α": fit.alpha}
                row |= {"Gao's β": fit.beta, "√KL of the peak": fit.peak}
                if along["seed"].nunique() == 1:
                    row |= {k: f"{v[0]:.3f}" for k, v in row.items() if isinstance(v, Interval)}
                row["√KL reached, at most"] = f"{kl**0.5:.2f}"
                table.append({title: str(value) for title, value in row.items()})
    return table


# ---- other models, and the tax -----------------------------------------------------------------


def prompted(bench: Bench, model: str, tries: int, shots: int = SHOTS) -> np.ndarray:
    """True scores (P, tries) of what a base model writes, after `shots` good examples or none.

    The examples stand in a transcript of a user and an assistant, which base models have read in
    their pretraining: a strong prompt.
    """
    course, rows = bench.course, bench.rows
    network, tokenizer = load(course, model)
    asked, options = [row["prompt"] for row in rows], dict(sft_trials.SAMPLING)
    if shots:
        asked = [f"User: {prompt}\nAssistant:" for prompt in asked]
        longest = max(len(ids) for ids in tokenizer(asked)["input_ids"])
        room = course.context - options["max_new_tokens"] - longest
        start = transcript(bench, tokenizer, shots, room // shots)
        asked = [start + request for request in asked]
    options["seed"] = policy_bench.draw(("4.5", f"{model}, {shots}", 0, bench.seed))
    options |= {"num_generations": tries, "batch_size": course.profile.batch["generate"]}
    texts = chat.complete(network, tokenizer, asked, **options)
    texts = [text.partition("\nUser:")[0] for text in texts] if shots else texts
    repeated = [row for row in rows for _ in range(tries)]
    return answers.judged(course, repeated, texts)["truth"].reshape(len(rows), tries)


def no_rlhf(bench: Bench, name: str, base: str) -> np.ndarray:
    """True scores of a base model, by the name's last word "bare", "prompted" or after "SFT"."""
    if name.endswith("SFT"):
        return fine_tuned(bench, base)
    return prompted(bench, base, 1, shots=0 if name.endswith("bare") else SHOTS)


def fine_tuned(bench: Bench, model: str) -> np.ndarray:
    """True scores (P, TRIES) of the policy made from a base model, before any RLHF."""
    start = policy_of(bench.course, model, bench.seed)
    policy, tokenizer = load_policy(bench.course, start)
    seed = policy_bench.draw(("4.5", f"{model}, SFT", 0, bench.seed))
    by = None, bench.reward_model, tokenizer
    return measures.write(bench.course, policy, *by, bench.rows, seed=seed).truth


def transcript(bench: Bench, tokenizer: Any, shots: int, most: int) -> str:
    """The best `shots` of `BEST_OF` demonstrations by true score, as turns of `most` tokens."""
    shown = instruction_rows(bench.course, BEST_OF, seed=bench.seed, kinds=["explain"])
    scores = answers.judged(bench.course, shown, [row["completion"] for row in shown])["truth"]
    turns = [f"User: {row['prompt']}\nAssistant: {row['completion']}\n\n" for row in shown]
    short = [len(ids) <= most for ids in tokenizer(turns)["input_ids"]]
    best = [i for i in np.argsort(-scores, kind="stable") if short[i]]
    return "".join(turns[i] for i in best[:shots])


def play(course: Course, truths: Mapping[str, np.ndarray], seed: int) -> None:
    """Record as "4.5" how often each model (condition) beats each other one (x), by true score."""
    for a, mine in truths.items():
        for b, theirs in truths.items():
            if a != b:
                rate = measures.wins(mine, theirs).mean()
                course.results.add("4.5", a, b, seed, "wins", rate)


def more_wins(truths: Mapping[str, np.ndarray], a: str, b: str, against: str) -> np.ndarray:
    """By prompt (P,): how much more often a than b writes a better answer than a third model."""
    return measures.wins(truths[a], truths[against]) - measures.wins(truths[b], truths[against])


def taxes(
    benches: Mapping[int, Bench], folders: Folders
) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """`tax` of the base model, the policies as they came ("SFT") and the trained ones.

    By name and seed; the base model is the same for all seeds.
    """
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {"base": {}, "SFT": {}}
    for seed, bench in benches.items():
        course, by = bench.course, bench.tokenizer
        if not found["base"]:
            base = load_policy(course, course.model("base"))[0]  # at the policies' temperature
            found["base"] = dict.fromkeys(benches, tax(course, base, by, "base", seed))
        found["SFT"][seed] = tax(course, bench.reference, by, "SFT", seed)
        for name, by_seed in folders.items():
            model = load(course, by_seed[seed])[0]
            found.setdefault(name, {})[seed] = tax(course, model, by, name, seed)
    return found


# ---- claims ------------------------------------------------------------------------------------


def costs(
    benches: Mapping[int, Bench],
    after: Mapping[int, Written],
    taxed: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
) -> dict[str, Interval]:
    """The claims about what PPO costs, by id: forgetting; falsehood where the truth is known."""
    pairs = [(taxed["PPO"][seed], taxed["SFT"][seed]) for seed in benches]
    found = {
        claim: over_seeds([new[name] - old[name] for new, old in pairs])
        for claim, name in (("4.4a", "document_loss"), ("4.4b", "exam"))
    }
    if all(bench.course.truth_known for bench in benches.values()):
        false = [(after[s].false.mean(1), benches[s].before.false.mean(1)) for s in benches]
        found["4.6a"] = over_seeds([new - old for new, old in false])
    return found


def only_full(
    benches: Mapping[int, Bench],
    folders: Folders,
    after: Mapping[str, Mapping[int, Written]],
    taxed: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    played: Mapping[int, Mapping[str, np.ndarray]],
) -> dict[str, Interval]:
    """The claims about runs that a live run leaves out, by id; none where these are not there."""
    if "the truth" not in after:
        return {}
    seeds, course = list(benches), benches[next(iter(benches))].course

    def gained(name: str, what: str = "truth") -> list[np.ndarray]:
        pairs = [(after[name][s], benches[s].before) for s in seeds]
        return [getattr(a, what).mean(1) - getattr(b, what).mean(1) for a, b in pairs]

    def more(name: str, other: str, what: str = "truth") -> Interval:
        pairs = zip(gained(name, what), gained(other, what), strict=True)
        return over_seeds([a - b for a, b in pairs])

    def distance(name: str) -> list[np.ndarray]:
        return [after[name][s].kl.mean(1) for s in seeds]

    shares = [ratio_items(*pair) for pair in zip(gained("PPO"), gained("the truth"), strict=True)]
    weaker = "β = 0.8", "PPO", "β = 0.05", "no penalty"  # from the largest penalty to none
    nearer = [distance(name) for name in weaker]
    amounts = [f"{n} prompts" for n in AMOUNTS]
    weights = ("PPO", "γ = 0.1", "γ = 1.0")
    kept = [[-taxed[name][s]["document_loss"] for s in seeds] for name in weights]
    exam = [taxed["γ = 1.0"][s]["exam"] - taxed["PPO"][s]["exam"] for s in seeds]
    falls, rises = map(over_seeds, after_the_peak(folders["512 prompts"]))
    found = {
        "4.1c": over_seeds(shares),
        "4.2d": smallest_step(nearer),
        "4.2f": smallest_step([gained(name, "proxy") for name in weaker]),
        "4.3e": later_peak([folders[name] for name in amounts]),
        "4.4c": smallest_step(kept),
        "4.1f": more("PPO", "λ = 0.95"),
        "4.1g": more("PPO", "λ = 0.95", "proxy"),
        "4.3g": falls,
        "4.3h": rises,
        "4.3i": over_seeds([-gain for gain in gained("512 prompts")]),
        "4.4d": more("γ = 1.0", "PPO"),
        "4.4e": over_seeds(exam),
        "4.4f": more("γ = 0.1", "PPO", "proxy"),
        "4.4g": more("γ = 1.0", "PPO", "proxy"),
    }
    if course.truth_known:  # else nobody knows the gains along a training
        same = {"4.1h": ["λ = 0.95", "PPO"], "4.2e": ["no penalty", "PPO"]}
        same |= {"4.3j": amounts, "4.3k": amounts[1:]}
        along = course.results.frame("along")
        found["4.3l"] = picks_after_the_peak(along, f"best of n, {amounts[0]}")
        found |= {claim: same_distance(course, runs, seeds) for claim, runs in same.items()}
    if "biased labellers" in after:
        found["4.6b"] = over_seeds(gained("biased labellers", "false"))
        rates = [[falsehood(after[n][s]) for n in ("biased labellers", "PPO")] for s in seeds]
        found["4.6c"] = over_seeds([biased - fair for biased, fair in rates])
    if all("s, PPO" in truths for truths in played.values()):
        pairs = [(truths["s, PPO"], truths["l, prompted"]) for truths in played.values()]
        found["4.5b"] = over_seeds([measures.wins(*pair) for pair in pairs])
        ways = "s, PPO", "s, SFT", "l, prompted"
        found["4.5d"] = over_seeds([more_wins(truths, *ways) for truths in played.values()])
    return found


def falsehood(written: Written) -> np.ndarray:
    """False statements in a hundred tokens, by prompt (P,): longer answers have room for more."""
    return 100 * written.false.mean(1) / written.length.mean(1)


# ---- looked at closely -------------------------------------------------------------------------


def hacked(written: Written, before: Written, num: int = 4) -> list[dict[str, Any]]:
    """For a table: the answers of highest score among those of low truth.

    Low is a truth below that of three in four answers `before`.
    """
    low = np.argwhere(written.truth < np.quantile(before.truth, 0.25))
    places = sorted(map(tuple, low), key=lambda place: -written.proxy[place])[:num]
    return [
        {
            "prompt": written.rows[p]["prompt"],
            "score": float(written.proxy[p, g]),
            "truth": float(written.truth[p, g]),
            "answer": written.texts[p, g],
        }
        for p, g in places
    ]


def pleasing(written: Written, before: Written) -> float:
    """Of the answers that please the reward model, the share that does not please the judge.

    The score is above the median of the answers `before`, the truth among their lowest quarter.
    """
    pleased = written.proxy > np.median(before.proxy)
    bad = written.truth < np.quantile(before.truth, 0.25)
    return float(bad[pleased].mean()) if pleased.any() else 0.0


def walk(bench: Bench, policy: Any, beta: float, num: int = 12) -> tuple[str, list[dict[str, Any]]]:
    """An answer of a policy to the first prompt, as PPO sees it: its text, and a table.

    Of nine answers that whose log π/π_ref is in the middle. The `num` tokens that count most, in
    their order, and a line with the sums over all of them.
    """
    tokenizer, by = bench.tokenizer, (bench.reward_model, bench.tokenizer)
    prompts = [chat.render_prompt(tokenizer, row["prompt"]) for row in bench.rows[:1]]
    scorer = answers.Scorer(bench.course, *by, bench.rows)
    sampling = answers.sampling_config(tokenizer, num_generations=9)
    at = bench.reference, None, prompts, scorer, sampling
    rollout = ppo.collect_rollout(policy, *at, bench.seed)
    ppo.compute_advantages(rollout, ppo.PPOConfig(beta=beta))
    distances = (rollout.logprobs - rollout.ref_logprobs).sum(-1)  # (9,), pads are 0
    row = int(distances.argsort()[len(distances) // 2])
    ids = rollout.rows[row]["input_ids"][len(prompts[0]) :]
    read = rollout.logprobs, rollout.ref_logprobs, rollout.rewards
    new, ref, rewards = (values[row, : len(ids)] for values in read)
    score = torch.zeros_like(rewards)
    score[-1] = rollout.scores[row]
    columns = {"log π": new, "log π_ref": ref, "-β log(π/π_ref)": -beta * (new - ref)}
    columns |= {"score": score, "reward": rewards}
    heaviest = columns["reward"].abs().argsort(descending=True)[:num].sort().values.tolist()
    table = [
        {"place": str(t + 1), "token": tokenizer.decode([ids[t]])}
        | {name: float(values[t]) for name, values in columns.items()}
        for t in heaviest
    ]
    sums = {name: float(values.sum()) for name, values in columns.items()}
    total = {"place": "all", "token": f"{len(ids)} tokens"} | sums
    return tokenizer.decode(ids, skip_special_tokens=True), [*table, total]


def passes(bench: Bench, name: str, num_epochs: int, **changes: Any) -> Written:
    """One rollout of the policy as it came, used for `num_epochs` passes.

    Returns what it then writes to the bench's prompts, recorded as claim "break".
    """
    course, own, seed = bench.course, bench.course.model("base"), bench.seed
    policy, tokenizer = load_policy(course, bench.start)
    rows = prompts_that_fit(course, policy, tokenizer, "train", 64, seed)
    prompts = [chat.render_prompt(tokenizer, row["prompt"]) for row in rows]
    value = ppo.ValueHead(policy.config.hidden_size).to(policy.device)
    scorer = answers.Scorer(course, bench.reward_model, tokenizer, rows)
    sampling = answers.sampling_config(tokenizer, num_generations=1)
    config = recipes.ppo_config(course, own, num_epochs=num_epochs, **changes)
    at = bench.reference, value, prompts, scorer, sampling
    rollout = ppo.collect_rollout(policy, *at, seed)
    ppo.compute_advantages(rollout, config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    ppo.update_policy(policy, value, optimizer, rollout, config, random.Random(seed))
    return policy_bench.measure(bench, policy, "break", name)
