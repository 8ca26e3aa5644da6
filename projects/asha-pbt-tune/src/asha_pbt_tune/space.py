"""Search spaces in YAML: `lr: {loguniform: [1e-5, 1e-1]}`.

`check` refuses a wrong space in a sentence and needs no Ray. `to_tune` makes Tune's own
distributions of a right one.

Source: https://docs.ray.io/en/releases-2.60.0/tune/api/search_space.html
"""

import difflib
import math
from dataclasses import dataclass
from typing import Any

from ray_shared.errors import UserError

from asha_pbt_tune.hyperparameters import OBJECTIVES, Hyperparameter


@dataclass(frozen=True)
class Distribution:
    """How one of Tune's distributions is written."""

    arguments: tuple[str, ...]
    kind: type[int] | type[float]
    """What it draws."""
    log: bool = False


BOUNDS, STEPS = ("low", "high"), ("low", "high", "step")
DISTRIBUTIONS = {
    "uniform": Distribution(BOUNDS, float),
    "quniform": Distribution(STEPS, float),
    "loguniform": Distribution(BOUNDS, float, log=True),
    "qloguniform": Distribution(STEPS, float, log=True),
    "randint": Distribution(BOUNDS, int),
    "qrandint": Distribution(STEPS, int),
    "lograndint": Distribution(BOUNDS, int, log=True),
}
"""Beside `choice`, whose arguments are the values."""


def check(space: dict[str, Any], objective: str) -> None:
    """Refuses a space that makes no sense, or not for this objective.

    Args:
        space: Hyperparameter to a value, or to one distribution with its arguments.
        objective: A key of `OBJECTIVES`.

    Raises:
        UserError: Names the key, what was found and what is allowed.
    """
    known = OBJECTIVES[objective]
    for name, entry in space.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
            raise UserError(f"space.{name}: objective={objective} has no such key: {hint}")
        _check_entry(f"space.{name}", entry, known[name])
    if not any(isinstance(entry, dict) for entry in space.values()):
        raise UserError(f"space={space}: nothing to search for: must hold a distribution")


def _check_entry(key: str, entry: Any, hyperparameter: Hyperparameter) -> None:
    if not isinstance(entry, dict):
        _check_number(key, entry, hyperparameter.kind)
        return
    if len(entry) != 1:
        found = " and ".join(entry) or "none"
        hint = f"; take one away: '~{key}.{next(iter(entry))}'" if entry else ""
        raise UserError(f"{key}: must have one distribution, found {found}{hint}")
    ((name, arguments),) = entry.items()
    known = (*DISTRIBUTIONS, "choice")
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        allowed = f"must be one of {', '.join(known)}{hint}"
        raise UserError(f"{key}: unknown distribution '{name}': {allowed}")
    key = f"{key}.{name}"
    if name == "choice":
        if not isinstance(arguments, list) or len(arguments) < 2:
            raise UserError(f"{key}={arguments}: must be a list of two or more values")
        for value in arguments:
            _check_number(key, value, hyperparameter.kind)
        return
    _check_bounds(key, arguments, DISTRIBUTIONS[name], hyperparameter)


def _check_bounds(
    key: str, arguments: Any, distribution: Distribution, hyperparameter: Hyperparameter
) -> None:
    if hyperparameter.kind is int and distribution.kind is float:
        integers = [n for n, d in DISTRIBUTIONS.items() if d.kind is int]
        allowed = f"must be {', '.join(integers)} or choice"
        raise UserError(f"{key}: the hyperparameter is an integer: {allowed}")
    expected = ", ".join(distribution.arguments)
    if not isinstance(arguments, list) or len(arguments) != len(distribution.arguments):
        raise UserError(f"{key}={arguments}: must be [{expected}]")
    for value in arguments:
        _check_number(key, value, distribution.kind)
    low, high = arguments[:2]
    if low >= high:
        raise UserError(f"{key}={arguments}: the low bound must be less than the high one")
    if distribution.log and low <= 0:
        raise UserError(f"{key}={arguments}: a logarithm needs bounds greater than 0")
    if len(arguments) == 3:
        step = arguments[2]
        if not 0 < step <= high - low:
            raise UserError(f"{key}={arguments}: the step must be in (0, {high - low:g}]")
        if any(not math.isclose(bound / step, round(bound / step)) for bound in (low, high)):
            raise UserError(f"{key}={arguments}: the bounds must be multiples of the step")


def _check_number(key: str, value: Any, kind: type) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise UserError(f"{key}: found {value!r}, must be numbers")
    if kind is int and value != int(value):
        raise UserError(f"{key}: found {value}, must be integers")


def combinations(space: dict[str, Any]) -> int:
    """How many trials `search=grid` makes.

    Raises:
        UserError: If a distribution has no finite number of values.
    """
    number = 1
    for name, entry in space.items():
        if isinstance(entry, dict):
            ((distribution, arguments),) = entry.items()
            if distribution != "choice":
                allowed = "search=grid needs choice"
                raise UserError(f"space.{name}.{distribution}: {allowed}")
            number *= len(arguments)
    return number


def to_tune(space: dict[str, Any], grid: bool = False) -> dict[str, Any]:
    """The space as Tune's own distributions; `choice` as `grid_search` if `grid`."""
    from ray import tune

    made = {}
    for name, entry in space.items():
        if not isinstance(entry, dict):
            made[name] = entry
            continue
        ((distribution, arguments),) = entry.items()
        if distribution == "choice":
            made[name] = tune.grid_search(arguments) if grid else tune.choice(arguments)
        else:
            made[name] = getattr(tune, distribution)(*arguments)
    return made


def mutations(space: dict[str, Any], objective: str) -> dict[str, Any]:
    """What PBT may change: Tune's distributions, and lists for `choice`.

    PBT would take `tune.choice` for a continuous range and multiply its values.
    """
    known = OBJECTIVES[objective]
    chosen = {n: e for n, e in space.items() if isinstance(e, dict) and known[n].mutable}
    return {name: chosen[name].get("choice", domain) for name, domain in to_tune(chosen).items()}


def inside(space: dict[str, Any], hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """The same hyperparameters, pushed back between their bounds and onto their steps.

    PBT multiplies by 0.8 or 1.2 without a look at either: a dropout of 0.9 becomes 1.08.
    """
    pushed = dict(hyperparameters)
    for name, entry in space.items():
        if isinstance(entry, dict) and "choice" not in entry:
            ((distribution, (low, high, *step)),) = entry.items()
            # Tune draws integers below the high bound, but for steps, where it belongs to them.
            if distribution in ("randint", "lograndint"):
                high -= 1
            # A float stays one at a bound written as an integer: PBT rounds integers.
            value = pushed[name]
            nearest = round(value / step[0]) * step[0] if step else value
            if not math.isclose(nearest, value):  # Else it is there, but for what is rounded off.
                value = type(value)(nearest)
            pushed[name] = type(value)(min(max(value, low), high))
    return pushed


def contains(space: dict[str, Any], hyperparameters: dict[str, Any]) -> bool:
    """Whether the space could have given these hyperparameters."""
    for name, entry in space.items():
        if name not in hyperparameters:
            return False
        value = hyperparameters[name]
        if not isinstance(entry, dict):
            ok = value == entry
        elif "choice" in entry:
            ok = value in entry["choice"]
        else:
            ok = inside({name: entry}, {name: value})[name] == value
        if not ok:
            return False
    return True
