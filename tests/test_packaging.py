"""What is published: the wheel and the sdist, and the wheel alone with what it must have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import qa_hpo

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "qa_hpo"
EXTRAS = {"postgres", "ray", "slurm", "s3", "docs", "dev"}
STUDY = """
[study]
name = "from the wheel"
[data]
train = "demo/train-v2.json"
train_limit = 48
validation = "demo/validation-v2.json"
validation_limit = 24
max_length = 128
[starts]
base = "demo/base"
[search.learning_rate]
low = 1e-4
high = 1e-3
log = true
[training]
epochs = 1
doc_stride = 32
[evaluation]
doc_stride = 32
[budget]
trials = 2
"""


def build(source: Path, kind: str, folder: Path) -> Path:
    """Build with the backend alone: no isolation, no network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from nothing but what the sdist holds."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def package_files() -> set[str]:
    return {
        f"qa_hpo/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_sdist_holds_the_package_and_what_people_read_of_it(sdist: Path) -> None:
    top = f"qa_hpo-{qa_hpo.__version__}"
    with tarfile.open(sdist) as tar:
        held = {name.removeprefix(f"{top}/") for name in tar.getnames()}
    about = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert held == about | {f"src/{name}" for name in package_files()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"qa_hpo-{qa_hpo.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == package_files()
    # What is no Python is easily forgotten.
    data = {"py.typed", "study_template.toml", "demo/study.toml.in", "demo/base/model.safetensors"}
    assert {f"qa_hpo/{name}" for name in data} <= held


def test_the_wheel_says_what_it_is_and_needs(wheel: Path) -> None:
    info = f"qa_hpo-{qa_hpo.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert metadata["Version"] == qa_hpo.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert "qa-hpo = qa_hpo.cli:main" in scripts
    readme = metadata.get_payload()
    assert isinstance(readme, str)
    assert readme.startswith("# qa_hpo")
    needs = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    plain = {canonicalize_name(need.name) for need in needs if need.marker is None}
    assert {"torch", "transformers", "optuna", "typer"} <= plain
    assert plain.isdisjoint({"psycopg", "ray", "submitit", "boto3", "pytest", "matplotlib"})


def test_the_lowest_versions_that_are_tested_are_those_that_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {}
    for line in (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = Requirement(f"x=={version}").specifier
    for text in project["dependencies"]:
        need = Requirement(text)
        (floor,) = [each.version for each in need.specifier if each.operator == ">="]
        assert pinned[canonicalize_name(need.name)].contains(floor), text


# ------------------------------------------------------------------ the wheel alone


def needed() -> dict[str, Distribution]:
    """What an installation without extras brings along, as far as it is installed here."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    todo = [("qa_hpo", "")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in asked:
            continue
        asked.add((name, extra))
        here = distribution(name)
        found[canonicalize_name(name)] = here
        for text in here.requires or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(need.name, each) for each in ["", *need.extras]]
    del found["qa-hpo"]
    return found


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment that has the wheel and what it needs.

    What it needs is linked from this environment, package by package; nothing else is there, and
    least of all this checkout.
    """
    folder = tmp_path_factory.mktemp("the wheel, alone") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    for package in needed().values():
        tops = {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}
        for top in tops:
            link = site / top
            if not link.exists():
                link.symlink_to(str(package.locate_file(top)))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel]
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return folder / "bin"


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``, which is outside the repository, without this checkout."""
    left_out = {"PYTHONPATH", "VIRTUAL_ENV", "QA_HPO_STORAGE", "QA_HPO_CACHE"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ROOT not in folder.resolve().parents
    return done


def test_every_module_can_be_imported_without_extras(alone: Path, tmp_path: Path) -> None:
    script = """
import importlib, importlib.util, json, pkgutil, sys
import qa_hpo
extras = ["psycopg", "ray", "submitit", "boto3", "matplotlib", "pytest", "sklearn"]
there = [name for name in extras if importlib.util.find_spec(name)]
names = [module.name for module in pkgutil.walk_packages(qa_hpo.__path__, "qa_hpo.")]
for name in names:
    if name != "qa_hpo.__main__":
        importlib.import_module(name)
print(json.dumps({"there": there, "modules": len(names), "from": qa_hpo.__file__}))
"""
    done = run([alone / "python", "-W", "error::DeprecationWarning:qa_hpo", "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["there"] == []
    modules = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    assert found["modules"] == len(modules)
    assert Path(found["from"]).is_relative_to(alone.parent)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["status", "x", "--storage", "postgresql://me:secret@127.0.0.1/db"],
            "error: postgresql://me:***@127.0.0.1/db: the PostgreSQL driver is missing; "
            "pip install 'qa_hpo[postgres]'\n",
        ),
        (
            ["run", "study.toml", "--launcher", "ray"],
            "error: --launcher ray: Ray is missing; pip install 'qa_hpo[ray]'\n",
        ),
        (
            ["run", "study.toml", "--launcher", "slurm", "--workers", "2"],
            "error: --launcher slurm: submitit is missing; pip install 'qa_hpo[slurm]'\n",
        ),
        (
            ["check", "study.toml"],
            "error: s3://bucket: boto3 is missing; pip install 'qa_hpo[s3]'\n",
        ),
    ],
    ids=["postgres", "ray", "slurm", "s3"],
)
def test_an_extra_that_is_missing_is_named_with_its_remedy(
    arguments: list[str], line: str, alone: Path, tmp_path: Path
) -> None:
    text = f"{STUDY}\n[artifacts]\nfolder = 's3://bucket'\n"
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    done = run([alone / "qa-hpo", *arguments], tmp_path)
    assert (done.returncode, done.stderr) == (2, line)


def test_the_demo_from_study_to_answer(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    (tmp_path / "text.txt").write_text("The River Falengor was dammed in 1714.", encoding="utf-8")
    question = ["--question", "When was the River Falengor dammed?"]
    for arguments in (
        ["demo", "demo"],
        ["run", "study.toml"],
        ["export", "study.toml", "winner"],
        ["answer", "winner", "--context", "text.txt", "--json", *question],
    ):
        done = run([alone / "qa-hpo", *arguments], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["question"] == question[1]
    assert answer["answer"] is None or answer["answer"] in "The River Falengor was dammed in 1714."
    assert (tmp_path / "winner" / "model.safetensors").is_file()
