"""What a study found, in sentences for somebody who knows SQuAD and not this program.

A sentence that needs what is not there is left out, or says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from qa_hpo.config import Pruning, Recipe
from qa_hpo.results.certainty import Certainty, Compared
from qa_hpo.results.drawing import count
from qa_hpo.results.leaderboard import Row, best_of_starts
from qa_hpo.results.report_data import Report
from qa_hpo.results.report_forgetting import bound, forgotten
from qa_hpo.results.significance import Difference
from qa_hpo.search.pruning import STOP_REASONS

__all__ = ["Paragraph", "answer", "standing", "start_in_words"]


@dataclass(frozen=True)
class Paragraph:
    """A short paragraph of plain text, and what it is about."""

    title: str
    text: str


def standing(report: Report) -> str:
    """Return how far the study has come."""
    rows = report.board.trials
    ends = [(state, sum(row.state == state for row in rows)) for state in _STATES]
    ended = ", ".join(f"{number} {_STATES[state]}" for state, number in ends if number)
    text = f"{count(len(rows), 'trial')}{f': {ended}' if ended else ''}."
    spent = report.origin.spent
    if spent.running or spent.waiting or spent.paused:
        rung = f", {spent.paused} waiting at a rung" if spent.paused else ""
        text += (
            f" The search goes on: {spent.running} running, {spent.waiting} waiting{rung}. "
            "What follows may change."
        )
    return text


_STATES = {
    TrialState.COMPLETE.name: "complete",
    TrialState.PRUNED.name: "pruned",
    TrialState.FAIL.name: "failed",
}


def answer(report: Report) -> list[Paragraph]:
    """Return what the study found: the winner, how sure that is, and what pruning did."""
    if not report.measured:
        failed = len(report.origin.failures)
        text = "No trial has been measured yet."
        text += f" {count(failed, 'trial')} failed; the causes are below." if failed else ""
        return [Paragraph("The winner", text)]
    winner = report.measured[0]
    parts = [
        ("The winner", _winner(report, winner)),
        ("Its F1", _scores(report, winner)),
        ("Other seeds", _seeds(winner)),
        ("Is it the best?", _probability(report, winner)),
        ("Against the baseline", _baseline(report, winner)),
        ("Does the start matter?", _starts(report, winner)),
        ("What choosing adds", _choosing(report)),
        ("What is forgotten", forgotten(report, winner)),
        ("What may be forgotten", bound(report, winner)),
        ("On test questions", _test(report, winner)),
        ("What pruning saved and cost", _pruning(report)),
    ]
    return [Paragraph(title, text) for title, text in parts if text]


# ---------------------------------------------------------------------------- the winner


def _winner(report: Report, winner: Row) -> str:
    start = str(winner.params["start"])
    text = f"Trial {winner.number} wins. It"
    if winner.seeds_f1 is not None:
        text = f"Trial {winner.number} wins. {_mean(winner)}. Trial {winner.number}"
    text += f" fine-tunes the start {start} ({start_in_words(report, start)})"
    others = [name for name in report.searched if name != "start"]
    if others:
        text += f" with {_parameters(winner, others)}"
    text += f". Its best epoch is {winner.best_epoch or 'not known'} of {winner.params['epochs']}"
    text += f": F1 {_percent(winner.best_f1)}"
    if winner.threshold is not None:
        text += f" at the no-answer threshold {winner.threshold:.2f}"
    text += f". {_ending(report.file.pruning, winner)}"
    if winner.seeds_f1 is not None:
        text += (
            " Its checkpoint, of this single run, is what is exported, and what the interval, the "
            "probability to be the best and the comparison with the baseline are of."
        )
    return text


def _mean(winner: Row) -> str:
    text = f"The {count(winner.seeds, 'run')} of its configuration, with different seeds, have F1 "
    text += f"{_percent(winner.seeds_f1)} on average"
    if winner.seeds_f1_sd is not None:
        text += f", with a standard deviation of {winner.seeds_f1_sd:.2f} points"
    return text


def _ending(pruning: Pruning, row: Row) -> str:
    done = len(row.val_loss)
    if row.state == TrialState.COMPLETE.name:
        return "It trained all its epochs (COMPLETE)."
    above = f"more than {pruning.min_delta:g} above" if pruning.min_delta else "above"
    times = "" if pruning.patience == 1 else f" for {pruning.patience} epochs in a row"
    hopeless = {
        "median": "its validation loss was worse than the median of the trials with as many epochs",
        "hyperband": "Hyperband preferred other trials",
        "promote": f"too many other trials were ahead after {count(done, 'epoch')}",
    }
    reasons = {
        "overfitting": f"its validation loss was {above} its best{times}",
        "hopeless": hopeless.get(pruning.across, "other trials were ahead"),
        "diverged": "its validation loss was worse than that of guessing",
        "budget": "the study's budget was spent",
    }
    why = reasons.get(row.stop_reason or "")
    text = f"It was stopped after epoch {done} (PRUNED"
    return text + (f", {row.stop_reason}): {why}." if why else ").")


def _scores(report: Report, winner: Row) -> str:
    sentences = []
    if winner.f1 is not None:
        sentences.append(f"At the threshold 0 it is {_percent(winner.f1)}.")
    if winner.crossfit_f1 is not None:
        sentences.append(
            "With a threshold that is tuned on one half of the articles and used on the other "
            f"(cross-fit), it is {_percent(winner.crossfit_f1)}."
        )
    if winner.best_f1_interval is not None:
        low, high = winner.best_f1_interval
        sentences.append(
            f"For other articles of the kind, its 95% interval is {low:.2f}% to {high:.2f}%."
        )
    elif report.unsure:
        sentences.append(f"There is no interval: {report.unsure}.")
    return " ".join(sentences)


def _seeds(winner: Row) -> str:
    if winner.seeds_f1 is None:
        return ""
    return (
        "Means over seeds decide only when all finalists have run with all their seeds; until "
        "then, the highest F1 of a single run does."
    )


def _probability(report: Report, winner: Row) -> str:
    sure = report.sure
    if sure is None:
        return f"How probable that is cannot be told: {report.unsure}."
    own = sure.probability_best.get(winner.number, 0.0)
    compared = len(sure.probability_best)
    if compared == 1:
        return "No other trial can be compared with it."
    text = f"Of {compared} trials compared, trial {winner.number} is truly the best with "
    text += f"probability {_probable(own)}"
    if winner.seeds > 1:
        text += f"; that it is a run of its configuration, {_probable(_of_alike(report, winner))}"
    others = {n: p for n, p in sure.probability_best.items() if n != winner.number}
    rival = max(others, key=lambda number: others[number])
    if others[rival] >= 0.005:
        text += f". Next is trial {rival} with {_probable(others[rival])}"
    return f"{text}."


def _of_alike(report: Report, winner: Row) -> float:
    """Return the probability that a run of the winner's configuration is the best."""
    assert report.sure is not None
    own = report.configurations[winner.number]
    return sum(
        probability
        for number, probability in report.sure.probability_best.items()
        if report.configurations.get(number) == own
    )


# ---------------------------------------------------------------------------- comparisons


def _baseline(report: Report, winner: Row) -> str:
    baseline = report.board.baseline
    if baseline is None:
        has = bool(report.file.baseline)
        return "The baseline has not been measured yet." if has else "The study has no baseline."
    name = report.file.baseline[0].get("name")
    who = f"The baseline{'' if name is None else f' {name}'} (trial {baseline.number}"
    if baseline.state == TrialState.FAIL.name:
        return f"{who}) failed: {baseline.stop_reason or 'its worker ended'}."
    if baseline.best_f1 is None:
        return f"{who}) ended before an epoch could be measured."
    if baseline.number == winner.number:
        return f"{who}) is the winner: the search found nothing better."
    scored = f"F1 {_percent(baseline.best_f1)}"
    if report.configurations[winner.number] == report.configurations[baseline.number]:
        return (
            f"{who}, {scored}) is the winner's configuration with another seed: the search found "
            "nothing better."
        )
    text = f"{who}: {_parameters(baseline, report.searched)}) has {scored}. "
    return text + _against(report, winner, baseline.best_f1)


def _against(report: Report, winner: Row, baseline_f1: float) -> str:
    compared = None if report.sure is None else report.sure.against_baseline
    if compared is None:
        gain = (winner.best_f1 or 0.0) - baseline_f1
        why = report.unsure or "what the baseline answered is not kept"
        return f"The winner has {gain:+.2f} points; how sure that is, is not known: {why}."
    verdict = _verdict(compared.difference, "the winner's checkpoint", "the baseline's")
    return f"The winner has {_points(compared.difference)}: {verdict}."


def _starts(report: Report, winner: Row) -> str:
    dimension = report.file.search.get("start")
    choices = [str(start) for start in dimension.values()] if dimension else []
    if len(choices) < 2:
        return f"There is one start, {winner.params['start']}."
    trials = Counter(str(row.params["start"]) for row in report.measured)
    own = str(winner.params["start"])
    missing = [start for start in choices if not trials[start]]
    sentences = [f"No trial from {start} has been measured." for start in missing]
    others = [start for start in choices if trials[start] and start != own]
    compared = {} if report.sure is None else _by_start(report.sure)
    best = best_of_starts(report.contenders)
    too_much = [start for start in others if start not in best]
    sentences += [f"All trials from {start} forget more than is allowed." for start in too_much]
    others = [start for start in others if start in best]
    said = [_start_against(best[s], trials[s], compared.get(s), report) for s in others]
    if said:
        has = count(trials[own], "trial")
        who = "" if best[own].number == winner.number else f", trial {best[own].number}"
        lead = f"The best trial from {own}{who} ({has}), beside the best from each other start: "
        sentences.insert(0, f"{lead}{'; '.join(said)}.")
        if len({trials[start] for start in (own, *others)}) > 1:
            sentences.append("A start with more trials has had more chances.")
    return " ".join(sentences)


def _by_start(sure: Certainty) -> dict[str, Compared]:
    return {str(found.second.params["start"]): found for found in sure.starts}


def _start_against(best: Row, trials: int, compared: Compared | None, report: Report) -> str:
    start = best.params["start"]
    text = f"{start} ({count(trials, 'trial')}, best F1 {_percent(best.best_f1)})"
    if compared is None:
        why = report.unsure or f"what trial {best.number} answered is not kept"
        return f"{text}: how far they differ is not known, {why}"
    difference = compared.difference
    first, second = (
        f"the best checkpoint from {row.params['start']}" for row in (compared.first, best)
    )
    return f"{text}: {_points(difference)}, {_verdict(difference, first, second)}"


def _verdict(difference: Difference, first: str, second: str) -> str:
    if difference.low > 0:
        return f"{first} scores higher"
    if difference.high < 0:
        return f"{second} scores higher"
    return "which of them scores higher is not certain"


def _choosing(report: Report) -> str:
    rescored = None if report.sure is None else report.sure.rescored
    if rescored is None:
        return ""
    bounded = len(report.contenders) < len(report.measured)
    whose = "the trials that forget no more than is allowed" if bounded else "all trials"
    text = (
        f"The highest F1 of {whose} is {_percent(rescored.raw)}. Where trial and threshold are "
        "chosen on one half of the articles and measured on the other half, F1 is "
        f"{_percent(rescored.honest)}"
    )
    if rescored.optimism < 0.005:
        return f"{text}: choosing adds nothing."
    return (
        f"{text}. Where many trials alike were measured on a few hundred questions, that is nearer "
        "to what other articles of the kind will give than the highest F1; with thousands of "
        "questions it is about as near. It is rather too low: half of the articles choose worse "
        "than all."
    )


def _test(report: Report, winner: Row) -> str:
    data, scores = report.file.data.test, report.origin.tested
    if data is None:
        return ""
    if scores is None:
        return f"The winner has not been measured on {data}; qa-hpo export does that."
    text = f"On {scores['total']:,.0f} questions of {data}, which had no part in the search, "
    text += f"trial {winner.number} has F1 {_percent(scores['f1'])} at the same threshold"
    if scores.get("f1_interval"):
        low, high = scores["f1_interval"]
        text += f" (95% interval {low:.2f}% to {high:.2f}%)"
    return f"{text}."


# ---------------------------------------------------------------------------- pruning


def _pruning(report: Report) -> str:
    price = report.price
    stopped = [row.stop_reason for row in report.board.trials if row.state == "PRUNED"]
    found = [reason for reason in STOP_REASONS if reason != "budget" and reason in stopped]
    reasons = ", ".join(f"{stopped.count(reason)} {reason}" for reason in found)
    if not price.pruned:
        text = "No trial was pruned."
    else:
        text = (
            f"{count(price.pruned, 'trial')} of {len(report.board.trials)} ended early "
            f"({reasons}), which saved {price.epochs_saved} of "
            f"{price.epochs_trained + price.epochs_saved} epochs ({price.share_saved:.0%})."
        )
    return f"{text} {_cost(report)}"


def _cost(report: Report) -> str:
    price = report.price
    controls, lost, best_lost = price.controls, price.f1_lost, price.best_lost
    if lost is None or best_lost is None:
        if report.file.pruning.control_fraction > 0:
            return "What it cost is not known: no control, a trial that is never pruned, has ended."
        return "What it cost is not known: there are no controls (set pruning.control_fraction)."
    would = [control for control in controls if control.stop is not None]
    are = "1 trial was a control, which is"
    if len(controls) > 1:
        are = f"{len(controls)} trials were controls, which are"
    text = f"{are} never pruned: pruning would have ended {len(would)} of them early"
    if not would:
        return f"{text}, so that it would have cost them nothing."
    epochs = sum(control.epochs for control in controls)
    saved = sum(control.epochs_saved for control in controls)
    lower = f"{best_lost:.2f} points lower" if best_lost >= 0.005 else "the same"
    return (
        f"{text}, saved {saved} of their {count(epochs, 'epoch')}, and cost {lost:.2f} points of "
        f"F1 on average; the best F1 among them would be {lower}."
    )


# ---------------------------------------------------------------------------- words


def start_in_words(report: Report, name: str) -> str:
    """Return what a start is: a checkpoint, or another start trained on something."""
    start = report.file.starts[name]
    if isinstance(start, Recipe):
        return f"{start.from_} trained on {start.train}"
    return f"the checkpoint {start}"


def _parameters(row: Row, names: Sequence[str]) -> str:
    # A strength is there where the method has one.
    own = [name for name in names if name in row.params]
    return ", ".join(f"{re.sub('[._]', ' ', name)} {_value(row.params[name])}" for name in own)


def _value(value: Any) -> str:
    if value is None:
        return "as the start has it"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}%"


def _points(difference: Difference) -> str:
    return (
        f"{difference.mean:+.2f} points (95% interval {difference.low:+.2f} to "
        f"{difference.high:+.2f})"
    )


def _probable(probability: float) -> str:
    if probability >= 0.995:
        return "above 99%"
    return "below 1%" if probability < 0.01 else f"{probability:.0%}"
