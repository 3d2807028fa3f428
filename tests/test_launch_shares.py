"""Runs whose processes cannot share a step, as the commands tell it."""

import pytest

from speechlmm_train.cli.main import main


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_cannot_be_shared_is_refused_before_it_is_planned_or_queued(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    tiny = ["model/audio_encoder=whisper", "model/audio_adapter=mlp", "model/text_decoder=llama_3_8b"]
    given = [*tiny, "data.train=[x.jsonl]", "training.token_budget=9", "training.max_steps=1"]
    given += ["training.micro_batches_per_step=16"]
    given += ["hydra/launcher=slurm", "hydra.launcher.gres=gpu:4", "hydra.launcher.nodes=3"]
    more = ["--dry-run"] if command == "run" else []
    with pytest.raises(SystemExit) as caught:
        main([command, *given, *more])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert "training.micro_batches_per_step: got 16; expected a multiple of the 12 processes" in err
