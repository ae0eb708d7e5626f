"""The thin library behind the post-training course: losses, loops, a world whose truth is known."""

import logging
import os
from pathlib import Path

# On some CPUs bitsandbytes tells whoever imports it, which may be transformers, what it lacks.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"

ROOT = Path(__file__).resolve().parent.parent

# A relative folder is meant from where the user stands; a notebook works in another one.
for _name in ("BUILD", "CACHE", "DATA", "DATA_BASE", "FIGURES", "NOTEBOOKS"):
    if (_value := os.environ.get(f"COURSE_{_name}")) and "://" not in _value:
        os.environ[f"COURSE_{_name}"] = str(Path(_value).expanduser().absolute())


class CourseError(Exception):
    """An error a user can mend: one sentence with the value, what was expected, what to do."""


def check_checkout() -> None:
    """Raise `CourseError` where the package was installed without its checkout."""
    if not (ROOT / "data" / "world").is_dir():
        raise CourseError(
            f"The course's checkout is missing: {ROOT} holds no data/world folder; clone the "
            "repository and install it from there with `pip install -e .`."
        )
