"""Attention over samples packed into one row: each sample sees itself only, and no mask over the row is built.

`packed_attention` switches a transformers model to this attention for one forward pass, padding-free. On CUDA it uses
flash-attn's kernel for variable lengths where that is installed, else torch's own; otherwise one scaled dot product
per segment, equal lengths together (a dense block mask over the row would undo what packing gains).

Shapes: N positions of the row, S segments, n positions of one segment, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from speechlmm_core.attention.segments import attend_segments
from speechlmm_core.attention.varlen import attend_varlen
from speechlmm_core.errors import ConfigError

NAME = "speechlmm_packed"
LAYER_TYPES = ("full_attention", "sliding_attention")


def register() -> None:
    """Makes the attention and its (absent) mask known to transformers; done at first use."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)


def check_family(model: nn.Module) -> None:
    """Refuses a model whose layers would let packed samples see each other.

    Raises:
        ConfigError: The family does not route its attention through transformers' interface, or mixes positions by
            other means (recurrence, convolution, chunked or bidirectional attention).
    """
    config: Any = model.config
    family = f"{type(model).__name__} ({getattr(config, 'model_type', '?')})"
    advice = "train it with `packing: false`"
    if not getattr(model, "_supports_attention_backend", False):
        raise ConfigError(
            f"{family} cannot take packed batches: it does not route its attention through transformers' attention "
            f"interface; {advice}"
        )
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - set(LAYER_TYPES))
    if others or getattr(model, "_is_stateful", False):
        raise ConfigError(
            f"{family} cannot take packed batches: its layers of type {', '.join(others) or 'recurrent'} would mix the "
            f"samples of a row; {advice}"
        )
    if getattr(text, "use_bidirectional_attention", False):
        raise ConfigError(f"{family} cannot take packed batches: its attention is bidirectional; {advice}")


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[PackedRow]:
    """Lets a transformers model take one packed row, given as ``model(..., segments=segments)`` within the context.

    Pass `use_cache=False`, and no attention mask but the one of the `PackedRow` that this yields. `segments` are the
    batch's: `cu_seqlens` (S+1,) int32, and `lengths`, the same as Python integers. Recomputed layers (gradient
    checkpointing) use the packed attention too, also after the context has ended.

    Args:
        model: A causal language model, or its body.

    Raises:
        ConfigError: The family cannot take packed batches.
    """
    check_family(model)
    register()
    configs = _configs(model)
    before = [(config, config._attn_implementation) for config in configs]
    checkpointed = [
        (module, module.__dict__["_gradient_checkpointing_func"])
        for module in model.modules()
        if module.__dict__.get("_gradient_checkpointing_func") is not None
    ]
    seen = PackedRow()
    for config in configs:
        config._attn_implementation = NAME
    for module, function in checkpointed:
        module.__dict__["_gradient_checkpointing_func"] = _recompute_packed(function, configs)
    _EXPECTED.append(seen)
    try:
        yield seen
    finally:
        _EXPECTED.remove(seen)
        for module, function in checkpointed:
            module.__dict__["_gradient_checkpointing_func"] = function
        for config, implementation in before:
            config._attn_implementation = implementation
    missing = seen.windows_asked - seen.windows_used
    if missing and seen.calls:
        raise ConfigError(
            f"{type(model).__name__} cannot take packed batches: it does not tell its attention the sliding window of "
            f"{min(missing)} positions; train it with `packing: false`"
        )


class PackedRow:
    """What passed through the mask and attention functions during one forward over a packed row."""

    def __init__(self) -> None:
        self.calls = 0
        self.windows_asked: set[int] = set()
        self.windows_used: set[int] = set()
        self.given: Tensor | None = None

    def mask(self, inputs_embeds: Tensor) -> Tensor:
        """A mask (1, N) that hides nothing, and is not used.

        Without any, transformers would read the positions back from the device to see whether rows are packed, and the
        host would wait for that.

        Args:
            inputs_embeds: (1, N, D).
        """
        self.given = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        return self.given


_EXPECTED: list[PackedRow] = []


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration that a module of the model reads, parents before their parts."""
    from transformers import PreTrainedConfig

    found: dict[int, Any] = {}

    def add(config: Any) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            for key in config.sub_configs:
                add(getattr(config, key, None))

    for module in model.modules():
        add(module.__dict__.get("config"))
    return list(found.values())


def _recompute_packed(checkpoint: Callable[..., Any], configs: list[Any]) -> Callable[..., Any]:
    """A checkpointing function whose layers find the packed attention whenever they run."""

    def wrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(*inner: Any, **inner_kwargs: Any) -> Any:
            before = [(config, config._attn_implementation) for config in configs]
            for config in configs:
                config._attn_implementation = NAME
            try:
                return function(*inner, **inner_kwargs)
            finally:
                for config, implementation in before:
                    config._attn_implementation = implementation

        return checkpoint(run, *args, **kwargs)

    return wrapped


def _no_mask(*_args: Any, use_vmap: bool = False, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Stands where transformers would build a dense mask; refuses what the segments alone cannot express."""
    if use_vmap:
        raise ConfigError("packed attention cannot honour a model's own mask function; train with `packing: false`")
    if attention_mask is not None and not (_EXPECTED and attention_mask is _EXPECTED[-1].given):
        raise ConfigError("packed attention got an attention mask; a packed row has no padding, pass none")
    window = kwargs.get("local_size")
    if window is not None and _EXPECTED:
        _EXPECTED[-1].windows_asked.add(int(window))


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    segments: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface over one packed row.

    Args:
        module: The attention layer.
        query: (1, H, N, D).
        key: (1, K, N, D).
        value: (1, K, N, D).
        attention_mask: Must be None.
        dropout: Probability on the attention weights.
        scaling: Factor on the scores; ``D ** -0.5`` if None.
        sliding_window: Positions that a position sees, itself included.
        softcap: Scores z become ``softcap * tanh(z / softcap)``.
        s_aux: (H,) score of a head's sink, which takes weight and gives nothing (gpt-oss).
        is_causal: By default what the layer says.
        segments: Bounds of the samples: `cu_seqlens` (S+1,) int32 and `lengths`.
        **kwargs: What else a family passes; what would change the result is refused.

    Returns:
        (1, N, H, D), and no weights.

    Raises:
        ConfigError: Something that cannot be honoured.
    """
    family = type(module).__name__
    if segments is None:
        raise ConfigError(f"{family} did not hand the segments on to its attention; train it with `packing: false`")
    segment_lengths: list[int] = segments["lengths"]
    refused = [name for name in ("position_bias", "head_mask", "block_mask") if kwargs.get(name) is not None]
    if attention_mask is not None:
        refused.append("attention_mask")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        refused.append("is_causal=False")
    if query.shape[0] != 1 or query.shape[2] != sum(segment_lengths) or key.shape[2] != query.shape[2]:
        raise ConfigError(
            f"packed attention got queries {tuple(query.shape)} and keys {tuple(key.shape)} for segments of "
            f"{sum(segment_lengths)} positions in all; it takes one row without a cache"
        )
    if refused:
        raise ConfigError(f"packed attention cannot honour {', '.join(refused)} of {family}")
    if _EXPECTED:
        _EXPECTED[-1].calls += 1
        if sliding_window is not None:
            _EXPECTED[-1].windows_used.add(int(sliding_window))
    longest = max(segment_lengths, default=0)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = _as_multiplied(query, key, value)
    if s_aux is None:
        out = attend_varlen(
            query,
            key,
            value,
            segments["cu_seqlens"],
            longest,
            scale=scale,
            dropout=dropout,
            window=window,
            softcap=softcap,
        )
        if out is not None:
            return out, None
    out = attend_segments(
        query,
        key,
        value,
        segment_lengths,
        scale=scale,
        dropout=dropout,
        window=window,
        softcap=softcap,
        sinks=s_aux,
    )
    return out, None


def _as_multiplied(*tensors: Tensor) -> list[Tensor]:
    """Queries, keys and values in the type in which autocast multiplies, as it would hand them to a product itself.

    Rotary embeddings are fp32 under autocast and make queries and keys so, while values come from a projection in half
    precision; kernels for variable lengths are no operators that autocast knows, and take half precision alone.
    """
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors]
