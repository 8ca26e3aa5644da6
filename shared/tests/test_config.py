"""Composing a configuration: what is right, and what is refused with which words."""

from pathlib import Path

import pytest
from ray_shared.config import compose
from ray_shared.errors import UserError

from .tiny_job.config import Config

CONF = "tiny_job.conf"


def composed(*overrides: str) -> Config:
    return compose(Config, CONF, overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        composed(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_compose_gives_dataclasses_with_the_values_of_the_files():
    config = composed()
    assert isinstance(config, Config)
    assert (config.action, config.train.epochs, config.train.lr) == ("ok", 3, 0.1)
    assert config.model.width == 8
    assert config.cluster.mode == "local"  # From ray_shared's own groups.


def test_compose_applies_values_choices_and_presets():
    config = composed("train.lr=1", "model=large", "cluster=simulated", "experiment=long")
    assert config.train.lr == 1.0
    assert isinstance(config.train.lr, float)
    assert config.model.width == 64
    assert (config.cluster.mode, config.cluster.num_nodes) == ("simulated", 2)
    assert config.train.epochs == 30


def test_interpolation_follows_the_override():
    assert composed("train.epochs=7").train.eval_epochs == 7
    assert composed("train.eval_epochs=${model.width}").train.eval_epochs == 8


def test_null_is_accepted_where_the_schema_allows_it():
    assert composed("train.clip_norm=1").train.clip_norm == 1.0
    assert composed("train.clip_norm=null").train.clip_norm is None


def test_dict_override_sets_the_keys_inside_and_keeps_the_others():
    train = composed("train={epochs: 5}").train
    assert (train.epochs, train.lr) == (5, 0.1)


def test_hydras_own_groups_can_be_overridden():
    assert composed("hydra/job_logging=none", "hydra.job.name=x").train.epochs == 3


@pytest.mark.parametrize(
    ("override", "found", "right"),
    [
        ("train.epohcs=3", "train.epohcs", "train.epochs"),
        ("+train.epohcs=3", "train.epohcs", "train.epochs"),
        ("++train.epohcs=3", "train.epohcs", "train.epochs"),
        ("~train.epohcs", "train.epohcs", "train.epochs"),
        ("epochs=3", "epochs", "train.epochs"),
        ("+clip_norm=3", "clip_norm", "train.clip_norm"),
        ("cluster.clip_norm=3", "cluster.clip_norm", "train.clip_norm"),
        ("modle=large", "modle", "model"),
        ("expriment=long", "expriment", "experiment"),
        ("train={epohcs: 3}", "train.epohcs", "train.epochs"),
        ("+train={epochs: 3, epohcs: 3}", "train.epohcs", "train.epochs"),
        ("cluster={nmu_cpus: 3}", "cluster.nmu_cpus", "cluster.num_cpus"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_right_key(override: str, found: str, right: str):
    assert refusal(override) == f"unknown key '{found}': did you mean '{right}'?"


def test_a_dict_of_the_schema_takes_any_names():
    overrides = ["model.options.depth=3", "+model.options.skip={every: 2}"]
    assert compose(Config, CONF, overrides).model.options == {"depth": 3, "skip": {"every": 2}}
    assert compose(Config, CONF, ["~model.options.depth"]).model.options == {}
    replaced = ["~model.options", "+model.options={skip: 1}"]
    assert compose(Config, CONF, replaced).model.options == {"skip": 1}
    sentence = (
        "model.options: to replace what is there, write '~model.options' '+model.options=...'"
    )
    assert refusal("model.options={skip: 1}") == sentence


def test_unknown_key_without_a_near_one_lists_the_known_keys():
    new = "; a new one needs a field in config.py"
    names = "action, cluster, experiment, model, run, train"
    assert refusal("+zzz=3") == f"unknown key 'zzz': known are {names}{new}"
    assert refusal("model.hidden=3") == (
        f"unknown key 'model.hidden': known are model.options, model.width{new}"
    )


def test_unknown_key_of_hydra_is_refused():
    assert refusal("hydra.run.dirr=out") == "unknown key 'hydra.run.dirr'"


def test_several_values_without_a_sweep_are_refused():
    message = "train.lr=0.1,0.2: several values need -m, a list [...]; a decimal number has a point"
    assert refusal("train.lr=0.1,0.2") == message


def test_file_in_the_place_of_the_run_directory_is_refused():
    assert refusal(f"hydra.run.dir={__file__}") == (
        f"hydra.run.dir={__file__}: must be a directory that can be written, and {__file__} is none"
    )
    inside = f"{__file__}/${{now:%H}}"
    assert refusal(f"hydra.run.dir={inside}") == (
        f"hydra.run.dir={inside}: must be a directory that can be written, and {__file__} is none"
    )


def test_unknown_key_in_a_yaml_file_is_refused(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    preset = tmp_path / "experiment" / "mine.yaml"
    preset.write_text("# @package _global_\ntrain:\n  epohcs: 3\n")
    with pytest.raises(UserError, match=r"'train.epohcs': did you mean 'train.epochs'\?"):
        compose(Config, CONF, ["experiment=mine"], config_dir=str(tmp_path))
    preset.write_text("# @package _global_\ntrain:\n  epochs: 4\n")
    config = compose(Config, CONF, ["experiment=mine"], config_dir=str(tmp_path))
    assert config.train.epochs == 4


def test_what_is_no_yaml_is_refused_with_file_and_line(tmp_path: Path):
    (tmp_path / "experiment").mkdir()
    preset = tmp_path / "experiment" / "mine.yaml"
    preset.write_text("train:\n  epochs: 3\n lr: 0.1\n")
    with pytest.raises(UserError, match=rf"{preset}, line 3: no YAML: "):
        compose(Config, CONF, ["experiment=mine"], config_dir=str(tmp_path))


def test_missing_config_dir_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--config-dir=.*none: no such directory"):
        compose(Config, CONF, config_dir=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=medium", "model=medium: must be one of large, small"),
        ("cluster=remote", "cluster=remote: must be one of existing, local, simulated"),
        # Hydra itself passes over a missing file of an optional group.
        ("experiment=lnog", "experiment=lnog: must be one of long"),
        ("cluster=null", "cluster=null: must be a choice"),
    ],
)
def test_unknown_choice_is_refused_with_the_choices(override: str, message: str):
    assert refusal(override) == message


@pytest.mark.parametrize("override", ["train.epochs", "train.epochs=[1", "=3", "train epochs=3"])
def test_malformed_override_is_refused_and_named(override: str):
    assert refusal(override).startswith(f"override '{override}': must be key=value (")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=abc", "train.epochs=abc: must be an integer"),
        ("train.epochs=1.5", "train.epochs=1.5: must be an integer"),
        ("train.epochs=null", "train.epochs=null: must be an integer"),
        ("train.epochs=${train.lr}", "train.epochs=0.1: must be an integer"),
        ("train.lr=fast", "train.lr=fast: must be a number"),
        ("train.shuffle=maybe", "train.shuffle=maybe: must be true or false"),
        ("train.clip_norm=abc", "train.clip_norm=abc: must be a number or null"),
        ("action=null", "action=null: must be a string"),
        ("cluster.num_cpus=many", "cluster.num_cpus=many: must be an integer or null"),
        ("train=3", "train=3: must be a group with the keys "),
    ],
)
def test_wrong_type_is_refused_with_key_value_and_what_is_allowed(override: str, message: str):
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=0", "train.epochs=0: must be >= 1"),
        ("cluster.num_nodes=0", "cluster.num_nodes=0: must be >= 1"),
        ("cluster.mode=remote", "cluster.mode=remote: must be one of local, existing, simulated"),
        ("cluster=existing", "cluster.address=null: must be host:port of a Ray cluster"),
    ],
)
def test_value_out_of_range_is_refused_with_key_value_and_range(override: str, message: str):
    assert refusal(override) == message


def test_missing_value_is_refused_by_key():
    message = "train.lr: has no value: set it in a YAML file, or with train.lr=..."
    assert refusal("~train.lr") == message


def test_broken_interpolation_is_refused_by_key():
    assert refusal("train.epochs=${nothing}") == (
        "train.epochs: Interpolation key 'nothing' not found"
    )
