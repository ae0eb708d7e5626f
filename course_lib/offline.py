"""What a run may reach and say: no network in the pocket profile, no noise from libraries."""

import logging
import os
import socket
import sys
import warnings
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
_ORIGINAL = {
    (socket, "create_connection"): socket.create_connection,
    (socket, "getaddrinfo"): socket.getaddrinfo,
    (socket, "gethostbyname"): socket.gethostbyname,
    (socket.socket, "connect"): socket.socket.connect,
    (socket.socket, "connect_ex"): socket.socket.connect_ex,
    (socket.socket, "sendto"): socket.socket.sendto,
}


def _check(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name in LOOPBACK or str(name).startswith("127."):
        return
    raise CourseError(
        f"Something tried to reach {name!r}, but the profile 'pocket' opens no network connection; "
        "everything it needs is in the checkout; use the profile 'laptop' or 'gpu' for hub models."
    )


def block_network() -> None:
    """Refuse every connection of this process except to itself (Jupyter's own ports).

    Raises (later, in the caller that tries to connect) `CourseError` with the host's name.
    """

    def guarded(call, host_of):
        def checked(*args, **kwargs):
            _check(host_of(*args, **kwargs))
            return call(*args, **kwargs)

        return checked

    def host_of_address(address: object, *_: object, **__: object) -> object:
        # A Unix socket's address is a path, not a pair, and never leaves the machine.
        return address[0] if isinstance(address, tuple) else None

    def last_is_address(_sock: object, *args: object) -> object:
        return host_of_address(args[-1])

    hosts = {
        "create_connection": host_of_address,
        "getaddrinfo": lambda host=None, *_, **__: host,
        "gethostbyname": lambda host: host,
    }
    for (owner, name), original in _ORIGINAL.items():
        setattr(owner, name, guarded(original, hosts.get(name, last_is_address)))
    os.environ.update(OFFLINE_ENV)
    _tell_hub(offline=True)


def allow_network() -> None:
    """Undo `block_network`."""
    for (owner, name), original in _ORIGINAL.items():
        setattr(owner, name, original)
    for name in OFFLINE_ENV:
        os.environ.pop(name, None)
    _tell_hub(offline=False)


def _tell_hub(offline: bool) -> None:
    """The hub client reads its environment once, at import: tell it where it came earlier."""
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = offline


def silence() -> None:
    """Hide notices and progress bars of libraries that say nothing to a student; errors stay."""
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
