"""A model folder before anything of it is loaded: what its files say of themselves.

`models.examine_model` holds this against the architecture and the tokenizer. Nothing here imports
torch, reads weights or runs code.
"""

import json
from pathlib import Path
from typing import Any

from course_lib import CourseError
from course_lib.algorithms import ARCHITECTURES

Shapes = dict[str, tuple[int, ...]]  # by the name of a weight
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
EMBEDDINGS = "model.embed_tokens.weight"


def examine(folder: Path) -> Shapes:
    """The shapes of the weights in the folder of a model, or of a LoRA adapter.

    Raises:
        CourseError: another architecture or kind of adapter, code in the folder, a file that cannot
            be read, weights that are missing, pickled or not whole.
    """
    adapter = (folder / "adapter_config.json").is_file()
    config = read_object(folder / ("adapter_config.json" if adapter else "config.json"))
    key, known = ("peft_type", ("LORA",)) if adapter else ("model_type", ARCHITECTURES)
    if config.get(key) not in known:
        raise CourseError(
            f"The model folder {folder} is of type {config.get(key)!r}; expected one of "
            f"{', '.join(known)}{'' if adapter else ', such as SmolLM2 or Qwen3'}."
        )
    if (folder / "tokenizer_config.json").is_file():
        read_object(folder / "tokenizer_config.json")
    return weight_shapes(folder, ADAPTER if adapter else WEIGHTS)


def base_of(name: str) -> str:
    """The base model that the adapter in the folder `name` was trained on; of a model, itself."""
    file = Path(name) / "adapter_config.json"
    if not file.is_file():
        return name
    if base := read_object(file).get("base_model_name_or_path"):
        return str(base)
    raise CourseError(f"The file {file} names no base_model_name_or_path; add its base model.")


def read_object(path: Path) -> dict[str, Any]:
    """What a folder's JSON file says; it may name no code (`auto_map`)."""
    if not path.is_file():
        raise CourseError(
            f"The model folder {path.parent} has no {path.name}; give a folder that "
            "`save_pretrained` wrote for model and tokenizer."
        )
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CourseError(f"The file {path} is no JSON object ({error}); restore it.") from None
    if "auto_map" in found:
        raise CourseError(
            f"The file {path} names code of its own (auto_map), which is never run; expected a "
            f"model of {', '.join(ARCHITECTURES)} without code."
        )
    return found


def weight_shapes(folder: Path, name: str = WEIGHTS) -> Shapes:
    """Names and shapes of the weights, from the headers of all files that an index names."""
    index, parts = folder / f"{name}.index.json", {}
    if index.is_file() and not (folder / name).is_file():
        parts = read_object(index).get("weight_map") or {}
    shapes = {}
    for file in sorted(set(parts.values())) or [name]:
        if not (folder / file).is_file():
            pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"))]
            why = f" ({pickles[0]} is a pickle, which is never read)" if pickles else ""
            raise CourseError(
                f"The model folder {folder} has no {file}{why}; give a folder with all its weights "
                "as safetensors, as `save_pretrained` writes them."
            )
        shapes |= read_header(folder / file)
    if lost := sorted(set(parts) - set(shapes)):
        raise CourseError(
            f"The file {parts[lost[0]]} in {folder} lacks the weight {lost[0]!r} that {index.name} "
            "says it has; copy the folder again."
        )
    return shapes


def read_header(path: Path) -> Shapes:
    """Names and shapes in a safetensors file, whose header also says how long it has to be."""
    size, why = path.stat().st_size, "its header cannot be read"
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise CourseError(
                f"The file {path} is a pointer of Git LFS in place of the weights; fetch them with "
                "`git lfs pull`."
            )
        try:
            header = json.loads(file.read(min(length, size)))
            header.pop("__metadata__", None)
            wanted = (
                8 + length + max((row["data_offsets"][1] for row in header.values()), default=0)
            )
            shapes = {name: tuple(row["shape"]) for name, row in header.items()}
            if wanted == size:
                return shapes
            why = f"it has {size:,} bytes, and its header speaks of {wanted:,}"
        except (ValueError, TypeError, LookupError, AttributeError):
            pass
    raise CourseError(f"The weights {path} are not whole ({why}); download or copy them again.")
