"""The demo's model for benchmarks: its sizes, with bytes in the place of the tokenizer that the demo trains."""

from __future__ import annotations

from typing import Any


def demo_model(**text_decoder: Any) -> dict[str, Any]:
    """The `model:` section of a run.

    Args:
        **text_decoder: Further numbers of the language model.
    """
    whisper = {"num_mel_bins": 40, "d_model": 128, "encoder_layers": 3, "encoder_attention_heads": 4}
    llama = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    return {
        "audio_encoder": {
            "type": "whisper_unrestricted",
            "model": {**whisper, "encoder_ffn_dim": 512, "max_source_positions": 750},
            "conv_strides": [2, 2],
        },
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 2, "hidden_size": 256},
        "text_decoder": {
            "type": "causal_lm",
            "tokenizer": "bytes",
            "chat_template": "chatml",
            "model": {**llama, **heads, **text_decoder},
        },
    }
