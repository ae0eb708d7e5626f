"""What this machine is and how fast it multiplies: the yardstick of every speed in the course."""

import ctypes
import os
import platform
import time
from importlib.metadata import version

import psutil


def matmul_peak(dtype: str = "float32", seconds: float = 1.0) -> float:
    """Measured matrix-product peak in FLOP/s with torch's current thread count.

    The best of three shapes of the sizes that the pocket models multiply: a peak that training
    could reach, not the processor's data sheet.
    """
    import torch

    best = 0.0
    for rows, inner, columns in ((8192, 256, 704), (4096, 1024, 1024), (8192, 256, 2048)):
        a = torch.randn(rows, inner).to(getattr(torch, dtype))
        b = torch.randn(inner, columns).to(getattr(torch, dtype))
        a @ b
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 3:
            a @ b
            runs += 1
        best = max(best, 2 * rows * inner * columns * runs / (time.perf_counter() - start))
    return best


def bf16_pays() -> bool:
    """Whether this CPU has instructions for bf16 products: a fact, so that runs repeat."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor; elsewhere nothing is done.

    By default blocks of some MB, the size of a small model's activations, go back to the system
    when they are freed and come again page by page: a sixth of the time of a training on two cores
    of a virtual machine, and no less memory at the peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    mallopt(mmap_threshold, 2**25)  # the largest that every version takes
    mallopt(trim_threshold, 2**31 - 1)


def peak_memory_gb() -> float:
    """Peak resident memory of this process in GB (current memory where the peak is not known)."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset / 1e9
    try:
        import resource
    except ImportError:
        return info.rss / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if platform.system() == "Darwin" else peak * 1024 / 1e9


def describe() -> dict[str, str]:
    """Processor, cores, memory and the versions that results depend on."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        "torch": torch.__version__.split("+")[0],
        "transformers": version("transformers"),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
