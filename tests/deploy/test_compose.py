"""The compose files: who is published where, who reaches whom, and what is handed to whom."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.staging import nginx
from tests.deploy.names import settings_of
from trio_gateway import settings
from trio_gateway.kept import DRAIN_MARGIN

DEPLOY = Path(__file__).parents[2] / "deploy"
NGINX = nginx.find()
DOCKER = shutil.which("docker")


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml is not typed
    """YAML with compose's tags for what replaces instead of adding."""


Loader.add_multi_constructor(
    "!", lambda loader, _, node: loader.construct_sequence(node, deep=True)
)


def load(name) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((DEPLOY / name).read_text("utf-8"), Loader)
    return found


COMPOSE = load("compose.yaml")
TLS = load("compose.tls.yaml")
SERVICES = COMPOSE["services"]


def networks(name):
    """Return the networks of a service, however they are written."""
    return set(SERVICES[name]["networks"])


def seconds(text):
    (number,) = re.findall(r"^(\d+)s$", text)
    return float(number)


def test_nginx_alone_is_for_callers_and_the_rest_is_on_loopback():
    """No port of the stores, of Ollama or of the gateway's public listener is published."""
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {
        "nginx": ["127.0.0.1:8080:80"],
        "gateway": ["127.0.0.1:8081:8081"],
        "prometheus": ["127.0.0.1:9090:9090"],
    }
    assert TLS["services"].keys() == {"nginx"}
    assert TLS["services"]["nginx"]["ports"] == ["443:443"]


def test_only_the_gateway_reaches_the_stores_and_ollama():
    """Their networks have no way out; whoever publishes a port is on one that has."""
    inside = {name for name, one in COMPOSE["networks"].items() if (one or {}).get("internal")}
    assert inside == {"stores", "models"}
    on = {net: {name for name in SERVICES if net in networks(name)} for net in COMPOSE["networks"]}
    assert on == {
        "edge": {"nginx", "gateway", "prometheus"},
        "stores": {"gateway", "migrate", "postgres", "redis"},
        "models": {"gateway", "ollama"},
        "pulls": {"ollama"},
    }


def test_every_service_is_confined():
    """No capability, no new privilege, a read-only root, limits; Ollama alone keeps its own."""
    for name, one in SERVICES.items():
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "network_mode", "pid", "devices"} & one.keys(), name
        if name != "ollama":
            assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"]), name
            assert {"mem_limit", "pids_limit"} <= one.keys(), name
            assert "/tmp" in one["tmpfs"], name


def test_secrets_are_files_that_nothing_holds_by_default():
    """Each is a file of secrets/, each is used, and no environment has a password."""
    given = COMPOSE["secrets"] | TLS["secrets"]
    assert {name: one["file"] for name, one in given.items()} == {
        name: f"secrets/{name}" for name in given
    }
    used = set()
    for one in (*SERVICES.values(), *TLS["services"].values()):
        for secret in one.get("secrets", []):
            used.add(secret if isinstance(secret, str) else secret["source"])
        for name, value in one.get("environment", {}).items():
            assert "://" not in value or "@" not in value, name
            if re.search("PASSWORD|TOKEN|DATABASE_URL|REDIS_URL", name):
                assert name.endswith("_FILE"), name
                assert value.removeprefix("/run/secrets/") in one["secrets"]
    assert used == given.keys()


def test_the_head_makes_every_secret():
    """Whoever follows it has all the files that compose.yaml names."""
    head = (DEPLOY / "compose.yaml").read_text("utf-8").split("\nname:")[0]
    looped = re.search(r"for name in ([a-z ]+);", head)
    assert looped is not None
    made = {*looped[1].split(), *re.findall(r"> (\w+)$", head, re.MULTILINE)}
    assert made == COMPOSE["secrets"].keys()


def test_the_settings_are_the_gateways_and_load(tmp_path):
    """With its secrets in place the gateway's environment is accepted as it stands."""
    assert settings_of((DEPLOY / "compose.yaml").read_text("utf-8")) >= {"OLLAMA_BASE_URL"}
    environ = {}
    secrets = {"DATABASE_URL_FILE": "postgresql://s", "REDIS_URL_FILE": "redis://s"}
    for name, value in SERVICES["gateway"]["environment"].items():
        environ[name] = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
        if name.endswith("_FILE"):
            environ[name] = str(tmp_path / name)
            (tmp_path / name).write_text(secrets.get(name, f"{name:-<40}"), encoding="utf-8")
    loaded = settings.load(environ)
    assert loaded.admin_allow_remote
    assert loaded.trusted_proxies == "172.31.240.0/24"
    grace = seconds(SERVICES["gateway"]["stop_grace_period"])
    assert grace > loaded.drain_timeout + DRAIN_MARGIN


def test_the_gateway_waits_for_its_migration():
    """And callers for the gateway."""
    conditions = {
        (name, other): condition["condition"]
        for name, one in SERVICES.items()
        for other, condition in one.get("depends_on", {}).items()
    }
    assert conditions == {
        ("nginx", "gateway"): "service_healthy",
        ("gateway", "migrate"): "service_completed_successfully",
        ("gateway", "redis"): "service_healthy",
        ("migrate", "postgres"): "service_healthy",
    }


def test_prometheus_reads_the_shipped_files(tmp_path):
    """The shell of its entry point, run for real, leaves a configuration with our address."""
    (shell,) = SERVICES["prometheus"]["entrypoint"][2:]
    shell = shell.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    shell = shell.replace("/etc/trio-gateway", str(DEPLOY / "prometheus"))
    shell = re.sub(r"exec prometheus.*", "", shell, flags=re.DOTALL)
    environ = {"GATEWAY": "172.31.240.2:8081", "PATH": "/usr/bin:/bin"}
    subprocess.run(["sh", "-ec", shell], env=environ, check=True, timeout=60)
    (job,) = yaml.safe_load((tmp_path / "scrape.yml").read_text("utf-8"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["172.31.240.2:8081"]}]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == secret["target"]
    assert (tmp_path / "alerts.yml").is_file()


@pytest.mark.skipif(NGINX is None, reason="nginx is not on PATH: compose's nginx is NOT tested")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_shell_of_nginx_makes_a_configuration_that_loads(tls, tmp_path, certificate):
    """Run for real, with paths of this machine, and read by nginx itself."""
    (shell,) = SERVICES["nginx"]["command"][2:]
    for place, here in (
        ("/etc/trio-gateway/nginx.conf", DEPLOY / "nginx.conf"),
        ("/etc/nginx/conf.d/default.conf", tmp_path / "site.conf"),
        ("/run/secrets/", f"{certificate}/"),
        ("/dev/stdout", tmp_path / "access.log"),
    ):
        assert place in shell
        shell = shell.replace(place, str(here))
    shell = shell.replace("$$", "$").replace('exec nginx -g "daemon off;"', "")
    environ = {"GATEWAY": "172.31.240.2:8080", "PATH": "/usr/bin:/bin"}
    environ |= TLS["services"]["nginx"]["environment"] if tls else {}
    subprocess.run(["sh", "-ec", shell], env=environ, check=True, timeout=60)
    site = (tmp_path / "site.conf").read_text("utf-8")
    assert "server 172.31.240.2:8080 max_fails=0;" in site
    listening = re.findall(r"^ *listen (\d+)", site, re.MULTILINE)
    inside = [port.rsplit(":", 1)[1] for port in SERVICES["nginx"]["ports"]]
    over_tls = [port.rsplit(":", 1)[1] for port in TLS["services"]["nginx"]["ports"]]
    assert listening == (over_tls if tls else inside)
    server = nginx.Nginx(tmp_path, 0)
    server.write(site)
    done = subprocess.run([*server.words, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compose_program():
    """Return how compose is run here, None if it is not."""
    if DOCKER is not None:
        asked = subprocess.run([DOCKER, "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return [DOCKER, "compose"]
    return None


@pytest.mark.skipif(
    compose_program() is None,
    reason="docker compose is not here: it has NOT read deploy/compose.yaml",
)
@pytest.mark.parametrize("more", [[], ["-f", str(DEPLOY / "compose.tls.yaml")]])
def test_compose_reads_the_files(more):
    """`docker compose config` finds no fault, with every profile."""
    words = [*(compose_program() or []), "-f", str(DEPLOY / "compose.yaml"), *more]
    words += ["--profile", "metrics", "config", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
