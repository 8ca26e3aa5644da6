"""Ray Serve's configuration for serve-fastapi, with overrides of its command applied.

`serve_fastapi.yaml` is what `python -m serve_fastapi action=config` has written: this project does
not import that one. The environment variables in its comments go to every pod.
"""

import difflib
import re
from importlib import resources
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from ray_shared.errors import UserError

FILE = "serve_fastapi.yaml"
VARIABLE = re.compile(r"^#   (\w+)=(.*)$", re.MULTILINE)


def text() -> str:
    """The file as it was written."""
    return resources.files("kuberay_deploy").joinpath(FILE).read_text()


def variables() -> dict[str, str]:
    """What Ray Serve takes from the environment only, in every process of the cluster."""
    return {name: value.rstrip() for name, value in VARIABLE.findall(text())}


def content(storage: str, overrides: list[str]) -> dict[str, Any]:
    """The configuration, as `serve deploy` and a RayService take it.

    Args:
        storage: Directory of the pods for the models that it makes if it is given none.
        overrides: Of serve-fastapi's command: `batch.max_rows=256`,
            `+models.bundles.mine=s3://bucket/bundle`.

    Raises:
        UserError: For a key that serve-fastapi does not have, or a value of another type.
    """
    config: dict[str, Any] = yaml.safe_load(text())
    (application,) = config["applications"]
    application["args"]["storage"]["path"] = storage
    for override in overrides:
        _apply(application["args"], override)
    for name in ("host", "port"):
        config["http_options"][name] = application["args"]["serve"][name]
    return config


def _apply(args: dict[str, Any], override: str) -> None:
    try:
        parsed = OverridesParser.create().parse_override(override)
        value: Any = parsed.value()
    except HydraException:
        raise UserError(f"overrides: {override}: must be key=value") from None
    key = str(parsed.key_or_group)
    *sections, name = key.split(".")
    place: Any = args
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise _unknown(key, override, args)
    if name not in place and sections != ["models", "bundles"]:
        raise _unknown(key, override, args)
    before = place.get(name)
    # An integer is a number, too; what is null may become text.
    allowed = (int, float) if type(before) is float else (str if before is None else type(before))
    fits = isinstance(value, allowed) and (type(value) is bool) == (type(before) is bool)
    if value is not None and not fits:
        kinds = {int: "an integer", float: "a number", bool: "true or false", list: "a list"}
        shown = "keys below it" if isinstance(before, dict) else kinds.get(type(before), "text")
        raise UserError(f"overrides: {override}: must be {shown}")
    place[name] = float(value) if type(before) is float and value is not None else value


def _unknown(key: str, override: str, args: dict[str, Any]) -> UserError:
    known = sorted(_keys(args))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return UserError(f"overrides: {override}: serve-fastapi has no key {key}: {hint}")


def _keys(args: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in args.items():
        found += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found
