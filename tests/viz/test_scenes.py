"""Pictures of a scene's examples, read back from the figures, and the page that shows them."""

import dataclasses
import pathlib
import re

import numpy as np

from roam_jax.viz.scenes import draw_examples, to_pixels

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scenes.md"


@dataclasses.dataclass
class Stream:
    name: str
    kind: str
    shape: tuple
    role: str
    vocabulary: int = 0
    cell_names: tuple = ()


class Scene:
    streams = (
        Stream("past", "patches", (1, 4, 4, 3), "input"),
        Stream("next", "patches", (2, 4, 4, 3), "output"),
        Stream("pose", "vectors", (1, 2), "input"),
        Stream("later", "vectors", (2, 2), "output"),
        Stream("gain", "scalars", (3,), "output"),
        Stream("asked", "tokens", (2,), "input", 4),
        Stream("said", "tokens", (2,), "output", 4, ("first", "second")),
        Stream("hit", "tokens", (3,), "output", 2, ("frame 0", "frame 1", "frame 2")),
    )
    words = ("no", "yes", "where", "why")
    dimensions = {"pose": ("x", "y"), "later": ("x", "y")}

    def groups(self):
        return (("past", "next"), ("asked", "said"), ("hit",), ("pose", "later"), ("gain",))


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        stream.name: rng.integers(0, stream.vocabulary, (count, *stream.shape))
        if stream.kind == "tokens"
        else rng.uniform(-1, 1, (count, *stream.shape)).astype(np.float32)
        for stream in Scene.streams
    }


def test_a_band_shows_an_example(tmp_path, drawn, texts):
    made = examples(2)
    draw_examples(tmp_path / "a.png", Scene(), made, ["one", "two"])
    texts.require_legible()
    assert len(drawn) == 6  # film, poses, gain, twice
    for i in range(2):
        film, poses, gain = drawn[3 * i : 3 * i + 3]
        frames = to_pixels(np.concatenate([made["past"][i], made["next"][i]]))
        for image, frame in zip(film.get_images(), frames, strict=True):
            np.testing.assert_array_equal(image.get_array(), frame)
        values = np.concatenate([made["pose"][i], made["later"][i]])
        for d, line in enumerate(poses.get_lines()):
            np.testing.assert_allclose(line.get_ydata(), values[:, d])
            assert line.get_label() == "xy"[d]
        np.testing.assert_allclose(gain.get_lines()[0].get_ydata(), made["gain"][i])
        marks = [note.get_text() for note in film.texts]
        assert marks == ["hit", *(Scene.words[t] for t in made["hit"][i])]
        bold = [note.get_fontweight() == "bold" for note in film.texts[1:]]
        assert bold == (made["hit"][i] == 1).tolist()
    asked, answers = (made[name][0] for name in ("asked", "said"))
    title = next(text for text in texts.boxes if text.startswith("one"))
    assert f"asked: {Scene.words[asked[0]]} {Scene.words[asked[1]]}\n" in title
    first, second = (Scene.words[token] for token in answers)
    assert f"said:   first: {first},   second: {second}" in title


def test_predictions_stand_beside_what_is_true(tmp_path, drawn, texts):
    made, guessed = examples(1), examples(1, seed=1)
    guessed = {name: guessed[name] for name in ("next", "later", "said", "hit")}
    guessed["said"][0] = (made["said"][0] + [0, 1]) % 4
    draw_examples(tmp_path / "a.png", Scene(), made, ["one"], predicted=guessed)
    texts.require_legible()
    film, poses, _ = drawn
    images = [image.get_array() for image in film.get_images()]
    np.testing.assert_array_equal(images[3], to_pixels(made["past"][0])[0])
    np.testing.assert_array_equal(images[4:], to_pixels(guessed["next"][0]))
    lines = [line for line in poses.get_lines() if line.get_marker() == "x"]
    for d, line in enumerate(lines):
        np.testing.assert_allclose(line.get_xydata(), np.c_[[1, 2], guessed["later"][0, :, d]])
    words = [Scene.words[token] for token in (*made["said"][0], *guessed["said"][0])]
    title = next(text for text in texts.boxes if text.startswith("one"))
    assert f"first: {words[0]} (as predicted)" in title
    assert f"second: {words[1]} (predicted {words[3]})" in title
    assert [note.get_text() for note in film.texts if note.get_text() in ("hit", "predicted")] == [
        "hit",
        "predicted",
    ]


def test_streams_may_be_left_out(tmp_path, drawn):
    made = {name: v for name, v in examples(1).items() if name in ("past", "gain", "asked")}
    draw_examples(tmp_path / "a.png", Scene(), made, ["one"])
    film, gain = drawn
    assert len(film.get_images()) == 1 and len(gain.get_lines()) == 1


def test_pixels_are_cut_to_their_range():
    frames = np.array([-2.0, -1.0, 0.0, 1.0, 3.0, 0.5], np.float32).reshape(1, 1, 2, 3)
    assert to_pixels(frames).reshape(-1).tolist() == [0, 0, 128, 255, 255, 191]


def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, PAGE.name, "exec"), {})
    written = sorted(path.name for path in tmp_path.glob("*.png"))
    assert written == ["scene_contact.png", "scene_multimodal.png"]
    for name in written:
        assert f"(images/{name})" in PAGE.read_text()
        assert (PAGE.parent / "images" / name).is_file()
