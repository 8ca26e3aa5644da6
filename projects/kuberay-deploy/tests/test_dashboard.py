"""What is no dashboard, what is shipped, and what is read out of a log."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from kuberay_deploy import dashboard, deploy
from kuberay_deploy.outcome import JobLog
from ray_shared.errors import UserError
from ray_shared.report import RESULT_LINE
from ray_shared.testing import free_port


@pytest.mark.parametrize("wrong", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "auto"])
def test_address_of_something_else_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=f"cluster.address={wrong}: must be the address of a Ray"):
        dashboard.connect(wrong)


def test_address_without_a_dashboard_is_named() -> None:
    with pytest.raises(UserError, match=r"no dashboard answers there \(Connection refused\)"):
        dashboard.connect(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("code", "body"), [(404, b"no"), (200, b"<html>"), (200, b"{}"), (500, b"oh"), (302, b"")]
)
def test_server_of_another_kind_is_named(code: int, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with pytest.raises(UserError, match="what answers there is no dashboard of Ray"):
            dashboard.connect(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert dashboard.locate("kuberay_deploy").name == "kuberay_deploy"
    with pytest.raises(UserError, match="no_such_package: no such package in this environment"):
        dashboard.locate("no_such_package")
    with pytest.raises(UserError, match=f"torch_ddp_train: no such package in {tmp_path}"):
        dashboard.locate("torch_ddp_train", tmp_path)


@pytest.mark.parametrize(
    "override",
    ["cluster=local", "cluster.address=1.2.3.4:6379", "hydra.run.dir=/tmp", "+cluster=x"],
)
def test_override_of_what_submitting_sets_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="submitting a job sets"):
        deploy.entrypoint("torch_ddp_train", ["train.epochs=1", override])


def test_command_leaves_the_overrides_as_they_are() -> None:
    command = deploy.entrypoint("a", ["x='$HOME; echo it'", "cluster.autoscaling=true"])
    assert "python -m a 'x='\"'\"'$HOME; echo it'\"'\"'' cluster.autoscaling=true " in command


def test_log_is_whole_lines_each_once_and_keeps_the_result_for_itself() -> None:
    text = f'one\ntwo\n{RESULT_LINE}{{"status": "ok"}}\nthree\nlast'
    for cut in range(len(text) + 1):
        for again in range(cut + 1):  # A new connection starts at the first line, or before.
            written: list[str] = []
            log = JobLog(written.append)
            log.add(0, text[:cut])
            log.add(0, text[:again])
            log.add(again, text[again:])
            log.flush()
            assert written == ["one\n", "two\n", "three\n", "last\n"]
            assert log.result == {"status": "ok"}


@pytest.mark.parametrize("torn", ['{"status": ', "[1]", "", "somebody else's"])
def test_line_with_the_marker_that_holds_no_result_is_text(torn: str) -> None:
    written: list[str] = []
    log = JobLog(written.append)
    log.add(0, f'{RESULT_LINE}{{"status": "ok"}}\n{RESULT_LINE}{torn}\n')
    assert log.result == {"status": "ok"}
    assert written == [f"{RESULT_LINE}{torn}\n"]
