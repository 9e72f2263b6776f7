"""Whole calls, from the key to the ledger."""

import orjson


async def test_native_stream_leaves_a_row_with_upstreams_own_counts(world):
    """The NDJSON round trip is charged exactly what the final object says."""
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": "one two three"}]}
    answer = await world.post("/api/chat", body)
    lines = [orjson.loads(line) for line in answer.content.splitlines()]
    assert answer.status_code == 200
    assert "".join(line["message"]["content"] for line in lines) == "Echo: one two three"
    final = lines[-1]
    (row,) = await world.ledger()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (
        final["prompt_eval_count"],
        final["eval_count"],
    )
    assert row["request_id"] == answer.headers["x-request-id"]
    assert (row["outcome"], row["basis"]) == ("completed", "final")
