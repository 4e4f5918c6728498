"""Experimental features, used by several threads at once."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.exceptions import ExperimentalWarning

from qa_hpo.search.experimental import on_purpose
from qa_hpo.search.sampling import PerTrialTPESampler


@pytest.fixture
def restless():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_threads_do_not_take_each_others_filters_away():
    """Warnings are errors in the tests: whoever lost the filter would raise."""
    before = list(warnings.filters)

    def work(seed: int) -> None:
        sampler = PerTrialTPESampler(seed)
        for number in range(100):
            sampler.begin(number)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, seed) for seed in range(8)]:
            done.result()
    assert warnings.filters == before


def test_other_warnings_are_still_given():
    with on_purpose(), pytest.raises(UserWarning, match="something else"):
        warnings.warn("something else", UserWarning, stacklevel=1)
    with pytest.raises(ExperimentalWarning):
        warnings.warn("later", ExperimentalWarning, stacklevel=1)
