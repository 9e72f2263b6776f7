"""What an operator is told of an error."""

import errno
import socket

import pytest

from trio_gateway.core.causes import sentence_of
from trio_gateway.core.errors import StoreUnavailable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StoreUnavailable("one\ntwo"), "one"),
        (ExceptionGroup("no", [ExceptionGroup("no", [StoreUnavailable("one")])]), "one"),
        (ValueError("postgresql://u:hidden@host"), "ValueError"),
        (OSError(errno.ENOSPC, "hidden", "hidden"), "OSError: No space left on device"),
        (PermissionError(errno.EACCES, "hidden"), "PermissionError: Permission denied"),
        (OSError("hidden"), "OSError"),
        (socket.gaierror(socket.EAI_NONAME, "hidden"), "gaierror"),
    ],
)
def test_our_own_words_are_said_and_of_others_the_type_alone(error, words):
    """What the system refused is said in the system's words."""
    assert sentence_of(error) == words
