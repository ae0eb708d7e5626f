"""What a survey holds, and how well any model could do on it: one page, before an hour is spent."""

import numpy as np
import pandas as pd

from course_lib.core import stats
from course_lib.inputs.survey import Survey

BINS = 10  # of a long scale; on a short one each level is its own
ITEMS = 12  # that are listed
MANY = 25  # levels of a field


def describe(survey: Survey, seed: int = 0) -> str:
    """People and answers, distributions, R² of the fields, shifts by item, the noise floor."""
    first = survey.answers[survey.answers["item"] == ""]
    after = survey.answers[survey.answers["item"] != ""]
    effective = survey.weights.sum() ** 2 / (survey.weights**2).sum()
    lines = [
        f"{len(survey.people):,} people (weighted as {effective:,.0f}), {len(first):,} initial "
        f"answers, {len(after):,} after one of {after['item'].nunique()} items, from {survey.low} "
        f"to {survey.high}",
        *(f"  note: {note}" for note in [*survey.notes, *_wide_fields(survey)]),
    ]
    for name, rows in (("Initial answers", first), ("Answers after an item", after)):
        if len(rows):
            lines += ["", f"{name}:", *_distribution(survey, rows), *_ceiling(survey, rows, seed)]
    return "\n".join([*lines, "", *_shifts(survey, first, after)])


def _wide_fields(survey: Survey) -> list[str]:
    counts = pd.DataFrame(survey.people).nunique()
    return [
        f"{name} has {k} levels; `bands` or fewer `levels` help a model"
        for name, k in counts.items()
        if k > MANY
    ]


def bin_edges(low: int, high: int) -> np.ndarray:
    """Ten bins of equal width, the last one closed; a bin a level where there are at most 11."""
    if high - low < BINS + 1:
        return np.arange(low, high + 2) - 0.5
    return np.append(np.linspace(low, high, BINS + 1)[:-1] - 1e-9, high + 1e-9)


def _shares(ratings: np.ndarray, edges: np.ndarray, weights: np.ndarray, prior: float = 0.0):
    counts = np.histogram(ratings, edges, weights=weights)[0] + prior
    return counts / counts.sum()


def _distribution(survey: Survey, rows: pd.DataFrame) -> list[str]:
    """Weighted shares by bin, mean, SD, and the heaping of a long scale on tens."""
    edges, (ratings, weights) = bin_edges(survey.low, survey.high), _of(survey, rows)
    lines = []
    for a, b, share in zip(edges, edges[1:], _shares(ratings, edges, weights), strict=False):
        levels = range(int(np.ceil(a)), int(np.ceil(b)))
        label = f"{levels[0]}-{levels[-1]}" if len(levels) > 1 else f"{levels[0]}"
        lines.append(f"  {label:>8} {share:6.1%} {'#' * round(60 * share)}".rstrip())
    mean = np.average(ratings, weights=weights)
    spread = np.sqrt(np.average((ratings - mean) ** 2, weights=weights))
    heaped = np.average(ratings % 10 == 0, weights=weights)
    tens = f", {heaped:.0%} on a ten" if survey.high - survey.low > 20 else ""
    return [*lines, f"  mean {mean:.1f}, SD {spread:.1f}{tens}"]


def _of(survey: Survey, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ratings and weights of answers."""
    return rows["rating"].to_numpy(float), survey.weights[rows["person"]]


def _ceiling(survey: Survey, rows: pd.DataFrame, seed: int) -> list[str]:
    """R² of the fields, the errors that it leaves, and the noise floor on a tenth of the people."""
    explained, spread = cross_validated(survey, rows, seed=seed)
    left = spread * np.sqrt(1 - max(explained, 0))
    size, floor, found = noise_floor(survey, rows, seed=seed)
    low, high = np.quantile(found, (0.05, 0.95))
    known = "fields" if (rows["item"] == "").all() else "fields and the item"
    return [
        f"  R² of the {known} {explained:.2f} (ridge, on people held out): as good a model",
        f"  has RMSE {left:.1f} with its expected values and {left * 2**0.5:.1f} with its samples",
        f"  noise floor: two tenths of the people ({size:.0f} answers each) differ by a KL of",
        f"  {found.mean():.3f}, in nine of ten splits {low:.3f} to {high:.3f} (were answers",
        f"  independent: {floor:.3f}); so does a perfect model that answers once for each",
    ]


def cross_validated(
    survey: Survey, rows: pd.DataFrame, folds: int = 5, seed: int = 0
) -> tuple[float, float]:
    """(R², SD) of ridge on dummies of fields and items, on people it has not seen.

    The penalty is the best of four by these folds, which flatters R² a little.
    """
    fields = pd.DataFrame(survey.people).iloc[rows["person"]].reset_index(drop=True)
    design = pd.get_dummies(fields.assign(**{"": rows["item"].to_numpy()})).to_numpy(float)
    ratings, weights = _of(survey, rows)
    fold = np.random.default_rng(seed).permutation(len(survey.people))[rows["person"]] % folds
    mean = np.average(ratings, weights=weights)
    spread = np.average((ratings - mean) ** 2, weights=weights)
    errors = []
    for penalty in (3, 10, 30, 100):
        predicted = np.empty(len(rows))
        for k in range(folds):
            x, y, w = design[fold != k], ratings[fold != k], weights[fold != k]
            center, level = np.average(x, 0, w), np.average(y, weights=w)
            x = x - center
            gram = (x.T * w) @ x + penalty * np.eye(x.shape[1])
            slopes = np.linalg.solve(gram, (x.T * w) @ (y - level))
            predicted[fold == k] = level + (design[fold == k] - center) @ slopes
        errors.append(np.average((ratings - predicted) ** 2, weights=weights))
    return (1 - min(errors) / spread if spread else 0.0), float(np.sqrt(spread))


def noise_floor(
    survey: Survey, rows: pd.DataFrame, share: float = 0.1, splits: int = 200, seed: int = 0
) -> tuple[float, float, np.ndarray]:
    """(answers in a group, KL if answers were independent, KL of each split (splits,)).

    Two groups of `share` of the people each, drawn without overlap. Independent answers:
    (K-1)/2 · (1/n + 1/m) for the K bins in use. Half an answer is added to each of these bins, so
    that none is empty.
    """
    edges, (ratings, weights) = bin_edges(survey.low, survey.high), _of(survey, rows)
    used = _shares(ratings, edges, weights) > 0
    persons, rng = rows["person"].to_numpy(), np.random.default_rng(seed)
    size, found = max(1, round(share * len(survey.people))), []
    for _ in range(splits):
        place = rng.permutation(len(survey.people))[persons] // size
        p, q = (
            _shares(ratings[place == k], edges, weights[place == k], 0.5 * used)[used]
            for k in (0, 1)
        )
        found.append(float(p @ np.log(p / q)))
    expected = len(rows) * size / len(survey.people)
    return expected, (used.sum() - 1) / expected, np.array(found)


def _shifts(survey: Survey, first: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """Weighted mean of each item's answers minus the same people's initial ones, largest first."""
    before = first.groupby("person")["rating"].mean()
    both = after.assign(shift=after["rating"] - after["person"].map(before)).dropna()
    found = []
    for item, rows in both.groupby("item"):
        if len(rows) > 1:
            weights = survey.weights[rows["person"]]
            shift = stats.ratio([weights * rows["shift"]], [weights])
            found.append((shift.estimate, f"  {item}: {shift} ({len(rows)} answers)"))
    found = [line for _, line in sorted(found, reverse=True)]
    if len(found) > ITEMS:
        half = ITEMS // 2
        between = f"  ... {len(found) - ITEMS} items between ..."
        found = [*found[:half], between, *found[-half:]]
    title = "After minus before, same people, mean with 95% interval:"
    return [title, *found] if found else ["No item was answered by people who answered before."]
