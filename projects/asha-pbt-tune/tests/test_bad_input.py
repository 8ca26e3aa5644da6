"""A user's mistake: exit code 2, one sentence, no Ray, nothing left in the storage.

What else is refused stands in test_config.py, test_space.py and test_results.py.
"""

import json
from pathlib import Path

import pytest
from asha_pbt_tune import results, space

from .conftest import StartJob
from .counting import configuration


def refused(start: StartJob, *overrides: str) -> str:
    """Runs the job, which must be refused, and returns its sentence."""
    with start(*overrides) as job:
        return job.refusal()


def test_wrong_space_is_refused_and_leaves_nothing(start: StartJob, tmp_path: Path):
    sentence = refused(start, "space.max_depth.randint=[9,2]")
    expected = "space.max_depth.randint=[9, 2]: the low bound must be less than the high one"
    assert sentence == expected
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".log"] == []


def test_metric_that_no_trial_reports_is_refused(start: StartJob):
    assert refused(start, "tune.metric=val_auc").startswith("tune.metric=val_auc: must be null or")


def test_warm_start_without_a_file_is_refused(start: StartJob, tmp_path: Path):
    sentence = refused(start, f"search.warm_start={tmp_path}/none.parquet")
    assert sentence.startswith(f"search.warm_start={tmp_path}/none.parquet: no trials.parquet")


def test_more_workers_than_there_is_room_for_are_refused(start: StartJob):
    sentence = refused(start, "experiment=distributed", "trial.num_workers=9", "cluster.num_cpus=4")
    assert sentence.startswith("trial.num_workers=9: each needs 0.5 CPU")


def test_study_whose_state_is_torn_is_refused(start: StartJob, tmp_path: Path):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(configuration().locked()))
    (run / "experiment_state-2026-11-25_04-00-33.json").write_text('{"trial_data": [[')
    assert refused(start, "run.name=old").endswith("choose another run.name")


def test_variants_that_do_not_go_with_the_rest_are_refused(start: StartJob, tmp_path: Path):
    row = {"trial": "a", "fate": "finished", "epochs": 64, "score": 0.1, "error": None}
    row |= {name: domain.sample() for name, domain in space.to_tune(configuration().space).items()}
    results.write_table(configuration(), [row], tmp_path / "trials.parquet")
    path = f"search.warm_start={tmp_path}/trials.parquet"
    sentence = refused(start, "action=compare", path)
    assert sentence == f"{path}: only with search=optuna"


def test_study_that_has_no_state_cannot_be_one_that_must_be_resumed(
    start: StartJob, tmp_path: Path
):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(configuration().locked()))
    sentence = refused(start, "run.name=old", "run.resume=must")
    assert sentence.startswith("run.resume=must: ")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tune.num_trials=9", "tune.num_trials=9: run 'old' was started with 24"),
        ("space.max_depth.randint=[2,9]", "space.max_depth.randint=[2, 9]: run 'old' was started"),
        ("scheduler=none", "scheduler.name=none: run 'old' was started with asha"),
    ],
)
def test_another_study_of_the_same_name_is_refused(
    start: StartJob, tmp_path: Path, override: str, sentence: str
):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(configuration().locked()))
    assert refused(start, "run.name=old", override).startswith(sentence)
    assert [p.name for p in run.iterdir()] == ["run.json"]
