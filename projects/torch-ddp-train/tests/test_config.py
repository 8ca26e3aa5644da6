"""The configuration composes, and every wrong value is refused by key, before anything starts."""

from pathlib import Path

import pytest
import torch_ddp_train
from ray_shared.config import compose
from ray_shared.errors import UserError
from torch_ddp_train.config import Config

CONF = "torch_ddp_train.conf"
PRESETS = sorted(Path(torch_ddp_train.__file__).parent.glob("conf/experiment/*.yaml"))


def test_defaults_compose_to_two_workers_on_digits():
    config = compose(Config, CONF)
    assert (config.scaling.num_workers, config.data.name, config.model.name) == (2, "digits", "cnn")
    assert config.cluster.mode == "local"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_composes_with_the_command_in_its_first_comment(preset: Path):
    comment = next(
        line for line in preset.read_text().splitlines() if line.startswith("# torch-ddp-train")
    )
    compose(Config, CONF, comment.split()[2:])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epohcs=3", "unknown key 'train.epohcs': did you mean 'train.epochs'?"),
        ("+train.epohcs=3", "unknown key 'train.epohcs': did you mean 'train.epochs'?"),
        ("epochs=3", "unknown key 'epochs': did you mean 'train.epochs'?"),
        ("train.epochs=many", "train.epochs=many: must be an integer"),
        ("train.epochs=null", "train.epochs=null: must be an integer"),
        ("train.epochs=0", "train.epochs=0: must be >= 1"),
        ("train.batch_size=0", "train.batch_size=0: must be >= 1"),
        ("train.lr=-1", "train.lr=-1.0: must be > 0"),
        ("train.lr_scaling=cubic", "train.lr_scaling=cubic: must be one of none, linear, sqrt"),
        ("train.weight_decay=-1", "train.weight_decay=-1.0: must be >= 0"),
        ("train.warmup_epochs=99", "train.warmup_epochs=99.0: must be in [0, train.epochs="),
        ("train.clip_norm=0", "train.clip_norm=0.0: must be null or > 0"),
        ("train.accumulate_steps=0", "train.accumulate_steps=0: must be >= 1"),
        ("train.precision=fp8", "train.precision=fp8: must be fp32 or bf16"),
        ("train.seed=-1", "train.seed=-1: must be >= 0"),
        ("scaling.num_workers=0", "scaling.num_workers=0: must be >= 1"),
        ("scaling.min_workers=3", "scaling.min_workers=3: must be null, or 1 to"),
        ("scaling.cpus_per_worker=0", "scaling.cpus_per_worker=0.0: must be > 0"),
        ("model=vit", "model=vit: must be one of cnn, resnet"),
        ("model.width=12", "model.width=12: must be a multiple of 8"),
        ("model.dropout=1", "model.dropout=1.0: must be in [0, 1)"),
        ("data=imagenet", "data=imagenet: must be one of cifar10, digits"),
        ("data=cifar10", "data=cifar10 needs data.path"),
        ("data.path=/x", "data.path=/x: data=digits reads no files"),
        ("data.loader=dali", "data.loader=dali: must be torch or ray"),
        ("checkpoint.metric=f1", "checkpoint.metric=f1: must be one of val_accuracy"),
        ("checkpoint.metric=val_loss", "checkpoint.mode=max: must be min for checkpoint.metric="),
        ("cluster.address=10.0.0.1:1", "cluster.address=10.0.0.1:1: only with cluster=existing"),
        ("checkpoint.num_to_keep=0", "checkpoint.num_to_keep=0: must be >= 1"),
        ("failure.max_failures=-2", "failure.max_failures=-2: must be >= -1"),
        ("run.name=a/b", "run.name='a/b': must be letters, digits"),
        ("run.resume=must", "run.resume=must needs run.name"),
        ("cluster=existing", "cluster.address=null: must be host:port of a Ray cluster"),
        ("cluster=cloud", "cluster=cloud: must be one of existing, local, simulated"),
    ],
)
def test_wrong_value_is_refused_by_key(override: str, message: str):
    with pytest.raises(UserError) as error:
        compose(Config, CONF, [override])
    assert str(error.value).startswith(message)


def test_stream_has_no_checkpoints_inside_an_epoch():
    with pytest.raises(UserError) as error:
        compose(Config, CONF, ["experiment=streaming", "checkpoint.every_steps=5"])
    sentence = "checkpoint.every_steps=5: must be 0 with data.loader=ray"
    assert str(error.value).startswith(sentence)


def test_data_path_does_not_depend_on_a_workers_directory():
    config = compose(Config, CONF, ["data=cifar10", "data.path=some/files"])
    assert config.data.path == str(Path("some/files").absolute())
