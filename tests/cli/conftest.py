"""The command line, run in this process on a fresh database."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.sickroom import LIFE
from trio_gateway.cli import check_bounds, check_workers
from trio_gateway.cli.main import main

PATIENCE = 30.0  # seconds for one check of the doctor's, where it does get an answer


@dataclass(frozen=True)
class Answer:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    def refused(self, *words: str, code: int = 1) -> None:
        """Check that there is one clear line on stderr with these words, and no answer."""
        assert (self.code, self.out) == (code, ""), self
        assert self.err.count("\n") == 1
        assert self.err.startswith("trio-gateway: ")
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err


Run = Callable[..., Answer]


@pytest.fixture(autouse=True)
def lasting_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the doctor know how long the reports stay that tests leave."""
    monkeypatch.setattr(check_workers, "GONE_AFTER", LIFE)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> Run:
    """Run commands with no installation in the environment."""
    for name in ("DATABASE_URL", "REDIS_URL", "OLLAMA_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(*args: str) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def cli(bare: Run, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run commands on a fresh installation."""
    monkeypatch.setattr(check_bounds, "LIMIT", PATIENCE)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_url)
    return bare
