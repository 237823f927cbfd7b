"""Walking tf.train.Example by hand: against our writer here, against tfds in test_dataset.py."""

import mmap

import numpy as np
import pytest

from roam_jax.data.example import Example
from tests.data import rlds

FLOATS = np.array([1.5, -2.0, 3.25, np.pi], np.float32)


def test_values_of_every_kind():
    example = Example(
        rlds.example({"f": FLOATS, "i": [0, 7, -3, 1 << 40], "b": [b"", b"x" * 300, b"yz"]})
    )
    assert "f" in example and "g" not in example
    np.testing.assert_array_equal(example.floats("f"), FLOATS)
    assert example.float_count("f") == 4
    assert example.integers("i") == [0, 7, -3, 1 << 40]
    assert example.byte_strings("b") == [b"", b"x" * 300, b"yz"]
    assert example.byte_strings("b", 1) == [b""]


def test_unpacked_numbers_mean_the_same():
    floats = b"".join(rlds.varint(1 << 3 | 5) + value.tobytes() for value in FLOATS)
    integers = b"".join(rlds.varint(1 << 3) + rlds.varint(value) for value in (3, -1))
    entries = {"f": rlds.field(2, floats), "i": rlds.field(3, integers), "empty": b""}
    message = b"".join(
        rlds.field(1, rlds.field(1, name.encode()) + rlds.field(2, feature))
        for name, feature in entries.items()
    )
    example = Example(rlds.field(1, message))
    np.testing.assert_array_equal(example.floats("f"), FLOATS)
    assert example.float_count("f") == 4
    assert example.integers("i") == [3, -1]
    assert example.byte_strings("empty") == [] and example.integers("empty") == []


def test_reads_in_place_from_a_map(tmp_path):
    path = tmp_path / "padded"
    payload = rlds.example({"f": FLOATS})
    path.write_bytes(b"before" + payload + b"after")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        np.testing.assert_array_equal(Example(pages, 6, 6 + len(payload)).floats("f"), FLOATS)


def test_missing_and_mistaken_features_are_named():
    example = Example(rlds.example({"f": FLOATS, "i": [1]}))
    with pytest.raises(ValueError, match=r"no feature 'g'; the record holds \['f', 'i'\]"):
        example.floats("g")
    with pytest.raises(ValueError, match="feature 'i' is of kind 3, expected 2"):
        example.floats("i")


@pytest.mark.parametrize("cut", [1, 3, 9, 20])
def test_a_cut_message_is_refused(cut):
    with pytest.raises(ValueError, match="runs past byte"):
        Example(rlds.example({"f": FLOATS})[:-cut])


@pytest.mark.parametrize(
    "message", [b"\x00", b"\x0f", b"\xff" * 12, rlds.field(2, b""), rlds.field(1, b"\x0a\x01x")]
)
def test_other_bytes_are_refused(message):
    with pytest.raises(ValueError, match="of the message"):
        Example(message)
