"""Requests made at random from the application's own OpenAPI page: no answer of 500 and more.

The answers must also be what that page promises: a status that it names, in the form it gives.
"""

from collections import Counter

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Server

load_all_checks()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize(
    "num_requests",
    [500, pytest.param(10_000, marks=[pytest.mark.fault, pytest.mark.timeout(1800)])],
    ids=lambda n: str(n),
)
def test_no_request_is_an_error_of_the_server(served: Server, num_requests: int):
    schema = schemathesis.openapi.from_url(f"{served.address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    posted = [operation for operation in operations if operation.method == "post"]
    assert len(posted) == 5
    statuses = Counter[int]()
    with requests.Session() as session:
        for operation in operations:
            # A route without a body has little that could be wrong.
            few = operation.method != "post"
            modes = [GenerationMode.POSITIVE] if few else list(GenerationMode)
            for mode in modes:
                number = 5 if few else num_requests // len(posted) // len(modes)
                cases = operation.as_strategy(generation_mode=mode)

                @given(case=cases)
                @settings(
                    max_examples=number,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def check(case: schemathesis.Case) -> None:
                    answer = case.call(session=session)
                    case.validate_response(answer, checks=CHECKS)
                    statuses[answer.status_code] += 1

                check()
    assert sum(statuses.values()) >= 0.9 * num_requests, statuses
    # It got through to the models, and was refused, both many times.
    assert statuses[200] > num_requests / 50, statuses
    assert statuses[422] > num_requests / 10, statuses
