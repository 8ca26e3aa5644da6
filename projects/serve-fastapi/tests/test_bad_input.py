"""What a user can get wrong: one sentence, exit code 2, and nothing left behind."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from ray_shared.testing import free_port, start_job

from .conftest import StartJob


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["serve.prot=1"], "unknown key 'serve.prot': did you mean 'serve.port'?"),
        (["serve.front=nginx"], "serve.front=nginx: must be one of auto, haproxy, python"),
        (["serve.port=70000"], "serve.port=70000: must be 0 to 65535"),
        (["action=deploy"], "action=deploy: cluster=local ends with the command"),
        (["action=load_test", "serve.block=true"], "serve.block=true: only with action=serve"),
        (["scale.ingress.max=0"], "scale.ingress.max=0: must be >= 1 and >= scale.ingress.min"),
        (["scale.ingress.min=9", "scale.ingress.max=9"], "scale.ingress.min=9: each needs 0.5 CPU"),
        (["batch.max_rows=0"], "batch.max_rows=0: must be >= 1"),
        (["limits.max_rows=10001"], "limits.max_rows=10001: must be 1 to 10000"),
        (["limits.deadline_s=0"], "limits.deadline_s=0.0: must be > 0"),
        (["log.requests=some"], "log.requests=some: must be one of none, errors, all"),
        (["load.address=there:80"], "load.address=there:80: must be null or http://host:port"),
        (["serve.host='::1'"], "serve.host='::1': must be an IPv4 address, or a name"),
        (["serve.host=0.0.0.0"], "serve.host=0.0.0.0: others could reach it without a key; set "),
        (["serve.host=203.0.113.1", "security.allow_open=true"], "serve.host=203.0.113.1 "),
        (
            ["security.keys_file=nowhere"],
            "security.keys_file=nowhere: cannot be read: No such file",
        ),
        (
            [
                "action=load_test",
                "load.address=http://127.0.0.1:1",
                "security.keys_file=nowhere",
            ],
            "security.keys_file=nowhere: cannot be read: No such file",
        ),
        (["+models.bundles.mine=nowhere"], "models.bundles.mine=nowhere: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistake_is_one_sentence(start: StartJob, overrides: list[str], sentence: str):
    with start(*overrides) as job:
        assert job.refusal().startswith(sentence)


def test_port_in_use_is_refused(start: StartJob):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with start(f"serve.port={port}") as job:
            assert job.refusal() == (
                f"serve.host=127.0.0.1 serve.port={port}: Address already in use"
            )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("/dev/null", "storage.path=/dev/null: not writable: "),
        ("'~nobody-here/x'", "storage.path=~nobody-here/x: no such user"),
    ],
)
def test_small_models_need_a_directory(ray_tmpdir: Path, tmp_path: Path, value: str, sentence: str):
    overrides = ["serve.port=0", f"storage.path={value}"]
    with start_job("serve_fastapi", overrides, tmp_path) as job:
        assert job.refusal().startswith(sentence)


def test_short_key_is_refused(start: StartJob):
    with start(env={"SERVE_FASTAPI_KEYS": "secret"}) as job:
        assert job.refusal() == (
            "security.keys_env=SERVE_FASTAPI_KEYS: a key of 6 characters: must have at least 16"
        )


def test_damaged_bundle_is_refused(start: StartJob, bundles: dict[str, str], tmp_path: Path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles["digits"], damaged)
    with (damaged / "model.ubj").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    with start(f"+models.bundles.more={damaged}") as job:
        sentence = job.refusal()
    assert sentence.startswith(f"models.bundles.more={damaged}: ")
    assert sentence.endswith("model.ubj: its SHA-256 is not the one in bundle.json")


def test_bundle_of_something_else_is_refused(
    start: StartJob, bundles: dict[str, str], tmp_path: Path
):
    other = tmp_path / "other"
    shutil.copytree(bundles["trips"], other)
    content = json.loads((other / "bundle.json").read_text())
    content["model"]["label"] = "price"
    (other / "bundle.json").write_text(json.dumps(content))
    with start(f"+models.bundles.more={other}") as job:
        assert job.refusal() == (
            f"models.bundles.more={other}: bundle.json: a regression, but not of trips' durations"
        )


def test_load_test_of_nobody_fails(start: StartJob):
    address = f"load.address=http://127.0.0.1:{free_port()}"
    with start("action=load_test", address, "load.duration_s=0.5") as job:
        assert job.wait(60) == 1
    assert "no request was answered" in job.result()["error"]
    assert "Traceback" not in job.output()
