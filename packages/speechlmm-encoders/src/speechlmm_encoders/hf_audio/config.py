"""Configuration of any audio encoder of transformers. Imports neither torch nor transformers.

Shapes: L samples, T frames, D hidden.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from speechlmm_core.checkpoint.source import read_json_config, resolve_pretrained
from speechlmm_core.chunking import Chunker
from speechlmm_core.errors import CheckpointError, ConfigError
from speechlmm_core.interfaces.parts import CheckpointParts
from speechlmm_core.lengths import Length
from speechlmm_encoders.hf_audio.front_end import FrontEnd, front_end_of
from speechlmm_encoders.layered import LayeredEncoderConfig
from speechlmm_encoders.raw_audio.config import RawAudioEncoderConfig
from speechlmm_encoders.whisper.config import WhisperBase

if TYPE_CHECKING:
    from speechlmm_core.interfaces.context import BuildContext
    from speechlmm_encoders.hf_audio.encoder import HFAudioEncoder
    from speechlmm_encoders.hf_audio.preprocessor import HFAudioPreprocessor

_NOT_ARCHITECTURE = frozenset(
    {"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"}
)
_NOT_EXTRACTION = frozenset({"processor_class", "auto_map", "mel_filters", "tokenizer_class", "device", "dtype"})
_TRAINING_ONLY = ("dropout", "layerdrop", "mask_", "apply_spec_augment", "initializer_range", "init_std")


def _tiny_wav2vec2(data: dict[str, Any]) -> dict[str, Any]:
    if data.get("pretrained"):
        return {}
    return {
        "model_type": "wav2vec2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "conv_dim": [32, 32, 32, 32, 32, 32, 32],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }


class HFAudioEncoderConfig(LayeredEncoderConfig):
    """An audio encoder of transformers that takes raw audio or log-mel, if its rate can be told from its numbers.

    These are wav2vec 2.0 and its relatives (any model that states `conv_dim`, `conv_kernel` and `conv_stride`),
    Whisper, Speech2Text, wav2vec 2.0-BERT and Moonshine. Where the model keeps padding out by its attention mask,
    batches are encoded as they are; otherwise the clips of each length are encoded apart, without padding, which is
    slower.
    """

    unused_tensors: ClassVar[tuple[str, ...]] = (
        *WhisperBase.unused_tensors,
        *RawAudioEncoderConfig.unused_tensors,
    )

    type: Literal["hf_audio"] = "hf_audio"
    model: dict[str, Any] = Field(default_factory=_tiny_wav2vec2)
    """Fields of the transformers configuration, `model_type` included; those that a checkpoint gives may be left out.

    Without any, and without a checkpoint, a tiny wav2vec 2.0.
    """
    published: dict[str, Any] | None = None
    """The fields that the checkpoint's `config.json` gives; null to read them there. They are filled in at validation,
    so that a saved model can be built without the checkpoint that it began with."""
    feature_extractor: dict[str, Any] | None = None
    """The fields of its feature extractor, as in `preprocessor_config.json`; null to take the checkpoint's (without a
    checkpoint, those that follow from the model)."""
    apply_spec_augment: bool = False
    """Whether spans of frames are masked at training, by the model's `mask_*` numbers."""

    @model_validator(mode="before")
    @classmethod
    def _take_numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # A null `model` undoes that of a preset.
        given = {
            key: value for key, value in cast("dict[str, Any]", data).items() if key != "model" or value is not None
        }
        name, model = given.get("pretrained"), cast("object", given.get("model") or {})
        if not isinstance(name, str) or not isinstance(model, dict):
            return given
        # What is there is not looked for: a saved model is built without the checkpoint that it began with. And one on
        # the hub is asked only where the numbers given here do not suffice.
        if given.get("published") is None and (
            not _is_complete(cast("dict[str, Any]", model)) or isinstance(resolve_pretrained(name), Path)
        ):
            found = read_json_config(name)
            given = {**given, "published": {k: v for k, v in found.items() if k not in _NOT_ARCHITECTURE}}
        if given.get("feature_extractor") is None:
            given = {**given, "feature_extractor": _published_extractor(name)}
        return given

    @model_validator(mode="after")
    def _check_model(self) -> HFAudioEncoderConfig:
        front_end, extractor = self.front_end, self.extraction
        if extractor["feature_extractor_type"] != front_end.extractor:
            raise ConfigError(
                f"the feature extractor is a {extractor['feature_extractor_type']!r}, but a model of the type "
                f"{self.numbers['model_type']!r} takes what a {front_end.extractor!r} gives; mend `feature_extractor`"
            )
        for key, value in front_end.extractor_defaults.items():
            if key in ("feature_size", "num_mel_bins") and extractor.get(key, value) != value:
                raise ConfigError(
                    f"the feature extractor's {key} is {extractor[key]!r}, but the model takes {value!r}; "
                    "take the feature extractor that belongs to the model"
                )
        hop_length, rate = extractor.get("hop_length", 160), self.sampling_rate
        if front_end.num_features and (hop_length, rate) != (160, 16_000):
            raise ConfigError(
                f"the feature extractor has a hop of {hop_length!r} samples at {rate!r} Hz, expected 160 at 16000 Hz"
            )
        if front_end.inner_layers and self.layer not in (-1, self.num_layers):
            raise ConfigError(
                f"layer {self.layer!r} of a model of the type {self.numbers['model_type']!r} cannot be had: "
                f"{front_end.inner_layers}; leave layer at -1"
            )
        window = self.window
        if window is not None and self.chunk_seconds is not None and self.chunk_seconds > window / self.sampling_rate:
            raise ConfigError(
                f"chunk_seconds may be at most the window of {window / self.sampling_rate:g} s, got "
                f"{self.chunk_seconds!r}"
            )
        _ = self.chunker
        return self

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Fields of the transformers configuration: the ones given here, and the checkpoint's.

        Raises:
            CheckpointError: A number given here differs from the checkpoint's, and acts not at training only.
        """
        if self.published is None:
            return dict(self.model)
        check_published(self.model, self.published, str(self.pretrained))
        return {**self.published, **self.model}

    @cached_property
    def front_end(self) -> FrontEnd:
        """How the model turns samples into frames.

        Raises:
            ConfigError: That cannot be told, or it takes something other than audio.
        """
        return front_end_of(self.numbers)

    @cached_property
    def extraction(self) -> dict[str, Any]:
        """Fields of the feature extractor in force."""
        defaults = {"feature_extractor_type": self.front_end.extractor, **self.front_end.extractor_defaults}
        found = {key: value for key, value in (self.feature_extractor or {}).items() if value is not None}
        return {**defaults, **found}

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return self.front_end.num_layers

    @property
    def hidden_size(self) -> int:
        """Width D of the frames."""
        return self.front_end.hidden_size

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.front_end.hop

    @property
    def sampling_rate(self) -> int:
        """Samples per second, as the feature extractor says."""
        rate = self.extraction["sampling_rate"]
        if type(rate) is not int or rate < 1:
            raise ConfigError(f"expected a positive sampling_rate of the feature extractor, got {rate!r}")
        return rate

    @property
    def fixed_frames(self) -> int | None:
        """The frames of the window; None where there is none."""
        return self.front_end.window_frames or None

    @property
    def window(self) -> int | None:
        """Samples of the window that every clip is padded to; None where there is none."""
        return self.front_end.window_frames * self.hop or None

    @property
    def chunker(self) -> Chunker | None:
        """How longer audio is cut; models with a window always cut it."""
        if self.chunk_seconds is None and self.window is None:
            return None
        return Chunker.from_seconds(
            (self.window or 0) / self.sampling_rate if self.chunk_seconds is None else self.chunk_seconds,
            self.chunk_overlap_seconds,
            sampling_rate=self.sampling_rate,
            hop=self.hop,
            num_frames=self.output_lengths,
        )

    def output_lengths(self, num_samples: Length) -> Length:
        """Frames of so many samples of audio."""
        return self.front_end.output_lengths(num_samples)

    def checkpoint_parts(self) -> CheckpointParts:
        """What this encoder needs of its base checkpoint; its feature extractor may lie within its processor."""
        parts = super().checkpoint_parts()
        return replace(parts, files=(*parts.files, "processor_config.json"))

    def build_preprocessor(self) -> HFAudioPreprocessor:
        """Runs the feature extractor in the data worker."""
        from speechlmm_encoders.hf_audio.preprocessor import HFAudioPreprocessor

        return HFAudioPreprocessor(self)

    def build(self, ctx: BuildContext) -> HFAudioEncoder:
        """The module, randomly initialised.

        Raises:
            ConfigError: The numbers do not make a model of that type.
        """
        from speechlmm_encoders.hf_audio.encoder import HFAudioEncoder

        return HFAudioEncoder(self, ctx)


def check_published(given: dict[str, Any], published: dict[str, Any], name: str) -> None:
    """Compares numbers with a checkpoint's, except for those that act at training only.

    Raises:
        CheckpointError: They differ; the message names the keys.
    """
    wrong = [
        f"{key} is {value!r} here and {published[key]!r} there"
        for key, value in given.items()
        if key in published and published[key] != value and not any(part in key for part in _TRAINING_ONLY)
    ]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {name!r} has another architecture than the configuration: {'; '.join(wrong)}; "
            "leave those keys out of `model` to take the checkpoint's"
        )


def _is_complete(model: dict[str, Any]) -> bool:
    try:
        front_end_of(model)
    except ConfigError:
        return False
    return True


def _published_extractor(name: str) -> dict[str, Any]:
    """The fields of a checkpoint's feature extractor, alone or within its processor.

    Raises:
        CheckpointError: It has neither.
    """
    try:
        found = read_json_config(name, "preprocessor_config.json")
    except CheckpointError as exc:
        try:
            found = cast("dict[str, Any]", read_json_config(name, "processor_config.json")["feature_extractor"])
        except (CheckpointError, KeyError):
            raise CheckpointError(
                f"the feature extractor of {name!r} is missing ({exc}); give its fields under `feature_extractor:`"
            ) from exc
    return {key: value for key, value in found.items() if key not in _NOT_EXTRACTION}
