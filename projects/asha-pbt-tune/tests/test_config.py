"""The configuration composes, and what makes no sense is refused by key."""

from pathlib import Path

import asha_pbt_tune
import pytest
from asha_pbt_tune.config import SCHEDULERS, SEARCHES, Config
from asha_pbt_tune.plan import make_plan
from ray_shared.config import compose
from ray_shared.errors import UserError

from .counting import CONF, configuration

PRESETS = sorted(Path(asha_pbt_tune.__file__).parent.glob("conf/experiment/*.yaml"))
SPACES = sorted(Path(asha_pbt_tune.__file__).parent.glob("conf/space/*_grid.yaml"))


def test_defaults_are_tpe_with_asha_on_xgboost():
    config = configuration()
    assert (config.searcher, config.scheduler.name, config.objective.name) == (
        "optuna",
        "asha",
        "xgboost",
    )
    assert (config.metric, config.mode) == ("val_logloss", "min")


@pytest.mark.parametrize("objective", ["xgboost", "torch"])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sensible_pair_composes(objective: str, search: str, scheduler: str):
    overrides = [f"objective={objective}", f"search={search}", f"scheduler={scheduler}"]
    if search == "grid":
        overrides += [f"space={objective}_grid"]
    if (search, scheduler) == ("optuna", "pbt"):
        with pytest.raises(UserError, match="search=optuna with scheduler=pbt: PBT changes"):
            configuration(*overrides)
        return
    config = configuration(*overrides)
    expected = {"auto": "random" if scheduler == "pbt" else "optuna"}.get(search, search)
    assert config.searcher == expected


@pytest.mark.parametrize("preset", [*PRESETS, *SPACES], ids=lambda path: path.stem)
def test_preset_composes_with_the_command_in_its_first_comment(preset: Path):
    comment = next(
        line for line in preset.read_text().splitlines() if line.startswith("# asha-pbt-tune")
    )
    compose(Config, CONF, comment.split()[2:])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tune.num_trails=3"], "unknown key 'tune.num_trails': did you mean 'tune.num_trials'?"),
        (["tune.num_trials=0"], "tune.num_trials=0: must be >= 1"),
        (["tune.mode=maximise"], "tune.mode=maximise: must be null, min or max"),
        (["tune.mode=max"], "tune.mode=max: must be null or min for tune.metric=val_logloss"),
        (
            ["tune.metric=val_f1"],
            "tune.metric=val_f1: must be null or what the objective reports: one of val_logloss, "
            "val_accuracy",
        ),
        (
            ["objective.dataset=diabetes", "tune.metric=val_accuracy"],
            "what the objective reports: one of val_rmse",
        ),
        (["objective.dataset=iris"], "objective.dataset=iris: must be one of digits, breast"),
        (["objective=keras"], "objective=keras: must be one of torch, xgboost"),
        (["objective=torch", "objective.dataset=wine"], "must be digits for torch"),
        (
            ["+objective.hyperparameters.learning_rat=0.1"],
            "unknown key 'objective.hyperparameters.learning_rat': did you mean 'learning_rate'?",
        ),
        (["objective.schedule=[{lr: 1}]"], "unknown key 'objective.hyperparameters.lr'"),
        (["objective.schedule=[{gamma: 1}]"], "changes with after_epoch >= 1"),
        (["objective.schedule=[{after_epoch: 1}]"], "objective.schedule: only with action=train"),
        (
            ["objective=torch", "action=train", "objective.schedule=[{after_epoch: 1, width: 64}]"],
            "of what may change in the course of training",
        ),
        (["search.warm_start=x", "search=random"], "search.warm_start=x: only with search=optuna"),
        (["search=grid"], "space.learning_rate.loguniform: search=grid needs choice"),
        (
            ["search=grid", "space=xgboost_grid", "tune.num_trials=5"],
            "tune.num_trials=5: must be >= 6, the combinations of search=grid",
        ),
        (["scheduler=hyperband"], "scheduler=hyperband: must be one of asha, none, pbt"),
        (["scheduler.grace_epochs=0"], "scheduler.grace_epochs=0: must be >= 1"),
        (["scheduler.grace_epochs=65"], "scheduler.grace_epochs=65: must be <= train.epochs=64"),
        (["scheduler.reduction_factor=1"], "scheduler.reduction_factor=1: must be >= 2"),
        (["scheduler.quantile_fraction=0.6"], "must be in (0, 0.5]"),
        (
            ["scheduler=pbt", "tune.num_trials=1"],
            "tune.num_trials=1: must be >= 2 with PBT",
        ),
        (
            ["scheduler=pbt", "train.epochs=4"],
            "scheduler.perturbation_epochs=4: must be < train.epochs=4: PBT would never look",
        ),
        (
            ["+space.gamma={qloguniform: [1, 4, 1]}"],
            "space.gamma.qloguniform: Optuna knows no steps on a logarithmic scale",
        ),
        (
            ["+space.gamma={quniform: [0, 1, 0.3]}"],
            "space.gamma.quniform=[0, 1, 0.3]: the bounds must be multiples of the step",
        ),
        (
            ["scheduler=pbt", "tune.max_concurrent=1"],
            "must be null with PBT: all take part",
        ),
        (
            ["action=compare", "tune.max_concurrent=1"],
            "must be null with PBT: all take part",
        ),
        (
            ["action=compare", "compare.variants=[asha]", "scheduler=none", "train.epochs=3"],
            "must be <= train.epochs=3",
        ),
        (["trial.num_workers=2"], "trial.num_workers=2: only with objective=torch"),
        (
            ["objective=torch", "trial.num_workers=2", "scheduler=pbt"],
            "trial.num_workers=2: must be 1 with PBT: Ray Train gives its checkpoints to no",
        ),
        (["trial.cpus=0"], "trial.cpus=0.0: must be null or > 0"),
        (["failure.max_failed_fraction=2"], "failure.max_failed_fraction=2.0: must be in [0, 1]"),
        (["failure.report_timeout_s=0"], "failure.report_timeout_s=0.0: must be > 0"),
        (["compare.variants=[bohb]"], "compare.variants=['bohb']: must be some of random,"),
        (["space.learning_rate={loguniform: [1, 0.1]}"], "space.learning_rate.loguniform=[1, 0.1]"),
        (["+space.learning_rate.normal=[0, 1]"], "found loguniform and normal; take one away"),
        (["space.learning_rate={uniform: [0, 1]}"], "to replace what is there, write '~space.lea"),
        (["+space.lr={uniform: [0, 1]}"], "space.lr: objective=xgboost has no such key"),
        (["space=torch"], "space.lr: objective=xgboost has no such key"),
    ],
)
def test_wrong_value_is_refused_by_key(overrides: list[str], sentence: str):
    with pytest.raises(UserError) as error:
        configuration(*overrides)
    assert sentence in str(error.value)


def test_training_by_itself_has_no_scheduler():
    config = configuration("action=train", "train.epochs=3")
    assert config.schedulers == set()


def test_a_space_is_changed_on_the_command_line():
    config = configuration(
        "space.max_depth=4",
        "~space.learning_rate",
        "+space.learning_rate={uniform: [0.1, 0.2]}",
        "~space.subsample",
        "+space.gamma={choice: [0, 1]}",
    )
    assert config.space["learning_rate"] == {"uniform": [0.1, 0.2]}
    assert config.space["max_depth"] == 4
    assert "subsample" not in config.space
    assert config.space["gamma"] == {"choice": [0, 1]}


def test_a_space_of_ones_own_lies_beside_the_others(tmp_path: Path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.yaml").write_text("gamma: {uniform: [0, 1]}\n")
    config = compose(Config, CONF, ["space=mine"], config_dir=str(tmp_path))
    assert config.space == {"gamma": {"uniform": [0, 1]}}


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected"),
    [
        # CPUs of a trial or worker, trials at a time, limit.
        ([], [{"CPU": 2}], (1.0, 2, None)),
        (["trial.cpus=0.5"], [{"CPU": 2}], (0.5, 4, None)),
        (["tune.max_concurrent=1"], [{"CPU": 8}], (1.0, 1, 1)),
        (["tune.num_trials=3"], [{"CPU": 8}], (1.0, 3, None)),
        (["trial.use_gpu=true"], [{"CPU": 8, "GPU": 3}], (1.0, 3, None)),
        # No trial lies on two nodes.
        (["trial.cpus=2"], [{"CPU": 3}, {"CPU": 3}], (2.0, 2, None)),
        # Two workers and the trial itself inside two CPUs.
        (["experiment=distributed"], [{"CPU": 2}], (0.95, 1, 1)),
        (["experiment=distributed"], [{"CPU": 9}], (1.07, 4, 4)),
        (["experiment=distributed", "trial.cpus=1"], [{"CPU": 9}], (1.0, 4, 4)),
        (["experiment=distributed", "trial.use_gpu=true"], [{"CPU": 9, "GPU": 4}], (1.07, 2, 2)),
        (["experiment=distributed", "trial.num_workers=4"], [{"CPU": 2}], (0.47, 1, 1)),
        # Both trials themselves may lie on the same node, or beside a worker on a small one.
        (["experiment=distributed"], [{"CPU": 2}] * 2, (0.9, 2, 2)),
        (["experiment=distributed"], [{"CPU": 1}] * 2, (0.9, 1, 1)),
        (["experiment=distributed", "trial.cpus=1"], [{"CPU": 0}, *[{"CPU": 2}] * 2], (1.0, 1, 1)),
    ],
)
def test_the_cluster_is_divided(
    overrides: list[str], nodes: list[dict[str, float]], expected: tuple[float, int, int | None]
):
    plan = make_plan(configuration(*overrides), nodes)
    assert (plan.cpus, plan.max_concurrent, plan.limit) == expected
