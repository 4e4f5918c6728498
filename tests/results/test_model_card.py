"""What a model card says can be done, and what it says of the score is what the study knows."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from cli_helpers import Ended, run_cli
from qa_hpo import api
from qa_hpo.config import Runtime
from qa_hpo.errors import CorpusError, InputError
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.paths import CachePaths
from qa_hpo.results.export import write_export
from qa_hpo.results.held_out import TESTED, known_scores
from qa_hpo.results.publishing import judge
from qa_hpo.results.select import exported_trial
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import COMMITS, create_study
from qa_hpo.search.trials import REPEAT_OF
from qa_hpo.squad.corpus import load_corpus
from tiny import squad, study_file

SEARCH = {"learning_rate": {"choices": [1e-2, 1e-4]}, "epochs": {"value": 4}}


@pytest.fixture(scope="module")
def study(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> JoinedStudy:
    """A finished study: a baseline that learns nothing, one that does, and the latter again."""
    folder = tmp_path_factory.mktemp("study")
    test = folder / "test.json"
    test.write_text(json.dumps(squad(40, seed=9)))
    file = study_file(
        tiny,
        folder / "artifacts",
        data={"test": str(test)},
        search=SEARCH,
        budget={"trials": 3},
        evaluation={"seeds": 2, "finalists": 1},
        pruning={"across": "none", "patience": 9},
        baseline=[{"learning_rate": 1e-4}],
    )
    inputs = Inputs(CachePaths(folder / "cache"))
    storage = open_storage(f"sqlite:///{folder}/study.db", create=True)
    joined = create_study(file, storage, fingerprints=fingerprints(file, inputs))
    objective = Objective(joined, inputs, Runtime(cpu_threads=1), judge=judge)
    for _ in range(3):
        asked = ask(joined)
        assert isinstance(asked, Asked)
        objective.run(asked)
    return joined


@pytest.fixture(scope="module")
def out(study: JoinedStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "winner, it's ünusual"
    with exported_trial(study, None) as exported:
        write_export(exported, out)
    return out


def card(out: Path) -> str:
    return (out / "README.md").read_text()


def blocks(out: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card(out), flags=re.DOTALL)


def with_folder(block: str, out: Path) -> str:
    assert '"path/to/this/folder"' in block
    return block.replace('"path/to/this/folder"', repr(str(out)))


def test_the_study_has_finals(study: JoinedStudy) -> None:
    trials = study.optuna_study.get_trials()
    assert [trial.params["learning_rate"] for trial in trials] == [1e-4, 1e-2, 1e-2]
    assert trials[2].user_attrs[REPEAT_OF] == 1
    assert min(trial.value for trial in trials[1:]) > trials[0].value + 10


def test_its_code_answers_as_ours_does(
    out: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, plain = blocks(out)
    exec(with_folder(ours, out), {})
    names: dict[str, Any] = {}
    exec(with_folder(plain, out), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0] == printed[1]

    answerer = QuestionAnswerer.from_pretrained(str(out))
    corpus = load_corpus(tiny / "validation.json", "validation")
    answers = []
    for i, question in enumerate(corpus.questions):
        context = corpus.context_of(i)
        if len(answerer.tokenizer(question, context)["input_ids"]) > answerer.max_length:
            continue  # more than one window
        answers.append(answerer.answer(question, context).text)
        assert names["answer"](question, context) == answers[-1]
    assert len(answers) > 20
    assert None in answers
    assert len(set(answers)) > 5


def test_its_numbers_are_those_of_the_metrics(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    text = " ".join(card(out).split())
    low, high = metrics["best_f1_interval"]
    assert low < metrics["best_f1"] <= high
    assert f"the 95% interval of its F1 is {low:.2f} to {high:.2f}" in text
    assert metrics["seeds"] == 2
    assert f"Over 2 seeds of the same configuration, best F1 is {metrics['seeds_f1']:.2f}" in text
    baseline = metrics["baseline"]
    assert baseline["second"]["number"] == 0
    assert baseline["difference"] == pytest.approx(
        metrics["best_f1"] - baseline["second"]["best_f1"], abs=1e-9
    )
    assert f"Its F1 is {baseline['difference']:+.2f} beside that of the study's baseline" in text
    assert f"with probability {metrics['probability_best']:.2f}" in text
    test = metrics["test"]
    assert (test["total"], test["trials"]) == (40, 1)
    assert f"it has F1 **{test['f1']:.2f}**" in text


def test_its_metadata_are_those_that_the_hub_reads(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    data = ModelCard.load(out / "README.md").data
    for result in data.eval_results:
        of = "test" if result.dataset_split == "test" else "validation"
        assert (result.dataset_type, result.dataset_name) == (of, f"{of}.json")
    found = {
        (result.dataset_split, result.metric_type): result.metric_value
        for result in data.eval_results
    }
    assert found == {
        ("validation", "f1"): round(metrics["best_f1"], 4),
        ("validation", "exact_match"): round(metrics["best_exact"], 4),
        ("test", "f1"): round(metrics["test"]["f1"], 4),
        ("test", "exact_match"): round(metrics["test"]["exact"], 4),
    }
    assert yaml.safe_load(card(out).split("---")[1])["model-index"]


def test_the_test_corpus_is_measured_once_for_each_trial(
    study: JoinedStudy, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = json.loads((out / "metrics.json").read_text())["test"]
    answerer = QuestionAnswerer.from_pretrained(str(out))
    metrics = answerer.evaluate(load_corpus(study.file.data.test or "", "validation"))
    assert exported["f1"] == pytest.approx(metrics["exported_f1"], abs=1e-9)
    assert exported["exact"] == pytest.approx(metrics["exported_exact"], abs=1e-9)
    winner = json.loads((out / "metrics.json").read_text())["trial"]
    assert list(study.optuna_study.user_attrs[TESTED]) == [str(winner)]

    def again(*_: Any) -> Any:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr("qa_hpo.results.held_out._measured", again)
        with exported_trial(study, None) as once_more:
            assert once_more.facts["test"] == exported
    with exported_trial(study, 0) as other:
        assert other.facts["test"]["trials"] == 2


# ---------------------------------------------------------------------------- measuring it


@pytest.fixture
def untested(study: JoinedStudy) -> Iterator[JoinedStudy]:
    """The study, as if none of its trials had been measured on the test corpus."""
    attribute, test = study.optuna_study.user_attrs.get(TESTED, {}), Path(study.file.data.test)
    content = test.read_bytes()
    study.optuna_study.set_user_attr(TESTED, {})
    yield study
    study.optuna_study.set_user_attr(TESTED, attribute)
    test.write_bytes(content)


def export(study: JoinedStudy, out: Path, *options: str) -> Ended:
    return run_cli("export", "tiny", out, "--storage", study.storage.url, *options)


def remembered(study: JoinedStudy) -> dict[str, Any]:
    found: dict[str, Any] = study.optuna_study.user_attrs[TESTED]
    return found


def something_else(out: Path, what: str) -> None:
    if what == "no folder":
        out.parent.write_text("in the way")
        return
    out.parent.mkdir()
    if what == "a file":
        out.write_text("my only copy")
        return
    out.mkdir()
    if what == "a folder":
        (out / "thesis.tex").write_text("my only copy")
    else:
        (out / "qa_hpo.toml").write_text("")
        (out / "metrics.json").write_text('{"study": "tiny", "trial": 0}')


@pytest.mark.parametrize("what", ["no folder", "a file", "a folder", "another export"])
@pytest.mark.parametrize("how", ["command", "Python"])
def test_nothing_is_fetched_or_measured_for_a_place_that_is_taken(
    untested: JoinedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    out = tmp_path / "above" / "out"
    something_else(out, what)

    def never(*_: Any) -> Any:
        raise AssertionError("fetched or measured")

    monkeypatch.setattr("qa_hpo.results.select.open_store", never)
    monkeypatch.setattr("qa_hpo.results.held_out._measured", never)
    words = "out: exists and holds something else; choose another folder"
    if what == "no folder":
        words = "out: cannot be written: above is no folder"
    if what == "another export":
        words += ", or --force"
    if how == "command":
        ended = export(untested, out)
        assert ended.code == 2
        assert ended.err == f"error: {out.parent}/{words}\n"
    else:
        with pytest.raises(InputError, match=re.escape(words)):
            api.export("tiny", out, storage=untested.storage.url)
    assert remembered(untested) == {}


def test_without_the_test_corpus_it_is_exported_without_test_scores(
    untested: JoinedStudy, tmp_path: Path
) -> None:
    test, out = Path(untested.file.data.test or ""), tmp_path / "out"
    there = test.read_bytes()
    test.unlink()
    for verb in ("now holds", "holds"):
        ended = export(untested, out)
        assert ended.code == 0
        assert f"{out} {verb} trial " in ended.out
        (line,) = ended.err.splitlines()
        assert "WARNING data.test: the trial is exported without test scores: " in line
        assert f"{test}: no such file" in line
    assert json.loads((out / "metrics.json").read_text())["test"] is None
    assert "test questions" not in card(out)
    assert remembered(untested) == {}

    # It is there again: that is another export than the one in the folder.
    test.write_bytes(there)
    assert "exists and holds something else" in export(untested, out).err
    assert remembered(untested) == {}
    ended = export(untested, out, "--force")
    assert (ended.code, ended.err) == (0, "")
    scores = json.loads((out / "metrics.json").read_text())["test"]
    assert scores["total"] == 40

    # What was measured while it was there still counts when it is gone.
    test.unlink()
    ended = export(untested, tmp_path / "again")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["test"] == scores


def test_other_questions_under_the_same_name_are_measured_again(
    untested: JoinedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measured(corpus: Any, *_: Any) -> dict[str, Any]:
        seen.append(corpus.fingerprint)
        return {"f1": 1.0, "exact": 1.0, "f1_interval": None, "total": len(corpus)}

    monkeypatch.setattr("qa_hpo.results.held_out._measured", measured)
    test = Path(untested.file.data.test or "")
    for trial in ("0", "1"):
        assert export(untested, tmp_path / trial, "--trial", trial).code == 0
    assert len(seen) == 2
    assert {scores["fingerprint"] for scores in remembered(untested).values()} == {seen[0]}
    test.write_text(json.dumps(squad(30, seed=10)))
    for out in ("new", "newer"):
        assert export(untested, tmp_path / out, "--trial", "1").code == 0
    assert len(seen) == 3
    assert remembered(untested)["1"]["fingerprint"] == seen[2] != seen[0]
    found = json.loads((tmp_path / "new" / "metrics.json").read_text())["test"]
    assert (found["total"], found["trials"]) == (30, 1)


def test_a_test_corpus_of_the_hub_is_of_the_commit_that_the_study_knows(
    untested: JoinedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def loaded(path: str, split: str, **options: Any) -> Any:
        given.append((path, split, options["commit"]))
        raise CorpusError("no network")

    monkeypatch.setattr("qa_hpo.finetune.inputs.load_corpus", loaded)
    untested.optuna_study.set_user_attr(COMMITS, {"datasets/some/corpus": "a" * 40})
    data = untested.file.data.model_copy(update={"test": "some/corpus:plain"})
    joined = replace(untested, file=untested.file.model_copy(update={"data": data}))
    assert known_scores(joined, 1) == (None, None)
    assert given == [("some/corpus:plain", "validation", "a" * 40)]
