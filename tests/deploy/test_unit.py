"""The systemd unit: what systemd makes of it, and the times that it gives."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.names import settings_of
from trio_gateway.kept import DRAIN_MARGIN
from trio_gateway.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "trio-gateway.service"
TEXT = UNIT.read_text("utf-8")
ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSURE = 1.5  # of 10; 9.6 is a service without any of it
needs_systemd = pytest.mark.skipif(
    ANALYZE is None,
    reason="systemd-analyze is not on PATH: deploy/trio-gateway.service is NOT read",
)


def value(name):
    """Return the only value of a directive."""
    (found,) = re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)
    return found


def analyze(folder, *words):
    """Run systemd-analyze on the unit, with a program that this machine has."""
    (unit := folder / UNIT.name).write_text(
        re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", TEXT, flags=re.MULTILINE), "utf-8"
    )
    command = [str(ANALYZE), *words, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
def test_systemd_understands_every_line(tmp_path):
    """`systemd-analyze verify` says nothing: no directive is misspelled or misplaced."""
    done = analyze(tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_hardly_exposed(tmp_path):
    """By systemd's own count."""
    done = analyze(tmp_path, "security", "--offline=yes", "--no-pager")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSURE


def test_it_is_given_time_to_drain():
    """Longer than the default drain and the supervisor's margin, and workers get no signal."""
    drain = Settings.model_fields["drain_timeout"].default
    assert float(value("TimeoutStopSec")) > drain + DRAIN_MARGIN
    assert value("KillMode") == "mixed"


def test_secrets_come_as_credentials():
    """Each setting that holds one is a file of systemd's; none is in the unit."""
    names = re.findall(r"^LoadCredential=(\w+):/etc/trio-gateway/\1$", TEXT, re.MULTILINE)
    handed = re.findall(r"^Environment=\w+_FILE=%d/(\w+)$", TEXT, re.MULTILINE)
    assert sorted(names) == sorted(handed)
    assert {"database_url", "redis_url", "admin_token"} <= set(names)
    assert {"DATABASE_URL", "REDIS_URL", "TRIO_GATEWAY_ADMIN_TOKEN"} <= settings_of(TEXT)
