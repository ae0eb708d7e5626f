"""Tiny random models of the true architectures, saved to disk once and loaded by path."""

import functools
import tempfile
from pathlib import Path

import pytest
import torch

from course_lib.inputs.models import load_model, load_tokenizer
from course_lib.pretraining.pocket import pocket_config, train_tokenizer

_FOLDER = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
TEXT = [
    "Explain the moon landing to a six-year-old. The rocket flew for 4 days, 13 hours.",
    "Question? Answer: A B C D. Problem: Ada buys 12 pens at 3 euros. Solution: 36.",
    "user assistant system tool <calc>37 * 46</calc> 1702 I cannot help with that.",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 37 * 46?"},
    {"role": "assistant", "content": "<calc>37 * 46</calc>"},
    {"role": "tool", "content": "1702"},
    {"role": "assistant", "content": "37 * 46 is 1702."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome."},
]

# In the manner of SmolLM2's template: a default system prompt, no generation markers.
SMOL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Qwen3's: tool turns inside a user turn, an empty <think> in the last answer only.
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message['content'] }}"
    "{{ '\n</tool_response><|im_end|>\n' }}"
    "{% elif message['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@functools.cache
def tiny_folder(kind: str = "llama") -> Path:
    """A saved model: "llama" (as the pocket family), "smollm2" (grouped heads) or "qwen3"."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    folder = Path(_FOLDER.name) / kind
    tokenizer = train_tokenizer(TEXT * 4, folder, vocab_size=400)
    torch.manual_seed(0)
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 3,
    }
    if kind == "llama":
        config = pocket_config("s", len(tokenizer))
        config.num_hidden_layers = 2
        model = LlamaForCausalLM(config)
    elif kind == "smollm2":
        model = LlamaForCausalLM(LlamaConfig(**shared, head_dim=8, rope_theta=100_000.0))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=16))
    # Random weights of a trained size, so that what the model says depends on what it reads.
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            weight.data.normal_(std=0.3 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def tiny(kind: str = "llama"):
    """A fresh (model, tokenizer)."""
    folder = str(tiny_folder(kind))
    return load_model(folder), load_tokenizer(folder)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def assert_batches_and_seeds_agree(train) -> None:
    """Batch 4 is 1 x accumulation 4, and one seed gives one result to the bit.

    `train(**changes)` trains a fresh model with batches of 4 and returns (history, model).
    """
    results = []
    for more in ({}, {"batch_size": 1, "gradient_accumulation_steps": 4}, {}):
        history, model = train(**more)
        results.append(([row["loss"] for row in history], weights(model)))
    (losses, whole), (losses_1, parts), (again, same) = results
    assert losses == pytest.approx(losses_1, abs=1e-5) and losses == again
    for name in whole:
        assert torch.equal(whole[name], same[name])
        torch.testing.assert_close(whole[name], parts[name], atol=1e-3, rtol=1e-3)
