"""The same study with Optuna alone: processes that share a study, and its own pruner.

python plain_optuna.py --workers=2 --out=result.json objective=torch tune.num_trials=16
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import optuna
from asha_pbt_tune import objectives
from asha_pbt_tune.config import Config
from ray_shared.config import compose


def suggest(trial: optuna.Trial, config: Config) -> dict[str, float]:
    """The distributions of the configuration, in Optuna's words."""
    values = {}
    for name, entry in config.space.items():
        if not isinstance(entry, dict):
            values[name] = entry
            continue
        ((kind, bounds),) = entry.items()
        if kind == "choice":
            values[name] = trial.suggest_categorical(name, bounds)
        elif kind in ("randint", "lograndint"):
            values[name] = trial.suggest_int(name, bounds[0], bounds[1] - 1, log="log" in kind)
        else:
            values[name] = trial.suggest_float(name, *bounds, log="log" in kind)
    return values


def open_study(config: Config, path: str, worker: int) -> optuna.Study:
    """The study that all processes share."""
    backend = optuna.storages.journal.JournalFileBackend(path)
    scheduler = config.scheduler
    return optuna.create_study(
        study_name="study",
        storage=optuna.storages.JournalStorage(backend),
        load_if_exists=True,
        direction="minimize" if config.mode == "min" else "maximize",
        sampler=optuna.samplers.TPESampler(
            seed=config.tune.seed + worker,
            n_startup_trials=config.search.num_startup_trials,
            multivariate=True,
            constant_liar=True,
        ),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=scheduler.grace_epochs, reduction_factor=scheduler.reduction_factor
        )
        if scheduler.name == "asha"
        else optuna.pruners.NopPruner(),
    )


def work(config: Config, path: str, worker: int, log: str) -> None:
    """One process: trials, until all have been made."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def run_trial(trial: optuna.Trial) -> float:
        if trial.number >= config.tune.num_trials:  # All have been begun, here or elsewhere.
            trial.study.stop()
            raise optuna.TrialPruned
        objective = objectives.build(config, suggest(trial, config), 1)
        for epoch in range(1, config.train.epochs + 1):
            score = objective.train_epoch()[config.metric]
            with Path(log).open("a") as file:
                event = {"time": time.time(), "score": score, "trial": trial.number}
                file.write(f"{json.dumps(event)}\n")
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    open_study(config, path, worker).optimize(run_trial)


def main() -> None:
    """Runs the study and writes what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    config = compose(Config, "asha_pbt_tune.conf", args.overrides)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.time()
    with tempfile.TemporaryDirectory() as directory:
        path, log = f"{directory}/journal", f"{directory}/epochs"
        open_study(config, path, 0)
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=work, args=(config, path, worker, log))
            for worker in range(args.workers)
        ]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
        if any(process.exitcode for process in workers):
            raise SystemExit("a process of the study has failed")
        study_s = time.time() - started
        epochs = [json.loads(line) for line in Path(log).read_text().splitlines()]
    args.out.write_text(
        json.dumps({"study_s": study_s, "epochs": epochs, "num_trials": config.tune.num_trials})
    )


if __name__ == "__main__":
    main()
