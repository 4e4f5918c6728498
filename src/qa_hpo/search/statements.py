"""What is written to Optuna's tables, as statements."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

__all__ = ["insert_params", "is_as", "set_state", "upsert"]

Attribute = (
    models.TrialUserAttributeModel
    | models.TrialSystemAttributeModel
    | models.StudySystemAttributeModel
)


def insert_params(
    trial_id: int, params: Mapping[str, tuple[Any, BaseDistribution]]
) -> sqlalchemy.Insert:
    """Return one statement that gives a trial its ``params``."""
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distribution.to_internal_repr(param),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (param, distribution) in params.items()
    ]
    return sqlalchemy.insert(models.TrialParamModel).values(rows)


def upsert(
    dialect: str,
    model: type[Attribute],
    owner: int,
    attributes: Mapping[str, Any],
) -> sqlalchemy.Insert:
    """Return one statement that sets ``attributes`` of the trial or study ``owner``."""
    of_study = model is models.StudySystemAttributeModel
    column = "study_id" if of_study else "trial_id"
    # In one order, so that no two transactions wait for each other.
    rows = [
        {column: owner, "key": key, "value_json": json.dumps(value)}
        for key, value in sorted(attributes.items())
    ]
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(model).values(rows)
    upsert: sqlalchemy.Insert = insert.on_conflict_do_update(
        index_elements=[column, "key"],
        set_={"value_json": insert.excluded.value_json},
    )
    return upsert


def set_state(trial: models.TrialModel, state: TrialState) -> None:
    """Set a trial's state and the time of it, as Optuna does."""
    trial.state = state
    if state is TrialState.RUNNING:
        trial.datetime_start = datetime.now()
    if state.is_finished():
        trial.datetime_complete = datetime.now()


def is_as(
    trial: models.TrialModel, session: Session, state: TrialState, attrs: Mapping[str, Any]
) -> bool:
    """Return whether a trial is in a state, with system attributes; None for one it has not."""
    model = models.TrialSystemAttributeModel
    rows = {key: model.find_by_trial_and_key(trial, key, session) for key in attrs}
    stored = {
        key: None if row is None else json.loads(str(row.value_json)) for key, row in rows.items()
    }
    return cast("TrialState", trial.state) is state and stored == dict(attrs)
