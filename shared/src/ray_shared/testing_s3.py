"""For tests: a real S3 server that can be cut off.

A `conftest.py` imports the fixture: `from ray_shared.testing_s3 import s3_server`.
"""

import contextlib
import os
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from ray_shared.testing import free_port, wait_for


class S3Server:
    """moto's S3 server in a process of its own, behind a TCP proxy that can cut the line."""

    def __init__(self, moto_server: str):
        self._port = free_port()
        self._process = subprocess.Popen(
            [moto_server, "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        try:
            wait_for(self._answers, "answer from moto's server", 60)
            self._listen()
        except BaseException:  # Nobody else knows of the process yet.
            self.close()
            raise

    def create_bucket(self, name: str) -> None:
        """Makes an empty bucket."""
        url = f"http://127.0.0.1:{self._port}/{name}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """For the length of the block connections break and new ones are refused."""
        self._stop_listening()
        try:
            yield
        finally:
            self._listen()

    def close(self) -> None:
        """Stops the proxy and the server."""
        self._stop_listening()
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/moto-api/", timeout=1).close()
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # Wakes up `accept`.
            self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # moto is gone: its client hears it now, and the next one too.
                client.close()
                continue
            for source, target in ((client, server), (server, client)):
                self._connections.add(source)
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(content)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        self._connections.discard(source)
        source.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server; `AWS_*` point to it for the length of the session."""
    assert "MOTO_SERVER" in os.environ, "set MOTO_SERVER to moto's server, as the nox sessions do"
    server = S3Server(os.environ["MOTO_SERVER"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        yield server
    server.close()
