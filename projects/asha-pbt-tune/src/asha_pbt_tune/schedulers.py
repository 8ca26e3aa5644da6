"""Tune's schedulers and Optuna's searcher, with what they lack to be counted and resumed.

Source: https://docs.ray.io/en/releases-2.60.0/tune/api/schedulers.html
"""

import math
from typing import Any

import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from asha_pbt_tune import space
from asha_pbt_tune.config import Config
from asha_pbt_tune.record import Record


class RecordedASHA(ASHAScheduler):
    """Asynchronous successive halving that stops what has diverged."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A score that is no number is less than none, and would pass every rung."""
        action = str(super().on_trial_result(tune_controller, trial, result))
        diverged = not math.isfinite(result.get(self._metric or "", 0.0))
        return str(TrialScheduler.STOP) if diverged else action


def asha(config: Config, record: Record) -> RecordedASHA:
    """Asynchronous successive halving, whose rungs survive the driver.

    Tune saves searchers and callbacks but no scheduler: without this, a resumed study would compare
    its trials only with those that come after.
    """
    scheduler = RecordedASHA(
        time_attr="epoch",
        max_t=config.train.epochs,
        grace_period=config.scheduler.grace_epochs,
        reduction_factor=config.scheduler.reduction_factor,
    )
    record.scheduler = scheduler
    return scheduler


def rungs(config: Config) -> list[int]:
    """The epochs at which ASHA compares trials."""
    epochs, found = config.scheduler.grace_epochs, []
    while epochs <= config.train.epochs:
        found.append(epochs)
        epochs *= config.scheduler.reduction_factor
    return found


class RecordedPBT(PopulationBasedTraining):
    """Population based training that stays inside the space and says who took over from whom."""

    def __init__(self, config: Config, record: Record):
        super().__init__(
            time_attr="epoch",
            perturbation_interval=config.scheduler.perturbation_epochs,
            quantile_fraction=config.scheduler.quantile_fraction,
            resample_probability=config.scheduler.resample_probability,
            hyperparam_mutations=space.mutations(config.space, config.objective.name),
            custom_explore_fn=lambda values: space.inside(config.space, values),
            log_config=False,  # Its files would lie in the driver's temporary directory.
        )
        self._record = record
        self._epochs, self._every = config.train.epochs, config.scheduler.perturbation_epochs
        self._name, self._worst = config.metric, math.inf if config.mode == "min" else -math.inf

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Looks where there are checkpoints, and not at the last epoch.

        A member that goes on after a failure, or with a resumed study, counts its epochs anew for
        Tune's scheduler, which would look in between. At the last epoch nobody takes over: it would
        be another trial's model, twice.
        """
        epoch = result.get("epoch", 0)
        if epoch >= self._epochs or epoch % self._every:
            return str(TrialScheduler.CONTINUE)
        if not math.isfinite(result[self._name]):  # Tune would leave such a member alone.
            result = result | {self._name: self._worst}
        return str(super().on_trial_result(tune_controller, trial, result))

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[Any, Any]:
        """Called once for each take-over."""
        values, operations = super()._get_new_config(trial, trial_to_clone)
        # The epoch of the checkpoint, which the donor may have left behind since.
        epoch = int(self._trial_state[trial_to_clone].last_train_time)
        self._record.exploit(trial, trial_to_clone, epoch, values)
        return values, operations


class PruningOptuna(OptunaSearch):
    """Optuna's TPE that knows which trials were stopped early.

    Tune's own class hands Optuna the last score of a stopped trial as if it were that of a whole
    one. Here such a trial is `PRUNED`, with its score at each epoch, and TPE ranks it behind those
    that came further.
    """

    def __init__(self, config: Config, points: list[dict[str, Any]], scores: list[float]):
        sampler = optuna.samplers.TPESampler(
            seed=config.tune.seed,
            n_startup_trials=config.search.num_startup_trials,
            multivariate=True,
            # Trials that still run count as bad ones, so that two at a time are not the same.
            constant_liar=True,
        )
        super().__init__(
            sampler=sampler,
            points_to_evaluate=points or None,
            evaluated_rewards=scores or None,
        )
        self._epochs = config.train.epochs

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells Optuna the score of an epoch; a retried trial may report one again."""
        self._tell(trial_id, result)

    def _tell(self, trial_id: str, result: dict[str, Any]) -> None:
        trial, epoch = self._ot_trials[trial_id], result["epoch"]
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if epoch not in known:
            trial.report(result[self.metric], epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how the trial ended."""
        if result and not error and result.get("epoch", 0) < self._epochs:
            # Tune shows the searcher no result at which the scheduler stops a trial.
            self._tell(trial_id, result)
            result = None  # Which Optuna is told as `PRUNED`.
        super().on_trial_complete(trial_id, result, error)


class Limited(ConcurrencyLimiter):
    """At most so many trials at a time, also where a resumed study had another limit."""

    def set_state(self, state: dict[str, Any]) -> None:
        """All of the state but the limit."""
        limit = self.max_concurrent
        super().set_state(state)
        self.max_concurrent = limit


class Draws(BasicVariantGenerator):
    """Random draws, or a grid; the limit as above."""

    def set_state(self, state: dict[str, Any]) -> None:
        """All of the state but the limit."""
        limit = self.max_concurrent
        super().set_state(state)
        self.max_concurrent = limit
