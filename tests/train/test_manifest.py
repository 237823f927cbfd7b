from __future__ import annotations

import json
import os
import zlib

import pytest

from roam_jax.train import manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "large").write_bytes(os.urandom(manifest.CHUNK * 2 + 17))
    (tmp_path / "config").write_text("{}")
    (tmp_path / "empty").touch()
    manifest.write(tmp_path, metrics={"loss": 0.5, "eval/none": None})
    return tmp_path


def test_every_file_is_listed(folder):
    found = manifest.read(folder)
    content = (folder / "state" / "d" / "large").read_bytes()
    assert found["files"] == {
        "config": [2, zlib.crc32(b"{}")],
        "empty": [0, 0],
        "state/d/large": [len(content), zlib.crc32(content)],
    }
    assert found["metrics"] == {"loss": 0.5, "eval/none": None}
    assert abs(found["saved_at"] - folder.stat().st_mtime) < 60
    assert manifest.first_fault(folder) == ""


def test_more_files_are_no_fault(folder):
    (folder / ".nfs0001").touch()
    assert manifest.first_fault(folder) == ""


def test_faults_name_the_file(folder):
    large = folder / "state" / "d" / "large"
    content = large.read_bytes()
    for damaged in (
        content[:-1] + bytes([content[-1] ^ 1]),
        bytes([content[0] ^ 128]) + content[1:],
    ):
        large.write_bytes(damaged)
        crcs = f"{zlib.crc32(damaged):08x}, expected {zlib.crc32(content):08x}"
        assert manifest.first_fault(folder) == f"state/d/large has CRC-32 {crcs}"
    large.write_bytes(content[:100])
    assert manifest.first_fault(folder) == f"state/d/large has 100 bytes, expected {len(content)}"
    large.unlink()
    assert manifest.first_fault(folder) == "state/d/large is missing"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"loss": 0.5', '"loss": 0.6'),
        lambda text: json.dumps(json.loads(text) | {"crc32": "0"}),
        lambda text: text.replace("crc32", "crc33"),
    ],
)
def test_its_own_damage_is_found(folder, change):
    file = folder / manifest.FILE
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=f"^{manifest.FILE} is damaged$"):
        manifest.read(folder)
    assert manifest.first_fault(folder) == f"{manifest.FILE} is damaged"
