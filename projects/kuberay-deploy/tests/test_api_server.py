"""Which API server is asked, and what is said if it does not answer, or not to us."""

from pathlib import Path

import pytest
from kuberay_deploy import api_server
from ray_shared.errors import UserError
from ray_shared.testing import free_port

from .fake_api import FakeApi, fake, serve, write_kubeconfig

__all__ = ["fake"]


def refusal_of_connect(context: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        api_server.connect(context)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_context_that_is_not_there_is_refused(fake: FakeApi) -> None:
    assert refusal_of_connect("tset") == "kubernetes.context=tset: must be one of test"


def test_kubeconfig_without_a_current_context_is_refused(fake: FakeApi) -> None:
    write_kubeconfig(fake, current="")
    assert "kubernetes.context=null: must be one of test" in refusal_of_connect()
    assert api_server.connect("test").namespace == "default"


def test_missing_kubeconfig_is_named(fake: FakeApi) -> None:
    fake.kubeconfig.unlink()
    assert str(fake.kubeconfig) in refusal_of_connect()


def test_unreachable_server_is_named(fake: FakeApi) -> None:
    address = f"https://127.0.0.1:{free_port()}"
    write_kubeconfig(fake, "test", address=address)
    refusal = refusal_of_connect()
    assert "kubernetes.context=test: the API server does not answer (Connection ref" in refusal
    assert address in refusal


def test_untrusted_server_is_named(fake: FakeApi, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with serve(other):
        fake.kubeconfig.with_name("ca.pem").write_bytes((other / "ca.pem").read_bytes())
    assert "certificate verify failed" in refusal_of_connect()


def test_server_of_another_kind_is_named(fake: FakeApi) -> None:
    fake.is_other = True
    assert "kubernetes.context=test: what answers at" in refusal_of_connect()


def test_kubeconfig_that_is_named_wins_inside_a_pod(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(free_port()))
    assert api_server.connect().client.configuration.host == fake.address
    monkeypatch.delenv("KUBECONFIG")
    refusal = refusal_of_connect()
    assert refusal.startswith("this pod's cluster: no service account to use (Service token file")


def test_wrong_token_is_refused(fake: FakeApi) -> None:
    write_kubeconfig(fake, "test", token="of somebody else")
    assert "kubernetes.context=test: the API server refuses these cred" in refusal_of_connect()
