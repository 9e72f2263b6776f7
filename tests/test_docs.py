"""What the documents say is so: settings, commands, routes, errors and examples."""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import trio

from trio_gateway import settings
from trio_gateway.cli.main import trunk
from trio_gateway.core import errors
from trio_gateway.web import routes
from trio_gateway.web.admin.app import create_admin

TOP = Path(__file__).resolve().parent.parent
README = (TOP / "README.md").read_text(encoding="utf-8")
GUIDE = (TOP / "deploy" / "guide.md").read_text(encoding="utf-8")
DEPLOY = {
    path.name: path.read_text(encoding="utf-8")
    for path in (TOP / "deploy").iterdir()
    if path.is_file() and path.suffix != ".md"
}
DOCUMENTS = {
    name: (TOP / name).read_text(encoding="utf-8")
    for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "deploy/guide.md")
}


def blocks(text, kind):
    """Return the fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


SHELL = "".join(blocks(README, "sh") + blocks(GUIDE, "sh")).replace("\\\n", " ")
PYTHON = blocks(README, "python")
SPANS = re.findall(r"`([^`\n]+)`", "".join(DOCUMENTS.values()))
LIMIT = 60.0  # seconds for a client to import and to ask
NO_ROUTES = {"/api/pull", "/admin/v1"}  # refused; where routes begin


def table(heading, columns, document=README):
    """Return the first columns of the table rows under a heading."""
    section = re.split(rf"^##+ {re.escape(heading)}$", document, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if re.match(r"\| [`\d]", line)]
    return [[cell.strip() for cell in row.split("|")[1 : columns + 1]] for row in rows]


def commands():
    """Return every command line of ours that a document gives, as its arguments."""
    prose = [
        span.removeprefix("trio-gateway ") for span in SPANS if re.match("trio-gateway [a-z]", span)
    ]
    lines = SHELL.splitlines()
    for text in DEPLOY.values():
        lines += [line for line in text.splitlines() if line.startswith(("#   ", "ExecStart="))]
    shell = [
        found[1]
        for line in lines
        if (found := re.search(r"[\s/]trio-gateway ([a-z].*)", f" {line}"))
    ]
    return sorted({tuple(shlex.split(text, comments=True)) for text in prose + shell})


def curls():
    """Return every curl example as method, path and body."""
    found = []
    for line in SHELL.splitlines():
        words = shlex.split(line, comments=True) if "curl " in line else []
        path = next((w.removeprefix("$BASE") for w in words if w.startswith("$BASE/")), None)
        if path is not None:
            body = words[words.index("-d") + 1] if "-d" in words else None
            found.append(("GET" if body is None else "POST", path, body))
    return found


def written(value):
    """Return a setting's value as an environment holds it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def assignments(commented):
    """Return the example's settings: those in force, or those that are commented out."""
    pattern = r"^#([A-Z_]+)=(.*)$" if commented else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, DEPLOY["example.env"], re.MULTILINE))


def test_the_example_settings_load(tmp_path):
    """With the files that it names in place, deploy/example.env is accepted as it stands."""
    environ = assignments(commented=False)
    for name in [name for name in environ if name.endswith("_FILE")]:
        path = tmp_path / name
        secret = {"DATABASE_URL_FILE": "postgresql://s", "REDIS_URL_FILE": "redis://s"}
        path.write_text(secret.get(name, "secret") + "\n", encoding="utf-8")
        environ[name] = str(path)
    loaded = settings.load(environ)
    assert (loaded.database_url, loaded.admin_token) == ("postgresql://s", "secret")


def test_the_example_names_every_setting_once_and_no_secret():
    """What is commented out stands at its default; secrets are paths of files."""
    given, commented = assignments(commented=False), assignments(commented=True)
    named = [name.removesuffix("_FILE") for name in given] + list(commented)
    assert sorted(named) == sorted(map(settings.variable, settings.Settings.model_fields))
    for field, entry in settings.Settings.model_fields.items():
        name = settings.variable(field)
        assert commented.get(name, written(entry.default)) == written(entry.default)
    assert {"DATABASE_URL_FILE", "REDIS_URL_FILE", "TRIO_GATEWAY_ADMIN_TOKEN_FILE"} <= given.keys()


def test_the_readme_has_every_setting_with_its_default():
    """The table of settings is the class Settings, no more and no less."""
    shown = {name.strip("`"): default.strip("`") for name, default in table("Settings", 2)}
    expected = {
        settings.variable(field): written(entry.default) or "none"
        for field, entry in settings.Settings.model_fields.items()
    }
    assert shown == expected


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_a_command_in_the_documents_is_one_that_exists(arguments):
    """Its name, its options and their values are understood."""
    command: click.Command = trunk
    words = list(arguments)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    if words:  # a command may be named without what it needs
        command.make_context(command.name, words)


def test_the_documents_name_every_command():
    """An operator finds each command in them."""
    named = {" ".join(arguments) for arguments in commands()}

    def leaves(command, path):
        if not isinstance(command, click.Group):
            return [path]
        return [
            leaf
            for name, inner in command.commands.items()
            for leaf in leaves(inner, f"{path} {name}")
        ]

    for path in leaves(trunk, ""):
        assert any(f"{line} ".startswith(f"{path.strip()} ") for line in named), path


def test_the_table_of_routes_is_the_gateways():
    """Every route with its methods, and none that is not there."""
    shown = {
        path: tuple(methods.split(", "))
        for cell, methods in table("Routes", 2)
        for path in re.findall(r"`(/[^`]*)`", cell)
    }
    assert shown == routes.EXACT | routes.NAMED


def admin_routes():
    """Return the methods of each route of the admin listener, by its path."""
    found: dict[str, set[str]] = {}
    for rule in create_admin().url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        found.setdefault(path, set()).update(set(rule.methods or ()) - {"HEAD", "OPTIONS"})
    return found


def test_the_table_of_the_admin_listeners_routes_is_complete():
    """The API, health and metrics, each with its methods; the dashboard's pages are its own."""
    shown = {
        path: set(methods.split(", "))
        for cell, methods in table("Routes of the admin listener", 2)
        for path in re.findall(r"`(/[^`]*)`", cell)
    }
    assert shown == {
        path: methods
        for path, methods in admin_routes().items()
        if path.startswith("/admin/v1/") or path in {"/healthz", "/metrics"}
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_route_in_the_documents_is_one_that_exists(name):
    """Every path below /v1, /api and /admin that stands alone between backticks."""
    prose = re.sub(r"^```.*?^```$", "", DOCUMENTS[name], flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(/(?:v1|api|admin)/[^` ?.]*(?:\.json)?)`", prose))
    ours = set(routes.EXACT | routes.NAMED) | set(admin_routes())
    assert named - NO_ROUTES <= ours
    assert not NO_ROUTES & ours


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_setting_in_the_documents_is_one_that_exists(name):
    """By its whole name, or as the path of a file that holds it."""
    named = set(re.findall(r"\bTRIO_GATEWAY_[A-Z_]*[A-Z](?![A-Z_])", DOCUMENTS[name]))
    ours = {settings.variable(field) for field in settings.Settings.model_fields}
    assert {each.removesuffix("_FILE") for each in named} <= ours


def test_every_alert_has_a_line_in_the_guide_that_says_what_to_do():
    """Under its name, with its severity."""
    rules = (TOP / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    expected = re.findall(r"- alert: (\w+)\n(?:.*\n)*?\s+severity: (\w+)", rules)
    rows = table("Alerts: what to do", 3, GUIDE)
    assert [(name.strip("`"), severity) for name, severity, _ in rows] == expected
    assert all(len(advice) > 20 for _, _, advice in rows)


def test_an_event_in_the_guide_is_one_that_is_logged():
    """Each name in the table of log lines is in the code."""
    code = "".join(path.read_text("utf-8") for path in (TOP / "trio_gateway").rglob("*.py"))
    named = [event for (cell,) in table("Logs", 1, GUIDE) for event in re.findall(r"`(\w+)`", cell)]
    assert len(named) > 10
    assert [event for event in named if f'"{event}"' not in code] == []


def test_every_error_of_the_gateway_is_in_the_readme():
    """Status, code and type of each class that a caller can meet, and no other code.

    The admin listener has classes of its own beside those.
    """
    shown = {tuple(cell.strip("`") for cell in row) for row in table("Errors", 3)}
    met = [errors.GatewayError]
    finer = (
        ("400", "context_length_exceeded"),
        ("409", "idempotency_key_conflict"),
        ("413", "file_quota_exceeded"),
    )
    expected = {(*each, "invalid_request_error") for each in finer}
    while met:
        kind = met.pop()
        met += [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
        if kind not in {errors.CallerError, errors.LimitReached, errors.ClientStalled}:
            expected.add((str(kind.status), kind.default_code, kind.type))
    assert shown == expected


def test_the_two_commands_stand_alone_on_their_lines():
    """Both do all of the set-up, and .ci/run finds the second."""
    for ending in ("quickstart --simulate", "-m pytest"):
        (line,) = re.findall(rf"^python3 -m venv .*{ending}$", README, re.MULTILINE)
        assert "-c requirements.lock" in line


async def test_the_curl_examples_are_answered(world):
    """Each is sent as it stands, with a key."""
    assert len(curls()) > 4
    for method, path, body in curls():
        answer = await world.client.request(method, path, content=body, headers=world.auth())
        assert answer.status_code == 200, (method, path, answer.text)


@pytest.mark.parametrize("program", PYTHON, ids=["openai", "ollama", "batches"])
async def test_a_python_example_runs(world, program):
    """As it stands, with BASE and KEY in the environment as the tour sets them."""
    environ = {**os.environ, "BASE": world.base_url, "KEY": world.key["key"]}
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [sys.executable, "-c", program], env=environ, capture_stdout=True
        )
    assert b"Echo: " in done.stdout
    assert {row["outcome"] for row in await world.ledger()} == {"completed"}


def headings(text):
    """Return the anchors that a forge gives to the headings of a document."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_links_to_what_is_there(name):
    """Relative links name files of the repository, and headings that these have."""
    here = TOP / name
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", DOCUMENTS[name]):
        target = (here.parent / path) if path else here
        assert target.exists(), path
        if anchor:
            assert anchor in headings(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_the_benches_named_exist():
    """Each `python -m` line of the README names a module."""
    named = re.findall(r"python -m (tests\.load\.\w+)", README)
    assert len(named) == 12
    assert [name for name in named if importlib.util.find_spec(name) is None] == []
