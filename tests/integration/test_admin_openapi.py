"""The admin API fuzzed from its own description: no 500, and no answer that it does not tell of."""

from __future__ import annotations

import os

import pytest
import requests
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.admin_world import open_admin
from tests.integration.batching import asks, batcher

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ORDER = ("get", "patch", "post", "delete")  # what is asked for by name is there until the end
SEED = 4
EXAMPLES = 6  # of each operation and mode; the variable FUZZ_TIMES multiplies them
LIMIT = 60  # seconds for all, on a machine that does nothing else
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


async def names_of(admin):
    """Make one of everything that a path can name."""
    work = batcher(admin.world)
    batch = await work.begin(asks(1))
    ended = (await work.ended(batch)).batch
    await admin.ask("POST", "/admins", {"name": "other", "role": "viewer"})
    await admin.ask("POST", "/webhooks", {"name": "hook", "url": "https://hooks.example/"})
    return {
        "tenant": "acme",
        "key": admin.world.key["id"],
        "model": "llama3.2",
        "file": ended["output_file_id"],
        "batch": batch,
        "admin": "other",
        "webhook": "hook",
        "request_id": "req_none",
        "session": "none",
    }


def fuzz(operation, names, address, token):
    """Ask one operation by names that are there, and by anything at all."""
    mine = {p.name: names[p.name] for p in operation.path_parameters}
    session = requests.Session()
    headers = {"authorization": f"Bearer {token}"}

    def check(strategy, examples):
        @settings(
            max_examples=examples * TIMES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @seed(SEED)
        @given(strategy)
        def every(case):
            answer = case.call(base_url=address, session=session, headers=headers)
            case.validate_response(answer, checks=CHECKS, headers=headers)

        every()

    asked = any(operation.iter_parameters()) or bool(operation.body)
    with session:
        named = operation.as_strategy(GenerationMode.POSITIVE, path_parameters=mine or None)
        check(named, EXAMPLES if asked else 1)
        if mine:
            check(operation.as_strategy(GenerationMode.POSITIVE), EXAMPLES // 3)
        if asked:
            negative = operation.as_strategy(GenerationMode.NEGATIVE, path_parameters=mine or None)
            check(negative, EXAMPLES)


# The listener runs in this process and draws random numbers while examples are being drawn.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
async def test_the_api_does_what_its_description_says(world):
    """Every operation, with what it allows and what it does not; nothing is a 500."""
    async with open_admin(world, webhook_hosts="hooks.example") as admin:
        names, token = await names_of(admin), await admin.token()
        document = (await admin.ask("GET", "/openapi.json")).json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        operations.sort(key=lambda each: ORDER.index(each.method.lower()))
        assert len(operations) == sum(map(len, document["paths"].values()))
        with trio.fail_after(LIMIT * 10 * TIMES):  # several builds may share the machine
            for operation in operations:
                await trio.to_thread.run_sync(
                    fuzz, operation, names, admin.base_url, token, abandon_on_cancel=True
                )
