"""What happened in a study: every epoch, every end, every take-over; and the deadline of trials.

`Record` is a Tune callback; Tune runs it in the driver. Its state is saved and restored with that
of the study, so that a study which is resumed counts what happened before.

Source: https://docs.ray.io/en/releases-2.60.0/tune/tutorials/tune-metrics.html
"""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray_shared.errors import JobError

from asha_pbt_tune.config import Config

logger = logging.getLogger(__name__)
Event = dict[str, Any]
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


class Record(Callback):
    """Writes events to `metrics.jsonl`, tells a person about them, and kills trials that hang."""

    def __init__(self, config: Config, output_dir: Path):
        self.config = config
        self.events: list[Event] = []
        self.epochs_spent = 0
        """By all trials together."""
        self.events_path = output_dir / "metrics.jsonl"
        self.scheduler: TrialScheduler | None = None
        """One whose attributes are saved with the study."""
        self.resumes = False
        """Whether there is a study to go on with."""
        self._restored = False
        self._heard: dict[str, float] = {}
        """Trial to the time of its last sign of life, in this process's monotonic seconds."""
        self._killed: set[str] = set()
        self._begun: set[str] = set()

    def setup(
        self,
        stop: Any = None,
        num_samples: int | None = None,
        total_num_samples: int | None = None,
        **_: Any,
    ) -> None:
        """Called once, after the state of a study that is resumed has been read.

        Raises:
            JobError: If it could not be: Tune would begin the study anew, beside what there is.
        """
        del stop, num_samples, total_num_samples
        if self.resumes and not self._restored:
            raise JobError(
                "the state of the study cannot be read: its driver was killed while it was "
                "written; choose another run.name"
            )

    def add(self, event: Event) -> None:
        """Records one event."""
        event = event | {"time": round(time.time(), 3)}
        self._count(event)
        with self.events_path.open("a") as file:
            file.write(json.dumps(event, default=str) + "\n")

    def _count(self, event: Event) -> None:
        self.events.append(event)
        self.epochs_spent += event["event"] == "epoch"
        if event["event"] == "trial":
            self._begun.add(event["trial"])

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial's process has taken it on: at its beginning, or later again."""
        del iteration, trials
        self._heard[trial.trial_id] = time.monotonic()
        if trial.trial_id not in self._begun:
            values = dict(trial.config)
            self.add({"event": "trial", "trial": trial.trial_id, "hyperparameters": values})

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """A trial has trained one more epoch."""
        del iteration, trials
        self._heard[trial.trial_id] = time.monotonic()
        if "epoch" in result:
            names = ("epoch", "pid", "node_ip", "train_loss", *self.config.objective.metrics)
            values = {name: result[name] for name in names if name in result}
            self.add({"event": "epoch", "trial": trial.trial_id, **values})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        """A trial has ended: at its last epoch, or because the scheduler has stopped it."""
        del iteration, trials
        self._heard.pop(trial.trial_id, None)
        epoch = trial.last_result.get("epoch", 0)
        fate = FINISHED if epoch >= self.config.train.epochs else PRUNED
        self._end(trial, fate, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has failed for good."""
        del iteration, trials
        self._heard.pop(trial.trial_id, None)
        self._end(trial, FAILED, self._reason(trial))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has failed and will go on from its checkpoint."""
        del iteration, trials
        self._heard.pop(trial.trial_id, None)
        reason = self._reason(trial)
        self.add({"event": "failure", "trial": trial.trial_id, "error": reason})
        logger.warning("trial %s failed, and is tried again: %s", number(trial.trial_id), reason)

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Kills the process of each trial that has been silent for too long."""
        del iteration
        now, timeout_s = time.monotonic(), self.config.failure.report_timeout_s
        for trial in trials:
            heard = self._heard.get(trial.trial_id)
            if trial.status != Trial.RUNNING or heard is None or now - heard < timeout_s:
                continue
            self._heard[trial.trial_id] = now
            self._killed.add(trial.trial_id)
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)

    def exploit(self, trial: Trial, donor: Trial, epoch: int, values: dict[str, Any]) -> None:
        """PBT: a trial takes over another one's checkpoint, and changes its hyperparameters."""
        event = {"event": "exploit", "trial": trial.trial_id, "donor": donor.trial_id}
        before = donor.config
        self.add(event | {"epoch": epoch, "hyperparameters": dict(values)})
        changes = [
            f"{name} {_short(before[name])} -> {_short(value)}"
            for name, value in values.items()
            if value != before[name]
        ]
        logger.info(
            "trial %s takes over from trial %s at epoch %d: %s",
            number(trial.trial_id),
            number(donor.trial_id),
            epoch,
            ", ".join(changes) or "nothing changed",
        )

    def get_state(self) -> dict[str, Any]:
        """What Tune saves with the study."""
        state: dict[str, Any] = {"events": self.events}
        if self.scheduler is not None:
            state["scheduler"] = dict(vars(self.scheduler))
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """The opposite of `get_state`; the last part of a study that Tune reads."""
        self._restored = True
        for event in state["events"]:
            self._count(event)
        if self.scheduler is not None:
            vars(self.scheduler).update(state["scheduler"])

    def add_lost(self, trials: list[Trial]) -> None:
        """Records what a killed driver had no time to save here.

        Tune saves the trials in one file and this record in another: after a kill between the two a
        trial may have ended whose end, and whose last epochs, are unknown here.
        """
        ended = {event["trial"] for event in self.events if event["event"] == "end"}
        for trial in trials:
            if not trial.is_finished() or trial.trial_id in ended:
                continue
            if trial.trial_id not in self._begun:
                values = dict(trial.config)
                self.add({"event": "trial", "trial": trial.trial_id, "hyperparameters": values})
            mine = [e for e in self.events if e["trial"] == trial.trial_id]
            known = {e["epoch"] for e in mine if e["event"] == "epoch"}
            result = trial.last_result
            for epoch in sorted(set(range(1, result.get("epoch", 0) + 1)) - known):
                last = epoch == result["epoch"]
                metrics = {m: result[m] for m in self.config.objective.metrics if last}
                event = {"event": "epoch", "trial": trial.trial_id, "epoch": epoch}
                self.add(event | {"earlier": True} | metrics)
            if trial.status == Trial.ERROR:
                self._end(trial, FAILED, "failed before the study was resumed")
            else:
                self.on_trial_complete(0, trials, trial)

    def _end(self, trial: Trial, fate: str, error: str | None) -> None:
        result, metric = trial.last_result, self.config.metric
        epoch, score = result.get("epoch", 0), result.get(metric)
        event = {"event": "end", "trial": trial.trial_id, "fate": fate, "epoch": epoch}
        self.add(event | {"score": score, "error": error})
        if fate == FAILED:
            logger.warning("trial %s failed: %s", number(trial.trial_id), error)
            return
        shown = "  ".join(f"{name} {_short(value)}" for name, value in trial.config.items())
        score_text = f"{metric} {score:.4f}" if score is not None else "no score"
        logger.info(
            "trial %s %-8s  epoch %3d  %s  %s",
            number(trial.trial_id),
            fate,
            epoch,
            score_text,
            shown,
        )

    def _reason(self, trial: Trial) -> str:
        """Why the trial's newest attempt ended, in a line."""
        if trial.trial_id in self._killed:
            self._killed.discard(trial.trial_id)
            timeout_s = self.config.failure.report_timeout_s
            return f"killed: no report for failure.report_timeout_s={timeout_s:g}"
        path = trial.error_file
        return reason_of(Path(path).read_text()) if path is not None else "unknown"


def reason_of(text: str) -> str:
    """The last failure in what Tune writes about the failures of a trial, in a line."""
    _, _, failure = text.rpartition("Failure # ")
    _, _, failure = failure.partition("\n")
    if "killed due to the node running low on memory" in failure:
        return "out of memory: Ray killed its process"
    if failure.startswith("The actor"):
        return "its process died, or its node"
    errors = re.findall(r"^[\w.]+(?:Error|Exception|Exit)\b.*$", failure, re.MULTILINE)
    return str(errors[-1]) if errors else failure.strip().rpartition("\n")[2]


def number(trial_id: str) -> str:
    """What a trial is called inside its study: the end of its id, a number or eight digits."""
    _, separator, end = trial_id.rpartition("_")
    return str(int(end)) if separator else end


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
