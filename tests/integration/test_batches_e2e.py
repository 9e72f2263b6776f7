"""Batches from upload to result, with the official client: llama-stack's tests in our words.

The one difference: a result's `body` is an object, as OpenAI has it, and no string.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import openai
import pytest
import trio

from tests.integration.batching import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    FIRST_POLL,
    LONGEST_POLL,
    MODEL,
    TERMINAL,
    Results,
    agree,
    ask,
    batcher,
    jsonl,
)
from tests.world import open_world
from trio_gateway.simulator.script import Script

PATIENCE = 60  # seconds for a small batch to end
LIMIT = 180  # seconds for a whole test
EMBEDDER = "nomic-embed-text"
METADATA = {"test": "true", "priority": "high"}


class Batches:
    """The official client, its calls in threads; `sent` is what it sent."""

    def __init__(self, base_url: str, key: Any) -> None:
        self.sent: list[Any] = []
        self.sdk = openai.OpenAI(
            base_url=f"{base_url}/v1",
            api_key=key["key"],
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self.sent.append]}),
        )

    async def call(self, act: Any, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        return await trio.to_thread.run_sync(partial(act, *args, **kwargs))

    async def upload(self, lines: list[Any]) -> Any:
        """Store lines as a file."""
        file = ("batch.jsonl", jsonl(lines))
        return await self.call(self.sdk.files.create, file=file, purpose="batch")

    async def create(self, file_id: str, endpoint: str = CHAT, **more: Any) -> Any:
        """Create a batch of a file."""
        return await self.call(
            self.sdk.batches.create,
            input_file_id=file_id,
            endpoint=endpoint,
            completion_window="24h",
            **more,
        )

    async def begin(self, lines: list[Any], endpoint: str = CHAT) -> Any:
        """Upload lines and create a batch of them."""
        return await self.create((await self.upload(lines)).id, endpoint)

    async def ended(self, batch_id: str) -> Any:
        """Wait for the end of a batch."""
        pause = FIRST_POLL
        with trio.fail_after(PATIENCE):
            while True:
                batch = await self.call(self.sdk.batches.retrieve, batch_id)
                if batch.status in TERMINAL:
                    return batch
                await trio.sleep(pause)
                pause = min(LONGEST_POLL, pause * 2)

    async def content(self, file_id: str | None) -> bytes | None:
        """Download a file, None where there is none."""
        if file_id is None:
            return None
        content: bytes = (await self.call(self.sdk.files.content, file_id)).content
        return content

    async def run(self, lines: list[Any], endpoint: str = CHAT) -> Results:
        """Run lines to the end; return both files, checked."""
        return await self.results(await self.begin(lines, endpoint))

    async def results(self, batch: Any) -> Results:
        """Wait for the end of a batch; return both files, checked."""
        found = await self.ended(batch.id)
        return agree(
            found.model_dump(),
            await self.content(found.output_file_id),
            await self.content(found.error_file_id),
        )

    async def errors(self, lines: list[Any], endpoint: str = CHAT) -> list[Any]:
        """Return why lines cannot be a batch: nothing of it may have run."""
        batch = await self.ended((await self.begin(lines, endpoint)).id)
        assert (batch.status, batch.errors.object) == ("failed", "list")
        assert batch.failed_at >= batch.created_at
        assert (batch.in_progress_at, batch.output_file_id, batch.error_file_id) == (None,) * 3
        assert batch.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
        found: list[Any] = batch.errors.data
        return found


@pytest.fixture
async def site(database, redis_url):
    async with open_world(database, redis_url) as world:
        with trio.fail_after(LIMIT):
            yield world


@pytest.fixture
def batches(site):
    made = Batches(site.base_url, site.key)
    yield made
    made.sdk.close()


def completion(custom_id: str, **body: Any) -> dict[str, Any]:
    """Return a line that asks to complete a prompt."""
    line = ask(custom_id) | {"url": COMPLETIONS}
    return line | {"body": {"model": MODEL, "prompt": "one two", "max_tokens": 20} | body}


def embedding(custom_id: str, given: Any) -> dict[str, Any]:
    """Return a line that asks for embeddings."""
    return ask(custom_id) | {"url": EMBEDDINGS, "body": {"model": EMBEDDER, "input": given}}


# What works


async def test_batch_creation_and_retrieval(batches):
    """What was asked for is echoed, and is the same when it is looked at later."""
    file = await batches.upload([ask("batch-1")])
    batch = await batches.create(file.id, metadata=METADATA)
    later = await batches.call(batches.sdk.batches.retrieve, batch.id)
    for seen in (batch, later):
        assert (seen.id, seen.object, seen.endpoint) == (batch.id, "batch", CHAT)
        assert (seen.input_file_id, seen.completion_window) == (file.id, "24h")
        assert seen.metadata == METADATA
        assert seen.created_at == batch.created_at
    assert batch.status == "validating"
    assert (await batches.ended(batch.id)).status == "completed"


async def test_batch_listing(batches):
    """Both batches are listed, although their files are deleted at once."""
    made = []
    for name in ("listing-1", "listing-2"):
        file = await batches.upload([ask(name)])
        made.append((await batches.create(file.id)).id)
        deleted = await batches.call(batches.sdk.files.delete, file.id)
        assert (deleted.id, deleted.deleted) == (file.id, True)
    page = await batches.call(batches.sdk.batches.list)
    assert [batch.id for batch in page.data] == made[::-1]
    for batch_id in made:
        # deleted before it was pinned, or after: either is a clean end
        batch = await batches.ended(batch_id)
        assert batch.status == "completed" or "Cannot find file" in batch.errors.data[0].message


async def test_batch_immediate_cancellation(site, batches):
    """Cancelling at once is accepted, and ends in `cancelled`."""
    site.sim.play(Script(tokens=9, token_gap=60))
    batch = await batches.begin([ask("cancel-1")])
    cancelled = await batches.call(batches.sdk.batches.cancel, batch.id)
    assert cancelled.status in {"cancelling", "cancelled"}
    assert cancelled.cancelling_at >= batch.created_at
    found = (await batches.results(batch)).batch
    assert found["status"] == "cancelled"
    assert found["cancelled_at"] >= found["cancelling_at"] == cancelled.cancelling_at


async def test_batch_e2e_chat_completions(batches):
    """A good line and one whose message has no role: one result in each file."""
    wrong = ask("error-1", messages=[{"rolez": "user", "contentz": "This should fail"}])
    found = await batches.run([ask("success-1", max_tokens=20), wrong])
    assert found.batch["status"] == "completed"
    assert found.batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    response = found.output["success-1"]["response"]
    assert response["status_code"] == 200
    assert response["body"]["choices"][0]["message"]["content"] == "Echo: one two three"
    error = found.errors["error-1"]
    assert error["error"]["code"] == error["response"]["body"]["error"]["code"]
    assert error["response"]["status_code"] == 400
    for file_id in (found.batch["output_file_id"], found.batch["error_file_id"]):
        assert (await batches.call(batches.sdk.files.delete, file_id)).deleted
        with pytest.raises(openai.NotFoundError):
            await batches.call(batches.sdk.files.content, file_id)


async def test_batch_e2e_completions(batches):
    """The legacy route."""
    found = await batches.run([completion("text-1")], COMPLETIONS)
    assert (found.batch["status"], found.batch["error_file_id"]) == ("completed", None)
    assert found.batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    body = found.output["text-1"]["response"]["body"]
    assert body["choices"][0]["text"] == "Echo: one two"


async def test_batch_e2e_embeddings(batches):
    """A string and an array of three: one and three embeddings, numbered."""
    lines = [embedding("one", "hello"), embedding("three", ["a", "b c", "d"])]
    found = await batches.run(lines, EMBEDDINGS)
    assert found.batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    for name, count in (("one", 1), ("three", 3)):
        body = found.output[name]["response"]["body"]
        assert [item["index"] for item in body["data"]] == list(range(count))
        assert all(len(item["embedding"]) == 768 for item in body["data"])


async def test_results_have_the_lines_of_upstream_and_the_sums_of_usage(site, batches):
    """Every line's usage adds up to the batch's, and all times are there in their order."""
    found = await batches.run([ask(f"c{number}", "one " * number) for number in range(1, 12)])
    batch = found.batch
    assert list(found.output) == [f"c{number}" for number in range(1, 12)]
    usages = [line["response"]["body"]["usage"] for line in found.output.values()]
    assert batch["usage"]["input_tokens"] == sum(each["prompt_tokens"] for each in usages)
    assert batch["usage"]["output_tokens"] == sum(each["completion_tokens"] for each in usages)
    assert batch["usage"]["total_tokens"] == sum(each["total_tokens"] for each in usages)
    times = [batch[name] for name in ("created_at", "in_progress_at", "finalizing_at")]
    assert sorted([*times, batch["completed_at"]]) == [*times, batch["completed_at"]]
    assert (batch["model"], batch["errors"], batch["paused"]) == ("llama3.2:latest", None, None)
    rows = {row["request_id"]: row for row in await site.ledger()}
    assert {row["batch_id"] for row in rows.values()} == {batch["id"]}
    for line in found.output.values():
        row = rows.pop(line["response"]["request_id"])
        assert row["completion_tokens"] == line["response"]["body"]["usage"]["completion_tokens"]
    assert not rows


async def test_output_files_are_files_of_the_tenant(batches):
    """Their purpose, names and sizes; they go after as long as was asked."""
    file = await batches.upload([ask("good"), ask("bad", messages=[{"role": "nobody"}])])
    kept = {"anchor": "created_at", "seconds": 3600}
    found = await batches.results(await batches.create(file.id, output_expires_after=kept))
    for name in ("output", "error"):
        file_id = found.batch[f"{name}_file_id"]
        stored = await batches.call(batches.sdk.files.retrieve, file_id)
        assert stored.purpose == "batch_output"
        assert stored.filename == f"{found.batch['id']}_{name}.jsonl"
        assert stored.bytes == len(await batches.content(file_id))
        assert stored.expires_at == stored.created_at + 3600


async def test_a_file_of_many_kinds_of_line_breaks_runs_as_it_is(batches):
    """BOM, CRLF, blank lines and a separator inside a text: every request is run once."""
    first, second = jsonl([ask("a", "one\u2028two")]), jsonl([ask("b")])
    content = [b"\xef\xbb\xbf" + first.rstrip(), b"", b"  ", second.rstrip() + b"\r"]
    found = await batches.run(content)
    text = found.output["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert text == "Echo: one\u2028two"
    assert found.batch["request_counts"]["completed"] == 2


# What fails as a whole


async def test_batch_nonexistent_file_id(batches):
    """200 at first; then failed, with one error that names the file."""
    batch = await batches.ended((await batches.create("file-nonexistent-xyz")).id)
    (error,) = batch.errors.data
    assert (batch.status, error.code, error.line) == ("failed", "invalid_request", None)
    assert error.message.lower().startswith("cannot find file")
    assert error.param == "input_file_id"


async def test_batch_of_another_tenants_file_fails_as_one_of_no_file_does(site, batches):
    """Nobody learns that it exists."""
    other = Batches(site.base_url, await site.tenant_with_key("other"))
    try:
        theirs = (await other.upload([ask("theirs")])).id
    finally:
        other.sdk.close()
    ids = (theirs, "file-" + "0" * 24)
    found = [await batches.ended((await batches.create(file_id)).id) for file_id in ids]
    errors = [
        batch.errors.model_dump_json().replace(file_id, "?")
        for batch, file_id in zip(found, ids, strict=True)
    ]
    assert errors[0] == errors[1]


async def test_batch_malformed_jsonl(batches):
    """The line that is not JSON is named."""
    found = await batches.errors([ask("valid-1"), b'{this is not JSON at all "custom_id": "x"}'])
    assert (found[-1].code, found[-1].line) == ("invalid_json_line", 2)


async def test_batch_missing_required_fields(batches):
    """One error for each of four lines, in their order."""
    names = ("custom_id", "method", "url", "body")
    lines = [
        {key: value for key, value in ask(f"no-{name}").items() if key != name} for name in names
    ]
    found = await batches.errors(lines)
    assert [(error.line, error.param) for error in found] == list(enumerate(names, 1))
    assert {error.code for error in found} == {"missing_required_parameter"}


async def test_batch_streaming_not_supported(batches):
    """A result cannot be streamed."""
    (error,) = await batches.errors([ask("stream-1", stream=True)])
    assert (error.code, error.param, error.line) == ("streaming_unsupported", "body.stream", 1)
    assert "streaming" in error.message.lower()
    assert "not supported" in error.message.lower()


async def test_batch_mixed_streaming_requests(batches, site):
    """One such line fails the whole batch: the good one has not run either."""
    (error,) = await batches.errors([ask("valid", stream=False), ask("stream", stream=True)])
    assert (error.code, error.line) == ("streaming_unsupported", 2)
    assert not site.sim.started


async def test_batch_endpoint_mismatch(batches):
    """A line for another route is one error."""
    (error,) = await batches.errors([ask("mismatch-1") | {"url": EMBEDDINGS}])
    assert (error.code, error.param, error.line) == ("invalid_url", "url", 1)


async def test_batch_error_handling_invalid_model(batches):
    """A model that is not there is one error."""
    (error,) = await batches.errors([ask("no-model", model="invalid-model-xyz")])
    assert (error.code, error.param, error.line) == ("model_not_found", "body.model", 1)
    assert "not supported" in error.message


async def test_a_model_outside_the_allowlist_fails_as_one_that_is_not_there(site):
    """In the same words."""
    few = {"all_models": False, "models": ["llama3.2:latest"]}
    batches = Batches(site.base_url, await site.tenant_with_key("few", few))
    found = []
    try:
        for name in ("secret-model:latest", "no-such-model:latest"):
            (error,) = await batches.errors([ask("a"), ask("b", model=name)])
            found.append(error.model_dump_json().replace(name, "?"))
    finally:
        batches.sdk.close()
    assert found[0] == found[1]


async def test_batch_missing_required_body_fields(batches):
    """No model in line 1, no messages in line 2."""
    lines = [ask("no-model"), ask("no-messages")]
    del lines[0]["body"]["model"]
    del lines[1]["body"]["messages"]
    found = await batches.errors(lines)
    assert [(error.param, error.line) for error in found] == [
        ("body.model", 1),
        ("body.messages", 2),
    ]
    assert {error.code for error in found} == {"invalid_request"}


async def test_duplicate_custom_ids_fail_the_batch(batches):
    """The second one is named."""
    (error,) = await batches.errors([ask("a"), ask("b"), ask("a")])
    assert (error.code, error.param, error.line) == ("duplicate_custom_id", "custom_id", 3)


async def test_a_file_of_blank_lines_only_fails_as_empty(batches):
    """There is nothing to run."""
    (error,) = await batches.errors([b"", b"  ", b"\r"])
    assert (error.code, error.line) == ("empty_file", None)


# Cancel and the bound


async def test_batch_cancel_completed(batches):
    """409 in one HTTP call: the client does not try again."""
    batch = await batches.begin([ask("done-1")])
    await batches.ended(batch.id)
    batches.sent.clear()
    with pytest.raises(openai.ConflictError) as refused:
        await batches.call(batches.sdk.batches.cancel, batch.id)
    assert "cannot cancel" in str(refused.value).lower()
    assert f"'{batch.id}' with status 'completed'" in str(refused.value)
    assert len(batches.sent) == 1


async def test_max_concurrent_batches(database, redis_url):
    """With TENANT_BATCHES=2 exactly two of three run; the third begins when one has ended."""
    async with open_world(database, redis_url, tenant_batches=2) as world:
        world.sim.play(Script(model=MODEL, token_gap=60, tokens=9))
        mine, other = batcher(world), batcher(world, await world.tenant_with_key("other"))
        made = [await mine.begin([ask(f"c{number}")]) for number in range(3)]
        # whoever looked at this one has passed over the third
        await other.ended(await other.begin([ask("x", model="qwen3:8b")]))
        with trio.fail_after(PATIENCE):
            while True:
                states = [(await mine.show(batch_id))["status"] for batch_id in made]
                if states.count("in_progress") == 2:
                    break
                await trio.sleep(FIRST_POLL)
        assert sorted(states) == ["in_progress", "in_progress", "validating"]
        running = [id_ for id_, state in zip(made, states, strict=True) if state == "in_progress"]
        (waiting,) = set(made) - set(running)
        await mine.cancel(running[0])
        await mine.until(waiting, lambda batch: batch["status"] == "in_progress")
        assert (await mine.show(running[1]))["status"] == "in_progress"
        for batch_id in (running[1], waiting):
            await mine.cancel(batch_id)
        for batch_id in made:
            assert (await mine.ended(batch_id)).batch["status"] == "cancelled"
