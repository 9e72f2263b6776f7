"""Files over HTTP, with the official client: upload, list, retrieve, contents, delete, expiry."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import openai
import orjson
import pytest
import trio

from tests import raw_http
from tests.integration.caller import until_rows
from tests.integration.forms import BATCH, EVALS, JSONL, TYPE, blobs, field, file, form
from tests.world import open_world

LIMIT = 120
MIB = 1 << 20


def client_of(world, key=None):
    """Make the official client."""
    key = (key or world.key)["key"]
    return openai.OpenAI(base_url=f"{world.base_url}/v1", api_key=key, max_retries=0)


@pytest.fixture
async def client(world):
    with trio.fail_after(LIMIT), client_of(world) as made:
        yield made


async def ask(act: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a call of the client in a thread."""
    return await trio.to_thread.run_sync(partial(act, *args, **kwargs))


async def upload(client, content=JSONL, name="a.jsonl", purpose="batch", **more):
    """Upload with the official client."""
    return await ask(client.files.create, file=(name, content), purpose=purpose, **more)


async def post(world, body, content_type=TYPE, key=None):
    """POST a form as it stands."""
    headers = world.auth(key) | ({"content-type": content_type} if content_type else {})
    return await world.client.post("/v1/files", content=body, headers=headers)


def refusal(answer):
    """Return what an error says of itself."""
    error = orjson.loads(answer.content)["error"]
    return answer.status_code, error["code"], error["param"]


async def test_a_file_is_stored_shown_sent_and_deleted(world, client):
    """The whole life of one; a second delete finds nothing."""
    made = await upload(client, b"some bytes", "notes.txt", "user_data")
    assert (made.object, made.bytes, made.filename) == ("file", 10, "notes.txt")
    assert (made.purpose, made.status, made.expires_at) == ("user_data", "processed", None)
    assert await ask(client.files.retrieve, made.id) == made
    assert (await ask(client.files.wait_for_processing, made.id)) == made
    assert (await ask(client.files.content, made.id)).read() == b"some bytes"
    gone = await ask(client.files.delete, made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    for act in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {made.id}"):
            await ask(act, made.id)
    await until_rows(world, "SELECT WHERE NOT EXISTS (SELECT FROM gateway.files)")


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 3 * MIB + 11])
async def test_what_comes_back_is_what_was_sent(world, client, size):
    """Byte for byte, and counted right."""
    content = os.urandom(size)
    made = await upload(client, content, "x.bin", "evals")
    assert made.bytes == size
    answer = await ask(client.files.content, made.id)
    assert answer.read() == content
    assert answer.response.headers["content-length"] == str(size)
    assert answer.response.headers["content-type"] == "application/octet-stream"
    assert answer.response.headers["x-content-type-options"] == "nosniff"
    assert blobs(world) == [made.id]


async def test_an_upload_survives_in_a_bucket(database, redis_url, bucket):
    """The same over S3."""
    async with open_world(database, redis_url, blob_url=f"s3://{bucket.name}/pre") as world:
        with trio.fail_after(LIMIT), client_of(world) as client:
            content = os.urandom(6 * MIB + 1)
            made = await upload(client, content, "x.bin", "evals")
            assert (await ask(client.files.content, made.id)).read() == content
            keys = [each.key for each in bucket.objects.all() if "/files/" in each.key]
            assert keys == [f"pre/files/{world.tenant['id']}/{made.id}"]


async def test_a_batchs_input_expires_after_thirty_days(client):
    """Unless it says otherwise; other purposes live for ever."""
    made = await upload(client)
    assert made.expires_at == made.created_at + 2_592_000
    sooner: Any = {"anchor": "created_at", "seconds": 4545}
    made = await upload(client, expires_after=sooner)
    assert made.expires_at == made.created_at + 4545
    assert (await upload(client, purpose="evals")).expires_at is None


async def test_an_expired_file_goes_with_its_blob(world, client):
    """Unseen at once; the janitor removes the rest."""
    made = await upload(client)
    await world.rows("UPDATE gateway.files SET expires_at = now() - interval '1 second'")
    with pytest.raises(openai.NotFoundError):
        await ask(client.files.retrieve, made.id)
    assert (await ask(client.files.list)).data == []
    gone = "SELECT WHERE NOT EXISTS (SELECT FROM gateway.files) AND NOT EXISTS ({})"
    doomed = "SELECT FROM gateway.doomed_blobs"
    await until_rows(world, gone.format(doomed))
    assert blobs(world) == []


async def test_lists_have_pages_orders_and_purposes(client):
    """The client's own paging meets each file once."""
    made = [await upload(client, name=f"{n}.jsonl") for n in range(5)]
    other = await upload(client, purpose="evals")
    ids = [each.id for each in [*made, other]]
    assert [each.id for each in await ask(lambda: list(client.files.list(limit=2)))] == ids[::-1]
    ascending = await ask(lambda: list(client.files.list(limit=4, order="asc")))
    assert [each.id for each in ascending] == ids
    assert [each.id for each in await ask(lambda: list(client.files.list(purpose="evals")))] == [
        other.id
    ]
    page = await ask(client.files.list, limit=2, after=ids[3])
    assert [each.id for each in page.data] == ids[2:0:-1]
    assert page.has_more is True
    assert len((await ask(client.files.list, after="unknown")).data) == 6


async def test_a_list_names_what_is_wrong_with_its_query(world):
    """400 with the field."""
    for query, param in (("limit=0", "limit"), ("order=up", "order"), ("purpose=x", "purpose")):
        assert refusal(await world.get(f"/v1/files?{query}")) == (400, "invalid_request", param)


async def test_another_tenants_file_is_no_file(world, client):
    """Not to be read, not to be deleted, not in the list: a random id's answer, to the byte."""
    made = await upload(client)
    random = "file-" + "0" * 24
    stranger = await world.tenant_with_key("stranger")
    told = {}
    for line in ("GET /v1/files/{}", "GET /v1/files/{}/content", "DELETE /v1/files/{}"):
        answers = []
        for file_id in (made.id, random):
            answer = await raw_http.ask(world.port, line.format(file_id), world.auth(stranger))
            headers = [pair for pair in answer.headers if pair[0] not in {"x-request-id", "date"}]
            answers.append((answer.status, headers, answer.body.replace(file_id.encode(), b"ID")))
        assert answers[0] == answers[1]
        told[line] = answers[0][0]
    assert set(told.values()) == {404}
    with client_of(world, stranger) as other:
        assert (await ask(other.files.list)).data == []
        assert (await ask(other.files.list, after=made.id)).data == []
    assert (await ask(client.files.retrieve, made.id)) == made


BAD = "Invalid file format for Batch API. Must be .jsonl: "
NO_JSON = "the first line is not valid JSON."
NO_NAME = "the file's name does not end in .jsonl."


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b"", "the file is empty."),
        ("a.jsonl", b"not json\n", NO_JSON),
        ("a.jsonl", b"{\n}", NO_JSON),
        ("a.txt", JSONL, NO_NAME),
        (None, JSONL, NO_NAME),
    ],
)
@pytest.mark.parametrize("first", ["purpose", "file"])
async def test_what_cannot_be_a_batch_is_refused_at_its_upload(world, name, content, why, first):
    """It says why, wherever the purpose stands; for another purpose it is a file as any other."""
    parts = [BATCH, file(content, name)]
    answer = await post(world, form(*(parts if first == "purpose" else parts[::-1])))
    assert refusal(answer) == (400, "invalid_request", None)
    assert orjson.loads(answer.content)["error"]["message"] == BAD + why
    assert (await post(world, form(EVALS, file(content, name)))).status_code == 200


@pytest.mark.parametrize(
    "content", [b"\n\n", b"\xef\xbb\xbf{}\n", b"\r\n{}\r\n", '{"a":"\u2028"}'.encode()]
)
async def test_what_can_be_a_batch_is_left_to_its_validation(world, content):
    """A mark, blank lines and strange line breaks inside strings are no reason to refuse."""
    assert (await post(world, form(BATCH, file(content)))).status_code == 200


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([file()], "purpose"),
        ([field("purpose", "anything"), file()], "purpose"),
        ([field("purpose", "batch_output"), file()], "purpose"),
        ([field("purpose", b"\xff"), file()], "purpose"),
        ([field("purpose", "x" * 5000), file()], "purpose"),
        ([BATCH, BATCH, file()], "purpose"),
        ([BATCH], "file"),
        ([BATCH, file(), file()], "file"),
        ([EVALS, field("file", JSONL), file()], "file"),
        ([BATCH, field("expires_after[seconds]", "5000"), file()], "expires_after[anchor]"),
        ([BATCH, file(), field("expires_after", "soon")], "expires_after"),
        ([], "purpose"),
    ],
)
async def test_a_form_that_is_not_right_names_the_field(world, parts, param):
    """400; nothing is kept of it."""
    assert refusal(await post(world, form(*parts))) == (400, "invalid_request", param)
    assert await world.rows("SELECT id FROM gateway.files") == []
    assert blobs(world) == []


async def test_parts_may_come_in_any_order_among_others(world):
    """Unknown ones are passed over, a file without a name gets one."""
    expiry = field("expires_after", '{"anchor":"created_at","seconds":3600}')
    strange = field("model", "x" * 10_000)
    made = orjson.loads((await post(world, form(strange, file(), expiry, BATCH))).content)
    assert made["expires_at"] == made["created_at"] + 3600
    for part in (file(filename=None), file(filename=""), field("file", JSONL)):
        assert (await post(world, form(part, EVALS))).json()["filename"] == "uploaded_file"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"../../etc/passwd", "passwd"),
        (b"C:\\\\a\\\\b.txt", "b.txt"),
        (b"a\x00\x1bb.txt", "ab.txt"),
        ("größe \U0001f600.txt".encode(), "größe \U0001f600.txt"),
        (b"a%0d%0aX-Evil: 1.txt", "a%0d%0aX-Evil: 1.txt"),
    ],
)
async def test_a_name_is_only_ever_a_name(world, sent, shown):
    """No folder, no control character, and nothing that could end a header."""
    made = (await post(world, form(EVALS, file(filename=sent)))).json()
    assert made["filename"] == shown
    answer = await raw_http.ask(world.port, f"GET /v1/files/{made['id']}/content", world.auth())
    assert answer.body == JSONL
    disposition = answer.header("content-disposition")
    assert disposition is not None
    assert disposition.startswith('attachment; filename="')
    assert disposition.isascii()
    assert answer.header("x-evil") is None


async def test_a_name_with_a_line_break_makes_no_header(world):
    """Folded into one line, or refused; never a header of its own."""
    for name in (b"a\r\nX-Evil: 1\r\n.txt", b"a\rX-Evil: 1.txt", b"a\nX-Evil: 1.txt"):
        answer = await post(world, form(EVALS, file(filename=name)))
        if answer.status_code == 200:
            assert "\r" not in answer.json()["filename"]
            assert "\n" not in answer.json()["filename"]
            path = f"GET /v1/files/{answer.json()['id']}/content"
            assert (await raw_http.ask(world.port, path, world.auth())).header("x-evil") is None
        else:
            assert answer.status_code == 400


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 415),
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + "x" * 300, 400),
        ("multipart/form-data; boundary=other", 400),
    ],
)
async def test_only_a_form_is_an_upload(world, content_type, status):
    """415 for anything else, 400 for a form that cannot be taken apart."""
    answer = await post(world, form(BATCH, file()), content_type)
    assert answer.status_code == status
    assert "file" not in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"x", form(BATCH, file())[:-40], b"\r\n" * 5000, form(BATCH, b"--")]
)
async def test_a_body_that_is_no_form_is_refused(world, body):
    """Cut off, empty or something else: 400, and nothing is kept."""
    assert (await post(world, body)).status_code == 400
    assert await world.rows("SELECT id FROM gateway.files") == []


async def test_a_tenants_files_have_a_most_together(database, redis_url):
    """413 with a code of its own; deleting makes room; other tenants have their own."""
    async with open_world(database, redis_url, tenant_file_bytes=1000) as world:
        first = await post(world, form(EVALS, file(b"x" * 600)))
        too_much = form(EVALS, file(b"x" * 401))
        assert refusal(await post(world, too_much)) == (413, "file_quota_exceeded", "file")
        assert len(blobs(world)) == 1
        stranger = await world.tenant_with_key("stranger")
        assert (await post(world, too_much, key=stranger)).status_code == 200
        await world.client.delete(f"/v1/files/{first.json()['id']}", headers=world.auth())
        assert (await post(world, too_much)).status_code == 200


async def test_a_file_whose_blob_is_lost_is_no_empty_file(world, client):
    """503: nobody takes nothing for something."""
    made = await upload(client)
    (world.blobs / "files" / world.tenant["id"] / made.id).unlink()
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(client.files.content, made.id)
    assert caught.value.code == "store_unavailable"
