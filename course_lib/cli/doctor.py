"""`course doctor`: what this machine can run, and what to do about what is missing."""

import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from course_lib import ROOT, CourseError
from course_lib.core.offline import available_memory_gb
from course_lib.inputs.profiles import PROFILES, Profile, check_machine, load_profile

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "jupyterlab")
HUB = "huggingface.co"


@dataclass(frozen=True)
class Finding:
    what: str
    value: str
    remedy: str | None = None  # "" where all is well; None for a fact, neither good nor bad


def examine(profile: str = "pocket", online: bool = False) -> list[Finding]:
    """All findings; the hub is asked only for a profile that needs it, or if `online`."""
    wanted = load_profile(profile)
    found = [_python(), *map(_package, PACKAGES), *_machine(wanted), _peak(), _gpu(), _models()]
    found.append(_real_models(wanted.name))
    if online or not wanted.offline:
        found.append(_hub())
    return found + [_can_run(name) for name in PROFILES]


def _python() -> Finding:
    right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", value, "" if right else "install Python 3.11, 3.12 or 3.13")


def _package(name: str) -> Finding:
    pins = metadata.requires("posttraining-course") or []
    pin = next((pin.split("==")[1] for pin in pins if pin.startswith(f"{name}==")), None)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", "run `pip install -e .` in the checkout")
    right = pin in (None, version.split("+")[0])
    remedy = "" if right else f"the course is tested with {pin}: `pip install -e .`"
    return Finding(name, version, remedy)


def _machine(profile: Profile) -> list[Finding]:
    """Memory, cores and disk."""
    name, threads = profile.name, os.environ.get("OMP_NUM_THREADS")
    total, free = psutil.virtual_memory().total / 1e9, available_memory_gb()
    disk = shutil.disk_usage(ROOT).free / 1e9
    close = f"{name} needs {profile.memory_gb:g} GB: close other programs"
    clean = f"{name} needs {profile.disk_gb:g} GB: `course clean`"
    return [
        Finding(
            "memory",
            f"{free:.1f} GB free of {total:.1f} GB",
            "" if free >= profile.memory_gb else close,
        ),
        Finding("cores", f"{os.cpu_count()}" + (f", OMP_NUM_THREADS={threads}" if threads else "")),
        Finding("disk", f"{disk:.1f} GB free", "" if disk >= profile.disk_gb else clean),
    ]


def _peak() -> Finding:
    from course_lib.core.machine import matmul_peak

    fp32, bf16 = matmul_peak("float32", 0.3), matmul_peak("bfloat16", 0.3)
    pays = "bf16 pays for large models" if bf16 > 1.3 * fp32 else "bf16 does not pay"
    slow = "under 20 GFLOP/s: close other programs, or expect several times the stated minutes"
    value = f"{fp32 / 1e9:.0f} GFLOP/s fp32, {bf16 / 1e9:.0f} bf16 ({pays})"
    return Finding("matrix products", value, slow if fp32 < 20e9 else "")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use; needed by the profile gpu only")
    about = torch.cuda.get_device_properties(0)
    return Finding("GPU", f"{about.name}, {about.total_memory / 1e9:.0f} GB", "")


def _models() -> Finding:
    models = sorted(p.parent.name for p in ROOT.glob("data/models/*/model.safetensors"))
    remedy = "" if models else "restore data/models with git, or make them with `course pretrain`"
    return Finding("pocket models", ", ".join(models) or "none", remedy)


def _real_models(wanted: str) -> Finding:
    """What the profile laptop would load, by what lies on this machine; asks no network."""
    from course_lib.inputs.profiles import apply_overrides

    try:
        models = apply_overrides(load_profile("laptop"), {}).models.values()
    except CourseError as error:
        return Finding("laptop's models", "not here", str(error) if wanted == "laptop" else None)
    names = dict.fromkeys("/".join(Path(model).parts[-2:]) for model in models)
    return Finding("laptop's models", ", ".join(names), "")


def _hub() -> Finding:
    """A plain connection, no request: reachable or not, within seconds."""
    try:
        socket.create_connection((HUB, 443), timeout=3).close()
    except OSError as error:
        remedy = "check network and proxy; the profile pocket works offline"
        return Finding("hub", f"{HUB} not reachable ({error})", remedy)
    return Finding("hub", f"{HUB} reachable", "")


def _can_run(name: str) -> Finding:
    profile = load_profile(name)
    try:
        check_machine(profile)
    except CourseError as error:
        return Finding(f"profile {name}", "cannot run here", str(error))
    note = f"; downloads {profile.download_gb:g} GB once" if profile.download_gb else "; offline"
    return Finding(f"profile {name}", f"can run here{note}", "")
