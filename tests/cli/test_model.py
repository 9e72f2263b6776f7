"""`trio-gateway model ...` on a real installation."""


def test_models_are_blocked_weighed_and_pinned(cli):
    """Every spelling of a name is one row; each answer is the row as it now is."""
    assert cli("model", "list", "--json").json == []
    assert "No model is known" in cli("model", "list").out
    assert cli("model", "block", "LLAMA3", "--json").json["blocked"] is True
    assert cli("model", "weight", "library/llama3", "2.5", "--json").json["weight"] == 2.5
    digest = "ab" * 32
    pinned = cli(
        *("model", "pin", "llama3:latest", "--num-ctx", "8192"),
        *("--digest", f"sha256:{digest.upper()}", "--json"),
    ).json
    assert (pinned["num_ctx"], pinned["digest"]) == (8192, digest)
    (row,) = cli("model", "list", "--json").json
    assert pinned.items() <= row.items()
    assert (row["name"], row["blocked"], row["weight"]) == ("llama3:latest", True, 2.5)
    assert "llama3:latest" in cli("model", "list").out
    loose = cli("model", "pin", "llama3", "--digest", "none", "--num-ctx", "none", "--json").json
    assert (loose["num_ctx"], loose["digest"]) == (None, None)
    assert cli("model", "unblock", "llama3").out == "llama3:latest is not blocked.\n"
    assert cli("model", "weight", "llama3", "0").out == "A token of llama3:latest counts 0.\n"
