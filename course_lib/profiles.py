"""Profiles (what a notebook runs on), effort (how much of it), and the `Course` a notebook holds.

`setup` is the second code cell of every notebook: it checks all parameters before any training,
seeds, quietens libraries, closes the network for the pocket profile, and returns the `Course`.
"""

import json
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from course_lib import ROOT, CourseError, check_checkout
from course_lib.cache import build_dir, write_text
from course_lib.checks import check_choice, check_value
from course_lib.machine import keep_freed_memory
from course_lib.offline import allow_network, available_memory_gb, block_network, silence

FOLDER = ROOT / "data" / "profiles"
PROFILES = ("pocket", "laptop", "gpu")
EFFORTS = ("live", "full")
ROLES = ("base", "instruct", "small", "medium", "large")
FULL_SEEDS = 5
MAX_THREADS = 8  # the pocket models are too small to gain from more


class Profile(BaseModel):
    """One file of `data/profiles`: models by role, data by task, and what they need."""

    model_config = ConfigDict(extra="forbid")
    name: str
    offline: bool
    truth_known: bool  # the pocket world's judge, or only stand-ins
    device: str
    dtype: str
    memory_gb: float  # of the machine, for the largest notebook
    gpu_memory_gb: float = 0
    disk_gb: float
    download_gb: float
    context: int  # tokens of prompt and completion together
    models: dict[str, str]  # role -> `pocket/x`, folder or hub id
    early: list[str]  # the base model before the end of its pretraining
    revisions: dict[str, str]  # hub id -> commit
    data: dict[str, str]  # task -> data set, "world" for the pocket world
    batch: dict[str, int]


def load_profile(name: str) -> Profile:
    """Read `data/profiles/<name>.yaml`."""
    check_checkout()
    check_choice("PROFILE", name, PROFILES)
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return Profile(**yaml.safe_load(text))


def is_override(name: str) -> bool:
    """Whether a setting replaces a part of the profile (`base_model`, `exam_data`, `device`)."""
    role, _, kind = name.rpartition("_")
    return name in ("device", "dtype") or (role in ROLES and kind == "model") or kind == "data"


def apply_overrides(profile: Profile, overrides: dict[str, str]) -> Profile:
    """The profile with models, data folders, device or dtype replaced, each one checked.

    A new base model also takes every role that the old one had, and has no early snapshots.
    """
    changed = profile.model_copy(deep=True)
    for name, value in overrides.items():
        role, _, kind = name.rpartition("_")
        if kind == "data":
            check_choice(f"The part before _data in {name!r}", role, tuple(profile.data))
            if not Path(value).expanduser().is_dir():
                raise CourseError(f"{name} is {value!r}, which is no folder; check the path.")
            changed.data[role] = str(Path(value).expanduser().resolve())
        elif kind == "model":
            path = check_model(name, str(value), profile.offline)
            if role == "base":
                changed.early = []
                same = [r for r, m in profile.models.items() if m == profile.models["base"]]
                new_roles = [r for r in same if f"{r}_model" not in overrides]
                changed.models.update(dict.fromkeys(new_roles, path))
            changed.models[role] = path
        else:
            choices = {"device": ("cpu", "cuda", "mps"), "dtype": ("float32", "bfloat16")}
            check_choice(name, value, choices[name])
            setattr(changed, name, value)
    return changed


def check_model(name: str, value: str, offline: bool) -> str:
    """A model setting as an absolute folder, `pocket/x` or hub id; `CourseError` if it is none."""
    if value.startswith("pocket/"):
        return value
    folder = Path(value).expanduser()
    if not folder.is_dir():
        if not offline and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
            return value
        hint = "the profile 'pocket' takes no hub ids" if offline else "or a hub id 'owner/name'"
        raise CourseError(
            f"{name} is {value!r}, which is no folder; expected a model folder with config.json, "
            f"*.safetensors and a tokenizer ({hint})."
        )
    needed = {
        "config.json": ["config.json", "adapter_config.json"],
        "*.safetensors (pickles are never read)": ["*.safetensors"],
        "a tokenizer (tokenizer.json)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }
    for what, patterns in needed.items():
        if not any(next(folder.glob(p), None) for p in patterns):
            raise CourseError(
                f"{name} is {value!r}, which holds no {what}; give a folder that "
                "`save_pretrained` wrote for model and tokenizer."
            )
    return str(folder.resolve())


@dataclass
class Course:
    """What a notebook knows about its run."""

    notebook: str  # "01"
    profile: Profile
    effort: str
    seed: int
    knobs: dict[str, Any] = field(default_factory=dict)
    results: Any = None  # results.Results
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
        """Where this run writes."""
        return build_dir()

    @property
    def context(self) -> int:
        """Tokens that fit: the profile's, or fewer where the base model's folder says so."""
        config = Path(self.model("base")) / "config.json"
        if not config.is_file():
            return self.profile.context
        most = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
        return min(self.profile.context, most or self.profile.context)

    def model(self, role: str = "base") -> str:
        """Name, folder or hub id of the model in a role, for `load_model`."""
        check_choice("The model role", role, tuple(self.profile.models))
        return self.profile.models[role]

    def models(self, role: str = "early") -> list[str]:
        """Models in a role that holds several: snapshots before the end of pretraining."""
        return self.profile.early if role == "early" else [self.model(role)]

    def revision(self, role: str = "base") -> str | None:
        """Pinned commit of a hub model; None for pocket models and folders."""
        return self.profile.revisions.get(self.model(role))

    def load(self, role: str = "base", **options: Any) -> tuple[Any, Any]:
        """(model, tokenizer) of a role, on the profile's device and in its dtype."""
        from course_lib.models import load_model, load_tokenizer

        options = {"dtype": self.dtype, "device": self.device} | options
        name, revision = self.model(role), self.revision(role)
        return load_model(name, revision=revision, **options), load_tokenizer(name, revision)

    def finish(self) -> Any:
        """Last cell: save the results, note seconds and peak memory, show the claims table."""
        from course_lib.claims import load_claims, verdict_table
        from course_lib.machine import peak_memory_gb

        if os.environ.get("COURSE_REPLAY") == "1":
            return None
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
        write_text(self.build / "runs" / f"{self.notebook}.json", json.dumps(note, indent=1))
        mine = (self.profile.name, self.effort, self.notebook)
        rows = [r for r in load_claims() if (r.profile, r.effort, r.notebook) == mine]
        return verdict_table(rows)


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
    replay = os.environ.get("COURSE_REPLAY") == "1"
    if not replay:
        check_machine(profile)
    silence()
    keep_freed_memory()
    block_network() if profile.offline else allow_network()
    course = Course(notebook, profile, EFFORT, SEED, values)
    _prepare(course, replay)
    return course


def _prepare(course: Course, replay: bool) -> None:
    """Seed everything, settle the threads, and attach the results (committed ones in a replay)."""
    import numpy as np
    import torch

    from course_lib.results import Results, committed

    random.seed(course.seed)
    np.random.seed(course.seed)
    torch.manual_seed(course.seed)
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    course.results = Results(course.notebook, course.effort)
    if replay:
        course.results.load(committed(course.notebook, course.effort))


def check_machine(profile: Profile) -> None:
    """Raise `CourseError` where the machine cannot run the profile."""
    smaller = {"gpu": "laptop", "laptop": "pocket"}.get(profile.name)
    have = available_memory_gb()
    if have < profile.memory_gb:
        remedy = f"use PROFILE = {smaller!r}" if smaller else "close other programs or kernels"
        raise CourseError(
            f"The profile {profile.name!r} needs {profile.memory_gb:g} GB of free memory and "
            f"{have:.1f} GB are free; {remedy}."
        )
    if profile.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise CourseError(
                "The profile 'gpu' needs a CUDA GPU and torch sees none; use PROFILE = 'laptop', "
                "or install a CUDA build of torch and check `nvidia-smi`."
            )
        gpu = torch.cuda.get_device_properties(0).total_memory / 1e9
        if gpu < profile.gpu_memory_gb:
            raise CourseError(
                f"The profile 'gpu' needs {profile.gpu_memory_gb:g} GB of GPU memory and the "
                f"device has {gpu:.0f} GB; use PROFILE = 'laptop'."
            )
