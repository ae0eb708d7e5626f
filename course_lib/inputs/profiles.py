"""Profiles: what a notebook runs on, checked, with parts replaced where a user asks for it."""

import os
import re
from pathlib import Path
from typing import Protocol

import yaml
from pydantic import BaseModel, ConfigDict

from course_lib import ROOT, CourseError, check_checkout
from course_lib.core.checks import check_choice
from course_lib.core.offline import available_memory_gb
from course_lib.inputs.examine import base_of
from course_lib.inputs.models import examine_model, model_path

FOLDER = ROOT / "data" / "profiles"
PROFILES = ("pocket", "laptop", "gpu")
EFFORTS = ("live", "full")  # how much a notebook does
ROLES = ("base", "instruct", "small", "medium", "large")


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
    local: dict[str, str] = {}  # role -> folder in `models_dir`, where the hub's is not here
    stand_in: str = ""  # what to say of a local base model
    about: str = ""  # what `setup` prints


class HasProfile(Protocol):
    """What this room knows of the `kit.course.Course` that a notebook holds."""

    profile: Profile


def load_profile(name: str) -> Profile:
    """Read `data/profiles/<name>.yaml`."""
    check_checkout()
    check_choice("PROFILE", name, PROFILES)
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return Profile(**yaml.safe_load(text))


def models_dir() -> Path:
    """Where `course model get` keeps models: `build/models`, or the folder in `COURSE_MODELS`."""
    return Path(os.environ.get("COURSE_MODELS") or ROOT / "build" / "models")


def is_override(name: str) -> bool:
    """Whether a setting replaces a part of the profile (`base_model`, `exam_data`, `device`)."""
    role, _, kind = name.rpartition("_")
    return name in ("device", "dtype") or (role in ROLES and kind == "model") or kind == "data"


def apply_overrides(profile: Profile, overrides: dict[str, str]) -> Profile:
    """The profile with models, data folders, device or dtype replaced, each one checked as a whole.

    A new base model also takes every role that the old one had, and has no early snapshots.
    """
    changed = profile.model_copy(deep=True)
    for name, value in overrides.items():
        role, _, kind = name.rpartition("_")
        if kind == "data":
            check_choice(f"The part before _data in {name!r}", role, tuple(profile.data))
            if not Path(value).expanduser().is_dir():
                raise CourseError(f"{name} is {value!r}, which is no folder; check the path.")
            changed.data[role] = absolute(value)
        elif kind == "model":
            check_model(name, str(value), profile.offline)
            if role == "base":
                changed.early = []
                same = [r for r, m in profile.models.items() if m == profile.models["base"]]
                new_roles = [r for r in same if f"{r}_model" not in overrides]
                changed.models.update(dict.fromkeys(new_roles, absolute(value)))
            changed.models[role] = absolute(value)
        else:
            choices = {"device": ("cpu", "cuda", "mps"), "dtype": ("float32", "bfloat16")}
            check_choice(name, value, choices[name])
            setattr(changed, name, value)
    _take_what_is_here(changed, {name.removesuffix("_model") for name in overrides})
    for folder in {m for m in changed.models.values() if os.path.isdir(m)}:
        examine_model(folder)
    return changed


def _take_what_is_here(profile: Profile, given: set[str]) -> None:
    """In a profile with `local` models these replace the hub's that are not on this machine.

    A role without one is left out; what the user has `given` stays. No connection is opened.
    """
    if not profile.local:
        return
    from huggingface_hub import try_to_load_from_cache

    kept = {profile.models[role] for role in given & set(profile.models)}
    for role, model in list(profile.models.items()):
        weights = model, "model.safetensors", None, profile.revisions.get(model)
        if model in kept or isinstance(try_to_load_from_cache(*weights), str):
            profile.stand_in = "" if role == "base" else profile.stand_in
        elif role not in profile.local:
            del profile.models[role]
        elif (folder := (models_dir() / profile.local[role]).resolve()).is_dir():
            profile.models[role] = str(folder)
        else:
            raise CourseError(
                f"The {role} model of the profile {profile.name!r} is neither in {models_dir()} "
                f"nor in the hub's cache; run `course model get smollm2`, or name a folder or a "
                f"hub id with --set {role}_model=..."
            )


def absolute(value: str) -> str:
    """A folder by its full path, since a notebook works in another one; else the value."""
    folder = Path(value).expanduser()
    is_folder = folder.is_dir() and not value.startswith("pocket/")
    return str(folder.resolve()) if is_folder else value


def check_model(name: str, value: str, offline: bool) -> None:
    """Raise `CourseError` where a model setting is no folder, shipped model or, online, hub id."""
    if value.startswith("pocket/") or Path(value).expanduser().is_dir():
        if (base := base_of(model_path(value))) != model_path(value):
            check_model(f"The base model of the adapter {value}", base, offline)
    elif offline or not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        hint = "the profile 'pocket' takes no hub ids" if offline else "or a hub id 'owner/name'"
        raise CourseError(
            f"{name} is {value!r}, which is no folder; expected a model folder with config.json, "
            f"*.safetensors and a tokenizer ({hint})."
        )


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
    if profile.device == "mps":
        import torch

        if not torch.backends.mps.is_available():
            raise CourseError("device is 'mps', which torch does not see here; use device=cpu.")
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
