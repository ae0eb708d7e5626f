"""`course doctor`: what this machine can run, and what to do about what is missing."""

import importlib.metadata
import os
import platform
import shutil
import socket
from dataclasses import dataclass

import psutil

from course_lib import ROOT, CourseError
from course_lib.offline import available_memory_gb
from course_lib.profiles import PROFILES, Profile, check_machine, load_profile

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "jupyterlab")
HUB = "huggingface.co"


@dataclass(frozen=True)
class Finding:
    """One line: `ok` is None for a fact that is neither good nor bad."""

    what: str
    value: str
    ok: bool | None = None
    remedy: str = ""


def examine(profile: str = "pocket", online: bool = False) -> list[Finding]:
    """All findings; the hub is asked only for a profile that needs it, or if `online`."""
    described = load_profile(profile)
    found = [_python(), *map(_package, PACKAGES), _memory(described), _cores(), _peak(), _gpu()]
    found += [_disk(described), _checkout()]
    if online or not described.offline:
        found.append(_hub())
    if online:
        found += [_resolved(name, commit) for name, commit in described.revisions.items()]
    return found + [_can_run(name) for name in PROFILES]


def _python() -> Finding:
    version = platform.python_version()
    ok = (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) <= (3, 13)
    remedy = "" if ok else "install Python 3.11, 3.12 or 3.13"
    return Finding("Python", f"{version} on {platform.system()} {platform.machine()}", ok, remedy)


def _package(name: str) -> Finding:
    pins = importlib.metadata.requires("posttraining-course") or []
    pin = next((p.split("==")[1] for p in pins if p.startswith(f"{name}==")), None)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", False, "run `pip install -e .` in the checkout")
    if pin and version.split("+")[0] != pin:
        return Finding(name, version, False, f"the course is tested with {pin}: `pip install -e .`")
    return Finding(name, version, True)


def _memory(profile: Profile) -> Finding:
    total, free = psutil.virtual_memory().total / 1e9, available_memory_gb()
    ok = free >= profile.memory_gb
    remedy = "" if ok else f"{profile.name} needs {profile.memory_gb:g} GB: close other programs"
    return Finding("memory", f"{free:.1f} GB free of {total:.1f} GB", ok, remedy)


def _cores() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{os.cpu_count()}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    return Finding("cores", text)


def _peak() -> Finding:
    from course_lib.machine import matmul_peak

    fp32, bf16 = matmul_peak("float32", 0.3), matmul_peak("bfloat16", 0.3)
    pays = "bf16 pays here" if bf16 > 1.3 * fp32 else "bf16 does not pay here"
    text = f"{fp32 / 1e9:.0f} GFLOP/s fp32, {bf16 / 1e9:.0f} bf16 ({pays})"
    slow = fp32 < 20e9
    remedy = "under 20 GFLOP/s: close other programs, or expect several times the stated minutes"
    return Finding("matrix products", text, not slow, remedy if slow else "")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use; needed by the profile gpu only")
    about = torch.cuda.get_device_properties(0)
    return Finding("GPU", f"{about.name}, {about.total_memory / 1e9:.0f} GB", True)


def _disk(profile: Profile) -> Finding:
    free = shutil.disk_usage(ROOT).free / 1e9
    ok = free >= profile.disk_gb
    remedy = "" if ok else f"{profile.name} needs {profile.disk_gb:g} GB: `course clean`"
    return Finding("disk", f"{free:.1f} GB free", ok, remedy)


def _checkout() -> Finding:
    models = sorted(p.parent.name for p in ROOT.glob("data/models/*/model.safetensors"))
    remedy = "" if models else "restore data/models with git, or make them with `course pretrain`"
    return Finding("pocket models", ", ".join(models) or "none", bool(models), remedy)


def _hub(timeout: float = 3.0) -> Finding:
    """A plain connection, no request: reachable or not, within seconds."""
    try:
        socket.create_connection((HUB, 443), timeout=timeout).close()
    except OSError as error:
        remedy = "check network and proxy; the profile pocket works offline"
        return Finding("hub", f"{HUB} not reachable ({error})", False, remedy)
    return Finding("hub", f"{HUB} reachable", True)


def _resolved(name: str, commit: str) -> Finding:
    """The commit that a hub id has now, beside the pinned one."""
    from huggingface_hub import HfApi

    try:
        now = HfApi().model_info(name, timeout=5).sha
    except Exception as error:  # the client raises many kinds; each means that it cannot be said
        return Finding(name, f"pinned {commit[:12]}; not resolved ({type(error).__name__})")
    text = f"pinned {commit[:12]}, now {str(now)[:12]}"
    return Finding(name, text, None if now != commit else True)


def _can_run(name: str) -> Finding:
    profile = load_profile(name)
    try:
        check_machine(profile)
    except CourseError as error:
        return Finding(f"profile {name}", "cannot run here", False, str(error))
    note = f"; downloads {profile.download_gb:g} GB once" if profile.download_gb else "; offline"
    return Finding(f"profile {name}", f"can run here{note}", True)
