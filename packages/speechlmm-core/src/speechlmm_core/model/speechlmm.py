"""The composite model: encoders, adapters, splice, text decoder and objectives.

Shapes: B media, R rows, N tokens, T frames, D hidden, M supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from speechlmm_core.checkpoint.provenance import base_source
from speechlmm_core.checkpoint.save import save_weights
from speechlmm_core.checkpoint.shards import MAX_SHARD_SIZE
from speechlmm_core.config import ModelConfig
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.features import Features, Loss
from speechlmm_core.interfaces.modules import Adapter, Component, Encoder, Objective, TextDecoder
from speechlmm_core.interfaces.objective import weight_at
from speechlmm_core.lora.config import LoraAdapterConfig
from speechlmm_core.model.dtypes import default_dtype
from speechlmm_core.model.freezing import Modes, keep_frozen
from speechlmm_core.model.hf_config import SpeechLMMConfig
from speechlmm_core.model.loading import load_model, take_arguments
from speechlmm_core.model.outputs import SpeechLMMOutput, total_loss
from speechlmm_core.model.penalties import text_penalties
from speechlmm_core.splice.gather import compact, splice
from speechlmm_core.wiring import refuse_speech_output, wire


class SpeechLMM(PreTrainedModel, GenerationMixin):
    """A speech language model put together from components.

    Its towers are attributes by the names of the configuration: ``model.audio_encoder``, ``model.audio_adapter``,
    ``model.text_decoder``; each has the network that does the work as ``.model``.
    """

    config_class = SpeechLMMConfig
    config: SpeechLMMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    text_decoder: TextDecoder

    def __init__(
        self, config: SpeechLMMConfig, *, flash_attention: bool = False, decoder_follows: bool = False
    ) -> None:
        super().__init__(config)
        self.model_config: ModelConfig = config.parse()
        refuse_speech_output(self.model_config)
        contexts = wire(self.model_config, flash_attention=flash_attention).contexts
        self.input_names: tuple[str, ...] = tuple(self.model_config.inputs)
        for name, towers in self.model_config.inputs.items():
            self.add_module(f"{name}_encoder", towers.encoder.build(contexts[f"{name}_encoder"]))
            self.add_module(f"{name}_adapter", towers.adapter.build(contexts[f"{name}_adapter"]))
        objectives = nn.ModuleDict()
        for name, objective in self.model_config.all_objectives.items():
            module = objective.build(contexts[f"objectives.{name}"])
            module.name = name
            if hasattr(objectives, name):
                raise ConfigError(f"an objective may not be called {name!r}, as torch uses that name; choose another")
            objectives[name] = module
        # Built last: a decoder that ZeRO spreads as it is loaded draws no random numbers, and all else has to begin
        # from the same weights nevertheless.
        decoder_context = replace(contexts["text_decoder"], weights_follow=decoder_follows)
        self.text_decoder = self.model_config.text_decoder.build(decoder_context)
        self.objectives = objectives
        self.frozen_modules: tuple[str, ...] = ()
        self.modes: Modes | None = None
        self.base_sources: dict[str, dict[str, Any]] = {}
        self.ever_trainable: set[str] = set()
        self.lora_adapters: tuple[LoraAdapterConfig, ...] = ()
        self.frozen_adapters: frozenset[str] = frozenset()
        self.quantised_modules: tuple[str, ...] = ()
        # Some parameters are constants (Whisper's sinusoids): no choice of trainable modules reaches them.
        self.constants = frozenset(name for name, p in self.named_parameters() if not p.requires_grad)
        config._text_config = self.text_decoder.model.config
        self.post_init()
        self.generation_config = self.text_decoder.model.generation_config

    @classmethod
    def from_model_config(
        cls,
        config: ModelConfig,
        *,
        load_base_weights: bool = True,
        dtype: torch.dtype = torch.float32,
        flash_attention: bool = False,
        decoder_follows: bool = False,
    ) -> SpeechLMM:
        """Builds a model from its typed configuration.

        Args:
            config: The components.
            load_base_weights: Load the base checkpoints that components name; else all weights are random.
            dtype: Type of the parameters.
            flash_attention: Whether FlashAttention can run where the model will (see `flash_usable`).
            decoder_follows: The caller loads all of the text decoder's weights afterwards: it gets memory without
                content, and what a large model's random weights cost is saved. So it is for base checkpoints.

        Raises:
            CheckpointError: A base checkpoint is missing or does not fit.
        """
        with default_dtype(dtype):
            shell = SpeechLMMConfig(model=config.model_dump(mode="json"), dtype=dtype)
            follows = decoder_follows or (load_base_weights and config.text_decoder.pretrained is not None)
            model = cls(shell, flash_attention=flash_attention, decoder_follows=follows)
        if load_base_weights:
            for name, component in model.components().items():
                pretrained = getattr(getattr(component, "config", None), "pretrained", None)
                if pretrained is not None:
                    component.load_base_weights()
                    model.base_sources[name] = base_source(pretrained)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> SpeechLMM:
        """Loads a checkpoint strictly: no key may be missing, unexpected or of another shape.

        Args:
            pretrained_model_name_or_path: Folder with `config.json`, or one that holds `model/`.
            *args: Not taken.
            **kwargs: ``dtype`` (a torch dtype, or "auto" for the saved one), ``device``, ``attn_implementation``,
                ``load_in_4bit``, ``load_in_8bit``, ``device_map``; ``revision`` of a checkpoint on the hub.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete or does not fit.
            TypeError: An argument that is not taken.
        """
        if args:
            raise TypeError(f"from_pretrained takes one positional argument, got {1 + len(args)}")
        path = take_arguments(pretrained_model_name_or_path, kwargs)
        return load_model(cls, path, **kwargs)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # one safe format, on purpose
        self,
        save_directory: str | Path,
        *,
        save: Literal["full", "trainable"] = "full",
        max_shard_size: int | str = MAX_SHARD_SIZE,
        **others: Any,
    ) -> None:
        """Saves weights and configuration, atomically; the processor is saved by `SpeechLMMProcessor`.

        Args:
            save_directory: The folder.
            save: `full` for every tensor; `trainable` for what was trained and references to frozen bases.
            max_shard_size: Size that one file of weights may have.
            **others: Further arguments of transformers' method are refused, unless they ask for nothing.

        Raises:
            TypeError: An argument that is not taken.
        """
        refused = [key for key, value in others.items() if value not in (None, False)]
        if refused:
            raise TypeError(f"save_pretrained takes no {', '.join(map(repr, refused))}")
        save_weights(self, Path(save_directory), save=save, max_shard_size=max_shard_size)

    def components(self) -> dict[str, Component]:
        """The components by name, objectives included as ``objectives.<name>``."""
        found: dict[str, Component] = {}
        for name in self.input_names:
            found[f"{name}_encoder"] = self.encoder(name)
            found[f"{name}_adapter"] = self.adapter(name)
        found["text_decoder"] = self.text_decoder
        for name, objective in self.objectives.items():
            assert isinstance(objective, Component)
            found[f"objectives.{name}"] = objective
        return found

    def encoder(self, name: str) -> Encoder:
        """The encoder of an input."""
        return cast("Encoder", self.get_submodule(f"{name}_encoder"))

    def adapter(self, name: str) -> Adapter:
        """The adapter of an input."""
        return cast("Adapter", self.get_submodule(f"{name}_adapter"))

    def _init_weights(self, module: nn.Module) -> None:
        # Components initialise themselves when they are built; a second initialisation would undo theirs.
        return

    @property
    def device(self) -> torch.device:
        """Where batches go: the device of the text decoder's embeddings; other parts may lie elsewhere."""
        return self.text_decoder.embedding_weight.device

    def get_input_embeddings(self) -> nn.Module:
        """The text decoder's embedding table."""
        return self.text_decoder.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The text decoder's head."""
        return self.text_decoder.model.get_output_embeddings()

    def enable_input_require_grads(self) -> None:
        """Nothing: checkpointing that is not re-entrant needs no gradient at the inputs.

        Transformers' own asks for one at the input of every tower, so that a frozen encoder would keep all that its
        backward pass, which nobody needs, takes.
        """

    def train(self, mode: bool = True) -> SpeechLMM:
        """Sets the mode; frozen modules stay in evaluation mode, so that nothing in them drops out or drifts."""
        super().train(mode)
        if mode:
            keep_frozen(self)
        return self

    def encode(self, media: Mapping[str, Mapping[str, Any]]) -> dict[str, Features]:
        """Runs the encoders and adapters.

        Args:
            media: The batch's `media`.

        Returns:
            Stage outputs ``<input>_encoder`` and ``<input>_adapter`` of the inputs that the batch holds.

        Raises:
            DataError: The batch holds an input that the model has not.
        """
        unknown = [name for name in media if name not in self.input_names]
        if unknown:
            raise DataError(f"the batch holds {unknown!r}, but this model takes {list(self.input_names)!r}")
        stages: dict[str, Features] = {}
        for name in self.input_names:
            if name not in media:
                continue
            encoder = self.encoder(name)
            dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
            inputs = {
                key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for key, value in media[name]["inputs"].items()
            }
            features = encoder(inputs)
            stages[f"{name}_encoder"] = features
            stages[f"{name}_adapter"] = self.adapter(name)(features, media[name].get("target_lengths"))
        return stages

    def embed(self, batch: Mapping[str, Any], stages: Mapping[str, Features]) -> tuple[Tensor, Mapping[str, Any]]:
        """The input embeddings (R, N, D) with the media spliced in, and the batch, compacted where that is needed."""
        text = self.text_decoder.embed(batch["input_ids"])  # (R, N, D)
        media: Mapping[str, Any] = batch.get("media", {})
        present = [name for name in self.input_names if name in media]
        features = [stages[f"{name}_adapter"] for name in present]
        if "dynamic" in batch:
            lengths = [None if media[name]["exact"] else stages[f"{name}_adapter"].lengths for name in present]
            batch = compact(batch, lengths)
        return splice(text, features, batch["splice"]), batch

    def forward(
        self,
        *,
        objective_weights: Mapping[str, float] | None = None,
        loss_counts: Mapping[str, int] | None = None,
        **batch: Any,
    ) -> SpeechLMMOutput:
        """Runs the model over a batch that `SpeechLMMProcessor.collate` made.

        Args:
            objective_weights: Weights by objective; those not named, or of weight zero, are not computed. None for
                the configured weights (at the end of their schedules).
            loss_counts: What losses are divided by, by unit, where that is not this batch's counts: those of a
                training step are counted over its micro-batches and processes.
            **batch: See `speechlmm_core.splice.plan`.

        Returns:
            The losses, their weighted mean over this batch, and the stage outputs.
        """
        weights = self.resolve_weights(objective_weights)
        stages = self.encode(batch.get("media", {}))
        needed = {stage for name in weights for stage in self.objective(name).config.stages}
        if "text_decoder" in needed or not weights:
            embeds, layout = self.embed(batch, stages)
            mask = layout.get("attention_mask")
            hidden = self.text_decoder(
                embeds, position_ids=layout["position_ids"], attention_mask=mask, segments=layout.get("segments")
            )  # (R, N, D)
            lengths = torch.ones_like(layout["input_ids"]).sum(1) if mask is None else mask.sum(1)
            batch = {**layout}
            stages["text_decoder"] = Features(hidden, lengths)
        losses: dict[str, Loss] = {}
        for name in weights:
            objective = self.objective(name)
            if all(stage in stages for stage in objective.config.stages):
                losses[name] = objective(stages, batch, self.text_decoder)
        return SpeechLMMOutput(loss=total_loss(losses, weights, batch, loss_counts), losses=losses, stages=stages)

    def resolve_weights(self, given: Mapping[str, float] | None) -> dict[str, float]:
        """The objectives to compute, with their weights."""
        if given is None:
            given = {name: weight_at(o.weight, 1.0) for name, o in self.model_config.all_objectives.items()}
        return {name: weight for name, weight in given.items() if weight > 0}

    def objective(self, name: str) -> Objective:
        """The objective called ``name``."""
        return cast("Objective", self.objectives[name])

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any], **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Generates answers with the language model's own `generate`.

        Args:
            batch: Collated with ``padding_side="left"`` and without packing.
            **kwargs: Generation options of transformers (``max_new_tokens``, ``do_sample``, ``streamer``, …).

        Penalties on repetition see the text of the prompt and the answer, and neither media nor padding.

        Returns:
            (B, new tokens) ids, without the prompt, padded on the right.
        """
        stages = self.encode(batch.get("media", {}))
        embeds, batch = self.embed(batch, stages)
        ids: Tensor = batch["input_ids"]
        text = (batch["splice"]["base"] < ids.numel()) & batch["attention_mask"].bool()  # (B, N)
        kwargs = text_penalties(kwargs, self.text_decoder.model.generation_config, text)
        out: Tensor = self.text_decoder.model.generate(
            input_ids=ids,
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            # Each process of a training answers questions of its own, some of them none.
            **{"synced_gpus": False, **kwargs},
        )
        return out[:, ids.shape[1] :]


AutoModel.register(SpeechLMMConfig, SpeechLMM, exist_ok=True)
AutoModelForCausalLM.register(SpeechLMMConfig, SpeechLMM, exist_ok=True)
