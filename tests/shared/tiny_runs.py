"""What tests of whole trainings share: tiny models, and what a training wrote."""

import json
from pathlib import Path

RUN_EACH = """
import json, sys
from pathlib import Path
from speechlmm_train.process import prepare_process
prepare_process()
from speechlmm_train.compose import validate
from speechlmm_train.run import run
for file in sys.argv[1:]:
    plain = json.loads(Path(file).read_text())
    run(validate(plain), plain=plain, base=Path(file).parent, progress=False)
"""
"""Trains by each of the configurations that are named, one after the other."""


def tiny_encoder(width=32, dropout=0.0, frames=200):
    """The section of a Whisper encoder of one layer."""
    sizes = {"num_mel_bins": 16, "d_model": width, "encoder_layers": 1, "encoder_attention_heads": 2}
    rest = {"encoder_ffn_dim": 2 * width, "max_source_positions": frames, "dropout": dropout}
    return {"type": "whisper_unrestricted", "model": {**sizes, **rest}}


def tiny_decoder(width=32, layers=1, **others):
    """The section of a Llama of two heads, over bytes."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    numbers = {"model_type": "llama", **sizes, **heads, **others}
    return {"type": "causal_lm", "tokenizer": "bytes", "chat_template": "chatml", "model": numbers}


def tiny_model(encoder, decoder, ctc):
    """The `model:` section, with CTC of a weight."""
    return {
        "audio_encoder": encoder,
        "audio_adapter": {"type": "mlp", "stack": 2, "num_layers": 1},
        "text_decoder": decoder,
        "objectives": {"ctc": {"type": "ctc", "weight": ctc}},
    }


def rows(out):
    """The figures that a run wrote."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def run_jobs(run_script, code, data, jobs):
    """What two processes do that get configurations by name, one after the other."""
    files = []
    for name, plain in jobs.items():
        files.append(data / f"{name}.json")
        files[-1].write_text(json.dumps(plain))
    done = run_script(code, *files, timeout=500)
    assert done.code == 0, done.err[-6000:]
    return done
