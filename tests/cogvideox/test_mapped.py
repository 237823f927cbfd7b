"""Memory-mapped safetensors against the safetensors package, and files that are broken."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest

from roam_jax.cogvideox.mapped import create_tensors, open_tensors, read_headers

TENSORS = {
    "odd": np.arange(3, dtype=np.float16),
    "stack": np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4),
    "brain": np.arange(33).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float32),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in TENSORS.items()}
    with create_tensors(path, specs, metadata={"note": "a"}) as views:
        for name, tensor in TENSORS.items():
            views[name][...] = tensor
    return path


def check_equal(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def test_written_files_are_read_by_safetensors(file):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt", "note": "a"}
        assert set(opened.keys()) == TENSORS.keys()
        check_equal({name: opened.get_tensor(name) for name in TENSORS})


def test_files_of_safetensors_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "theirs.safetensors"
    numpy.save_file(TENSORS, path)
    check_equal(open_tensors(path))


def test_views_are_mapped_and_aligned(file):
    found = open_tensors(file)
    check_equal(found)
    for view in found.values():
        assert not view.flags.owndata and not view.flags.writeable
    assert found["stack"].ctypes.data % 64 == 0
    # Aligned as it is, JAX takes it on a CPU without a copy.
    array = jax.device_put(found["stack"], jax.devices("cpu")[0])
    assert array.unsafe_buffer_pointer() == found["stack"].ctypes.data


@pytest.mark.parametrize("kept", [0, 5, 40, -1], ids=["empty", "prefix", "header", "buffer"])
def test_truncated_files_are_refused(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    size = len(content[:kept])
    with pytest.raises(ValueError, match=rf"x.safetensors: .*it has {size} bytes, .* \d+"):
        open_tensors(file)


def test_longer_files_are_refused(file):
    size = file.stat().st_size
    with file.open("ab") as out:
        out.write(b"more")
    message = f"longer than its header says: it has {size + 4} bytes, expected {size}"
    with pytest.raises(ValueError, match=message):
        open_tensors(file)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "x is I64, expected one of F16"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"shape \(3,\) and 8 bytes"),
        ({"dtype": "F32", "data_offsets": [0, 8]}, "the header does not parse"),
        ([], "the header does not parse"),
    ],
)
def test_bad_entries_are_refused(tmp_path, entry, message):
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ValueError, match=message):
        open_tensors(path)


@pytest.mark.parametrize(
    "offsets, message",
    [
        ([(0, 8), (0, 8)], "bad.safetensors: y is at bytes 0 to 8, expected it from byte 8 on"),
        ([(0, 8), (4, 12)], "y is at bytes 4 to 12, expected it from byte 8 on"),
        ([(0, 8), (12, 20)], "y is at bytes 12 to 20, expected it from byte 8 on"),
        ([(8, 16), (16, 24)], "x is at bytes 8 to 16, expected it from byte 0 on"),
        ([(0, 8), (8, 0)], "y is at bytes 8 to 0, expected it from byte 8 on"),
        ([(-8, 0), (0, 8)], "x is at bytes -8 to 0, expected it from byte 0 on"),
    ],
)
def test_tensors_that_overlap_or_leave_a_gap_are_refused(tmp_path, offsets, message):
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": place}
        for name, place in zip("xy", offsets, strict=True)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(map(max, offsets))))
    for read in (open_tensors, read_headers):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_bytes(struct.pack("<Q", 20) + b"not a JSON header at all")
    with pytest.raises(ValueError, match="no safetensors file, the header does not parse"):
        open_tensors(path)
