"""A study's storage in memory, for searches that take no time but the simulated one.

It has the methods that qa_hpo's study code calls, on Optuna's own in-memory storage. A simulated
search has one process and no outages: there is nothing to lock, and nobody dies.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.search.retrying import NotOursError, RetryingRDBStorage
from qa_hpo.search.storage import StudyStorage

__all__ = ["MemoryStorage", "open_memory"]

Result = TypeVar("Result")


class MemoryStorage(InMemoryStorage):
    """What `RetryingRDBStorage` adds to Optuna's storages, in memory."""

    grace_period = 0

    @contextlib.contextmanager
    def fenced(self) -> Iterator[None]:
        yield

    def through_outages(self, call: Callable[[], Result]) -> Result:
        return call()

    def record_heartbeat(self, trial_id: int) -> None:
        pass

    def dead_trials(self, study_id: int) -> list[int]:
        return []

    def create_trial(self, study_id: int, template: FrozenTrial) -> FrozenTrial:
        return copy.deepcopy(self.get_trial(self.create_new_trial(study_id, template)))

    def write_trial(
        self,
        trial_id: int,
        *,
        params: Mapping[str, tuple[Any, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
        reports: Mapping[int, float] | None = None,
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
        expected: tuple[TrialState, Mapping[str, Any]] | None = None,
    ) -> None:
        trial = self.get_trial(trial_id)
        if expected is not None:
            wanted, attributes = expected
            have = {key: trial.system_attrs.get(key) for key in attributes}
            if trial.state is not wanted or have != dict(attributes):
                raise NotOursError(f"trial {trial.number} is not as it was seen")
        for name, (value, kind) in (params or {}).items():
            self.set_trial_param(trial_id, name, kind.to_internal_repr(value), kind)
        for name, value in (user_attrs or {}).items():
            self.set_trial_user_attr(trial_id, name, value)
        for name, value in (system_attrs or {}).items():
            self.set_trial_system_attr(trial_id, name, value)
        for step, report in (reports or {}).items():
            self.set_trial_intermediate_value(trial_id, step, report)
        if state is not None:
            self.set_trial_state_values(trial_id, state, values)


def open_memory() -> StudyStorage:
    """An empty storage."""
    storage = cast("RetryingRDBStorage", MemoryStorage())
    return StudyStorage(
        url="memory", shown="memory", rdb=storage, _lock=lambda _name: contextlib.nullcontext()
    )
