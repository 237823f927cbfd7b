"""A trained graft as base and loops and as a model directory: every value, no data needed."""

import json
import shutil

import numpy as np
import pytest

from convert.__main__ import main
from convert.loops import read_loops
from roam_jax.cogvideox.importing import import_diffusers
from roam_jax.cogvideox.load import load_transformer, load_vae
from roam_jax.evaluate.model_directory import read_model_directory
from roam_jax.evaluate.saved import read_saved
from roam_jax.train import names


def export(workdir, dst, *options):
    main(["export", "--workdir", str(workdir), "--dst", str(dst), *options])


def test_a_model_directory_is_the_default(graft_run, tmp_path, capsys):
    workdir, trained = graft_run
    export(workdir, tmp_path / "out")
    assert "model directory of step 5, not measured" in capsys.readouterr().out
    found = read_model_directory(tmp_path / "out")
    assert found.step == 5 and found.trainable.keys() == trained.keys()
    for name, value in trained.items():
        np.testing.assert_array_equal(found.trainable[name], value)
    saved = read_saved(tmp_path / "out")
    assert saved.config == read_saved(workdir).config
    assert saved.statistics == read_saved(workdir).statistics != {}
    card = (tmp_path / "out" / "README.md").read_text()
    command = f"python -m convert export --workdir {workdir} --dst {tmp_path / 'out'}\n"
    assert command in card and "Not measured." in card


def test_a_model_directory_is_exported_like_its_run(graft_run, tmp_path):
    export(graft_run[0], tmp_path / "model")
    for source, name in ((graft_run[0], "a"), (tmp_path / "model", "b")):
        export(source, tmp_path / name, "--as", "base+loops")
    first, second = read_loops(tmp_path / "a"), read_loops(tmp_path / "b")
    differing = {key for key, value in first.notes.items() if second.notes[key] != value}
    assert differing == {"command"} and first.notes.keys() == second.notes.keys()
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], value)
    message = f"no step 3 in {tmp_path / 'model'}: a model directory holds one, 5"
    with pytest.raises(FileNotFoundError, match=message):
        export(tmp_path / "model", tmp_path / "c", "--step", "3")


def test_what_was_measured_is_in_the_card(graft_run, tmp_path, capsys):
    workdir = shutil.copytree(graft_run[0], tmp_path / "run")
    (workdir / "eval").mkdir()
    psnr = {"mean": 21.25, "interval": [20.5, 22.0]}
    figures = {"windows": 4, "episodes": 2, "psnr": psnr, "mean_colour_psnr": 15.0}
    report = {"step": 3, "task": "vae", "splits": {"val": {**figures, "psnr_gain": 6.25}}}
    (workdir / "eval" / "3.json").write_text(json.dumps(report))
    export(workdir, tmp_path / "out", "--step", "3")
    assert "with what eval.py measured" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "val: 4 windows of 2 episodes" in card and "21.2500 [20.5000, 22.0000] dB" in card
    # Its figures go on with a model directory.
    export(tmp_path / "out", tmp_path / "again")
    again = (tmp_path / "again" / "README.md").read_text()
    assert "21.2500 [20.5000, 22.0000] dB" in again and "Not measured" not in again
    for text in ("[]", '{"step": 3}'):
        (workdir / "eval" / "3.json").write_text(text)
        with pytest.raises(ValueError, match=r"eval/3.json: not what eval.py writes \("):
            export(workdir, tmp_path / "other", "--step", "3")
    (workdir / "eval" / "3.json").write_text("{")
    with pytest.raises(ValueError, match=r"eval/3.json: no JSON"):
        export(workdir, tmp_path / "other", "--step", "3")


def test_base_and_loops(graft_run, weights, tmp_path, capsys):
    """The frozen backbone as it was imported, what the graft adds bit for bit."""
    workdir, trained = graft_run
    moved = shutil.move(shutil.copytree(weights, tmp_path / "copy"), tmp_path / "elsewhere")
    export(workdir, tmp_path / "out", "--as", "base+loops", f"--config.backbone.path={moved}")
    printed = capsys.readouterr().out
    assert "the backbone, as it was" in printed and "no model_index.json: text_encoder" in printed
    loops = read_loops(tmp_path / "out")
    assert loops.parameters.keys() == trained.keys()
    for name, value in trained.items():
        assert loops.parameters[name].tobytes() == value.tobytes()
    assert loops.notes["rounds"] == 2 and loops.notes["decoder"] == "tokens"
    assert "observed_proprio" in loops.notes["regions"] and loops.notes["step"] == 5
    assert loops.notes["canvas"]["regions"].keys() == set(loops.notes["regions"])
    import_diffusers(tmp_path / "out", tmp_path / "back")
    for load in (load_transformer, load_vae):
        (module, ours), (before, expected) = load(tmp_path / "back"), load(weights)
        assert module.config == before.config
        ours, expected = names.flatten(ours), names.flatten(expected)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert ours[name].dtype == value.dtype and ours[name].tobytes() == value.tobytes()


def test_the_base_holds_what_trained_of_the_backbone(half_run, weights, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    workdir, trained = half_run
    export(workdir, tmp_path / "out", "--as", "base+loops")
    assert "trained parameters" in capsys.readouterr().out
    loops = read_loops(tmp_path / "out")
    assert set(loops.notes["backbone"]) == trained.keys() - loops.parameters.keys()
    model = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        tmp_path / "out", subfolder="transformer", low_cpu_mem_usage=False
    )
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    frozen = names.flatten(load_transformer(weights)[1])
    np.testing.assert_array_equal(tensors["proj_out.weight"], trained["proj_out/kernel"].T)
    key = "transformer_blocks.1.ff.net.2.weight"
    np.testing.assert_array_equal(tensors[key], frozen["blocks/ff/down/kernel"][1].T)


def test_what_has_no_form_is_refused(graft_run, tmp_path):
    def refuse(message, *options, dst=tmp_path / "out", error=ValueError):
        with pytest.raises(error, match=message):
            export(graft_run[0], dst, *options)
        assert not (tmp_path / "out").exists()

    refuse(r"a graft has no diffusers form: .* Expected --as base\+loops", "--as", "diffusers")
    refuse("--as = 'onnx': .*base", "--as", "onnx")
    refuse(r"no checkpoint of step 4 .*\[3, 5\]", "--step", "4", error=FileNotFoundError)
    refuse("exists: remove it", dst=tmp_path, error=FileExistsError)
    refuse(
        "no manifest.json with weights",
        f"--config.backbone.path={tmp_path}",
        error=FileNotFoundError,
    )


def test_other_weights_are_refused(graft_run, tmp_path):
    from tests.tiny_weights import write_weights

    other = write_weights(tmp_path / "other", seed=3)
    with pytest.raises(ValueError, match="frozen weights 'transformer' at backbone.path = "):
        export(graft_run[0], tmp_path / "out", f"--config.backbone.path={other}")
