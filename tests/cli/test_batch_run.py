"""`trio-gateway batch run FILE`, beside a gateway that serves the same installation."""

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from trio_gateway.simulator.script import Script

PROGRAM = Path(sys.executable).parent / "trio-gateway"
LIMIT = 180


def line(number, url="/v1/chat/completions", **body):
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}]} | body
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": url, "body": body})


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n" + "\n".join(line(number) for number in range(5)) + "\n")
    return path


@pytest.fixture
def command(world, database, redis_url):
    """Run the program on the world's installation; returns code, stdout and stderr."""
    environ = {
        **os.environ,
        "DATABASE_URL": database,
        "REDIS_URL": redis_url,
        "TRIO_GATEWAY_BLOB_URL": world.blobs.as_uri(),
    }

    async def run(*words, **others):
        with trio.fail_after(LIMIT):
            done = await trio.run_process(
                [PROGRAM, *(word if isinstance(word, bytes) else str(word) for word in words)],
                env=environ | others,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def answered(path):
    return {json.loads(text)["custom_id"] for text in path.read_text().splitlines()}


async def test_a_file_is_run_and_its_answers_lie_beside_it(world, command, questions):
    """The only key's tenant pays, the endpoint is the lines' own, the act is on record."""
    code, out, err = await command("batch", "run", questions)
    assert (code, err) == (0, "")
    output = questions.with_name("questions.jsonl.output.jsonl")
    assert answered(output) == {f"c{number}" for number in range(5)}
    assert f"output: {output}" in out
    assert not questions.with_name("questions.jsonl.errors.jsonl").exists()
    (row,) = await world.rows("SELECT * FROM gateway.batches")
    assert (row["tenant_id"], row["key_id"]) == (world.tenant["id"], world.key["id"])
    assert {entry["batch_id"] for entry in await world.ledger()} == {row["id"]}
    acts = await world.rows("SELECT action FROM gateway.admin_events WHERE subject = $1", row["id"])
    assert acts == [{"action": "batch.create"}]
    code, _, err = await command("batch", "run", questions)
    assert code == 1
    assert f"{output} is there already; --force overwrites it" in err
    assert (await command("batch", "run", questions, "--force"))[0] == 0
    assert len(await world.rows("SELECT FROM gateway.batches")) == 2


async def test_one_idempotency_key_is_one_batch(world, command, questions, tmp_path):
    """Run again it is followed again, with no second upload; another file is refused."""
    words = ("batch", "run", questions, "--force", "--idempotency-key", "monday", "--json")
    first = await command(*words)
    assert first[0] == 0, first
    told = [json.loads(text) for text in first[1].splitlines()]
    assert told[-1]["output"] == f"{questions}.output.jsonl"
    assert told[-1]["errors"] is None
    again = await command(*words)
    assert json.loads(again[1].splitlines()[-1])["id"] == told[-1]["id"]
    assert len(await world.rows("SELECT FROM gateway.files WHERE purpose = 'batch'")) == 1
    questions.write_text(line(9))
    code, _, err = await command(*words)
    assert code == 1
    assert "idempotency_key: Idempotency key 'monday' was previously used" in err
    assert len(await world.rows("SELECT FROM gateway.files WHERE purpose = 'batch'")) == 1


async def test_failures_are_written_and_a_failed_batch_is_exit_1(world, command, questions):
    """A line that fails is in the errors file; a file that is no batch says why."""
    questions.write_text(line(1) + "\n" + line(2, temperature=99))
    output, errors = questions.with_name("out"), questions.with_name("err")
    code, out, _ = await command("batch", "run", questions, "--output", output, "--errors", errors)
    assert code == 0
    assert "1 failed" in out
    assert (answered(output), answered(errors)) == ({"c1"}, {"c2"})
    questions.write_text(line(1) + "\nnonsense\n" + line(2, url="/v1/embeddings"))
    code, _, err = await command("batch", "run", questions)
    assert code == 1
    assert "is failed: line 2: " in err
    assert "line 3: " in err


async def test_whose_batch_it_is_must_be_clear(world, command, questions):
    """Several tenants or keys need naming, and a key that is refused makes no batch."""
    await world.keyring.issue("acme", {"name": "second"})
    run = ("batch", "run", questions)
    code, _, err = await command(*run)
    assert (code, "--key: there are 2 live keys" in err) == (1, True)
    await world.keyring.disable("second")
    code, _, err = await command(*run, "--key", "second")
    assert (code, "--key: the key is disabled" in err) == (1, True)
    assert (await command(*run, "--key", world.key["id"]))[0] == 0
    await world.tenant_with_key("other")
    code, _, err = await command(*run, "--force")
    assert (code, "--tenant: there are several" in err) == (1, True)
    assert (await command(*run, "--force", "--tenant", "other"))[0] == 0
    await world.accounts.create("third", {"all_models": True})
    code, _, err = await command(*run, "--force", "--tenant", "third")
    assert (code, "--key: there is no live key" in err) == (1, True)


async def test_a_file_that_cannot_be_a_batch_is_refused_before_it_is_stored(
    world, command, questions
):
    """As an upload is: by its name, its size and its first line."""

    async def refused(*words, text=None):
        if text is not None:
            questions.write_text(text)
        code, out, err = await command("batch", "run", questions)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert all(word in err for word in words), err

    wrong = "Invalid file format for Batch API. Must be .jsonl: the f"
    await refused(f"{wrong}ile is empty.", text="")
    await refused(f"{wrong}irst line is not valid JSON.", text="no json\n")
    await refused("url is none of /v1/chat/completions", "--endpoint", text=line(1, url="/v1/x"))
    await refused("url is none of", text="[]\n")
    other = questions.with_suffix(".txt")
    other.write_text(line(1))
    assert f"{wrong}ile's name does not end in" in (await command("batch", "run", other))[2]
    code, _, err = await command("batch", "run", questions.with_name("none.jsonl"))
    assert (code, "cannot be read: No such file" in err) == (1, True)
    questions.write_text(line(1))
    for key in ("", "x" * 256, b"\xff"):
        code, _, err = await command("batch", "run", questions, "--idempotency-key", key)
        assert (code, "idempotency_key" in err) == (1, True), err
    assert await world.rows("SELECT FROM gateway.files") == []
    assert await world.rows("SELECT FROM gateway.doomed_blobs") == []


@pytest.fixture
def unsafe(world, command, questions):
    """Run with places that must be refused; nothing may be stored, written or lost by it."""

    async def refused(*words, says=(), file=questions, codes=(1,)):
        before = {path: path.lstat() for path in questions.parent.iterdir()}
        code, out, err = await command("batch", "run", file, *words)
        assert (code in codes, out, err.count("\n")) == (True, "", 1), err
        assert all(word in err for word in says), err
        after = {path: path.lstat() for path in questions.parent.iterdir()}
        assert {path: stat.st_ino for path, stat in before.items()} == {
            path: stat.st_ino for path, stat in after.items()
        }
        assert len(answered(questions)) == 5
        for table in ("files", "batches", "doomed_blobs"):
            assert await world.rows(f"SELECT FROM gateway.{table}") == []

    text = questions.read_text().strip()
    questions.write_text(text)
    return refused


@pytest.mark.parametrize("option", ["--output", "--errors"])
async def test_the_file_itself_is_not_written_over(unsafe, questions, option):
    """By whatever name it goes: its own, a link's, a detour's."""
    folder = questions.parent
    (folder / "link.jsonl").symlink_to(questions)
    (folder / "hard.jsonl").hardlink_to(questions)
    (folder / "deep").mkdir()
    (folder / "around").symlink_to(folder)
    for place in (
        questions,
        folder / "link.jsonl",
        folder / "hard.jsonl",
        folder / "deep" / ".." / questions.name,
        folder / "around" / questions.name,
    ):
        await unsafe(option, place, "--force", says=[f"{option}: ", "is the file to run"])
    words = (option, questions, "--force")
    await unsafe(*words, file=folder / "link.jsonl", says=[f"{option}: "])


async def test_answers_and_failures_go_to_two_files(unsafe, questions):
    """One given twice, one that is the other's default, one that is there and one to be made."""
    folder = questions.parent
    place = folder / "both"
    (folder / "around").symlink_to(folder)
    default = folder / "questions.jsonl.output.jsonl"
    says = ["--errors: ", "is where --output goes"]
    around = folder / "around" / "both"
    await unsafe("--output", place, "--errors", place, says=says)
    await unsafe("--output", place, "--errors", around, says=says)
    await unsafe("--errors", default, says=says)
    place.write_text("kept")
    (folder / "other").hardlink_to(place)
    await unsafe("--output", place, "--errors", folder / "other", "--force", says=says)
    assert place.read_text() == "kept"


@pytest.mark.parametrize("option", ["--output", "--errors"])
async def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    unsafe, questions, option
):
    """No folder, no file of a kind that can be replaced, a name that is too long."""
    folder = questions.parent
    await unsafe(option, folder / "none" / "x", says=[f"{option}: ", "No such file or directory"])
    await unsafe(option, questions / "x", says=[f"{option}: ", "Not a directory"])
    await unsafe(option, folder / ("x" * 300), says=[option, "File name too long"])
    await unsafe(option, folder, "--force", says=[option, "is a directory"], codes=(2,))
    os.mkfifo(folder / "pipe")
    await unsafe(option, folder / "pipe", "--force", says=[f"{option}: ", "is no regular file"])
    (folder / "kept").write_text("kept")
    await unsafe(option, folder / "kept", says=[f"{option}: ", "is there already"])
    default = folder / f"{questions.name}.{'output' if option == '--output' else 'errors'}.jsonl"
    default.mkdir()
    await unsafe("--force", says=[f"{option}: ", "is no regular file"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_is_not_writable_is_refused(unsafe, questions):
    """Before anything runs, too."""
    closed = questions.parent / "closed"
    closed.mkdir(0o500)
    await unsafe("--output", closed / "x", says=["--output: ", "Permission denied"])


async def test_what_was_there_stays_until_the_answers_are_whole(world, command, questions):
    """A copy that fails in the end leaves the older file, and no piece of itself."""
    output = questions.with_name("out")
    output.write_text("kept")
    world.sim.play(Script(head_delay=600))
    ended = []

    async def run():
        words = ("batch", "run", questions, "--force", "--output", output)
        ended.append(await command(*words))

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await world.sim.until(lambda sim: sim.started >= 4)
            assert output.read_text() == "kept"
            output.unlink()
            output.mkdir()  # it cannot be replaced by a file any more
            (row,) = await world.rows("SELECT id FROM gateway.batches")
            assert (await command("batch", "cancel", row["id"]))[0] == 0
    ((code, _, _),) = ended
    assert code == 1
    assert output.is_dir()
    assert list(questions.parent.glob(".out*")) == []


async def test_a_store_that_the_gateway_does_not_see_is_refused(command, questions, tmp_path):
    """The batch would not find its file."""
    elsewhere = (tmp_path / "elsewhere").as_uri()
    run = ("batch", "run", questions)
    code, _, err = await command(*run, TRIO_GATEWAY_BLOB_URL=elsewhere)
    assert (code, "the files are in another blob store" in err) == (1, True)
    (tmp_path / "plain").touch()
    code, _, err = await command(*run, TRIO_GATEWAY_BLOB_URL=(tmp_path / "plain").as_uri())
    assert (code, "TRIO_GATEWAY_BLOB_URL" in err) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_folder_of_another_user_is_not_written_to(world, command, questions):
    """What root writes there the gateway's own user could not delete."""
    with trio.fail_after(LIMIT):
        while not list(world.blobs.iterdir()):
            await trio.lowlevel.checkpoint()
    os.chown(world.blobs, 65534, -1)
    code, _, err = await command("batch", "run", questions)
    os.chown(world.blobs, 0, -1)
    assert (code, "belongs to another user" in err) == (1, True)
    assert await world.rows("SELECT FROM gateway.files") == []


async def test_a_cancelled_batch_leaves_what_was_answered(world, command, questions):
    """Exit 1, and both files are written."""
    world.sim.play(Script(times=1), Script(head_delay=600))
    ended = []

    async def run():
        ended.append(await command("batch", "run", questions))

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await world.sim.until(lambda sim: sim.started >= 5)
            (row,) = await world.rows("SELECT id FROM gateway.batches")
            assert (await command("batch", "cancel", row["id"]))[::2] == (0, "")
    ((code, out, err),) = ended
    assert code == 1
    assert f"{row['id']} is cancelled" in err
    assert "output: " in out
    errors = questions.with_name("questions.jsonl.errors.jsonl")
    assert errors.read_text().count('"batch_cancelled"') == 4
    assert len(answered(questions.with_name("questions.jsonl.output.jsonl"))) == 1
