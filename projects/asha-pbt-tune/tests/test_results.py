"""What is counted of a study's events, and what is written of them."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from asha_pbt_tune import compare, earlier, plots, results
from asha_pbt_tune.config import Config
from asha_pbt_tune.objectives import values_at
from asha_pbt_tune.record import Record
from ray.tune.experiment import Trial
from ray_shared.config import compose
from ray_shared.errors import JobError, UserError

from .counting import CONF, Event, configuration, epochs_of

TORCH = ["objective=torch", "train.epochs=12", "scheduler.grace_epochs=4"]


def trial(name: str, **values: Any) -> Event:
    """A trial begins."""
    return {"event": "trial", "trial": name, "hyperparameters": values, "time": 0.0}


def epochs(name: str, last: int, score: float) -> list[Event]:
    """A trial trains."""
    return [
        {"event": "epoch", "trial": name, "epoch": e, "val_logloss": score / e, "time": float(e)}
        for e in range(1, last + 1)
    ]


def end(name: str, fate: str, epoch: int, score: float | None, error: str | None = None) -> Event:
    """A trial ends."""
    event = {"event": "end", "trial": name, "fate": fate, "epoch": epoch, "score": score}
    return event | {"error": error, "time": 99.0}


def exploit(name: str, donor: str, epoch: int, **values: Any) -> Event:
    """A member takes over from another one."""
    event = {"event": "exploit", "trial": name, "donor": donor, "epoch": epoch, "time": 50.0}
    return event | {"hyperparameters": values}


ASHA: list[Event] = [
    trial("a", lr=0.1, width=32),
    trial("b", lr=0.2, width=64),
    *epochs("a", 4, 9.0),
    *epochs("b", 12, 2.0),
    end("a", "pruned", 4, 2.25),
    end("b", "finished", 12, 0.17),
    trial("c", lr=0.3, width=32),
    {"event": "failure", "trial": "c", "error": "its process died", "time": 60.0},
    *epochs("c", 2, 5.0),
    end("c", "failed", 2, 2.5, "cannot learn"),
    trial("d", lr=0.4, width=64),
    *epochs("d", 12, 1.0),
    end("d", "finished", 12, 0.08),
]


def test_a_study_with_asha_is_counted():
    counts = results.summarize(configuration(*TORCH), ASHA)
    assert counts["best_trial"] == "d"
    assert counts["best_score"] == 0.08
    expected = {"num_trials": 4, "num_finished": 2, "num_pruned": 1, "num_failed": 1}
    expected |= {"num_retries": 1, "num_exploits": 0, "epochs_spent": 4 + 12 + 2 + 12}
    assert expected.items() <= counts.items()
    assert counts["rungs"] == [
        {"epoch": 4, "reached": 3, "pruned": 1},
        {"epoch": 12, "reached": 2, "pruned": 0},
    ]


def test_the_best_is_the_end_that_the_mode_says():
    config = configuration(*TORCH, "tune.metric=val_accuracy")
    rows = results.table_of([*ASHA])
    assert results.best_of(config, rows)["trial"] == "b"
    assert results.best_of(configuration(*TORCH), rows)["trial"] == "d"


def test_a_score_that_is_no_number_is_never_the_best():
    rows = results.table_of([*ASHA, trial("e", lr=1.0), end("e", "finished", 12, float("nan"))])
    assert results.best_of(configuration(*TORCH), rows)["trial"] == "d"


def test_a_study_without_a_finished_trial_has_no_best():
    counts = results.summarize(configuration(*TORCH), ASHA[:5])
    assert counts["best_score"] is None
    assert results.summarize(configuration(*TORCH), [])["num_trials"] == 0


PBT: list[Event] = [
    trial("a", lr=0.1, dropout=0.5, width=32),
    trial("b", lr=0.2, dropout=0.4, width=64),
    trial("c", lr=0.3, dropout=0.3, width=32),
    exploit("a", "b", 4, lr=0.16, dropout=0.4, width=64),
    exploit("b", "a", 8, lr=0.2, dropout=0.48, width=64),
    # The checkpoint of epoch 8 is taken over after its owner has gone on.
    exploit("c", "b", 8, lr=0.24, dropout=0.48, width=64),
    *epochs("c", 12, 1.0),
    end("c", "finished", 12, 0.08),
]


def test_a_member_inherits_the_past_of_its_donor():
    assert results.schedule_of(PBT, "c") == [
        (0, {"lr": 0.2, "dropout": 0.4, "width": 64}),
        (4, {"lr": 0.16, "dropout": 0.4, "width": 64}),
        (8, {"lr": 0.24, "dropout": 0.48, "width": 64}),
    ]
    counts = results.summarize(configuration(*TORCH, "scheduler=pbt"), PBT)
    # lr; lr and dropout; lr.
    assert (counts["num_exploits"], counts["num_perturbations"]) == (3, 4)


def test_the_best_is_a_preset_that_trains_the_same_way(tmp_path: Path):
    config = configuration(*TORCH, "scheduler=pbt", "scheduler.perturbation_epochs=4")
    path = results.write_best(config, results.schedule_of(PBT, "c"), tmp_path)
    command = path.read_text().splitlines()[1]
    assert command.startswith(f"# asha-pbt-tune --config-dir '{tmp_path}/best' objective=torch")
    overrides = ["objective=torch", "experiment=best", "action=train"]
    again = compose(Config, CONF, overrides, config_dir=str(tmp_path / "best"))
    assert again.train.epochs == 12
    assert again.checkpoint.every_epochs == 4
    found = [values_at(again, {}, epoch) for epoch in (0, 3, 4, 7, 8, 11)]
    assert [values["lr"] for values in found] == [0.2, 0.2, 0.16, 0.16, 0.24, 0.24]
    assert [values["dropout"] for values in found] == [0.4, 0.4, 0.4, 0.4, 0.48, 0.48]
    assert {values["width"] for values in found} == {64}


def test_the_preset_has_the_data_and_the_metric_of_the_study(tmp_path: Path):
    study = ["objective.dataset=wine", "objective.split_seed=3", "tune.metric=val_accuracy"]
    study += ["train.epochs=3", "train.seed=7", "checkpoint.every_epochs=2", "scheduler=none"]
    config = configuration(*study)
    results.write_best(config, [(0, {"max_depth": 5})], tmp_path)
    overrides = ["objective=xgboost", "experiment=best", "action=train"]
    again = compose(Config, CONF, overrides, config_dir=str(tmp_path / "best"))
    wanted = asdict(config.objective)
    wanted["hyperparameters"] = config.objective.hyperparameters | {"max_depth": 5}
    assert asdict(again.objective) == wanted
    assert again.train == config.train
    assert (again.metric, again.mode) == ("val_accuracy", "max")
    assert again.checkpoint.every_epochs == 2


def test_the_table_of_trials_can_start_another_study(tmp_path: Path):
    path = tmp_path / "trials.parquet"
    results.write_table(configuration(*TORCH), results.table_of(ASHA), path)
    table = pq.read_table(path).to_pydict()
    assert table["fate"] == ["pruned", "finished", "failed", "finished"]
    assert table["error"] == [None, None, "cannot learn", None]
    assert table["lr"] == [0.1, 0.2, 0.3, 0.4]

    searched = ["space=torch", *(f"~space.{n}" for n in ("weight_decay", "dropout", "batch_size"))]
    searched += ["~space.num_layers", f"search.warm_start={path}"]
    # Of the finished ones, 0.4 lies outside.
    wide = [*searched, "~space.lr", "+space.lr={uniform: [0.1, 0.3]}"]
    assert earlier.warm_start(configuration(*TORCH, *wide)) == ([{"width": 64, "lr": 0.2}], [0.17])


@pytest.mark.parametrize(
    ("content", "overrides", "sentence"),
    [
        (None, [], "no trials.parquet that can be read"),
        (b"PAR1", [], "no trials.parquet that can be read"),
        ("written", ["tune.metric=val_accuracy"], "its score is val_logloss, not val_accuracy"),
        ("written", [], "none of its finished trials lies inside the space"),
    ],
)
def test_wrong_warm_start_is_refused(
    tmp_path: Path, content: bytes | str | None, overrides: list[str], sentence: str
):
    path = tmp_path / "trials.parquet"
    if content == "written":
        results.write_table(configuration(*TORCH), results.table_of(ASHA), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError, match="search.warm_start=") as error:
        earlier.warm_start(configuration(*TORCH, f"search.warm_start={path}", *overrides))
    assert sentence in str(error.value)


@pytest.mark.parametrize(("scheduler", "events"), [("asha", ASHA), ("pbt", PBT)])
def test_pictures_are_drawn(scheduler: str, events: list[Event], tmp_path: Path):
    config = configuration(*TORCH, f"scheduler={scheduler}", "~space.weight_decay")
    config.space = {name: config.space[name] for name in ("lr", "width")}
    paths = plots.draw(config, results.table_of(events), events, tmp_path)
    expected = {"best_score", "learning_curves"}
    expected |= {"lineage"} if scheduler == "pbt" else {"parallel_coordinates"}
    assert expected <= paths.keys()
    for path in paths.values():
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_importance_finds_the_hyperparameter_that_matters(tmp_path: Path):
    config = configuration(*TORCH)
    config.space = {"lr": {"uniform": [0.0, 1.0]}, "dropout": {"uniform": [0.0, 1.0]}}
    events: list[Event] = []
    for i in range(24):
        name, lr, dropout = str(i), (i * 7 % 24) / 24, (i * 5 % 24) / 24
        events += [trial(name, lr=lr, dropout=dropout), *epochs(name, 12, 0.1 + lr)]
        events.append(end(name, "finished", 12, 0.1 + lr))
    shares = plots.importance(config, results.table_of(events), events)
    assert shares is not None
    epoch, found = shares
    # Once a trial has taken over another one's values, its score says nothing of its first ones.
    taken = [*events, exploit("0", "1", 4, lr=0.5, dropout=0.5)]
    assert plots.importance(config, results.table_of(taken), taken) is None
    assert epoch == 12
    assert found["lr"] > 0.9 > 0.1 > found["dropout"]


def test_variants_are_compared_by_what_they_need_for_the_first_ones_best():
    study = ["action=compare", "tune.num_trials=2", "train.epochs=4"]
    config = configuration(*study, "scheduler.perturbation_epochs=2")
    config.compare.variants = ["random", "asha_tpe"]
    counts = {"num_trials": 2, "num_pruned": 0, "num_failed": 0, "num_exploits": 0}
    studies = []
    for seed, hit in ((0, 2), (1, 4), (2, 99)):
        best = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
        seconds = [float(i) for i in range(8)]
        common = counts | {"seed": seed, "epochs_spent": 8, "seconds": seconds}
        studies.append({"variant": "random", "best": best, **common})
        fast = [0.9 if i < hit - 1 else 0.1 for i in range(8)]
        studies.append({"variant": "asha_tpe", "best": fast, **common})
    found = compare.summarize(config, studies)
    assert found["random"]["share_of_epochs"] == 1.0
    # After 2 epochs, after 4, never: the median is 4 of 8.
    assert found["asha_tpe"]["share_of_epochs"] == 0.5
    assert found["asha_tpe"]["seconds_to_target"] == 3.0
    assert json.dumps(found, allow_nan=False)
    for study in studies:
        if study["variant"] == "asha_tpe":
            study["best"] = [0.9] * 8
    never = compare.summarize(config, studies)["asha_tpe"]
    assert (never["share_of_epochs"], never["seconds_to_target"]) == (None, None)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"num_failed": 3, "num_trials": 3, "best": []}, "no trial has a score; 3 of 3 failed"),
        ({"num_failed": 2, "num_trials": 4, "best": [0.5]}, "2 of 4 trials failed, more than"),
    ],
)
def test_failed_studies_are_not_compared(found: dict[str, Any], sentence: str):
    with pytest.raises(JobError, match=sentence):
        compare.check_failed(configuration("action=compare"), "random, seed 0", found)


def test_a_comparison_that_is_resumed_counts_on(tmp_path: Path):
    config = configuration("action=compare")
    compare.EpochBudget.record = record = Record(config, tmp_path)
    restored = pickle.loads(pickle.dumps(compare.EpochBudget(2)))
    assert not restored.stop_all()
    for epoch in (1, 2):
        record.add({"event": "epoch", "trial": "a", "epoch": epoch})
    assert restored.stop_all()


def test_a_variant_has_the_epochs_of_all_its_trials_to_spend():
    config = configuration("action=compare", "tune.num_trials=6", "train.epochs=64")
    asha = earlier.variant_of(config, "asha_tpe", seed=3)
    assert (asha.searcher, asha.scheduler.name, asha.tune.seed) == ("optuna", "asha", 3)
    assert asha.tune.num_trials == 6 * 64 // 4
    pbt = earlier.variant_of(config, "pbt", seed=0)
    assert (pbt.searcher, pbt.scheduler.name, pbt.tune.num_trials) == ("random", "pbt", 6)


@pytest.mark.parametrize("status", [Trial.TERMINATED, Trial.ERROR])
def test_end_that_a_killed_driver_could_not_save_is_made_up_for(tmp_path: Path, status: str):
    config = configuration("train.epochs=9", "objective=torch")
    record = Record(config, tmp_path)
    ended = Trial("train_trial", trial_id="a", config={"lr": 0.1}, stub=True)
    ended.set_status(status)
    metrics = dict.fromkeys(config.objective.metrics, 0.5)
    ended.run_metadata.last_result = {"epoch": 9, **metrics}
    events = [{"event": "trial", "trial": "a", "hyperparameters": {"lr": 0.1}}]
    events += [{"event": "epoch", "trial": "a", "epoch": e, **metrics} for e in range(1, 7)]
    record.set_state({"events": events})
    for _ in range(2):  # The second time there is nothing to make up for.
        record.add_lost([ended])
        found = results.summarize(config, record.events)
        assert found["epochs_spent"] == 9
        assert found["num_finished"] == (status == Trial.TERMINATED)
        assert found["num_failed"] == (status == Trial.ERROR)
    assert epochs_of(record.events) == {"a": [1, 2, 3, 4, 5, 6]}
