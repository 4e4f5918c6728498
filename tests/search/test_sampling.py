import math

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from qa_hpo.search.sampling import STARTUP_TRIALS, PerTrialTPESampler, derived_seed

SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


def new_study(seed: int) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=PerTrialTPESampler(seed))


def test_a_derived_seed_is_the_same_everywhere():
    # The first four bytes of BLAKE2b with a digest of four, as b2sum -l 32 prints them for the
    # texts "run:0:0" and "run:0:1".
    assert derived_seed("run", 0, 0) == 0x8BEB1D4D
    assert derived_seed("run", 0, 1) == 0xDAC2AA33
    seeds = {derived_seed(p, s, n) for p in ("a", "b") for s in range(20) for n in range(50)}
    assert len(seeds) == 2000


def test_startup_points_depend_on_seed_and_number_alone():
    one_by_one, all_at_once, other_seed = new_study(7), new_study(7), new_study(8)
    for _ in range(STARTUP_TRIALS - 1):
        one_by_one.tell(one_by_one.ask(SPACE), 1.0)
        other_seed.ask(SPACE)
    for _ in range(STARTUP_TRIALS - 1):
        all_at_once.ask(SPACE)
    points = [trial.params for trial in one_by_one.trials]
    assert points == [trial.params for trial in all_at_once.trials]
    others = [trial.params for trial in other_seed.trials]
    assert len({p["x"] for p in points + others}) == 2 * (STARTUP_TRIALS - 1)


def test_a_worker_that_joins_late_continues_the_same_sequence():
    storage = optuna.storages.InMemoryStorage()
    first = optuna.create_study(storage=storage, sampler=PerTrialTPESampler(7))
    first.ask(SPACE)
    late = optuna.load_study(
        study_name=first.study_name, storage=storage, sampler=PerTrialTPESampler(7)
    )
    late.ask(SPACE)
    alone = new_study(7)
    alone.ask(SPACE)
    alone.ask(SPACE)
    assert [t.params for t in late.trials] == [t.params for t in alone.trials]


def test_it_learns_from_finished_trials():
    study = new_study(1)
    for _ in range(60):
        trial = study.ask(SPACE)
        study.tell(trial, -((trial.params["x"] - 0.2) ** 2) - (trial.params["y"] - 0.9) ** 2)
    distances = [math.dist((t.params["x"], t.params["y"]), (0.2, 0.9)) for t in study.trials]
    # Uniform points lie 0.59 away on average (Monte Carlo); a random sampler would stay there.
    assert sum(distances[-20:]) / 20 < 0.3


def test_a_conditional_space_is_sampled_after_startup():
    study = new_study(2)
    for _ in range(30):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        value = trial.suggest_float(f"only_{kind}", 0, 1)
        study.tell(trial, value if kind == "b" else value - 1)
    kinds = [trial.params["kind"] for trial in study.trials]
    assert kinds[-10:].count("b") >= 8
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
