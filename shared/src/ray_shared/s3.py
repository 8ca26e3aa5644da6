"""S3 through pyarrow, with retries that also hold in the workers."""

import os
from typing import Any

from pyarrow import fs

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 30


class RetryingS3FileSystem(fs.S3FileSystem):  # type: ignore[misc] # pyarrow has no types
    """An `S3FileSystem` that keeps its number of tries when it is pickled.

    pyarrow leaves the retry strategy out of the pickle, so a worker or the Train controller would
    go back to three tries, which an outage of a second uses up, and the run would be lost.
    Endpoint and region travel along; credentials come from each process's environment.
    """

    def __init__(self, max_attempts: int, scheme: str, endpoint: str | None, region: str | None):
        self._args = (max_attempts, scheme, endpoint, region)
        super().__init__(
            endpoint_override=endpoint,
            scheme=scheme,
            region=region,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=max_attempts),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryingS3FileSystem, self._args


def from_environment(max_attempts: int) -> RetryingS3FileSystem:
    """The S3 that `AWS_ENDPOINT_URL` and `AWS_REGION` name; default: Amazon's."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, separator, host = url.rstrip("/").partition("://")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not separator:
        return RetryingS3FileSystem(max_attempts, "https", url or None, region)
    return RetryingS3FileSystem(max_attempts, scheme, host, region)
