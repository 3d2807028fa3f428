"""How the audio encoders of transformers turn samples into frames, told from their numbers. Imports no torch.

Every front end here is a chain of convolutions: a log-mel spectrogram is one over samples, those of the network follow.

Shapes: L samples, T frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from speechlmm_core.errors import ConfigError
from speechlmm_core.lengths import Length, conv_output_length

FBANK = (400, 160, 0)
"""Kaldi's filter banks at 16 kHz: windows of 25 ms every 10 ms, none that reaches beyond the end."""
MASKED = ("wav2vec2", "hubert", "unispeech", "unispeech-sat")
"""Model types that keep padding out by their attention mask where `feat_extract_norm` is `layer`, as tests show."""

Convolution = tuple[int, int, int]
"""Kernel size, stride, padding on both sides."""


@dataclass(frozen=True)
class FrontEnd:
    """What the length arithmetic and the preprocessor need to know of a model."""

    input_name: Literal["input_values", "input_features"]
    """What the model takes: raw audio (B, L), or log-mel."""
    extractor: str
    """Class of the feature extractor."""
    extractor_defaults: Mapping[str, Any]
    """What follows for the extractor from the model's numbers."""
    preprocessing: tuple[Convolution, ...]
    """What the feature extractor does to the length."""
    network: tuple[Convolution, ...]
    """What the network does to it."""
    num_layers: int
    """Layers of the transformer."""
    hidden_size: int
    """Width of the frames that come out."""
    num_features: int = 0
    """Width of log-mel input, 0 for raw audio."""
    batching: Literal["masked", "apart", "window"] = "apart"
    """How padding is kept out: by the attention mask, by encoding clips of each length apart, or not at all, since
    every clip is padded with silence to a window as in training."""
    window_frames: int = 0
    """Frames of that window."""
    min_frames: int = 1
    """Frames below which the model cannot be run; those of a shorter clip are zeros."""
    inner_layers: str = ""
    """Why the states of inner layers cannot be had; empty where they can."""

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for _, stride, _ in (*self.preprocessing, *self.network))

    def feature_lengths(self, num_samples: Length) -> Length:
        """Length of the model's input for so many samples."""
        return chain(num_samples, self.preprocessing)

    def frames_of_features(self, length: Length) -> Length:
        """Frames of an input of so many steps."""
        return chain(length, self.network) * (length > 0)

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples."""
        return self.frames_of_features(self.feature_lengths(num_samples))


def chain(length: Length, convolutions: Sequence[Convolution]) -> Length:
    """The length after a chain of convolutions."""
    for kernel_size, stride, padding in convolutions:
        length = conv_output_length(length, kernel_size=kernel_size, stride=stride, padding=padding)
    return length


def front_end_of(numbers: Mapping[str, Any]) -> FrontEnd:
    """The front end of a model of transformers.

    Args:
        numbers: The fields of its `config.json`.

    Raises:
        ConfigError: It takes neither raw audio nor log-mel, or its rate cannot be told; the message says why.
    """
    model_type = numbers.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"expected a `model_type` under `model:` (`wav2vec2`, `whisper`, …), got {model_type!r}")
    known = _KNOWN.get(model_type)
    if known is not None:
        return known(numbers)
    reason = _refusal(numbers)
    if reason:
        raise ConfigError(
            f"hf_audio cannot take a model of the type {model_type!r}: {reason}; it takes models of raw audio that "
            f"state `conv_kernel` and `conv_stride` (wav2vec 2.0 and its relatives), and {', '.join(sorted(_KNOWN))}"
        )
    return _wav2vec2(numbers)


_REFUSALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("codebook_size", "codebook_dim", "upsampling_ratios"), "it is a codec"),
    (
        ("patch_size", "image_size"),
        "it cuts an input of fixed size into patches, so that its frames do not follow time",
    ),
    (
        ("audio_config", "encoder_config", "text_config", "encoder"),
        "it is made of several models; name the audio encoder alone",
    ),
    (
        ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim"),
        "it takes log-mel, and its configuration does not say how its front end changes their rate",
    ),
    (("vocab_size",), "it takes tokens, neither raw audio nor log-mel"),
)
"""Fields that tell what a model is, in the order in which they are looked for, and why it cannot be taken."""


def _refusal(numbers: Mapping[str, Any]) -> str:
    if {"conv_dim", "conv_kernel", "conv_stride"} <= numbers.keys():
        if numbers.get("is_encoder_decoder") or numbers.get("model_type") == "speecht5":
            return "it is an encoder-decoder, whose encoder is not known to stand alone"
        return ""
    for keys, reason in _REFUSALS:
        if any(key in numbers for key in keys):
            return reason
    return "its configuration states no convolutions over audio, so that its frame rate cannot be told"


def _wav2vec2(numbers: Mapping[str, Any]) -> FrontEnd:
    kernels, strides, widths = (sizes(numbers, key) for key in ("conv_kernel", "conv_stride", "conv_dim"))
    if not len(kernels) == len(strides) == len(widths):
        raise ConfigError(
            "conv_dim, conv_kernel and conv_stride must be equally long, got "
            f"{len(widths)}, {len(kernels)} and {len(strides)} entries"
        )
    convolutions = [(kernel, stride, 0) for kernel, stride in zip(kernels, strides, strict=True)]
    hidden_size = number(numbers, "hidden_size")
    adapter = bool(numbers.get("add_adapter"))
    if adapter:
        convolutions += _adapter(numbers, padding=1)
        hidden_size = number(numbers, "output_hidden_size", hidden_size)
    inner = ""
    squeeze = number(numbers, "squeeze_factor", 1)
    if squeeze > 1:
        inner = "its inner layers run at another rate than its output (`squeeze_factor`)"
    elif adapter:
        inner = "its adapter's convolutions follow the last layer (`add_adapter`)"
    masked = numbers["model_type"] in MASKED and numbers.get("feat_extract_norm") == "layer" and not adapter
    return FrontEnd(
        input_name="input_values",
        extractor="Wav2Vec2FeatureExtractor",
        extractor_defaults={"sampling_rate": 16_000},
        preprocessing=(),
        network=tuple(convolutions),
        num_layers=number(numbers, "num_hidden_layers"),
        hidden_size=hidden_size,
        batching="masked" if masked else "apart",
        min_frames=squeeze,
        inner_layers=inner,
    )


def _moonshine(numbers: Mapping[str, Any]) -> FrontEnd:
    # Its convolutions are fixed in transformers' code; a group norm over time sees the whole clip.
    return FrontEnd(
        input_name="input_values",
        extractor="Wav2Vec2FeatureExtractor",
        extractor_defaults={"sampling_rate": 16_000, "do_normalize": False},
        preprocessing=(),
        network=((127, 64, 0), (7, 3, 0), (3, 2, 0)),
        num_layers=number(numbers, "encoder_num_hidden_layers"),
        hidden_size=number(numbers, "hidden_size"),
    )


def _whisper(numbers: Mapping[str, Any]) -> FrontEnd:
    num_mel_bins = number(numbers, "num_mel_bins")
    return FrontEnd(
        input_name="input_features",
        extractor="WhisperFeatureExtractor",
        extractor_defaults={"sampling_rate": 16_000, "feature_size": num_mel_bins},
        preprocessing=((1, 160, 0),),
        network=((3, 1, 1), (3, 2, 1)),
        num_layers=number(numbers, "encoder_layers"),
        hidden_size=number(numbers, "d_model"),
        num_features=num_mel_bins,
        batching="window",
        window_frames=number(numbers, "max_source_positions"),
    )


def _speech_to_text(numbers: Mapping[str, Any]) -> FrontEnd:
    kernels = sizes(numbers, "conv_kernel_sizes")
    num_features = number(numbers, "input_feat_per_channel") * number(numbers, "input_channels", 1)
    return FrontEnd(
        input_name="input_features",
        extractor="Speech2TextFeatureExtractor",
        extractor_defaults={"sampling_rate": 16_000, "feature_size": num_features, "num_mel_bins": num_features},
        preprocessing=(FBANK,),
        network=tuple((kernel, 2, kernel // 2) for kernel in kernels),
        num_layers=number(numbers, "encoder_layers"),
        hidden_size=number(numbers, "d_model"),
        num_features=num_features,
    )


def _wav2vec2_bert(numbers: Mapping[str, Any]) -> FrontEnd:
    width = number(numbers, "feature_projection_input_dim")
    hidden_size = number(numbers, "hidden_size")
    adapter: list[Convolution] = []
    if numbers.get("add_adapter"):
        adapter = _adapter(numbers, padding=number(numbers, "adapter_stride") // 2)
        hidden_size = number(numbers, "output_hidden_size", hidden_size)
    return FrontEnd(
        input_name="input_features",
        extractor="SeamlessM4TFeatureExtractor",
        extractor_defaults={"sampling_rate": 16_000, "feature_size": width // 2, "num_mel_bins": width // 2},
        preprocessing=(FBANK, (2, 2, 0)),  # every two frames of features side by side
        network=tuple(adapter),
        num_layers=number(numbers, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_features=width,
        inner_layers="its adapter's layers follow the last one (`add_adapter`)" if adapter else "",
    )


_KNOWN: dict[str, Callable[[Mapping[str, Any]], FrontEnd]] = {
    "moonshine": _moonshine,
    "whisper": _whisper,
    "speech_to_text": _speech_to_text,
    "wav2vec2-bert": _wav2vec2_bert,
}


def _adapter(numbers: Mapping[str, Any], padding: int) -> list[Convolution]:
    kernel, stride = number(numbers, "adapter_kernel_size"), number(numbers, "adapter_stride")
    return [(kernel, stride, padding)] * number(numbers, "num_adapter_layers")


def number(numbers: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of a model's configuration.

    Raises:
        ConfigError: It is missing, or none.
    """
    value = numbers.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"expected a positive number `{key}` under `model:`, got {value!r}")
    return value


def sizes(numbers: Mapping[str, Any], key: str) -> list[int]:
    """A list of positive whole numbers of a model's configuration.

    Raises:
        ConfigError: It is missing, or none.
    """
    value = numbers.get(key)
    if not isinstance(value, list | tuple) or not value or not all(type(one) is int and one > 0 for one in value):
        raise ConfigError(f"expected a list of positive numbers `{key}` under `model:`, got {value!r}")
    return list(value)
