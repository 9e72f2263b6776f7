"""The catalog: what discovery saw, shared through Redis, and nothing where it saw nothing."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import trio
import trio.testing

from trio_gateway.clients.redis import Redis
from trio_gateway.core.errors import UpstreamError
from trio_gateway.services.catalog import Catalog, parse_tags

_numbers = itertools.count(1)


class Hosts:
    """What each model server has; None where it does not answer."""

    def __init__(self, **models):
        self.models = dict(models)
        self.asked = []

    async def tags(self, backend):
        """Answer GET /api/tags."""
        await trio.lowlevel.checkpoint()
        self.asked.append(backend)
        names = self.models.get(backend)
        if names is None:
            raise UpstreamError
        return {"models": [{"name": name, "model": name, "digest": "d-" + name} for name in names]}


@pytest.fixture
def backend():
    """A backend that no other test has looked at."""
    return f"http://host-{next(_numbers)}:1"


@contextlib.asynccontextmanager
async def opened(redis_url, hosts, *backends, interval=0.02, ttl=30.0):
    """Run one worker's catalog."""
    async with trio.open_nursery() as nursery:
        redis = Redis(redis_url, {})
        await nursery.start(redis.run)
        catalog = Catalog(redis, hosts.tags, backends, interval=interval, ttl=ttl)
        await nursery.start(catalog.run)
        yield catalog
        nursery.cancel_scope.cancel()


async def until(condition):
    """Wait until it holds."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another task's state, without an event
            await trio.sleep(0.005)


async def test_started_means_that_the_first_look_is_over(redis_url, backend):
    """What a host has can be found at once, by its canonical name."""
    hosts = Hosts(**{backend: ["llama3.2:latest", "qwen3:8b"]})
    async with opened(redis_url, hosts, backend) as catalog:
        model, having = catalog.find("llama3.2:latest")
        assert (model.name, model.digest, having) == (
            "llama3.2:latest",
            "d-llama3.2:latest",
            [backend],
        )
        assert catalog.find("unknown:latest") is None
        assert [model.name for model in catalog.models()] == ["llama3.2:latest", "qwen3:8b"]


async def test_it_is_complete_while_every_host_was_looked_at_lately(redis_url, backend):
    """One host that was never seen, or not for its time to live, makes it incomplete."""
    other = backend + "1"
    hosts = Hosts(**{backend: ["llama3.2:latest"]})
    async with opened(redis_url, hosts, backend, other, ttl=0.3) as catalog:
        assert not catalog.complete
        hosts.models[other] = []
        await until(lambda: catalog.complete)
        hosts.models[backend] = None
        await until(lambda: not catalog.complete)


async def test_a_host_that_never_answered_has_no_models(redis_url, backend):
    """Nothing known denies everything."""
    async with opened(redis_url, Hosts(), backend) as catalog:
        assert (catalog.find("llama3.2:latest"), catalog.models()) == (None, [])


async def test_a_model_that_comes_or_goes_is_noticed(redis_url, backend):
    """The next discovery replaces what the last one saw."""
    hosts = Hosts(**{backend: ["a:latest"]})
    async with opened(redis_url, hosts, backend) as catalog:
        hosts.models[backend] = ["b:latest"]
        await until(lambda: catalog.find("b:latest"))
        assert catalog.find("a:latest") is None


async def test_a_host_that_falls_silent_keeps_its_models_until_the_ttl(redis_url, backend):
    """One missed discovery changes nothing; after the TTL the models are gone."""
    other = backend + "1"
    hosts = Hosts(**{backend: ["a:latest"], other: ["a:latest"]})
    async with opened(redis_url, hosts, backend) as catalog:
        del hosts.models[backend]
        asked = len(hosts.asked)
        await until(lambda: len(hosts.asked) > asked + 1)
        assert catalog.find("a:latest") is not None
    async with opened(redis_url, hosts, other, ttl=0.5) as catalog:
        del hosts.models[other]
        await until(lambda: catalog.find("a:latest") is None)
        assert catalog.models() == []


async def test_an_empty_host_empties_the_catalog(redis_url, backend):
    """No model at all is an answer too."""
    hosts = Hosts(**{backend: ["a:latest"]})
    async with opened(redis_url, hosts, backend) as catalog:
        hosts.models[backend] = []
        await until(lambda: not catalog.models())


async def test_a_model_on_two_hosts_is_one_model_with_two_backends(redis_url, backend):
    """Each name is listed once, and the call may go to either."""
    other = backend + "1"
    hosts = Hosts(**{backend: ["a:latest", "b:latest"], other: ["a:latest", "c:latest"]})
    async with opened(redis_url, hosts, backend, other) as catalog:
        assert catalog.find("a:latest")[1] == [backend, other]
        assert catalog.find("c:latest")[1] == [other]
        names = sorted(model.name for model in catalog.models())
        assert names == ["a:latest", "b:latest", "c:latest"]


async def test_one_dead_host_does_not_hide_the_other(redis_url, backend):
    """Each backend is looked at by itself."""
    other = backend + "1"
    async with opened(redis_url, Hosts(**{other: ["a:latest"]}), backend, other) as catalog:
        assert catalog.find("a:latest")[1] == [other]


async def test_workers_share_one_look(redis_url, backend):
    """Within an interval a single worker asks, and all of them know."""
    hosts = Hosts(**{backend: ["a:latest"]})
    async with (
        opened(redis_url, hosts, backend, interval=60) as one,
        opened(redis_url, hosts, backend, interval=60) as two,
    ):
        await until(lambda: two.find("a:latest"))
        assert one.find("a:latest") is not None
    assert hosts.asked == [backend]


async def test_a_worker_that_starts_while_another_asks_waits_for_the_answer(redis_url, backend):
    """Started means that it knows the models too, though it asked nobody."""
    asked, answer = trio.Event(), trio.Event()

    class Slow(Hosts):
        async def tags(self, backend):
            asked.set()
            await answer.wait()
            return await super().tags(backend)

    hosts = Slow(**{backend: ["a:latest"]})
    found = []

    async def start():
        async with opened(redis_url, hosts, backend, interval=60) as catalog:
            found.append(catalog.find("a:latest"))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await asked.wait()
            nursery.start_soon(start)
            # the second has lost its turn before the first has its answer
            await trio.testing.wait_all_tasks_blocked(0.02)
            answer.set()
    assert None not in found
    assert hosts.asked == [backend]


def test_entries_without_a_usable_name_are_left_out():
    """Whatever a host says, only what can be called by a name becomes a model."""
    entries: Any = [
        {"name": "good"},
        {"model": "hf.co/Some/Model:Q4"},
        {"name": ""},
        {"name": 7},
        {"name": "a b"},
        {"name": "../../etc"},
        "text",
        None,
        {},
    ]
    names = [model.name for model in parse_tags({"models": entries})]
    assert names[0] == "good:latest"
    assert len(names) == 2
    assert parse_tags({}) == []
    for entries in (None, {}, "x"):
        assert parse_tags({"models": entries}) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "big:cloud"},
        {"name": "big:120b-cloud"},
        {"name": "local", "remote_host": "https://elsewhere"},
        {"name": "local", "remote_model": "big"},
    ],
)
def test_a_model_that_runs_elsewhere_is_marked(entry):
    """By its name or by what the host says of it."""
    (model,) = parse_tags({"models": [entry]})
    assert model.remote is True
    assert parse_tags({"models": [{"name": "local"}]})[0].remote is False
