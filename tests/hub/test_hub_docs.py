"""The commands of docs/hub.md do what the page says of them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hub_processes import Place
from hub_server import Hub
from hub_studies import study
from hub_world import SQUAD_V2, Contents

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_every_command(place: Place, hub: Hub, contents: Contents) -> None:
    given = commands()
    assert given == [
        "qa-hpo prepare study.toml",
        "hf auth login",
        "HF_TOKEN=hf_... qa-hpo check study.toml",
        "qa-hpo prepare study.toml --download-only",
        'cp -a "$HF_HOME" cluster-home',
        "HF_HOME=cluster-home HF_HUB_OFFLINE=1 qa-hpo run study.toml",
    ]
    hub.tokens = {"hf_...": {"org/private"}}
    private = hub.add("model", "org/private", contents.bert, private=True)
    study(place.folder, base="org/private", train=SQUAD_V2)
    commits = [f"{SQUAD_V2}: commit {hub.repositories['dataset', SQUAD_V2].head}"]
    commits.append(f"org/private: commit {private.head}")

    refused = place.run("check", "study.toml")
    assert (refused.code, "run 'hf auth login'" in refused.error) == (2, True)
    # What logging in leaves in HF_HOME; the command itself asks for the token at a terminal.
    (place.home / "token").write_text("hf_...")
    prepared = place.run(*given[0].split()[1:])
    assert (prepared.code, all(line in prepared.out for line in commits)) == (0, True)
    (place.home / "token").unlink()
    checked = place.run(*given[2].split()[2:], HF_TOKEN="hf_...")
    assert (checked.code, checked.out.splitlines()[-1]) == (0, "study.toml: good")
    prepared = place.run(*given[3].split()[1:], HF_TOKEN="hf_...")
    assert (prepared.code, all(line in prepared.out for line in commits)) == (0, True)

    environment = {**os.environ, **place.variables()}
    subprocess.run(["sh", "-e", "-c", given[4]], cwd=place.folder, env=environment, check=True)
    place.home.rename(place.folder / "elsewhere")
    with hub.watched() as asked:
        ran = place.run(*given[5].split()[3:], HF_HOME="cluster-home", HF_HUB_OFFLINE="1")
    assert (ran.code, ran.err) == (0, "")
    assert "Take the winner home: qa-hpo export study.toml OUT" in ran.out
    assert asked == []
