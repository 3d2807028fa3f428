"""The distributions: versions, ranges between siblings, entry points, and what is inside the wheels."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["speechlmm-core", "speechlmm-encoders", "speechlmm-adapters", "speechlmm-train", "speechlmm-serve"]
PROJECTS: dict[str, dict[str, Any]] = {
    name: tomllib.loads((ROOT / "packages" / name / "pyproject.toml").read_text()) for name in NAMES
}
ROOT_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY_POINTS = [
    pytest.param(name, group, key, value, id=f"{group}:{key}")
    for name in NAMES
    for group, entries in PROJECTS[name]["project"].get("entry-points", {}).items()
    for key, value in entries.items()
]


def requirements(name: str) -> list[Requirement]:
    project = PROJECTS[name]["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    return [Requirement(line) for lines in lists for line in lines]


def source_files(name: str) -> list[str]:
    """What git tracks below the package's src folder, relative to it."""
    src = ROOT / "packages" / name / "src"
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", str(src)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / line for line in done.stdout.split("\0") if line]
    return [path.relative_to(src).as_posix() for path in paths if path.exists()]


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_version_is_the_declared_one(name: str) -> None:
    assert importlib.metadata.version(name) == PROJECTS[name]["project"]["version"]


@pytest.mark.parametrize("name", NAMES)
def test_siblings_are_required_by_ranges_that_hold(name: str) -> None:
    siblings = [r for r in requirements(name) if r.name in NAMES and r.name != name]
    assert siblings or name == "speechlmm-core"
    for requirement in siblings:
        if requirement.extras and not requirement.specifier:
            continue  # an extra of a sibling whose range stands among the dependencies
        assert {spec.operator for spec in requirement.specifier} == {">=", "<"}, requirement
        assert PROJECTS[requirement.name]["project"]["version"] in requirement.specifier, requirement
    ranged = {requirement.name for requirement in siblings if requirement.specifier}
    assert {requirement.name for requirement in siblings} == ranged


@pytest.mark.parametrize("name", ["speechlmm-train", "speechlmm-serve"])
def test_applications_require_no_plugin_package(name: str) -> None:
    plain = {Requirement(line).name for line in PROJECTS[name]["project"]["dependencies"]}
    assert plain & set(NAMES) == {"speechlmm-core"}
    every = {Requirement(line).name for line in PROJECTS[name]["project"]["optional-dependencies"]["all"]}
    assert {"speechlmm-encoders", "speechlmm-adapters"} <= every


def test_all_support_the_same_pythons_under_the_same_licence() -> None:
    assert {p["project"]["requires-python"] for p in [*PROJECTS.values(), ROOT_PROJECT]} == {">=3.11,<3.15"}
    assert {p["project"]["license"] for p in PROJECTS.values()} == {"Apache-2.0"}
    licence = (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in licence
    for name in NAMES:
        assert (ROOT / "packages" / name / "LICENSE").read_bytes() == licence, name


def test_no_python_version_file_binds_the_clone() -> None:
    assert not (ROOT / ".python-version").exists()
    assert ROOT_PROJECT["tool"]["uv"]["package"] is False


@pytest.mark.parametrize(("name", "group", "key", "value"), ENTRY_POINTS)
def test_entry_point_is_installed_and_resolves(name: str, group: str, key: str, value: str) -> None:
    (entry,) = (e for e in importlib.metadata.entry_points(group=group, name=key) if e.dist and e.dist.name == name)
    assert entry.value == value
    loaded = entry.load()
    if group != "speechlmm.presets":
        assert loaded.model_fields["type"].default == key


@pytest.mark.parametrize("name", NAMES)
def test_scripts_resolve(name: str) -> None:
    for key, value in PROJECTS[name]["project"].get("scripts", {}).items():
        (entry,) = importlib.metadata.entry_points(group="console_scripts", name=key)
        assert entry.value == value
        assert callable(entry.load())


def test_config_modules_import_neither_torch_nor_transformers() -> None:
    modules = [
        file.removesuffix(".py").replace("/", ".")
        for name in NAMES
        for file in source_files(name)
        if file.endswith(("/config.py", "/registry.py", "/lengths.py")) and "/data/" not in file
    ]
    assert len(modules) > 5
    program = f"import sys, importlib\nfor m in {modules!r}:\n    importlib.import_module(m)\n"
    program += "print([m for m in ('torch', 'transformers', 'hydra', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """Built by the installed backend: no isolated environment, so no network."""
    folder = tmp_path_factory.mktemp("wheels")
    program = "import hatchling.build, sys; hatchling.build.build_wheel(sys.argv[1])"
    for name in NAMES:
        subprocess.run([sys.executable, "-c", program, folder], cwd=ROOT / "packages" / name, check=True)
    return {name: zipfile.ZipFile(next(folder.glob(f"{name.replace('-', '_')}-*.whl"))) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_wheel_holds_every_source_file_and_nothing_else(name: str, wheels: dict[str, zipfile.ZipFile]) -> None:
    inside = {file for file in wheels[name].namelist() if ".dist-info/" not in file}
    expected = set(source_files(name))
    assert f"{name.replace('-', '_')}/py.typed" in expected
    assert expected <= inside
    # Files that are not yet added to git may be there, caches and tests may not.
    assert not [file for file in inside if "__pycache__" in file or "/tests/" in file or file.startswith("tests/")]
    assert any(file.endswith("dist-info/licenses/LICENSE") for file in wheels[name].namelist())


def test_wheels_bring_presets_templates_and_configuration(wheels: dict[str, zipfile.ZipFile]) -> None:
    files = {file for wheel in wheels.values() for file in wheel.namelist()}
    for pattern in [
        r"speechlmm_core/chat/templates/\w+\.jinja",
        r"speechlmm_core/presets/model/text_decoder/\w+\.yaml",
        r"speechlmm_core/tasks/asr/prompts/en\.yaml",
        r"speechlmm_core/__init__\.pyi",
        r"speechlmm_encoders/presets/model/audio_encoder/\w+\.yaml",
        r"speechlmm_adapters/presets/model/audio_adapter/\w+\.yaml",
        r"speechlmm_train/conf/\w+\.yaml",
    ]:
        assert any(re.fullmatch(pattern, file) for file in files), pattern
