"""The image: what goes in, who it runs as, what it starts."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import click

from trio_gateway.cli.main import trunk
from trio_gateway.web import routes

TOP = Path(__file__).parents[2]
TEXT = (TOP / "deploy" / "Dockerfile").read_text("utf-8")


def instructions():
    """Return each instruction as its stage, its name and its words, lines joined."""
    found, stage = [], -1
    joined = re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, joined.splitlines())):
        name, _, rest = line.partition(" ")
        stage += name == "FROM"
        found.append((stage, name, re.sub(r"\s+", " ", rest)))
    return found


INSTRUCTIONS = instructions()


def last(name, stage=1):
    """Return the words of the last instruction of a name."""
    return [rest for at, found, rest in INSTRUCTIONS if (at, found) == (stage, name)][-1]


def test_two_stages_and_no_tools_in_the_second():
    """What installs stays behind; from the first stage comes the environment alone."""
    assert [rest for _, name, rest in INSTRUCTIONS if name == "FROM"] == [
        "python:${PYTHON}-slim AS build",
        "python:${PYTHON}-slim",
    ]
    copies = [rest for at, name, rest in INSTRUCTIONS if (at, name) == (1, "COPY")]
    assert copies == ["--from=build /opt/trio-gateway /opt/trio-gateway"]
    assert "pip uninstall" in last("RUN")
    assert "--without-pip" in last("RUN", stage=0)
    assert "apt-get" not in TEXT


def test_what_is_installed_is_locked_and_compiled_by_nobody():
    """Wheels of the versions in requirements.lock, and extras that exist."""
    words = shlex.split(last("RUN", stage=0))
    assert words[words.index("-c") + 1] == "requirements.lock"
    assert words[words.index("--only-binary") + 1] == ":all:"
    project = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["project"]
    (named,) = re.findall(r"--build-arg EXTRAS=([a-z,]+) ", TEXT)
    assert set(named.split(",")) <= project["optional-dependencies"].keys()


def test_it_does_not_run_as_root():
    """A fixed user, by number: Kubernetes cannot tell that a name is not root."""
    assert last("USER") == "10001:10001"
    order = [name for at, name, _ in INSTRUCTIONS if at == 1]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name in {"RUN", "COPY"})


def test_it_starts_a_command_that_there_is():
    """`serve` on every address of the container, with options that exist."""
    assert json.loads(last("ENTRYPOINT")) == ["trio-gateway"]
    command, *options = json.loads(last("CMD"))
    assert isinstance(trunk, click.Group)
    context = trunk.commands[command].make_context(command, options)
    assert context.params["bind"] == f"0.0.0.0:{last('EXPOSE')}"


def test_its_health_is_asked_without_a_shell():
    """By Python, which is there, on a route that there is, within its own time."""
    options, _, command = last("HEALTHCHECK").partition(" CMD ")
    program, flag, code = json.loads(command)
    assert (program, flag) == ("python", "-c")
    ast.parse(code)
    (path,) = re.findall(r"127\.0\.0\.1:8080(/\w+)", code)
    assert path in routes.EXACT
    (timeout,) = re.findall(r"--timeout=(\d+)s", options)
    (inner,) = re.findall(r"timeout=(\d+)\)", code)
    assert int(inner) < int(timeout)


def test_nothing_else_is_sent_to_the_builder():
    """.dockerignore lets through what is copied, and no secret, test or history."""
    lines = (TOP / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = [rest.split()[:-1] for at, name, rest in INSTRUCTIONS if (at, name) == (0, "COPY")]
    assert allowed == {name for names in copied for name in names}
    assert all((TOP / name).exists() for name in allowed)
