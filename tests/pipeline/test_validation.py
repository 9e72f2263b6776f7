"""Validation over a real PostgreSQL and a folder of blobs: verdicts, leases, fences, waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import trio

from tests.pipeline.validation_desk import CHAT, MAX_LINE, Desk, open_desk
from trio_gateway.clients.postgres import Postgres
from trio_gateway.core.batches import Line, LineError, Status
from trio_gateway.core.errors import StoreUnavailable
from trio_gateway.services.batches.ending import Endings
from trio_gateway.services.batches.intake import Intake

COMPLETIONS, EMBEDDINGS = "/v1/completions", "/v1/embeddings"
MESSAGES = [{"role": "user", "content": "Hello"}]
SEVERAL = 4000  # lines: more than one group


@pytest.fixture
async def desk(postgres: Postgres, redis_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    with trio.fail_after(90):
        async with open_desk(postgres, redis_url, tmp_path / "blobs") as opened:
            yield opened


class Paused(Intake):
    """Lets a test stand behind the first group of lines, or in its place."""

    def __init__(self, postgres: Postgres, then: Callable[[], Awaitable[None]]) -> None:
        super().__init__(postgres)
        self.then: Callable[[], Awaitable[None]] | None = then

    async def add_lines(self, batch_id: Any, token: Any, lines: Any) -> bool:
        added = await super().add_lines(batch_id, token, lines)
        if self.then is not None:
            then, self.then = self.then, None
            await then()
        return added


def request(endpoint: str = CHAT, custom_id: str = "req-1", **changes: Any) -> dict[str, Any]:
    contents: dict[str, dict[str, Any]] = {
        CHAT: {"messages": MESSAGES},
        COMPLETIONS: {"prompt": "Hello"},
        EMBEDDINGS: {"input": "Hello"},
    }
    body = {"model": "llama3.2"} | contents[endpoint]
    return {"custom_id": custom_id, "method": "POST", "url": endpoint, "body": body} | changes


def without(shape: dict[str, Any], path: str) -> dict[str, Any]:
    *outer, name = path.split(".")
    del (shape["body"] if outer else shape)[name]
    return shape


def replaced(path: str, value: Any) -> dict[str, Any]:
    shape = request()
    *outer, name = path.split(".")
    (shape["body"] if outer else shape)[name] = value
    return shape


def jsonl(*shapes: Any) -> bytes:
    return b"".join(orjson.dumps(shape) + b"\n" for shape in shapes)


def many(lines: int) -> bytes:
    template = jsonl(request(custom_id="c-%d"))
    return b"".join(template % number for number in range(lines))


# ---- verdicts


async def test_a_good_file_lets_its_batch_begin(desk):
    """The lines are queued where they stand in the file, and the lease is given back."""
    content = b"\xef\xbb\xbf\r\n" + jsonl(request()) + b"\n" + jsonl(request(custom_id="é\u2028"))
    batch_id = await desk.validated(content)
    row = await desk.row(batch_id)
    assert (row["status"], row["total"], row["models"]) == ("in_progress", 2, ["llama3.2:latest"])
    assert (row["lease_token"], row["lease_until"], row["errors"]) == (None, None, None)
    assert row["created_at"] <= row["in_progress_at"]
    lines = await desk.lines(batch_id)
    assert [(line["line"], line["custom_id"]) for line in lines] == [(2, "req-1"), (4, "é\u2028")]
    for line in lines:
        text = await desk.blobs.read(row["input_blob"], line["start"], line["length"])
        assert orjson.loads(text)["custom_id"] == line["custom_id"]
        assert (line["state"], line["model"], line["attempts"]) == ("queued", "llama3.2:latest", 0)
    assert not await desk.validator().once()


async def test_many_lines_are_queued_in_groups_each_once(desk):
    """Several groups make one batch."""
    batch_id = await desk.validated(many(SEVERAL))
    numbers = [line["line"] for line in await desk.lines(batch_id)]
    assert numbers == list(range(1, SEVERAL + 1))
    assert (await desk.row(batch_id))["total"] == SEVERAL


async def test_a_file_that_is_not_there_cannot_be_found(desk):
    """One error, for the file as a whole."""
    batch_id = await desk.batch("nonexistent_file")
    assert await desk.validator().once()
    message = "Cannot find file nonexistent_file."
    assert await desk.errors(batch_id) == [("invalid_request", message, "input_file_id", None)]


MISSING, WRONG = "missing_required_parameter", "invalid_request"
FIELDS = ("custom_id", "method", "url", "body")
VERDICTS: dict[str, tuple[str, Any, tuple[str, str, str | None]]] = {
    **{
        f"{endpoint} without {name}": (
            endpoint,
            without(request(endpoint), name),
            (MISSING, f"Missing required parameter: {name}", name),
        )
        for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS)
        for name in FIELDS
    },
    **{
        f"{endpoint} without {name}": (
            endpoint,
            without(request(endpoint), f"body.{name}"),
            (WRONG, f"{name.capitalize()} parameter is required", f"body.{name}"),
        )
        for endpoint, names in {
            CHAT: ("model", "messages"),
            COMPLETIONS: ("model", "prompt"),
            EMBEDDINGS: ("model", "input"),
        }.items()
        for name in names
    },
    **{
        f"{path} is {value!r}": (CHAT, replaced(path, value), (WRONG, message, path))
        for path, value, message in (
            ("custom_id", 12345, "Custom_id must be a string"),
            ("url", 123, "URL must be a string"),
            ("method", ["POST"], "Method must be a string"),
            ("body", ["not", "valid"], "Body must be a JSON dictionary object"),
            ("body.model", 123, "Model must be a string"),
            ("body.messages", "invalid messages format", "Messages must be an array"),
        )
    },
    "another url": (
        CHAT,
        replaced("url", EMBEDDINGS),
        (
            "invalid_url",
            "URL provided for this request does not match the batch endpoint",
            "url",
        ),
    ),
    "an array": (
        CHAT,
        ["not", "a", "request", "object"],
        (WRONG, "Each line must be a JSON dictionary object", None),
    ),
    "streaming": (
        CHAT,
        replaced("body.stream", True),
        (
            "streaming_unsupported",
            "Streaming is not supported in batch processing",
            "body.stream",
        ),
    ),
    "too long": (
        CHAT,
        replaced("body.messages", ["x" * MAX_LINE]),
        (WRONG, "This line is longer than the limit of 100,000 bytes.", None),
    ),
    **{
        f"model {name}": (
            CHAT,
            replaced("body.model", name),
            (
                "model_not_found",
                f"Model '{name}' does not exist or is not supported by the Batch API.",
                "body.model",
            ),
        )
        # not there; there, but not this tenant's; no name at all
        for name in ("nonexistent-model", "secret", "a/b/c/d e")
    },
}


async def test_a_faulty_line_fails_the_batch_and_is_named(desk):
    """Code, words, param and line of the one fault; the good line before it is not queued."""
    found = {}
    for case, (endpoint, shape, _) in VERDICTS.items():
        batch_id = await desk.validated(jsonl(request(endpoint, "good"), shape), endpoint)
        found[case] = await desk.errors(batch_id)
    assert found == {case: [(*expected, 2)] for case, (*_, expected) in VERDICTS.items()}


async def test_a_line_that_is_not_json_is_named_by_its_physical_number(desk):
    """The good line does not run either: a file is taken whole or not at all."""
    batch_id = await desk.validated(jsonl(request()) + b"\n{invalid json")
    message = "This line is not parseable as valid JSON."
    assert await desk.errors(batch_id) == [("invalid_json_line", message, None, 3)]


async def test_one_line_may_have_several_faults(desk):
    """All are named, in line 1."""
    shape = {"method": "POST", "url": EMBEDDINGS, "body": {"messages": MESSAGES}}
    errors = await desk.errors(await desk.validated(jsonl(shape)))
    assert [(code, param, line) for code, _, param, line in errors] == [
        ("missing_required_parameter", "custom_id", 1),
        ("invalid_url", "url", 1),
        ("invalid_request", "body.model", 1),
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
async def test_a_file_without_requests_is_empty(desk, content):
    """It fails, and does not complete with nothing."""
    errors = await desk.errors(await desk.validated(content))
    assert [(code, param, line) for code, _, param, line in errors] == [("empty_file", None, None)]


async def test_a_repeated_custom_id_far_behind_the_first_fails_the_batch(desk):
    """Groups that were stored already are deleted again."""
    content = many(SEVERAL) + jsonl(request(custom_id="c-0"))
    errors = await desk.errors(await desk.validated(content))
    assert [(code, param, line) for code, _, param, line in errors] == [
        ("duplicate_custom_id", "custom_id", SEVERAL + 1)
    ]


async def test_errors_are_capped(desk):
    """A file of nothing but faults shows a hundred of them."""
    errors = await desk.errors(await desk.validated(b"x\n" * 1000))
    assert [line for *_, line in errors] == list(range(1, 101))


async def test_nul_in_a_callers_words_does_not_break_the_verdict(desk):
    """PostgreSQL's JSON has no NUL; the message shows a stand-in."""
    batch_id = await desk.validated(jsonl(replaced("body.model", "a\0b")))
    assert "'a\ufffdb'" in (await desk.errors(batch_id))[0][1]


# ---- files


@pytest.mark.parametrize("ruin", ["deleted", "expired", "blob gone"])
async def test_a_file_that_is_gone_cannot_be_found(desk, ruin):
    """Deleted, expired or lost before validation: the same words as for a random id."""
    file_id = await desk.file(jsonl(request()), lives=-1 if ruin == "expired" else 3600)
    if ruin == "deleted":
        await desk.postgres.fetch("UPDATE gateway.files SET deleted_at = now()")
    if ruin == "blob gone":
        await desk.blobs.delete(f"files/{desk.principals['acme'].tenant.id}/{file_id}")
    batch_id = await desk.batch(file_id)
    assert await desk.validator().once()
    expected = ("invalid_request", f"Cannot find file {file_id}.", "input_file_id", None)
    assert await desk.errors(batch_id) == [expected]


async def test_another_tenants_file_fails_as_a_random_id_does(desk):
    """Nothing but the id that the caller wrote differs, to the byte."""
    foreign = await desk.file(jsonl(request()), "other")
    random = "file-" + "f" * 24
    stored = []
    for file_id in (foreign, random):
        batch_id = await desk.batch(file_id)
        assert await desk.validator().once()
        row = await desk.row(batch_id)
        stored.append({name: row[name] for name in ("errors", "input_blob", "total", "models")})
    stored[0]["errors"] = stored[0]["errors"].replace(foreign, random)
    assert stored[0] == stored[1]


async def test_a_file_for_another_purpose_is_said_so(desk):
    """The caller's own file may be told about."""
    batch_id = await desk.batch(await desk.file(jsonl(request()), purpose="assistants"))
    assert await desk.validator().once()
    ((code, message, param, line),) = await desk.errors(batch_id)
    assert (code, param, line) == ("invalid_request", "input_file_id", None)
    assert "purpose 'batch'" in message


async def test_a_file_that_is_deleted_under_validation_stays_the_input(desk):
    """Once pinned, it is read to the end, also by the validator that takes over."""
    content = many(SEVERAL)
    file_id = await desk.file(content)
    batch_id = await desk.batch(file_id)
    assert await desk.intake.claim(uuid4(), 30, 20)
    assert (await desk.row(batch_id))["input_blob"].endswith(file_id)
    await desk.postgres.fetch("UPDATE gateway.files SET deleted_at = now()")
    await desk.lapse()
    assert await desk.validator().once()
    assert (await desk.row(batch_id))["status"] == "in_progress"


# ---- leases


async def test_a_validation_that_crashed_is_begun_anew(desk):
    """What it left behind is deleted; every line is there once."""
    batch_id = await desk.made(many(10))
    token = uuid4()
    await desk.intake.claim(token, 30, 20)
    leftover = [Line(number, f"old-{number}", "m", 0, 1) for number in (1, 2, 77)]
    assert await desk.intake.add_lines(batch_id, token, leftover)
    assert not await desk.validator().once()  # the lease still stands
    await desk.lapse()
    assert await desk.validator().once()
    lines = await desk.lines(batch_id)
    assert [line["custom_id"] for line in lines] == [f"c-{number}" for number in range(10)]


async def test_a_validator_that_was_overtaken_writes_nothing(desk):
    """No line, no beginning, no failure, no lease: the token in the row is another's."""
    batch_id = await desk.made(many(3))
    stale, token = uuid4(), uuid4()
    await desk.intake.claim(stale, 30, 20)
    await desk.lapse()
    await desk.intake.claim(token, 30, 20)
    before = await desk.row(batch_id)
    assert not await desk.intake.renew(batch_id, stale, 300)
    assert not await desk.intake.add_lines(batch_id, stale, [Line(1, "c", "m", 0, 1)])
    assert not await desk.intake.begin(batch_id, stale, 1, ["m"])
    assert not await desk.intake.fail(batch_id, stale, [LineError("x", "y")])
    await desk.intake.drop(batch_id, stale)
    assert (await desk.row(batch_id), await desk.lines(batch_id)) == (before, [])
    assert await desk.intake.renew(batch_id, token, 300)


async def test_a_validator_that_is_overtaken_midway_stops(desk):
    """It leaves the row to the one that took over, with that one's lines alone."""
    batch_id = await desk.made(many(SEVERAL))
    token = uuid4()

    async def overtake() -> None:
        await desk.lapse()
        assert await desk.intake.claim(token, 30, 20)

    assert await desk.validator(Paused(desk.postgres, overtake)).once()
    row = await desk.row(batch_id)
    assert (row["status"], row["lease_token"]) == ("validating", token)
    assert await desk.lines(batch_id) == []


@pytest.mark.parametrize("faulty", [False, True])
async def test_a_cancel_during_validation_wins(desk, faulty):
    """Good or bad, the file does not matter any more: nothing begins and nothing fails."""
    batch_id = await desk.made(many(SEVERAL) + (b"x" if faulty else b""))

    async def cancel() -> None:
        await desk.book.cancel_any(batch_id)

    assert await desk.validator(Paused(desk.postgres, cancel)).once()
    row = await desk.row(batch_id)
    assert (row["status"], row["lease_token"], row["errors"]) == ("cancelling", None, None)
    assert row["in_progress_at"] is None


async def test_a_batch_cancelled_under_validation_ends_without_requests(desk):
    """Lines that were queued already are no requests of a batch that never began."""
    batch_id = await desk.made(many(3))
    token = uuid4()
    await desk.intake.claim(token, 30, 20)
    await desk.intake.add_lines(batch_id, token, [Line(1, "c", "m", 0, 1)])
    await desk.book.cancel_any(batch_id)
    claimed = await Endings(desk.postgres, 30).claim()
    assert claimed is not None
    assert (claimed[0].id, claimed[0].status) == (batch_id, Status.CANCELLING)
    assert await desk.lines(batch_id) == []


async def test_a_lost_lease_stops_the_validator_wherever_it_stands(desk):
    """The renewal beside it hears of the loss; nobody waits for the rest."""
    batch_id = await desk.made(many(SEVERAL))

    async def cancel() -> None:
        await desk.book.cancel_any(batch_id)
        await trio.sleep_forever()

    assert await desk.validator(Paused(desk.postgres, cancel), lease=0.3).once()
    assert (await desk.row(batch_id))["status"] == "cancelling"


async def test_a_lease_is_renewed_while_the_work_goes_on(desk):
    """A validation may last longer than its lease; nobody takes it over."""
    batch_id = await desk.made(many(SEVERAL))

    async def wait_for_renewals() -> None:
        first = (await desk.row(batch_id))["lease_until"]
        while (await desk.row(batch_id))["lease_until"] <= first:  # noqa: ASYNC110 - a row
            await trio.sleep(0.05)

    assert await desk.validator(Paused(desk.postgres, wait_for_renewals), lease=4.5).once()
    assert (await desk.row(batch_id))["status"] == "in_progress"


async def test_a_shutdown_gives_the_lease_back_and_changes_no_status(desk):
    """Another worker goes on at once, from the beginning."""
    batch_id = await desk.made(many(SEVERAL))
    with trio.CancelScope() as shutdown:

        async def stop() -> None:
            shutdown.cancel()
            await trio.sleep_forever()

        await desk.validator(Paused(desk.postgres, stop)).once()
    assert shutdown.cancelled_caught
    row = await desk.row(batch_id)
    assert (row["status"], row["lease_token"], row["lease_until"]) == ("validating", None, None)
    assert await desk.validator().once()
    assert len(await desk.lines(batch_id)) == SEVERAL


async def test_several_validators_share_the_batches(desk):
    """Each batch is validated by one of them, and every one of them is."""
    ids = [await desk.made(many(20)) for _ in range(12)]

    async def work() -> None:
        while await desk.validator().once():
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
    for batch_id in ids:
        row = await desk.row(batch_id)
        assert (row["status"], row["total"], len(await desk.lines(batch_id))) == (
            "in_progress",
            20,
            20,
        )


# ---- whose turn it is


async def test_a_tenant_may_have_so_many_batches_under_way(desk):
    """Of three, two begin; the third begins when one of them has ended."""
    ids = [await desk.made(many(1)) for _ in range(3)]
    validator = desk.validator(tenant_batches=2)
    assert [await validator.once() for _ in range(3)] == [True, True, False]
    statuses = [(await desk.row(batch_id))["status"] for batch_id in ids]
    assert statuses == ["in_progress", "in_progress", "validating"]
    await desk.postgres.fetch(
        "UPDATE gateway.batches SET status = 'completed' WHERE id = $1", ids[0]
    )
    assert await validator.once()
    assert (await desk.row(ids[2]))["status"] == "in_progress"


async def test_a_validation_under_way_counts_and_a_lapsed_one_does_not(desk):
    """The bound is exact while validators work side by side."""
    for _ in range(2):
        await desk.made(many(1))
    assert await desk.intake.claim(uuid4(), 30, 1)
    assert await desk.intake.claim(uuid4(), 30, 1) is None
    await desk.lapse()
    assert await desk.intake.claim(uuid4(), 30, 1)


async def test_the_tenant_with_the_fewest_batches_under_way_is_next(desk):
    """A tenant that came late with one batch does not wait behind another's many."""
    first = [await desk.made(many(1)) for _ in range(3)]
    late = await desk.made(many(1), "other")
    order = []
    for _ in range(4):
        found, _ = await desk.intake.claim(uuid4(), 30, 20)
        order.append(found.id)
    assert order == [first[0], late, first[1], first[2]]


async def test_a_batch_whose_window_is_over_is_not_begun(desk):
    """It expires instead."""
    batch_id = await desk.made(many(1))
    await desk.postgres.fetch("UPDATE gateway.batches SET expires_at = now()")
    assert not await desk.validator().once()
    assert (await desk.row(batch_id))["status"] == "validating"


# ---- waits and breakdowns


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another task's state, without an event
        await trio.sleep(0.01)


async def test_validation_waits_while_the_catalog_is_unknown(desk):
    """A model that is not seen may be there: no batch fails for it."""
    batch_id = await desk.made(many(1))
    (backend,) = desk.backends
    models = desk.backends[backend]
    await desk.lose(backend)
    assert not await desk.validator().once()
    assert (await desk.row(batch_id))["lease_token"] is None
    desk.backends[backend] = models
    await until(lambda: desk.catalog.complete)
    assert await desk.validator().once()
    assert (await desk.row(batch_id))["status"] == "in_progress"


async def test_a_catalog_that_is_lost_midway_fails_no_batch(desk):
    """The batch waits until its lease is over, and others go on meanwhile."""
    batch_id = await desk.made(many(SEVERAL))
    (backend,) = desk.backends

    async def lose() -> None:
        await desk.lose(backend)

    assert await desk.validator(Paused(desk.postgres, lose)).once()
    row = await desk.row(batch_id)
    assert (row["status"], row["lease_token"] is None) == ("validating", False)
    assert not await desk.validator().once()


async def test_a_silent_backend_holds_up_only_what_it_may_have(postgres, redis_url, tmp_path):
    """A batch goes on whose models others have; one that names another waits, and then fails."""
    silent = "http://validation-silent:1"
    with trio.fail_after(90):
        async with open_desk(postgres, redis_url, tmp_path / "blobs", silent) as desk:
            assert not desk.catalog.complete
            waits = await desk.made(jsonl(replaced("body.model", "llama3.3")))
            goes_on = await desk.made(many(1))
            validator = desk.validator()
            assert await validator.once()
            assert await validator.once()
            assert (await desk.row(waits))["status"] == "validating"
            assert (await desk.row(goes_on))["status"] == "in_progress"
            desk.backends[silent] = ["qwen3:8b"]
            await until(lambda: desk.catalog.complete)
            await desk.lapse()
            assert await validator.once()
            ((code, _, param, line),) = await desk.errors(waits)
            assert (code, param, line) == ("model_not_found", "body.model", 1)


async def test_a_revoked_key_leaves_the_judgment_to_the_lines(desk):
    """Any model that could be one passes, and each line will be refused for the key."""
    content = jsonl(
        request(), replaced("custom_id", "2") | {"body": {"model": "z", "messages": []}}
    )
    good, bad = await desk.made(content), await desk.made(jsonl(replaced("body.model", "//")))
    key_id = desk.principals["acme"].key.id
    await desk.postgres.fetch("INSERT INTO gateway.revocations (key_id) VALUES ($1)", key_id)
    for _ in range(2):
        assert await desk.validator().once()
    row = await desk.row(good)
    assert (row["status"], row["models"]) == ("in_progress", ["llama3.2:latest", "z:latest"])
    assert (await desk.errors(bad))[0][0] == "model_not_found"


async def test_the_models_of_a_revoked_keys_batch_are_bounded(desk):
    """Names that nobody checked do not become thousands of queues."""
    shapes = [
        request(custom_id=str(n), body={"model": f"m{n}", "messages": []}) for n in range(300)
    ]
    batch_id = await desk.made(jsonl(*shapes))
    key_id = desk.principals["acme"].key.id
    await desk.postgres.fetch("INSERT INTO gateway.revocations (key_id) VALUES ($1)", key_id)
    assert await desk.validator().once()
    row = await desk.row(batch_id)
    assert (row["total"], len(row["models"])) == (300, 64)
    assert {line["model"] for line in await desk.lines(batch_id)} == set(row["models"])


async def test_a_store_that_fails_midway_lets_the_batch_wait(desk):
    """The lease is given back, and the next attempt begins anew."""
    batch_id = await desk.made(many(SEVERAL))

    async def fail() -> None:
        raise StoreUnavailable

    assert not await desk.validator(Paused(desk.postgres, fail)).once()
    row = await desk.row(batch_id)
    assert (row["status"], row["lease_token"]) == ("validating", None)
    assert await desk.validator().once()
    assert len(await desk.lines(batch_id)) == SEVERAL


async def test_a_breakdown_fails_the_batch_and_no_worker(desk, capsys):
    """Something unforeseen ends in internal_error, once, not in an endless loop."""
    batch_id = await desk.made(many(SEVERAL))

    async def break_down() -> None:
        raise RuntimeError("unforeseen")

    assert await desk.validator(Paused(desk.postgres, break_down)).once()
    ((code, message, param, line),) = await desk.errors(batch_id)
    assert (code, param, line) == ("internal_error", None, None)
    assert "unforeseen" not in message
    assert not await desk.validator().once()
    assert "batch_validation_broke" in capsys.readouterr().out
