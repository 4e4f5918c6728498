from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyFile
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.results.notes import study_note, trial_note
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.failures import Cause
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.storage import open_storage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import LOOKS, Kept, fail, finish, record_epoch

ODD = "o|d <d>"

FILE: dict[str, Any] = {
    "study": {"name": "demo"},
    "data": {"train": "train_a.json", "validation": "dev*b*.json", "max_length": 128},
    "starts": {
        "base": "some/base",
        "v1": {"from": "base", "train": "squad|v1.json"},
        ODD: "<b>`|$\\",
    },
    "search": {
        "start": {"choices": ["base", "v1", ODD]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 2, "high": 4},
        "dropout": {"low": 0.0, "high": 0.3, "step": 0.1, "when": {"start": ["base", "v1"]}},
        "batch_size": {"value": 8},
        "doc_stride": {"choices": [32]},
    },
    "evaluation": {"doc_stride": 32},
    "pruning": {"patience": 1, "min_delta": 0.02},
    "budget": {"trials": 20, "hours": 2.5},
    "baseline": [
        {"name": "a|<i>", "start": "base", "learning_rate": 3e-5, "epochs": 3, "dropout": 0.1,
         "doc_stride": 32},
        {"start": "v1", "learning_rate": 2e-5, "epochs": 3, "dropout": 0.2, "doc_stride": 32},
        {"start": ODD, "learning_rate": 1e-4, "epochs": 2, "doc_stride": 32},
    ],
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Callable[..., JoinedStudy]]:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)

    def make(**sections: Any) -> JoinedStudy:
        file = StudyFile.model_validate_json(json.dumps({**FILE, **sections}))
        return create_study(file, storage, fingerprints={"train": "a", "validation": "b"})

    yield make
    storage.close()


def begin(
    joined: JoinedStudy, *losses: float | None, looks: Sequence[float] = (), **more: Any
) -> FrozenTrial:
    """Take a trial that has these losses at its epochs' ends, and in their middles."""
    answer = ask(joined, **more)
    assert isinstance(answer, Asked)
    for epoch, loss in enumerate(losses, start=1):
        record = {
            "epoch": epoch, "train_loss": 2.0 / epoch, "val_loss": loss, "f1": 50.0 + epoch,
            "best_f1": 60.0 + epoch, "best_f1_thresh": -1.5 * epoch, "seconds": 10.25,
        }  # fmt: skip
        if looks:
            record["looks"] = [[epoch - 0.5, looks[epoch - 1]]]
        kept = Kept(epoch, "resume", "checkpoint", min(epoch, 2))
        record_epoch(joined, answer.trial, record, kept=kept)
    return answer.trial


def end(joined: JoinedStudy, trial: FrozenTrial, best_f1: float | None, **more: Any) -> None:
    attrs = {"best_f1": best_f1, "best_epoch": 2, **more.pop("attrs", {})}
    state = TrialState.PRUNED if "stop_reason" in more else TrialState.COMPLETE
    finish(joined, trial, state=state, attrs=attrs, **more)


def note_of(joined: JoinedStudy, number: int) -> str:
    return trial_note(joined, joined.optuna_study.get_trials()[number])


def shown(markdown: str) -> str:
    """The HTML that GitHub's Markdown gives."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def table(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without the marks in them."""
    after = shown(markdown).partition(f">{heading}</h")[2] if heading else shown(markdown)
    first = after[: after.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", first, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]


# ---------------------------------------------------------------------------- a study


def three_trials(joined: JoinedStudy) -> None:
    scores = {"threshold": -1.234, "crossfit_f1": 68.765, "f1": 66.5}
    end(joined, begin(joined, 1.5, 1.25, 1.125), 64.25)
    second = begin(joined, 1.5, 1.25, 1.5)
    attrs = {**scores, "best_f1_interval": [67.5, 70.25]}
    end(joined, second, 69.125, stop_reason="overfitting", attrs=attrs)
    end(joined, begin(joined, 1.5, 1.25), 62.0)


def test_the_note_of_a_study_tells_how_it_stands(study: Callable[..., JoinedStudy]):
    joined = study()
    three_trials(joined)
    begin(joined)
    note = study_note(joined, leaderboard(joined))
    assert note.startswith("# demo\n\n")
    link = f"/dashboard/studies/{joined.key}/trials?numbers="
    assert (
        f"**[Trial 1]({link}1) leads with F1 69.12%**, from the start v1, in epoch 2 of 3. "
        f"The baseline, [trial 0]({link}0), has 64.25%: the difference is +4.88 points."
    ) in note
    assert table(note, "") == [
        ["", "F1 (%)"],
        ["at the tuned threshold, -1.23 logits", "69.12"],
        ["95% interval of it", "67.50 to 70.25"],
        ["with the threshold tuned on other articles (cross-fit)", "68.77"],
        ["at threshold 0", "66.50"],
    ]
    assert "3 trials have finished: 2 complete and 1 pruned (1 overfitting)." in note
    assert "Failed: 0, running: 1, waiting: 0." in note
    assert "Spent of the budget: 3 of 20 trials, 0.00 of 2.5 hours." in note
    assert table(note, "Configuration of trial 1")[1:4] == [
        ["start", "v1"], ["learning rate", "2e-05"], ["epochs", "3"]
    ]  # fmt: skip


def test_leading_trials_and_the_best_of_each_start(study: Callable[..., JoinedStudy]):
    joined = study()
    three_trials(joined)
    board = leaderboard(joined)
    note = study_note(joined, board)
    leading = table(note, "Leading trials")
    assert [line[0] for line in leading] == ["trial", "trial 1", "trial 0", "trial 2"]
    assert leading[1] == [
        "trial 1", "v1", "2e-05", "2 of 3", "69.12", "-1.23", "68.77", "PRUNED, overfitting"
    ]  # fmt: skip
    assert leading[2][1:] == ["base", "3e-05", "2 of 3", "64.25", "–", "–", "COMPLETE"]
    assert table(note, "The best trial of each start") == [
        ["start", "trials", "best", "F1 (%)", "95% interval"],
        ["base", "1", "trial 0", "64.25", "–"],
        ["v1", "1", "trial 1", "69.12", "67.50 to 70.25"],
        [ODD, "1", "trial 2", "62.00", "–"],
    ]
    without = board.model_copy(update={"trials": board.trials[:2]})
    assert table(study_note(joined, without), "The best trial of each start")[3] == [
        ODD, "0", "–", "–", "–"
    ]  # fmt: skip
    for number in range(3):
        assert f'href="/dashboard/studies/{joined.key}/trials?numbers={number}"' in shown(note)


def test_what_is_searched_in_words(study: Callable[..., JoinedStudy]):
    note = study_note(study(), leaderboard(study()))
    lines = [
        html.unescape(line)
        for line in re.findall(r"<li>(.*)</li>", shown(note).partition("What is searched")[2])
    ]
    assert lines[:11] == [
        "start: base, v1 or o|d <d>",
        "learning rate: from 1e-05 to 0.001, on a logarithmic scale",
        "epochs: from 2 to 4",
        "dropout: from 0 to 0.3, in steps of 0.1; only where start is base or v1",
        "batch size: 8, fixed",
        "doc stride: 32",
        "start base: the checkpoint some/base",
        "start v1: base, trained on squad|v1.json",
        "start o|d <d>: the checkpoint <b>`|$\\",
        "trained on train_a.json",
        "judged by dev*b*.json",
    ]


def test_how_to_read_the_pages(study: Callable[..., JoinedStudy]):
    note = study_note(study(), leaderboard(study()))
    assert "-0.43 is a loss of 0.43 nats per window" in note
    assert "for an epoch, the validation loss was more than 0.02 above its best" in note
    assert "Pruned trials **compete**" in note
    joined = study(study={"name": "patient"}, pruning={"patience": 2, "min_delta": 0.0})
    note = study_note(joined, leaderboard(joined))
    assert "for 2 epochs in a row, the validation loss was above its best" in note


def test_a_study_without_results(study: Callable[..., JoinedStudy]):
    joined = study()
    note = study_note(joined, leaderboard(joined))
    assert "No trial has been measured yet." in note
    assert "waiting: 3" in note
    assert "Leading" not in note


def test_the_winner_may_be_the_baseline_and_the_baseline_may_fail(
    study: Callable[..., JoinedStudy],
):
    joined = study()
    end(joined, begin(joined, 1.5), 64.25)
    assert "leads with F1 64.25%**" in study_note(joined, leaderboard(joined))
    assert "It is the baseline." in study_note(joined, leaderboard(joined))
    other = study(study={"name": "other"})
    fail(other, begin(other), Cause.OOM, "no memory")
    end(other, begin(other, 1.5), 64.25)
    note = study_note(other, leaderboard(other))
    assert "No baseline has been measured." in note
    assert "Failed: 1, running: 0" in note


def test_the_mean_of_seeds(study: Callable[..., JoinedStudy]):
    joined = study()
    end(joined, begin(joined, 1.5), 64.25)
    board = leaderboard(joined)
    assert board.winner is not None
    update = {"seeds": 3, "seeds_f1": 63.5, "seeds_f1_sd": 0.754}
    winner = board.winner.model_copy(update=update)
    note = study_note(joined, board.model_copy(update={"winner": winner}))
    assert ["mean of 3 seeds", "63.50 ± 0.75"] in table(note, "")
    assert "mean of seeds" not in note


def test_leading_trials_have_their_means_of_seeds(study: Callable[..., JoinedStudy]):
    joined = study()
    three_trials(joined)
    board = leaderboard(joined)
    assert "mean of seeds" not in study_note(joined, board)
    several = board.trials[1].model_copy(update={"seeds": 3, "seeds_f1": 63.505})
    rows = [several, board.trials[0], board.trials[2]]
    note = study_note(joined, board.model_copy(update={"trials": rows}))
    leading = table(note, "Leading trials")
    assert leading[0][3:6] == ["epoch", "mean of seeds", "F1 (%)"]
    assert [line[4] for line in leading[1:]] == ["63.51 (3)", "–", "–"]
    assert {len(line) for line in leading} == {9}


# ---------------------------------------------------------------------------- a trial


def test_the_note_of_a_complete_trial(study: Callable[..., JoinedStudy]):
    joined = study()
    trial = begin(joined, 1.5, 1.25, 1.125, worker="host_1:gpu|0")
    scores = {"threshold": -3.0, "crossfit_f1": 61.5, "f1": 52.0, "best_f1_interval": [60.0, 63.5]}
    end(joined, trial, 62.0, attrs=scores)
    note = note_of(joined, 0)
    text = shown(note)
    assert "<strong>Complete</strong>: it trained all its epochs, 3 of 3." in text
    assert "It runs the baseline a|&lt;i&gt;. Worker: host_1:gpu|0." in text
    assert table(note, "")[1:] == [
        ["at the tuned threshold, -3.00 logits", "62.00"],
        ["95% interval of it", "60.00 to 63.50"],
        ["with the threshold tuned on other articles (cross-fit)", "61.50"],
        ["at threshold 0", "52.00"],
    ]
    assert table(note, "Epochs") == [
        ["epoch", "training loss", "validation loss", "F1 at 0 (%)", "best F1 (%)",
         "threshold (logits)", "seconds"],
        ["1", "2.000", "1.500", "51.00", "61.00", "-1.50", "10.2"],
        ["2, the best", "1.000", "1.250", "52.00", "62.00", "-3.00", "10.2"],
        ["3", "0.667", "1.125", "53.00", "63.00", "-4.50", "10.2"],
    ]  # fmt: skip
    assert table(note, "Configuration") == [
        ["parameter", "value"],
        ["start", "base"],
        ["learning rate", "3e-05"],
        ["epochs", "3"],
        ["weight decay", "0"],
        ["doc stride", "32"],
        ["batch size", "8"],
        ["warmup", "0"],
        ["scheduler", "linear"],
        ["max grad norm", "1"],
        ["dropout", "0.1"],
        ["retention.method", "none"],
    ]
    assert "The weights after epoch 2, fine-tuned from base: the checkpoint some/base." in note
    assert "`qa-hpo export study.toml OUT --trial 0`" in note


@pytest.mark.parametrize(
    ("pruning", "losses", "reason", "words"),
    [
        (
            {"min_delta": 0.02}, [1.5, 1.25, 1.375], "overfitting",
            "**Stopped after epoch 3 of 3**: it was overfitting. Its validation loss was more "
            "than 0.02 above its best: 1.250 in epoch 2, 1.375 now.",
        ),
        (
            {"patience": 2, "min_delta": 0.0}, [1.25, 1.5, None], "overfitting",
            "Its validation loss was above its best for 2 epochs in a row: 1.250 in epoch 1, "
            "not a finite number now.",
        ),
        (
            {"across": "median"}, [1.5, 1.25], "hopeless",
            "**Stopped after epoch 2 of 3**: it was hopeless. Its validation loss is 1.250 at "
            "last, and the median of the trials with as many epochs is better.",
        ),
        ({"across": "hyperband"}, [1.5], "hopeless", "and Hyperband prefers others."),
        (
            {}, [7.25], "diverged",
            f"it diverged. Its validation loss is 7.250; that of mere guessing is "
            f"{math.log(128):.3f}.",
        ),
        ({}, [None], "diverged", "Its validation loss is not a finite number;"),
        ({}, [1.5], "budget", "**Stopped after epoch 1 of 3**: the study's budget was spent."),
    ],
)  # fmt: skip
def test_why_a_trial_was_stopped(
    study: Callable[..., JoinedStudy],
    pruning: dict[str, Any],
    losses: list[float | None],
    reason: str,
    words: str,
):
    joined = study(pruning=pruning)
    end(joined, begin(joined, *losses), 61.0, stop_reason=reason)
    note = note_of(joined, 0)
    assert words in note
    assert "It competes with its best epoch all the same." in note
    if None in losses:
        assert table(note, "Epochs")[-1][2] == "not finite"


@pytest.mark.parametrize(
    ("looks", "cut", "reason", "words"),
    [
        (
            [1.75, 1.125], [1.5], "overfitting",
            "**Stopped within epoch 3 of 3**: it was overfitting. Its validation loss was above "
            "its best: 1.125 after 1.50 epochs, 1.500 now.",
        ),
        (
            [1.75, 1.375], [1.5], "overfitting",
            "Its validation loss was above its best: 1.250 in epoch 2, 1.500 now.",
        ),
        ([1.75, 1.375], [None], "diverged", "Its validation loss is not a finite number;"),
        ([1.75, 1.375], [7.25], "diverged", "it diverged. Its validation loss is 7.250;"),
    ],
)  # fmt: skip
def test_why_a_trial_was_stopped_within_an_epoch(
    study: Callable[..., JoinedStudy],
    looks: list[float],
    cut: list[float | None],
    reason: str,
    words: str,
):
    joined = study(pruning={"evaluations_per_epoch": 2, "min_delta": 0.0})
    trial = begin(joined, 1.5, 1.25, looks=looks)
    end(joined, trial, 61.0, stop_reason=reason, attrs={LOOKS: [[2.5, *cut]]})
    assert words in note_of(joined, 0)


def test_a_failed_trial_and_its_retry(study: Callable[..., JoinedStudy]):
    joined = study()
    first = begin(joined, 1.5, 1.25)
    fail(joined, first, Cause.ERROR, "ValueError: <script>x</script> a|b `c` *d* [e](f)\n# g")
    note = note_of(joined, 0)
    assert "**Failed after 2 of 3 epochs** (error): ValueError: " in note
    assert "It is tried again." in note
    assert "Checkpoint" not in note
    text = shown(note)
    assert "<script" not in text
    assert "ValueError: &lt;script&gt;x&lt;/script&gt; a|b `c` *d* [e](f) # g" in text
    # The retry, and the other baselines.
    assert 3 in {begin(joined).number for _ in range(3)}
    link = f"/dashboard/studies/{joined.key}/trials?numbers="
    assert f"It was tried again as [trial 3]({link}3)." in note_of(joined, 0)
    again = note_of(joined, 3)
    assert again.startswith("Not finished: 2 of 3 epochs so far.")
    went_on = f"It is a retry of [trial 0]({link}0), and went on after its last finished epoch."
    assert went_on in again


def test_a_trial_that_is_not_tried_again(study: Callable[..., JoinedStudy]):
    joined = study()
    fail(joined, begin(joined), Cause.OOM, "no memory")
    note = note_of(joined, 0)
    assert "**Failed after 0 of 3 epochs** (oom): no memory" in note
    assert "It is not tried again." in note
    assert "Epochs\n" not in note


def test_controls_and_repeats_say_so(study: Callable[..., JoinedStudy]):
    joined = study(pruning={"control_fraction": 1.0})
    trial = begin(joined, 1.5)
    assert "It is a control" in note_of(joined, 0)
    end(joined, trial, 60.0, attrs={"repeat_of": 7})
    link = f"/dashboard/studies/{joined.key}/trials?numbers=7"
    assert f"It runs the configuration of [trial 7]({link}) with another seed." in note_of(
        joined, 0
    )
    other = study(study={"name": "other"})
    begin(other)
    assert "control" not in note_of(other, 0)
    assert "There is none: it finished no epoch." in note_of(other, 0)


def test_records_of_little_are_enough(study: Callable[..., JoinedStudy]):
    joined = study()
    answer = ask(joined)
    assert isinstance(answer, Asked)
    record_epoch(joined, answer.trial, {"epoch": 1, "val_loss": 1.5})
    finish(joined, answer.trial, state=TrialState.COMPLETE, attrs={"best_f1": 50.0})
    assert table(note_of(joined, 0), "Epochs")[1] == ["1", "–", "1.500", "–", "–", "–", "–"]
    assert "leads with F1 50.00%" in study_note(joined, leaderboard(joined))
