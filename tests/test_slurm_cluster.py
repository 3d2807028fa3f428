"""Where the tests on a cluster are required, as by the gate, they fail without SLURM; they are not left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "test_launch_slurm.py"


@pytest.mark.parametrize(("asked", "code", "told"), [("required", 1, "1 error"), ("", 0, "1 skipped")])
def test_without_slurm(tmp_path, asked, code, told):
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-rs", "-p", "no:cacheprovider"]
    one = f"{TESTS}::test_what_slurm_refuses_is_told_on_one_line"
    env = {**os.environ, "PATH": str(tmp_path), "SPEECHLMM_SLURM_TESTS": asked}
    done = subprocess.run([*command, one], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stdout
    assert told in done.stdout
    assert "no SLURM cluster: slurmctld, slurmd, munged, sbatch, srun, squeue, scontrol not installed" in done.stdout
