"""Files that are there whole or not at all."""

import os

import pytest

from roam_jax.files import write_atomically, write_once


def test_a_failed_write_leaves_the_old_text_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")  # no UTF-8
    assert path.read_text() == "old"
    write_atomically(path, "new é")
    assert path.read_bytes() == "new é".encode()
    assert os.listdir(tmp_path) == ["a.json"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_first_of_several_writers_wins(tmp_path):
    path = tmp_path / "a.json"
    write_once(path, "first")
    write_once(path, "second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.json"]
