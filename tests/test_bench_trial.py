"""The trial benchmark's two sides take the same labels, and what it measures is what happened."""

import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.optim import optimizer
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import notebook_trainer, report, trial
from bench.training_data import TrainingMaterial

from qa_hpo.demo import BASE, write_demo
from qa_hpo.finetune import memory, training
from qa_hpo.finetune import trainer as our_trainer
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.squad import answered
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.spans import SpanAccumulator
from qa_hpo.squad.windows import build_windows

PAIRS = 2


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A few questions of the demo, in windows so short that some contexts take several."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return TrainingMaterial(
        "the demo",
        str(BASE),
        str(folder / "train-v2.json"),
        str(folder / "validation-v2.json"),
        train_limit=24,
        validation_limit=12,
        max_length=96,
        doc_stride=24,
        learning_rate=5e-4,
    )


def places():
    """What is replaced while a trial is timed."""
    return [
        *(vars(PreTrainedModel).get(name) for name in ("__call__", "zero_grad")),
        *(vars(Accelerator)[name] for name in ("backward", "clip_grad_norm_")),
        *(vars(WindowCollator)[name] for name in ("__call__", "layout", "inputs", "labels")),
        *(vars(SpanAccumulator)[name] for name in ("update", "finish")),
        answered.score_predictions,
        our_trainer.corpus_metrics,
        vars(our_trainer.QuestionAnsweringTrainer)["_save_best"],
        vars(our_trainer.QuestionAnsweringTrainer)["_save_checkpoint"],
        notebook_trainer.load,
        training.load_model,
        memory.clear_device_cache,
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
    ]


@pytest.fixture(scope="module")
def contest(material):
    before = places(), torch.get_num_threads()
    done = trial.compete(material, PAIRS, threads=1)
    assert (places(), torch.get_num_threads()) == before
    return done


def test_nothing_stays_replaced_after_an_error():
    def fail():
        with trial.attached(trial.Meter()):
            assert all(a is not b for a, b in zip(places(), before, strict=True))
            raise ZeroDivisionError

    before = places()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert places() == before


def test_labels_of_both_sides_are_equal(material, contest):
    corpus = load_corpus(material.train, "train", limit=200)
    tokenizer = contest.bout.features.tokenizer
    sizes = {"max_length": material.max_length, "doc_stride": material.doc_stride}
    theirs = notebook_trainer.labelled_windows(
        notebook_trainer.questions_of(corpus), tokenizer, **sizes
    )
    ours = build_windows(corpus, tokenizer, **sizes)

    np.testing.assert_array_equal(theirs["start_positions"], ours.start_positions)
    np.testing.assert_array_equal(theirs["end_positions"], ours.end_positions)
    assert [sum(mask) for mask in theirs["attention_mask"]] == ours.lengths.tolist()
    answered = ours.end_positions > 0
    assert len(ours) > len(corpus)
    assert 0.2 < answered.mean() < 0.95


def lengths(features):
    return np.array([sum(mask) for mask in features["attention_mask"]])


def padded(sizes, batches):
    """Tokens of batches, each as wide as its longest window."""
    return sum(len(batch) * max(sizes[i] for i in batch) for batch in batches)


@pytest.mark.skipif(torch.cuda.is_available(), reason="batches are as wide as multiples of 8")
def test_real_tokens_are_those_of_the_windows(material, contest):
    train = lengths(contest.bout.features.train)
    validation = lengths(contest.bout.features.validation)
    # In evaluation, the longest first, each batch's windows at least 15/16 as long as its first.
    alike: list[list[int]] = []
    for window in np.argsort(-validation, kind="stable").tolist():
        if not alike or 16 * validation[window] < 15 * validation[alike[-1][0]]:
            alike.append([])
        alike[-1].append(window)
    assert max(map(len, alike)) <= 64
    for seed, ours in enumerate(contest.ours, start=1):
        # The order of ours by hand: shuffled, sorted by length, cut into batches.
        shuffled = np.random.default_rng([seed, 0]).permutation(len(train))
        by_length = shuffled[np.argsort(train[shuffled], kind="stable")]
        batches = [by_length[first : first + 16] for first in range(0, len(train), 16)]
        every = padded(train, batches) + padded(validation, alike)
        real = train.sum() + validation.sum()
        assert ours.meter.real_token_share == pytest.approx(real / every)
    # The notebook goes through the validation windows twice.
    real = train.sum() + 2 * validation.sum()
    every = material.max_length * (len(train) + 2 * len(validation))
    for theirs in contest.notebook:
        assert theirs.meter.real_token_share == pytest.approx(real / every)
        assert theirs.meter.real_token_share < contest.ours[0].meter.real_token_share


def test_every_part_is_timed_and_none_twice(contest):
    for watch, ours in zip(contest.comparison.ours, contest.ours, strict=True):
        assert set(ours.meter.seconds) == {*trial.MODEL_PARTS, *trial.OUTSIDE_PARTS}
        assert min(ours.meter.seconds.values()) > 0
        assert 0 < ours.meter.model_seconds < sum(ours.meter.seconds.values()) < watch.total
    for watch, theirs in zip(contest.comparison.baseline, contest.notebook, strict=True):
        assert set(watch.wall) == set(notebook_trainer.PARTS)
        assert all(theirs.meter.seconds[part] > 0 for part in trial.MODEL_PARTS)
        assert 0 < theirs.meter.model_seconds < watch.total


def test_sides_learn_and_seeds_differ(contest):
    for side in (contest.notebook, contest.ours):
        losses = [one.quality.val_loss for one in side]
        assert len(set(losses)) == PAIRS
        assert all(0 < loss < np.log(96) + 1 for loss in losses)
        assert all(0 <= one.quality.f1 <= 100 for one in side)
        assert all(one.meter.peak_mib > 50 for one in side)


def test_the_notebooks_saved_model_is_what_is_measured(material, contest, tmp_path):
    """The loss by hand, from the logits that its Trainer predicts; padding takes no part."""
    features = contest.bout.features
    arguments = notebook_trainer.training_arguments(tmp_path, learning_rate=5e-4, seed=3)
    model = notebook_trainer.load(material.checkpoint, 3)
    theirs = notebook_trainer.make_trainer(model, features, arguments)
    theirs.save_model(str(tmp_path))
    logits = theirs.predict(features.prediction).predictions
    total = 0.0
    for row, start, end in zip(features.validation, *logits, strict=True):
        width = sum(row["attention_mask"])
        for values, gold in ((start, row["start_positions"]), (end, row["end_positions"])):
            total += np.log(np.exp(values[:width]).sum()) - values[gold]

    quality = trial.Notebook(contest.bout).quality(tmp_path)
    assert quality.val_loss == pytest.approx(total / 2 / len(features.validation), rel=1e-4)


def test_the_findings(material, contest, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trial, "compete", lambda *_: contest)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    findings = trial.run(PAIRS, material=material, threads=1)

    assert list(findings) == ["trial_vs_notebook", "trial_profile"]
    ratio, profile = (finding.fields for finding in findings.values())
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert ratio["pairs"] == PAIRS
    assert ratio["val_loss_difference"] == pytest.approx(
        np.mean([o.quality.val_loss for o in contest.ours])
        - np.mean([n.quality.val_loss for n in contest.notebook]),
        abs=1e-4,
    )
    assert set(ratio) >= {"f1_difference"}
    assert set(profile) == {"outside_model_share", "real_token_share", "peak_memory_mib"}
    assert 0 < profile["outside_model_share"] < 1
    assert 0 < profile["real_token_share"] <= 1
    assert list(tmp_path.iterdir()) == []
    for name, finding in findings.items():
        assert finding.body.startswith(f"## {name}\n")
        assert not re.search(r"(?<![\w.])/\w+/", finding.body), "an absolute path"
        report.write_finding(tmp_path, name, finding)
    assert "trial_vs_notebook on the demo" in capsys.readouterr().out


def test_noise_of_the_seed_decides(contest):
    def shifted(by):
        side = [
            replace(one, quality=replace(one.quality, val_loss=value + by))
            for one, value in zip(contest.ours, (1.0, 1.2), strict=True)
        ]
        return side

    for by, wanted in ((0.1, "within"), (0.2, "not within")):
        fields, text = trial._quality(replace(contest, notebook=shifted(0), ours=shifted(by)))
        assert fields["val_loss_difference"] == pytest.approx(by)
        # The standard deviation of 1.0 and 1.2 is 0.1414.
        assert f"loss: ours minus the notebook's is +{by:.3f} on average, {wanted} the" in text
        assert "(standard deviation 0.141)" in text


def test_no_folder_is_left(material, monkeypatch, tmp_path):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(trial, "alternate", fail)
    with pytest.raises(ZeroDivisionError):
        trial.compete(material, PAIRS, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_the_profile_of_ours_alone(material):
    finding = trial.run_alone(2, material=material, threads=1)
    assert set(finding.fields) == {"outside_model_share", "real_token_share", "peak_memory_mib"}
    assert 0 < finding.fields["outside_model_share"] < 1
    assert "notebook |" not in finding.body
