"""The demo's tokenizer: byte-pair encoding learnt from its own sentences, in the layout of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechlmm_core.checkpoint.atomic import atomic_folder

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def saved_vocab_size(folder: Path) -> int | None:
    """Size of the vocabulary of a tokenizer that an earlier run saved; None where there is none."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder)) if (folder / "tokenizer.json").is_file() else None


def train_tokenizer(folder: Path, sentences: Sequence[str], prompts: Sequence[str], *, vocab_size: int) -> int:
    """Learns byte-pair encodings and saves them with the tokens of the ChatML template.

    Args:
        folder: Where to save; replaced if it is there.
        sentences: Sentences of the training set. Each word is meant to become one token.
        prompts: Wordings of the tasks' prompts.
        vocab_size: Tokens at most.

    Returns:
        Size of the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = sorted({word for sentence in sentences for word in sentence.split()})
    # Every word with a space before it and without: either form stands for the word at the start of a line.
    tokenizer.train_from_iterator([*(f" {word}" for word in words), *words, *sentences, *prompts], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    with atomic_folder(folder) as temporary:
        fast.save_pretrained(temporary)
    return len(fast)
