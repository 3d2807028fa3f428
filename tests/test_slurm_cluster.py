"""Where continuous integration has no SLURM, the tests on a cluster fail; they are not left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "test_launch_slurm.py"


@pytest.mark.parametrize(("ci", "code", "told"), [("true", 1, "1 error"), ("", 0, "1 skipped")])
def test_without_slurm(tmp_path, ci, code, told):
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-rs", "-p", "no:cacheprovider"]
    one = f"{TESTS}::test_what_slurm_refuses_is_told_on_one_line"
    env = {**os.environ, "PATH": str(tmp_path), "CI": ci}
    done = subprocess.run([*command, one], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code, done.stdout
    assert told in done.stdout
    assert "no SLURM cluster: slurmctld, slurmd, munged, sbatch, srun, squeue, scontrol not installed" in done.stdout
