"""Several windows, sessions that end, lists in use: in a real Chromium, by `windows`."""

from __future__ import annotations

import re

import pytest

from tests.dashboard.chrome import needs_chromium
from tests.dashboard.drive import drive
from trio_gateway.simulator.script import Script

pytestmark = needs_chromium
LIVE = r"Live, \d\d:\d\d:\d\d UTC"


@pytest.fixture
def journey(admin):
    """Do one of the things in `windows` as an admin."""

    async def walk(name, **told):
        token = await admin.token()
        return await drive(
            "tests.dashboard.windows", name, base_url=admin.base_url, token=token, **told
        )

    return walk


@pytest.fixture
def calling(world):
    """Where calls are made that go on until they are left."""
    world.sim.play(*[Script(tokens=2000, token_gap=0.05) for _ in range(3)])
    return {"gateway_url": world.base_url, "key": world.key["key"]}


async def test_any_number_of_windows_are_live(journey):
    """More than a browser opens connections to a host: they share one stream, whoever has it."""
    said = await journey("many_windows")
    assert len(said) > 6
    assert all(re.fullmatch(LIVE, each) for each in said)


@pytest.mark.parametrize("locks", [True, False])
async def test_a_window_that_is_not_seen_has_no_stream(journey, locks):
    """Hidden it lets go of its connection; shown again it has news."""
    assert await journey("hidden_window", locks=locks)


async def test_an_open_page_says_that_its_session_ended(journey):
    """Signed out elsewhere, every page leads to the login and back to where it was."""
    assert await journey("signed_out_elsewhere") == "Signed out: sign in again"


async def test_a_page_says_since_when_it_has_no_news(journey):
    """When the listener cannot be reached, an open page does not go on as if all were well."""
    assert re.fullmatch(r"No news since \d\d:\d\d:\d\d UTC", await journey("no_news"))


async def test_a_list_in_use_goes_on_renewing(journey, calling):
    """Calls come and go though a button has the focus, which it keeps; then the list has it."""
    seen = await journey("used_while_it_renews", **calling)
    assert seen == ["row SUMMARY", "row SUMMARY", "list SECTION"]


async def test_a_button_that_is_held_down_is_not_taken_away(journey, calling):
    """A list waits with its renewal until the button is let go."""
    assert await journey("pressed_while_it_renews", **calling)


async def test_tables_that_are_open_go_on_renewing(world, journey):
    """They stay open, and the one that has the focus keeps it."""
    assert (await world.post("/v1/embeddings", {"model": "llama3.2", "input": "a"})).is_success
    await world.settled()
    opened, focused = await journey("tables_while_they_renew")
    assert (opened, focused) == ([False, True], 1)


async def test_without_script_no_list_claims_to_renew_itself(journey):
    """It can be loaded again by a link."""
    assert (await journey("without_script")).split("\n")[-1] == "Look again"


async def test_a_question_answered_wrongly_is_asked_again(world, journey):
    """In its dialog, with what was written, at the field that is at fault."""
    await world.accounts.update("acme", {"budget": 1000})
    where = f"/tenants/{world.tenant['id']}"
    assert await journey("asked_again", where=where) == ["500", "until"]


async def test_a_dialog_can_be_asked_for_while_it_closes(world, journey):
    """Clicks that come too fast do nothing, and the next one asks."""
    assert await journey("asked_twice", where=f"/tenants/{world.tenant['id']}") == 1
