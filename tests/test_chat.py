"""Masks first: what is learned, what is not, under every template; batches; tools."""

import random

import pytest
import torch
from tiny import CHAT, QWEN_TEMPLATE, SMOL_TEMPLATE, tiny

from course_lib import CourseError
from course_lib.algorithms import chat
from course_lib.algorithms.chat import (
    PLAIN_CHAT,
    batches,
    collate,
    end_of_turn,
    render_chat,
    render_prompt,
    render_text,
    run_conversation,
    show_tokens,
    stop_ids,
)

LEARNED = [
    "<calc>37 * 46</calc><|im_end|>",
    "37 * 46 is 1702.<|im_end|>",
    "You are welcome.<|im_end|>",
]


def learned_pieces(tokenizer, row):
    """The stretches of text under the mask."""
    pieces, previous = [], 0
    for token, mask in zip(row["input_ids"], row["completion_mask"], strict=True):
        if mask and not previous:
            pieces.append([])
        if mask:
            pieces[-1].append(token)
        previous = mask
    return [tokenizer.decode(piece) for piece in pieces]


@pytest.mark.parametrize("template", [None, SMOL_TEMPLATE, QWEN_TEMPLATE])
def test_every_assistant_turn_with_its_end_is_learned_and_nothing_else(template):
    _, tokenizer = tiny()
    if template:
        tokenizer.chat_template = template
    row = render_chat(tokenizer, CHAT)
    assert learned_pieces(tokenizer, row) == LEARNED


def test_markers_and_prefix_differences_give_the_same_mask():
    _, tokenizer = tiny()
    marked = render_chat(tokenizer, CHAT)
    template = tokenizer.chat_template
    tokenizer.chat_template = template.replace("{% generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    assert tokenizer.chat_template != template
    assert render_chat(tokenizer, CHAT) == marked


def test_the_same_content_twice_is_masked_in_its_place():
    _, tokenizer = tiny()
    for template in (tokenizer.chat_template, SMOL_TEMPLATE):
        tokenizer.chat_template = template
        row = render_chat(
            tokenizer,
            [{"role": "user", "content": "Yes."}, {"role": "assistant", "content": "Yes."}],
        )
        assert learned_pieces(tokenizer, row) == ["Yes.<|im_end|>"]
        first = row["completion_mask"].index(1)
        assert "assistant" in tokenizer.decode(row["input_ids"][:first])


@pytest.mark.parametrize("template", [None, SMOL_TEMPLATE, QWEN_TEMPLATE])
def test_a_prompt_is_the_start_of_the_training_text(template):
    _, tokenizer = tiny()
    if template:
        tokenizer.chat_template = template
    prompt = render_prompt(tokenizer, CHAT[:-1])
    row = render_chat(tokenizer, CHAT)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["completion_mask"][len(prompt)] == 1 and row["completion_mask"][len(prompt) - 1] == 0


def test_plain_template_of_a_tokenizer_without_chat_tokens():
    _, tokenizer = tiny()
    tokenizer.chat_template = PLAIN_CHAT
    assert end_of_turn(tokenizer) == "<|endoftext|>"
    assert learned_pieces(tokenizer, render_chat(tokenizer, CHAT))[-1] == (
        " You are welcome.<|endoftext|>"
    )


def test_template_without_end_of_turn_token_is_refused():
    _, tokenizer = tiny()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} over and out\n{% endfor %}"
    with pytest.raises(CourseError, match="over and out"):
        stop_ids(tokenizer)


def test_pads_are_never_learned_and_sides_mirror():
    _, tokenizer = tiny()
    rows = [render_chat(tokenizer, CHAT), render_chat(tokenizer, CHAT[:3])]
    right = collate(rows, tokenizer.pad_token_id)
    left = collate(rows, tokenizer.pad_token_id, side="left")
    length = len(rows[1]["input_ids"])
    for batch in (right, left):
        assert not (batch["completion_mask"] & ~batch["attention_mask"].bool()).any()
        assert batch["completion_mask"].sum().item() == sum(sum(r["completion_mask"]) for r in rows)
    for key in right:
        assert torch.equal(right[key][1, :length], left[key][1, -length:])
    # Even where the pad token is the end of turn, the real end of turn stays learned.
    same = collate(rows, tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert torch.equal(same["completion_mask"], right["completion_mask"])


def test_batches_hold_every_row_once_within_limits_and_pad_little():
    rng = random.Random(0)
    rows = [{"input_ids": [0] * rng.randint(5, 60)} for _ in range(300)]
    groups = batches(rows, batch_size=16, tokens_per_batch=512)
    assert sorted(i for group in groups for i in group) == list(range(300))
    sizes = [(len(g), max(len(rows[i]["input_ids"]) for i in g)) for g in groups]
    assert all(count <= 16 and count * longest <= 512 for count, longest in sizes)
    padded = sum(count * longest for count, longest in sizes)
    assert padded < 1.1 * sum(len(row["input_ids"]) for row in rows)
    assert batches([{"input_ids": [0] * 9}], tokens_per_batch=4) == [[0]]


def test_document_row_learns_all_but_its_start():
    _, tokenizer = tiny()
    row = render_text(tokenizer, "The moon.")
    assert row["input_ids"][0] == row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["completion_mask"] == [0] + [1] * (len(row["input_ids"]) - 1)


def test_show_tokens_escapes_and_marks():
    _, tokenizer = tiny()
    row = render_chat(tokenizer, CHAT[:3])
    shown = show_tokens(tokenizer, row["input_ids"], row["completion_mask"])
    assert "&lt;|im_end|&gt;" in shown and "<calc>" not in shown
    assert shown.count("#cfe8ff") == sum(row["completion_mask"])


def test_conversation_calls_tools_until_the_answer(monkeypatch):
    model, tokenizer = tiny()
    script = {
        "a": ["<calc>37 * 46</calc>", "It is 1702."],
        "b": ["Hello."],
        "c": ["<calc>x</calc>"],
    }

    def fake_ask(model, tokenizer, conversations, **_):
        return [
            script[messages[0]["content"]].pop(0) if script[messages[0]["content"]] else "Oh."
            for messages in conversations
        ]

    def calculate(text):
        if text == "x":
            raise ValueError("no sum")
        return 37 * 46

    monkeypatch.setattr(chat, "ask", fake_ask)
    start = [[{"role": "user", "content": name}] for name in "abc"]
    a, b, c = run_conversation(model, tokenizer, start, {"calc": calculate})
    assert [m["role"] for m in a] == ["user", "assistant", "tool", "assistant"]
    assert a[2]["content"] == "1702" and a[3]["content"] == "It is 1702."
    assert [m["content"] for m in b] == ["b", "Hello."]
    assert c[2] == {"role": "tool", "content": "error: no sum"}
    assert all(len(messages) == 1 for messages in start)


def test_documents_start_and_end_with_the_end_of_a_document_also_for_chat_tokenizers():
    _, tokenizer = tiny()
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"  # as SmolLM2-Instruct
    row = render_text(tokenizer, "The moon.")
    assert row["input_ids"][0] == row["input_ids"][-1] == 0
    assert stop_ids(tokenizer) == [0, 2]
