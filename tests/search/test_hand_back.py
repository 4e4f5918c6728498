"""What a worker that is told to end gives back, and what an earlier study leaves in the way."""

from pathlib import Path

import optuna
from optuna.trial import TrialState
from search_helpers import FINGERPRINTS, asked, created, record, run, study_file

from qa_hpo.search.storage import MAX_RETRIES, StudyStorage
from qa_hpo.search.study import create_study, hand_back
from qa_hpo.search.trials import epoch_records, record_epoch


def test_a_trial_may_be_handed_back_more_often_than_workers_may_die(storage: StudyStorage):
    joined = created(storage)
    first = asked(joined)
    record_epoch(first.trial, record(1, 2.5))
    latest = first
    for _ in range(MAX_RETRIES + 2):
        hand_back(joined, latest.trial)
        latest = asked(joined)
        assert (latest.lineage, latest.seed) == (first.lineage, first.seed)
        assert latest.parameters == first.parameters
    assert [epoch["val_loss"] for epoch in epoch_records(latest.trial)] == [2.5]
    # None of this counts as a death, of which MAX_RETRIES are forgiven.
    retry = storage.rdb.get_heartbeat_stale_trial_callback()
    assert retry is not None
    study = joined.optuna_study
    for _ in range(MAX_RETRIES):
        storage.rdb.set_trial_state_values(latest.trial._trial_id, TrialState.FAIL)
        retry(study, study.trials[latest.trial.number])
        latest = asked(joined)
        assert latest.lineage == first.lineage
    storage.rdb.set_trial_state_values(latest.trial._trial_id, TrialState.FAIL)
    retry(study, study.trials[latest.trial.number])
    assert asked(joined).lineage != first.lineage


def test_a_finished_trial_is_not_handed_back(storage: StudyStorage):
    joined = created(storage)
    trial = asked(joined).trial
    run(joined, trial, 1)
    hand_back(joined, trial)
    states = [trial.state for trial in joined.optuna_study.get_trials(deepcopy=False)]
    assert states == [TrialState.COMPLETE]


def test_what_an_earlier_study_of_the_name_left_is_moved_aside(
    storage: StudyStorage, tmp_path: Path
):
    file = study_file(artifacts={"folder": str(tmp_path / "artifacts")})
    left = tmp_path / "artifacts" / "demo" / "trial-00000" / "checkpoint"
    left.mkdir(parents=True)
    (left / "weights").write_text("precious")
    assert create_study(file, storage, fingerprints=FINGERPRINTS).created
    assert not left.exists()
    (kept,) = (tmp_path / "artifacts").glob("demo.until-*/trial-00000/checkpoint/weights")
    assert kept.read_text() == "precious"
    # Going on with the study leaves its own folders where they are.
    left.mkdir(parents=True)
    assert not create_study(file, storage, fingerprints=FINGERPRINTS).created
    assert left.is_dir()
    assert optuna.get_all_study_names(storage.rdb) == ["demo"]
