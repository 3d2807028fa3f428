"""Refuse files that are too large for the repository (pre-commit hands over the names of what is staged)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 and name the files if one of them is over the limit."""
    parser = argparse.ArgumentParser(description="Refuse files that are too large for the repository.")
    parser.add_argument("--limit-kb", type=int, default=500, metavar="N")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    sizes = {path: path.stat().st_size for path in options.files if path.is_file()}
    large = {path: size for path, size in sizes.items() if size > options.limit_kb * 1000}
    for path, size in large.items():
        print(f"{path}: {size / 1000:.0f} kB, at most {options.limit_kb} kB are allowed", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
