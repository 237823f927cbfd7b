"""Encoded windows read from disk: the numbers of the run's own windows, and what is refused."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from absl import logging
from safetensors.numpy import save_file

from roam_jax.contracts import VectorSpec
from roam_jax.data.loader import make_loader
from roam_jax.data.options import Spaces
from tests.data.latent_windows import FIELDS, encode, fill, make_layout, open_cache, open_windows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("toy") / "1.0.0"


@pytest.fixture(scope="module")
def windows(root):
    return open_windows(root)


@pytest.fixture(scope="module")
def folder(windows, tmp_path_factory):
    """All windows, encoded once; read only."""
    out = tmp_path_factory.mktemp("latents") / "toy"
    assert fill(windows, out)
    return out


@pytest.fixture
def own(folder, tmp_path):
    """A copy that a test may damage."""
    out = tmp_path / "latents"
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def expected(windows, index, fields=("observed_latents", "target_latents")):
    """The window with what the encoder gives in place of its frames."""
    window = windows[index]
    latents = encode({"frames": window.pop("frames")[None]})
    return window | {name: latents[name][0] for name in fields}


def assert_windows(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert np.asarray(found[name]).dtype == np.asarray(array).dtype, name


def test_every_window_is_that_of_the_run(windows, folder):
    cache = open_cache(folder, windows)
    assert len(cache) == len(windows) == 11
    for i in range(11):
        assert_windows(cache[i], expected(windows, i))
    both = open_cache(folder, windows, fields=FIELDS)
    assert_windows(both[7], expected(windows, 7, FIELDS))


def test_batches_come_in_the_order_of_the_frames(windows, folder):
    frames = make_loader(windows, batch_size=4, seed=3)
    cached = make_loader(open_cache(folder, windows), batch_size=4, seed=3)
    for _ in range(4):
        one, two = next(frames), next(cached)
        np.testing.assert_array_equal(encode(one)["target_latents"], two["target_latents"])
        for name in ("episode", "start", "text", "action_chunk", "observed_proprio"):
            np.testing.assert_array_equal(one[name], two[name])


def test_another_process_reads_the_same(windows, folder):
    cache = open_cache(folder, windows)
    assert cache[4]["text"].any()  # texts are at hand, and must not travel
    assert_windows(pickle.loads(pickle.dumps(cache))[4], expected(windows, 4))


def test_statistics_are_those_of_the_reader(windows, folder):
    """Records hold physical units: what scales them is the run's, not the encoder's."""
    scale = windows.statistics
    wider = dataclasses.replace(scale.actions, q99=tuple(2 * x + 1 for x in scale.actions.q99))
    other = windows.with_statistics(dataclasses.replace(scale, actions=wider))
    cache = open_cache(folder, other)
    assert_windows(cache[2], expected(other, 2))
    assert (cache[2]["action_chunk"] != windows[2]["action_chunk"]).any()


def test_a_mixture_puts_its_dimensions_together(root, windows, folder):
    actions, proprio = windows.statistics.actions.spec, windows.statistics.proprio.spec

    def wider(spec):
        return VectorSpec(("more", *spec.names), ("m", *spec.units), ("linear", *spec.kinds))

    spaces = Spaces(wider(actions), wider(proprio))
    mixed = open_windows(root, statistics=windows.statistics, spaces=spaces)
    found = open_cache(folder, mixed)[5]
    assert found["action_mask"].tolist() == [0] + [1] * 7
    assert_windows(found, expected(mixed, 5))


def test_texts_of_a_file_are_looked_up_there(root, windows, tmp_path):
    prompts = [f"do thing {i}" for i in range(3)]
    rows = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float16)
    file = tmp_path / "text.safetensors"
    save_file({"embeddings": rows}, file, metadata={"prompts": json.dumps(prompts)})
    own = open_windows(root, statistics=windows.statistics, text=file)
    fill(own, tmp_path / "latents")
    assert make_layout(own).own_text == 0
    cache = open_cache(tmp_path / "latents", own)
    for i in (0, 4, 10):
        assert_windows(cache[i], expected(own, i))
    none = open_windows(root, statistics=windows.statistics, text="")
    assert_windows(open_cache(tmp_path / "latents", none)[4], expected(none, 4))


def test_half_precision_takes_half_and_rounds(windows, folder, tmp_path):
    fill(windows, tmp_path / "half", dtype="float16")
    half, whole = make_layout(windows, dtype="float16"), make_layout(windows)
    latents = 2 * (2 + 3) * 48  # numbers, means and log-variances
    assert whole.record_bytes - half.record_bytes == 2 * latents
    found, exact = open_cache(tmp_path / "half", windows)[3], expected(windows, 3)
    for name in ("observed_latents", "target_latents"):
        rounded = exact[name].astype(np.float16).astype(np.float32)
        assert (rounded != exact[name]).any()
        exact[name] = rounded
    assert_windows(found, exact)


def test_a_stride_keeps_every_other_start(windows, tmp_path):
    fill(windows, tmp_path / "two", stride=2)
    cache = open_cache(tmp_path / "two", windows, stride=2)
    assert len(cache) == 6
    for row, index in enumerate([0, 2, 4, 5, 7, 9]):  # of episodes with 4, 1 and 6 windows
        assert_windows(cache[row], expected(windows, index))
    about = cache.describe()["latents"]
    assert (about["windows"], about["stride"]) == (6, 2)
    assert about["bytes"] == 6 * make_layout(windows).record_bytes


def test_copies_are_drawn_alike_and_the_first_is_fixed(windows, tmp_path):
    fill(windows, tmp_path / "copies", copies=3, drawn=True, seed=5)
    cache, brightness = open_cache(tmp_path / "copies", windows), expected(windows, 6)
    base = brightness["target_latents"]
    rng = np.random.default_rng(0)
    drawn = [cache.draw(6, rng) for _ in range(60)]
    numbers = [int(np.round((w["target_latents"] - base).mean())) for w in drawn]
    assert min(np.bincount(numbers, minlength=3)) > 8
    for number, window in zip(numbers, drawn, strict=True):
        np.testing.assert_array_equal(window["target_latents"], base + np.float32(number))
        np.testing.assert_array_equal(window["observed_latents"], window["target_latents"][:2])
    assert_windows(cache[6], brightness)


def test_all_that_differs_is_named_in_one_message(windows, folder):
    with pytest.raises(ValueError) as error:
        open_cache(
            folder,
            windows,
            made_with={
                "weights of the VAE": "xyz",
                "data.image_size": (16, 8),
                "data.goal": "last",
            },
            fields=("target_latents", "goal_latent"),
            stride=4,
        )
    message = str(error.value)
    for part in (
        f"data.latents = {folder} was made with other weights or preprocessing: ",
        "weights of the VAE: abc there, xyz here; ",
        "data.image_size: [8, 8] there, [16, 8] here; ",
        "data.goal: (absent) there, last here; ",
        "data.latents_stride: 1 there, 4 here; ",
        "videos: no goal_latent there, which this run reads. ",
    ):
        assert part in message


def test_other_arithmetic_is_said(windows, folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    open_cache(folder, windows, arithmetic="bfloat16 on gpu")
    assert len(said) == 1
    assert "encoded in float32 on cpu; this run computes in bfloat16 on gpu" in said[0]


def test_a_folder_that_holds_none(windows, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.latents = .*nothing: no latents.json there"):
        open_cache(tmp_path / "nothing", windows)
    with pytest.raises(FileNotFoundError, match="it holds toy, of a mixture"):
        open_cache(folder.parent, windows)


def test_a_damaged_description_is_named(windows, own):
    path = own / "latents.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"layout": 0}))
    with pytest.raises(
        ValueError, match="latents.json: damaged or of another version .layout 0, expected 1"
    ):
        open_cache(own, windows)
    path.write_text("{")
    with pytest.raises(ValueError, match="latents.json: damaged"):
        open_cache(own, windows)


def test_an_interrupted_encode_says_how_to_go_on(windows, own):
    (own / "complete.json").unlink()
    (own / "latents-00002-of-00004.array_record").unlink()
    with pytest.raises(ValueError) as error:
        open_cache(own, windows)
    assert "1 of 4 shards are missing; this goes on with it: " in str(error.value)
    command = f"python -m roam_jax encode --config 'my config.py' --out {own}"
    assert str(error.value).endswith(command)


def test_a_shard_that_was_cut_short_is_named(windows, own):
    path = own / "latents-00001-of-00004.array_record"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(ValueError, match=rf"{path.name}: {len(whole) - 1000:,} bytes, expected"):
        open_cache(own, windows)


@pytest.mark.parametrize("content", ["{}", "[]", '{"shards": {}}', '{"shards'])
def test_damaged_sizes_are_named_with_their_mend(windows, own, content):
    path = own / "complete.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="damaged .*python -m roam_jax encode") as error:
        open_cache(own, windows)
    assert str(error.value).startswith(f"{path}: damaged")


def test_a_damaged_record_is_named(windows, own):
    path = own / "latents-00001-of-00004.array_record"
    whole = bytearray(path.read_bytes())
    place = whole.find(expected(windows, 4)["target_latents"].tobytes())
    whole[place + 5] ^= 1
    path.write_bytes(whole)
    cache = open_cache(own, windows)
    assert_windows(cache[3], expected(windows, 3))
    with pytest.raises(ValueError, match=rf"{path.name}: record 1 is damaged"):
        cache[4]
    with pytest.raises(IndexError, match="window 11 of 11"):
        cache[11]


def test_the_fingerprint_is_that_of_the_numbers(windows):
    layout = make_layout(windows)
    same = copy.deepcopy(dataclasses.replace(layout, shard_windows=7, arguments=()))
    assert same.fingerprint == layout.fingerprint
    for change in ({"stride": 2}, {"dtype": "float16"}, {"made_with": {}}, {"seed": 1}):
        assert make_layout(windows, **change).fingerprint != layout.fingerprint
