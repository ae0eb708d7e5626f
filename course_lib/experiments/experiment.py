"""An experiment is data: conditions, what makes a model of each, what is measured, over seeds.

`run` does the rest: it trains, or finds in the cache, the model of every condition and seed,
measures it, records the means, and returns a `Ran` that answers questions. A condition that is not
in this run is `Missing`, which prints what the committed full run found; so no notebook asks
whether it is live or full.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib.core import stats
from course_lib.core.checks import check_choice
from course_lib.core.stats import Interval
from course_lib.experiments import records
from course_lib.experiments.measures import wins
from course_lib.kit import claims
from course_lib.kit.results import select

if TYPE_CHECKING:
    from course_lib.kit.course import Course
    from course_lib.kit.tables import Table

Settings = Mapping[str, Any]


@dataclass
class Items:
    """What was measured of one model: arrays (items,) or (items, tries) by measure."""

    values: Mapping[str, np.ndarray]
    rows: Sequence[dict] = ()  # of the items' prompts
    texts: np.ndarray | None = None  # (items, tries) what the model wrote
    whole: Any = None  # what the measure returned, for a closer look


@dataclass(frozen=True)
class Experiment:
    """Conditions by name, each the settings in which it differs from what all conditions share.

    A setting that is a function is called with the shared ones. `live` conditions are in every run,
    `full` ones in a full run alone.
    """

    claim: str  # under which the means are recorded
    make: Callable[..., str]  # (course, seed=, progress=, **settings) -> the model's folder
    measure: Callable[..., Items]  # (course, folder, condition, seed, settings, by) -> Items
    live: Mapping[str, Settings]
    full: Mapping[str, Settings] = field(default_factory=dict)
    # (course, settings) -> why a condition cannot be here, such as "needs a second model", or ""
    skip: Callable[[Course, Settings], str] = lambda course, settings: ""


@dataclass(frozen=True)
class Claim:
    """A statement, and how a run decides it; a statement's parts are claims "10.1a", "10.1b"."""

    id: str
    statement: str
    source: str
    measure: str  # in words, with its unit
    target: str  # as in `kit.claims.verdict`
    effect: Callable[[Any], Interval | Missing]  # of what the notebook ran


@dataclass(frozen=True)
class Missing:
    """A condition or an effect that this run has not measured."""

    why: str
    full: float | None = None  # mean of the committed full run

    def __str__(self) -> str:
        return self.why if self.full is None else f"{self.why}: {self.full:.3f}"


@dataclass
class Ran:
    """A run of an experiment: folders and measures by condition and seed."""

    course: Course
    claim: str
    settings: dict[str, dict[str, Any]]
    missing: dict[str, str]  # condition -> why
    folders: dict[str, dict[int, str]] = field(default_factory=dict)
    items: dict[str, dict[int, Items]] = field(default_factory=dict)

    def add(self, condition: str, by_seed: Mapping[int, Items], record: bool = False) -> None:
        """A condition that nothing is trained for: where all start, or a rule."""
        self.items[condition] = dict(by_seed)
        for seed, found in by_seed.items() if record else ():
            self._record(condition, seed, found)

    def _record(self, condition: str, seed: int, found: Items) -> None:
        for measure, values in found.values.items():
            self.course.results.add(self.claim, condition, 0, seed, measure, values.mean())

    def whole(self) -> dict[str, dict[int, Any]]:
        """What the measures returned, by condition and seed."""
        return {n: {s: one.whole for s, one in each.items()} for n, each in self.items.items()}

    def values(self, measure: str, condition: str) -> list[np.ndarray]:
        """One array (items,) a seed: means over the tries of each item."""
        found = [each.values[measure] for each in self.items[condition].values()]
        return [v if v.ndim == 1 else v.mean(1) for v in found]

    def gain(
        self, measure: str, condition: str, other: str, kind: Callable = stats.gain
    ) -> Interval | Missing:
        """The mean of `condition` minus that of `other`, paired by item and seed.

        Args:
            kind: `stats.gain`, `stats.paired_share` for zeros and ones, or `stats.ratio`.
        """
        if lacking := self._lacking(condition, measure, other):
            return lacking
        return kind(self.values(measure, condition), self.values(measure, other))

    def wins(self, condition: str, other: str, measure: str = "truth") -> Interval | Missing:
        """How often an answer of `condition` beats one of `other` to the same prompt."""
        if lacking := self._lacking(condition, None, other):
            return lacking
        pairs = zip(self.items[condition].values(), self.items[other].values(), strict=True)
        return stats.share([wins(a.values[measure], b.values[measure]) for a, b in pairs])

    def mean(self, measure: str, condition: str, kind: Callable = stats.mean) -> Interval | Missing:
        """The mean of a condition; `kind` is `stats.share` for values in [0, 1]."""
        if lacking := self._lacking(condition, measure):
            return lacking
        return kind(self.values(measure, condition))

    def change(self, measure: str, other: str, condition: str) -> Interval | Missing:
        """The mean of a measure minus that of another one, of the same condition."""
        if lacking := self._lacking(condition, measure) or self._lacking(condition, other):
            return lacking
        return stats.gain(self.values(measure, condition), self.values(other, condition))

    def slope(self, x: Sequence[float], measures: Sequence[str], condition: str) -> Any:
        """The slope of a condition's measures on `x`, per unit of it."""
        if lacking := next(filter(None, (self._lacking(condition, m) for m in measures)), None):
            return lacking
        return stats.slope(x, [self.values(measure, condition) for measure in measures])

    def table(self, *measures: str) -> list[dict[str, str]]:
        """A row for each condition, those that are missing too, with the means of measures."""
        names = [*self.items, *self.missing]
        return [{"": n} | {m: str(self.mean(m, n)) for m in measures} for n in names]

    def save(
        self,
        texts: Sequence[tuple[str, str, str, int]] = (),
        start: str = "",
        measures: Sequence[str] | None = None,
    ) -> None:
        """Write the records of a full run into the build folder; a live run keeps none.

        Args:
            texts: (condition, measure, rule of `records`, n) of the items whose answers are kept:
                chosen by their gain over the condition `start` with the first seed.
            measures: whose items are kept; None keeps all.
        """
        if not self.course.full:
            return
        seeds, folder = self.course.seeds, self.course.build / "results"
        found = {
            (self.claim, name, measure): np.stack(self.values(measure, name))
            for name, by_seed in self.items.items()
            for measure in next(iter(by_seed.values())).values
            if measures is None or measure in measures
        }
        number = self.course.notebook
        records.save_items(folder / f"{number}_items.npz", found, seeds)
        for condition, measure, rule, n in texts:
            names = dict.fromkeys((start, condition))
            shown = {name: self.items[name][seeds[0]] for name in names}
            kept = [records.as_kept(self.values(measure, name)[0]) for name in (condition, start)]
            answers = {name: one.texts[:, 0].tolist() for name, one in shown.items()}
            scores = {name: one.values[measure][:, 0] for name, one in shown.items()}
            path, place = folder / f"{number}_texts.json", (self.claim, condition, measure)
            about = kept[0] - kept[1], shown[condition].rows, answers, scores, seeds[0]
            records.save_texts(path, place, rule, n, *about)

    def _lacking(self, condition: str, measure: str | None, other: str = "") -> Missing | None:
        """What stands in for an effect of conditions that this run has not measured."""
        names = [name for name in (condition, other) if name]
        for name in names:
            check_choice("The condition", name, (*self.items, *self.missing))
        why = next((self.missing[name] for name in names if name in self.missing), None)
        if why is None:
            there = [next(iter(self.items[name].values())).values for name in names]
            known = measure is None or all(measure in values for values in there)
            return None if known else Missing("truth unknown")
        rows = select(self.course.full_runs(self.claim), measure=measure) if measure else None
        if rows is None or not set(names) <= set(rows["condition"]):
            return Missing(why)
        means = [rows[rows["condition"] == name]["value"].mean() for name in names]
        return Missing(why, means[0] - sum(means[1:]))


def run(
    course: Course,
    experiment: Experiment,
    progress: Callable | None = None,
    *,
    by: Mapping[int, Any] | None = None,
    trained: Mapping[str, Mapping[int, str]] | None = None,
    **shared: Any,
) -> Ran:
    """Train, measure and record every condition of this run.

    Args:
        progress: called with a number of steps where a training is needed, such as `LiveCurve`.
        by: what the models of a seed are measured with, by seed.
        trained: folders by condition and seed of models that the notebook has trained itself.
        shared: settings of all conditions; a condition's own go before.
    """
    settings, missing = conditions(course, experiment, shared)
    ran = Ran(course, experiment.claim, settings, missing)
    for name, own in settings.items():
        done = (trained or {}).get(name, {})
        ran.folders[name] = {
            seed: done.get(seed) or experiment.make(course, seed=seed, progress=progress, **own)
            for seed in course.seeds
        }
    for name, folders in ran.folders.items():
        ran.items[name] = {}
        for seed, folder in folders.items():
            bench = by[seed] if by else None
            found = experiment.measure(course, folder, name, seed, settings[name], bench)
            ran.items[name][seed] = found
            ran._record(name, seed, found)
    return ran


def conditions(
    course: Course, experiment: Experiment, shared: Settings
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(settings of this run's conditions by name, why each other one is missing)."""
    settings, missing = {}, {}
    for name, own in {**experiment.live, **experiment.full}.items():
        values = {k: value(shared) if callable(value) else value for k, value in own.items()}
        why = experiment.skip(course, shared | values)
        if why:
            missing[name] = why
        elif name in experiment.live or course.full:
            settings[name] = shared | values
        else:
            missing[name] = "in the full run"
    return settings, missing


def decide(course: Course, ran: Any, *ids: str) -> Table:
    """Decide statements of the notebook's `CLAIMS` with all their parts; the table of the verdicts.

    A claim whose conditions this run lacks is named with the reason, and not recorded. So is one of
    another profile's survey that cannot be measured there.
    """
    known = importlib.import_module(f"course_lib.experiments.nb{course.notebook}").CLAIMS
    parts = [claim for claim in known for id in ids if claim.id.rstrip(ascii_lowercase) == id]
    if not parts:
        check_choice("The claim", ids[0], tuple(claim.id for claim in known))
    found = []
    for one in parts:
        effect = one.effect(ran)
        if isinstance(effect, Missing):
            print(f"{one.id} {one.statement} ({one.measure}): {effect}")
            continue
        words = {"source": one.source, "measure": one.measure, "target": one.target}
        found.append(claims.claim(course, one.id, one.statement, interval=effect, **words))
    return claims.beside_full(found, only=[claim.id for claim in parts])
