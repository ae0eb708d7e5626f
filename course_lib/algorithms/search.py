"""Search at test time: many samples, votes, verifiers, beams, budgets, and what each of them costs.

The first half is about policies that have been given a score: best-of-n from one pool of samples,
its KL, and over-optimisation curves. The second half is about problems with an answer.

Sources: Gao, Schulman and Hilton 2022, arXiv:2210.10760 (the unbiased estimator, the two forms);
Beirami et al. 2024, arXiv:2401.01879 (the KL of best-of-n, of which the textbook's is a bound);
Wang et al. 2022, arXiv:2203.11171 (majority vote); Snell et al. 2024, arXiv:2408.03314 (beam search
with a step verifier, equal FLOPs); Muennighoff et al. 2025, arXiv:2501.19393 (budget forcing).

Left out of the searches: lookahead and tree search, revisions by the model itself, stopping early
once a vote is decided, and dropping of candidates that say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import lstsq
from scipy.special import gammaln, xlogy

from course_lib import CourseError
from course_lib.algorithms.sampling import generate
from course_lib.core.stats import Interval, Rough


def best_of_n(proxy: ArrayLike, ns: Sequence[int], values: ArrayLike | None = None) -> np.ndarray:
    """Expected value of the sample with the best proxy among n, from a pool of N per prompt.

    The mean over all C(N, n) subsets of the pool, by order statistics: the best of a random subset
    is the sample of rank i (of N, from the worst) with probability C(i - 1, n - 1) / C(N, n). So it
    is unbiased for n fresh samples, with less noise than one subset. Among samples of equal proxy
    each is as likely to be taken.

    Args:
        proxy: (P, N) or (N,) scores that choose.
        ns: subset sizes, each from 1 to N.
        values: (P, N) or (N,) what is wanted of the chosen, e.g. the true score; None: the proxy.

    Returns:
        (P, len(ns)), or (len(ns),) for one pool.
    """
    proxy = np.asarray(proxy, dtype=float)
    values = proxy if values is None else np.asarray(values, dtype=float)
    size = proxy.shape[-1]
    if values.shape != proxy.shape or not all(1 <= n <= size for n in ns):
        raise CourseError(
            f"best_of_n got a pool of shape {proxy.shape}, values of shape {values.shape} and "
            f"n = {list(ns)}; expected equal shapes and n from 1 to {size}; draw more samples."
        )
    if proxy.ndim == 2:
        return np.stack([best_of_n(p, ns, v) for p, v in zip(proxy, values, strict=True)])
    _, group, counts = np.unique(proxy, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts  # of the samples with equal proxy
    upto = np.concatenate([[0], counts.cumsum()])  # samples of this proxy or a worse one
    return np.array([np.diff(_share_of_subsets(upto, size, n)) @ means for n in ns])


def _share_of_subsets(sizes: np.ndarray, total: int, n: int) -> np.ndarray:
    """C(size, n) / C(total, n): subsets of n that lie within the first `size` of `total`."""
    inside = np.maximum(sizes, n)  # a placeholder where there is no such subset
    logs = gammaln(inside + 1) - gammaln(inside - n + 1)
    logs -= gammaln(total + 1) - gammaln(total - n + 1)
    return np.where(sizes >= n, np.exp(logs), 0.0)


def best_of_n_kl(n: ArrayLike, masses: ArrayLike | None = None) -> np.ndarray:
    """KL in nats of the best of n from the policy that it samples.

    Without `masses` the textbook's log n - (n - 1) / n: exact where no two samples ever have the
    same score, an upper bound otherwise, and far too large once the same texts come again.

    With `masses` (G,), the probabilities of the distinct scores from worst to best, it is exact
    (equal scores are equally likely to be taken, so the ratio to the policy is the same for all
    texts of one score): sum over g of q_g log(q_g / masses_g), q_g = F_g^n - F_(g-1)^n with F their
    cumulative sum. Masses from a pool, `score_masses`, give an estimate that cannot exceed the log
    of the pool's size, and is a little low where n comes near it.
    """
    n = np.asarray(n, dtype=float)
    if masses is None:
        return np.log(n) - (n - 1) / n
    masses = np.asarray(masses, dtype=float)
    masses = masses[masses > 0] / masses.sum()
    cumulative = np.concatenate([[0.0], masses.cumsum()])
    chosen = np.diff(cumulative ** n[..., None], axis=-1)  # (..., G)
    return (xlogy(chosen, chosen) - chosen * np.log(masses)).sum(-1)


def score_masses(scores: ArrayLike) -> np.ndarray:
    """Shares of a pool (N,) by distinct score, from worst to best, for `best_of_n_kl`."""
    return np.unique(np.asarray(scores), return_counts=True)[1] / np.size(scores)


def best_of_n_wins(proxy: np.ndarray, truth: np.ndarray, ns: Sequence[int]) -> np.ndarray:
    """How often the best of n by `proxy` beats one other sample by `truth`: (P, len(ns)).

    From one pool (P, N), n up to N / 2: the best of one half against the samples of the other one,
    and the other way round. Against samples that it was picked from it would win too often. A tie
    counts one half.
    """
    half, found = proxy.shape[1] // 2, 0.0
    for mine, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        margins = truth[:, mine, None] - truth[:, None, other]
        beats = np.sign(margins).mean(-1) / 2 + 0.5  # (P, N / 2)
        found = found + best_of_n(proxy[:, mine], ns, beats) / 2
    return found


@dataclass(frozen=True)
class OverOptimisation:
    """A fitted curve of the score gained over the initial policy's, against d = sqrt(KL)."""

    form: str
    alpha: Interval  # slope at the start ("bon"), score per unit of d
    beta: Interval  # how fast it bends down
    peak: Interval  # d of the curve's maximum; infinite where it never falls
    r2: Interval  # share of the variance of the points that the curve explains


def fit_overoptimisation(
    kl: ArrayLike, gains: ArrayLike, form: str, num_resamples: int = 2000, seed: int = 0
) -> OverOptimisation:
    """Least squares of Gao et al.'s forms: best-of-n d(alpha - beta d), RL d(alpha - beta log d).

    Args:
        kl: (n,) in nats, or (R, n) where each run has its own.
        gains: (n,) or (R, n) score minus that of the initial policy, of R runs (or prompts).
        form: "bon" (peak at alpha / 2 beta) or "rl" (peak at exp(alpha / beta - 1)).
        num_resamples: the 95% percentile intervals resample runs; with one run its points, whose
            errors are then taken as independent (those of one pool or one training are not).
    """
    gains = np.asarray(gains, dtype=float)
    d = np.broadcast_to(np.sqrt(np.asarray(kl, dtype=float)), gains.shape)
    if form not in ("bon", "rl") or gains.shape[-1] < 3 or not np.isfinite([d, gains]).all():
        raise CourseError(
            f"The fit got form={form!r} and points of shape {gains.shape}; expected 'bon' or 'rl', "
            "three or more finite points, and a KL that is not negative."
        )
    points = gains.ndim == 1  # are then what is resampled
    if points:
        gains, d = gains[:, None], d[:, None]
    columns = _columns(form, d)  # (R, n, 2)
    coefficients = lstsq(columns.reshape(-1, 2), gains.ravel())[0]
    # Sums over runs of the normal equations: a resample is another sum of the same terms.
    squares = np.einsum("rni,rnj->rij", columns, columns)
    products = np.einsum("rni,rn->ri", columns, gains)
    totals = np.stack([(gains**2).sum(1), gains.sum(1), np.full(len(gains), gains.shape[1])], -1)

    def explained(found: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """R² of coefficients (B, 2) on the runs (B, n) that they were fitted to, (B,)."""
        parts = squares[runs].sum(1), products[runs].sum(1), totals[runs].sum(1)
        square, linear, whole = parts  # (B, 2, 2), (B, 2), (B, 3)
        fit = 2 * (found * linear).sum(-1) - np.einsum("bi,bij,bj->b", found, square, found)
        return 1 - (whole[:, 0] - fit) / (whole[:, 0] - whole[:, 1] ** 2 / whole[:, 2])

    every = np.arange(len(gains))[None]
    drawn = np.random.default_rng(seed).integers(len(gains), size=(num_resamples, len(gains)))
    if points:  # one point fits no curve
        drawn = drawn[[len(set(rows)) > 1 for rows in drawn.tolist()]]
    found = np.einsum(
        "bij,bj->bi", np.linalg.pinv(squares[drawn].sum(1)), products[drawn].sum(1)
    )  # (resamples, 2)

    def interval(estimate, values) -> Interval:
        low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        return Rough(float(estimate), float(low), float(high))

    return OverOptimisation(
        form,
        interval(coefficients[0], found[:, 0]),
        interval(coefficients[1], found[:, 1]),
        interval(_peak(form, coefficients[None])[0], _peak(form, found)),
        interval(explained(coefficients[None], every)[0], explained(found, drawn)),
    )


def _columns(form: str, d: np.ndarray) -> np.ndarray:
    """What alpha and beta are multiplied by: (...) to (..., 2)."""
    return np.stack([d, -(d**2) if form == "bon" else -xlogy(d, d)], -1)


def _peak(form: str, coefficients: np.ndarray) -> np.ndarray:
    """d of the maximum of each curve, (n, 2) to (n,); infinite where beta is not positive."""
    alpha, beta = coefficients.T
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        peak = np.maximum(alpha, 0) / (2 * beta) if form == "bon" else np.exp(alpha / beta - 1)
    return np.where(beta > 0, peak, np.inf)


# ---- picking one of many samples ---------------------------------------------------------------

# The answers of n samples (None: none was stated) and a verifier's scores of them -> one answer.
Strategy = Callable[[Sequence[Hashable], Sequence[float]], Hashable]


def majority(answers: Sequence[Hashable], weights: Sequence[float] | None = None) -> Hashable:
    """The answer that most samples give, or the one with the largest sum of weights.

    A sample without an answer (None) has no vote; without any votes the result is None. A tie goes
    to the answer that was given first: as the samples come in random order, that is a fair draw.
    """
    votes: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights or [1] * len(answers), strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + weight
    return max(votes, key=votes.__getitem__) if votes else None  # the first of equals


def best(answers: Sequence[Hashable], scores: Sequence[float]) -> Hashable:
    """The answer of the sample with the highest score, of equals the first."""
    return answers[max(range(len(answers)), key=scores.__getitem__)]


@dataclass(frozen=True)
class Cost:
    """Tokens that a way of answering takes, arrays of any one shape.

    Every token is read or written once: what was computed for a prompt, or for the beginning of a
    beam, is kept for all that goes on from it.
    """

    prompt: np.ndarray  # tokens of the prompt, read by the policy
    generated: np.ndarray  # tokens that the policy wrote, what was thrown away included
    verified: np.ndarray | float = 0.0  # tokens that a verifier read, prompts included

    def flops(self, policy_size: int, verifier_size: int = 0) -> np.ndarray:
        """Operations, 2 a parameter and token (FACTS: inference 2ND); sizes in parameters."""
        written = policy_size * (self.prompt + self.generated)
        return 2.0 * (written + verifier_size * np.asarray(self.verified))


@dataclass
class Pool:
    """N samples for each of P problems, from which every strategy that picks is measured."""

    answers: list[list[Hashable]]  # (P, N); None where a sample states none
    truth: list[Hashable]  # (P,)
    prompt: np.ndarray  # (P,) tokens of the prompts
    generated: np.ndarray  # (P, N) tokens of the samples
    scores: Mapping[str, np.ndarray]  # (P, N) by verifier

    @property
    def right(self) -> np.ndarray:
        """(P, N) whether each sample's answer is the right one."""
        rows = zip(self.answers, self.truth, strict=True)
        return np.array([[answer == truth for answer in row] for row, truth in rows])


def draw_orders(num_problems: int, size: int, repeats: int, seed: int = 0) -> np.ndarray:
    """(P, R, N) random orders of each problem's pool; the first n of one are n fresh samples."""
    rng = np.random.default_rng(seed)
    rows = np.tile(np.arange(size), (num_problems, repeats, 1))
    return rng.permuted(rows, axis=-1)


def pick(
    pool: Pool,
    orders: np.ndarray,
    n: int,
    strategy: Strategy,
    scores: str | None = None,
    paid: bool = True,
) -> tuple[np.ndarray, Cost]:
    """Is the answer right that `strategy` picks from the first `n` samples of each order?

    Args:
        orders: (P, R, N), as from `draw_orders`; means over R are close to those over all subsets.
        scores: the verifier whose scores the strategy reads; None: none.
        paid: whether they cost that each sample is read; the sampler's own likelihood does not.

    Returns:
        (P, R) bool, and the cost of each.
    """
    if not 1 <= n <= orders.shape[-1]:
        raise CourseError(
            f"pick was asked for n={n} of {orders.shape[-1]} samples; draw more, or ask for fewer."
        )
    first = orders[..., :n]
    right = np.zeros(first.shape[:2], dtype=bool)
    for p, (row, truth) in enumerate(zip(pool.answers, pool.truth, strict=True)):
        values = pool.scores[scores][p].tolist() if scores else [1.0] * len(row)
        for r, chosen in enumerate(first[p].tolist()):
            answer = strategy([row[i] for i in chosen], [values[i] for i in chosen])
            right[p, r] = answer is not None and answer == truth
    generated = np.take_along_axis(pool.generated[:, None], first, -1).sum(-1)  # (P, R)
    prompt = np.broadcast_to(pool.prompt[:, None], generated.shape)
    return right, Cost(prompt, generated, prompt + generated if scores and paid else 0.0)


# ---- beams and budgets -------------------------------------------------------------------------


def split_steps(ids: Sequence[int], ends: set[int]) -> list[list[int]]:
    """Token ids cut after each id of `ends`; what follows the last one is a step of its own."""
    steps: list[list[int]] = [[]]
    for token in ids:
        steps[-1].append(token)
        if token in ends:
            steps.append([])
    return [step for step in steps if step]


@dataclass
class Beams:
    """What beam search kept for each of P prompts, the best first, and what it wrote on the way."""

    completions: list[list[list[int]]]  # ids; cut ones, too, where the search ran to its end
    scores: list[list[float]]
    generated: np.ndarray  # (P,) tokens, dropped candidates included


def beam_search(
    model: torch.nn.Module,
    prompt_ids: list[list[int]],
    verify: Callable[[list[int], list[list[int]]], Sequence[float]],
    finished: Callable[[list[int]], bool],
    *,
    width: int,
    expand: int,
    ends: Sequence[int],
    max_steps: int,
    max_step_tokens: int,
    seed: int,
    **sampling,
) -> Beams:
    """Keep the `width` best beginnings of a solution; go on from each in `expand` ways, by step.

    The first step has width x expand candidates, as every later one has. A candidate that is
    finished stays and is compared with the others; equal scores keep their order.

    Args:
        verify: problems' indices and their completions so far, as ids -> scores, high is good.
        finished: whether a completion goes on no further.
        ends: ids that end a step, and those that end a document.
        sampling: to `generate`: pad_id, temperature.
    """
    kept: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in prompt_ids]
    generated = np.zeros(len(prompt_ids), dtype=int)
    for step in range(max_steps):
        # 1. Go on from every beginning that is not finished.
        ways = expand if step else width * expand
        open_ = [(p, ids) for p, row in enumerate(kept) for _, ids in row if not finished(ids)]
        if not open_:
            break
        more = generate(
            model,
            [prompt_ids[p] + ids for p, ids in open_],
            max_new_tokens=max_step_tokens,
            eos_ids=list(ends),
            num_generations=ways,
            seed=seed + step,
            **sampling,
        ).lists
        owners = [p for p, _ in open_ for _ in range(ways)]
        candidates = [open_[i // ways][1] + new for i, new in enumerate(more)]
        np.add.at(generated, owners, [len(new) for new in more])
        # 2. Score them, and keep the best of each problem.
        kept = [[one for one in row if finished(one[1])] for row in kept]
        for p, score, ids in zip(owners, verify(owners, candidates), candidates, strict=True):
            kept[p].append((float(score), ids))
        kept = [sorted(row, key=lambda one: -one[0])[:width] for row in kept]
    completions = [[ids for _, ids in row] for row in kept]
    return Beams(completions, [[score for score, _ in row] for row in kept], generated)


def resume(
    model: torch.nn.Module,
    prompt_ids: list[list[int]],
    completions: Sequence[list[int]],
    cuts: Sequence[int | None],
    words: Sequence[list[int]],
    **sampling,
) -> list[list[int]]:
    """Cut each completion after so many tokens, append its `words`, and let the model go on.

    With words that begin the answer, a budget is forced; with "wait" in place of an answer, more
    thought is. A completion whose cut is None stays as it is. `sampling` goes to `generate`.
    """
    out = [list(ids) for ids in completions]
    rows = [i for i, cut in enumerate(cuts) if cut is not None]
    begun = [out[i][: cuts[i]] + words[i] for i in rows]
    prompts = [prompt_ids[i] + ids for i, ids in zip(rows, begun, strict=True)]
    more = generate(model, prompts, **sampling).lists if rows else []
    for i, ids, added in zip(rows, begun, more, strict=True):
        out[i] = ids + added
    return out
