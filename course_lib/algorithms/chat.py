"""From conversations to ids, masks and batches, and back: rendering, collating, asking.

`completion_mask` is 1 on what the assistant wrote and on the token that ends its turn, in every
assistant turn; 0 on system, user and tool turns and on all headers.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Sequence

import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence

from course_lib import CourseError
from course_lib.algorithms.sampling import generate

Message = dict[str, str]
Row = dict[str, list[int]]  # "input_ids" and "completion_mask", of the same length
CALL = re.compile(r"<(\w+)>(.*?)</\1>\s*$", re.DOTALL)  # a tool call ends the assistant's turn

# ChatML. The generation markers say what the assistant wrote, its end of turn included.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# For a base tokenizer that has neither a template nor ChatML's tokens: plain words and its own EOS.
# The blank before an answer is the answer's: many tokenizers make one token of it and the word.
PLAIN_CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Assistant:"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['role'].capitalize() + ': ' + message['content'] }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# What a chat template has to write: a system message, and a sum done with a tool.
PROBES = [
    [("system", "Be brief."), ("user", "Why?"), ("assistant", "So it is.")],
    [
        ("user", "How many?"),
        ("assistant", "I count them."),
        ("tool", "1702"),
        ("assistant", "Many."),
    ],
]
PROBES = [[{"role": role, "content": text} for role, text in probe] for probe in PROBES]


def _template(tokenizer, messages: Sequence[Message], thinking: bool = False, **options):
    # Qwen3's switch; other templates ignore it. The answers here are written without <think>.
    return tokenizer.apply_chat_template(list(messages), enable_thinking=thinking, **options)


def end_of_turn(tokenizer) -> str:
    """The token that ends an assistant's turn in this tokenizer's chat template."""
    return _end_of_turn(tokenizer, tokenizer.chat_template)


@functools.lru_cache(maxsize=64)
def _end_of_turn(tokenizer, template: str) -> str:
    probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<<answer>>"}]
    text = _template(tokenizer, probe, tokenize=False)
    end = text.rpartition("<<answer>>")[2].strip()
    if end not in tokenizer.get_vocab():
        raise CourseError(
            f"The chat template of {tokenizer.name_or_path!r} ends an answer with {end!r}; "
            "expected one token of its vocabulary; set `tokenizer.chat_template` to such a one."
        )
    return end


def document_ends(tokenizer) -> tuple[list[int], int]:
    """The ids that stand before a plain document (none or one), and the id that ends it.

    "<|endoftext|>" where there is one: the instruct versions of SmolLM2 and Qwen3 name chat tokens
    as their beginning and end of sequence, and a document has nothing to do with these.
    """
    end = tokenizer.get_vocab().get("<|endoftext|>")
    if end is not None:
        return [end], end
    start = tokenizer.bos_token_id
    return ([] if start is None else [start]), tokenizer.eos_token_id


def stop_ids(tokenizer) -> list[int]:
    """Ids that end a completion: the end of a document and the end of a turn."""
    turn = tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer))
    return sorted({turn, tokenizer.eos_token_id, document_ends(tokenizer)[1]} - {None})


def render_chat(tokenizer, messages: Sequence[Message]) -> Row:
    """A conversation as `input_ids` and `completion_mask`.

    An answer starts where the text up to it, with its generation prompt, ends, and goes on to the
    end-of-turn token after it. The ids of the prompt are those of `render_prompt`.

    Raises:
        CourseError: the template does not write an answer as it is, or not behind its prompt.
    """
    text, spans = _answers(tokenizer, messages)
    ids, counts = _encode(tokenizer, text, [cut for span in spans for cut in span])
    mask = [0] * len(ids)
    for first, last in zip(counts[::2], counts[1::2], strict=True):
        mask[first:last] = [1] * (last - first)
    return {"input_ids": ids, "completion_mask": mask}


def _answers(tokenizer, messages: Sequence[Message], **options):
    """The conversation as text, and where in it each answer begins and its end of turn stops."""
    text, spans = _template(tokenizer, messages, tokenize=False, **options), []
    end = end_of_turn(tokenizer) if any(m["role"] == "assistant" for m in messages) else ""
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start, said = _answer_start(tokenizer, messages[:i], text), message["content"].strip()
            at = text.find(said, start)
            stop = text.find(end, at + len(said))
            around = text[start:at] + text[at + len(said) : stop]
            # Some of Qwen3's templates put an empty <think> before the last answer.
            if min(at, stop) < 0 or re.sub(r"<think>\s*</think>", "", around).strip():
                raise CourseError(
                    f"The chat template of {tokenizer.name_or_path!r} does not write the answer "
                    f"{said[:60]!r} as it is; expected its text and then {end!r}; use another "
                    "template."
                )
            spans.append((start, stop + len(end)))
    return text, spans


def _answer_start(tokenizer, before: Sequence[Message], text: str) -> int:
    """Where in `text` the answer to the messages `before` starts."""
    # Qwen3's prompt ends with an empty <think>, which the last answer has and older ones have not.
    for thinking in (False, True):
        prompt = _template(tokenizer, before, thinking, add_generation_prompt=True, tokenize=False)
        if text.startswith(prompt):
            return len(prompt)
    raise CourseError(
        f"The chat template of {tokenizer.name_or_path!r} writes a conversation of {len(before)} "
        "messages differently once it is answered; expected the same text; use another template."
    )


def _encode(tokenizer, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ids of `text`, and how many of them stand for what comes before each cut (a character).

    Where a token of the whole text would cross a cut, the parts are encoded one by one. So what
    stands before a cut has the same ids whatever follows: a prompt is the start of its row.
    """
    ids, counts, at = [], [], 0
    for cut in [*cuts, len(text)]:
        whole = tokenizer(text[:cut], add_special_tokens=False)["input_ids"]
        if whole[: len(ids)] != ids:
            whole = ids + tokenizer(text[at:cut], add_special_tokens=False)["input_ids"]
        ids, at = whole, cut
        counts.append(len(ids))
    return ids, counts[:-1]


def render_prompt(tokenizer, prompt: str | Sequence[Message]) -> list[int]:
    """A user's text, or a conversation so far, as ids up to where the assistant begins."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    text, spans = _answers(tokenizer, prompt, add_generation_prompt=True)
    return _encode(tokenizer, text, [cut for span in spans for cut in span])[0]


def check_chat(tokenizer) -> None:
    """Raise `CourseError` unless the tokenizer can write the course's conversations.

    It needs an end of a document, and a template that writes every message of `PROBES` (a system
    message, a call of a tool and its result) and each answer behind its prompt.
    """
    name = tokenizer.name_or_path
    if tokenizer.eos_token_id is None:
        raise CourseError(
            f"The tokenizer of {name!r} has no EOS token, which ends what a model writes; set "
            "`eos_token` in its tokenizer_config.json."
        )
    for probe in PROBES:
        roles = ", ".join(message["role"] for message in probe)
        try:
            row, text = render_chat(tokenizer, probe), _template(tokenizer, probe, tokenize=False)
            lost = next((m["role"] for m in probe if m["content"] not in text), "")
            why = lost and f"leaves out the message of the role {lost!r}"
        except (TemplateError, TypeError, LookupError) as error:
            why = f"fails with {repr(error)[:120]}"
        if why:
            raise CourseError(
                f"The chat template of {name!r} {why} in a conversation of {roles}; use one that "
                "takes these roles, or remove it (chat_template.jinja, or its entry in "
                "tokenizer_config.json): without one, plain turns are used."
            )
        if sum(row["completion_mask"]) < 2 * sum(m["role"] == "assistant" for m in probe):
            raise CourseError(
                f"The tokenizer of {name!r} makes no tokens of an answer in a conversation of "
                f"{roles}; expected tokens for every text; use another tokenizer."
            )


def render_text(tokenizer, text: str) -> Row:
    """A plain document as a row: all its tokens are learned, its end included."""
    start, end = document_ends(tokenizer)
    ids = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"], end]
    return {"input_ids": ids, "completion_mask": [0] * len(start) + [1] * (len(ids) - len(start))}


def collate(rows: Sequence[Row], pad_id: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows to tensors (B, T): `input_ids`, `attention_mask`, `completion_mask`; pads are masked."""

    def pad(columns: list[list[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(column) for column in columns]
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)

    return {
        "input_ids": pad([row["input_ids"] for row in rows], pad_id),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
        "completion_mask": pad([row["completion_mask"] for row in rows], 0),
    }


def batches(
    rows: Sequence[Row],
    *,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
) -> list[list[int]]:
    """Lists of row indices, rows of like length together, so that little is padded.

    At most `batch_size` rows and `tokens_per_batch` tokens (pads counted; at least one row) each.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    groups: list[list[int]] = []
    for i in order:
        size = len(groups[-1]) + 1 if groups else 1
        tokens = size * len(rows[i]["input_ids"])  # the newest is the longest
        full = size > (batch_size or size) or tokens > (tokens_per_batch or tokens)
        if full or not groups:
            groups.append([])
        groups[-1].append(i)
    return groups


def show_tokens(tokenizer, input_ids: Sequence[int], completion_mask: Sequence[int]) -> str:
    """HTML of the tokens: those the model learns from in bold on colour, the others grey."""
    learned = "background:#cfe8ff;color:#000;font-weight:bold"
    masked = "background:#eeeeee;color:#555"
    spans = []
    for token, mask in zip(input_ids, completion_mask, strict=True):
        text = tokenizer.decode([token])
        shown = html.escape(text).replace("\n", "⏎<br>").replace(" ", "&nbsp;")
        spans.append(
            f'<span title="{token}" style="{learned if mask else masked};margin:1px;'
            f'border-radius:3px">{shown}</span>'
        )
    return f'<div style="font-family:monospace;line-height:1.7">{"".join(spans)}</div>'


def _write(model, tokenizer, prompt_ids: list[list[int]], sampling: dict) -> list[str]:
    """What `generate` adds to the prompts, as text; at most 128 tokens unless `sampling` says."""
    options = {
        "max_new_tokens": 128,
        "eos_ids": stop_ids(tokenizer),
        "pad_id": tokenizer.pad_token_id,
        **sampling,
    }
    lists = generate(model, prompt_ids, **options).lists
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in lists]


def ask(model, tokenizer, prompts: Sequence[str | Sequence[Message]], **sampling) -> list[str]:
    """The assistant's answers to `prompts` (user texts or conversations), as text.

    `sampling` goes to `generate` (128 new tokens and temperature 1 by default); with
    `num_generations`, the answers to one prompt stand side by side.
    """
    ids = [render_prompt(tokenizer, prompt) for prompt in prompts]
    return [text.strip() for text in _write(model, tokenizer, ids, sampling)]


def complete(model, tokenizer, texts: Sequence[str], **sampling) -> list[str]:
    """Raw continuations of `texts`, as a base model writes them; `sampling` as in `ask`."""
    start, _ = document_ends(tokenizer)
    ids = [start + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return _write(model, tokenizer, ids, sampling)


def run_conversation(
    model,
    tokenizer,
    messages_list: Sequence[Sequence[Message]],
    tools: dict[str, Callable[[str], str]],
    *,
    max_turns: int = 4,
    **sampling,
) -> list[list[Message]]:
    """Let the assistant answer each conversation, with calls of tools; all go on in one batch.

    An assistant turn that ends with `<name>argument</name>` calls `tools[name](argument)`; a
    message with role "tool" brings back the result (or what was wrong), and the assistant goes on.
    Returns the conversations with the new messages, after at most `max_turns` assistant turns.
    """
    conversations = [list(messages) for messages in messages_list]
    active = conversations
    for _ in range(max_turns):
        if not active:
            break
        waiting = []
        for messages, answer in zip(active, ask(model, tokenizer, active, **sampling), strict=True):
            messages.append({"role": "assistant", "content": answer})
            call = CALL.search(answer)
            if call and call[1] in tools:
                try:
                    result = str(tools[call[1]](call[2].strip()))
                except (ValueError, ArithmeticError, CourseError) as error:
                    result = f"error: {error}"
                messages.append({"role": "tool", "content": result})
                waiting.append(messages)
        active = waiting
    return conversations
