"""What a run may reach and say: no network in the pocket profile, no noise from libraries."""

import os
import sys
import warnings
from functools import cache
from pathlib import Path

import psutil

from course_lib import CourseError

LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", ""}
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
QUIET_ENV = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
_blocked = False


def _guard(event: str, args: tuple) -> None:
    """Python's audit hook: told of every connection and every look-up before it is made."""
    if not _blocked or not event.startswith("socket."):
        return
    host = None
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        # A Unix socket's address is a path, not a pair, and never leaves the machine.
        host = args[1][0] if isinstance(args[1], tuple) else None
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in LOOPBACK or str(name).startswith("127."):
        return
    raise CourseError(
        f"Something tried to reach {name!r}, but the profile 'pocket' opens no network connection; "
        "everything it needs is in the checkout; use the profile 'laptop' or 'gpu' for hub models."
    )


@cache
def _listen() -> None:
    sys.addaudithook(_guard)  # once, and for as long as the process lives


def block_network() -> None:
    """Refuse every connection of this process except to itself (Jupyter's own ports).

    Raises (later, in the caller that tries to connect) `CourseError` with the host's name.
    """
    _listen()
    _set_blocked(True)
    os.environ.update(OFFLINE_ENV)


def allow_network() -> None:
    """Undo `block_network`."""
    _set_blocked(False)
    for name in OFFLINE_ENV:
        os.environ.pop(name, None)


def _set_blocked(blocked: bool) -> None:
    global _blocked
    _blocked = blocked
    # The hub client reads its environment once, at import: tell it where it came earlier.
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = blocked


def silence() -> None:
    """Hide notices and progress bars of libraries that say nothing to a student; errors stay."""
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*IProgress not found.*")
    # transformers to itself, when TRL asks whether activations are recomputed
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()


def available_memory_gb() -> float:
    """Memory that a new process can use, in GB: the machine's, or the container's limit."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:  # only where a container sets a limit; elsewhere the files are absent or say "max"
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        available = min(available, limit - used)
    except (OSError, ValueError):
        pass
    return available / 1e9
