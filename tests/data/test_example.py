"""Walking tf.train.Example by hand: against our writer here, against tfds in test_dataset.py."""

import mmap

import numpy as np
import pytest

from roam_jax.data.example import Example, Message, feature_ends
from tests.data import rlds

FLOATS = np.array([1.5, -2.0, 3.25, np.pi], np.float32)


def test_values_of_every_kind():
    example = Example(
        rlds.example({"f": FLOATS, "i": [0, 7, -3, 1 << 40], "b": [b"", b"x" * 300, b"yz"]})
    )
    assert "f" in example and "g" not in example
    np.testing.assert_array_equal(example.floats("f"), FLOATS)
    assert example.number_count("f") == example.number_count("i") == 4
    assert example.integers("i") == [0, 7, -3, 1 << 40]
    np.testing.assert_array_equal(example.numbers("i"), np.array([0, 7, -3, 1 << 40], np.float32))
    np.testing.assert_array_equal(example.numbers("f"), FLOATS)
    assert example.byte_strings("b") == [b"", b"x" * 300, b"yz"]
    assert example.byte_strings("b", 1) == [b""]
    assert [bytes(view) for view in example.byte_views("b")] == [b"", b"x" * 300, b"yz"]


def test_booleans_are_numbers():
    example = Example(rlds.example({"open": np.array([True, False, True])}))
    np.testing.assert_array_equal(example.numbers("open"), [1, 0, 1])
    assert example.number_count("open") == 3 and example.numbers("open").dtype == np.float32


def test_the_first_value_of_a_text_or_an_integer():
    example = Example(rlds.example({"t": ["größe".encode(), b"b"], "i": [-4, 2], "none": [b""]}))
    assert (example.first("t"), example.first("i"), example.first("none")) == ("größe", -4, "")
    empty = rlds.field(1, rlds.field(1, b"e") + rlds.field(2, b""))
    assert Example(rlds.field(1, empty)).first("e") is None


def test_views_copy_nothing():
    payload = rlds.example({"b": [b"x" * 300, b"yz"]})
    (view, _) = Example(payload).byte_views("b")
    assert view.obj is payload and len(view) == 300


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
    assert example.number_count("f") == 4 and example.number_count("i") == 2
    assert example.integers("i") == [3, -1]
    assert example.byte_strings("empty") == [] and example.integers("empty") == []


def test_reads_in_place_from_a_map(tmp_path):
    path = tmp_path / "padded"
    payload = rlds.example({"f": FLOATS})
    path.write_bytes(b"before" + payload + b"after")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        np.testing.assert_array_equal(Example(pages, 6, 6 + len(payload)).floats("f"), FLOATS)


def test_where_features_end():
    entries = [
        rlds.field(1, rlds.field(1, name) + rlds.field(2, rlds.field(1, rlds.field(1, name * 50))))
        for name in (b"a", b"bb", b"ccc")
    ]
    payload = rlds.field(1, b"".join(entries))
    first = len(payload) - sum(map(len, entries))
    message = Message(b"before" + payload + b"after", 6, 6 + len(payload))
    ends = 6 + first + np.cumsum([*map(len, entries)])
    assert list(feature_ends(message)) == ends.tolist()
    assert list(feature_ends(Message(b"no example", 0, 10))) == []


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
