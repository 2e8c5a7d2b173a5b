"""Wheels: downloaded once, checked always, whole or absent."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from data_kit import make_wheel
from moslora.download.wheels import Wheel, fetch_wheel, home
from moslora.errors import MosloraError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder in which pip finds wheels, and nowhere else; the cache is empty."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_a_wheel_is_downloaded_once(shelf, capsys):
    tiny = make_wheel(shelf)
    path = fetch_wheel(tiny)
    assert path == home() / "wheels" / "tiny_thing-1.0-py3-none-any.whl"
    assert "downloading tiny-thing 1.0" in capsys.readouterr().out
    (shelf / path.name).unlink()  # a second download would now fail
    assert fetch_wheel(tiny) == path
    assert capsys.readouterr().out == ""
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_concurrent_calls_download_once(shelf, capsys):
    tiny = make_wheel(shelf)
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(fetch_wheel, [tiny, tiny]))
    assert len(paths) == 1 and capsys.readouterr().out.count("downloading") == 1


def test_a_damaged_wheel_is_fetched_again(shelf, capsys):
    tiny = make_wheel(shelf)
    path = fetch_wheel(tiny)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"?")
    assert fetch_wheel(tiny).read_bytes() == good
    assert "damaged" in capsys.readouterr().out


def test_another_hash_is_refused_and_nothing_kept(shelf):
    tiny = make_wheel(shelf)
    other = Wheel(tiny.name, tiny.version, "0" * 64, tiny.megabytes)
    with pytest.raises(MosloraError, match=f"sha256 {tiny.sha256}, not {'0' * 64}"):
        fetch_wheel(other)
    assert list((home() / "wheels").iterdir()) == []


def test_without_a_package_index_one_line_says_what_to_do(shelf):
    with pytest.raises(MosloraError) as error:
        fetch_wheel(Wheel("tiny-thing", "1.0", "0" * 64, megabytes=0))
    message = str(error.value)
    assert "\n" not in message
    assert "tiny-thing==1.0" in message and "check the network" in message
    assert str(home() / "wheels") in message and "tiny_thing-1.0-py3-none-any.whl" in message
    assert list((home() / "wheels").iterdir()) == []
