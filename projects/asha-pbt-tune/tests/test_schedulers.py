"""What this project adds to Tune's schedulers and searcher, without a cluster."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from asha_pbt_tune import schedulers, space, tune
from asha_pbt_tune.record import Record, number, reason_of
from ray.tune.schedulers import TrialScheduler
from ray_shared.errors import JobError

from .counting import configuration


def begun(record: Record) -> Any:
    """An ASHA scheduler that knows what is optimized."""
    scheduler = schedulers.asha(record.config, record)
    scheduler.set_search_properties("val_logloss", "min")
    return scheduler


def rung(scheduler: Any, name: str, score: float) -> str:
    """A new trial reaches the first rung; what the scheduler says."""
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    return str(scheduler.on_trial_result(None, trial, {"epoch": 4, "val_logloss": score}))


def test_rungs_survive_the_driver(tmp_path: Path):
    config = configuration()
    first = Record(config, tmp_path)
    scheduler = begun(first)
    assert [rung(scheduler, name, 0.1) for name in "abc"] == [TrialScheduler.CONTINUE] * 3
    state = copy.deepcopy(first.get_state())

    second = Record(config, tmp_path)
    restored = begun(second)
    second.set_state(state)
    assert rung(restored, "d", 9.0) == TrialScheduler.STOP
    # One that knows nothing of the others lets it go on.
    assert rung(begun(Record(config, tmp_path)), "d", 9.0) == TrialScheduler.CONTINUE


def test_rungs_are_where_asha_looks(tmp_path: Path):
    config = configuration()
    scheduler = begun(Record(config, tmp_path))
    (bracket,) = scheduler._brackets
    assert sorted(milestone for milestone, _ in bracket._rungs) == schedulers.rungs(config)


def test_diverged_trial_is_stopped_at_once(tmp_path: Path):
    scheduler = begun(Record(configuration(), tmp_path))
    trial = SimpleNamespace(trial_id="a")
    scheduler.on_trial_add(None, trial)
    result = {"epoch": 2, "val_logloss": float("nan")}
    assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP


def test_study_whose_state_cannot_be_read_is_not_begun_anew(tmp_path: Path):
    record = Record(configuration(), tmp_path)
    record.setup()
    record.resumes = True
    with pytest.raises(JobError, match="choose another run.name"):
        record.setup()
    record.set_state({"events": []})
    record.setup()


def test_limit_of_a_resumed_study_is_the_new_one():
    first = schedulers.Draws(max_concurrent=2)
    second = schedulers.Draws(max_concurrent=1)
    second.set_state(first.get_state())
    assert second.max_concurrent == 1


def test_pbt_looks_only_where_there_are_checkpoints(tmp_path: Path):
    config = configuration("scheduler=pbt", "train.epochs=16", "scheduler.perturbation_epochs=4")
    scheduler = schedulers.RecordedPBT(config, Record(config, tmp_path))
    trial = SimpleNamespace(trial_id="a")
    # A member that goes on at epoch 6 is a new one for Tune; at 9, three epochs would be over.
    for epoch in (6, 7, 9, 10, 11):
        result = {"epoch": epoch, "val_logloss": 1.0}
        assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE


def test_nobody_takes_over_at_the_last_epoch(tmp_path: Path):
    config = configuration("scheduler=pbt", "train.epochs=8")
    scheduler = schedulers.RecordedPBT(config, Record(config, tmp_path))
    result = {"epoch": 8, "val_logloss": 1.0}
    trial = SimpleNamespace(trial_id="a")
    assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE


def test_optuna_knows_finished_pruned_and_failed_trials():
    config = configuration("train.epochs=9")
    searcher = schedulers.PruningOptuna(config, [], [])
    searcher.set_search_properties("val_logloss", "min", space.to_tune(config.space))
    for name, last, error in (("a", 9, False), ("b", 4, False), ("c", 2, True)):
        assert searcher.suggest(name).keys() == config.space.keys()
        results = [{"epoch": e, "val_logloss": 1 / e} for e in range(1, last + 1)]
        for result in results[:-1]:  # Tune does not show the one at which a trial is stopped.
            searcher.on_trial_result(name, result)
        # A trial that is tried again reports an epoch a second time.
        searcher.on_trial_result(name, results[0])
        searcher.on_trial_complete(name, None if error else results[-1], error)
    finished, pruned, failed = searcher._ot_study.trials
    assert (finished.state, finished.value) == (optuna.trial.TrialState.COMPLETE, 1 / 9)
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert pruned.intermediate_values == {1: 1.0, 2: 0.5, 3: 1 / 3, 4: 0.25}
    assert failed.state == optuna.trial.TrialState.FAIL


def test_a_warm_start_counts_as_finished_trials():
    config = configuration("~space.learning_rate", "+space.learning_rate={uniform: [0.0, 1.0]}")
    point = {name: domain.sample() for name, domain in space.to_tune(config.space).items()}
    points = [point | {"learning_rate": i / 40} for i in range(40)]
    scores = [abs(p["learning_rate"] - 0.25) for p in points]
    searcher = schedulers.PruningOptuna(config, points, scores)
    searcher.set_search_properties("val_logloss", "min", space.to_tune(config.space))
    assert len(searcher._ot_study.trials) == 40
    # With the best score at 0.25, TPE proposes values near it; a random draw would not.
    drawn = [searcher.suggest(str(i))["learning_rate"] for i in range(20)]
    assert sum(abs(value - 0.25) < 0.2 for value in drawn) >= 12


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            "The actor died unexpectedly before\n\tpid: 5\nsome detail",
            "its process died, or its node",
        ),
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on the",
            "out of memory: Ray killed its process",
        ),
        (
            "Traceback\n  File x\nxgboost.core.XGBoostError: value 1.5\nsubsample: Row ratio",
            "xgboost.core.XGBoostError: value 1.5",
        ),
        ("Traceback\n  File x\nmy.Strange: oh\n", "my.Strange: oh"),
    ],
)
def test_the_last_failure_is_told_in_a_line(failure: str, reason: str):
    first = "Failure # 1 (occurred at 2026)\nValueError: not this one\n"
    assert reason_of(f"{first}Failure # 2 (occurred at 2026)\n{failure}\n") == reason


def test_trials_are_told_by_their_number():
    assert [number(t) for t in ("f7045_00000", "f7045_00012", "c6fca80b")] == [
        "0",
        "12",
        "c6fca80b",
    ]


def test_a_trials_process_ends_without_a_word(capfd: pytest.CaptureFixture[str]):
    error = SimpleNamespace(exc_type=SystemExit, exc_value=SystemExit(1), exc_traceback=None)
    tune.unraisable(error)
    assert capfd.readouterr().err == ""

    class Breaks:
        def __del__(self) -> None:
            raise ValueError("not this one")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", tune.unraisable)
        Breaks()
    assert "not this one" in capfd.readouterr().err
