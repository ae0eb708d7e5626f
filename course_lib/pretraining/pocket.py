"""The pocket family: its sizes, and the tokenizer that all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from course_lib import CourseError
from course_lib.algorithms.chat import CHATML

POCKET_SIZES = {  # hidden, layers, heads, feed-forward: about 0.4M, 1.6M and 6.1M parameters
    "s": (80, 3, 4, 216),
    "m": (160, 4, 4, 448),
    "l": (256, 7, 4, 704),
}
VOCAB_SIZE = 2048
# The order is the ids: 0 ends a document, 1 and 2 frame a turn, 3 pads (and is never trained).
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def pocket_config(size: str, vocab_size: int = VOCAB_SIZE) -> LlamaConfig:
    """The plain Llama architecture of pocket model `size` ("s", "m" or "l"), context 512."""
    if size not in POCKET_SIZES:
        raise CourseError(f"The pocket size is {size!r}; expected one of 's', 'm', 'l'.")
    hidden, layers, heads, feed_forward = POCKET_SIZES[size]
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>"),
    )


def train_tokenizer(
    texts: Iterable[str], folder: str | Path, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerBase:
    """Train the pocket tokenizer on `texts` and save it for `AutoTokenizer` in `folder`.

    Byte-level BPE (any text round-trips), each digit a token of its own (so that a sum's columns
    line up), the four special tokens first, ChatML with generation markers.
    """
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
