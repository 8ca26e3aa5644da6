"""Serve's configuration with overrides of its command."""

import pytest
from kuberay_deploy import serve_config
from ray.serve.schema import ServeDeploySchema
from ray_shared.errors import UserError


def test_is_what_ray_serve_takes():
    content = serve_config.content("/mnt/runs", ["batch.max_rows=256", "limits.deadline_s=3"])
    (application,) = ServeDeploySchema(**content).applications
    assert application.import_path == "serve_fastapi.app:build"
    assert application.args["batch"]["max_rows"] == 256
    assert application.args["limits"]["deadline_s"] == 3.0
    assert application.args["storage"]["path"] == "/mnt/runs"


def test_address_follows_its_keys():
    content = serve_config.content("/x", ["serve.port=9000", "serve.host=127.0.0.1"])
    assert content["http_options"] == {"host": "127.0.0.1", "port": 9000}


def test_bundles_have_names_of_the_users_choice():
    content = serve_config.content("/x", ["+models.bundles.mine=s3://bucket/bundle"])
    (application,) = content["applications"]
    assert application["args"]["models"]["bundles"] == {"mine": "s3://bucket/bundle"}


def test_every_variable_has_a_value():
    variables = serve_config.variables()
    assert variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert variables["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response"
    assert all(variables.values())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("scale.fused=yes please", "must be true or false"),
        ("scale.fused=1", "must be true or false"),
        ("limits.max_rows=true", "must be an integer"),
        ("limits.max_rows=1.5", "must be an integer"),
        ("scale.ingress=3", "must be keys below it"),
        ("scale.ingres.max=3", "did you mean scale.ingress.max?"),
        ("front=python", "has no key front"),
        ("scale.fused", "must be key=value"),
    ],
)
def test_wrong_override_is_refused(override: str, sentence: str):
    with pytest.raises(UserError, match=r"^overrides: ") as error:
        serve_config.content("/x", [override])
    assert sentence in str(error.value)
