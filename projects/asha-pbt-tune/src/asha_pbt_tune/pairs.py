"""What goes together: search and scheduler, space and search, objective and metric."""

from typing import TYPE_CHECKING, Any

from ray_shared.errors import UserError, check

from asha_pbt_tune import space

if TYPE_CHECKING:
    from asha_pbt_tune.config import Config


def check_metric(config: "Config") -> None:
    """Refuses a metric that the objective does not report, and the wrong end of it."""
    metrics = config.objective.metrics
    metric, mode = config.tune.metric, config.tune.mode
    ok = metric is None or metric in metrics
    check(ok, "tune.metric", metric, f"null or what the objective reports: {one_of(metrics)}")
    better = metrics[config.metric]
    allowed = f"null or {better} for tune.metric={config.metric}"
    check(mode in (None, better), "tune.mode", mode, allowed)


def check_search(config: "Config") -> None:
    """Refuses a search that does not go with the scheduler, the space or the trials."""
    search, pbt = config.search.name, "pbt" in config.schedulers
    if config.scheduler.name == "pbt" and search == "optuna":
        raise UserError(
            "search=optuna with scheduler=pbt: PBT changes hyperparameters while a trial runs, "
            "and TPE would learn from values that no trial had throughout; choose search=random"
        )
    if pbt:
        allowed = "1 with PBT: Ray Train gives its checkpoints to no other trial"
        check(config.trial.num_workers == 1, "trial.num_workers", config.trial.num_workers, allowed)
        at_once, trials = config.tune.max_concurrent, config.tune.num_trials
        check(at_once is None, "tune.max_concurrent", at_once, "null with PBT: all take part")
        check(trials >= 2, "tune.num_trials", trials, ">= 2 with PBT: a population")
        every, epochs = config.scheduler.perturbation_epochs, config.train.epochs
        allowed = f"< train.epochs={epochs}: PBT would never look"
        check(every < epochs, "scheduler.perturbation_epochs", every, allowed)
    stepped = [n for n, e in config.space.items() if isinstance(e, dict) and "qloguniform" in e]
    if stepped and config.searcher == "optuna" and config.action == "tune":
        raise UserError(
            f"space.{stepped[0]}.qloguniform: Optuna knows no steps on a logarithmic scale; "
            "choose loguniform, or search=random"
        )
    if config.search.warm_start is not None and config.searcher != "optuna":
        raise UserError(f"search.warm_start={config.search.warm_start}: only with search=optuna")
    if search == "grid":
        number, trials = space.combinations(config.space), config.tune.num_trials
        allowed = f">= {number}, the combinations of search=grid"
        check(number <= trials, "tune.num_trials", trials, allowed)


def one_of(names: Any) -> str:
    """`one of a, b`."""
    return f"one of {', '.join(names)}"
