"""Loading, saving, sizes, tokenizer, LoRA and 4-bit weights."""

import pytest
import torch
from course_runs import real_files
from huggingface_hub import errors
from tiny import tiny, tiny_folder

from course_lib import CourseError
from course_lib.algorithms.chat import complete
from course_lib.inputs import models
from course_lib.inputs.models import (
    add_lora,
    fold_temperature,
    frozen_copy,
    load_model,
    load_tokenizer,
    model_bytes,
    num_parameters,
    save_model,
)
from course_lib.pretraining.pocket import (
    POCKET_SIZES,
    SPECIAL_TOKENS,
    pocket_config,
    train_tokenizer,
)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]])).logits


def test_the_family_has_the_sizes_it_is_sold_with():
    from transformers import LlamaForCausalLM

    sizes = {}
    for size in POCKET_SIZES:
        with torch.device("meta"):
            model = LlamaForCausalLM(pocket_config(size))
            model.tie_weights()
        sizes[size] = num_parameters(model) / 1e6
    assert sizes == pytest.approx({"s": 0.4, "m": 1.6, "l": 6.1}, rel=0.05)
    with pytest.raises(CourseError, match="'xl'"):
        pocket_config("xl")


def test_tokenizer_is_lossless_with_single_digits_and_fixed_special_ids(tmp_path):
    tokenizer = train_tokenizer(["the cat sat 12 times"] * 9, tmp_path, vocab_size=300)
    again = load_tokenizer(str(tiny_folder()))
    for text in ("In 2026, 3.5 % of cafés\n\n\tclosed 🙂!", "  spaces  "):
        for each in (tokenizer, again):
            assert each.decode(each(text)["input_ids"]) == text
    pieces = tokenizer.tokenize("in 1969")
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("1969")
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3]
    assert again.eos_token_id == 0 and again.pad_token_id == 3 != again.eos_token_id
    assert len(tokenizer("<|im_start|>user<|im_end|>")["input_ids"]) >= 3


@pytest.mark.parametrize("kind", ["llama", "smollm2", "qwen3"])
def test_architectures_load_by_path_and_survive_saving(kind, tmp_path):
    model, tokenizer = tiny(kind)
    assert not model.training and model.dtype == torch.float32
    save_model(model, tokenizer, tmp_path, dtype="bfloat16")
    assert model.dtype == torch.float32  # the caller's own model is not cast
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names and not any(n.endswith((".bin", ".pt")) for n in names)
    again = load_model(str(tmp_path))
    assert again.dtype == torch.float32
    torch.testing.assert_close(logits(again), logits(model), atol=0.2, rtol=0.1)
    assert load_tokenizer(str(tmp_path)).chat_template == tokenizer.chat_template


def test_lora_is_merged_on_saving_and_the_original_is_left_alone(tmp_path):
    model, tokenizer = tiny()
    model = add_lora(model, r=2)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    save_model(model, tokenizer, tmp_path)
    assert hasattr(model, "merge_and_unload")
    torch.testing.assert_close(logits(load_model(str(tmp_path))), logits(model), atol=1e-4, rtol=0)


def test_nf4_is_small_and_its_adapter_is_saved_and_found_again(tmp_path):
    model = load_model(str(tiny_folder("smollm2")), quantize="nf4")
    full, tokenizer = tiny("smollm2")
    assert num_parameters(model) == num_parameters(full)
    assert model_bytes(model) < 0.75 * model_bytes(full)  # embeddings stay as they were
    model = add_lora(model, r=2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
            assert weight.dtype == torch.float32
    save_model(model, tokenizer, tmp_path)
    again = load_model(str(tmp_path), quantize="nf4")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=0)


def test_frozen_copy_never_moves():
    model, _ = tiny()
    reference = frozen_copy(model)
    assert num_parameters(reference, trainable=True) == 0
    before = logits(reference)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert torch.equal(logits(reference), before)


@pytest.mark.parametrize(
    "name, message",
    [
        ("pocket/xxl", "pocket/xxl.*course pretrain"),
        ("./no/such/folder", "no/such/folder.*check the spelling"),
        ("nonsense", "'nonsense'.*check the spelling"),
    ],
)
def test_wrong_names_say_what_to_do(name, message):
    for load in (load_model, load_tokenizer):
        with pytest.raises(CourseError, match=message):
            load(name)


def test_folder_without_model_or_without_safetensors(tmp_path):
    with pytest.raises(CourseError, match=r"config\.json"):
        load_model(str(tmp_path))
    model, tokenizer = tiny()
    save_model(model, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CourseError, match="safetensors"):
        load_model(str(tmp_path))


def test_wrong_dtype_and_quantize():
    with pytest.raises(CourseError, match="'float31'"):
        load_model(str(tiny_folder()), dtype="float31")
    with pytest.raises(CourseError, match="'int8'"):
        load_model(str(tiny_folder()), quantize="int8")


def test_hub_errors_are_told_apart_by_what_they_are_and_not_by_their_words():
    cases = {
        errors.GatedRepoError.__new__(errors.GatedRepoError): "ungated",
        errors.OfflineModeIsEnabled("x"): "offline",
        ConnectionError("x"): "offline",
        ValueError("401 gated connect"): "revision",
    }
    for cause, word in cases.items():
        error = OSError("what the loader makes of it")
        error.__cause__ = cause
        assert word in str(models._hub_error("a/b", error))


@pytest.mark.parametrize("name", ["babyllama105", "stories260k"])
def test_real_pretrained_weights(name):
    folder = str(real_files("models") / name)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    text = complete(model, tokenizer, ["Once upon a time"], max_new_tokens=40, temperature=0.0)[0]
    assert "there was a" in text, text


def test_a_folded_temperature_divides_the_logits():
    for kind in ("llama", "qwen3"):
        model = load_model(str(tiny_folder(kind)))
        before = logits(model)
        assert fold_temperature(model, 0.7) is model
        torch.testing.assert_close(logits(model), before / 0.7)
