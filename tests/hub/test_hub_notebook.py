"""studies/notebook.toml as it is, against the hub: prepared, run, and run without network."""

import json
import sqlite3
from pathlib import Path

import pytest
from hub_processes import Place
from hub_server import Hub
from hub_world import DISTILBERT, SQUAD, SQUAD_V2

from qa_hpo.squad.corpus import load_corpus
from tiny import squad

NOTEBOOK = Path(__file__).resolve().parents[2] / "studies" / "notebook.toml"


@pytest.mark.slow
def test_the_notebook_study(place: Place, hub: Hub) -> None:
    commits = {
        f"models/{DISTILBERT}": hub.repositories["model", DISTILBERT].head,
        f"datasets/{SQUAD_V2}": hub.repositories["dataset", SQUAD_V2].head,
        f"datasets/{SQUAD}": hub.repositories["dataset", SQUAD].head,
    }
    prepared = place.run("prepare", NOTEBOOK)
    assert (prepared.code, prepared.err) == (0, "")
    assert {f"{name}: commit {commit}" for name, commit in commits.items()} <= set(
        prepared.out.splitlines()
    )
    # What is needed, and each file once.
    files = {
        f"models/{DISTILBERT}": [
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
            "vocab.txt",
        ],
        f"datasets/{SQUAD_V2}": ["README.md", *_parquet("squad_v2")],
        f"datasets/{SQUAD}": ["README.md", *_parquet("plain_text")],
    }
    wanted = {f"{name}/{path}": 1 for name, paths in files.items() for path in paths}
    assert hub.fetched() == wanted

    # The coordinator looks whether there is something newer, and the worker does not.
    with hub.watched() as asked:
        ended = place.run_anew("run", NOTEBOOK, "--trials", "2")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert {a.path for a in asked} == {f"/api/{name}" for name in commits}
    with sqlite3.connect(place.folder / "storage" / "qa_hpo.db") as database:
        attributes = dict(database.execute("SELECT key, value_json FROM study_user_attributes"))
    assert json.loads(attributes["hub_commits"]) == commits
    # The same questions as in SQuAD's own format.
    local = place.folder / "train.json"
    local.write_text(json.dumps(squad(60, seed=21)))
    fingerprint = load_corpus(local, "train").fingerprint
    assert json.loads(attributes["data"])["data.train"] == fingerprint

    # What the hub has now is not what the study was created with. It goes on without a network.
    repository = hub.repositories["model", DISTILBERT]
    repository.commit({**repository.commits[repository.head], "README.md": b"new"})
    with hub.watched() as asked:
        ended = place.run("run", NOTEBOOK, "--trials", "3", HF_HUB_OFFLINE="1")
        board = place.run("leaderboard", NOTEBOOK, "--json", HF_HUB_OFFLINE="1")
        report = place.run("report", NOTEBOOK, "--out", "report.md", HF_HUB_OFFLINE="1")
    assert (ended.code, ended.err, report.code) == (0, "", 0)
    assert asked == []
    rows = json.loads(board.out)["trials"]
    assert [row["number"] for row in sorted(rows, key=lambda row: row["number"])] == [0, 1, 2]
    baseline = next(row for row in rows if row["number"] == 0)
    assert baseline["params"]["start"] == "v1"
    assert all(row["state"] in {"COMPLETE", "PRUNED"} for row in rows)
    text = (place.folder / "report.md").read_text()
    assert all(f" at {commit[:10]}" in text for commit in commits.values())


def _parquet(config: str) -> list[str]:
    return [f"{config}/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
