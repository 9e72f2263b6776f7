"""The guide's recipes, run as they stand in it against a gateway."""

from __future__ import annotations

import os
import re
import ssl
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from deploy.staging import nginx as shipped
from deploy.staging.nginx import Nginx
from deploy.staging.programs import free_port
from tests.deploy.certificates import write_certificate
from tests.integration.admin_world import open_admin

GUIDE = (Path(__file__).parents[2] / "deploy" / "guide.md").read_text(encoding="utf-8")
RECIPES = GUIDE.split("\n## Recipes\n")[1].split("\n## ")[0]
PYTHON = re.findall(r"^```python\n(.*?)^```$", RECIPES, re.DOTALL | re.MULTILINE)
INSTALLED = ("openai", "ollama")
OTHERS = ("langchain_openai", "langchain_ollama", "llama_index.llms.openai_like")
LIMIT = 180.0  # seconds for a client to import and to ask
KEYLESS = """
import ollama
try:
    print(ollama.chat("llama3.2", [{"role": "user", "content": "Hello"}]).message.content)
except ollama.ResponseError as error:
    print(error.status_code)
"""

needs_nginx = pytest.mark.skipif(
    shipped.find() is None, reason="nginx is not on PATH: the guide's examples are NOT tried"
)


def library(program):
    """Return what a recipe is about: the one library that it imports beside Python's own."""
    (name,) = set(re.findall(r"^(?:from|import) ([\w.]+)", program, re.MULTILINE)) - {"os"}
    return name


RUN = {library(program): program for program in PYTHON if library(program) in INSTALLED}


def nginx_block(text, heading):
    """Return the configuration under a heading."""
    section = text.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    (found,) = re.findall(r"^```nginx\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return found


def replaced(text, *pairs):
    """Replace each of these, which must be there once."""
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


async def output(program, **environ):
    """Run a program in Python and return what it printed; raises if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [sys.executable, "-c", program], env=kept | environ, capture_stdout=True
        )
    return done.stdout.decode()


def test_the_recipes_are_for_libraries_that_are_known_here():
    """Each is run here, or is for a library of which the guide says that it was tried by hand."""
    assert set(map(library, PYTHON)) == {*INSTALLED, *OTHERS}
    for number, program in enumerate(PYTHON):
        compile(program, f"recipe {number}", "exec")


@pytest.mark.parametrize("name", INSTALLED)
async def test_a_recipe_gets_its_answer(world, name):
    """Nothing is set but the gateway's address and a key; the call is booked to that key."""
    said = await output(RUN[name], BASE=world.base_url, KEY=world.key["key"])
    assert "Echo: Hello" in said
    (row,) = await world.ledger()
    assert (row["outcome"], row["key_id"]) == ("completed", world.key["id"])


@pytest.mark.usefixtures("same_day")
async def test_the_openai_recipe_tells_what_is_left_and_that_it_is_spent(world):
    """A budget that shrinks is printed; one that is too small for a call is an error's code."""
    key = await world.tenant_with_key("small", key={"budget": 24, "budget_period": "day"})
    environ = {"BASE": world.base_url, "KEY": key["key"]}
    first = await output(RUN["openai"], **environ)
    assert re.fullmatch(r"Echo: Hello\n\d+\n", first)
    await world.settled()
    second = await output(RUN["openai"], **environ)
    assert second.startswith("insufficient_quota ")


@asynccontextmanager
async def nginx(folder, port, site):
    """Run nginx with this site; its certificate, if any, is in its folder."""
    folder.mkdir(exist_ok=True)
    running = Nginx(folder, port)
    running.write(f"access_log off;\n{site}")
    try:
        await running.start()
        yield
    finally:
        with trio.move_on_after(LIMIT, shield=True):
            await running.stop()


@asynccontextmanager
async def with_tls(world, folder):
    """Run the shipped nginx with TLS in front of the gateway; yields the folder and the port."""
    write_certificate(folder)
    port = free_port()
    site = shipped.adapted(folder, port, [f"127.0.0.1:{world.port}"])
    site = shipped.with_tls(site, folder / "fullchain.pem", folder / "privkey.pem")
    async with nginx(folder / "front", port, site):
        yield port


@needs_nginx
@pytest.mark.parametrize("name", ["gateway.example.com", "another.example.com"])
async def test_the_local_nginx_adds_the_key_for_that_gateway_alone(world, tmp_path, name):
    """A client that knows no key is served through it, unless the certificate is another's."""
    port = free_port()
    async with with_tls(world, tmp_path) as front:
        site = replaced(
            nginx_block(RECIPES, "The `ollama` command"),
            ("listen 127.0.0.1:11435;", f"listen 127.0.0.1:{port}; proxy_ssl_name {name};"),
            ("https://gateway.example.com", f"https://127.0.0.1:{front}"),
            ("/etc/ssl/certs/ca-certificates.crt", str(tmp_path / "fullchain.pem")),
            ("sk-tg-...", world.key["key"]),
        )
        async with nginx(tmp_path / "local", port, site):
            said = await output(KEYLESS, OLLAMA_HOST=f"127.0.0.1:{port}")
    expected = ("Echo: Hello", [world.key["id"]])
    if name != "gateway.example.com":
        expected = ("502", [])
    assert expected[0] in said
    assert [row["key_id"] for row in await world.ledger()] == expected[1]


@needs_nginx
async def test_the_proxy_of_the_admin_listener_lets_its_own_name_in(world, tmp_path):
    """By https, with cookies for TLS alone; another name is refused by the listener."""
    write_certificate(tmp_path)
    port, own = free_port(), "gateway-admin.example.com"
    async with open_admin(world, admin_public_url=f"https://{own}") as admin:
        certificates = f"/etc/ssl/{own}"
        site = replaced(
            nginx_block(GUIDE, "The admin listener"),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{port} ssl http2;"),
            (f"{certificates}/fullchain.pem", str(tmp_path / "fullchain.pem")),
            (f"{certificates}/privkey.pem", str(tmp_path / "privkey.pem")),
            ("allow 10.0.0.0/8", "allow 127.0.0.0/8"),
            ("http://127.0.0.1:8081", admin.base_url),
        )
        trusted = ssl.create_default_context(cafile=str(tmp_path / "fullchain.pem"))
        async with (
            nginx(tmp_path / "admin", port, site),
            httpx.AsyncClient(
                base_url=f"https://127.0.0.1:{port}", verify=trusted, timeout=60, http2=True
            ) as client,
        ):
            ours = await client.get("/login", headers={"host": own})
            other = await client.get("/login", headers={"host": "evil.example.com"})
    assert (ours.status_code, other.status_code) == (200, 421)
    assert ours.http_version == "HTTP/2"  # browsers open few connections of HTTP/1.1 to a host
    assert "secure" in ours.headers["set-cookie"].lower()
