"""Loading, making and saving models and tokenizers: pocket, local folder or hub; LoRA; 4-bit QLoRA.

Weights are read from safetensors only and `trust_remote_code` is never set. Heavy imports happen
inside the functions, so that the command line starts fast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_lib import ROOT, CourseError
from course_lib.inputs.examine import EMBEDDINGS, Shapes, base_of, examine, read_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")
MODELS = ROOT / "data" / "models"


def model_path(name: str) -> str:
    """The folder of `pocket/x` or of a local path; a hub id (`owner/name`) comes back as it is.

    Raises `CourseError` for a pocket model that is not there, or what can be neither.
    """
    if name.startswith("pocket/"):
        folder = MODELS / name.removeprefix("pocket/")
        if not (folder / "config.json").is_file():
            known = sorted(p.parent.name for p in MODELS.glob("*/config.json"))
            raise CourseError(
                f"The model {name!r} is not in {MODELS} (there: {', '.join(known) or 'none'}); "
                "choose one of these, or make it with `course pretrain`."
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CourseError(
            f"The model {name!r} is neither a folder that exists, nor a pocket model such as "
            "'pocket/m', nor a hub id such as 'HuggingFaceTB/SmolLM2-135M'; check the spelling."
        )
    return name


def _located(name: str) -> tuple[str, str | None, Shapes]:
    """Folder or hub id of a model, the folder of the adapter on it (or None), and the shapes of the
    model's weights, which are unknown ({}) on a hub; the folders are examined."""
    path = model_path(name)
    base = model_path(base_of(path))
    shapes = examine(Path(base)) if Path(base).is_dir() else {}
    if base == path:
        return base, None, shapes
    examine(Path(path))
    return base, path, shapes


def examine_model(name: str, revision: str | None = None) -> None:
    """Examine a model as a whole before any work: files, tokenizer, names and shapes of weights.

    Raises `CourseError` as `examine` and `check_chat` do, where a weight is missing, unknown or of
    another shape than the config says, and where the tokenizer has more ids than the model.
    """
    base, adapter, shapes = _located(name)
    most = max(load_tokenizer(name, revision).get_vocab().values())
    if not shapes:
        return  # a hub's model is seen when it is loaded
    model = meta_model(base)
    wanted = {n: tuple(p.shape) for n, p in model.named_parameters()}  # tied ones once
    spare = {n for n in shapes if n in model.state_dict() or n.endswith("rotary_emb.inv_freq")}
    _compare(base, shapes, wanted, spare)
    _check_ids(name, most, shapes[EMBEDDINGS][0])
    if adapter:
        _compare(adapter, examine(Path(adapter)), _adapter_shapes(model, adapter))


def _check_ids(name: str, most: int, rows: int) -> None:
    if most >= rows:
        raise CourseError(
            f"The tokenizer of {name!r} has ids up to {most}, and the model {rows} embeddings; "
            "give the tokenizer that it was trained with."
        )


def load_both(name: str, revision: str | None = None, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer), `options` as in `load_model`; the ids lie within the embeddings."""
    model = load_model(name, revision=revision, **options)
    tokenizer = load_tokenizer(name, revision)
    _check_ids(name, max(tokenizer.get_vocab().values()), model.config.vocab_size)
    return model, tokenizer


def _adapter_shapes(model: PreTrainedModel, folder: str) -> Shapes:
    """The weights that the adapter in `folder` needs on `model`, which is wrapped for it."""
    from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict

    try:
        model = PeftModelForCausalLM(model, PeftConfig.from_pretrained(folder))
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    except (ValueError, TypeError) as error:
        raise _hub_error(folder, error) from error
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def _compare(name: str, found: Shapes, wanted: Shapes, spare: Iterable[str] = ()) -> None:
    """Raise `CourseError` for weights that would be left out, or drawn at random."""
    both = set(found) & set(wanted)
    other = [f"{n}: {found[n]}, by the config {wanted[n]}" for n in both if found[n] != wanted[n]]
    faults = {"has unknown weights": set(found) - set(wanted) - set(spare)}
    faults |= {"lacks weights": set(wanted) - both, "has weights of another shape": other}
    for what, names in faults.items():
        if names:
            remedy = "copy the folder again, or correct its config (an adapter's: its base model)"
            if min(names).startswith(("_orig_mod.", "module.")):
                remedy = "save the model inside the wrapper: `model._orig_mod`, or `model.module`"
            raise CourseError(
                f"The model {name!r} {what} ({len(names)}, such as {min(names)!r}), which would be "
                f"left out or drawn at random; expected those of its architecture; {remedy}."
            )


def _check_finite(name: str, model: torch.nn.Module) -> None:
    for weight, values in model.named_parameters():
        if values.is_floating_point() and not values.isfinite().all():
            raise CourseError(
                f"The model {name!r} has values in {weight!r} that are not finite; its training "
                "diverged, or the file was damaged: give another."
            )


def _hub_error(name: str, error: Exception) -> CourseError:
    """A failure of the loader as a sentence, by the kinds of the errors behind it."""
    from huggingface_hub import errors

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and len(causes) < 20:
        causes.append(cause)
    offline = errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, CourseError
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        why = "is gated; accept its terms on its hub page and log in, or choose an ungated model"
    elif any(isinstance(cause, (*offline, ConnectionError, TimeoutError)) for cause in causes):
        why = "cannot be reached (no network?); the profile 'pocket' works offline"
    else:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = f"cannot be loaded (safetensors only); check the id and the revision ({line[:160]})"
    return CourseError(f"The model {name!r} {why}.")


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        name: `pocket/s|m|l|m-10|m-30`, a folder in the Hugging Face format (also one with a LoRA
            adapter as `save_model` writes it), or a hub id.
        dtype: torch dtype of the weights, e.g. "float32" or "bfloat16".
        device: "cpu", "cuda", ...; None leaves the CPU.
        revision: commit of a hub model.
        quantize: None, or "nf4" for bitsandbytes' 4-bit weights (for QLoRA).

    Raises:
        CourseError: no such model, gated, no network, not safetensors, weights that are missing,
            unknown or not finite, wrong `dtype` or `quantize`.
    """
    import torch

    if quantize not in (None, "nf4"):
        raise CourseError(f"quantize is {quantize!r}; expected None or 'nf4'.")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CourseError(f"dtype is {dtype!r}; expected 'float32', 'bfloat16' or 'float16'.")
    path, adapter, _ = _located(name)
    options = {"dtype": getattr(torch, dtype), "revision": revision}
    quantized = {"quantization_config": _nf4(getattr(torch, dtype))} if quantize else {}
    model = _read_weights("AutoModelForCausalLM", path, **options, **quantized)
    # On CPUs with AVX512-BF16 an eval-mode forward repacks 4-bit weights in place for inference;
    # gradients are then missing or wrong, even after .train(), and nothing says so.
    for layer in _layers_4bit(model).values():
        layer.support_avx512bf16_for_cpu = False
    if quantize and model.device.type == "cpu":
        _whole_blocks(model, path, options)
    if device and not quantize:
        model = model.to(device)
    if adapter:
        from peft import PeftModel

        _compare(adapter, examine(Path(adapter)), _adapter_shapes(meta_model(path), adapter))
        model = PeftModel.from_pretrained(model, adapter, torch_device=str(model.device))
        _check_finite(adapter, model)
        if not quantize:  # a model like any other, which can be trained on
            model = model.merge_and_unload().requires_grad_(True)
    return model.eval()


def _read(kind: str, path: str, revision: str | None = None, **options: Any) -> Any:
    """What one of transformers' auto classes makes of a folder or hub id: the one door."""
    import transformers

    options |= {"trust_remote_code": False, "local_files_only": Path(path).is_dir() or None}
    try:
        return getattr(transformers, kind).from_pretrained(
            path, revision=revision or "main", **options
        )
    except Exception as error:  # a damaged tokenizer.json raises no class of its own
        raise _hub_error(path, error) from error


def _read_weights(kind: str, path: str, **options: Any) -> PreTrainedModel:
    """A model, every weight of it from safetensors, none left out and none drawn."""
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, info = _read(kind, path, ignore_mismatched_sizes=True, **options)
    shapes = {key: (tuple(read), tuple(made)) for key, read, made in info["mismatched_keys"]}
    found = dict.fromkeys(info["unexpected_keys"], ()) | {k: v[0] for k, v in shapes.items()}
    wanted = dict.fromkeys(info["missing_keys"], ()) | {k: v[1] for k, v in shapes.items()}
    _compare(path, found, wanted)
    _check_finite(path, model)
    return model


def load_reward_model(folder: str | Path, device: str | None = None) -> torch.nn.Module:
    """Load what `save_model` wrote of a reward model, with its normalisation, in eval mode."""
    examine(Path(folder))
    model = _read_weights("AutoModelForSequenceClassification", str(folder), num_labels=1)
    return model.to(device or "cpu").eval()


def meta_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """A model by its config alone, of the same names and shapes: no weights, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from course_lib.algorithms.logprobs import check_architecture

    check_architecture(config := _read("AutoConfig", _located(name)[0], revision))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _nf4(dtype: torch.dtype):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _whole_blocks(model: PreTrainedModel, path: str, options: dict[str, Any]) -> None:
    """Quantize again, in blocks of 32, the layers whose width is no multiple of 64; in place.

    bitsandbytes 0.50 on a CPU reads such layers back wrongly where a block of weights (64 by
    default) goes over the end of a row: an error of a quarter of the weights in place of 9%.
    """
    import bitsandbytes

    odd = {n: layer for n, layer in _layers_4bit(model).items() if layer.in_features % 64}
    if not odd:
        return
    for layer in odd.values():
        if layer.in_features % 32:
            raise CourseError(
                f"The model {path!r} has layers of width {layer.in_features}; 4-bit weights on a "
                "CPU need multiples of 32; choose a model such as 'pocket/m', or quantize=None."
            )
    plain = _read_weights("AutoModelForCausalLM", path, **options)
    for name, layer in odd.items():
        weight = plain.get_submodule(name).weight.data
        layer.weight = bitsandbytes.nn.Params4bit(
            weight, blocksize=32, quant_type="nf4", module=layer
        ).to("cpu")


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `name`; give it a pad token and a chat template where it has none.

    An adapter's folder without a tokenizer takes that of its base model; of several chat templates
    the one named "default" is taken. The pad token may equal EOS: no mask in this library is ever
    made from the pad id. Raises `CourseError` where it cannot be read, or as `check_chat` does.
    """
    from course_lib.algorithms.chat import CHATML, PLAIN_CHAT, check_chat

    path = model_path(name)
    if not any((Path(path) / file).is_file() for file in TOKENIZER):
        path = model_path(base_of(path))
        if Path(path).is_dir():
            read_object(Path(path) / TOKENIZER[0])
    tokenizer = _read("AutoTokenizer", path, revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(templates := tokenizer.chat_template, dict):
        if "default" not in templates:
            raise CourseError(
                f"The tokenizer of {name!r} has the chat templates {', '.join(templates)} and none "
                "named 'default'; name the one to use so."
            )
        tokenizer.chat_template = templates["default"]
    if tokenizer.chat_template is None:
        vocab = tokenizer.get_vocab()
        has_chatml = "<|im_start|>" in vocab and "<|im_end|>" in vocab
        tokenizer.chat_template = CHATML if has_chatml else PLAIN_CHAT
    check_chat(tokenizer)
    return tokenizer


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    dtype: str | None = None,
) -> None:
    """Save weights (safetensors, cast to `dtype` if given) and tokenizer in `folder`.

    LoRA weights are merged into a copy first; over 4-bit weights, where merging would round again,
    the adapter alone is saved. `load_model(folder)` reads either.
    """
    import torch

    if hasattr(model, "merge_and_unload") and not _layers_4bit(model):
        model = copy.deepcopy(model).merge_and_unload()
    if dtype is not None:
        model = copy.deepcopy(model).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def add_lora(model: PreTrainedModel, r: int = 8, *, new_tokens: list[int] | None = None):
    """Freeze `model`, add LoRA matrices of rank `r` to its linear layers, scaled by alpha / r = 2.

    `new_tokens` are ids whose embeddings are trained as well: those of a chat's frame, which a base
    model has never read and LoRA on its linear layers cannot reach.
    Returns PEFT's wrapper. The LoRA weights are fp32, also over 4-bit weights.
    Source: Hu et al. 2021, arXiv:2106.09685; QLoRA: Dettmers et al. 2023, arXiv:2305.14314.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules="all-linear",
        trainable_token_indices=new_tokens or None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _layers_4bit(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers with 4-bit weights, by name; without importing bitsandbytes."""
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


def fold_temperature(model: PreTrainedModel, temperature: float) -> PreTrainedModel:
    """The model, its logits divided by `temperature` for good: it *is* the policy sampled so.

    The logits are linear in the weights of the last norm, which are divided in place. What comes
    after (sampler, log-probabilities, KL, gradients) then needs no temperature, and none can be
    forgotten in one place and not in another.
    """
    import torch

    from course_lib.algorithms.logprobs import backbone_and_head

    backbone, _ = backbone_and_head(model)
    with torch.no_grad():
        backbone.norm.weight /= temperature
    return model


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that no optimiser can move: the `reference`."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def num_parameters(model: torch.nn.Module, trainable: bool = False) -> int:
    """Number of parameters (tied ones once; 4-bit weights by what they stand for)."""
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad or not trainable:
            shape = getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape)
            total += shape.numel()
    return total


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of memory that the weights take (4-bit weights with their scales)."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for tensor in (getattr(part, "absmax", None), getattr(part, "code", None)):
                total += tensor.numel() * tensor.element_size() if tensor is not None else 0
    return total
