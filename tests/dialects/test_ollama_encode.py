"""Bodies to upstream, and its lines back."""

import orjson
import pytest

from trio_gateway.core.domain import Call
from trio_gateway.core.errors import UpstreamError
from trio_gateway.dialects.ollama import encode_call, parse, parse_chunk


def call(endpoint="/api/chat", **body):
    filled = {"model": "LLaMA3", "messages": [{"role": "user", "content": "hi"}], **body}
    found = parse(endpoint, orjson.dumps(filled))
    assert isinstance(found, Call)
    return found


CHAT = call()
GENERATE = call("/api/generate", prompt="hi")
EMBED = call("/api/embed", input="hi")
EMBEDDINGS = call("/api/embeddings", prompt="hi")


def test_the_operators_options_win():
    """The ceiling and the pinned options are merged over the caller's."""
    asked = call(options={"num_ctx": 10**7, "seed": 1, "num_predict": 10**6}, stream=False)
    sent = encode_call(asked, ceiling=77, load_options={"num_ctx": 4096}, keep_alive="5m")
    assert orjson.loads(sent) == {
        "model": "llama3:latest",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"seed": 1, "num_ctx": 4096, "num_predict": 77},
        "stream": True,
        "keep_alive": "5m",
    }
    assert asked.body["options"] == {"seed": 1}


def test_a_ceiling_of_nothing_is_never_no_limit():
    """Upstream would take 0 for unlimited."""
    sent = orjson.loads(encode_call(CHAT, ceiling=0, load_options={}, keep_alive="5m"))
    assert sent["options"] == {"num_predict": 1}


def test_embeddings_are_sent_without_stream_and_ceiling():
    """They have no output; the catalog's spelling can be given for the exact-case lookup."""
    sent = encode_call(
        EMBEDDINGS, ceiling=5, load_options={}, keep_alive="-1", model="LLaMA3:latest"
    )
    assert orjson.loads(sent) == {"model": "LLaMA3:latest", "prompt": "hi", "keep_alive": -1}
    pinned = encode_call(EMBED, ceiling=None, load_options={"num_ctx": 8}, keep_alive="5m")
    assert orjson.loads(pinned)["options"] == {"num_ctx": 8}


def test_cloud_names_keep_their_suffix_upstream():
    """m:8b:cloud is sent as its entry in /api/tags is spelled."""
    cloud = call(model="M:8b:cloud")
    sent = encode_call(cloud, ceiling=1, load_options={}, keep_alive="5m")
    assert orjson.loads(sent)["model"] == "m:8b-cloud"


def test_a_chat_chunk_is_read():
    """Text, thinking, tool calls and logprobs, in known fields only."""
    line = orjson.dumps(
        {
            "model": "x",
            "message": {
                "role": "assistant",
                "content": "a",
                "thinking": "b",
                "tool_calls": [
                    {"id": "c", "function": {"index": 0, "name": "n", "arguments": {"q": 1}}},
                    {"function": {"name": "n", "arguments": None, "other": 1}, "secret": 1},
                ],
            },
            "logprobs": [
                {
                    "token": "a",
                    "logprob": -0.5,
                    "bytes": [97],
                    "x": 1,
                    "top_logprobs": [{"token": "a", "logprob": -0.5, "x": 1}],
                }
            ],
            "done": False,
        }
    )
    chunk = parse_chunk(CHAT, line)
    assert (chunk.content, chunk.thinking, chunk.done) == ("a", "b", False)
    assert chunk.tool_calls == [
        {"id": "c", "function": {"index": 0, "name": "n", "arguments": {"q": 1}}},
        {"function": {"name": "n", "arguments": {}}},
    ]
    top = [{"token": "a", "logprob": -0.5}]
    assert chunk.logprobs == [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top}]


def test_the_last_chunk_has_counts_where_upstream_gave_them():
    """Absent counts are None, and what is no whole number is -1, which nobody believes."""
    done = parse_chunk(GENERATE, b'{"response":"","done":true,"done_reason":"stop"}')
    assert (done.done, done.done_reason) == (True, "stop")
    assert (done.prompt_tokens, done.output_tokens) == (None, None)
    line = b'{"done":true,"prompt_eval_count":%b,"eval_count":%b}'
    for sent, read in ((b"26", 26), (b"5.0", 5), (b"-3", -3), (b"5.5", -1), (b'"7"', -1)):
        counts = parse_chunk(GENERATE, line % (sent, sent))
        assert (counts.prompt_tokens, counts.output_tokens) == (read, read)
    assert parse_chunk(GENERATE, line % (b"true", b"[]")).output_tokens == -1
    unfinished = parse_chunk(GENERATE, b'{"response":"x","done":"true","eval_count":5}')
    assert (unfinished.done, unfinished.output_tokens) == (False, None)


def test_embeddings_are_done_with_their_one_object():
    """/api/embed counts its prompt, /api/embeddings does not."""
    done = parse_chunk(EMBED, b'{"embeddings":[[0.1]],"prompt_eval_count":3}')
    assert (done.done, done.prompt_tokens, done.output_tokens) == (True, 3, None)
    legacy = parse_chunk(EMBEDDINGS, b'{"embedding":[0.1]}')
    assert (legacy.done, legacy.prompt_tokens) == (True, None)


BAD_LINES = [
    (CHAT, b""),
    (CHAT, b"nonsense secret"),
    (CHAT, b"[]"),
    (CHAT, b'"secret"'),
    (CHAT, b'{"error":"secret"}'),
    (CHAT, b'{"error":{"message":"secret"},"done":true}'),
    (CHAT, b'{"message":"secret"}'),
    (CHAT, b'{"message":{"content":["secret"]}}'),
    (CHAT, b'{"message":{"content":"","thinking":1}}'),
    (CHAT, b'{"message":{"tool_calls":{"secret":1}}}'),
    (CHAT, b'{"message":{"tool_calls":["secret"]}}'),
    (CHAT, b'{"message":{"tool_calls":[{"function":"secret"}]}}'),
    (CHAT, b'{"message":{"tool_calls":[{"function":{"name":1}}]}}'),
    (CHAT, b'{"logprobs":"secret"}'),
    (CHAT, b'{"logprobs":[{"top_logprobs":["secret"]}]}'),
    (GENERATE, b'{"response":5}'),
    (EMBED, b"{}"),
    (EMBED, b'{"embeddings":["secret"]}'),
    (EMBEDDINGS, b'{"embedding":"secret"}'),
]


@pytest.mark.parametrize(("sent", "line"), BAD_LINES)
def test_what_cannot_be_read_is_an_upstream_error_in_our_words(sent, line):
    """Upstream's text is never repeated."""
    with pytest.raises(UpstreamError) as caught:
        parse_chunk(sent, line)
    assert "secret" not in caught.value.message
    assert caught.value.status == 502


def test_null_and_absent_fields_of_a_chunk_are_empty():
    """Go leaves out what is empty."""
    for line in (b"{}", b'{"message":null}', b'{"message":{"content":null,"tool_calls":null}}'):
        chunk = parse_chunk(CHAT, line)
        assert (chunk.content, chunk.thinking, chunk.tool_calls) == ("", "", [])
    assert parse_chunk(CHAT, b'{"error":null,"logprobs":[]}').logprobs is None
