"""Pictures of a study."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asha_pbt_tune import space
from asha_pbt_tune.config import Config
from asha_pbt_tune.record import FAILED, FINISHED, PRUNED, Event, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {FINISHED: "tab:green", PRUNED: "tab:orange", FAILED: "tab:red", None: "tab:gray"}
IMPORTANCE_TRIALS = 8
"""With fewer trials, importance would be noise."""


def draw(
    config: Config, rows: list[dict[str, Any]], events: list[Event], directory: Path
) -> dict[str, str]:
    """Draws every picture that the study has something for; name to path."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    pictures = {
        "best_score": _best_score(config, events),
        "learning_curves": _learning_curves(config, rows, events),
        "parallel_coordinates": _parallel_coordinates(config, rows),
        "importance": _importance(config, rows, events),
        "lineage": _lineage(config, rows, events),
    }
    paths = {}
    for name, figure in pictures.items():
        if figure is not None:
            paths[name] = str(directory / f"{name}.png")
            figure.savefig(paths[name], dpi=120)
    return paths


def best_so_far(config: Config, events: list[Event]) -> tuple[list[int], list[float], list[float]]:
    """Epochs spent, seconds since the first event, and the best score until then."""
    epochs = [e for e in events if e["event"] == "epoch"]
    scores = np.array([e.get(config.metric, np.nan) for e in epochs], float)
    best = np.fmin if config.mode == "min" else np.fmax
    seconds = [e["time"] - events[0]["time"] for e in epochs]
    return list(range(1, len(epochs) + 1)), seconds, best.accumulate(scores).tolist()


def scores_at(events: list[Event], metric: str, epoch: int) -> dict[str, float]:
    """Trial to its score at this epoch, of those that came so far."""
    return {
        e["trial"]: e[metric]
        for e in events
        if e["event"] == "epoch" and e["epoch"] == epoch and metric in e
    }


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    # Without pyplot: no display, no global state, half the time to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _best_score(config: Config, events: list[Event]) -> "Figure":
    spent, seconds, best = best_so_far(config, events)
    figure = new_figure(9, 3.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, x, label in ((left, spent, "epochs spent"), (right, seconds, "seconds")):
        ax.step(x, best, where="post")
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    left.set_ylabel(f"best {config.metric}")
    log_if_loss(config, left)
    return figure


def _learning_curves(config: Config, rows: list[dict[str, Any]], events: list[Event]) -> "Figure":
    figure = new_figure(7, 4)
    ax = figure.subplots()
    for row in rows:
        mine = [e for e in events if e["event"] == "epoch" and e["trial"] == row["trial"]]
        x, y = [e["epoch"] for e in mine], [e.get(config.metric, np.nan) for e in mine]
        ax.plot(x, y, color=COLORS[row["fate"]], alpha=0.6, linewidth=1)
        ax.plot(x[-1:], y[-1:], "o", color=COLORS[row["fate"]], markersize=3)
    for fate in (FINISHED, PRUNED, FAILED):
        count = sum(row["fate"] == fate for row in rows)
        if count:
            ax.plot([], [], color=COLORS[fate], label=f"{fate}: {count}")
    ax.set_xlabel("epoch")
    ax.set_ylabel(config.metric)
    log_if_loss(config, ax)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def _parallel_coordinates(config: Config, rows: list[dict[str, Any]]) -> "Figure | None":
    searched = [n for n, e in config.space.items() if isinstance(e, dict) and n in rows[0]]
    scored = [row for row in rows if row["score"] is not None and np.isfinite(row["score"])]
    if len(searched) < 2 or len(scored) < 2:
        return None
    from matplotlib import colormaps

    figure = new_figure(1.6 * (len(searched) + 1) + 1, 4)
    ax = figure.subplots()
    axes = [_axis(config.space[name], [row[name] for row in scored]) for name in searched]
    positive = config.mode == "min" and min(row["score"] for row in scored) > 0
    scale = {"loguniform": None} if positive else {"uniform": None}
    axes.append(_axis(scale, [row["score"] for row in scored]))
    ranks = np.argsort(np.argsort([row["score"] for row in scored]))
    good = 1 - ranks / max(len(scored) - 1, 1) if config.mode == "min" else ranks / len(scored)
    for index in np.argsort(good):  # The best on top.
        heights = [positions[index] for positions, _ in axes]
        color = colormaps["viridis"](good[index])
        ax.plot(range(len(axes)), heights, color=color, alpha=0.3 + 0.6 * good[index])
    for position, (_, (low, high)) in enumerate(axes):
        ax.axvline(position, color="black", linewidth=0.6)
        ax.text(position, -0.03, f"{low:.3g}", ha="center", va="top", fontsize=8)
        ax.text(position, 1.03, f"{high:.3g}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(axes)), [*searched, config.metric])
    ax.tick_params(axis="x", pad=14)
    ax.set_yticks([])
    ax.set_ylim(-0.1, 1.1)
    ax.spines[:].set_visible(False)
    return figure


def _axis(entry: dict[str, Any], values: list[float]) -> tuple[np.ndarray, tuple[float, float]]:
    """Heights of the values in [0, 1], and what the ends mean."""
    low, high = min(values), max(values)
    heights = np.array(values, float)
    ends = np.array([low, high], float)
    if any("log" in name for name in entry):
        heights, ends = np.log(heights), np.log(ends)
    span = ends[1] - ends[0]
    return (heights - ends[0]) / (span or 1), (low, high)


def importance(
    config: Config, rows: list[dict[str, Any]], events: list[Event]
) -> tuple[int, dict[str, float]] | None:
    """Functional ANOVA of the scores at the last epoch that all trials have reached.

    Last scores would compare trials of four epochs with trials of sixty.

    Returns:
        The epoch, and each hyperparameter's share of the variance; None if there is too little.
    """
    searched = {n: e for n, e in config.space.items() if isinstance(e, dict)}
    rows = [row for row in rows if row["fate"] in (FINISHED, PRUNED) and row["epochs"]]
    if len(rows) < IMPORTANCE_TRIALS or config.action == "train" or len(searched) < 2:
        return None
    if any(event["event"] == "exploit" for event in events):
        return None  # No score belongs to the hyperparameters that its trial began with.
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    epoch = min(row["epochs"] for row in rows)
    distributions = OptunaSearch.convert_search_space(space.to_tune(searched))
    study = optuna.create_study()
    drawn = {e["trial"]: e["hyperparameters"] for e in events if e["event"] == "trial"}
    for trial, score in scores_at(events, config.metric, epoch).items():
        params = {name: drawn[trial][name] for name in searched}
        if np.isfinite(score):
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=float(score)
                )
            )
    if len({trial.value for trial in study.trials}) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return epoch, dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _importance(config: Config, rows: list[dict[str, Any]], events: list[Event]) -> "Figure | None":
    found = importance(config, rows, events)
    if found is None:
        return None
    epoch, shares = found
    figure = new_figure(6, 0.4 * len(shares) + 1)
    ax = figure.subplots()
    names = list(shares)[::-1]
    ax.barh(names, [shares[name] for name in names])
    ax.set_xlabel(f"share of the variance of {config.metric} after epoch {epoch}")
    return figure


def _lineage(config: Config, rows: list[dict[str, Any]], events: list[Event]) -> "Figure | None":
    """Who took over from whom: a line for each member, an arrow for each take-over."""
    exploits = [e for e in events if e["event"] == "exploit"]
    if not exploits:
        return None
    figure = new_figure(8, 0.3 * len(rows) + 1.5)
    ax = figure.subplots()
    height = {row["trial"]: index for index, row in enumerate(rows)}
    scores = [row["score"] for row in rows]
    finite = [s for s in scores if s is not None]
    choose = min if config.mode == "min" else max
    for row in rows:
        best = row["score"] is not None and row["score"] == choose(finite)
        color = "tab:green" if best else "tab:gray"
        ax.hlines(height[row["trial"]], 0, row["epochs"], color=color, linewidth=2 if best else 1)
    for event in exploits:
        x = event["epoch"]
        ends = (x, height[event["trial"]]), (x, height[event["donor"]])
        ax.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": "tab:blue"})
    ax.set_yticks(range(len(rows)), [f"trial {number(row['trial'])}" for row in rows])
    ax.set_xlabel("epoch")
    ax.set_title("an arrow: weights and hyperparameters go over", fontsize=9)
    return figure


def log_if_loss(config: Config, ax: "Axes") -> None:
    """A logarithmic scale for what goes down to 0."""
    if config.mode == "min":
        ax.set_yscale("log")
