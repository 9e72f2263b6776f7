"""What OpenTelemetry's variables mean here, and what a caller's traceparent may be."""

import pytest

from trio_gateway.core.timeline import PHASES, Timeline
from trio_gateway.services.traces import wish
from trio_gateway.services.traces.traceparent import Parent, parse_traceparent
from trio_gateway.services.traces.wish import read_wish

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True)])
def test_a_good_traceparent_is_read(flags, sampled):
    """Both ids, and whether the caller's trace is kept."""
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}".encode())
    assert parent == Parent(int(TRACE, 16), int(SPAN, 16), sampled=sampled)


def test_a_later_version_may_say_more():
    """As the standard has it: the first four fields are those that are known."""
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-else".encode()) is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01 ",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE}-{SPAN}-\u0660\u0661",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 1000,
    ],
)
def test_a_bad_traceparent_is_none(value):
    """Nothing is guessed from it."""
    assert parse_traceparent(value.encode()) is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_SERVICE_NAME": "x"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "true"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"},
    ],
)
def test_traces_are_off_unless_they_are_asked_for(environ):
    """An endpoint for them is the wish; the two switches of the standard take it back."""
    assert not read_wish(environ).wanted


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/v1/traces"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"},
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
def test_traces_are_on_where_they_are_asked_for(environ):
    """Nothing is in the way."""
    assert read_wish(environ) == wish.Wish(wanted=True)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_what_cannot_be_had_names_its_variable(more, named):
    """One sentence for the log, without the value."""
    found = read_wish(ENDPOINT | more)
    assert found.wanted
    assert found.obstacle.startswith(named)
    assert "4317" not in found.obstacle


def test_the_missing_extra_is_named(monkeypatch):
    """Variables without the packages: the sentence says what to install."""
    monkeypatch.setattr(wish, "NEEDED", ("opentelemetry_that_nobody_has.sdk",))
    assert "trio-gateway[otel]" in read_wish(ENDPOINT).obstacle


def stamped(*passed, end=9.0):
    """A call that arrived at 0 and passed these, one a second."""
    timeline = Timeline(0.0)
    for second, name in enumerate(passed, 1):
        setattr(timeline, name, float(second))
    return timeline.phases(end)


def test_the_phases_of_a_whole_call_follow_each_other():
    """Each begins where the one before ended, and all are complete."""
    assert stamped(*(stamp for _, stamp in PHASES)) == [
        (name, float(second), float(second + 1), True) for second, (name, _) in enumerate(PHASES)
    ]


@pytest.mark.parametrize(
    ("passed", "names"),
    [
        (("authenticated",), ["authenticate", "parse"]),
        (("authenticated", "parsed"), ["authenticate", "parse", "admit"]),
        (
            ("authenticated", "parsed", "reserved", "closed", "settled"),
            ["authenticate", "parse", "admit", "queue", "settle"],
        ),
        (
            ("authenticated", "parsed", "reserved", "dispatched", "closed", "settled"),
            ["authenticate", "parse", "admit", "queue", "first_byte", "settle"],
        ),
    ],
)
def test_a_call_that_breaks_off_shows_in_which_phase(passed, names):
    """The last phase but the settling is the one that was not finished."""
    found = stamped(*passed)
    assert [name for name, *_ in found] == names
    assert [name for name, _, _, complete in found if not complete] == [
        name for name in names if name != "settle"
    ][-1:]


def test_a_settle_that_nobody_saw_is_not_complete():
    """It lasts until the call was looked at."""
    passed = [stamp for _, stamp in PHASES][:-1]
    assert stamped(*passed)[-1] == ("settle", 6.0, 9.0, False)


def test_a_batch_line_is_parsed_before_its_key_is_looked_at():
    """The phases stand in the order in which they were passed."""
    found = stamped("parsed", "authenticated", "reserved")
    assert [name for name, *_ in found] == ["parse", "authenticate", "admit", "queue"]
