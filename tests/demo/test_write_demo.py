"""Writing the demo: complete, repeatable, and never over somebody's own file."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qa_hpo.demo import BASE, write_demo
from qa_hpo.errors import InputError

DATA = ["train-v1.json", "validation-v1.json", "train-v2.json", "validation-v2.json"]


def contents(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "a deep" / "démo"
    return folder, write_demo(folder)


def test_all_files_are_written(written):
    folder, files = written
    relative = {p.relative_to(folder).as_posix() for p in files}
    assert relative == {*DATA, "study.toml", *(f"base/{p.name}" for p in BASE.iterdir())}
    assert sorted(files) == sorted(p for p in folder.rglob("*") if p.is_file())


def test_study_file_names_the_written_files(written):
    folder, _ = written
    study = tomllib.loads((folder / "study.toml").read_text(encoding="utf-8"))
    paths = [study["data"]["train"], study["data"]["validation"], study["starts"]["base"]]
    paths += [study["starts"][name]["train"] for name in ("v1", "v2")]
    assert all(Path(p).exists() for p in paths)
    assert study["search"].keys() == study["baseline"][0].keys()
    assert {b["start"] for b in study["baseline"]} == set(study["search"]["start"]["choices"])


def test_baselines_are_inside_the_space(written):
    folder, _ = written
    study = tomllib.loads((folder / "study.toml").read_text(encoding="utf-8"))
    for baseline in study["baseline"]:
        assert baseline.keys() == study["search"].keys()
        for key, value in baseline.items():
            space = study["search"][key]
            if "choices" in space:
                assert value in space["choices"]
            else:
                assert space["low"] <= value <= space["high"]


@pytest.mark.parametrize("name", ["plain", "with space", 'quote"d', "back\\slash", "ünï\x7fcode"])
def test_hostile_folder_names(tmp_path, name):
    folder = tmp_path / name
    write_demo(folder)
    study = tomllib.loads((folder / "study.toml").read_text(encoding="utf-8"))
    assert study["data"]["train"] == (folder / "train-v2.json").as_posix()


def test_the_path_stays_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_demo(Path("demo"))
    study = tomllib.loads(Path("demo/study.toml").read_text(encoding="utf-8"))
    assert study["starts"]["base"] == "demo/base"


def test_writing_again_changes_nothing(written):
    folder, files = written
    before = contents(folder)
    assert write_demo(folder) == files
    assert contents(folder) == before


def test_a_missing_file_is_written_again(written):
    folder, _ = written
    before = contents(folder)
    (folder / "train-v2.json").unlink()
    write_demo(folder)
    after = contents(folder)
    assert {p: c for p, (c, _) in after.items()} == {p: c for p, (c, _) in before.items()}


@pytest.mark.parametrize("name", ["validation-v1.json", "study.toml", "base/config.json"])
def test_a_different_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="move it away") as caught:
        write_demo(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path).keys() == {path}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="Cannot write the demo"):
        write_demo(tmp_path / "demo")


def test_a_folder_name_that_is_not_unicode_is_refused(tmp_path):
    with pytest.raises(InputError, match="not valid Unicode"):
        write_demo(tmp_path / "\udcff")


def test_importing_the_demo_is_light():
    heavy = ("torch", "transformers", "tokenizers", "datasets")
    code = f"import sys, qa_hpo.demo; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
