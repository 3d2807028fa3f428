"""`tools/lock.py`: the lock in git names versions and no addresses."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV") or shutil.which("uv") or "uv"

FILLED = """\
version = 1
revision = 5
requires-python = ">=3.11"

[manifest]
members = [
    "app",
]

[[package]]
name = "app"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "numpy", version = "2.4.6", source = { registry = "https://i.example/s" }, marker = "extra == 'x'" },
    { name = "rich" },
]

[package.optional-dependencies]
test = [
    { name = "rich" },
]

[package.metadata]
requires-dist = [
    { name = "numpy" },
    { name = "rich" },
]
provides-extras = ["test"]

[package.metadata.requires-dev]
dev = []

[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "https://i.example/root" }
sdist = { url = "https://files.example/numpy-2.4.6.tar.gz", hash = "sha256:00", size = 1 }
wheels = [
    { url = "https://files.example/numpy-2.4.6-cp311.whl", hash = "sha256:01", size = 2 },
    { url = "https://files.example/numpy-2.4.6-cp312.whl", hash = "sha256:02", size = 3 },
]

[[package]]
name = "rich"
version = "15.0.0"
source = { registry = "https://i.example/root" }
sdist = { url = "https://files.example/rich-15.0.0.tar.gz", hash = "sha256:03", size = 4 }
"""

NEUTRAL = """\
version = 1
revision = 5
requires-python = ">=3.11"

[manifest]
members = [
    "app",
]

[[package]]
name = "app"
version = "0.1.0"
source = { virtual = "." }
dependencies = [
    { name = "numpy", version = "2.4.6", source = { registry = "." }, marker = "extra == 'x'" },
    { name = "rich" },
]

[package.optional-dependencies]
test = [
    { name = "rich" },
]

[[package]]
name = "numpy"
version = "2.4.6"
source = { registry = "." }

[[package]]
name = "rich"
version = "15.0.0"
source = { registry = "." }
"""


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speechlmm_tools_lock", ROOT / "tools" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a project of two members and no dependency from an index: uv locks it without a network."""
    (tmp_path / "packages" / "part").mkdir(parents=True)
    (tmp_path / "packages" / "part" / "pyproject.toml").write_text(
        '[project]\nname = "part"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n[tool.uv]\npackage = false\n'
    )
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "app"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["part"]\n'
        '[tool.uv]\npackage = false\n[tool.uv.workspace]\nmembers = ["packages/*"]\n'
        "[tool.uv.sources]\npart = { workspace = true }\n"
    )
    git(tmp_path, "init", "-q")
    return tmp_path


def test_strip_leaves_versions_and_no_addresses(lock: ModuleType) -> None:
    assert lock.strip(FILLED) == NEUTRAL
    assert list(lock.problems(NEUTRAL)) == []


def test_strip_leaves_a_neutral_lock_alone(lock: ModuleType) -> None:
    assert lock.strip(NEUTRAL) == NEUTRAL


def test_strip_refuses_a_layout_it_does_not_know(lock: ModuleType) -> None:
    with pytest.raises(lock.LockError, match="not laid out as expected"):
        lock.strip(FILLED.replace("sdist = {", 'sdist."format" = "x"\nsdist.file = {'))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "rich"\nversion', 'name = "rich"\nwheels = []\nversion', "rich 15.0.0: has `wheels`"),
        ('source = { registry = "." }\n\n', 'source = { registry = "mirror" }\n\n', "registry 'mirror'"),
        ('source = { registry = "." }, marker', 'source = { registry = "/srv" }, marker', "app 0.1.0: comes from"),
        ("revision = 5", "revision = 5 # see http://mirror.example/root", "an address: http://mirror.example"),
        ('[[package]]\nname = "numpy"', '[package.metadata]\nx = 1\n\n[[package]]\nname = "numpy"', "has `metadata`"),
        ("version = 1\n", "version = \n", "not TOML"),
    ],
)
def test_problems_names_each_tie_to_an_index(lock: ModuleType, old: str, new: str, said: str) -> None:
    assert old in NEUTRAL
    assert any(said in line for line in lock.problems(NEUTRAL.replace(old, new, 1)))


def test_problems_of_a_filled_in_lock(lock: ModuleType) -> None:
    found = list(lock.problems(FILLED))
    assert sum("an address" in line for line in found) == 7
    assert "app 0.1.0: has `metadata`" in found


def test_differences_names_the_package_and_both_versions(lock: ModuleType) -> None:
    assert lock.differences(NEUTRAL, NEUTRAL) == []
    moved = NEUTRAL.replace("15.0.0", "14.0.0")
    assert lock.differences(NEUTRAL, moved) == ["rich: 15.0.0 in git, resolves to 14.0.0"]
    loose = NEUTRAL.replace('    { name = "rich" },\n]\n\n[package.opt', "]\n\n[package.opt")
    assert lock.differences(NEUTRAL, loose) == ["app: dependencies differ"]


def test_check_judges_git_and_not_the_working_file(lock: ModuleType, project: Path) -> None:
    (project / "uv.lock").write_text(NEUTRAL)
    git(project, "add", ".")
    (project / "uv.lock").write_text(FILLED)
    assert lock.check(project, offline=True) == []
    git(project, "add", "uv.lock")
    (project / "uv.lock").write_text(NEUTRAL)
    assert lock.check(project, offline=True)


def test_check_sees_a_lock_that_is_behind_its_project(
    lock: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock.main(["--root", str(project), "update"]) == 0
    git(project, "add", ".")
    assert lock.main(["--root", str(project), "check"]) == 0
    part = project / "packages" / "part" / "pyproject.toml"
    part.write_text(part.read_text().replace("0.1.0", "0.2.0"))
    assert lock.main(["--root", str(project), "check"]) == 0, "what is not in git is not judged"
    git(project, "add", ".")
    assert lock.main(["--root", str(project), "check"]) == 1
    assert "part: 0.1.0 in git, resolves to 0.2.0" in capsys.readouterr().err


def test_check_without_a_lock_in_git_is_one_line(
    lock: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock.main(["--root", str(project), "check"]) == 2
    assert "git show :uv.lock" in capsys.readouterr().err


def test_uv_keeps_the_versions_of_a_neutral_lock(lock: ModuleType, project: Path) -> None:
    # Two versions of one distribution in a folder that serves as index: the older, locked one stays.
    index = project / "index"
    index.mkdir()
    for version in ("1.0", "2.0"):
        build_empty_wheel(index, "leaf", version)
    root = project / "pyproject.toml"
    root.write_text(
        root.read_text().replace('["part"]', '["part", "leaf"]')
        + f'\n[[tool.uv.index]]\nname = "local"\nurl = "{index}"\nformat = "flat"\ndefault = true\n'
    )
    subprocess.run([UV, "lock", "-q", "--upgrade-package", "leaf<2"], cwd=project, check=True)
    assert lock.strip_file(project)
    neutral = (project / "uv.lock").read_text()
    assert list(lock.problems(neutral)) == []
    subprocess.run([UV, "lock", "-q"], cwd=project, check=True)
    filled = tomllib.loads((project / "uv.lock").read_text())
    leaf = next(package for package in filled["package"] if package["name"] == "leaf")
    assert leaf["version"] == "1.0"
    assert leaf["wheels"]
    assert lock.strip((project / "uv.lock").read_text()) == neutral


def build_empty_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_the_committed_lock_is_neutral(lock: ModuleType) -> None:
    assert lock.check(ROOT, offline=True) == []
