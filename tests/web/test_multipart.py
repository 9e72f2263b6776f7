"""Multipart bodies: what comes out does not depend on the pieces that went in."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_gateway.core.errors import InvalidCall
from trio_gateway.web.multipart import Data, Decoder, Epilogue, Field, File

B = b"bound"
CONTENTS = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", b"--boun", b"--bound-", b"bound", b"x", b" ", b"\0"]
    ),
    max_size=12,
).map(b"".join)


def body(parts, padding=b""):
    """Write a form of fields, and of files where the name begins with `f`."""
    said = []
    for name, content in parts:
        more = b'; filename="x"' if name.startswith(b"f") else b""
        said.append(b"--%b%b\r\nContent-Disposition: form-data; " % (B, padding))
        said.append(b'name="%b"%b\r\n\r\n%b\r\n' % (name, more, content))
    return b"".join(said) + b"--%b--%b\r\n" % (B, padding)


def read(pieces):
    """Take a body apart, and return its parts."""
    decoder, parts, ended = Decoder(B), [], False
    for piece in [*pieces, b""]:
        for event in decoder.feed(piece):
            if isinstance(event, Field | File):
                parts.append((event.name.encode(), b""))
            elif isinstance(event, Data):
                parts[-1] = (parts[-1][0], parts[-1][1] + event.data)
            ended |= isinstance(event, Epilogue)
    assert ended
    return parts


def cut(content, places):
    """Cut into pieces, none of them empty."""
    edges = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[a:b] for a, b in pairwise(edges)]


@given(
    parts=st.lists(st.tuples(st.sampled_from([b"a", b"file"]), CONTENTS), max_size=3),
    places=st.lists(st.integers(0, 10_000), max_size=12),
    padding=st.sampled_from([b"", b" ", b" \t "]),
)
@example(parts=[(b"file", b"x")], places=[], padding=b"")
def test_the_parts_are_the_same_however_the_body_is_cut(parts, places, padding):
    """Byte for byte: no delimiter in the data, and no data lost to one."""
    clean = [(name, content.replace(b"--bound", b"--boun")) for name, content in parts]
    assert read(cut(body(clean, padding), places)) == clean


@pytest.mark.parametrize("content", [b"", b"x", b"{}\n", b"\r\n", b"-", b"a\r\n--boun"])
@pytest.mark.parametrize("padding", [b"", b" \t"])
def test_every_single_cut_gives_the_same(content, padding):
    """In two pieces, cut at each place; and byte by byte."""
    parts = [(b"a", b"1"), (b"file", content)]
    whole = body(parts, padding)
    for place in range(1, len(whole)):
        assert read([whole[:place], whole[place:]]) == parts
    assert read([whole[at : at + 1] for at in range(len(whole))]) == parts


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"x",
        body([(b"a", b"1")])[:-4],
        b"--bound\r\nContent-Type: text/plain\r\n\r\nx\r\n--bound--\r\n",
        b"--bound\r\nContent-Disposition: \xff\r\n\r\nx\r\n--bound--\r\n",
    ],
)
def test_what_is_no_form_is_refused(broken):
    """Cut off, without a name, or not text where text belongs."""
    with pytest.raises(InvalidCall):
        read([broken] if broken else [])
