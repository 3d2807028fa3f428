"""A tokenizer over bytes, built in code, for models that need no download: 256 bytes and the template's special tokens.

The byte alphabet is that of byte-level BPE (Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners"), here without any merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechlmm_core.chat.template import BUILT_IN, TemplateTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_BYTES = 256


def special_tokens(chat_template: str) -> TemplateTokens:
    """The special tokens of a byte tokenizer for a template; a template from a file gets those of ChatML."""
    return BUILT_IN.get(chat_template, BUILT_IN["chatml"])


def token_ids(chat_template: str) -> dict[str, int]:
    """Ids of the special tokens, which follow the bytes."""
    return {token: NUM_BYTES + i for i, token in enumerate(special_tokens(chat_template).all)}


def build_byte_tokenizer(chat_template: str) -> PreTrainedTokenizerBase:
    """The byte tokenizer with a template's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == NUM_BYTES
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokens = special_tokens(chat_template)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens.all])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=tokens.bos, eos_token=tokens.eos, pad_token=tokens.pad
    )
