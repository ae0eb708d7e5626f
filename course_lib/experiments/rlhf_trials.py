"""The experiments of notebook 04, whose runs are data (`nb04.SWEEP`): gains, peaks and costs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from course_lib.algorithms import chat, ppo, reward, search
from course_lib.core import stats
from course_lib.core.stats import Interval, smallest_step
from course_lib.experiments import answers, measures, policy_bench, recipes, sft_trials
from course_lib.experiments.answers import WATCHED, prompts_that_fit
from course_lib.experiments.experiment import Items, Ran
from course_lib.experiments.measures import Written, tax
from course_lib.experiments.policy_bench import Bench
from course_lib.experiments.recipes import load, load_policy, training_history
from course_lib.inputs.rows import instruction_rows
from course_lib.kit.results import select

if TYPE_CHECKING:
    from course_lib.kit.course import Course

WINDOW = 4  # iterations that are averaged, since the 64 answers of one are few
SHOTS = 3  # demonstrations in front of a prompted base model's request
AMOUNTS = (64, 512, 4096)  # prompts that the reward models of a full run learn from
BEST_OF = 64  # demonstrations of which these are the best
NOTED = ("kl", "entropy", "clipfrac", "explained_variance", "completion_length")


def more_models(course: Course) -> dict[str, str]:
    """The models without RLHF that a full run adds to the matrix, by name; see `no_rlhf`."""
    sizes = {"s": course.model("small"), "l": course.model("large")}
    ways = ("bare", "prompted", "SFT")
    return {f"{size}, {way}": model for size, model in sizes.items() for way in ways}


def record_along(course: Course, ran: Ran) -> None:
    """Record what all policies of a run wrote along their trainings."""
    most = max(settings["n"] for settings in ran.settings.values())
    truths = {seed: ranked_truth(course, most, seed) for seed in course.seeds}
    for name, folders in ran.folders.items():
        for seed, folder in folders.items():
            start = as_it_came(ran.settings[name], truths[seed])
            record_training(course, name, folder, seed, start)


def full_wins(course: Course) -> list[dict[str, str]]:
    """The committed full runs' wins over SFT as a table: each run, and best-of-n up to 8."""
    picks = select(course.full_runs("along"), measure="wins", condition="best of n")
    picks = picks[picks["x"].astype(float).between(2, 8)]
    picks = picks.assign(condition=[f"best of {n:g}" for n in picks["x"]])
    rows = pd.concat([select(course.full_runs("4.1"), measure="wins"), picks])
    means = rows.groupby("condition")["value"].mean().sort_values(ascending=False)
    return [{"full runs": name, "wins over SFT": f"{mean:.3f}"} for name, mean in means.items()]


def windows(history: Sequence[Mapping], name: str) -> np.ndarray:
    """What was noted (`name`) by full window: (W, WINDOW), of N completions (W, WINDOW, N)."""
    noted = np.array([row[name] for row in history])
    return noted[: len(noted) // WINDOW * WINDOW].reshape(-1, WINDOW, *noted.shape[1:])


def record_training(course: Course, name: str, folder: str, seed: int, start: Mapping) -> None:
    """Record a training as "along", x the last iteration of a window; `start` stands at x = 0."""
    history = training_history(folder)
    means = {each: [w.mean() for w in windows(history, each)] for each in (*WATCHED, *NOTED)}
    if "truth" in start:
        means["gain"], start = np.array(means["truth"]) - start["truth"], start | {"gain": 0.0}
    for each, value in start.items():
        course.results.add("along", name, 0, seed, each, value)
    for each, values in means.items():
        for i, value in enumerate(values, start=1):
            course.results.add("along", name, WINDOW * i, seed, each, value)


def ranked_truth(course: Course, n: int, seed: int) -> float | None:
    """Mean true score of the ranked answers to `n` training prompts; None where nobody knows it."""
    rows = recipes.comparisons(course, "train", n, seed=seed)
    scores = [score for row in rows for score in row.get("scores", [])]
    return float(np.mean(scores)) if scores else None


def as_it_came(settings: Mapping[str, Any], truth: float | None) -> dict[str, float]:
    """Where a run's curve starts: its policy before PPO, of which `truth` is the `ranked_truth`."""
    if settings.get("base"):
        return {}  # another size than the reward model's, whose own scores have mean 0
    if truth is None:
        return {"proxy": 0.0, "kl": 0.0}
    proxy = truth / answers.TRUTH_UNIT if settings.get("panel") == "nobody" else 0.0
    return {"proxy": proxy, "kl": 0.0, "truth": truth}


def after_the_peak(folders: Mapping[int, str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fall of the truth from its peak to the end, rise of the proxy meanwhile; (prompts,) a seed.

    So that luck is no fall, the other seeds choose a seed's peak; of one alone, the other prompts.
    """
    runs = {seed: training_history(folder) for seed, folder in folders.items()}
    truths = {seed: by_prompt(run, "truth") for seed, run in runs.items()}
    falls, rises = [], []
    for seed, truth in truths.items():
        proxy = by_prompt(runs[seed], "proxy")
        others = [other.mean(1) for s, other in truths.items() if s != seed]
        if others:
            parts = [(np.mean(others, axis=0).argmax(), slice(None))]
        else:
            parts = [(truth[:, i::2].mean(1).argmax(), slice(1 - i, None, 2)) for i in (0, 1)]
        falls.append(np.concatenate([truth[peak, own] - truth[-1, own] for peak, own in parts]))
        rises.append(np.concatenate([proxy[-1, own] - proxy[peak, own] for peak, own in parts]))
    return falls, rises


def by_prompt(history: Sequence[Mapping], name: str) -> np.ndarray:
    """As `windows`, with the mean over the completions of each prompt: (windows, prompts)."""
    found = windows(history, name)
    return found.reshape(len(found), -1, ppo.SamplingConfig.num_generations).mean(-1)


def later_peak(folders: Sequence[Mapping[int, str]]) -> Interval:
    """The smallest step of √KL at the truth's peak with the next amount of data, over seeds."""

    def place(folder: str) -> float:
        history = training_history(folder)
        peak = int(np.argmax([window.mean() for window in windows(history, "truth")]))
        return max(0.0, windows(history, "kl")[peak].mean()) ** 0.5

    places = [[place(folder) for folder in runs.values()] for runs in folders]
    return smallest_step(places, by_run)


def by_run(after: Sequence[float], before: Sequence[float]) -> Interval:
    """A step of a statistic of whole runs, one number each."""
    return stats.fit(np.subtract(after, before))


def same_distance(along: pd.DataFrame, names: Sequence[str]) -> Interval:
    """The smallest step of the gain in truth from run to run, as far as all of them went."""
    found: list[list[float]] = [[] for _ in names]
    for _, rows in along[along["condition"].isin(names)].groupby("seed"):
        paths = []
        for name in names:
            path = rows[rows["condition"] == name].pivot_table("value", "x", "measure")
            paths.append(path.assign(d=path["kl"].clip(lower=0) ** 0.5).sort_values("d"))
        reached = min(path["d"].max() for path in paths)
        for steps, path in zip(found, paths, strict=True):
            steps.append(np.interp(reached, path["d"], path["gain"]))
    return smallest_step(found, by_run)


def best_of_n(bench: Bench) -> dict[int, policy_bench.Point]:
    """Best-of-n, recorded as "along": in a full run from 1,024 answers to each of 16 prompts."""
    course, pool = bench.course, bench.before
    if course.full:
        by = bench.start, bench.reward_folder, bench.rows[:16]
        pool = policy_bench.reference_answers(course, *by, 1024, bench.seed)
        for n in (AMOUNTS[0], AMOUNTS[-1]):  # by reward models that learned from other amounts
            scored = rescored(bench, pool, n)
            policy_bench.best_of_n(bench, "along", f"best of n, {n} prompts", scored)
    return policy_bench.best_of_n(bench, "along", "best of n", pool)


def picks_after_the_peak(along: pd.DataFrame, name: str) -> Interval:
    """Best-of-n's fall from its peak to most n, as in `after_the_peak`, of several seeds."""
    rows = along[(along["condition"] == name) & (along["measure"] == "gain")]
    gains = rows.pivot_table("value", "seed", "x").to_numpy()  # (seeds, ns)
    others = (gains.sum(0) - gains) / (len(gains) - 1)
    return stats.fit(gains[range(len(gains)), others.argmax(1)] - gains[:, -1])


def rescored(bench: Bench, pool: Written, n: int) -> Written:
    """The same answers, scored by the reward model that learned from `n` prompts."""
    folder = recipes.reward_model(bench.course, n, seed=bench.seed)
    model = reward.load_reward_model(folder, bench.course.device)
    asked = [row["prompt"] for row in pool.rows for _ in range(pool.texts.shape[1])]
    scores = reward.score_texts(model, bench.tokenizer, asked, pool.texts.ravel().tolist())
    return replace(pool, proxy=reward.normalise(model, scores).reshape(pool.proxy.shape))


def beside(written: Written, picked: policy_bench.Point) -> np.ndarray:
    """True score (P,) less that of best-of-n, at the first P prompts, which that picked from."""
    return written.truth.mean(1)[: len(picked.truth)] - picked.truth


def fitted(along: pd.DataFrame, name: str) -> search.OverOptimisation | None:
    """Gao et al.'s curve through the rows "along" of a run; None: too few points, or no gain."""
    rows = along[along["condition"] == name]
    wide = rows.pivot_table(index="seed", columns=["measure", "x"], values="value")
    if not {"gain", "kl"} <= set(wide.columns.get_level_values(0)):
        return None
    gains, kl = wide["gain"].to_numpy(), np.maximum(wide["kl"].to_numpy(), 0)
    if gains.shape[1] < 4:
        return None
    if len(gains) == 1:
        gains, kl = gains[0], kl[0]
    return search.fit_overoptimisation(kl, gains, "bon" if "best" in name else "rl")


def fit_rows(course: Course, curves: Sequence[str]) -> list[dict[str, str]]:
    """Fitted curves as a table, of this run and of the committed full runs."""
    runs = {"this run": course.results.frame("along")}
    runs |= {} if course.full else {"full runs": course.full_runs("along")}
    table = []
    for (whose, along), name in itertools.product(runs.items(), curves):
        if fit := fitted(along, name):
            row = {"curve": name, "fitted to": whose, "R²": fit.r2, "Gao's α": fit.alpha}
            row |= {"Gao's β": fit.beta, "√KL of the peak": fit.peak}
            if along["seed"].nunique() == 1:  # whose points hang together: no interval
                row |= {k: f"{v[0]:.3f}" for k, v in row.items() if isinstance(v, Interval)}
            kl = select(along, measure="kl", condition=name)["value"].max()
            row["√KL reached, at most"] = f"{kl**0.5:.2f}"
            table.append({title: str(value) for title, value in row.items()})
    return table


def prompted(bench: Bench, model: str, tries: int, shots: int = SHOTS) -> np.ndarray:
    """True scores (P, tries) of what a base model writes, after `shots` good examples or none."""
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
    if not name.endswith("SFT"):
        return prompted(bench, base, 1, shots=0 if name.endswith("bare") else SHOTS)
    policy, tokenizer = load_policy(bench.course, recipes.policy_of(bench.course, base, bench.seed))
    seed = policy_bench.draw(("4.5", f"{base}, SFT", 0, bench.seed))
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
    for a, b in itertools.permutations(truths, 2):
        rate = measures.wins(truths[a], truths[b]).mean()
        course.results.add("4.5", a, b, seed, "wins", rate)


def more_wins(truths: Mapping[str, np.ndarray], a: str, b: str, against: str) -> np.ndarray:
    """By prompt (P,): how much more often a than b writes a better answer than a third model."""
    return measures.wins(truths[a], truths[against]) - measures.wins(truths[b], truths[against])


def beside_a_prompt(played: Mapping[int, Mapping], size: str) -> tuple[Interval, Interval]:
    """(Wins of a size after PPO over l with a prompt, how many more these are than after SFT)."""
    after, before, other = f"{size}, PPO", f"{size}, SFT", "l, prompted"
    won = [measures.wins(truths[after], truths[other]) for truths in played.values()]
    more = [more_wins(truths, after, before, other) for truths in played.values()]
    return stats.share(won), stats.mean(more)


def taxes(benches: Mapping[int, Bench], folders: Mapping[str, Mapping[int, str]]) -> Ran:
    """`tax` of the base model, the policies as they came ("SFT") and the trained ones."""
    first = next(iter(benches.values()))
    course = first.course
    base = load_policy(course, course.model("base"))[0]  # at the policies' temperature
    known = Items(tax(course, base, first.tokenizer, "base", first.seed))
    found = {"base": dict.fromkeys(benches, known), "SFT": {}, **{name: {} for name in folders}}
    for seed, bench in benches.items():
        for name in ("SFT", *folders):
            model = load(course, folders[name][seed])[0] if name in folders else bench.reference
            found[name][seed] = Items(tax(course, model, bench.tokenizer, name, seed))
    return Ran(course, "4.4", {}, {}, items=found)


def only_full(ran: Ran, taxed: Ran, played: Mapping[int, Mapping]) -> dict[str, Interval]:
    """The claims about runs that a live run leaves out, by id; none where these are not there."""
    if "the truth" not in ran.items:
        return {}
    weaker = "β = 0.8", "PPO", "β = 0.05", "no penalty"  # from the largest penalty to none
    amounts = [f"{n} prompts" for n in AMOUNTS]
    losses = [taxed.values("document_loss", name) for name in ("γ = 1.0", "γ = 0.1", "PPO")]
    truths = (ran.values("truth", name) for name in ("SFT", "PPO", "the truth"))
    gains = [(a - old, b - old) for old, a, b in zip(*truths, strict=True)]
    falls, rises = after_the_peak(ran.folders["512 prompts"])
    found = {
        "4.1c": stats.ratio(*zip(*gains, strict=True)),
        "4.1f": ran.gain("truth", "PPO", "λ = 0.95"),
        "4.1g": ran.gain("proxy", "PPO", "λ = 0.95"),
        "4.2d": smallest_step([ran.values("kl", name) for name in weaker]),
        "4.2f": smallest_step([ran.values("proxy", name) for name in weaker]),
        "4.3e": later_peak([ran.folders[name] for name in amounts]),
        "4.3g": stats.mean(falls),
        "4.3h": stats.mean(rises),
        "4.3i": ran.gain("truth", "SFT", "512 prompts"),
        "4.4c": smallest_step(losses),
        "4.4d": ran.gain("truth", "γ = 1.0", "PPO"),
        "4.4e": taxed.gain("exam", "γ = 1.0", "PPO", stats.paired_share),
        "4.4f": ran.gain("proxy", "γ = 0.1", "PPO"),
        "4.4g": ran.gain("proxy", "γ = 1.0", "PPO"),
    }
    if ran.course.truth_known:  # else nobody knows the gains along a training
        along = ran.course.results.frame("along")
        same = {"4.1h": ["λ = 0.95", "PPO"], "4.2e": ["no penalty", "PPO"]}
        same |= {"4.3j": amounts, "4.3k": amounts[1:]}
        found |= {claim: same_distance(along, names) for claim, names in same.items()}
        found["4.3l"] = picks_after_the_peak(along, f"best of n, {amounts[0]}")
    if "biased labellers" in ran.items:
        found["4.6b"] = ran.gain("false", "biased labellers", "SFT")
        rates = zip(falsehood(ran, "biased labellers"), falsehood(ran, "PPO"), strict=True)
        found["4.6c"] = stats.mean([biased - fair for biased, fair in rates])
    if all("s, PPO" in truths for truths in played.values()):
        found["4.5b"], found["4.5d"] = beside_a_prompt(played, "s")
    return found


def falsehood(ran: Ran, name: str) -> list[np.ndarray]:
    """False statements in a hundred tokens, by seed and prompt: longer answers have more room."""
    both = zip(ran.values("false", name), ran.values("length", name), strict=True)
    return [100 * false / length for false, length in both]


def hacked(written: Written, before: Written, num: int = 4) -> list[dict[str, Any]]:
    """For a table: of answers of low truth (the lowest quarter of `before`) the highest scores."""
    low = np.argwhere(written.truth < np.quantile(before.truth, 0.25))
    places = sorted(map(tuple, low), key=lambda place: -written.proxy[place])[:num]
    return [
        {"prompt": written.rows[at[0]]["prompt"], "score": written.proxy[at]}
        | {"truth": written.truth[at], "answer": written.texts[at]}
        for at in places
    ]


def pleasing(written: Written, before: Written) -> float:
    """Of answers scored above the median of `before`, the share with truths in its low quarter."""
    pleased = written.proxy > np.median(before.proxy)
    bad = written.truth < np.quantile(before.truth, 0.25)
    return float(bad[pleased].mean()) if pleased.any() else 0.0


def rolled_out(
    bench: Bench, policy: Any, value: Any, rows: Sequence[dict], config: ppo.PPOConfig, tries: int
) -> ppo.Rollout:
    """`tries` answers of a policy to the prompt of each row, with their advantages."""
    prompts = [chat.render_prompt(bench.tokenizer, row["prompt"]) for row in rows]
    scorer = answers.Scorer(bench.course, bench.reward_model, bench.tokenizer, rows)
    sampling = answers.sampling_config(bench.tokenizer, num_generations=tries)
    at = bench.reference, value, prompts, scorer, sampling
    rollout = ppo.collect_rollout(policy, *at, bench.seed)
    ppo.compute_advantages(rollout, config)
    return rollout


def walk(bench: Bench, policy: Any, beta: float, num: int = 12) -> tuple[str, list[dict[str, Any]]]:
    """Of nine answers to the first prompt that of the median KL: its text, its heaviest tokens."""
    tokenizer = bench.tokenizer
    rollout = rolled_out(bench, policy, None, bench.rows[:1], ppo.PPOConfig(beta=beta), 9)
    distances = (rollout.logprobs - rollout.ref_logprobs).sum(-1)  # (9,), pads are 0
    row = int(distances.argsort()[len(distances) // 2])
    ids = rollout.rows[row]["input_ids"][-int(rollout.mask[row].sum()) :]
    read = rollout.logprobs, rollout.ref_logprobs, rollout.rewards
    new, ref, rewards = (values[row, : len(ids)] for values in read)
    score = torch.zeros_like(rewards)
    score[-1] = rollout.scores[row]
    columns = {"log π": new, "log π_ref": ref, "-β log(π/π_ref)": -beta * (new - ref)}
    columns |= {"score": score, "reward": rewards}
    table = []
    for t in rewards.abs().argsort(descending=True)[:num].sort().values.tolist():
        table.append({"place": str(t + 1), "token": tokenizer.decode([ids[t]])})
        table[-1] |= {name: float(values[t]) for name, values in columns.items()}
    table.append({"place": "all", "token": f"{len(ids)} tokens"})
    table[-1] |= {name: float(values.sum()) for name, values in columns.items()}
    return tokenizer.decode(ids, skip_special_tokens=True), table


def passes(bench: Bench, name: str, num_epochs: int, **changes: Any) -> Written:
    """What the policy writes after `num_epochs` passes over one rollout, recorded as "break"."""
    course, seed = bench.course, bench.seed
    policy, tokenizer = load_policy(course, bench.start)
    rows = prompts_that_fit(course, policy, tokenizer, "train", 64, seed)
    value = ppo.ValueHead(policy.config.hidden_size).to(policy.device)
    config = recipes.ppo_config(course, course.model("base"), num_epochs=num_epochs, **changes)
    rollout = rolled_out(bench, policy, value, rows, config, 1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=0.0)
    ppo.update_policy(policy, value, optimizer, rollout, config, random.Random(seed))
    return policy_bench.measure(bench, policy, "break", name)
