"""`trio-gateway tenant ...` on a real installation."""


def test_a_tenant_lives_from_create_to_delete(cli):
    """Create, list, show, update, disable, enable, delete: each answer is the row."""
    made = cli("tenant", "create", "acme", "--models", "LLAMA3,foo:8B,llama3", "--json").json
    assert made["models"] == ["foo:8b", "llama3:latest"]
    assert (made["name"], made["state"], made["budget"]) == ("acme", "active", None)
    assert [row["name"] for row in cli("tenant", "list", "--json").json] == ["acme"]
    assert cli("tenant", "show", made["id"], "--json").json["spent"] == 0
    changed = cli(
        *("tenant", "update", "acme", "--budget", "5", "--budget-period", "day", "--allow-cloud"),
        *("--all-models", "--weight-share", "7", "--requests-per-minute", "0", "--json"),
    ).json
    assert (changed["budget"], changed["budget_period"], changed["allow_cloud"]) == (5, "day", True)
    assert (changed["all_models"], changed["models"]) == (True, [])
    assert (changed["weight_share"], changed["requests_per_minute"]) == (7, 0)
    lifted = cli(
        *("tenant", "update", "acme", "--budget", "none", "--weight-share", "none"),
        *("--no-allow-cloud", "--models", "", "--json"),
    ).json
    assert (lifted["budget"], lifted["weight_share"], lifted["allow_cloud"]) == (None, 1, False)
    assert (lifted["all_models"], lifted["models"]) == (False, [])
    assert cli("tenant", "disable", "acme", "--json").json["state"] == "disabled"
    assert cli("tenant", "enable", "acme", "--json").json["state"] == "active"
    gone = cli("tenant", "delete", "acme", "--json").json
    assert gone == {"id": made["id"], "name": "acme", "deleted": True}
    cli("tenant", "show", "acme").refused("there is no tenant 'acme'")


def test_people_get_sentences_and_tables(cli):
    """An empty list says what to do next; a table says unlimited and all."""
    assert "There is no tenant" in cli("tenant", "list").out
    answer = cli("tenant", "create", "acme")
    assert "key create --tenant acme" in answer.out
    assert "it may use no model yet" in answer.err
    assert cli("tenant", "update", "acme", "--all-models").out == "Tenant acme is changed.\n"
    table = cli("tenant", "list").out
    assert all(word in table for word in ("acme", "active", "all", "unlimited"))
    assert "unlimited" in cli("tenant", "show", "acme").out
    for verb in ("disable", "enable", "delete"):
        assert "acme" in cli("tenant", verb, "acme").out


def test_lists_can_be_searched_and_cut(cli):
    """A list that was cut says so beside the answer."""
    for name in ("lab-1", "lab-2", "other"):
        cli("tenant", "create", name, "--all-models")
    assert len(cli("tenant", "list", "--match", "LAB", "--json").json) == 2
    answer = cli("tenant", "list", "--limit", "2", "--json")
    assert len(answer.json) == 2
    assert "--limit shows more" in answer.err
    assert "contains 'xyz'" in cli("tenant", "list", "--match", "xyz").out


def test_refusals_of_tenants_are_one_line(cli):
    """What the installation refuses is exit 1, not wrong usage."""
    cli("tenant", "create", "acme", "--all-models")
    cli("tenant", "create", "acme").refused("there is a tenant named acme already")
    cli("tenant", "create", "a b").refused("a tenant's name must be")
    for verb in ("show", "disable", "enable", "delete"):
        cli("tenant", verb, "gh\x1bost").refused("there is no tenant 'gh?ost'")
    cli("tenant", "update", "ghost", "--budget", "1").refused("there is no tenant 'ghost'")


def test_names_that_look_like_markup_are_shown_as_they_are(cli):
    """A table does not interpret what it shows."""
    cli("tenant", "create", "acme", "--all-models")
    cli("key", "create", "--tenant", "acme", "--name", "[red]x[/red]")
    assert "[red]x[/red]" in cli("key", "list").out


def test_a_tenant_is_renamed(cli):
    """Its id stays, and nobody else has its name."""
    made = cli("tenant", "create", "acme", "--all-models", "--json").json
    cli("tenant", "create", "lab", "--all-models")
    cli("tenant", "update", "acme", "--name", "lab").refused("there is a tenant named lab already")
    cli("tenant", "update", "acme", "--name", made["id"]).refused("must not look like an id")
    renamed = cli("tenant", "update", "acme", "--name", "acme-labs", "--json").json
    assert (renamed["id"], renamed["name"]) == (made["id"], "acme-labs")
    cli("tenant", "show", "acme").refused("there is no tenant 'acme'")
