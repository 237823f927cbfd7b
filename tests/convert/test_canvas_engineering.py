"""Loops and action head through canvas-engineering's own code: same outputs, same bits back."""

import json

import jax
import numpy as np
import pytest

from convert.__main__ import main
from convert.loops import Loops, read_loops, write_loops
from roam_jax.evaluate.saved import read_saved
from roam_jax.train import names
from roam_jax.train.sharding import make_mesh
from tests.cogvideox.diffusers_models import relative_error

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("canvas_engineering")

import diffusers
import torch
from canvas_engineering.action_heads import ActionHead
from canvas_engineering.checkpoint import load_loop_checkpoint, save_loop_checkpoint
from canvas_engineering.graft import graft_looped_blocks

ROUNDS = 2
PARITY = 2e-6


def convert(*argv):
    main([str(argument) for argument in argv])


def their_graft(folder, **options):
    """A diffusers transformer, looped by canvas-engineering."""
    model = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        folder, subfolder="transformer", low_cpu_mem_usage=False
    ).eval()
    return model, *graft_looped_blocks(model, max_loops=ROUNDS, action_dim=7, **options)


@pytest.mark.parametrize("through_base", [False, True])
def test_a_run_gives_the_same_outputs_there(ce_run, half_run, weights, tmp_path, through_base):
    """Also of a run that trained the backbone: its loops, on its base."""
    path, base = tmp_path / "loops.pt", weights.parent / "diffusers"
    if through_base:
        (workdir, _), base = half_run, tmp_path / "base"
        with pytest.raises(
            ValueError, match=r"freeze = 'half' also trained norm_final/.*\.\.\. of"
        ):
            convert("export", "--workdir", workdir, "--dst", path, "--as", "ce")
        convert("export", "--workdir", workdir, "--dst", base, "--as", "base+loops")
        convert("export", "--src", base, "--dst", path, "--as", "ce")
    else:
        workdir, _ = ce_run
        convert("export", "--workdir", workdir, "--dst", path, "--as", "ce")
    model, blocks, head = their_graft(base)
    load_loop_checkpoint(blocks, head, path)
    for block in blocks:
        block.set_loops(ROUNDS)
    rng = np.random.default_rng(1)
    values = (
        rng.standard_normal((2, 3, 16, 2, 2)).astype(np.float32),
        rng.standard_normal((2, 1, 512)).astype(np.float32),
        np.array([437, 999]),
    )
    with torch.no_grad():
        velocity = model(*map(torch.tensor, values)).sample
        action = head(velocity)

    plan, saved = read_saved(workdir).model(), read_saved(workdir)
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    params, _ = saved.params(plan.task, rules=plan.rules, mesh=mesh)
    params = {name: value for name, value in params.items() if name != "vae"}
    ours, _ = jax.jit(lambda p, *v: plan.model.module.apply({"params": p}, *v, {}, rounds=ROUNDS))(
        params, *values
    )
    assert relative_error(ours["velocity"], velocity) <= PARITY
    assert relative_error(ours["actions"][:, 0], action) <= PARITY


def test_export_then_import_gives_the_same_bits(ce_run, tmp_path, capsys):
    workdir, trained = ce_run
    convert("export", "--workdir", workdir, "--dst", tmp_path / "loops.pt", "--as", "ce")
    assert "max_loops=2, action_dim=7" in capsys.readouterr().out
    assert json.loads((tmp_path / "loops.json").read_text())["statistics"]
    convert("import", "--ce", tmp_path / "loops.pt", "--dst", tmp_path / "back")
    loops = read_loops(tmp_path / "back")
    assert (loops.notes["rounds"], loops.notes["gate"], loops.notes["action_dim"]) == (
        ROUNDS, "sigmoid", 7,
    )  # fmt: skip
    assert loops.parameters.keys() == trained.keys()
    for name, value in trained.items():
        assert loops.parameters[name].tobytes() == value.tobytes()


def test_their_file_comes_back_to_them(weights, tmp_path):
    """With the blocks' own weights, which they save when they train."""
    _, blocks, head = their_graft(weights.parent / "diffusers", freeze="none")
    torch.manual_seed(0)
    for block in blocks:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
    save_loop_checkpoint(blocks, head, tmp_path / "theirs.pt")
    convert("import", "--ce", tmp_path / "theirs.pt", "--dst", tmp_path / "ours")
    found = read_loops(tmp_path / "ours").parameters
    np.testing.assert_array_equal(found["blocks/loop/text"][1], blocks[1].loop_emb_enc.detach())
    own = blocks[1].original.ff.net[2].weight.detach()
    np.testing.assert_array_equal(found["blocks/ff/down/kernel"][1], own.T)
    convert("export", "--src", tmp_path / "ours", "--dst", tmp_path / "back.pt", "--as", "ce")
    states = [torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("theirs", "back")]
    first, second = ({**s["loop_blocks"], "head": s["action_head"]} for s in states)
    assert first.keys() == second.keys() == {"block_0", "block_1", "head"}
    for part, tensors in first.items():
        assert second[part].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(second[part][key], tensor), key


def test_what_it_cannot_express_is_named(graft_run, ce_run, tmp_path):
    with pytest.raises(ValueError, match="no place for gate = 'identity' .*; decoder = 'tokens'.*"
                       r"; the regions past_action, future_action, observed_proprio$"):  # fmt: skip
        convert("export", "--workdir", graft_run[0], "--dst", tmp_path / "x.pt", "--as", "ce")
    assert not (tmp_path / "x.pt").exists()
    for number, (key, value) in enumerate(
        {
            "gate_scope": "token",
            "sharpening": "linear",
            "geometry": "rotary",
            "clean_timestep": "zero",
            "visual_attention": "causal",
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_loops(folder, Loops({"gate": "sigmoid", key: value}, ce_run[1]))
        with pytest.raises(ValueError, match=f"no place for {key} = '{value}'"):
            convert("export", "--src", folder, "--dst", tmp_path / "x.pt", "--as", "ce")


def test_parameters_without_a_place_are_named(ce_run, tmp_path):
    """Files that somebody else wrote under our names."""
    trained = ce_run[1]

    def refuse(parameters, message):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_loops(folder, Loops({}, parameters))
        with pytest.raises(ValueError, match=message):
            convert("export", "--src", folder, "--dst", tmp_path / "x.pt", "--as", "ce")

    refuse(trained | {"graft/goal/kernel": np.zeros(1, "f4")}, "the parameters graft/goal/kernel")
    lacking = {name: value for name, value in trained.items() if name != "blocks/loop/text"}
    refuse(lacking, "no parameters blocks/loop/text, expected all of a graft")
    wide = trained | {"graft/decoder/hidden/kernel": np.zeros((64, 8), "f4")}
    refuse(wide, "the action head has 8 hidden numbers, canvas-engineering's has 32 for 64")


def test_other_files_are_refused(tmp_path):
    def refuse(message, *, error=ValueError):
        with pytest.raises(error, match=message):
            convert("import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refuse("x.pt: no such file", error=FileNotFoundError)
    head = ActionHead().state_dict()
    rows = {"loop_emb": torch.zeros(2, 4), "loop_emb_enc": torch.zeros(2, 4)}
    rows["loop_gate"] = torch.zeros(2, 1)

    def save(blocks, **others):
        torch.save({"loop_blocks": blocks, "action_head": head} | others, tmp_path / "x.pt")

    save({"block_0": rows, "block_2": rows})
    refuse(r"blocks/loop/\w+ of blocks \[0, 2\], expected \[0, 1\]")
    save({"block_0": rows, "block_1": rows | {"loop_gate": torch.zeros(3, 1)}})
    refuse(r"block_1.loop_gate has shape \(3, 1\), expected \(2, 1\): .* is for 2 rounds")
    save({"block_0": rows, "block_1": rows | {"loop_gate": torch.zeros(2, 1).half()}})
    refuse("blocks/loop/gate has another dtype in one block than in another")
    save({"block_0": rows | {"scale": torch.zeros(3)}})
    refuse(r"loop_blocks.block_0.scale of shape \(3,\) has no place in a graft")
    save({"block_0": rows}, action_head=ActionHead(hidden_dim=12).state_dict())
    refuse("the action head has 12 hidden numbers, canvas-engineering's has 8")
    save({"block_0": rows}, step=torch.zeros(1))
    refuse("holds .*'step'.*, expected what canvas-engineering's save_loop_checkpoint writes")
    save({"block_0": rows, "block_1": 3})
    refuse("loop_blocks.block_1 is a int, no tensor")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: len(content) // 2])
    refuse("x.pt: no file of plain tensors")


Z = torch.zeros


@pytest.mark.parametrize(
    "rows, head, message",
    [
        ({"loop_gate": Z(2, 3)}, {}, r"loop_gate has shape \(2, 3\), expected \(2, 1\)"),
        ({"loop_gate": Z(2, 0)}, {}, r"loop_gate has shape \(2, 0\), expected \(2, 1\)"),
        ({"loop_emb": Z(3, 4)}, {}, r"loop_emb_enc has shape \(2, 4\), expected \(3, 4\)"),
        ({"loop_emb_enc": Z(2, 7)}, {}, r"loop_emb_enc has shape \(2, 7\), expected \(2, 4\)"),
        ({"loop_emb": Z(0, 4)}, {}, r"loop_emb has shape \(0, 4\), expected \(1, 4\)"),
        ({}, {"net.2.weight": Z(7, 5)}, r"net.2.weight has shape \(7, 5\), expected \(7, 8\)"),
        ({}, {"net.0.bias": Z(5)}, r"net.0.bias has shape \(5,\), expected \(8,\)"),
        (
            {"loop_emb": Z(2, 16), "loop_emb_enc": Z(2, 16), "original.ff.net.2.weight": Z(3, 5)},
            {},
            r"block_0.original.ff.net.2.weight has shape \(3, 5\), expected \(16, 64\)",
        ),
        ({"original.ff.net.2.bias": Z(4)}, {}, "x.pt: no blocks of CogVideoX: .* = 4: expected a"),
        ({"original.attn1.norm_q.weight": Z(3)}, {}, "heads of 3 numbers do not fill width 4"),
        ({"loop_gate": Z(2, 1).double()}, {}, "loop_gate is torch.float64, expected a dense tenso"),
        ({"loop_gate": Z(2, 1).bool()}, {}, "loop_gate is torch.bool, expected"),
        ({"loop_gate": Z(2, 1).to_sparse()}, {}, "loop_gate is torch.sparse_coo, expected a dens"),
    ],
)
def test_tensors_that_do_not_belong_together_are_named(tmp_path, rows, head, message):
    sizes = {"loop_emb": (2, 4), "loop_emb_enc": (2, 4), "loop_gate": (2, 1)}
    rows = {name: Z(size) for name, size in sizes.items()} | rows
    state = {"loop_blocks": {"block_0": rows}, "action_head": ActionHead().state_dict() | head}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        convert("import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_and_old_files_are_read(tmp_path):
    """nn.Parameter for a tensor, in the format of torch before 1.6, which cannot be mapped."""
    rows = {"loop_emb": torch.randn(2, 4), "loop_emb_enc": Z(2, 4), "loop_gate": torch.randn(2, 1)}
    state = {"block_0": {name: torch.nn.Parameter(value) for name, value in rows.items()}}
    state = {"loop_blocks": state, "action_head": ActionHead().state_dict()}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    convert("import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "out")
    found = read_loops(tmp_path / "out").parameters
    np.testing.assert_array_equal(found["blocks/loop/video"][0], rows["loop_emb"])
    np.testing.assert_array_equal(found["blocks/loop/gate"][0], rows["loop_gate"][:, 0])
    content = (tmp_path / "x.pt").read_bytes()
    for broken in (content[:-40], content[:300], b"", b"text", content[:20] + content[60:]):
        (tmp_path / "x.pt").write_bytes(broken)
        with pytest.raises(ValueError, match="x.pt: no file of plain tensors"):
            convert("import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "other")


def test_where_a_file_is_written(ce_run, tmp_path, monkeypatch):
    """A name that the notes beside it do not share, new folders, nothing half-written."""
    write_loops(tmp_path, Loops({"gate": "sigmoid"}, ce_run[1]))
    argv = ["export", "--src", tmp_path, "--as", "ce", "--dst"]
    for name in ("q.json", "q"):
        with pytest.raises(ValueError, match=f"{name}: expected a name that ends in .pt"):
            convert(*argv, tmp_path / name)
    new = tmp_path / "deep" / "er"
    with monkeypatch.context() as patched:
        error = OSError(18, "no rename")
        patched.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(OSError, match="no rename"):
            convert(*argv, new / "x.pt")
    assert list(new.iterdir()) == []
    convert(*argv, new / "x.pt")
    assert {path.name for path in new.iterdir()} == {"x.pt", "x.json"}


class Runs:
    """Would be called when a pickle is read without care."""

    def __reduce__(self):
        return print, ("this ran",)


def test_code_in_a_pickle_never_runs(tmp_path, capsys):
    torch.save({"loop_blocks": Runs(), "action_head": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt: no file of plain tensors"):
        convert("import", "--ce", tmp_path / "x.pt", "--dst", tmp_path / "out")
    assert "this ran" not in capsys.readouterr().out


def test_loop_folders_that_are_none(ce_run, tmp_path):
    def refuse(message, *, error=ValueError):
        with pytest.raises(error, match=message):
            convert("export", "--src", tmp_path / "x", "--dst", tmp_path / "x.pt", "--as", "ce")

    refuse("loops.safetensors: no such file; `python -m convert", error=FileNotFoundError)
    (tmp_path / "x").mkdir()
    write_loops(tmp_path / "x", Loops({}, names.flatten(names.unflatten(ce_run[1]))))
    (tmp_path / "x" / "loops.json").write_text('{"format": "roam_jax loops, version 9"}')
    refuse("loops.json: format = 'roam_jax loops, version 9', expected")
    (tmp_path / "x" / "loops.json").write_text("[]")
    refuse("loops.json: expected a JSON object with format")
    write_loops(tmp_path / "x", Loops({"regions": 5}, ce_run[1]))
    refuse("loops.json: regions = 5, expected a list of names")
