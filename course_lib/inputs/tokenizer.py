"""The pocket family's tokenizer, and the chat templates for tokenizers that have none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCAB_SIZE = 2048
# The order is the ids: 0 ends a document, 1 and 2 frame a turn, 3 pads (and is never trained).
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]

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


def train_tokenizer(
    texts: Iterable[str], folder: str | Path, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerBase:
    """Train the pocket tokenizer on `texts` and save it for `AutoTokenizer` in `folder`.

    Byte-level BPE (any text round-trips), each digit a token of its own (so that a sum's columns
    line up), the four special tokens first, ChatML with generation markers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    end, _, turn_end, pad = SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", turn_end],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
