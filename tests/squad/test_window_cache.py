"""The windows on disk: keyed by all that matters, built once, rebuilt when damaged."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from squad_helpers import TEXTS, bert_tokenizer, corpus_of, left_padding_tokenizer, word_corpus

from qa_hpo.errors import WindowError
from qa_hpo.squad import windows as windows_module
from qa_hpo.squad.windows import build_windows, load_windows

LENGTHS = {"max_length": 90, "doc_stride": 20}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def assert_equal(first, second):
    for name, array in windows_module._arrays(first).items():
        np.testing.assert_array_equal(array, windows_module._arrays(second)[name])
        assert array.dtype == windows_module._arrays(second)[name].dtype
    assert first.questions == second.questions
    assert (first.token_type_ids is None) == (second.token_type_ids is None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache of 'windows' · 窓"


@pytest.fixture
def builds(monkeypatch):
    """Counts the builds of this process."""
    built = []
    build = windows_module.build_windows

    def counted(*args, **options):
        built.append(options)
        return build(*args, **options)

    monkeypatch.setattr(windows_module, "build_windows", counted)
    return built


@pytest.mark.parametrize("make", [bert_tokenizer, left_padding_tokenizer])
def test_kept_windows_are_the_built_ones(folder, builds, make):
    corpus = word_corpus(30)
    expected = build_windows(corpus, make(), **LENGTHS)
    for _ in range(2):
        assert_equal(load_windows(corpus, make(), cache_folder=folder, **LENGTHS), expected)
    assert len(builds) == 1
    assert len(files(folder)) == 1
    assert not list(folder.glob("*.tmp"))


def test_no_token_types(folder):
    tokenizer = bert_tokenizer(model_input_names=["input_ids", "attention_mask"])
    for _ in range(2):
        windows = load_windows(word_corpus(5), tokenizer, cache_folder=folder, **LENGTHS)
        assert windows.token_type_ids is None


def test_what_the_last_call_asked_for_is_no_part_of_the_key(folder, builds):
    tokenizer, corpus = bert_tokenizer(), word_corpus(10)
    load_windows(corpus, tokenizer, cache_folder=folder, **LENGTHS)
    tokenizer("a", padding="max_length", max_length=12, truncation=True)
    load_windows(corpus, tokenizer, cache_folder=folder, **LENGTHS)
    assert len(builds) == 1


def test_whatever_matters_has_its_own_file(folder):
    corpus = word_corpus(10)
    load_windows(corpus, bert_tokenizer(), cache_folder=folder, **LENGTHS)
    load_windows(corpus.take(9, 0), bert_tokenizer(), cache_folder=folder, **LENGTHS)
    load_windows(word_corpus(10, seed=1), bert_tokenizer(), cache_folder=folder, **LENGTHS)
    load_windows(corpus, bert_tokenizer(), cache_folder=folder, max_length=91, doc_stride=20)
    load_windows(corpus, bert_tokenizer(), cache_folder=folder, max_length=90, doc_stride=21)
    load_windows(corpus, bert_tokenizer(padding_side="left"), cache_folder=folder, **LENGTHS)
    names = ["input_ids", "attention_mask"]
    load_windows(corpus, bert_tokenizer(model_input_names=names), cache_folder=folder, **LENGTHS)
    cased = bert_tokenizer()
    cased.backend_tokenizer.normalizer.lowercase = False
    load_windows(corpus, cased, cache_folder=folder, **LENGTHS)
    assert len(files(folder)) == 8


@pytest.mark.parametrize("damage", ["empty", "cut short", "garbage", "other arrays", "a folder"])
def test_a_damaged_file_is_built_again(folder, builds, damage):
    from safetensors.numpy import save_file

    corpus, tokenizer = word_corpus(10), bert_tokenizer()
    expected = load_windows(corpus, tokenizer, cache_folder=folder, **LENGTHS)
    (path,) = files(folder)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut short":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "other arrays":
        save_file({"questions": np.array([3])}, path)
    else:
        path.unlink()
        path.mkdir()
        with pytest.raises(WindowError, match="windows cannot be kept there"):
            load_windows(corpus, tokenizer, cache_folder=folder, **LENGTHS)
        return
    assert_equal(load_windows(corpus, tokenizer, cache_folder=folder, **LENGTHS), expected)
    assert len(builds) == 2
    assert_equal(windows_module._read(path), expected)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WindowError, match=r"file/cache: windows cannot be kept there"):
        load_windows(
            word_corpus(3), bert_tokenizer(), cache_folder=tmp_path / "file" / "cache", **LENGTHS
        )


def test_nothing_is_kept_of_a_failure(folder):
    corpus = corpus_of([("q", TEXTS[0], TEXTS[1], [], "")])
    with pytest.raises(WindowError, match="must be more than doc_stride"):
        load_windows(corpus, bert_tokenizer(), cache_folder=folder, max_length=20, doc_stride=8)
    assert not files(folder)


def _work(folder: Path, log: Path, ready, results) -> None:
    build = windows_module.build_windows

    def slow_and_counted(*args, **options):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        return build(*args, **options)

    windows_module.build_windows = slow_and_counted
    ready.wait(timeout=120)  # all ask at the same time
    windows = load_windows(word_corpus(20), bert_tokenizer(), cache_folder=folder, **LENGTHS)
    results.put((len(windows), int(windows.input_ids.sum())))


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder, log, results = tmp_path / "cache", tmp_path / "log", context.Queue()
    arguments = (folder, log, context.Barrier(3), results)
    processes = [context.Process(target=_work, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    got = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    expected = build_windows(word_corpus(20), bert_tokenizer(), **LENGTHS)
    assert set(got) == {(len(expected), int(expected.input_ids.sum()))}
    assert log.read_text() == "built\n"
