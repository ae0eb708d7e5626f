"""What a survey's ratings can be told from without a language model: five baselines.

Each gives its best guess, and probabilities of the levels for the test's rows, so that it can be
decoded like a model. A regression's probabilities are its prediction and the residuals that it
leaves on people it has not seen (the validation part), which are drawn with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

BASELINES = ("SVR", "CatBoost", "ridge", "marginal", "random")


def features(people: Sequence[Mapping[str, str]], rows: pd.DataFrame) -> pd.DataFrame:
    """A column of zeros and ones for each level of each field, and for each item."""
    table = pd.DataFrame([people[i] for i in rows["person"]]).astype(str)
    return pd.get_dummies(table.assign(item=rows["item"].to_numpy()), dtype=float)


def predicted(
    name: str,
    people: Sequence[Mapping[str, str]],
    train: pd.DataFrame,
    validation: pd.DataFrame,
    test: pd.DataFrame,
    num_levels: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(level (N,), probabilities of the levels (N, K)) for the test's rows; `rating` from 0."""
    if name == "random":
        guess = np.random.default_rng(seed).integers(num_levels, size=len(test))
        return guess, np.full((len(test), num_levels), 1 / num_levels)
    if name == "marginal":  # of the initial answers and of the others
        first = {part: (train["item"] == "").to_numpy() == part for part in (True, False)}
        shares = {
            part: np.bincount(train["rating"][here], minlength=num_levels) / max(1, here.sum())
            for part, here in first.items()
        }
        probs = np.stack([shares[item == ""] for item in test["item"]])
        return probs.argmax(-1), probs
    tables = features(people, pd.concat([train, validation, test]))
    cuts = np.split(tables.to_numpy(), np.cumsum([len(train), len(validation)]))
    model = _regression(name, seed).fit(cuts[0], train["rating"])
    residuals = validation["rating"].to_numpy() - model.predict(cuts[1])
    mean = model.predict(cuts[2])
    guess = np.clip(np.rint(mean), 0, num_levels - 1).astype(int)
    return guess, _with_residuals(mean, residuals, num_levels)


def _regression(name: str, seed: int) -> Any:
    """The regression of that name; its import is late, as it is slow."""
    if name == "CatBoost":
        from catboost import CatBoostRegressor

        quiet = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
        return CatBoostRegressor(iterations=300, depth=4, random_seed=seed, **quiet)
    if name == "SVR":
        from sklearn.svm import SVR

        return SVR(C=1.0, epsilon=0.5)
    from sklearn.linear_model import Ridge

    return Ridge(alpha=10.0)


def _with_residuals(mean: np.ndarray, residuals: np.ndarray, num_levels: int) -> np.ndarray:
    """Shares (N, K) of mean + residual, each rounded to the nearest level of the scale."""
    drawn = np.clip(np.rint(mean[:, None] + residuals), 0, num_levels - 1).astype(int)
    counts = np.zeros((len(mean), num_levels))
    np.add.at(counts, (np.arange(len(mean))[:, None], drawn), 1)
    counts += 0.5 / num_levels  # no level is impossible
    return counts / counts.sum(-1, keepdims=True)
