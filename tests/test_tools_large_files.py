"""`tools/large_files.py`: large files are named and refused."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[1] / "tools" / "large_files.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


def test_names_the_file_that_is_too_large(tmp_path: Path) -> None:
    small, large = tmp_path / "small.bin", tmp_path / "large.bin"
    small.write_bytes(bytes(2000))
    large.write_bytes(bytes(2001))
    assert run("--limit-kb", "2", small).returncode == 0
    done = run("--limit-kb", "2", small, large, tmp_path / "deleted.bin")
    assert done.returncode == 1
    assert "large.bin: 2 kB" in done.stderr
    assert "small.bin" not in done.stderr
