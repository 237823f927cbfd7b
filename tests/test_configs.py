"""Every config is locked, read and refused where it is wrong."""

import ast
import dataclasses
import pathlib

import pytest

from configs import canvas_toy, defaults, mujoco_bc
from roam_jax.axes import MESH_AXES
from roam_jax.cli.arguments import leaf_items, load_config, override
from roam_jax.model.loop_options import LoopOptions

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = [
    "configs/bridge_3loop.py",
    "configs/bridge_3loop.py:tiny",
    "configs/bridge_mixture.py",
    "configs/bridge_mixture.py:tiny",
    "configs/tiny_vae.py",
    "configs/tiny_backbone.py",
    *(
        f"configs/canvas_toy.py{variant}"
        for variant in ("", *(f":{name}" for name in canvas_toy.VARIANTS))
    ),
    *(
        f"configs/mujoco_bc.py{variant}"
        for variant in ("", *(f":{name}" for name in mujoco_bc.VARIANTS))
    ),
    "configs/canvas_contact.py",
    "configs/canvas_contact.py:tiny",
    *(
        f"configs/topology/{path.name}{variant}"
        for path in sorted((ROOT / "configs/topology").glob("[!_]*.py"))
        for variant in ("", ":tiny")
    ),
]


def names_read() -> set[str]:
    """ "a.b" for every attribute b that the library takes from something called a.

    A name that is assigned `config.SECTION` counts as SECTION in its file.
    """
    files = [*(ROOT / "roam_jax").rglob("*.py"), ROOT / "train.py", ROOT / "eval.py"]
    found = set()
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        sections = dict(section_names(nodes))
        for node in nodes:
            if isinstance(node, ast.Attribute):
                owner = last_name(node.value)
                found.add(f"{sections.get(owner, owner)}.{node.attr}")
    # Taken by name in `LoopOptions.from_section`, which refuses a leaf that is not there.
    found |= {f"loop.{field.name}" for field in dataclasses.fields(LoopOptions)}
    # Arguments of `make_mesh`, which is called with the whole section.
    return found | {f"mesh.{axis}" for axis in MESH_AXES}


def last_name(node: ast.AST) -> str | None:
    return getattr(node, "attr", None) or getattr(node, "id", None)


def section_names(nodes):
    """(name, section) of assignments such as `self._settings = experiment.config.eval`."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            targets, values = node.targets, [node.value]
            if isinstance(targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                targets, values = targets[0].elts, node.value.elts
            for target, value in zip(targets, values, strict=False):
                if isinstance(value, ast.Attribute) and last_name(value.value) == "config":
                    yield last_name(target), value.attr


def test_every_leaf_is_read():
    read = names_read()
    leaves = [f"config.{key}" for key, _ in leaf_items(defaults.get_config())]
    unread = [key for key in leaves if ".".join(key.split(".")[-2:]) not in read]
    assert not unread


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_have_the_default_sections_in_order(name):
    config = load_config(str(ROOT / name))
    assert [k for k, _ in leaf_items(config)] == [k for k, _ in leaf_items(defaults.get_config())]


def test_overrides_reach_their_leaf():
    config = load_config(str(ROOT / "configs/bridge_3loop.py:tiny"))
    override(config, ["--config.optim.lr=3e-4", "--config.freeze=half", "--config.mesh.fsdp=8"])
    assert (config.optim.lr, config.freeze, config.mesh.fsdp) == (3e-4, "half", 8)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.optim.lrr=1", "config.optim.lrr: no such key; did you mean --config.optim.lr"),
        ("--config.loop.round=1", "did you mean --config.loop.rounds"),
        ("--config.train.steps=many", "train.steps=many: expected a value of type int"),
        ("--config.optim=3", "no such key"),
    ],
)
def test_wrong_overrides_are_refused(argument, message):
    config = load_config(str(ROOT / "configs/bridge_3loop.py:tiny"))
    with pytest.raises(ValueError, match=message):
        override(config, [argument])


def test_wrong_files_and_variants_are_refused():
    with pytest.raises(FileNotFoundError, match="did you mean .*bridge_3loop.py"):
        load_config(str(ROOT / "configs/bridge_3lop.py"))
    with pytest.raises(ValueError, match="no variant 'small'"):
        load_config(str(ROOT / "configs/bridge_3loop.py:small"))
