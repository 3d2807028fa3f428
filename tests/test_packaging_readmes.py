"""The Python in the READMEs runs as it stands there."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_READMES = sorted((ROOT / "packages").glob("*/README.md"))


def python_blocks(readme: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def execute(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("readme", PACKAGE_READMES, ids=lambda path: path.parent.name)
def test_package_readme(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# {readme.parent.name}\n")
    assert "pip install" in text
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(readme):
        execute(block)


@pytest.mark.parametrize("readme", PACKAGE_READMES, ids=lambda path: path.parent.name)
def test_package_readme_names_every_extra(readme: Path) -> None:
    project = tomllib.loads((readme.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = readme.read_text(encoding="utf-8")
    extras = set(project.get("optional-dependencies", {})) - {"test"}
    assert [name for name in sorted(extras) if f"`{name}`" not in text and f"[{name}]" not in text] == []


@pytest.mark.parametrize(("package", "kind"), [("speechlmm-encoders", "encoder"), ("speechlmm-adapters", "adapter")])
def test_readmes_name_every_component(package: str, kind: str) -> None:
    folder = ROOT / "packages" / package
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for readme in (folder / "README.md", ROOT / "README.md"):
        text = readme.read_text(encoding="utf-8")
        assert [name for name in project["entry-points"][f"speechlmm.{kind}"] if f"`{name}`" not in text] == []


def test_root_readme_builds_a_model_loads_it_and_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load, build = python_blocks(ROOT / "README.md")
    assert len(load.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    built = execute(build)
    built["model"].save_pretrained("runs/demo")
    built["processor"].save_pretrained("runs/demo")
    (clip,) = re.findall(r'"path": "(.*?)"', load)
    Path(clip).parent.mkdir(parents=True)
    soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000)
    execute(load)
    assert capsys.readouterr().out.endswith("\n")


def test_root_readme_names_the_two_commands_on_its_first_screen() -> None:
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    assert "pip install uv && uv run speechlmm-train demo" in first_screen
    assert "uv run pytest -n 2" in first_screen
    assert "git restore uv.lock && git pull" in "\n".join(first_screen)


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PACKAGE_READMES]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
