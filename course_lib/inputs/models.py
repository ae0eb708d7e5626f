"""Loading, making and saving models and tokenizers: pocket, local folder or hub; LoRA; 4-bit QLoRA.

Weights are read from safetensors only and `trust_remote_code` is never set. Heavy imports happen
inside the functions, so that the command line starts fast.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_lib import ROOT, CourseError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = ROOT / "data" / "models"
# ChatML. The generation markers say what the assistant wrote, its end of turn included.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# For a base tokenizer that has neither a template nor ChatML's tokens: plain words and its own EOS.
PLAIN_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant: "
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['role'].capitalize() + ': ' + message['content'] }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def model_path(name: str) -> str:
    """The folder of `pocket/x` or of a local path; a hub id (`owner/name`) comes back as it is.

    Raises `CourseError` for a pocket model that is not there or a folder that holds no model.
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
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise CourseError(
                f"The model folder {name!r} has no config.json; give a folder in the Hugging Face "
                "format (config.json, model.safetensors, tokenizer.json)."
            )
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise CourseError(
            f"The model {name!r} is neither a folder that exists, nor a pocket model such as "
            "'pocket/m', nor a hub id such as 'HuggingFaceTB/SmolLM2-135M'; check the spelling."
        )
    return name


def _hub_error(name: str, error: Exception) -> CourseError:
    text = str(error)
    if "gated" in text or "401" in text or "403" in text:
        why = "is gated; accept its terms on its hub page and log in, or choose an ungated model"
    elif "safetensors" in text:
        why = "has no model.safetensors, and pickle is not read; convert it, or choose another"
    elif "connect" in text.lower() or "offline" in text.lower() or "resolve" in text.lower():
        why = "cannot be reached (no network?); the profile 'pocket' works offline"
    else:
        why = f"cannot be loaded; check the id and the revision ({text.splitlines()[0][:160]})"
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
        CourseError: no such model, gated, no network, not safetensors, wrong `dtype` or `quantize`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if quantize not in (None, "nf4"):
        raise CourseError(f"quantize is {quantize!r}; expected None or 'nf4'.")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise CourseError(f"dtype is {dtype!r}; expected 'float32', 'bfloat16' or 'float16'.")
    path = model_path(name)
    if (Path(path) / "adapter_config.json").is_file():
        return _load_adapter(path, dtype=dtype, device=device, quantize=quantize)
    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
    if quantize:
        options["quantization_config"] = _nf4(getattr(torch, dtype))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, revision=revision or "main", local_files_only=path != name or None, **options
        )
    except (OSError, ValueError) as error:
        raise _hub_error(name, error) from error
    # On CPUs with AVX512-BF16 an eval-mode forward repacks 4-bit weights in place for inference;
    # gradients are then missing or wrong, even after .train(), and nothing says so.
    for layer in _layers_4bit(model).values():
        layer.support_avx512bf16_for_cpu = False
    if quantize and model.device.type == "cpu":
        _whole_blocks(model, path, options)
    if device and not quantize:
        model = model.to(device)
    return model.eval()


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
    from transformers import AutoModelForCausalLM

    odd = {n: layer for n, layer in _layers_4bit(model).items() if layer.in_features % 64}
    if not odd:
        return
    for layer in odd.values():
        if layer.in_features % 32:
            raise CourseError(
                f"The model {path!r} has layers of width {layer.in_features}; 4-bit weights on a "
                "CPU need multiples of 32; choose a model such as 'pocket/m', or quantize=None."
            )
    options = options | {"quantization_config": None}
    plain = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
    for name, layer in odd.items():
        weight = plain.get_submodule(name).weight.data
        layer.weight = bitsandbytes.nn.Params4bit(
            weight, blocksize=32, quant_type="nf4", module=layer
        ).to("cpu")


def _load_adapter(path: str, **options: Any):
    """The base model that the adapter in `path` names, with the adapter."""
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    return PeftModel.from_pretrained(load_model(base, **options), path).eval()


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `name`; give it a pad token and a chat template where it has none.

    The pad token may then equal EOS: no mask in this library is ever made from the pad id.
    """
    from transformers import AutoTokenizer

    path = model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _hub_error(name, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        vocab = tokenizer.get_vocab()
        has_chatml = "<|im_start|>" in vocab and "<|im_end|>" in vocab
        tokenizer.chat_template = CHATML if has_chatml else PLAIN_CHAT
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
