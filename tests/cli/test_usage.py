"""How the command line is used wrongly, how it helps, and how it finds an installation."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from trio_gateway import __version__
from trio_gateway.cli.main import trunk
from trio_gateway.clients.postgres import run_once
from trio_gateway.datadir import DataDir

TIMEOUT = 90
PROGRAM = Path(sys.executable).parent / "trio-gateway"


def commands(group=trunk, path=()):
    """Yield the path of every command there is."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_helps_with_an_example_and_speaks_json(bare, path):
    """--help works everywhere; every leaf takes --json and shows how it is called."""
    answer = bare(*path, "--help")
    assert answer.code == 0
    assert "Examples:" in answer.out
    assert f"trio-gateway {path[0]}" in answer.out
    if "COMMAND" not in answer.out:
        assert "--json" in answer.out


def test_the_version_is_told(bare):
    """One line, whatever else is broken."""
    assert bare("--version").out == f"trio-gateway {__version__}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bogus"], ["bogus"]),
        (["tenant", "bogus"], ["bogus"]),
        (["tenant", "list", "--bogus"], ["--bogus"]),
        (["tenant", "create"], ["NAME"]),
        (["key", "create"], ["--tenant"]),
        (["tenant", "update", "a"], ["something to change"]),
        (["key", "update", "a"], ["something to change"]),
        (["model", "pin", "a"], ["--num-ctx"]),
        (["tenant", "create", "a", "--budget", "many"], ["--budget", "many"]),
        (["tenant", "create", "a", "--budget", "-1"], ["--budget"]),
        (["tenant", "create", "a", "--budget", "1e3"], ["--budget"]),
        (["tenant", "create", "a", "--budget", "9" * 19], ["--budget"]),
        (["tenant", "create", "a", "--budget", "٣"], ["--budget"]),
        (["tenant", "create", "a", "--budget-period", "week"], ["--budget-period", "week"]),
        (["tenant", "create", "a", "--max-output-tokens", "0"], ["--max-output-tokens"]),
        (["tenant", "create", "a", "--weight-share", "1001"], ["--weight-share"]),
        (["tenant", "create", "a", "--models", "a b"], ["--models", "malformed"]),
        (["tenant", "create", "a", "--models", "m", "--all-models"], ["--all-models", "--models"]),
        (["key", "create", "--tenant", "a", "--models", "m", "--all-models"], ["--models"]),
        (["key", "create", "--tenant", "a", "--expires", "soon"], ["--expires", "soon"]),
        (["key", "create", "--tenant", "a", "--expires", "2030-13-01"], ["--expires"]),
        (["key", "create", "--tenant", "a", "--expires", "99999999d"], ["--expires"]),
        (["key", "rotate", "a", "--overlap", "24"], ["--overlap", "24"]),
        (["usage", "--by", "hour"], ["--by", "hour"]),
        (["usage", "--since", "x\ny"], ["--since"]),
        (["audit", "--limit", "0"], ["--limit"]),
        (["audit", "--acts", "--tenant", "a"], ["--acts", "--tenant"]),
        (["audit", "--subject", "a"], ["--subject", "--acts"]),
        (["model", "block", "/"], ["malformed"]),
        (["model", "weight", "m", "1.2345"], ["WEIGHT"]),
        (["model", "weight", "m", "1001"], ["WEIGHT"]),
        (["model", "pin", "m", "--digest", "abc"], ["--digest"]),
        (["model", "pin", "m", "--num-ctx", "0"], ["--num-ctx"]),
        (["quickstart", "--simulate", "--ollama-url", "http://x"], ["--simulate"]),
        (["quickstart", "--workers", "0"], ["--workers"]),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_is_wrong(bare, args, words):
    """Exit 2, before anything is reached."""
    bare(*args).refused(*words, code=2)


@pytest.mark.parametrize("args", [[], ["tenant"], ["key"], ["model"], ["ledger"]])
def test_a_group_alone_shows_its_help(bare, args):
    """Not an answer, so it goes to stderr; and it is wrong usage."""
    answer = bare(*args)
    assert (answer.code, answer.out) == (2, "")
    assert "Commands:" in answer.err


def test_no_installation_is_one_sentence_with_what_to_do(bare):
    """Neither the environment nor the default folder names one."""
    bare("tenant", "list").refused("there is no installation in", "quickstart", "DATABASE_URL")


def test_half_an_environment_is_said(bare, monkeypatch):
    """One of the two addresses alone is no installation."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    bare("tenant", "list").refused("DATABASE_URL is not")
    monkeypatch.setenv("TRIO_GATEWAY_BOGUS", "1")
    bare("tenant", "list").refused("TRIO_GATEWAY_BOGUS is not a setting")


def test_a_folder_that_is_named_beats_the_environment(bare, database, tmp_path, monkeypatch):
    """--data-dir finds the stores of what runs there, and only while it runs."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    folder = tmp_path / "there"
    bare("tenant", "list", "--data-dir", str(folder)).refused("there is no installation")
    with DataDir(folder) as installation:
        installation.publish(database, "redis://127.0.0.1:1")
        assert bare("tenant", "list", "--json", "--data-dir", str(folder)).json == []
    bare("tenant", "list", "--data-dir", str(folder)).refused("nothing runs on")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:topsecret@127.0.0.1:1/x",
        "postgresql://u:top#secret@127.0.0.1:1/x",
        "postgresql://u:top?secret@127.0.0.1:1/x",
        "postgresql://u:topsecret@127.0.0.1:port/x",
        "postgresql://u:topsecret@[::1/x",
        "mysql://u:topsecret@127.0.0.1/x",
        "topsecret",
    ],
)
@pytest.mark.parametrize("command", ["tenant list", "migrate", "doctor"])
def test_an_unusable_address_is_one_sentence_without_its_password(bare, monkeypatch, command, url):
    """Whatever is wrong with it, nothing of the password is printed."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("REDIS_URL", url)
    answer = bare(*command.split())
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    for part in ("top", "secret"):
        assert part not in answer.out + answer.err


def test_an_unmigrated_database_is_said_and_mended_by_migrate(cli, database):
    """The sentence names the command, and the command can be repeated."""
    asyncio.run(run_once(database, "DROP SCHEMA gateway CASCADE"))
    cli("tenant", "list").refused("not migrated", "trio-gateway migrate")
    assert cli("doctor").code == 1
    first = cli("migrate", "--json").json
    assert first["before"] is None
    assert cli("migrate", "--json").json == {
        "before": first["version"],
        "version": first["version"],
    }
    assert "already" in cli("migrate").out
    assert cli("tenant", "list", "--json").json == []


def test_help_needs_none_of_the_heavy_libraries():
    """Start-up stays quick because nothing heavy is imported before a command runs."""
    heavy = "{'trio', 'asyncpg', 'redis', 'pydantic', 'rich', 'alembic', 'argon2', 'httpx'}"
    code = f"import sys, trio_gateway.cli.main; print({heavy} & set(sys.modules) or 'light')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert done.stdout == "light\n"


def test_a_reader_who_leaves_early_is_no_traceback():
    """`trio-gateway ... | true` ends quietly."""
    with subprocess.Popen(
        [PROGRAM, "tenant", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == ""
        assert running.wait(TIMEOUT) == 1


def test_an_interrupt_is_no_traceback(bare):
    """Ctrl-C while PostgreSQL does not answer ends the command at once, with nothing said."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(TIMEOUT)
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with subprocess.Popen(
            [PROGRAM, "tenant", "list"],
            env={**os.environ, "DATABASE_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            connection, _ = silent.accept()
            with connection:
                running.send_signal(signal.SIGINT)
                try:
                    printed = running.communicate(timeout=TIMEOUT)
                finally:
                    running.kill()
    assert (running.returncode, printed) == (-signal.SIGINT, (b"", b""))


def test_what_nobody_foresaw_is_one_line_too(cli, database):
    """The database's own refusal is named, and nothing quoted of the row."""
    asyncio.run(run_once(database, "ALTER TABLE gateway.tenants ADD CHECK (name <> 'unlucky')"))
    answer = cli("tenant", "create", "unlucky")
    answer.refused("failed: CheckViolationError")
    assert "unlucky" not in answer.err


def test_the_text_of_what_nobody_foresaw_is_not_shown(cli, database):
    """Drivers quote statements and addresses: its type is named, by a command and by a start."""
    function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
    asyncio.run(run_once(database, f"{function} $$ BEGIN RAISE 'a hidden value'; END $$"))
    trigger = "CREATE TRIGGER refuse BEFORE INSERT ON gateway.tenants EXECUTE FUNCTION refuse()"
    asyncio.run(run_once(database, trigger))
    listen = ("--bind", "127.0.0.1:0", "--admin-bind", "127.0.0.1:0")
    for words in (("tenant", "create", "acme"), ("quickstart", "--simulate", *listen)):
        answer = cli(*words)
        answer.refused("RaiseError")
        assert "hidden" not in answer.err


def test_an_address_that_is_none_is_not_shown(cli, monkeypatch):
    """By a command and by a start: pieces of it would be pieces of a password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hid#den@127.0.0.1/x")
    listen = ("--bind", "127.0.0.1:0", "--admin-bind", "127.0.0.1:0")
    for words in (("tenant", "list"), ("quickstart", "--simulate", *listen)):
        answer = cli(*words)
        answer.refused("DATABASE_URL is not a PostgreSQL address")
        assert "hid" not in answer.err


def test_what_cannot_start_says_why(bare, monkeypatch, tmp_path):
    """No Ollama for quickstart, no stores for serve, a port that is taken: one line each."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    folder = ("--data-dir", str(tmp_path / "q"))
    bare("quickstart", *folder).refused("no Ollama answers")
    bare("serve").refused("there is no installation")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        bare("quickstart", "--simulate", "--bind", bind, *folder).refused(bind)
    bare("quickstart", "--simulate", "--admin-bind", "0.0.0.0:0", *folder).refused("ALLOW_REMOTE")
