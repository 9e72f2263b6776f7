"""An installation's folder: what it tells others, and what may lie in it before."""

import json

import pytest

from trio_gateway import datadir


def test_a_running_installation_tells_where_its_files_are(tmp_path):
    """Its own word, or, of a release that did not say, the folder in which it kept them."""
    with datadir.DataDir(tmp_path / "one") as folder:
        folder.publish("postgresql://x", "redis://x", blob_url="s3://bucket")
        assert datadir.state_of(folder.path).blob_url == "s3://bucket"
        told = json.loads(folder.state_file.read_text())
        del told["blob_url"], told["ollama_url"]
        folder.write("state.json", json.dumps(told))
        assert datadir.state_of(folder.path).blob_url == (tmp_path / "one" / "blobs").as_uri()


def test_a_folder_that_holds_files_alone_may_become_an_installation(tmp_path):
    """`serve` keeps files in the default folder, where `quickstart` may follow; nobody else may."""
    (tmp_path / "blobs").mkdir()
    with datadir.DataDir(tmp_path):
        pass
    (tmp_path / datadir.LOCK_FILE).unlink()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(datadir.DataDirError, match="holds other things"):
        datadir.DataDir(tmp_path).open()


def test_the_address_of_the_files_survives_any_name_of_a_folder(tmp_path):
    """It is a file URL, with what must not stand in one escaped."""
    assert datadir.blobs_of(tmp_path / "a b?#") == f"{tmp_path.as_uri()}/a%20b%3F%23/blobs"
