"""Native requests in: what is kept, what is dropped, what is refused."""

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gateway.core.domain import Call
from trio_gateway.core.errors import InvalidCall
from trio_gateway.dialects import ollama
from trio_gateway.dialects.ollama import Preload, parse, parse_show

PIXEL = base64.b64encode(b"a picture").decode()
SECRET = "private words"


def chat(**changes):
    body = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], **changes}
    return parse("/api/chat", orjson.dumps(body))


def generate(**changes):
    return parse("/api/generate", orjson.dumps({"model": "llama3", "prompt": "hi", **changes}))


def embed(**changes):
    return parse("/api/embed", orjson.dumps({"model": "llama3", "input": "hi", **changes}))


def embeddings(**changes):
    return parse("/api/embeddings", orjson.dumps({"model": "llama3", "prompt": "hi", **changes}))


def test_a_chat_is_rebuilt_from_every_known_field():
    """The golden chat: nothing lost, nothing else forwarded."""
    tool = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look it up.",
            "parameters": {"type": "object", "properties": {"q": {"type": ["string", "null"]}}},
        },
    }
    called: dict[str, Any] = {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "tool_calls": [
            {"id": "c1", "function": {"name": "look", "arguments": {"q": "x"}, "index": 0}}
        ],
    }
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is this?", "images": [PIXEL]},
        called,
        {"role": "tool", "content": "an é", "tool_name": "look", "tool_call_id": "c1"},
    ]
    call = chat(
        model=" LLAMA3:latest ",
        messages=messages,
        tools=[tool],
        format={"type": "object"},
        think="high",
        logprobs=True,
        top_logprobs=3,
        truncate=False,
        shift=True,
        keep_alive="5m",
        stream=False,
        options={"temperature": 0.5, "stop": ["END"], "num_predict": 64, "num_ctx": 10_000_000},
        _debug_render_only=True,
        unknown={"x": 1},
    )
    assert call.body == {
        "messages": messages,
        "tools": [tool],
        "format": {"type": "object"},
        "think": "high",
        "logprobs": True,
        "top_logprobs": 3,
        "truncate": False,
        "options": {"temperature": 0.5, "stop": ["END"]},
    }
    assert (call.requested, call.model) == (" LLAMA3:latest ", "llama3:latest")
    assert (call.endpoint, call.upstream) == ("/api/chat", "/api/chat")
    assert (call.ask, call.stream, call.generates) == (64, False, True)
    assert (call.parts, call.images) == (4, 1)
    read = len("Be brief.What is this?hman élookc1".encode())
    read += len(orjson.dumps(called["tool_calls"][0]["function"]))
    read += len(orjson.dumps(tool["function"])) + len(b'{"type":"object"}')
    assert call.prompt_bytes == read


def test_streaming_is_the_default_of_chat_and_generate():
    """Absent and null mean true, as in Ollama."""
    assert chat().stream
    assert chat(stream=None).stream
    assert generate().stream
    assert not generate(stream=False).stream
    assert not embed(stream=True).stream


def test_generate_is_rebuilt_from_every_known_field():
    """Prompt, suffix, system, template, context and images go upstream."""
    fields = {
        "prompt": "abcd",
        "suffix": "ef",
        "system": "ghi",
        "template": "{{ .Prompt }}",
        "context": [1, 2, 3],
        "images": [PIXEL],
        "think": False,
        "format": "json",
    }
    call = generate(**fields, raw=False, width=4, keep_alive=-1)
    assert call.body == fields
    assert call.prompt_bytes == 4 + 2 + 3 + 13 + 3 * 4
    assert (call.parts, call.images, call.ask) == (1, 1, None)


def test_raw_goes_with_the_prompt_alone():
    """`raw` with a template, a system prompt or a context is refused."""
    assert generate(raw=True).body == {"prompt": "hi", "raw": True}
    for extra in ({"template": "x"}, {"system": "x"}, {"context": [1]}):
        with pytest.raises(InvalidCall) as caught:
            generate(raw=True, **extra)
        assert caught.value.param == "raw"


def test_embeddings_do_not_generate():
    """Each input is a part, and there is no output to ask for."""
    call = embed(input=["a", "bc", ""], dimensions=8, options={"num_predict": 5, "seed": 1})
    assert call.body == {"input": ["a", "bc", ""], "dimensions": 8, "options": {"seed": 1}}
    assert (call.generates, call.ask, call.parts, call.prompt_bytes) == (False, None, 3, 3)
    assert embed(dimensions=0, truncate=True).body == {"input": "hi", "truncate": True}
    assert embed(dimensions=-5).body == {"input": "hi"}
    legacy = embeddings(truncate=True)
    assert legacy.body == {"prompt": "hi"}
    assert (legacy.generates, legacy.parts, legacy.prompt_bytes) == (False, 1, 2)


@pytest.mark.parametrize(
    ("endpoint", "extra"),
    [
        ("/api/chat", {}),
        ("/api/chat", {"messages": []}),
        ("/api/chat", {"messages": None}),
        ("/api/generate", {}),
        ("/api/generate", {"prompt": ""}),
        ("/api/generate", {"prompt": "", "system": "x"}),
        ("/api/embed", {}),
        ("/api/embed", {"input": ""}),
        ("/api/embed", {"input": []}),
        ("/api/embeddings", {}),
        ("/api/embeddings", {"prompt": ""}),
    ],
)
def test_a_request_without_a_prompt_is_a_preload(endpoint, extra):
    """Nothing of it goes upstream."""
    found = parse(endpoint, orjson.dumps({"model": "LLama3", **extra}))
    assert isinstance(found, Preload)
    assert (found.endpoint, found.requested, found.model) == (endpoint, "LLama3", "llama3:latest")
    assert not found.keep_alive_zero


ZERO = [0, 0.0, -0.0, 1e-12, "0", "+0", "-0", "0s", "0m0s", "-0h", "0.0ms", ".0s", "0.1ns", "0µs"]
NOT_ZERO = [None, -1, 5, 0.5, "-1", "5m", "1h30m", "876000h", "-1s", "1ns", "", "x", "0x", "s"]


@pytest.mark.parametrize(
    ("value", "zero"), [(item, True) for item in ZERO] + [(item, False) for item in NOT_ZERO]
)
def test_every_spelling_of_no_keep_alive_is_seen(value, zero):
    """A preload that unloads is told from one that loads; a call ignores both."""
    found = parse("/api/generate", orjson.dumps({"model": "m", "keep_alive": value}))
    assert isinstance(found, Preload)
    assert found.keep_alive_zero is zero
    assert "keep_alive" not in chat(keep_alive=value).body


LOAD_TIME = {
    "num_ctx": 10_000_000,
    "num_batch": 1,
    "num_gpu": 99,
    "main_gpu": 3,
    "use_mmap": "nonsense",
    "num_thread": [1],
    "draft_num_predict": 5,
    "numa": True,
    "options": {"num_ctx": 1},
    "private words": 1,
}


def test_load_time_and_unknown_options_are_dropped():
    """What would reload the model for everyone is never an error and never forwarded."""
    assert "options" not in chat(options=LOAD_TIME).body
    kept = chat(options={**LOAD_TIME, "seed": 1}, shift="nonsense")
    assert kept.body["options"] == {"seed": 1}
    assert "shift" not in kept.body


@pytest.mark.parametrize(
    ("value", "ask"),
    [(1, 1), (64.9, 64), (2**31 - 1, 2**31 - 1), (0, None), (-1, None), (-2, None)],
)
def test_num_predict_is_the_ask(value, ask):
    """-1, -2 and 0 are no limit; a fraction is cut off."""
    call = generate(options={"num_predict": value})
    assert call.ask == ask
    assert "options" not in call.body


def test_sampling_options_are_kept():
    """Each of them, null being absent and a float being cut to an integer where one is meant."""
    options = {
        "num_keep": 4,
        "seed": -1,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0,
        "typical_p": 1,
        "repeat_last_n": 64,
        "temperature": 0.8,
        "repeat_penalty": 1.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "stop": ["a", "b"],
    }
    assert chat(options=options).body["options"] == options
    assert chat(options={"top_k": 40.7, "seed": None}).body["options"] == {"top_k": 40}


BAD_CHATS = [
    ("model", {"model": None}),
    ("model", {"model": ""}),
    ("model", {"model": ["llama3"]}),
    ("model", {"model": SECRET}),
    ("model", {"model": "llama3@sha256:" + "a" * 64}),
    ("model", {"model": "a" * 10_000}),
    ("model", {"model": "foo:cloud:local"}),
    ("stream", {"stream": "false"}),
    ("stream", {"stream": 0}),
    ("options.num_predict", {"options": {"num_predict": 1, "NUM_PREDICT": 9}}),
    ("options.num_ctx", {"options": {"Num_Ctx": 9}}),
    ("truncate", {"truncate": 1}),
    ("think", {"think": "HIGH"}),
    ("think", {"think": 1}),
    ("think", {"think": ["low"]}),
    ("format", {"format": SECRET}),
    ("format", {"format": ["json"]}),
    ("format", {"format": True}),
    ("format", {"format": {"enum": ["x" * 70_000]}}),
    ("logprobs", {"logprobs": 1}),
    ("top_logprobs", {"top_logprobs": 21}),
    ("top_logprobs", {"top_logprobs": -1}),
    ("top_logprobs", {"top_logprobs": 10**6}),
    ("options", {"options": [1]}),
    ("options.temperature", {"options": {"temperature": SECRET}}),
    ("options.temperature", {"options": {"temperature": True}}),
    ("options.top_k", {"options": {"top_k": "40"}}),
    ("options.seed", {"options": {"seed": 2**63}}),
    ("options.seed", {"options": {"seed": 1e300}}),
    ("options.repeat_last_n", {"options": {"repeat_last_n": 2**31}}),
    ("options.num_predict", {"options": {"num_predict": -3}}),
    ("options.num_predict", {"options": {"num_predict": 2**31}}),
    ("options.num_predict", {"options": {"num_predict": "all"}}),
    ("options.num_predict", {"options": {"num_predict": True}}),
    ("options.stop", {"options": {"stop": SECRET}}),
    ("options.stop", {"options": {"stop": [SECRET, 1]}}),
    ("options.stop", {"options": {"stop": ["x"] * 65}}),
    ("options.stop", {"options": {"stop": ["x" * 1025]}}),
    ("messages", {"messages": SECRET}),
    ("messages", {"messages": [SECRET]}),
    ("messages", {"messages": [{"role": "user"}] * 4097}),
    ("messages[0].role", {"messages": [{"content": "x"}]}),
    ("messages[0].role", {"messages": [{"role": ""}]}),
    ("messages[0].role", {"messages": [{"role": "<|system|>"}]}),
    ("messages[0].role", {"messages": [{"role": "user", "Role": "system"}]}),
    ("messages[1].content", {"messages": [{"role": "user"}, {"role": "user", "content": 5}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("messages[0].images", {"messages": [{"role": "user", "images": PIXEL}]}),
    ("messages[0].images", {"messages": [{"role": "user", "images": [PIXEL] * 129}]}),
    ("messages[0].images[1]", {"messages": [{"role": "user", "images": [PIXEL, "%%%"]}]}),
    ("tools", {"tools": {"type": "function"}}),
    ("tools", {"tools": [{}] * 257}),
    ("tools[0].function", {"tools": [{"type": "function"}]}),
    ("tools[0].function.name", {"tools": [{"function": {}}]}),
    ("tools[0].function.name", {"tools": [{"function": {"name": "a", "NAME": "b"}}]}),
]


@pytest.mark.parametrize(("param", "changes"), BAD_CHATS)
def test_a_bad_field_of_a_chat_is_named(param, changes):
    """400 with `param`, and no value in the text."""
    with pytest.raises(InvalidCall) as caught:
        chat(**changes)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert SECRET not in caught.value.message


BAD_IMAGES = ["", "%%%", "YWJj\x00", "YWI", "YWJjZA=", "YQ===", "data:image/png;base64,YQ==", "é"]


@pytest.mark.parametrize("image", BAD_IMAGES)
def test_images_are_plain_base64(image):
    """With padding and without a data URL in front; line breaks are tolerated."""
    with pytest.raises(InvalidCall) as caught:
        generate(images=[image])
    assert caught.value.param == "images[0]"
    broken = f"{PIXEL[:4]}\r\n{PIXEL[4:]}\n"
    assert generate(images=[broken]).body["images"] == [broken]


@pytest.mark.parametrize(
    ("param", "called"),
    [
        ("function", {"id": "x"}),
        ("function", {"function": "look"}),
        ("function.name", {"function": {"arguments": {}}}),
        ("function.arguments", {"function": {"name": "look", "arguments": "{}"}}),
        ("function.index", {"function": {"name": "look", "index": -1}}),
        ("function.name", {"function": {"name": "look", "Name": "other"}}),
        ("id", {"id": 5, "function": {"name": "look"}}),
        ("id", {"ID": "a", "function": {"name": "look"}}),
    ],
)
def test_a_bad_tool_call_is_named(param, called):
    """Arguments are an object, not a text that holds one."""
    with pytest.raises(InvalidCall) as caught:
        chat(messages=[{"role": "assistant", "tool_calls": [called]}])
    assert caught.value.param == f"messages[0].tool_calls[0].{param}"


def test_a_tool_call_needs_its_name_alone():
    """Missing arguments are none, and a type is not forwarded."""
    called = {"type": "function", "function": {"name": "look", "arguments": None}}
    call = chat(messages=[{"role": "Assistant", "tool_calls": [called]}])
    assert call.body["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "look", "arguments": {}}}],
        }
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        [],
        {"type": ["object"]},
        {"type": 5},
        {"required": "q"},
        {"required": [1]},
        {"properties": []},
        {"properties": {"q": True}},
        {"properties": {"q": {"type": [1]}}},
        {"properties": {"q": {"enum": "x"}}},
        {"properties": {"q": {"description": 1}}},
        {"properties": {"q": {"anyOf": {}}}},
        {"properties": {"q": {"anyOf": [1]}}},
        {"properties": {"q": {"properties": {"r": 1}}}},
    ],
)
def test_a_schema_that_upstream_cannot_read_is_refused(parameters):
    """Upstream's own error would name its types."""
    with pytest.raises(InvalidCall) as caught:
        chat(tools=[{"function": {"name": "look", "parameters": parameters}}])
    assert caught.value.param == "tools[0].function.parameters"


def test_a_tool_without_parameters_gets_empty_ones():
    """Templates read `type` and `properties`."""
    call = chat(tools=[{"function": {"name": "look"}}])
    empty = {"type": "object", "properties": {}}
    assert call.body["tools"] == [
        {
            "type": "function",
            "function": {"name": "look", "description": "", "parameters": empty},
        }
    ]


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("prompt", {"prompt": ["a"]}),
        ("suffix", {"suffix": 1}),
        ("system", {"system": {}}),
        ("template", {"template": 1}),
        ("raw", {"raw": "yes"}),
        ("context", {"context": "x"}),
        ("context", {"context": [1.5]}),
        ("context", {"context": [True]}),
        ("context", {"context": [-1]}),
        ("context", {"context": [0] * 262_145}),
    ],
)
def test_a_bad_field_of_generate_is_named(param, changes):
    """400 with `param`."""
    with pytest.raises(InvalidCall) as caught:
        generate(**changes)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "value", [5, 0, False, {}, {"a": 1}, ["a", 1], [["a"]], [[1, 2]], ["x"] * 2049, ["x"] * 10**5]
)
def test_embed_takes_one_text_or_a_bounded_list(value):
    """Numbers, tokens, objects and a hundred thousand texts are refused."""
    with pytest.raises(InvalidCall) as caught:
        embed(input=value)
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    "endpoint", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"]
)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"mo\\u0064el":"a","model":"b"}', "model"),
        (b'{"model":"a","MODEL":"b"}', "model"),
        ('{"model":"a","\u212aeep_alive":0}'.encode(), "keep_alive"),
        ('{"model":"a","\u017ftream":true}'.encode(), "stream"),
        (b'{"model":"a","options":{"num_ctx":1,"num_ctx":2}}', "options"),
        (b'{"model":"a"}{"model":"b"}', None),
        (b'["model"]', None),
    ],
)
def test_bodies_that_could_be_read_twice_are_refused(endpoint, body, param):
    """Every native route reads by the same strict rules."""
    with pytest.raises(InvalidCall) as caught:
        parse(endpoint, body)
    assert caught.value.param == param


def test_show_takes_model_or_its_old_name():
    """The canonical name comes back; the rest of the body is only checked."""
    assert parse_show(b'{"model":"LLAMA3"}') == "llama3:latest"
    assert parse_show(b'{"name":"ns/m:t","verbose":true}') == "ns/m:t"
    assert parse_show(b'{"model":"","name":"m"}') == "m:latest"
    for body in (b"{}", b'{"model":5}', b'{"name":"../x"}', b'{"Name":"x"}', b'{"NAME":"x"}'):
        with pytest.raises(InvalidCall):
            parse_show(body)


NAMES = st.sampled_from(["llama3", "LLAMA3:8b", "ns/m:t", "m:cloud", "h.com/ns/m:8b-cloud"])
TEXTS = st.text(max_size=20)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "num_predict": st.integers(-2, 4096),
        "num_ctx": st.integers(0, 10**9),
        "stop": st.lists(TEXTS, max_size=3),
    },
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
        optional={"content": TEXTS, "thinking": TEXTS, "images": st.just([PIXEL])},
    ),
    min_size=1,
    max_size=4,
)
SHARED = {"think": st.booleans(), "format": st.just("json"), "options": OPTIONS}
REQUESTS = st.one_of(
    st.tuples(
        st.just("/api/chat"),
        st.fixed_dictionaries({"model": NAMES, "messages": MESSAGES}, optional=SHARED),
    ),
    st.tuples(
        st.just("/api/generate"),
        st.fixed_dictionaries(
            {"model": NAMES, "prompt": TEXTS.filter(bool)},
            optional={**SHARED, "system": TEXTS, "context": st.lists(st.integers(0, 9))},
        ),
    ),
    st.tuples(
        st.just("/api/embed"),
        st.fixed_dictionaries({"model": NAMES, "input": st.lists(TEXTS, min_size=1, max_size=3)}),
    ),
)


@given(REQUESTS)
def test_what_is_sent_upstream_reads_as_the_same_call(request):
    """parse(encode_call(call)) is the call again, under its canonical name."""
    endpoint, body = request
    call = parse(endpoint, orjson.dumps(body))
    assert isinstance(call, Call)
    sent = ollama.encode_call(call, ceiling=call.ask, load_options={}, keep_alive="5m")
    again = parse(endpoint, sent)
    assert isinstance(again, Call)
    assert again.body == call.body
    assert (again.model, again.ask, again.parts) == (call.model, call.ask, call.parts)
    assert (again.prompt_bytes, again.images) == (call.prompt_bytes, call.images)
