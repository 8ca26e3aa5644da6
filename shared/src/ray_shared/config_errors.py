"""What a person reads when a configuration is refused: one sentence that names the key."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import ValidationError
from yaml import MarkedYAMLError


def _schema_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from _schema_keys(kind, f"{prefix}{name}.")


def unknown_key(key: str, schema: Any, groups: Sequence[str] | set[str]) -> str:
    """A key that the schema does not have, with the nearest one, or all there are beside it."""
    known = sorted({*_schema_keys(schema), *groups})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:  # A right name in the wrong place: `epochs` for `train.epochs`.
        near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    if near:
        return f"unknown key '{key}': did you mean '{near[0]}'?"
    group = key.rpartition(".")[0]
    beside = [k for k in known if k.rpartition(".")[0] == group] or known
    return (
        f"unknown key '{key}': known are {', '.join(beside)}; a new one needs a field in config.py"
    )


def sentence(error: Exception) -> str:
    """The first line of a message of Hydra's or OmegaConf's, with the key it is about."""
    key, line = getattr(error, "full_key", None), str(error).splitlines()[0]
    if match := re.fullmatch(r"Could not override '(.*)'\.", line):
        if match[1].startswith("hydra."):
            return f"unknown key '{match[1]}'"
        return "{0}: to replace what is there, write '~{0}' '+{0}=...'".format(match[1])
    if match := re.fullmatch(r"Ambiguous value for argument '(.*)'", line):
        return f"{match[1]}: several values need -m, a list [...]; a decimal number has a point"
    if isinstance(error, MissingMandatoryValue):
        line = f"has no value: set it in a YAML file, or with {key}=..."
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}, line {mark.line + 1}: no YAML: {error.problem}"
    return f"{key}: {line}" if key else line


def missing_choice(error: MissingConfigException) -> str:
    """A choice that a group does not have, with those that it has."""
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if not error.options:
        return sentence(error)
    return f"{group}={choice}: must be one of {', '.join(sorted(error.options))}"


def wrong_type(error: ValidationError, schema: Any, cfg: DictConfig) -> str:
    """A value of another type than the schema's, with what is allowed."""
    key = str(error.full_key)
    value = OmegaConf.select(cfg, key)
    kind: Any = schema
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    if kind is None:
        return sentence(error)
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    kinds = get_args(kind) or (kind,)
    allowed = " or ".join("null" if k is type(None) else names.get(k, str(k)) for k in kinds)
    if dataclasses.is_dataclass(kind):
        allowed = f"a group with the keys {', '.join(get_type_hints(kind))}"
    return f"{key}={'null' if value is None else value}: must be {allowed}"
