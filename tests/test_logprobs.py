"""The one shift, padding on either side, and what the masks do."""

import pytest
import torch
from tiny import CHAT, tiny

from course_lib import CourseError
from course_lib.algorithms import logprobs
from course_lib.algorithms.chat import collate, render_chat
from course_lib.algorithms.logprobs import (
    hidden_states,
    last_states,
    sequence_logps,
    shift_mask,
    token_logprobs,
)
from course_lib.algorithms.losses import sft_loss
from course_lib.inputs.models import add_lora

KINDS = ["llama", "smollm2", "qwen3"]


def make_batch(tokenizer, side="right"):
    rows = [render_chat(tokenizer, CHAT), render_chat(tokenizer, CHAT[1:3])]
    return rows, collate(rows, tokenizer.pad_token_id, side)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_forward(kind):
    model, tokenizer = tiny(kind)
    ids = torch.tensor([render_chat(tokenizer, CHAT)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits / 0.7
        ours = token_logprobs(model, ids, temperature=0.7)
    for t in range(ids.shape[1] - 1):  # by hand: the output at t scores the token at t + 1
        expected = logits[0, t].log_softmax(-1)[ids[0, t + 1]]
        assert abs(ours[0, t] - expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_left_and_right_padding_agree(kind):
    model, tokenizer = tiny(kind)
    sums = []
    for side in ("right", "left"):
        _, batch = make_batch(tokenizer, side)
        mask = batch["completion_mask"]
        with torch.no_grad():
            logps = token_logprobs(model, batch["input_ids"], batch["attention_mask"], mask)
        sums.append(sequence_logps(logps, shift_mask(mask)))
    torch.testing.assert_close(*sums, atol=1e-4, rtol=1e-5)


def test_mask_changes_nothing_but_zeros_elsewhere():
    model, tokenizer = tiny()
    _, batch = make_batch(tokenizer)
    mask = batch["completion_mask"]
    with torch.no_grad():
        whole = token_logprobs(model, batch["input_ids"])
        part = token_logprobs(model, batch["input_ids"], mask=mask)
    wanted = shift_mask(mask)
    torch.testing.assert_close(part[wanted], whole[wanted])
    assert (part[~wanted] == 0).all()


def test_masked_tokens_get_no_gradient_and_the_end_of_turn_does():
    model, tokenizer = tiny()
    _, batch = make_batch(tokenizer)
    logprobs = token_logprobs(model, batch["input_ids"])
    logprobs.retain_grad()
    loss, _ = sft_loss(logprobs, shift_mask(batch["completion_mask"]))
    loss.backward()
    learned = shift_mask(batch["completion_mask"])
    assert (logprobs.grad[~learned] == 0).all() and (logprobs.grad[learned] != 0).all()
    ends = (batch["input_ids"] == tokenizer.convert_tokens_to_ids("<|im_end|>"))[:, 1:]
    assert ends[learned].any() and (logprobs.grad[ends & learned] != 0).all()
    pads = batch["attention_mask"][:, 1:] == 0
    assert pads.any() and (logprobs.grad[pads] == 0).all()


def test_blocks_of_logits_give_the_same_values_and_gradients(monkeypatch):
    model, tokenizer = tiny()
    _, batch = make_batch(tokenizer)
    grads = []
    for limit in (2**28, 7 * model.config.vocab_size):
        monkeypatch.setattr(logprobs, "MAX_LOGITS", limit)
        model.zero_grad()
        loss = token_logprobs(model, batch["input_ids"], mask=batch["completion_mask"]).sum()
        loss.backward()
        grads.append((loss.detach(), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_sft_loss_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -float("inf")], [-4.0, -8.0, -16.0]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])
    loss, metrics = sft_loss(logprobs, mask)
    assert loss.item() == pytest.approx(19 / 3) and metrics["num_tokens"] == 3
    part, metrics = sft_loss(logprobs[:1], mask[:1], num_items=3)
    assert part.item() == pytest.approx(1.0) and metrics["loss"].item() == pytest.approx(1.5)
    assert sft_loss(logprobs, mask * 0)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True])
def test_the_last_state_alone_is_the_same_with_the_same_gradients(kind, lora):
    model, tokenizer = tiny(kind)
    torch.manual_seed(0)
    model = add_lora(model, r=2) if lora else model
    _, batch = make_batch(tokenizer)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    last = mask.sum(-1) - 1
    assert last.tolist() != [ids.shape[1] - 1] * len(ids)  # one row has pads
    whole = hidden_states(model, ids)[torch.arange(len(ids)), last]
    found, gradients = [], []
    for states in (whole, last_states(model, ids, mask)):
        model.zero_grad()
        (states * torch.linspace(-1, 1, states.shape[-1])).mean().backward()
        found.append(states.detach())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)
    model.set_attn_implementation("eager")  # would see the future
    with pytest.raises(CourseError, match="sdpa"):
        last_states(model, ids, mask)
