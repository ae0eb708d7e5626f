"""SFT: the loss is TRL's, masks decide what is learned, batching changes nothing."""

import math
import random

import numpy as np
import pytest
import torch
from tiny import CHAT, tiny, tiny_folder

from course_lib import CourseError
from course_lib.algorithms.chat import collate, render_chat
from course_lib.algorithms.loop import schedule
from course_lib.algorithms.sft import SFTConfig, document_losses, evaluate_sft, sft_step, train_sft
from course_lib.inputs.models import add_lora, load_model, num_parameters


def chat_rows(tokenizer, n=16):
    rng = random.Random(0)
    words = ["moon", "rocket", "pens", "days", "euros", "answer", "problem", "question", "help"]
    rows = []
    for _ in range(n):
        question, answer = (" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in "qa")
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        rows.append(render_chat(tokenizer, messages + CHAT[1:] * rng.randint(0, 1)))
    return rows


def config(**more):
    return SFTConfig(**{"learning_rate": 3e-3, "batch_size": 4, "num_steps": 6, "warmup": 0} | more)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_loss_and_gradients_are_those_of_trl(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    model, tokenizer = tiny()
    rows = chat_rows(tokenizer, 4)
    args = TRLConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        completion_only_loss=True,
        report_to=[],
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        load_model(str(tiny_folder())),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    ours, _ = sft_step(model, collate(rows, tokenizer.pad_token_id))
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    other = gradients(trainer.model)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-4)


def test_batch_4_is_one_row_with_accumulation_4():
    results = []
    for more in ({"batch_size": 4}, {"batch_size": 1, "gradient_accumulation_steps": 4}):
        model, tokenizer = tiny()
        history = train_sft(model, chat_rows(tokenizer), config(**more))
        results.append(([row["loss"] for row in history], weights(model)))
    (losses, whole), (losses_4, parts) = results
    assert losses == pytest.approx(losses_4, abs=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=1e-3)


def test_same_seed_same_bits_and_other_seed_other_order():
    runs = []
    for seed in (0, 0, 1):
        model, tokenizer = tiny()
        history = train_sft(model, chat_rows(tokenizer), config(seed=seed))
        runs.append(([row["loss"] for row in history], weights(model)))
    assert runs[0][0] == runs[1][0] and runs[0][0] != runs[2][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_it_learns_and_reports(shape):
    model, tokenizer = tiny()
    rows, seen = chat_rows(tokenizer), []
    before = evaluate_sft(model, rows)
    history = train_sft(model, rows, config(num_steps=30, schedule=shape, warmup=0.1), seen.append)
    after = evaluate_sft(model, rows)
    assert after["loss"] < before["loss"] - 1 and seen == history
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert after["num_tokens"] == sum(sum(row["completion_mask"]) for row in rows)
    assert np.mean([row["loss"] for row in history[-3:]]) < history[0]["loss"] - 0.3
    assert [row["step"] for row in history] == list(range(1, 31)) and not model.training


def test_epochs_count_optimiser_steps():
    model, tokenizer = tiny()
    rows = chat_rows(tokenizer, 16)
    more = {"num_steps": None, "num_epochs": 1.5, "gradient_accumulation_steps": 2}
    assert len(train_sft(model, rows, config(**more))) == 3


def test_prompt_tokens_are_learned_only_when_asked():
    tokenizer = tiny()[1]
    rows = chat_rows(tokenizer)
    garbled = [
        {
            "input_ids": [
                i if m else 9 for i, m in zip(r["input_ids"], r["completion_mask"], strict=True)
            ],
            "completion_mask": r["completion_mask"],
        }
        for r in rows
    ]
    masked = evaluate_sft(tiny()[0], rows)
    whole = evaluate_sft(tiny()[0], rows, mask_prompt=False)
    assert whole["num_tokens"] == sum(len(row["input_ids"]) - 1 for row in rows)
    assert masked["num_tokens"] < whole["num_tokens"]
    # What is masked is read but not learned.
    assert evaluate_sft(tiny()[0], garbled)["num_tokens"] == masked["num_tokens"]


def test_only_seen_ids_move_an_untied_output():
    """With prompts masked, an id that is only in prompts gets no pull upwards as a next token."""
    model, tokenizer = tiny()
    row = {"input_ids": [10, 11, 12, 13, 2], "completion_mask": [0, 0, 0, 1, 1]}
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    loss, _ = sft_step(model, collate([row], tokenizer.pad_token_id))
    loss.backward()
    states = model.lm_head.weight.grad
    # The gradient of an output row is sum over learned positions of (p - 1[target]) * hidden:
    # steps of plain descent raise the targets' logits there, and lower everybody else's.
    with torch.no_grad():
        hidden = model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0]
        pull = -(hidden[2:4] @ states.T)  # at the two positions that predict 13 and 2
    assert pull[0, 13] > 0 and pull[1, 2] > 0
    assert pull[0, 11] < 0 and pull[0, tokenizer.pad_token_id] < 0


def test_schedules():
    cosine = [schedule(s, 100, 0.1) for s in range(1, 101)]
    assert cosine[0] == pytest.approx(0.1) and cosine[9] == cosine[10] == 1.0
    assert 0 < cosine[-1] < 0.001 and cosine[10:] == sorted(cosine[10:], reverse=True)
    assert [schedule(s, 4, shape="linear") for s in range(1, 5)] == [1, 0.75, 0.5, 0.25]
    with pytest.raises(CourseError, match="'cosin'"):
        schedule(50, 100, shape="cosin")


def test_non_finite_loss_stops_names_the_step_and_keeps_good_weights():
    model, tokenizer = tiny()
    rows = chat_rows(tokenizer)
    start = evaluate_sft(model, rows)["loss"]
    with pytest.raises(CourseError, match=r"at step [2-9]\d* .*learning_rate \(now 1e\+20\)"):
        train_sft(model, rows, config(learning_rate=1e20, num_steps=30, schedule="constant"))
    assert all(p.isfinite().all() for p in model.parameters())
    assert math.isfinite(evaluate_sft(model, rows)["loss"]) and math.isfinite(start)
    assert not model.training


def test_rows_without_anything_to_learn_are_an_error():
    model, tokenizer = tiny()
    with pytest.raises(CourseError, match="max_length=3"):
        train_sft(model, chat_rows(tokenizer), config(max_length=3))


def test_documents_by_hand():
    model, tokenizer = tiny()
    texts = ["The moon landing.", "Pens and days, 13 euros."]
    sums, counts = document_losses(model, tokenizer, texts)
    ids = torch.tensor([[0, *tokenizer(texts[0])["input_ids"], 0]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert sums[0] / counts[0] == pytest.approx(expected, abs=1e-5)


def test_bf16_autocast_and_checkpointing_learn_alike():
    losses = {}
    for name, more in {
        "fp32": {},
        "bf16": {"dtype": "bfloat16"},
        "checkpointing": {"gradient_checkpointing": True},
    }.items():
        model, tokenizer = tiny()
        history = train_sft(model, chat_rows(tokenizer), config(**more))
        losses[name] = [row["loss"] for row in history]
        assert next(model.parameters()).dtype == torch.float32
        assert not model.is_activation_checkpointing
    assert losses["checkpointing"] == pytest.approx(losses["fp32"], abs=1e-5)
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)


def test_lora_moves_only_its_own_weights():
    model, tokenizer = tiny()
    model = add_lora(model, r=2)
    before = weights(model)
    assert 0 < num_parameters(model, trainable=True) < 0.2 * num_parameters(model)
    more = {"gradient_checkpointing": True, "learning_rate": 0.02, "num_steps": 20}
    history = train_sft(model, chat_rows(tokenizer), config(**more))
    assert np.mean([row["loss"] for row in history[-3:]]) < history[0]["loss"] - 0.3
    for name, weight in weights(model).items():
        assert torch.equal(weight, before[name]) == ("lora" not in name), name


def test_qlora_gradients_after_an_evaluation_equal_those_before():
    """bitsandbytes repacks 4-bit weights in eval mode on AVX512-BF16; gradients then go wrong."""
    # "smollm2": its sizes are multiples of 32, which repacking needs.
    model = add_lora(load_model(str(tiny_folder("smollm2")), quantize="nf4"), r=4)
    tokenizer = tiny()[1]
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)  # zero at first: then lora_A would have no gradient
    rows = chat_rows(tokenizer)
    batch = collate(rows[:4], tokenizer.pad_token_id)

    def grads():
        model.train()
        model.zero_grad()
        sft_step(model, batch)[0].backward()
        return gradients(model)

    before = grads()
    evaluate_sft(model, rows)
    after = grads()
    assert before.keys() == after.keys() and len(before) >= 14
    for name in before:
        assert before[name].abs().sum() > 0
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-4)
    history = train_sft(model, rows, config(learning_rate=0.02, num_steps=20))
    assert np.mean([row["loss"] for row in history[-3:]]) < history[0]["loss"] - 0.3
