"""`describe` as a user types it: the report's figures and lines, pictures, bad input."""

import json
import pathlib
import subprocess
import sys

import pytest

from roam_jax.__main__ import VERBS, main
from roam_jax.cli.describe_text import _si
from roam_jax.evaluate import description
from tests.test_commands import TINY, command

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL = str(ROOT / "configs/bridge_3loop.py")
UNEVEN = (("a", 0.5, "embedded"), ("b", 0.7, "embedded"))


def describe(capsys, *arguments) -> list[str]:
    assert command(main, "describe", *arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_the_tiny_config(weights, tmp_path, capsys):
    lines = describe(
        capsys,
        "--config",
        TINY,
        "--out",
        tmp_path / "out",
        f"--config.backbone.path={weights}",
        "--config.loop.rounds=2",
        "--config.topology.backbone_reads_new=0.01",
        "--config.freeze=half",
    )
    assert max(map(len, lines[:-6])) <= 100
    text = "\n".join(lines)
    assert "does NOT equal the backbone" in text
    assert "visual reads past_action, future_action (weight up to 0.01)" in text
    report = json.loads((tmp_path / "out" / "describe.json").read_text())
    assert report["config"]["loop"]["rounds"] == 2
    assert report["canvas"]["cells"] == 57 and report["topology"]["share"] == 1
    assert [row["rounds"] for row in report["flops"]["rounds"]] == [1, 2]
    one, two = (row["total"] for row in report["flops"]["rounds"])
    assert 1.9 < two / one < 2 and report["flops"]["vae_encoding"] > 0
    kept = [row["kept_bytes"] / 2**20 for row in report["flops"]["rounds"]]
    assert f"  kept by rounds, MiB: 1: {kept[0]:.1f}; 2: {kept[1]:.1f}" in lines
    policies = report["parameters"]["policies"]
    assert policies["full"]["loop"] == 2 * 2 * (2 * 32 + 1)  # blocks x rounds x (embeddings, gate)
    assert list(policies) == ["full", "half", "none", "unfrozen"]
    assert any(line.split()[:1] == ["half*"] for line in lines)
    plan = report["topology"]["plan"]
    assert (plan["heads"], plan["width"], plan["pairs"]) == (2, 16, 57**2)
    assert plan["flops"]["all"] == 4 * 2 * 16 * 57**2
    assert any("attention, 2 heads x 16, a window: " in line for line in lines)
    slices = report["topology"]["slices"]
    assert slices["applications"] == 2 * 2
    # All is needed before the last application, and then the four future actions alone.
    (acting,) = slices["wanted"]
    assert (acting["name"], acting["regions"]) == ("actions alone", ["future_action"])
    assert acting["cell_share"] == (3 * 57 + 4) / (4 * 57)
    for name in ("canvas.png", "topology.png", "mask.png", "plan.png", "slice.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
        assert f"picture: {tmp_path / 'out' / name}" in lines


def test_the_2b_config_before_any_weights_are_there(capsys):
    lines = describe(capsys, "--config", FULL, "--config.loop.rounds=1", "--config.mesh.fsdp=8")
    text = "\n".join(lines)
    assert "assumed: backbone.path is empty: sizes of the published CogVideoX-2B" in text
    assert "equals the backbone" in text
    words = [line.split() for line in lines]
    counts = {(w[0], w[1]): w[2] for w in words if w[1:] and w[1] in ("trained", "frozen")}
    assert counts["backbone", "frozen"] == "1,693,783,872"
    assert counts["loop", "trained"] == "115,230"
    assert counts["vae", "frozen"] == "215,583,907"
    frozen = next(line for line in lines if line.startswith("  frozen weights"))
    expected = (1_693_783_872 / 8 + 215_583_907) * 2 / 2**20
    assert float(frozen.split()[-2].replace(",", "")) == pytest.approx(expected, rel=0.01)


def test_a_task_without_a_canvas(weights, tmp_path, capsys):
    config = str(ROOT / "configs/tiny_backbone.py")
    lines = describe(
        capsys, "--config", config, "--out", tmp_path, f"--config.backbone.path={weights}"
    )
    assert not any(line.startswith(("canvas", "topology")) for line in lines)
    report = json.loads((tmp_path / "describe.json").read_text())
    assert [row["rounds"] for row in report["flops"]["rounds"]] == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["describe.json"]


def test_a_decoder_that_reads_blocks_leaves_nothing_out(weights, capsys):
    arguments = [f"--config.backbone.path={weights}", "--config.decoder.kind=cross_attention"]
    lines = describe(capsys, "--config", TINY, "--config.loop.rounds=1", *arguments)
    assert any(line.startswith("nothing is left out") for line in lines)


def test_a_loss_on_actions_alone_is_said_to_be_sliced(weights, capsys):
    arguments = [f"--config.backbone.path={weights}", "--config.canvas.visual_weight=0"]
    lines = describe(capsys, "--config", TINY, "--config.loop.rounds=1", *arguments)
    rows = [line.split("  ")[1] for line in lines if line.endswith("of the pairs")]
    assert rows == ["training (future_action)", "actions alone (future_action)"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["describ", "--config", TINY], "no verb 'describ': did you mean 'describe'?"),
        (["describe", "--config", "configs/bridge.py"], "no file configs/bridge.py"),
        (["describe", "--config", f"{FULL}:small"], "no variant 'small'"),
        (["describe", "--config", TINY, "--config.loop.round=2"], "did you mean"),
        (["describe", "--config", TINY, "--config.backbone.path=nowhere"], "nowhere"),
        (["describe", "--config", TINY, "--config.mesh.fsdp=3"], "does not divide"),
        (["describe", "--config", FULL, "--config.data.text=gone"], "gone: no text embeddings"),
        (
            ["describe", "--config", TINY, f"--config.data.mixture={UNEVEN}"],
            "sum to 1.2, expected 1",
        ),
    ],
)
def test_bad_input_ends_with_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command(main, *arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("error:") == 1 and message in printed


@pytest.mark.parametrize("inside", [False, True])
def test_an_out_that_is_no_folder_is_refused_before_the_report(
    weights, tmp_path, capsys, monkeypatch, inside
):
    def traced(plan):
        raise AssertionError("the step was traced")

    monkeypatch.setattr(description, "describe", traced)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x" if inside else tmp_path / "file"
    arguments = ["--config", TINY, f"--config.backbone.path={weights}", "--out", out]
    assert command(main, "describe", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and f"error: --out {out}: expected a folder; " in printed.err


def test_a_config_is_suggested_only_where_its_name_is_close(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command(main, "describe", "--config", "nope.py") == 2
    assert capsys.readouterr().err.endswith("error: --config nope.py: no file nope.py\n")
    assert command(main, "describe", "--config", "configs/bridge_4loop.py") == 2
    assert "did you mean configs/bridge_3loop.py?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0"),
        (7, "7.0"),
        (999.94, "999.9"),
        (999.96, "1.0 k"),
        (999_940, "999.9 k"),
        (999_960, "1.0 M"),
        (3.49e14, "349.0 T"),
        (5e22, "50000.0 E"),
    ],
)
def test_numbers_with_prefixes(number, text):
    assert _si(number) == text


def test_without_a_verb_the_verbs_are_listed(capsys):
    assert command(main) == 0
    assert "describe  what a config builds and costs" in capsys.readouterr().out


def test_help_lists_the_verbs_and_starts_no_accelerator_runtime():
    code = (
        "import sys; from roam_jax.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print('jax' in sys.modules)"
    )
    for arguments, expected in ((["--help"], "verbs:"), (["describe", "--help"], "example:")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert expected in done.stdout and done.stdout.endswith("False\n")


def test_every_verb_has_a_module():
    for verb in VERBS:
        assert (ROOT / "roam_jax" / "cli" / f"{verb}.py").is_file()
