"""What ``qa-hpo check`` foresees, beside numbers worked out another way and beside a real run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from cli_helpers import run_cli
from qa_hpo.checking import Forecast, forecast
from qa_hpo.checking_view import View
from qa_hpo.config import to_toml
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.models import load_tokenizer
from qa_hpo.finetune.preflight import fingerprints, preflight
from qa_hpo.finetune.timing import Pace
from qa_hpo.paths import CachePaths
from qa_hpo.search.drawing import drawn
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.windows import build_windows
from qa_hpo.workers.leases import Gpu, Leases
from qa_hpo.workers.local import Place
from qa_hpo.workers.worker import work
from tiny import study_file, write_base

CPU = [Place("cpu", 1)]
PACE = Pace(
    checkpoint="base",
    device="cpu",
    threads=1,
    precision="float32",
    batch_size=16,
    steps=8,
    step_s=0.5,
    evaluated=60,
    evaluation_s=1.0,
    setup_s=2.0,
    checkpoint_bytes=1000,
    save_s=0.1,
    peak_memory_mib=300.0,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QA_HPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def foresee(tiny: Path, folder: Path, *, places: list[Place] = CPU, **sections: Any) -> Forecast:
    kept = sections.pop("kept_in", folder / "artifacts")
    file = study_file(tiny, kept, **sections)
    inputs = Inputs(CachePaths())
    return forecast(file, preflight(file, inputs), inputs, places, timed=False)


def windows(tiny: Path, name: str, split: Any, stride: int) -> int:
    corpus = load_corpus(str(tiny / f"{name}.json"), split)
    tokenizer = load_tokenizer(str(tiny / "base"))
    return len(build_windows(corpus, tokenizer, max_length=40, doc_stride=stride))


def test_json_without_timing(tiny: Path, tmp_path: Path) -> None:
    file = study_file(
        tiny,
        tmp_path / "artifacts",
        search={
            "learning_rate": {"low": 1e-3, "high": 1e-2},
            "doc_stride": {"choices": [4, 16]},
            "epochs": {"low": 2, "high": 4},
        },
        baseline=[{"learning_rate": 2e-3, "doc_stride": 4, "epochs": 2}],
        budget={"trials": 3},
    )
    study = tmp_path / "study.toml"
    study.write_text(to_toml(file), encoding="utf-8")
    ended = run_cli("check", study, "--json", "--no-timing", "--workers", "2")
    assert (ended.code, ended.err) == (0, "")
    found = ended.json()
    train = json.loads((tiny / "train.json").read_text(encoding="utf-8"))["data"]
    questions = [qa for a in train for p in a["paragraphs"] for qa in p["qas"]]
    assert found["data"]["train"] == {
        "source": str(tiny / "train.json"),
        "questions": len(questions),
        "answerable": sum(bool(qa["answers"]) for qa in questions),
        "contexts": len({p["context"] for a in train for p in a["paragraphs"]}),
        "articles": len({a["title"] for a in train}),
        "left_out": 0,
    }
    start = found["starts"]["base"]
    assert start["training_windows"] == {
        "4": windows(tiny, "train", "train", 4),
        "16": windows(tiny, "train", "train", 16),
    }
    assert start["evaluation_windows"] == windows(tiny, "validation", "validation", 8)
    model = AutoModelForQuestionAnswering.from_pretrained(str(tiny / "base"))
    assert start["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert start["training_bytes"] == 16 * start["parameters"]
    plan = found["plan"]
    assert (plan["trials"], plan["baselines"]) == (3, 1)
    assert (plan["epochs_low"], plan["epochs_high"], plan["epochs_at_most"]) == (2, 4, 12)
    assert 6 <= plan["epochs"] <= 12
    assert found["time"] is None
    assert [worker["device"] for worker in found["workers"]] == ["cpu", "cpu"]
    assert not (tmp_path / "storage").exists()


def test_a_checkpoint_that_no_drawn_trial_starts_from(tiny: Path, tmp_path: Path) -> None:
    """One trial starts from one of two checkpoints, and the study may come to either."""
    larger = write_base(tmp_path / "larger", num_hidden_layers=3)
    found = foresee(
        tiny,
        tmp_path,
        starts={"base": str(tiny / "base"), "larger": str(larger)},
        search={"start": {"choices": ["base", "larger"]}},
        budget={"trials": 1},
    )
    sizes = {
        name: sum(
            weight.numel()
            for weight in AutoModelForQuestionAnswering.from_pretrained(str(folder)).parameters()
        )
        for name, folder in {"base": tiny / "base", "larger": larger}.items()
    }
    assert found.parameters == sizes
    assert found.disk[0].needed == (5 + 4) * 4 * sizes["larger"]


@pytest.mark.parametrize(
    ("budget", "trials", "epochs", "most"),
    [
        ({"trials": 10}, 10, 30, 30),
        ({"epochs": 12}, 4, 12, 12),
        ({"trials": 10, "epochs": 7}, 2, 6, 7),
        ({"hours": 1.0}, None, None, None),
    ],
)
def test_what_a_budget_comes_to(
    tiny: Path, tmp_path: Path, budget: Any, trials: Any, epochs: Any, most: Any
) -> None:
    """Every trial has three epochs."""
    plan = foresee(tiny, tmp_path, budget=budget).plan
    assert (plan.trials, plan.epochs, plan.epochs_at_most) == (trials, epochs, most)


@pytest.mark.parametrize(
    ("budget", "trials", "epochs", "most"),
    [
        # Two baselines of nine epochs; of the others, two reach three of them, and one all nine.
        ({"trials": 9}, 9, 2 * 9 + 7 * 1 + 2 * 2 + 1 * 6, 81),
        ({"trials": 9, "epochs": 20}, 5, 19, 20),
    ],
)
def test_what_a_budget_comes_to_where_trials_are_promoted(
    tiny: Path, tmp_path: Path, budget: Any, trials: int, epochs: int, most: int
) -> None:
    plan = foresee(
        tiny,
        tmp_path,
        budget=budget,
        training={"epochs": 9},
        pruning={"across": "promote", "reduction_factor": 3},
        baseline=[{"learning_rate": 2e-3}, {"learning_rate": 3e-3}],
    ).plan
    assert plan.promoted
    assert (plan.trials, plan.epochs, plan.epochs_at_most) == (trials, epochs, most)


def test_disk_space(tiny: Path, tmp_path: Path) -> None:
    """A checkpoint is the weights; what a trial goes on from is three times that."""
    plain = foresee(tiny, tmp_path, kept_in="s3://bucket")
    weights = 4 * plain.parameters["base"]
    store, cache = plain.disk
    assert (store.place, store.free) == ("s3://bucket", None)
    assert store.needed == 5 * weights + 4 * weights
    two = foresee(tiny, tmp_path, places=CPU * 2)
    assert two.disk[0].needed == 5 * weights + 2 * 4 * weights
    assert two.disk[1].needed == cache.needed + 8 * weights
    assert two.disk[0].free


@pytest.mark.parametrize(
    ("budget", "waiting", "at_least"),
    [
        ({"trials": 10}, 10, False),
        # However few reach the second rung: each trial costs the two epochs of the first.
        ({"epochs": 100}, 50, False),
        ({"trials": 60, "epochs": 100}, 50, False),
        ({"hours": 10.0, "trials": 10}, 10, False),
        ({"hours": 10.0}, 0, True),
    ],
)
def test_disk_space_of_trials_that_wait(
    tiny: Path, tmp_path: Path, budget: Any, waiting: int, at_least: bool
) -> None:
    found = foresee(
        tiny,
        tmp_path,
        pruning={"across": "promote", "first_rung": 2},
        training={"epochs": 4},
        budget=budget,
    )
    weights = 4 * found.parameters["base"]
    store = found.disk[0]
    assert (store.needed, store.at_least) == ((5 + 4 + 4 * waiting) * weights, at_least)


def test_nobody_waits_where_the_first_rung_is_the_horizon(tiny: Path, tmp_path: Path) -> None:
    found = foresee(
        tiny, tmp_path, pruning={"across": "promote", "first_rung": 3}, budget={"hours": 1.0}
    )
    store = found.disk[0]
    assert (store.needed, store.at_least) == (9 * 4 * found.parameters["base"], False)


def test_for_people_it_says_that_hours_bound_no_disk_space(tiny: Path, tmp_path: Path) -> None:
    file = study_file(
        tiny, tmp_path / "artifacts", pruning={"across": "promote"}, budget={"hours": 10.0}
    )
    study = tmp_path / "study.toml"
    study.write_text(to_toml(file), encoding="utf-8")
    out = run_cli("check", study, "--no-timing").out
    assert "disk: at least 0.8 MiB in " in out
    assert "disk: up to " in out


def kept_windows(tiny: Path, folder: Path, strides: list[int]) -> int:
    """The bytes of the files of training windows, cut anew, and of the validation windows."""
    cache = Inputs(CachePaths(folder))
    for stride in strides:
        corpus = load_corpus(str(tiny / "train.json"), "train")
        cache.windows(corpus, str(tiny / "base"), max_length=40, doc_stride=stride)
    corpus = load_corpus(str(tiny / "validation.json"), "validation")
    cache.windows(corpus, str(tiny / "base"), max_length=40, doc_stride=8)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_the_cache_has_room_for_windows(tiny: Path, tmp_path: Path) -> None:
    """One set for each stride: of a file with a range, those of the trials that were drawn."""
    named = foresee(tiny, tmp_path, search={"doc_stride": {"choices": [2, 8, 16]}})
    runs = 8 * 4 * named.parameters["base"]
    # A file has a header, and the number of its questions.
    real = kept_windows(tiny, tmp_path / "named", [2, 8, 16])
    assert real - 4 * 1500 < named.disk[1].needed - runs < real
    ranged = {"search": {"doc_stride": {"low": 1, "high": 18}}}
    forty = foresee(tiny, tmp_path, budget={"trials": 40}, **ranged)
    file = study_file(tiny, tmp_path, budget={"trials": 40}, **ranged)
    strides = {trial.doc_stride for trial in drawn(file, 40)}
    assert len(strides) > 10
    real = kept_windows(tiny, tmp_path / "ranged", sorted({1, 18, *strides}))
    assert 0.9 * real < forty.disk[1].needed - runs < 1.6 * real
    assert not forty.disk[1].at_least
    for budget in ({"trials": 1000}, {"hours": 1.0}):
        assert foresee(tiny, tmp_path, budget=budget, **ranged).disk[1].at_least


def test_the_cache_has_room_for_what_retention_methods_keep(tiny: Path, tmp_path: Path) -> None:
    """A Fisher information of each start, and a path integral beside a start that is built."""

    def needed(*methods: str) -> int:
        return (
            foresee(
                tiny,
                tmp_path,
                starts={"noisy": {"from": "base", "train": str(tiny / "noise.json")}},
                search={
                    "start": "noisy",
                    "retention.method": {"choices": list(methods)},
                },
                data={"old_task": str(tiny / "noise.json")},
            )
            .disk[1]
            .needed
        )

    weights = 4 * foresee(tiny, tmp_path).parameters["base"]
    plain = needed("none", "l2sp")
    assert needed("none", "ewc", "mask") == plain + 2 * weights
    assert needed("none", "si") == plain + weights


def test_the_baselines_come_first_and_the_rest_is_the_same_each_time(tiny: Path) -> None:
    file = study_file(
        tiny,
        tiny / "artifacts",
        search={"learning_rate": {"low": 1e-3, "high": 1e-2}, "batch_size": {"choices": [4, 8]}},
        baseline=[{"learning_rate": 2e-3, "batch_size": 8}],
    )
    trials = drawn(file, 30)
    assert (trials[0].learning_rate, trials[0].batch_size) == (2e-3, 8)
    assert trials == drawn(file, 30)
    assert {trial.batch_size for trial in trials[1:]} == {4, 8}
    assert all(1e-3 <= trial.learning_rate <= 1e-2 for trial in trials)


def test_the_estimate_is_near_what_trials_take(
    tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = study_file(
        tiny,
        tmp_path / "artifacts",
        training={"epochs": 3, "cpu_threads": 1, "batch_size": 8},
        pruning={"patience": 3},
        budget={"trials": 2},
    )
    study = tmp_path / "study.toml"
    study.write_text(to_toml(file), encoding="utf-8")
    threads = torch.get_num_threads()
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    ended = run_cli("check", study, "--json")
    assert ended.code == 0, ended.err
    assert torch.get_num_threads() == threads
    left = {path.name for path in tmp_path.rglob("*") if "cache" not in path.parts} - {
        path.name for path in before
    }
    assert left <= {"artifacts"}
    time = ended.json()["time"]
    (pace,) = time["paces"]
    assert (pace["steps"], pace["batch_size"], pace["threads"]) == (8, 8, 1)
    assert (pace["device"], pace["precision"]) == ("cpu", "float32")
    assert time["seconds"] == pytest.approx(time["trials_s"])

    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    create_study(file, storage, fingerprints=fingerprints(file, Inputs(CachePaths())))
    work("tiny", storage.url)
    trials = storage.rdb.get_all_trials(storage.rdb.get_study_id_from_name("tiny"))
    storage.close()
    assert [len(trial.user_attrs["epochs"]) for trial in trials] == [3, 3]
    took = sum(trial.duration.total_seconds() for trial in trials if trial.duration)
    ratio = time["trials_s"] / took
    request.node.user_properties.append(("estimated_to_real_seconds", ratio))
    assert 1 / 4 < ratio < 4


def test_for_people_it_says_what_the_estimate_rests_on(tiny: Path, tmp_path: Path) -> None:
    file = study_file(tiny, tmp_path / "artifacts", training={"cpu_threads": 1})
    study = tmp_path / "study.toml"
    study.write_text(to_toml(file), encoding="utf-8")
    ended = run_cli("check", study, "--workers", "2")
    assert (ended.code, ended.err) == (0, "")
    assert "budget: about 10 trials of 3 epochs: about 30 epochs, 30 at most" in ended.out
    assert "workers: 2 on the CPU" in ended.out
    assert "with 2 workers. This is an estimate" in ended.out
    assert "(cpu, 1 thread, float32): 8 training steps of 16 windows" in ended.out
    assert ended.out.endswith(f"{study}: good\n")


def test_it_says_which_methods_the_estimate_leaves_out(tiny: Path, tmp_path: Path) -> None:
    file = study_file(
        tiny,
        tmp_path / "artifacts",
        training={"cpu_threads": 1},
        search={"retention.method": {"choices": ["none", "l2sp"]}},
    )
    study = tmp_path / "study.toml"
    study.write_text(to_toml(file), encoding="utf-8")
    assert (
        "with 1 worker, without what retention methods add (l2sp). " in run_cli("check", study).out
    )
    assert run_cli("check", study, "--json").json()["time"]["untimed"] == ["l2sp"]


def test_looks_within_an_epoch_measure_the_validation_windows_alone(
    tiny: Path, tmp_path: Path
) -> None:
    """Four evaluations of an epoch: three looks, and its end with the old task."""

    def seconds(evaluations: int, **evaluation: Any) -> float:
        file = study_file(
            tiny,
            tmp_path / "artifacts",
            pruning={"evaluations_per_epoch": evaluations},
            evaluation=evaluation,
        )
        inputs = Inputs(CachePaths())
        trials = drawn(file, 1)
        view = View(file, preflight(file, inputs), inputs, CPU, trials)
        return view.seconds(trials[0], PACE)

    old = {"old_task": str(tiny / "noise.json")}
    validation = windows(tiny, "validation", "validation", 8)
    noise = windows(tiny, "noise", "validation", 8)
    # Three epochs, and a second for each window.
    assert seconds(4) - seconds(1) == pytest.approx(3 * 3 * validation)
    assert seconds(1, **old) - seconds(1) == pytest.approx(3 * noise)
    assert seconds(4, **old) - seconds(4) == pytest.approx(3 * noise)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leases:
    """A host with two GPUs, as far as their listing goes, and their locks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    return Leases([Gpu("4", "4"), Gpu("7", "7")])


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    file = study_file(tiny, tmp_path / "artifacts", training={"cpu_threads": 1})
    path.write_text(to_toml(file), encoding="utf-8")
    return path


def test_busy_gpus_keep_nobody_from_a_look(gpus: Leases, study: Path) -> None:
    held = gpus.take(None, 1)
    ended = run_cli("check", study)
    assert (ended.code, ended.err) == (0, "")
    assert "workers: 2, on GPU 4, 7\n" in ended.out
    assert "time: not timed: all GPUs are busy\n" in ended.out
    found = run_cli("check", study, "--json", "--workers", "3", "--workers-per-device", "2").json()
    assert [worker["device"] for worker in found["workers"]] == ["4", "7", "4"]
    assert (found["time"], found["not_timed"]) == (None, "all GPUs are busy")
    assert "not timed" not in run_cli("check", study, "--no-timing").out
    for lease in held:
        lease.close()


def test_more_workers_than_the_gpus_ever_have_room_for(gpus: Leases, study: Path) -> None:
    ended = run_cli("check", study, "--workers", "5", "--workers-per-device", "2")
    assert ended.code == 2
    assert ended.err == (
        "error: --workers: 5 are asked for and 2 GPUs (4, 7) have room for 4; "
        "--workers-per-device 3 would let them share\n"
    )


def test_without_timing_no_gpu_is_taken(
    gpus: Leases, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "take", None)
    assert run_cli("check", study, "--no-timing").code == 0


def test_what_is_timed_is_timed_on_a_gpu_that_nobody_else_has(
    gpus: Leases, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []

    def asked() -> bool:
        """What torch does when CUDA is first asked for: from then on it sees these devices."""
        seen.append((os.environ["CUDA_VISIBLE_DEVICES"], gpus.free(1), gpus.free(2)))
        return False

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    (held,) = gpus.take(1, 1)
    assert held.gpu.name == "4"
    ended = run_cli("check", study, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json()["time"]["paces"]
    assert set(seen) == {("7", 0, 0)}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert gpus.free(1) == 1
    held.close()


def test_beside_workers_that_share_their_gpus_one_share_is_taken(
    gpus: Leases, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def asked() -> bool:
        seen.append((os.environ["CUDA_VISIBLE_DEVICES"], gpus.free(2)))
        return False

    monkeypatch.setattr(torch.cuda, "is_available", asked)
    held = gpus.take(2, 2)
    assert run_cli("check", study, "--workers-per-device", "2").code == 0
    assert set(seen) == {("4", 1)}
    for lease in held:
        lease.close()
