"""What notebook 06 runs: every strategy on one pool, beams, a larger model, budgets.

A condition is a way to spend compute on a problem, named with its number of samples. Its items are
the test problems: "right", over random orders of the pool, and "gflops". Means are recorded by
difficulty, the number of steps that a problem needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from course_lib.algorithms import evaluate, search
from course_lib.core import stats
from course_lib.core.stats import Interval
from course_lib.experiments import solutions
from course_lib.experiments.experiment import Items, Missing, Ran
from course_lib.experiments.recipes import Progress, parameters_of

if TYPE_CHECKING:
    from course_lib.kit.course import Course

LEVELS = {"1 step": (1,), "2 steps": (2,), "3 and 4 steps": (3, 4)}
NS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # as far as the pool goes
BEAMS = {"beam": (4, 16, 64), "beam, exact checker": (16, 4, 64)}  # a live run: see `run_search`
ORDERS = 16  # random orders of each pool
FIRST = 4  # samples by whose agreement the difficulty is judged
MARGIN = 0.005  # of accuracy: two ways that differ by less are equally good
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a solution's thoughts, after which it must answer
WAITS = (1, 2, 4)
# By name the verifier that is paid for, if any; a vote is the notebook's own majority.
STRATEGIES = {"majority": None, "weighted majority": "process"}
STRATEGIES |= {"best by outcome": "outcome", "best by process": "process"}
STRATEGIES |= {"best by likelihood": "likelihood"}  # the sampler's own, which costs nothing


@dataclass
class Searched:
    """A run: its conditions (`ran`), and by seed the pool and what strategies picked from it."""

    ran: Ran
    steps: np.ndarray  # (P,) that each problem needs
    orders: np.ndarray  # (P, R, N)
    pools: dict[int, search.Pool]
    written: dict[int, list[list[list[int]]]]  # ids of the pools' samples
    grid: dict[int, dict[tuple[str, int], Items]]  # by seed: strategy and n

    def level(self, name: str) -> np.ndarray:
        return np.isin(self.steps, LEVELS[name])


def run_search(
    course: Course,
    num_problems: int,
    num_samples: int,
    progress: Progress | None = None,
    *,
    trained: Mapping[str, Mapping[int, str]] | None = None,
    majority: Callable = search.majority,
    pass_at_k: Callable = evaluate.pass_at_k,
) -> Searched:
    """Everything on the base model; a full run takes twice the problems, four times the samples.

    Args:
        trained: verifiers by kind and seed that the notebook has trained itself.
        majority, pass_at_k: the reader's own, perhaps.
    """
    if course.full:
        num_problems, num_samples = 2 * num_problems, 4 * num_samples
    problems, size = solutions.held_out(num_problems), parameters_of(course, course.model("base"))
    steps = np.array([len(problem.steps) for problem in problems])
    orders = search.draw_orders(num_problems, num_samples, ORDERS)
    found = Searched(Ran(course, "6", {}, {}), steps, orders, {}, {}, {})
    ns = [n for n in NS if n <= num_samples]
    votes = {None: lambda answers, _: majority(answers), "process": search.majority}
    for seed in course.seeds:
        verifiers = {
            kind: (trained or {}).get(kind, {}).get(seed)
            or solutions.train_verifier(course, kind, seed, progress)
            for kind in ("outcome", "process")
        }
        pool, written = solutions.make_pool(course, problems, num_samples, seed, verifiers)
        found.pools[seed], found.written[seed], found.grid[seed] = pool, written, {}
        for name, kind in STRATEGIES.items():
            strategy = votes[kind] if "majority" in name else search.best
            for n in ns:
                right, cost = search.pick(pool, orders, n, strategy, kind, kind != "likelihood")
                if n == 1:  # every sample of the pool, not those that came first
                    right = np.repeat(pool.right.mean(1, keepdims=True), right.shape[1], 1)
                items = {"right": right, "gflops": cost.flops(size, size) / 1e9}
                found.grid[seed][name, n] = _add(found, name, n, seed, items)
        for n in ns:
            right = np.array([pass_at_k(row, n) for row in pool.right])
            paid = found.grid[seed]["majority", n].values["gflops"]
            _add(found, "pass", n, seed, {"right": right, "gflops": paid})
        for name, widths in BEAMS.items():
            for n in widths if course.full else widths[: 2 - (name != "beam")]:
                folder = verifiers["process"] if name == "beam" else None
                right, cost = solutions.beams(course, problems, n, seed, folder)
                _add(found, name, n, seed, {"right": right, "gflops": cost.flops(size, size) / 1e9})
        for role in ("base", "large", "small") if course.full else ("base", "large"):
            if role in course.profile.models:
                right, cost = solutions.greedy(course, role, problems)
                paid = cost.flops(parameters_of(course, course.model(role))) / 1e9
                _add(found, f"{role}, greedy", 1, seed, {"right": right, "gflops": paid})
    later = [f"{name}, n = {n}" for name in (*STRATEGIES, "pass") for n in NS]
    later += [f"{role}, greedy, n = 1" for role in ("large", "small")]
    found.ran.missing |= {n: "in the full run" for n in later if n not in found.ran.items}
    return found


def _add(found: Searched, name: str, n: float, seed: int, values: dict) -> Items:
    """Keep a condition's items, and record their means by difficulty."""
    found.ran.items.setdefault(f"{name}, n = {n}", {})[seed] = items = Items(values)
    for level in LEVELS:
        for measure, each in values.items():
            if (here := found.level(level)).any():
                mean = np.asarray(each)[here].mean()
                found.ran.course.results.add("6", name, n, seed, f"{measure}, {level}", mean)
    return items


def agreement(pool: search.Pool, orders: np.ndarray) -> np.ndarray:
    """(P, R) of the first samples of each order, how many give their most frequent answer: 1 to 4.

    Samples without an answer agree with none.
    """
    found = np.ones(orders.shape[:2], dtype=int)
    for p, row in enumerate(pool.answers):
        for r, first in enumerate(orders[p, :, :FIRST].tolist()):
            counts = Counter(row[i] for i in first if row[i] is not None)
            found[p, r] = max(counts.values(), default=1)
    return found


@dataclass
class Policy:
    """What compute by difficulty brings on problems that it was not fitted to."""

    right: np.ndarray  # along the prices of compute, from the highest to none
    gflops: np.ndarray  # a problem
    goal: float  # share solved by the best single strategy, less what nobody would miss
    single: tuple[float, float]  # right, gflops of the cheapest single strategy that reaches it
    name: str  # of it, and its n, on all problems
    chosen: dict[int, str]  # by agreement what is chosen on all problems at the goal

    @property
    def ratio(self) -> float:
        """Compute at the goal over the single strategy's; at least 1 if it is never reached."""
        own = self.single[1]
        if self.right.max() < self.goal:
            return max(1.0, float(self.gflops[-1]) / own)
        return _cost_at(self.goal, self.right, self.gflops) / own


def _cost_at(goal: float, right: np.ndarray, gflops: np.ndarray) -> float:
    """Where a curve first reaches `goal`, between its points."""
    reach = np.maximum.accumulate(right)
    at = int((reach >= goal).argmax())
    around = slice(max(0, at - 1), at + 1)
    return float(np.interp(goal, reach[around], gflops[around]))


def by_difficulty(
    found: Searched, seed: int, weights: np.ndarray | None = None, splits: int = 40
) -> Policy:
    """Choose strategy and n by the agreement of the first samples, which are then used.

    On one half of the problems, at a price of compute, it takes what is best at each agreement; on
    the other half it is tested, and the other way round; means over random halves. The goal is what
    the best single strategy with n up to 64, chosen likewise, reaches when tested, less MARGIN. To
    beat is the cheapest of these that reaches the goal on all problems: one chosen with hindsight.
    `weights` (P,) resample the problems.
    """
    grid = {key: items.values for key, items in found.grid[seed].items() if key[1] >= FIRST}
    level, names = agreement(found.pools[seed], found.orders), list(grid)
    bins = np.stack([level == k for k in range(1, FIRST + 1)]).astype(float)  # (A, P, R)
    sums = {
        m: np.stack([np.einsum("apr,pr->ap", bins, each[m]) for each in grid.values()])
        for m in ("right", "gflops")
    } | {"count": bins.sum(-1)[None]}  # (K, A, P); the count (1, A, P)
    count = len(level)
    halves = np.random.default_rng(0).permuted(np.tile(np.arange(count) % 2, (splits, 1)), axis=1)
    weights = np.ones(count) if weights is None else weights
    fitted = np.concatenate([halves, 1 - halves]) * weights  # (S, P)
    fit, test = ({m: v @ w.T for m, v in sums.items()} for w in (fitted, weights - fitted))
    whole = {m: v @ weights for m, v in sums.items()}
    total, every = test["count"][0].sum(0).clip(1), np.arange(2 * splits)  # (S,)
    upto = np.flatnonzero([n <= 64 for _, n in names])
    best = upto[fit["right"].sum(1)[upto].argmax(0)]  # (S,)
    goal = float((test["right"].sum(1)[best, every] / total).mean()) - MARGIN
    all_right, all_gflops = (whole[m].sum(1) / whole["count"].sum() for m in ("right", "gflops"))
    reach = upto[all_right[upto] >= min(goal, all_right[upto].max())]
    cheap = reach[all_gflops[reach].argmin()]
    single = float(all_right[cheap]), float(all_gflops[cheap])
    unit, curve = sums["right"].mean() / sums["gflops"].mean(), []
    prices = [*(unit * np.geomspace(10, 1e-4, 60)), 0.0]
    for price in prices:
        choice = (fit["right"] - price * fit["gflops"]).argmax(0)[None]  # (1, A, S)
        taken = [
            np.take_along_axis(test[m], choice, 0)[0].sum(0) / total for m in ("right", "gflops")
        ]
        curve.append([each.mean() for each in taken])
    right, gflops = np.transpose(curve)
    enough = right >= goal
    price = prices[int(enough.argmax()) if enough.any() else -1]
    choice = (whole["right"] - price * whole["gflops"]).argmax(0)
    called = ["{}, n = {}".format(*name) for name in names]
    chosen = {k + 1: called[i] for k, i in enumerate(choice)}
    return Policy(right, gflops, goal, single, called[cheap], chosen)


def compute_ratio(found: Searched) -> Interval:
    """`Policy.ratio`: t over the seeds; in one run over 200 resamples of the problems."""
    ratios = []
    for seed in found.grid:
        policy = by_difficulty(found, seed)
        ratios.append(policy.ratio)
        for i, pair in enumerate(zip(policy.right, policy.gflops, strict=True)):
            for measure, value in zip(("right", "gflops"), pair, strict=True):
                found.ran.course.results.add("6.2", "policy", i, seed, measure, value)
        for measure, value in zip(("right", "gflops"), policy.single, strict=True):
            found.ran.course.results.add("6.2", "best single", 0, seed, measure, value)
    if len(ratios) > 1:
        return stats.fit(ratios)
    rng, count = np.random.default_rng(0), len(found.steps)
    draws = [np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(200)]
    again = [by_difficulty(found, seed, draw, 10).ratio for draw in draws]
    return Interval(ratios[0], *map(float, np.quantile(again, [0.025, 0.975])))


def matched(found: Searched, level: str) -> Interval | Missing:
    """The base model with search minus the larger one, greedy, at its operations at most.

    Strategy and n (two or more) are chosen on every other problem for the ones between.
    """
    if "large, greedy, n = 1" not in found.ran.items:
        return Missing("needs a second model")
    here, mine, others = np.flatnonzero(found.level(level)), [], []
    odd = np.arange(len(here)) % 2 == 1
    for seed, grid in found.grid.items():
        large = found.ran.items["large, greedy, n = 1"][seed].values
        limit = large["gflops"][here].mean()
        allowed = [
            items.values["right"][here].mean(1)
            for (_, n), items in grid.items()
            if n > 1 and items.values["gflops"][here].mean() <= limit
        ]
        if not allowed:
            return Missing("no search is as cheap as the larger model")
        on_odd, on_even = (max(allowed, key=lambda a: a[fit].mean()) for fit in (odd, ~odd))
        mine.append(np.where(odd, on_even, on_odd))
        others.append(large["right"][here].astype(float))
    return stats.paired_share(mine, others)


def run_budgets(course: Course, found: Searched, folders: Mapping[int, str]) -> None:
    """The instruct model with its thoughts cut short, or drawn out; fresh samples beside them."""
    problems, count = solutions.held_out(len(found.steps)), solutions.FRESH
    orders = search.draw_orders(len(problems), count, ORDERS)
    for seed, folder in folders.items():
        bench = solutions.Budget(course, folder, problems, seed)
        measured = {("budget", share): bench.forced(share) for share in SHARES}
        measured |= {("wait", times): bench.waited(times) for times in WAITS}
        for n in range(1, count + 1):
            vote = search.pick(bench.pool, orders, n, lambda answers, _: search.majority(answers))
            measured["fresh samples", n] = vote[0], vote[1].generated
        for (name, x), pair in measured.items():
            values = dict(zip(("right", "tokens"), pair, strict=True))
            found.ran.items.setdefault(f"{name}, {x:g}", {})[seed] = Items(values)
            for measure, each in values.items():
                course.results.add("6.4", name, x, seed, measure, each.mean())


def favourites(found: Searched, kind: str, n: int) -> list[tuple]:
    """The first `n` problems whose highest-scored sample is wrong though a right one is there.

    (problem, that sample, its score, the highest-scored right sample, its score), of the first run.
    """
    seed, reader, shown = next(iter(found.pools)), solutions.reader_of(found.ran.course), []
    pool, written = found.pools[seed], found.written[seed]
    for p, problem in enumerate(solutions.held_out(len(found.steps))):
        scores, right = pool.scores[kind][p], pool.right[p]
        if right.any() and not right[scores.argmax()] and len(shown) < n:
            two = int(scores.argmax()), int(np.where(right, scores, -1).argmax())
            texts = [(reader.text(written[p][i]).strip(), float(scores[i])) for i in two]
            shown.append((problem, *texts[0], *texts[1]))
    return shown


def save(found: Searched) -> None:
    """The records of a full run: all items, and solutions of a few problems."""
    if not found.ran.course.full:
        return
    seed, reader = found.ran.course.seeds[0], solutions.reader_of(found.ran.course)
    rows = [{"prompt": problem.text} for problem in solutions.held_out(len(found.steps))]
    for n in (1, 64):
        items, shown = found.ran.items[f"majority, n = {n}"][seed], []
        for p, order in enumerate(found.orders[:, 0, :n].tolist()):
            answers = [found.pools[seed].answers[p][i] for i in order]
            at = order[answers.index(search.majority(answers))]
            shown.append([reader.text(found.written[seed][p][at]).strip()])
        items.rows, items.texts = rows, np.array(shown)
    place = "majority, n = 64", "right"
    rules = {"largest gain": 4, "smallest gain": 2, "median gain": 2}
    found.ran.save([(*place, rule, n) for rule, n in rules.items()], "majority, n = 1")
