"""The admin API, noun by noun."""

from tests.integration.admin_world import open_admin


async def test_a_token_of_each_role_is_known_by_it(world):
    """An admin and a viewer see the status; the metrics role sees nothing of the API."""
    async with open_admin(world) as admin:
        seen = {
            role: await admin.ask("GET", "/status", role=role)
            for role in ("admin", "viewer", "metrics")
        }
        assert [answer.status_code for answer in seen.values()] == [200, 200, 403]
        assert seen["viewer"].json()["role"] == "viewer"
        assert seen["metrics"].json()["error"]["code"] == "role_not_allowed"
