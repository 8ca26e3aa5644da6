"""The configuration composes, and every wrong value is refused by key, before anything starts."""

from pathlib import Path

import pytest
import tf_train
from ray_shared.config import compose
from ray_shared.errors import UserError
from tf_train.config import Config

CONF = "tf_train.conf"
PRESETS = sorted(Path(tf_train.__file__).parent.glob("conf/experiment/*.yaml"))


def test_defaults_compose_to_two_workers_on_digits():
    config = compose(Config, CONF)
    assert (config.scaling.num_workers, config.data.name, config.model.name) == (2, "digits", "cnn")
    assert config.cluster.mode == "local"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_composes_with_the_command_in_its_first_comment(preset: Path):
    lines = preset.read_text().splitlines()
    comment = next(line for line in lines if line.startswith("# tf-train"))
    compose(Config, CONF, comment.split()[2:])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epohcs=3", "unknown key 'train.epohcs': did you mean 'train.epochs'?"),
        ("+train.epohcs=3", "unknown key 'train.epohcs': did you mean 'train.epochs'?"),
        ("epochs=3", "unknown key 'epochs': did you mean 'train.epochs'?"),
        ("train.epochs=many", "train.epochs=many: must be an integer"),
        ("train.epochs=0", "train.epochs=0: must be >= 1"),
        ("train.batch_size=0", "train.batch_size=0: must be >= 1"),
        ("train.lr=-1", "train.lr=-1.0: must be > 0"),
        ("train.lr_scaling=cubic", "train.lr_scaling=cubic: must be one of none, linear, sqrt"),
        ("train.weight_decay=-1", "train.weight_decay=-1.0: must be >= 0"),
        ("train.warmup_epochs=99", "train.warmup_epochs=99.0: must be in [0, train.epochs="),
        ("train.clip_norm=0", "train.clip_norm=0.0: must be null or > 0"),
        ("train.precision=fp8", "train.precision=fp8: must be fp32 or bf16"),
        ("train.early_stopping_epochs=-1", "train.early_stopping_epochs=-1: must be >= 0"),
        ("train.steps_per_call=0", "train.steps_per_call=0: must be >= 1"),
        ("train.step_timeout_s=0", "train.step_timeout_s=0.0: must be > 0"),
        ("train.seed=-1", "train.seed=-1: must be >= 0"),
        ("scaling.num_workers=0", "scaling.num_workers=0: must be >= 1"),
        ("scaling.min_workers=1", "scaling.min_workers=1: must be null"),
        ("scaling.cpus_per_worker=0", "scaling.cpus_per_worker=0.0: must be > 0"),
        ("model=vit", "model=vit: must be one of cnn, mlp"),
        ("model.width=12", "model.width=12: must be a multiple of 8"),
        ("data=imagenet", "data=imagenet: must be one of digits, tfrecord"),
        ("data=tfrecord", "data=tfrecord needs data.path"),
        ("data.path=/x", "data.path=/x: data=digits reads no files"),
        ("data.loader=dali", "data.loader=dali: must be memory or ray"),
        ("data.shape=[8,8]", "data.shape=[8, 8]: must be height, width and channels"),
        ("data.shape=[9,9,1]", "data.shape=[9, 9, 1]: must be [8, 8, 1] for digits"),
        ("data.num_classes=1", "data.num_classes=1: must be >= 2"),
        ("data.num_classes=11", "data.num_classes=11: must be 10 for digits"),
        ("checkpoint.metric=f1", "checkpoint.metric=f1: must be one of val_accuracy"),
        (
            "checkpoint.metric=train_loss",
            "checkpoint.metric=train_loss: must be one of val_accuracy",
        ),
        ("checkpoint.metric=val_loss", "checkpoint.mode=max: must be min for checkpoint.metric="),
        ("checkpoint.num_to_keep=0", "checkpoint.num_to_keep=0: must be >= 1"),
        ("failure.max_failures=-2", "failure.max_failures=-2: must be >= -1"),
        ("run.name=a/b", "run.name='a/b': must be letters, digits"),
        ("run.resume=must", "run.resume=must needs run.name"),
        ("cluster=existing", "cluster.address=null: must be host:port of a Ray cluster"),
    ],
)
def test_wrong_value_is_refused_by_key(override: str, message: str):
    with pytest.raises(UserError) as error:
        compose(Config, CONF, [override])
    assert str(error.value).startswith(message)


def test_a_stream_has_no_checkpoints_inside_an_epoch():
    with pytest.raises(UserError) as error:
        compose(Config, CONF, ["data.loader=ray", "checkpoint.every_steps=5"])
    assert str(error.value).startswith("checkpoint.every_steps=5: must be 0 with data.loader=ray")
