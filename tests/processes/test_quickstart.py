"""What `quickstart` and `serve` promise, seen from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.processes.conftest import wait_gone
from trio_gateway import datadir
from trio_gateway.installation import TOKEN_FILE


def test_a_first_start_serves_and_tells_everything_on_one_line(quickstart):
    """One JSON line with every promised field; SIGTERM ends it all with exit code 0."""
    running = quickstart()
    assert list(running.told) == [
        "base_url",
        "admin_url",
        "admin_token",
        "tenant",
        "api_key",
        "database_url",
        "redis_url",
        "ollama_url",
        "pid",
    ]
    assert running.told["pid"] == running.popen.pid
    assert running.get() == str(running.children()["worker"][0])
    assert running.told["admin_token"] == "tga-first"
    pids = running.pids()
    code, out, _ = running.stop()
    assert (code, out) == (0, "")
    for pid in pids:
        wait_gone(pid)


def test_a_second_start_reuses_everything_and_shows_no_secret_again(quickstart):
    """Same stores; the key and the token are null."""
    first = quickstart()
    first.stop()
    second = quickstart()
    assert (second.told["admin_token"], second.told["api_key"]) == (None, None)
    assert second.told["tenant"] == "default"
    assert second.told["database_url"] == first.told["database_url"]


def test_the_token_of_an_earlier_release_is_taken_over(quickstart, tmp_path):
    """Its digest, in a file of the data directory, makes the first admin; no token is shown."""
    folder = datadir.DataDir(tmp_path / "installation")
    with folder:
        folder.write(TOKEN_FILE, "ab" * 32)
    assert quickstart().told["admin_token"] is None


def test_the_admin_listener_comes_back_and_calls_do_not_notice(quickstart):
    """It is a process of its own: its end touches no worker, and its folder of counters stays."""
    running = quickstart()
    before, workers = running.admin(), running.children()["worker"]
    os.kill(before["pid"], signal.SIGKILL)
    running.hear("restarted", "admin listener")
    after = running.admin()
    assert after["pid"] != before["pid"]
    assert after["PROMETHEUS_MULTIPROC_DIR"] == before["PROMETHEUS_MULTIPROC_DIR"]
    assert running.children()["worker"] == workers
    running.stop()
    assert not Path(after["PROMETHEUS_MULTIPROC_DIR"]).exists()


def test_the_folder_and_every_file_in_it_are_closed_to_others(quickstart, tmp_path):
    """0700 for the folder and 0600 for what lies in it."""
    quickstart()
    folder = tmp_path / "installation"
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_data_directory_in_use_is_refused_in_one_sentence(quickstart, launch, tmp_path):
    """Exit 1, one line, and the first one goes on undisturbed."""
    running = quickstart()
    bind = urlsplit(running.told["base_url"]).netloc
    folder = tmp_path / "installation"
    refused = launch("quickstart", "--simulate", "--data-dir", folder, "--bind", bind)
    code, out, err = refused.finish()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "in use by another trio-gateway" in err
    assert running.get()


def test_a_folder_with_other_things_in_it_is_left_alone(launch, tmp_path):
    """Its permissions would be taken from its owner's other programs."""
    tmp_path.chmod(0o755)
    (tmp_path / "letter.txt").touch()
    code, _, err = launch("quickstart", "--simulate", "--data-dir", tmp_path).finish()
    assert code == 1
    assert "holds other things" in err
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("which", ["--bind", "--admin-bind"])
def test_a_port_in_use_is_refused_and_nothing_is_changed(launch, tmp_path, which):
    """Exit 1, one line, no data directory made."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        folder = tmp_path / "new"
        refused = launch("quickstart", "--simulate", "--data-dir", folder, which, bind)
        code, _, err = refused.finish()
    assert code == 1
    assert f"cannot listen on {bind}: another program already does" in err
    assert err.count("\n") == 1
    assert not folder.exists()


def test_without_ollama_the_simulated_one_is_named_and_nothing_is_started(launch, tmp_path):
    """Exit 1 with advice, no data directory made."""
    folder = tmp_path / "new"
    with socket.socket() as held:  # bound and not listening: nobody answers there
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        refused = launch("quickstart", "--data-dir", folder, OLLAMA_BASE_URL=url)
        code, _, err = refused.finish()
    assert code == 1
    assert "--simulate" in err
    assert err.count("\n") == 1
    assert not folder.exists()


def test_every_bad_setting_is_reported_at_once(launch, tmp_path):
    """Two bad settings, two lines, exit 1."""
    environ = {"TRIO_GATEWAY_NO_SUCH": "1", "TRIO_GATEWAY_QUEUE_LIMIT": "-1"}
    code, _, err = launch("quickstart", "--data-dir", tmp_path / "new", **environ).finish()
    assert code == 1
    assert err.count("\n") == 2


def test_the_admin_listener_is_not_opened_to_other_machines_without_leave(launch, tmp_path):
    """A wildcard admin address needs ADMIN_ALLOW_REMOTE."""
    words = ["quickstart", "--simulate", "--data-dir", tmp_path / "new"]
    code, _, err = launch(*words, "--admin-bind", "0.0.0.0:0").finish()
    assert code == 1
    assert "TRIO_GATEWAY_ADMIN_ALLOW_REMOTE" in err


def test_an_admin_token_of_the_operators_own_is_used_and_not_shown(quickstart, tmp_path):
    """TRIO_GATEWAY_ADMIN_TOKEN overrides; nothing of it is printed or stored."""
    running = quickstart(TRIO_GATEWAY_ADMIN_TOKEN="chosen")
    assert running.told["admin_token"] is None
    assert not (tmp_path / "installation" / TOKEN_FILE).exists()
    given = running.admin()
    assert given["TRIO_GATEWAY_ADMIN_TOKEN"] == "chosen"
    assert given["_TRIO_GATEWAY_SLOT"] == "admin"
    worker = running.children()["worker"][0]
    assert b"chosen" not in Path(f"/proc/{worker}/environ").read_bytes()


def test_other_commands_find_a_running_installation_and_only_a_running_one(quickstart, tmp_path):
    """`state_of` returns the stores while it runs; before and after it says how to start one."""
    folder = tmp_path / "installation"
    with pytest.raises(datadir.NoInstallation, match="quickstart --data-dir"):
        datadir.state_of(folder)
    running = quickstart()
    found = datadir.state_of(folder)
    assert found.database_url == running.told["database_url"]
    assert found.redis_url == running.told["redis_url"]
    assert found.blob_url == (folder / "blobs").as_uri()
    running.stop()
    with pytest.raises(datadir.NotRunning, match="quickstart --data-dir"):
        datadir.state_of(folder)


def test_serve_on_the_same_installation_is_a_second_machine(quickstart, launch, tmp_path):
    """`serve --data-dir` uses the running stores, and leaves them alone when it stops."""
    running = quickstart()
    second = launch("serve", "--data-dir", tmp_path / "installation").read_ready()
    assert second.told["database_url"] == running.told["database_url"]
    assert (second.told["api_key"], second.told["admin_token"]) == (None, None)
    assert second.get() != running.get()
    assert sorted(second.children()) == ["admin", "worker"]
    worker = Path(f"/proc/{second.children()['worker'][0]}/environ").read_bytes()
    blobs = (tmp_path / "installation" / "blobs").as_uri()
    assert f"TRIO_GATEWAY_BLOB_URL={blobs}".encode() in worker.split(b"\0")
    assert second.stop()[0] == 0
    assert running.get()


def test_serve_serves_calls_also_where_the_usual_admin_port_is_taken(launch):
    """As when two run on one machine; an address that was named is another matter."""
    stores = {"DATABASE_URL": "postgresql://h/x", "REDIS_URL": "redis://h"}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # whoever has it will do
            stack.enter_context(socket.create_server(("127.0.0.1", 8081)))
        running = launch("serve", "--admin-bind", "", **stores).read_ready()
        assert running.told["admin_url"] is None
        assert list(running.children()) == ["worker"]
        assert "admin_off" in running.stop()[2]
        code, _, err = launch("serve", "--admin-bind", "127.0.0.1:8081", **stores).finish()
        assert code == 1
        assert "another program already does" in err


def test_serve_warns_where_files_stay_on_one_machine(launch, tmp_path):
    """Once, with the name of the setting; not where a store was named."""
    stores = {
        "DATABASE_URL": "postgresql://h/x",
        "REDIS_URL": "redis://h",
        "XDG_DATA_HOME": str(tmp_path),
    }
    for named, times in (({}, 1), ({"TRIO_GATEWAY_BLOB_URL": tmp_path.as_uri()}, 0)):
        running = launch("serve", **stores, **named).read_ready()
        worker = Path(f"/proc/{running.children()['worker'][0]}/environ").read_bytes()
        code, _, err = running.stop()
        assert code == 0
        assert err.count('"event": "blobs_local"') == err.count("BLOB_URL") == times
        expected = named.get("TRIO_GATEWAY_BLOB_URL", f"{tmp_path.as_uri()}/trio-gateway/blobs")
        assert f"TRIO_GATEWAY_BLOB_URL={expected}".encode() in worker.split(b"\0")


def test_serve_without_stores_says_where_it_looked(launch, tmp_path):
    """Exit 1 and one sentence when neither settings nor a data directory lead to stores."""
    code, _, err = launch("serve", "--data-dir", tmp_path / "nothing").finish()
    assert code == 1
    assert "there is no installation in" in err
    assert err.count("\n") == 1


def test_the_page_for_people_has_a_curl_line_and_the_way_to_stop(launch, tmp_path):
    """Without --json the output is text."""
    words = ["quickstart", "--simulate", "--text", "--data-dir", tmp_path / "new"]
    running = launch(*words)
    assert running.out.line() == "trio-gateway is ready.\n"
    code, out, _ = running.stop(signal.SIGINT)
    assert code == 0
    assert "/v1/models -H 'Authorization: Bearer sk-tg-first'" in out
    assert f"kill {running.popen.pid}" in out


def test_a_long_data_directory_path_works(launch, tmp_path):
    """Unix sockets go elsewhere when their path would not fit, to the same place each time."""
    folder = tmp_path / ("long" * 20) / ("er" * 40)
    words = ["quickstart", "--simulate", "--data-dir", folder]
    first = launch(*words).read_ready()
    first.stop()
    second = launch(*words).read_ready()
    assert second.told["redis_url"] == first.told["redis_url"]
    elsewhere = Path((folder / "sockets").read_text())
    assert elsewhere.name.startswith("trio-gateway-")
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert second.stop()[0] == 0
    shutil.rmtree(elsewhere)
