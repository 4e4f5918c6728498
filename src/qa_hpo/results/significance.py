"""What the differences between trials are worth: all were measured on the same questions.

Questions of one article are alike, so that the article is what is drawn here, and never a
question. Whatever makes a question hard is common to all trials: it widens the interval of one
trial's F1, and cancels where trials are compared. Very many articles are drawn by blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qa_hpo.results.blocks import blocks
from qa_hpo.squad.answered import Answered

__all__ = [
    "Difference",
    "Interval",
    "Rescored",
    "difference",
    "interval",
    "probability_best",
    "rescored",
    "tuned_interval",
]

Floats = NDArray[np.float64]
Groups = NDArray[np.integer[Any]]

_RESAMPLES = 4000  # the end of a 95% interval is then known to a twentieth of a standard error
_CANDIDATES = 200  # thresholds at these quantiles of the margins are as good as at all margins
_DRAWS = 8192  # a probability is then known to 0.006
_CELLS = 2**22  # of a matrix of halves and questions at once
_TINY = 1e-12  # in the unit of the scores, far below what one question can change
_CONTENDER = 5.0  # so many standard errors behind the top one, no trial is the best


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean over all articles of the kind, in percent.

    Attributes:
        mean: the mean over the questions at hand.
        low: the lower end.
        high: the upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """By how much one trial's F1 is above another's, in points of a percentage.

    Attributes:
        p_better: the probability that the first trial is truly better, in 0..1: above 0.975 where a
            95% interval is above 0. For two trials that were chosen without a look at their scores;
            for the best of many see `probability_best`.
    """

    p_better: float


@dataclass(frozen=True)
class Rescored:
    """The F1 of a study's winner, as it was chosen and as it holds elsewhere, in percent.

    Attributes:
        raw: the highest F1 of all trials, each at the threshold tuned on the same questions.
        honest: the F1 of a trial and a threshold that were chosen on other articles.
    """

    raw: float
    honest: float

    @property
    def optimism(self) -> float:
        """How much choosing the best trial and the best threshold adds to what is measured."""
        return self.raw - self.honest


def interval(
    f1: Floats, groups: Groups, *, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """The F1 that a trial would have over all articles like these.

    A studentised bootstrap by article (Efron and Tibshirani 1993, section 12.5; by cluster:
    Cameron, Gelbach and Miller 2008). A percentile interval would be too narrow with few articles.

    Args:
        f1: (questions,) scores in 0..1. Where the threshold was tuned on the same questions they
            are somewhat too high, which `tuned_interval` allows for.
        groups: (questions,) the article of each.
        confidence: of the two-sided interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        The interval within 0..100, or None with fewer than two articles.

    Raises:
        ValueError: if the shapes do not fit, or the confidence is not between 0 and 1.
    """
    index, sizes = blocks(groups)
    sums = _sums(f1, index)
    if len(sizes) < 2:
        return None
    mean, low, high, _ = _studentised(sums[:, None], 0, sizes, confidence, seed)
    return Interval(mean, max(low, 0.0), min(high, 100.0))


def tuned_interval(trial: Answered, *, confidence: float = 0.95, seed: int = 0) -> Interval | None:
    """The F1 that a trial would have over all articles like these, at its tuned threshold.

    As `interval`, but every resample tunes the threshold anew, so that what tuning adds on the
    questions at hand is taken off (the bootstrap's optimism, Efron 1983): the interval reaches
    further below the mean than above it.

    Raises:
        ValueError: if there is no question, or the confidence is not between 0 and 1.
    """
    index, sizes = blocks(trial.groups)
    if len(sizes) < 2:
        return None
    scores, margins = trial.scores, trial.scores.null_margin
    some = np.quantile(margins, np.linspace(0, 1, _CANDIDATES), method="lower")
    thresholds = np.unique(np.append(some, [margins.min() - 1.0, trial.threshold]))
    # The lowest of the thresholds at which a question is answered, in its article's own row.
    place = index * len(thresholds) + np.searchsorted(thresholds, margins)
    shape = len(sizes), len(thresholds)
    gains = np.bincount(place, weights=scores.span_f1 - scores.null_f1, minlength=np.prod(shape))
    sums = _sums(scores.null_f1, index)[:, None] + gains.reshape(shape).cumsum(axis=1)
    tuned = int(np.searchsorted(thresholds, trial.threshold))
    mean, low, high, _ = _studentised(sums, tuned, sizes, confidence, seed)
    return Interval(mean, max(low, 0.0), min(high, 100.0))


def difference(
    a: Floats, b: Floats, groups: Groups, *, confidence: float = 0.95, seed: int = 0
) -> Difference | None:
    """By how much trial a is better than trial b: the `interval` of the questions' differences.

    Whatever makes a question hard for both cancels, and so does what tuning the thresholds adds.

    Args:
        a: (questions,) scores in 0..1.
        b: (questions,) scores of the same questions.
        groups: (questions,) the article of each.
        confidence: of the two-sided interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        a minus b, the interval within -100..100, or None with fewer than two articles.

    Raises:
        ValueError: if the shapes do not fit, or the confidence is not between 0 and 1.
    """
    index, sizes = blocks(groups)
    sums = _sums(a, index) - _sums(b, index)
    if len(sizes) < 2:
        return None
    mean, low, high, above = _studentised(sums[:, None], 0, sizes, confidence, seed)
    return Difference(mean, max(low, -100.0), min(high, 100.0), above)


def _sums(f1: Floats, index: NDArray[np.intp]) -> Floats:
    """(articles,) the sums of a trial's scores."""
    f1 = np.asarray(f1, dtype=np.float64)
    if f1.shape != index.shape:
        raise ValueError(f"{len(index)} questions, but scores of shape {f1.shape}")
    # Rounded, so that the noise of a sum in floating point is no difference between trials.
    return np.round(np.bincount(index, weights=f1), 9)


@lru_cache(maxsize=1)  # all trials of a study have the same articles, and blocks keep it small
def _counts(articles: int, seed: int) -> Floats:
    """(resamples, articles) how often each article is drawn, with replacement."""
    chances = np.full(articles, 1 / articles)
    drawn = np.random.default_rng(seed).multinomial(articles, chances, size=_RESAMPLES)
    counts = drawn.astype(np.float64)
    counts.setflags(write=False)
    return counts


def _studentised(
    sums: Floats, tuned: int, sizes: Floats, confidence: float, seed: int
) -> tuple[float, float, float, float]:
    """(mean, low, high in percent, the probability that the true mean is above 0).

    The mean is a ratio, of the sum of the scores to the number of questions: both depend on what
    articles are drawn. Its standard error is the linearised one (Cochran 1977, section 6.4), but
    for a factor that cancels.

    The sums of the scores are (articles, thresholds), of every threshold that may be chosen. Tuned
    is the one that was; a resample chooses the best on its own articles.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}: expected it between 0 and 1")
    counts = _counts(len(sizes), seed)
    means = sums.sum(axis=0) / sizes.sum()
    residuals = sums - means * sizes[:, None]
    mean = means[tuned]
    error = np.sqrt((residuals[:, tuned] ** 2).sum()) / sizes.sum()

    # What a resample's mean is to that of all articles, the latter is to the true one.
    questions = counts @ sizes
    shifts = counts @ residuals / questions[:, None]
    # Among equals the smallest threshold, as `best_threshold` has it.
    chosen = (means - _TINY * np.arange(len(means)) + shifts).argmax(axis=1)
    shift = shifts[np.arange(len(shifts)), chosen]
    squares = (residuals.T[chosen] - shift[:, None] * sizes) ** 2
    errors = np.sqrt((counts * squares).sum(axis=1)) / questions
    # Where all that is drawn is alike there is no standard error, and one such resample in forty
    # would make the interval everything. With a quarter of all articles' error as the least, one
    # odd article among a dozen gives about what the exact binomial interval does.
    ratio = shift / np.maximum(errors, max(error / 4, _TINY))
    lower, upper = np.quantile(ratio, [(1 - confidence) / 2, (1 + confidence) / 2])
    observed = mean / max(error, _TINY)
    above = float(np.mean(ratio < observed) + np.mean(ratio == observed) / 2)
    low, high = mean - upper * error, mean - lower * error
    return 100 * float(mean), 100 * float(low), 100 * float(high), above


def probability_best(f1: Floats, groups: Groups, *, seed: int = 0) -> Floats | None:
    """How probable it is of each trial that it is truly the best one.

    The top one of many trials of about the same quality is there by luck as well, which resampling
    its lead cannot show. So the true F1s are taken to be normally distributed around an unknown
    mean, with a spread that the measured ones tell, and shrunk accordingly (parametric empirical
    Bayes, Morris 1983; the spread has a flat prior, Gelman 2006). Trials far behind the top say
    nothing on how much the others differ, and are left out of it: their probability is 0.

    Args:
        f1: (trials, questions) scores in 0..1.
        groups: (questions,) the article of each.
        seed: of the sampling.

    Returns:
        (trials,) probabilities that sum to 1; trials with the same scores share theirs. None with
        fewer than two articles.

    Raises:
        ValueError: if the shapes do not fit, or there is no trial.
    """
    index, sizes = blocks(groups)
    f1 = np.asarray(f1, dtype=np.float64).round(9)  # as in `_sums`
    if f1.ndim != 2 or len(f1) == 0:
        raise ValueError(f"scores of shape {f1.shape}: expected those of each trial")
    sums = np.array([_sums(own, index) for own in f1])
    if len(sizes) < 2:
        return None
    kinds: dict[bytes, int] = {}
    kind = np.array([kinds.setdefault(own.tobytes(), len(kinds)) for own in f1])
    first = np.unique(kind, return_index=True)[1]
    rows = first[_contenders(f1[first], sums[first], sizes)]
    shares = np.zeros(len(f1))
    shares[rows] = 1.0
    if len(rows) > 1:
        means = sums[rows].sum(axis=1) / sizes.sum()
        noise = _noise(f1[rows], sums[rows], sizes)
        shares[rows] = _share_on_top(means, noise, np.random.default_rng(seed))
    return np.asarray(shares[first[kind]] / np.bincount(kind)[kind])


def _contenders(f1: Floats, sums: Floats, sizes: Floats) -> NDArray[np.bool_]:
    """(trials,) whether the trial may be as good as the top one."""
    means = sums.sum(axis=1) / sizes.sum()
    top = int(means.argmax())
    behind = means[top] - means
    # The standard error of the difference by article and, in case articles are few, by question.
    residuals = sums[top] - sums - behind[:, None] * sizes
    by_article = len(sizes) / (len(sizes) - 1) * (residuals**2).sum(axis=1)
    by_question = ((f1[top] - f1 - behind[:, None]) ** 2).sum(axis=1)
    error = np.sqrt(np.maximum(by_article, by_question)) / sizes.sum()
    return np.asarray(behind <= _CONTENDER * error + _TINY)


def _noise(f1: Floats, sums: Floats, sizes: Floats) -> Floats:
    """(trials, trials) covariance of the means' deviations from their common mean.

    There are too few articles to estimate a covariance of many trials from them. So it is that of
    the questions, shrunk to equal variances as far as questions are few as well (Ledoit and Wolf
    2004), times what articles add to the variance on average (the first-order correction of Rao
    and Scott 1981).
    """
    trials, questions = f1.shape
    deviations = f1 - f1.mean(axis=0)
    deviations -= deviations.mean(axis=1, keepdims=True)
    covariance = deviations @ deviations.T / questions
    equal = np.trace(covariance) / (trials - 1) * (np.eye(trials) - 1 / trials)
    fourth_powers = (np.einsum("tq,tq->q", deviations, deviations) ** 2).mean()
    luck = (fourth_powers - (covariance**2).sum()) / questions
    shrunk = luck / max(((covariance - equal) ** 2).sum(), luck, _TINY**2)
    residuals = sums - sums.mean(axis=0)
    residuals -= np.outer(residuals.sum(axis=1), sizes) / questions
    by_article = len(sizes) / (len(sizes) - 1) * (residuals**2).sum() / questions
    design_effect = max(1.0, by_article / np.trace(covariance))
    return np.asarray(design_effect / questions * (covariance + shrunk * (equal - covariance)))


def _share_on_top(means: Floats, noise: Floats, rng: np.random.Generator) -> Floats:
    """(trials,) how often each has the highest true mean, given the measured ones.

    With a flat prior on the common mean only contrasts between trials matter: the direction in
    which all trials move together is left out. In the directions of the noise's eigenvectors,
    true contrasts have the variance of the spread, and measured ones the eigenvalue on top.
    """
    trials = len(means)
    together = (1 + 2 * np.trace(noise)) / trials  # makes theirs the largest eigenvalue
    values, vectors = np.linalg.eigh(noise + together)
    values, vectors = np.maximum(values[:-1], 0), vectors[:, :-1]
    contrasts = (means - means.mean()) @ vectors

    # The spread is uniform a priori, up to the largest that numbers in 0..1 can have.
    error = np.sqrt(values.mean())
    spreads = np.geomspace(error / 100, max(0.5, 2 * error), 200)
    variances = spreads[:, None] ** 2 + values
    log_likelihood = -0.5 * (np.log(variances) + contrasts**2 / variances).sum(axis=1)
    weights = np.exp(log_likelihood - log_likelihood.max()) * spreads  # the steps between them
    drawn = rng.choice(spreads, size=_DRAWS, p=weights / weights.sum())[:, None] ** 2
    kept = drawn / (drawn + values)
    true = kept * contrasts + np.sqrt(kept * values) * rng.standard_normal(kept.shape)
    return np.bincount((true @ vectors.T).argmax(axis=1), minlength=trials) / _DRAWS


def rescored(
    trials: Sequence[Answered], groups: Groups | None = None, *, splits: int = 100, seed: int = 0
) -> Rescored | None:
    """What the winner is worth without the luck that made it the winner.

    A random half of the articles chooses each trial's threshold and the best trial; that trial with
    that threshold is scored on the other half; and the other way round; the mean over many such
    splits. Half of the articles choose somewhat worse than all do, so that the estimate is rather
    too low than too high (selection by cross-validation: Cawley and Talbot 2010).

    Args:
        trials: the leading ones, of the same questions; among equals the first one wins.
        groups: (questions,) the article of each; None takes the trials' own.
        splits: how many.
        seed: of the splits.

    Returns:
        The estimate, or None with fewer than two articles.

    Raises:
        ValueError: if there is no trial or no split, or trials are not of the same questions.
    """
    if not trials or splits < 1:
        raise ValueError(f"{len(trials)} trials and {splits} splits: expected one at least")
    index, sizes = blocks(trials[0].groups if groups is None else groups)
    if len(trials[0]) != len(index):
        raise ValueError(f"groups of {len(index)} questions, but {len(trials[0])} answers")
    if any(not np.array_equal(trial.groups, trials[0].groups) for trial in trials):
        raise ValueError("trials of different articles: expected answers to the same questions")
    if len(sizes) < 2:
        return None
    first = np.tile(np.arange(len(sizes)) < len(sizes) // 2, (splits, 1))
    in_first = np.random.default_rng(seed).permuted(first, axis=1)
    halves = np.concatenate([in_first, ~in_first])[:, index]
    at_once = max(1, _CELLS // len(index))  # so that memory does not grow with the questions
    parts = [halves[begin : begin + at_once] for begin in range(0, 2 * splits, at_once)]
    scored = np.array([np.hstack([_tuned(trial, part) for part in parts]) for trial in trials])
    # Rounded, so that the noise of a sum in floating point does not decide between equals.
    chosen = np.round(scored[:, 0], 9).argmax(axis=0)
    outside = scored[chosen, 1, np.arange(2 * splits)]
    raw = max(float(trial.f1.mean()) for trial in trials)
    return Rescored(100 * raw, 100 * float(outside.sum()) / (splits * len(index)))


def _tuned(trial: Answered, halves: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(halves,) sums of F1 inside a (halves, questions) mask and outside, at its best threshold."""
    scores = trial.scores
    order = np.argsort(scores.null_margin, kind="stable")
    margins = scores.null_margin[order]
    halves = halves[:, order]
    null = scores.null_f1[order]
    gains = scores.span_f1[order] - null
    # With the lowest margins answered, and all of one margin or none: as `best_threshold` has it.
    inside = np.cumsum(np.where(halves, gains, 0.0), axis=1)
    last_of_margin = np.flatnonzero(np.append(np.diff(margins) > 0, True))
    sums = np.pad(np.round(inside[:, last_of_margin], 9), ((0, 0), (1, 0)))
    best = sums.argmax(axis=1)
    # To answer nothing inside is to answer what is below its lowest margin by more than 1.
    nothing = margins[halves.argmax(axis=1)] - 1.0
    thresholds = np.where(best > 0, margins[last_of_margin[best - 1]], nothing)
    answered = np.searchsorted(margins, thresholds, side="right")
    inside = np.pad(inside, ((0, 0), (1, 0)))[np.arange(len(halves)), answered]
    outside = np.append(0.0, np.cumsum(gains))[answered] - inside
    null_inside = halves @ null
    return inside + null_inside, outside + null.sum() - null_inside
