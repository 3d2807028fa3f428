"""Composing and validating the 72 runs of the first README's sweep, against a composition of each by itself.

The alternative is what a launcher does that knows nothing of the other runs: Hydra is set up, and the tree is read,
anew for each. Both have to give the same configurations. The goal is 10 s for all of them, imports included.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _bench import compare, report

SWEEP = [
    "model/audio_encoder=hubert,seamless,whisper_unrestricted",
    "model/audio_adapter=mlp,cformer_cif,qformer",
    "model/text_decoder=llama_3_8b,mistral",
    "training_setting=paper_1a,paper_1b,paper_1c,paper_1d",
    "adjustments=[zero3_issue,paper_helios]",
]
WHOLE = f"""
from speechlmm_train.sweep import expand_sweep
runs = expand_sweep("pretrain", {SWEEP!r})
assert len(runs) == 72 and all(run.composed for run in runs)
"""


def main() -> None:
    """Prints medians and their ratio."""
    from speechlmm_train.compose import compose_config
    from speechlmm_train.sweep import expand_sweep

    runs = expand_sweep("pretrain", SWEEP)
    for run in runs:
        if run.composed is None or run.composed.plain != compose_config("pretrain", run.overrides).plain:
            raise SystemExit(f"run {run.number} is not what it is by itself: {run.fault}")
    seconds = compare(
        {
            "together": lambda: expand_sweep("pretrain", SWEEP),
            "each by itself": lambda: [compose_config("pretrain", run.overrides) for run in runs],
        },
        repeats=3,
        warmup=0,
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", WHOLE], check=True)
    whole = time.perf_counter() - started
    report(
        "sweep_compose",
        {
            "runs": len(runs),
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "ratio": round(seconds["each by itself"] / seconds["together"], 2),
            "seconds of a process that does nothing else": round(whole, 2),
        },
    )


if __name__ == "__main__":
    main()
