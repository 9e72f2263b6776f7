"""The dashboard in a real headless Chromium; the journeys themselves are in `journeys`."""

from __future__ import annotations

import importlib.util

import pytest

from tests.dashboard.chrome import needs_chromium
from tests.dashboard.drive import drive
from tests.dashboard.sample import busy, fill
from tests.integration.admin_world import open_admin
from tests.world import MODELS, open_world
from trio_gateway.simulator.app import create_app
from trio_gateway.simulator.script import Script

pytestmark = needs_chromium
JOURNEYS = "tests.dashboard.journeys"


@pytest.fixture
def journey(admin, world):
    """Walk one of the journeys as an admin."""

    async def walk(name, *, key=False, gateway=False, **told):
        if key:
            told["key"] = world.key["key"]
        if gateway:
            told["gateway_url"] = world.base_url
        token = await admin.token()
        return await drive(JOURNEYS, name, base_url=admin.base_url, token=token, **told)

    return walk


@pytest.fixture
async def inhabited(world, admin):
    """Pages of an installation that has been in use, with calls and a batch under way."""
    keys = await fill(world, rows=400)
    async with busy(world, keys, calls=3) as batch_id:
        tenant, key = keys["research"]["tenant_id"], keys["docs-search"]["id"]
        yield [
            "/",
            f"/tenants/{tenant}",
            "/usage?span=30d&by=model",
            "/usage?span=24h&by=outcome&what=requests",
            "/tenants",
            "/tenants/new",
            f"/tenants/{tenant}/edit",
            f"/tenants/{tenant}/keys/new",
            f"/keys/{key}",
            f"/keys/{key}/edit",
            "/calls",
            "/models",
            "/models/edit?name=qwen3:8b",
            "/batches",
            f"/batches/{batch_id}",
            "/files",
            f"/usage?by=key&tenant={tenant}",
            "/usage?by=key",
            "/keys",
            "/keys?state=revoked",
            "/keys?find=prod",
            "/ledger",
            "/ledger?outcome=timeout",
            "/ledger?tenant=nobody",
            "/ledger/req_000000000000000000000007",
            "/ledger/req_none",
            "/audit",
            "/audit?action=key.create",
            "/audit/refusals",
            "/notices",
            "/webhooks",
            "/backends",
            "/health",
            "/admins",
            "/docs",
            "/no/such/page",
        ]


async def test_from_a_new_tenant_to_a_revoked_key(journey):
    """Tenant, key, call, overview, chart, limit, 429, revocation, 401, exports: all by clicks."""
    assert await journey("from_tenant_to_revocation", gateway=True) == [200, 200, 429, 401]


async def test_a_live_call_is_cut_by_a_click(world, journey):
    """It appears by itself, is cut after a question, and its client is told by an error event."""
    world.sim.play(Script(tokens=2000, token_gap=0.3))
    assert await journey("cut_a_call", gateway=True, key=True) == "call_cut"


async def test_a_batch_is_watched_to_its_end(database, redis_url):
    """Its progress moves and it ends as completed, on a page that is loaded once."""
    # Its lines do not end before the journey has seen them under way.
    simulator = create_app(MODELS, Script(held=True), control_routes=True)
    async with (
        open_world(database, redis_url, simulator=simulator) as world,
        open_admin(world) as admin,
    ):
        seen = await drive(
            JOURNEYS,
            "watch_a_batch",
            base_url=admin.base_url,
            gateway_url=world.base_url,
            ollama_url=world.gateway.settings.ollama_base_url,
            token=await admin.token(),
            key=world.key["key"],
        )
    assert int(seen[0]) < 100
    assert seen[1] == "100"


async def test_pages_work_without_script(journey):
    """What asks first asks on the page itself; the theme is remembered by a cookie."""
    assert await journey("without_script")


async def test_pages_work_by_keyboard(journey):
    """Skip link first, focus that is seen, a dialog that holds the focus and gives it back."""
    skip, outline, back = await journey("by_keyboard")
    assert skip == "Skip to the content"
    assert outline == "solid"
    assert back == "Delete…"


@pytest.mark.skipif(
    importlib.util.find_spec("axe_playwright_python") is None,
    reason="no accessibility test without the Python package axe-playwright-python",
)
async def test_no_page_shuts_anybody_out(journey, inhabited):
    """Axe finds nothing moderate, serious or critical on any page in either theme."""
    found = await journey("faults_for_some", pages=inhabited)
    assert not found, "\n".join(f"{page}: {fault}" for page in found for fault in found[page])


async def test_no_page_is_wider_than_its_window(journey, inhabited):
    """On a phone and on a desk wide tables scroll in their own place."""
    assert await journey("too_wide", pages=inhabited) == []


async def test_pictures_are_taken(world, tmp_path):
    """The script behind the README's picture works; one page stands for all."""
    async with open_admin(world) as admin:
        taken = await drive(
            "tests.dashboard.pictures",
            "take",
            base_url=admin.base_url,
            token=await admin.token(),
            pages={"overview": "/"},
            out=str(tmp_path),
            picture=str(tmp_path / "picture.png"),
        )
    assert taken == 4
    assert len(list(tmp_path.glob("overview-*.png"))) == 4
    assert (tmp_path / "picture.png").stat().st_size > 10_000
