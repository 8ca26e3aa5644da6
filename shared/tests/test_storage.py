"""One rule for paths; and a probe that proves what it says and leaves nothing."""

import os
import pickle
import re
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import fs
from ray_shared import s3
from ray_shared.errors import UserError
from ray_shared.storage import Storage, open_storage, probe
from ray_shared.testing import free_port
from ray_shared.testing_s3 import S3Server

BUCKET = "tests"


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Server:
    s3_server.create_bucket(BUCKET)
    return s3_server


def keys_in(server: S3Server, bucket: str) -> str:
    """The server's own list of the bucket, as XML."""
    with urllib.request.urlopen(f"{server.endpoint}/{bucket}?list-type=2", timeout=10) as answer:
        return str(answer.read().decode())


def refusal(path: str) -> str:
    with pytest.raises(UserError) as caught:
        probe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"storage.path={path}: ")
    return message


def during_an_outage(server: S3Server, seconds: float, action: Callable[[], None]) -> None:
    """Starts `action` with the server gone; it must outlast the outage and then succeed."""
    with ThreadPoolExecutor(1) as pool:
        with server.gone():
            future = pool.submit(action)
            time.sleep(seconds)  # The length of the outage.
            assert not future.done(), "the outage was not met"
        future.result(timeout=60)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_local_directory_is_written_and_read_back(tmp_path: Path, scheme: str):
    storage = open_storage(f"{scheme}{tmp_path}/runs")
    assert storage.path == f"{tmp_path}/runs"
    file = storage.child("a").child("b.json")
    assert not file.exists()
    file.write_bytes(b"content")
    assert file.exists()
    assert file.read_bytes() == b"content"
    assert (tmp_path / "runs" / "a" / "b.json").read_bytes() == b"content"


def test_relative_path_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert open_storage("./runs").path == str(tmp_path / "runs")
    open_storage("runs").child("x").write_bytes(b"1")
    assert (tmp_path / "runs" / "x").exists()


def test_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/runs").path == str(tmp_path / "runs")


def test_directory_is_uploaded_and_downloaded(tmp_path: Path):
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "x").write_bytes(b"1")
    storage = open_storage(str(tmp_path / "store"))
    storage.child("copy").upload(tmp_path / "from")
    storage.child("copy").download(tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "x").read_bytes() == b"1"


def check_names_and_deletion(run: Storage) -> None:
    assert run.names() == []
    for version in (b"old", b"new"):
        run.child("b").write_atomically(version)
    run.child("a").child("inside").write_bytes(b"x")
    assert run.names() == ["a", "b"]  # And no part of a file.
    assert run.child("b").read_bytes() == b"new"
    run.child("a").delete()
    run.child("b").delete()
    assert run.names() == []


def test_local_files_are_replaced_listed_and_deleted(tmp_path: Path):
    check_names_and_deletion(open_storage(str(tmp_path / "run")))


@pytest.mark.parametrize("path", ["ftp://host/x", "S3://bucket", "http://host/x"])
def test_unknown_scheme_is_refused_with_the_known_ones(path: str):
    allowed = "must be a local path or start with s3://, gs://, abfs://, abfss://"
    assert refusal(path) == f"storage.path={path}: {allowed}"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_probe_leaves_no_new_directory(tmp_path: Path, scheme: str):
    probe(f"{scheme}{tmp_path}/runs/deep")
    assert list(tmp_path.iterdir()) == []


def test_probe_leaves_a_directory_that_was_there_as_it_was(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    probe(str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_path_below_a_file_is_not_writable(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "not writable: " in refusal(f"{tmp_path}/file/runs")


def test_storage_that_gives_back_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Storage, "read_bytes", lambda self: b"something else")
    assert "what was written is not what is read back" in refusal(str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_azure_without_its_package_or_account_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("AZURE_STORAGE_")]:
        monkeypatch.delenv(name)
    assert "cannot be opened: " in refusal("abfs://container/x")


def test_google_without_usable_credentials_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert "not writable: " in refusal("gs://bucket/x")


def test_s3_probe_passes_and_leaves_at_most_the_markers_of_directories(bucket: S3Server):
    bucket.create_bucket("empty")
    probe("s3://empty/runs/deep")
    left = set(re.findall("<Key>(.*?)</Key>", keys_in(bucket, "empty")))
    assert left <= {"runs/", "runs/deep/"}


def test_s3_object_is_written_and_read_back(bucket: S3Server):
    storage = open_storage(f"s3://{BUCKET}/a/")
    assert (storage.path, storage.uri) == (f"{BUCKET}/a", f"s3://{BUCKET}/a")
    file = storage.child("b.json")
    assert not file.exists()
    file.write_bytes(b"content")
    assert file.exists()
    assert open_storage(file.uri).read_bytes() == b"content"
    assert "<Key>a/b.json</Key>" in keys_in(bucket, BUCKET)


def test_s3_objects_are_replaced_listed_and_deleted(bucket: S3Server):
    check_names_and_deletion(open_storage(f"s3://{BUCKET}/run"))


def test_s3_directory_is_uploaded_and_downloaded(bucket: S3Server, tmp_path: Path):
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "x").write_bytes(b"1" * 100_000)
    storage = open_storage(f"s3://{BUCKET}/up")
    storage.upload(tmp_path / "from")
    storage.download(tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "x").read_bytes() == b"1" * 100_000


def test_s3_bucket_that_is_missing_is_refused(bucket: S3Server):
    assert "Bucket 'missing' not found" in refusal("s3://missing/runs")


def test_s3_endpoint_that_is_unreachable_is_refused_soon(
    bucket: S3Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    assert "not writable: " in refusal(f"s3://{BUCKET}/runs")
    assert time.monotonic() - started < 10


def test_s3_endpoint_that_is_malformed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "ftp://127.0.0.1")
    assert "Invalid S3 connection scheme 'ftp'" in refusal("s3://bucket/runs")


def test_s3_write_survives_an_outage_of_three_seconds(bucket: S3Server):
    file = open_storage(f"s3://{BUCKET}/outage").child("x")
    during_an_outage(bucket, 3, lambda: file.write_bytes(b"content"))
    assert file.read_bytes() == b"content"


def test_s3_retries_survive_pickling(bucket: S3Server):
    file: Storage = pickle.loads(pickle.dumps(open_storage(f"s3://{BUCKET}/pickled").child("x")))
    endpoint = bucket.endpoint.removeprefix("http://")
    plain = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    other = Storage(plain, f"{BUCKET}/plain/x", "")
    with ThreadPoolExecutor(1) as pool:
        futures = []

        def write() -> None:
            futures.append(pool.submit(other.write_bytes, b"content"))
            file.write_bytes(b"content")

        during_an_outage(bucket, 6, write)
        # The outage was one that pyarrow's own number of tries does not bridge.
        assert isinstance(futures[0].exception(timeout=0), OSError)
    assert file.read_bytes() == b"content"
    assert not other.exists()


def test_s3_probe_gives_up_sooner_than_the_job(monkeypatch: pytest.MonkeyPatch):
    tries: list[int] = []
    from_environment = s3.from_environment

    def spy(max_attempts: int) -> s3.RetryingS3FileSystem:
        tries.append(max_attempts)
        return from_environment(max_attempts)

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(s3, "from_environment", spy)
    refusal("s3://bucket/runs")
    open_storage("s3://bucket/runs")
    assert tries[0] < tries[1]
