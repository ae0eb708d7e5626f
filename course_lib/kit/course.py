"""The `Course` a notebook holds: profile, effort (how much of everything is done), seed, results.

`setup` is the second code cell of every notebook: it checks all parameters before any training,
seeds, quietens libraries, closes the network for the pocket profile, and returns the `Course`.
"""

import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from course_lib.core.cache import NOTE, RUN, build_dir, read_json, stage_key, write_text
from course_lib.core.checks import check_choice, check_value
from course_lib.core.machine import keep_freed_memory, peak_memory_gb
from course_lib.core.offline import allow_network, block_network, silence
from course_lib.inputs.examine import base_of
from course_lib.inputs.models import load_both
from course_lib.inputs.profiles import (
    EFFORTS,
    Profile,
    apply_overrides,
    check_machine,
    is_override,
    load_profile,
)
from course_lib.kit import tables
from course_lib.kit.claims import CLAIMS
from course_lib.kit.results import Results, committed, select

FULL_SEEDS = 5
MAX_THREADS = 8  # the pocket models are too small to gain from more


@dataclass
class Course:
    """What a notebook knows about its run."""

    notebook: str  # "01"
    profile: Profile
    effort: str
    seed: int
    knobs: dict[str, Any] = field(default_factory=dict)
    results: Results | None = None
    replay: bool = False  # whether it holds committed results, for figures/
    started: float = field(default_factory=time.perf_counter)

    @property
    def full(self) -> bool:
        return self.effort == "full"

    @property
    def seeds(self) -> list[int]:
        """Seeds to repeat every training with: one when live, five when full."""
        return list(range(self.seed, self.seed + (FULL_SEEDS if self.full else 1)))

    @property
    def device(self) -> str:
        return self.profile.device

    @property
    def dtype(self) -> str:
        return self.profile.dtype

    @property
    def truth_known(self) -> bool:
        """Whether the judge's score is the truth (pocket world) or a stand-in (real data)."""
        return self.profile.truth_known

    @property
    def parameters(self) -> dict[str, Any]:
        """The notebook's own parameters, and the seed, as they are this time."""
        return {"SEED": self.seed} | {name.upper(): value for name, value in self.knobs.items()}

    @property
    def build(self) -> Path:
        """Where this run writes: a folder of its own, by its parameters; `course run` names it."""
        key = stage_key("", self.parameters, [self.profile.model_dump()], "")[:8]
        name = f"{self.notebook}-{self.profile.name}-{self.effort}-{key}"
        return Path(os.environ.get(RUN) or build_dir() / "lab" / name)

    @property
    def context(self) -> int:
        """Tokens that fit: the profile's, or fewer where the base model's folder says so."""
        config = Path(base_of(self.model("base"))) / "config.json"
        if not config.is_file():
            return self.profile.context
        most = read_json(config).get("max_position_embeddings")
        return min(self.profile.context, most or self.profile.context)

    def model(self, role: str = "base") -> str:
        """Name, folder or hub id of the model in a role, for `load_model`."""
        check_choice("The model role", role, tuple(self.profile.models))
        return self.profile.models[role]

    def models(self, role: str = "early") -> list[str]:
        """The models in a role: "early" snapshots, or the role's one; none where it is absent."""
        if role == "early":
            return self.profile.early
        return [model for each, model in self.profile.models.items() if each == role]

    def revision(self, role: str = "base") -> str | None:
        """Pinned commit of a hub model; None for pocket models and folders."""
        return self.profile.revisions.get(self.model(role))

    def load(self, role: str = "base", **options: Any) -> tuple[Any, Any]:
        """(model, tokenizer) of a role, on the profile's device and in its dtype."""
        options = {"dtype": self.dtype, "device": self.device} | options
        return load_both(self.model(role), self.revision(role), **options)

    def full_runs(self, claim: str) -> pd.DataFrame:
        """The committed full runs' rows of a claim: of the pocket models, so none elsewhere."""
        frame = select(committed(self.notebook, "full"), claim)
        return frame if self.profile.name == "pocket" else frame[:0]

    def finish(self) -> None:
        """Last cell: save the results, note seconds and peak memory."""
        self.results.save(self.build / "results")
        note = {
            "notebook": self.notebook,
            "profile": self.profile.name,
            "effort": self.effort,
            "seed": self.seed,
            "parameters": self.parameters,
            "seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_gb": round(peak_memory_gb(), 2),
        }
        write_text(self.build / NOTE, json.dumps(note, indent=1))


def setup(
    PROFILE: str = "pocket",
    EFFORT: str = "live",
    SEED: int = 0,
    *,
    notebook: str,
    **knobs: Any,
) -> Course:
    """Check every parameter, prepare the process, and return the notebook's `Course`.

    Args:
        knobs: the notebook's own parameters as `(value, low, high)`, `(value, [choices])` or the
            bare value; also replacements of the profile's parts, such as `base_model=PATH`.

    Raises:
        CourseError: a parameter is out of range, a model folder is incomplete, the machine has too
            little memory or no GPU. One sentence each, before any work is done.
    """
    check_choice("EFFORT", EFFORT, EFFORTS)
    check_value("SEED", SEED, (0, 2**31 - 1), 0)
    overrides = json.loads(os.environ.get("COURSE_SET") or "{}")
    values = {}
    for name, given in knobs.items():
        value, *limits = given if isinstance(given, tuple) else (given,)
        if is_override(name):
            overrides |= {name: value} if value is not None else {}
        else:
            check_value(name.upper(), value, tuple(limits), limits[0] if len(limits) == 2 else None)
            values[name] = value
    profile = apply_overrides(load_profile(PROFILE), overrides)
    check_machine(profile)
    tables.NOTE = profile.stand_in
    if profile.about:
        print(profile.about + (f"Here {profile.stand_in}." if profile.stand_in else ""))
    silence()
    keep_freed_memory()
    block_network() if profile.offline else allow_network()
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    course = Course(notebook, profile, EFFORT, SEED, values, Results(notebook, EFFORT))
    (course.build / CLAIMS).unlink(missing_ok=True)  # a session begins with no claims of another
    return course


def committed_course(notebook: str, effort: str, knobs: dict[str, Any]) -> Course:
    """A course that trains nothing and holds the committed results, to draw figures/ from."""
    results = Results(notebook, effort)
    results.load(committed(notebook, effort))
    return Course(notebook, load_profile("pocket"), effort, 0, knobs, results, replay=True)
