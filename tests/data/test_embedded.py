"""The embedded dataset: what tfds and the reader get back is what the simulation gave."""

import dataclasses
import io
import itertools
import json
import pathlib
import re
import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from roam_jax.data import embedded
from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.embedded import (
    VARIANTS,
    EmbeddedSpec,
    ensure_embedded,
    language_embedding,
    make_episode,
)
from roam_jax.sim.environments import DIRECTIONS, EXTENDED, VARIED_LOOK, draw_environment
from roam_jax.sim.tabletop import SHAPES, SimulationDivergedError

SPEC = EmbeddedSpec(seed=5, train=3, val=1, steps=(16, 24), look=VARIED_LOOK, image_size=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return ensure_embedded(variant=SPEC, directory=tmp_path_factory.mktemp("embedded"))


def payloads(path: pathlib.Path) -> list[bytes]:
    """Records of a shard, both checksums compared with crc32c."""

    def masked(data: bytes) -> int:
        crc = google_crc32c.value(data)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32

    data, offset, records = path.read_bytes(), 0, []
    while offset < len(data):
        length, checksum = struct.unpack_from("<QI", data, offset)
        assert checksum == masked(data[offset : offset + 8])
        payload = data[offset + 12 : offset + 12 + length]
        assert struct.unpack_from("<I", data, offset + 12 + length)[0] == masked(payload)
        records.append(payload)
        offset += 16 + length
    return records


def originals() -> list:
    """The train episodes once more, straight from the simulation."""
    kinds = itertools.cycle(("reach", "push"))
    rngs = (np.random.default_rng([SPEC.seed, 0, number, 0]) for number in range(SPEC.train))
    return [make_episode(SPEC, kind, rng) for kind, rng in zip(kinds, rngs, strict=False)]


def test_tfds_reads_back_what_was_simulated(root):
    features = tfds.builder_from_directory(root).info.features
    records = payloads(root / "tabletop-train.tfrecord-00000-of-00001")
    assert len(records) == SPEC.train
    for number, (payload, episode) in enumerate(zip(records, originals(), strict=True)):
        stored = features.deserialize_example_np(payload)
        steps = list(stored["steps"])
        length = len(episode.states)
        for name, expected in (
            ("action", episode.actions.astype(np.float32)),
            ("is_first", [k == 0 for k in range(length)]),
            ("is_last", [k == length - 1 for k in range(length)]),
            ("is_terminal", [k == length - 1 for k in range(length)]),
            ("reward", [float(k == length - 1) for k in range(length)]),
            ("discount", np.ones(length)),
            ("language_instruction", [episode.environment.instruction.encode()] * length),
            ("language_embedding", [language_embedding(episode.environment.instruction)] * length),
        ):
            np.testing.assert_array_equal([step[name] for step in steps], expected, err_msg=name)
        observations = [step["observation"] for step in steps]
        states = [observation["state"] for observation in observations]
        np.testing.assert_array_equal(states, episode.states.astype(np.float32))
        for observation, frame in zip(observations, episode.frames, strict=True):
            error = np.square(observation["image_0"].astype(float) - frame).mean()
            assert 10 * np.log10(255**2 / error) > 32  # dB; what JPEG costs
            assert not any(observation[f"image_{camera}"].any() for camera in (1, 2, 3))
        metadata = stored["episode_metadata"]
        assert metadata["episode_id"] == number and metadata["has_language"]
        assert [metadata[f"has_image_{camera}"] for camera in range(4)] == [True] + [False] * 3


def test_features_are_those_of_bridge(root, bridge_root):
    def skeleton(node):
        """features.json without what may differ: descriptions and the image's size."""
        if not isinstance(node, dict):
            return node
        if "image" in node:
            return {**node["image"], "shape": None}
        return {key: skeleton(value) for key, value in node.items() if key != "description"}

    ours, real = (json.loads((r / "features.json").read_text()) for r in (root, bridge_root))
    assert skeleton(ours) == skeleton(real)


def test_the_reader_takes_it_as_it_takes_bridge(root):
    names = set()
    for split, count in (("train", SPEC.train), ("val", SPEC.val)):
        reader = EpisodeReader(root, split)
        assert len(reader) == count
        names |= {header.name for header in reader.headers}
    assert len(names) == SPEC.train + SPEC.val
    episode, expected = EpisodeReader(root, "train")[1], originals()[1]
    np.testing.assert_array_equal(episode.command[:, 6], expected.actions[:, 6].astype(np.float32))
    np.testing.assert_array_equal(episode.state, expected.states.astype(np.float32))
    frames = episode.frames(range(3), camera="image_0")
    assert np.abs(frames.astype(int) - np.stack(expected.frames[:3])).mean() < 5


def test_the_same_spec_gives_the_same_bytes_and_another_does_not(root, tmp_path):
    again = ensure_embedded(variant=SPEC, directory=tmp_path)
    files = sorted(path.name for path in root.iterdir())
    assert len(files) == 4, files
    for name in files:
        assert (root / name).read_bytes() == (again / name).read_bytes()
    other = ensure_embedded(
        variant=dataclasses.replace(SPEC, seed=6, train=1, val=1), directory=tmp_path
    )
    assert other != again and again.parent.name.startswith("tabletop-custom-g")


def test_it_is_written_once_by_the_first_of_two_processes(root, tmp_path, monkeypatch):
    """While one process writes, another finishes: its folder stays, and nothing else is left."""
    spec = dataclasses.replace(SPEC, train=1, val=1)
    write, calls = embedded.write_dataset, []

    def write_slowly(spec, root):
        calls.append(root)
        if len(calls) == 1:
            ensure_embedded(variant=spec, directory=tmp_path)
        return write(spec, root)

    monkeypatch.setattr(embedded, "write_dataset", write_slowly)
    made = ensure_embedded(variant=spec, directory=tmp_path)
    assert len(calls) == 2 and len(set(calls)) == 2
    assert ensure_embedded(variant=spec, directory=tmp_path) == made and len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == [made.parent.name]
    assert len(EpisodeReader(made, "train")) == 1


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "encode_jpeg", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_embedded(variant=SPEC, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_diverged_and_failed_episodes_are_dropped_and_counted(tmp_path, monkeypatch):
    make, outcomes = embedded.make_episode, iter(["diverged", "failed", "good", "good", "diverged"])

    def make_or_fail(spec, kind, rng):
        outcome = next(outcomes, "good")
        if outcome == "diverged":
            raise SimulationDivergedError("nan")
        return dataclasses.replace(make(spec, kind, rng), success=outcome == "good")

    monkeypatch.setattr(embedded, "make_episode", make_or_fail)
    spec = dataclasses.replace(SPEC, train=2, val=1)
    dropped = embedded.write_dataset(spec, tmp_path / "1.0.0")
    assert dropped == {"diverged": 2, "unsuccessful": 1}
    info = tfds.builder_from_directory(tmp_path / "1.0.0").info
    assert str(dropped) in info.description
    assert info.splits["train"].num_examples == 2


def test_an_episode_that_always_fails_ends_with_one_message(tmp_path, monkeypatch):
    def diverge(*args):
        raise SimulationDivergedError("nan")

    monkeypatch.setattr(embedded, "make_episode", diverge)
    with pytest.raises(RuntimeError, match="episode 0: none of 20 draws succeeded"):
        embedded.write_dataset(SPEC, tmp_path / "1.0.0")


def test_no_start_is_shared_between_splits_or_variants():
    starts = [
        draw_environment(
            np.random.default_rng([spec.seed, split, number, 0]), kind="push", look=spec.look
        ).scene.start
        for spec in VARIANTS.values()
        for split, count in enumerate((spec.train, spec.val))
        for number in range(count)
    ]
    assert len(set(starts)) == len(starts) == 96 + 16 + 512 + 48


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ValueError, match=r"'pretrian'.*did you mean 'pretrain'"):
        ensure_embedded(variant="pretrian")


def test_default_directory_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path))
    spec = dataclasses.replace(SPEC, train=1, val=1)
    assert ensure_embedded(variant=spec).parent.parent == tmp_path / "embedded"


def test_embeddings_are_unit_vectors_that_tell_instructions_apart():
    instructions = ["", "reach", *(f"touch the {colour} ball" for colour in EXTENDED)] + [
        f"push the {colour} {shape} {direction}"
        for colour in EXTENDED
        for shape in SHAPES
        for direction in DIRECTIONS
    ]
    vectors = np.stack([language_embedding(instruction) for instruction in instructions])
    assert vectors.dtype == np.float32 and vectors.shape == (len(instructions), 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)
    similarity = vectors @ vectors.T - np.eye(len(vectors))
    assert similarity.max() < 0.95


def test_embedding_counts_words_whatever_their_case_and_order():
    vector = language_embedding("push the red cube")
    np.testing.assert_array_equal(vector, language_embedding("Push the CUBE, red."))
    twice = language_embedding("the the")
    np.testing.assert_allclose(twice, language_embedding("the"), atol=1e-7)
    # Sums of independent random signs: the cosine is near that of the word counts.
    other = language_embedding("push the blue cube")
    assert abs(vector @ other - 3 / 4) < 0.15


def test_embedding_of_a_word_never_changes():
    """Weights trained on the embedded data depend on it, so a few signs are held here."""
    signs = np.sign(language_embedding("push"))[:8].astype(int).tolist()
    assert signs == [-1, -1, -1, -1, 1, -1, -1, -1]


def test_black_cameras_are_jpegs():
    frame = np.asarray(Image.open(io.BytesIO(embedded._black_jpeg(16))))
    assert frame.shape == (16, 16, 3) and not frame.any()


def test_the_page_on_embedded_data_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROAM_CACHE", str(tmp_path))
    page = pathlib.Path(__file__).parents[2] / "docs" / "embedded_data.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec("\n".join(blocks), {})
    assert Image.open(tmp_path / "episodes.png").size == (2 * 8 * 64, 2 * 2 * 64)
