"""Hydra configuration, checked before anything starts.

`main` wraps `hydra.main`: it composes the configuration, converts it to dataclasses, refuses what
is wrong in one sentence (exit code 2), runs the job, and writes `result.json` however it ends.

Source: https://hydra.cc/docs/1.3/advanced/compose_api/
"""

import dataclasses
import functools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra import main as hydra_main
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from ray_shared import config_errors
from ray_shared.errors import JobError, UserError, check
from ray_shared.report import Report, show_sweep
from ray_shared.runs import check_unshared_name
from ray_shared.signals import sigterm_interrupts

logger = logging.getLogger(__name__)
T = TypeVar("T")

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_SIGINT, EXIT_SIGTERM = 0, 1, 2, 130, 143


def main(
    schema: type[T],
    conf: str,
    project: str,
    preflight: Callable[[T], None] | None = None,
) -> Callable[[Callable[[T, Report], None]], Callable[[], NoReturn]]:
    """Makes a job a command: `@main(Config, "my_project.conf", "my-project")`.

    Args:
        schema: The dataclass of the whole configuration.
        conf: The package that holds `config.yaml`.
        project: Name for `result.json`.
        preflight: Checks that need files but no Ray. It runs before Hydra makes its run directory
            and raises `UserError`.

    Returns:
        A decorator for `job(config, report)`. The decorated function takes its overrides from the
        command line and exits with 0 (done), 1 (failed), 2 (user's mistake), 130 or 143 (signals).
    """

    def decorate(job: Callable[[T, Report], None]) -> Callable[[], NoReturn]:
        @functools.wraps(job)
        def entry() -> NoReturn:
            args, options = get_args_parser().parse_known_args()
            only_shows = args.help or args.hydra_help or args.info or args.shell_completion
            run_names: set[object] = set()
            outputs = (
                ("hydra.sweep.dir", "multirun") if args.multirun else ("hydra.run.dir", "outputs")
            )
            try:
                if options:
                    hint = "a value is set without dashes: key=value"
                    raise UserError(f"{options[0]}: no such option; {hint}")
                if not only_shows and not any(o.startswith(outputs[0]) for o in args.overrides):
                    _check_output_dir(*outputs)
                for overrides in [] if only_shows else _combinations(args.overrides, args.multirun):
                    name = args.config_name or "config"
                    config = compose(schema, conf, overrides, name, args.config_dir)
                    check_unshared_name(config, run_names)
                    if preflight is not None and args.cfg is None:
                        preflight(config)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)  # noqa: T201 - before logging is set up
                sys.exit(EXIT_USER)

            ran: list[tuple[list[str], Report, int]] = []

            def task(cfg: DictConfig) -> None:
                config = to_schema(schema, cfg)
                output_dir = Path(HydraConfig.get().runtime.output_dir)
                report = Report(project, output_dir, dataclasses.asdict(cast(Any, config)))
                code = _run_job(job, config, report)
                if code in (EXIT_SIGINT, EXIT_SIGTERM):
                    sys.exit(code)  # Whoever interrupts a sweep means all of it.
                ran.append((list(HydraConfig.get().overrides.task), report, code))

            hydra_main(version_base="1.3", config_path=f"pkg://{conf}", config_name="config")(
                task
            )()
            if args.multirun and ran:
                show_sweep([(overrides, report) for overrides, report, _ in ran])
            sys.exit(max((code for *_, code in ran), default=EXIT_DONE))

        return entry

    return decorate


def compose(
    schema: type[T],
    conf: str,
    overrides: Sequence[str] = (),
    config_name: str = "config",
    config_dir: str | None = None,
) -> T:
    """Composes and checks one configuration, without running anything.

    Args:
        schema: The dataclass of the whole configuration.
        conf: The package that holds the YAML files.
        overrides: As on the command line.
        config_name: The primary configuration file, without `.yaml`.
        config_dir: One more directory to search, as with `--config-dir`.

    Returns:
        The configuration as dataclasses, every interpolation resolved.

    Raises:
        UserError: For an unknown key or choice, a wrong type, a value out of range.
    """
    parsed = [_parse(override) for override in overrides]
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir={config_dir}: no such directory")
        found = f"file://{Path(config_dir).absolute()}"
        overrides = [*overrides, f"hydra.searchpath=[pkg://ray_shared.conf,{found}]"]
    with initialize_config_module(conf, version_base="1.3"):
        groups = _group_names()
        try:
            for override in parsed:
                key = override.key_or_group
                if key in ("hydra.run.dir", "hydra.sweep.dir"):
                    _check_output_dir(key, str(override.value()))
                if key.split("/")[0].split(".")[0] != "hydra" and key not in groups:
                    for each in _override_keys(key, override.value()):
                        _check_key(each, schema, groups)
            cfg = hydra_compose(config_name, overrides=list(overrides))
            _check_choices([o for o in parsed if o.key_or_group in groups], config_name, overrides)
        except UserError:
            raise
        except MissingConfigException as error:
            raise UserError(config_errors.missing_choice(error)) from None
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(config_errors.sentence(error)) from None
        except ValueError as error:  # Hydra's answer to `group=null`, which names no group.
            for override in parsed:
                name = override.key_or_group
                check(override.value() is not None or "." in name, name, None, "a choice")
            raise UserError(config_errors.sentence(error)) from None
    return to_schema(schema, cfg)


def to_schema(schema: type[T], cfg: DictConfig) -> T:
    """Converts a composed configuration to its dataclass; `__post_init__` checks the ranges.

    Raises:
        UserError: For an unknown key, a wrong type, a missing value, a value out of range.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
        return cast(T, OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        raise UserError(config_errors.unknown_key(str(error.full_key), schema, ())) from None
    except ValidationError as error:
        raise UserError(config_errors.wrong_type(error, schema, cfg)) from None
    except OmegaConfBaseException as error:
        raise UserError(config_errors.sentence(error)) from None


def _combinations(overrides: list[str], multirun: bool) -> list[list[str]]:
    """The override lists of every job: one, or with `--multirun` those of the sweep."""
    if not multirun:
        return [overrides]
    try:
        parsed = [_parse(override) for override in overrides]
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise UserError(config_errors.sentence(error)) from None
    return [combination for batch in batches for combination in batch]


def _check_output_dir(key: str, value: str) -> None:
    """Hydra makes its directory by itself, and answers with a traceback if it cannot."""
    path = Path(value).absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    check(ok, key, value, f"a directory that can be written, and {there} is none")


def _parse(override: str) -> Override:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        hint = f"must be key=value ({config_errors.sentence(error)})"
        raise UserError(f"override '{override}': {hint}") from None
    if not parsed.key_or_group:
        raise UserError(f"override '{override}': must be key=value (no key)")
    return parsed


def _group_names() -> set[str]:
    loader = GlobalHydra.instance().config_loader()

    def walk(parent: str) -> Iterator[str]:
        for name in loader.list_groups(parent):
            path = f"{parent}/{name}" if parent else name
            yield path
            yield from walk(path)

    return {name for name in walk("") if not name.startswith("hydra")}


def _override_keys(key: str, value: object) -> Iterator[str]:
    """The key and those inside a dict: `train={epochs: 3}` sets `train.epochs`."""
    yield key
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _override_keys(f"{key}.{name}", inner)


def _check_choices(choices: list[Override], config_name: str, overrides: Sequence[str]) -> None:
    """Refuses `group=choice` without such a file; Hydra itself skips it in an optional group."""
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
    loaded = {default.config_path for default in defaults}
    for override in choices:
        group, choice = override.key_or_group, override.value()
        ok = not isinstance(choice, str) or override.is_delete() or f"{group}/{choice}" in loaded
        check(ok, group, choice, f"one of {', '.join(loader.get_group_options(group))}")


def _check_key(key: str, schema: Any, groups: set[str]) -> None:
    """Refuses a key that the schema does not have; what is inside a `dict` field has any name."""
    kind: Any = schema
    for part in key.split("."):
        if get_origin(kind) is dict:
            return
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
        if kind is None:
            raise UserError(config_errors.unknown_key(key, schema, groups))


def _run_job(job: Callable[[T, Report], None], config: T, report: Report) -> int:
    """Runs one job and turns its end into an exit code, a message and `result.json`."""
    code, reason = EXIT_DONE, None
    terminated = threading.Event()
    try:
        with sigterm_interrupts(terminated):
            job(config, report)
    except UserError as error:
        code, reason = EXIT_USER, str(error)
    except (KeyboardInterrupt, SystemExit):
        # Ray Train answers Ctrl-C inside `fit()` with `sys.exit(0)`: still not a job that is done.
        code, reason = EXIT_SIGINT, "interrupted by Ctrl-C"
    except JobError as error:
        code, reason = EXIT_FAILED, str(error)
        if error.__cause__ is not None:
            reason += f" (traceback: {_write_traceback(report)})"
    except Exception as error:  # noqa: BLE001 - whatever it was: recorded, and exit code 1
        code = EXIT_FAILED
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"{type(error).__name__}: {first_line} (traceback: {_write_traceback(report)})"
    if terminated.is_set():  # Whatever it led to in Ray's processes, which may have got it as well.
        code, reason = EXIT_SIGTERM, "interrupted by SIGTERM"
    if reason is not None:
        logger.error("%s: %s", "error" if code == EXIT_USER else "failed", reason)
    path = report.write("ok" if code == EXIT_DONE else "failed", reason)
    if code != EXIT_USER:  # A user's mistake is one sentence.
        logger.info("result: %s", path)
    return code


def _write_traceback(report: Report) -> Path:
    log = report.output_dir / "error.log"
    log.write_text(traceback.format_exc())
    return log
