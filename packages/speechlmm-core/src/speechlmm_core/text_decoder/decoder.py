"""Any causal language model of transformers as the composite's text decoder.

Shapes: R rows, N positions, D hidden, V vocabulary, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from speechlmm_core.attention.choice import choose_attention
from speechlmm_core.checkpoint.source import read_json_config
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.modules import TextDecoder
from speechlmm_core.lora.plain import plain_names
from speechlmm_core.lora.weight import effective_weight
from speechlmm_core.text_decoder.config import merge
from speechlmm_core.text_decoder.logit_check import check_logits

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_core.text_decoder.config import CausalLMConfig

# Still read by transformers 5, which turns them into `rope_parameters`.
_LEGACY_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")

# Factors on the logits that the chunked loss does not know (it knows softcaps and scales).
_LOGIT_KEYS = ("lm_head_multiplier",)

# Fields of a configuration that change neither the weights nor what they compute.
_NOT_SHAPE = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")

_DRAWN_ROWS = 997

# How transformers marks tensors that `_init_weights` is to leave alone.
_MARK = "_is_hf_initialized"


class CausalLMDecoder(TextDecoder):
    """A causal language model; `.model` is the transformers module with its head.

    Args:
        config: Which model.
        ctx: What the composite knows; only the attention implementation matters.

    Raises:
        ConfigError: The configuration makes no causal language model that transformers knows.
    """

    config: CausalLMConfig

    def __init__(self, config: CausalLMConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        hf_config = build_hf_config(config)
        attention = pick_attention(hf_config, ctx)
        # Under ZeRO-3 transformers makes it in parts, each of which it initialises.
        unfilled = ctx.weights_follow and not is_deepspeed_zero3_enabled()
        device = torch.get_default_device()
        try:
            with torch.device("meta") if unfilled else nullcontext():
                self.model = AutoModelForCausalLM.from_config(
                    hf_config, attn_implementation=attention, dtype=torch.get_default_dtype()
                )
        except (ImportError, ValueError) as exc:
            raise ConfigError(f"cannot build the text decoder {config.model_type!r}: {exc}") from exc
        for module in self.model.modules():
            # Initialised, whichever process did it: of weights that are spread, transformers marks those of the first.
            setattr(module, _MARK, True)
        head = self.model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise ConfigError(f"text decoder {config.model_type!r} has no head that is a plain matrix; choose another")
        if unfilled:
            self.model.to_empty(device=device)
            self.model.tie_weights()
            self.reset_buffers()
            _fill_cheaply(self.output_weight)

        for key in _LOGIT_KEYS:
            value = getattr(hf_config.get_text_config(), key, None)
            if value not in (None, 1.0):
                raise ConfigError(
                    f"text decoder {config.model_type!r} changes its logits by {key}={value!r}, which the chunked loss "
                    "does not do; choose another model, or one without it"
                )
        check_logits(self)

    @property
    def embedding_weight(self) -> Tensor:
        """(V, D) the embedding table."""
        return effective_weight(self.model.get_input_embeddings())

    @property
    def output_weight(self) -> Tensor:
        """(V, D) the language-model head; the embedding table itself where they are tied."""
        return effective_weight(self.model.get_output_embeddings())

    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (..., D) of token ids (...), scaled where the model scales them."""
        return self.model.get_input_embeddings()(input_ids)  # (..., D)

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Last hidden states, without the head and without a cache.

        Args:
            inputs_embeds: (R, N, D).
            position_ids: (R, N) int64.
            attention_mask: (R, N), 1 on valid positions; only where nothing is packed.
            segments: Bounds of the samples that are packed into the one row: `cu_seqlens` (S+1,) int32 and
                `lengths`; attention never crosses them.

        Returns:
            (R, N, D).
        """
        body = self.model.get_decoder()
        if segments is None:
            output = body(
                inputs_embeds=inputs_embeds, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
            )
        else:
            from speechlmm_core.attention.packed import packed_attention

            with packed_attention(self.model) as row:
                output = body(
                    inputs_embeds=inputs_embeds,
                    position_ids=position_ids,
                    attention_mask=row.mask(inputs_embeds),
                    segments=segments,
                    use_cache=False,
                )
        return output.last_hidden_state  # (R, N, D)

    def load_base_weights(self) -> None:
        """Loads the base checkpoint's weights; nothing where the configuration names none.

        Raises:
            CheckpointError: A tensor is missing, left over, or has another shape.
            ConfigError: The checkpoint's numbers are not the model's.
        """
        if self.config.pretrained is None:
            return
        check_base(self.config, self.model.config)
        from speechlmm_core.checkpoint.weights import load_weights

        own = plain_names(self.model).values()
        prefix = f"{self.model.base_model_prefix}."
        layers = range(getattr(self.model.config.get_text_config(), "num_hidden_layers", 0))
        load_weights(
            self.model,
            self.config.pretrained,
            # A checkpoint of the base model, saved without the head, lacks the prefix.
            rename=lambda name: prefix + name if name not in own and prefix + name in own else name,
            # Written by early versions of transformers, and recomputed by all.
            ignore=[f"{prefix}layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in layers],
        )

    def reset_buffers(self) -> None:
        """Recomputes the rotary frequencies and other buffers that are not saved."""
        for module in self.model.modules():
            fresh = module._non_persistent_buffers_set
            if not fresh:
                continue
            # transformers initialises a module as a whole; the mark keeps its saved tensors as they are.
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            before = {name: getattr(tensor, _MARK, False) for name, tensor in tensors}
            for name, tensor in tensors:
                setattr(tensor, _MARK, name not in fresh)
            try:
                with torch.no_grad():
                    self.model._init_weights(module)
            finally:
                for name, tensor in tensors:
                    setattr(tensor, _MARK, before[name])


@torch.no_grad()
def _fill_cheaply(weight: Tensor) -> None:
    """Gives a head (V, D) that is loaded later some content to check the logits with: a few random rows, repeated."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(min(len(weight), _DRAWN_ROWS), weight.shape[1], generator=generator, device="cpu").to(weight)
    for start in range(0, len(weight), len(rows)):
        part = weight[start : start + len(rows)]
        part.copy_(rows[: len(part)])


def build_hf_config(config: CausalLMConfig) -> PreTrainedConfig:
    """The transformers configuration, with every key checked.

    Raises:
        ConfigError: An unknown model type or key, or numbers that contradict each other.
    """
    model_type = config.model_type
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        names = [str(name) for name in CONFIG_MAPPING if CONFIG_MAPPING[name] in MODEL_FOR_CAUSAL_LM_MAPPING]
        near = get_close_matches(model_type, names, n=1)
        raise ConfigError(
            f"transformers has no causal language model of the type {model_type!r}"
            f"{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    cls = CONFIG_MAPPING[model_type]
    known = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})} | set(_LEGACY_KEYS)
    known |= set(cls.attribute_map)
    for key in config.model:
        if key not in known and key != "model_type":
            near = get_close_matches(key, sorted(known), n=1)
            raise ConfigError(
                f"unknown key {key!r} under the text decoder's `model:` for {model_type!r}"
                f"{f'; did you mean {near[0]!r}?' if near else ''}"
            )
    numbers = {key: value for key, value in config.numbers.items() if key != "model_type"}
    try:
        found = cls(**numbers)
    except Exception as exc:  # transformers' strict dataclasses raise several errors of their own
        raise ConfigError(f"the text decoder's `model:` makes no {model_type!r}: {exc}") from exc
    if found.is_encoder_decoder:
        raise ConfigError(f"{model_type!r} is an encoder-decoder; a text decoder is a causal language model alone")
    return found


def check_base(config: CausalLMConfig, built: PreTrainedConfig) -> None:
    """Compares the model that was built with the one that its base checkpoint holds.

    Raises:
        CheckpointError: The checkpoint's `config.json` cannot be read.
        ConfigError: They differ in a number that the checkpoint states.
    """
    assert config.pretrained is not None
    stated = merge(config.model, read_json_config(config.pretrained), config.pretrained)
    wanted = type(built)(**{key: value for key, value in stated.items() if key != "model_type"}).to_dict()
    got = built.to_dict()
    for key in stated:
        if key in got and key not in _NOT_SHAPE and got[key] != wanted.get(key):
            raise ConfigError(
                f"the text decoder's {key!r} is {got[key]!r}, but the checkpoint {config.pretrained!r} has "
                f"{wanted.get(key)!r}; give its number under `model:`, or leave all of them out"
            )


def pick_attention(hf_config: PreTrainedConfig, ctx: BuildContext) -> str:
    """What the family's attention runs on: what is asked for where it can do that, else the best that it can do."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf_config)]
    return choose_attention(ctx, family)
