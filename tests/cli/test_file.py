"""`trio-gateway file ...` on a real installation."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trio_gateway.clients.postgres import run_once

INSERT = """
INSERT INTO gateway.files (id, tenant_id, purpose, filename, bytes, blob, expires_at)
SELECT $1, id, $2, $3, $4, $5, now() + make_interval(secs => $6)
FROM gateway.tenants WHERE name = $7
"""


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    folder = tmp_path / "blobs"
    monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", folder.as_uri())
    return folder


@pytest.fixture
def kept(cli, database, blobs):
    """Keep a file of a tenant's, as an upload does; returns its id."""
    cli("tenant", "create", "acme", "--all-models")
    cli("tenant", "create", "other", "--all-models")

    def keep(number=1, content=b'{"a": 1}\n', purpose="batch", tenant="acme", lives=3600):
        file_id = f"file-{number:024x}"
        path = f"files/t/{file_id}"
        (blobs / path).parent.mkdir(parents=True, exist_ok=True)
        (blobs / path).write_bytes(content)
        row = (file_id, purpose, f"in{number}.jsonl", len(content), path, lives, tenant)
        asyncio.run(run_once(database, INSERT, *row))
        return file_id

    return keep


def test_files_are_listed_by_tenant_and_purpose(cli, kept):
    """Latest first; what has expired is not there; a list that was cut says so."""
    assert cli("file", "list", "--json").json == []
    assert "There is no file" in cli("file", "list").out
    first, second = kept(1), kept(2, tenant="other")
    third = kept(3, purpose="batch_output")
    kept(4, lives=-1)
    assert [row["id"] for row in cli("file", "list", "--json").json] == [third, second, first]
    (row,) = cli("file", "list", "--tenant", "other", "--json").json
    assert (row["id"], row["tenant"], row["bytes"]) == (second, "other", 9)
    (row,) = cli("file", "list", "--purpose", "batch_output", "--json").json
    assert row["id"] == third
    assert cli("file", "list", "--purpose", "vision").out == "No file is so.\n"
    cli("file", "list", "--purpose", "bogus").refused("--purpose", "batch_output", code=2)
    answer = cli("file", "list", "--limit", "1")
    assert third in answer.out
    assert "--limit shows more" in answer.err
    cli("file", "list", "--tenant", "ghost").refused("there is no tenant 'ghost'")


def test_a_file_is_shown_and_read(cli, kept, tmp_path):
    """Its contents go to stdout as they are, or to a path, which is not overwritten unasked."""
    content = '{"a": "\u2028"}\n'.encode() * 100_000
    file_id = kept(content=content)
    shown = cli("file", "show", file_id, "--json").json
    assert (shown["filename"], shown["purpose"]) == ("in1.jsonl", "batch")
    assert "in1.jsonl" in cli("file", "show", file_id).out
    answer = cli("file", "get", file_id)
    assert (answer.err, answer.out.encode()) == ("", content)
    place = tmp_path / "copy.jsonl"
    answer = cli("file", "get", file_id, "-o", str(place), "--json")
    assert answer.json["path"] == str(place)
    assert place.read_bytes() == content
    assert place.stat().st_mode & 0o077 == 0
    cli("file", "get", file_id, "-o", str(place)).refused("is there already", "--force")
    assert "bytes are in" in cli("file", "get", file_id, "-o", str(place), "--force").out
    cli("file", "get", file_id, "--json").refused("--output PATH", code=2)
    nowhere = str(tmp_path / "no" / "folder")
    cli("file", "get", file_id, "-o", nowhere).refused("cannot write", "No such file")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    cli("file", "get", file_id, "-o", str(pipe), "--force").refused("is no regular file")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.glob(".copy*")] == []
    act = cli("audit", "--acts", "--limit", "1", "--json").json[0]
    assert (act["action"], act["subject"]) == ("file.read", file_id)


def test_contents_that_are_elsewhere_are_said_to_be(cli, kept, tmp_path, monkeypatch):
    """A store that lacks the blob leaves no half a copy behind."""
    file_id = kept()
    monkeypatch.setenv("TRIO_GATEWAY_BLOB_URL", (tmp_path / "else").as_uri())
    place = tmp_path / "copy"
    cli("file", "get", file_id, "-o", str(place)).refused("TRIO_GATEWAY_BLOB_URL")
    assert not place.exists()


def test_a_deleted_file_is_gone_and_the_act_is_recorded(cli, kept):
    """A second delete finds nothing; whoever did it is on record."""
    file_id = kept()
    gone = cli("file", "delete", file_id, "--json").json
    assert gone == {"id": file_id, "tenant": "acme", "deleted": True}
    for verb in ("show", "delete", "get"):
        cli("file", verb, file_id).refused(f"there is no file '{file_id}'")
    act = cli("audit", "--acts", "--limit", "1", "--json").json[0]
    assert (act["action"], act["subject"], act["actor"]) == ("file.delete", file_id, "cli")
    before = act["before"]
    before = json.loads(before) if isinstance(before, str) else before
    assert before["filename"] == "in1.jsonl"
    assert "acme is gone" in cli("file", "delete", kept(2)).out
    cli("file", "show", "gh\x1bost\x00").refused("there is no file 'gh?ost?'")


def test_a_reader_who_leaves_early_is_no_failure(kept):
    """`file get ID | head -1` is quiet."""
    program = Path(sys.executable).parent / "trio-gateway"
    command = [program, "file", "get", kept(content=b"line\n" * 1_000_000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"line\n"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(90) == 0
