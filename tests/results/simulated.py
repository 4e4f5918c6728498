"""Studies whose truth is known: what every trial's F1 would be over endlessly many articles."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.answered import Answered
from qa_hpo.squad.scoring import QuestionScores

Floats = NDArray[np.float64]

_NEAR = 0.3  # so far below the mark is a span that overlaps a gold answer by half
_SKILL = 0.6  # of a trial of quality 0: the mean by which its spans are above the mark,
_SEPARATION = 1.2  # and that by which its null margins are on the right side of 0


@dataclass(frozen=True)
class Scenario:
    """What is drawn: trials that answer the same questions, which come in articles.

    A question's span scores by a standard normal variable plus the trial's skill, and its null
    margin is another plus or minus the trial's separation. Either variable is a sum of an effect
    of the article and one of the question, which all trials share, and of effects of the trial on
    the article and on the question, which are its own.

    Attributes:
        articles: how many.
        questions: the mean number of questions of an article; they differ by about half of it.
        shared: the share of the variance, in 0..1, that is the question's.
        article: the share that is the article's.
        taste: the share that is the trial's on the article.
    """

    articles: int = 35
    questions: int = 40
    shared: float = 0.7
    article: float = 0.06
    taste: float = 0.02

    def draw(self, rng: np.random.Generator, quality: Floats) -> Study:
        """A study of trials of these qualities, (trials,); 0.01 is about 0.35 points of F1."""
        sizes = 1 + rng.poisson(rng.gamma(4, (self.questions - 1) / 4, self.articles))
        groups = np.repeat(np.arange(self.articles, dtype=np.int32), sizes)
        has_answer = rng.random(len(groups)) < 0.5
        reach = self._normal(rng, len(quality), groups) + (_SKILL + quality)[:, None]
        span_f1 = np.where(has_answer, 0.5 * (reach > 0) + 0.5 * (reach > -_NEAR), 0.0)
        side = np.where(has_answer, -1.0, 1.0) * (_SEPARATION + quality)[:, None]
        margin = side + self._normal(rng, len(quality), groups)
        null = (~has_answer).astype(np.float64)
        nowhere = np.zeros(len(groups), dtype=np.int32)
        trials = [
            Answered(
                nowhere,
                nowhere,
                QuestionScores(np.floor(span), span, null, null, has_answer, margins),
                groups,
            )
            for span, margins in zip(span_f1, margin, strict=True)
        ]
        return Study(quality, trials)

    def _normal(self, rng: np.random.Generator, trials: int, groups: NDArray[np.int32]) -> Floats:
        """(trials, questions), each standard normal by itself."""
        own = 1 - self.shared - self.article - self.taste
        common = sqrt(self.shared) * rng.standard_normal(len(groups))
        common += sqrt(self.article) * rng.standard_normal(self.articles)[groups]
        taste = sqrt(self.taste) * rng.standard_normal((trials, self.articles))[:, groups]
        return common + taste + sqrt(own) * rng.standard_normal((trials, len(groups)))


@dataclass(frozen=True)
class Study:
    """A drawn study.

    Attributes:
        quality: (trials,) what the trials' skill and separation are above the usual ones.
        trials: what they answered to the same questions.
    """

    quality: Floats
    trials: list[Answered]

    @property
    def groups(self) -> NDArray[np.int32]:
        """(questions,) the article of each."""
        return self.trials[0].groups

    @property
    def f1(self) -> Floats:
        """(trials, questions) in 0..1, at the tuned thresholds."""
        return np.array([trial.f1 for trial in self.trials])

    @property
    def truth(self) -> Floats:
        """(trials,) F1 in percent at the tuned thresholds, over endlessly many articles."""
        thresholds = np.array([trial.threshold for trial in self.trials])
        return true_f1(self.quality, thresholds)


def true_f1(quality: Floats, threshold: Floats) -> Floats:
    """F1 in percent over endlessly many articles, in closed form."""
    span = 0.5 * _below(_SKILL + quality) + 0.5 * _below(_SKILL + quality + _NEAR)
    answered = _below(threshold + _SEPARATION + quality)
    withheld = 1 - _below(threshold - _SEPARATION - quality)
    return 50 * span * answered + 50 * withheld


def _below(values: Floats) -> Floats:
    """The standard normal distribution function."""
    return np.array([0.5 * (1 + erf(value / sqrt(2))) for value in values])
