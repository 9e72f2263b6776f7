"""What the tests of deploy/ share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.certificates import write_certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """A folder with `fullchain.pem` and `privkey.pem`, signed by itself."""
    folder: Path = tmp_path_factory.mktemp("certificate")
    write_certificate(folder)
    return folder
