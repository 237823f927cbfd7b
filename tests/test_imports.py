"""Who may import whom: the layers of the project, read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAYERS = {
    "accelerators": 1,
    "axes": 0,
    "contracts": 0,
    "files": 0,
    "logical": 1,
    "microbatch": 1,
    "morphology": 0,
    "spelling": 0,
    "video_files": 0,
    "diffusion": 1,
    "canvas": 1,
    "attention": 2,
    "model": 3,
    "cogvideox": 4,
    "tasks": 5,
    "evaluate": 6,
    "budget": 7,
    "cli": 8,
    "__main__": 9,
}
LEAVES = (
    "accelerators",
    "axes",
    "contracts",
    "files",
    "logical",
    "microbatch",
    "morphology",
    "spelling",
    "video_files",
)
# Of data/, these alone may make episodes in sim/.
MAKERS = ("embedded.py", "demonstrations.py")
SIDES = {
    "sim": {*LEAVES},
    "data": {*LEAVES, "canvas"},
    "train": {*LEAVES},
    "viz": {"canvas"},
}
# From here on a layer may also use the side packages.
FIRST_LAYER_WITH_SIDES = 5
TORCH = {"torch", "diffusers", "transformers"}


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(module: str) -> str | None:
    """The package of roam_jax that a dotted name lies in."""
    names = module.split(".")
    return names[1] if names[0] == "roam_jax" and len(names) > 1 else None


def library_files() -> list[pathlib.Path]:
    return sorted((ROOT / "roam_jax").rglob("*.py"))


def may_import(path: pathlib.Path, importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer in SIDES:
        makes = path.name in MAKERS and importer == "data" and imported == "sim"
        return imported in SIDES[importer] or makes
    if imported in SIDES:
        return LAYERS[importer] >= FIRST_LAYER_WITH_SIDES
    return LAYERS[imported] < LAYERS[importer]


@pytest.mark.parametrize("path", library_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path):
    names = path.relative_to(ROOT / "roam_jax").parts
    importer = names[0].removesuffix(".py")
    if importer == "__init__":
        return
    for module in imports(path):
        imported = part(module)
        if imported is not None:
            assert may_import(path, importer, imported), f"{importer} imports {module}"
        top = module.split(".")[0]
        assert top not in TORCH, f"only convert/ may import {top}"
        assert top not in ("convert", "configs", "tensorflow"), f"nothing imports {top}"


def test_the_rules_notice_a_wrong_import():
    path = ROOT / "roam_jax" / "canvas" / "layout.py"
    assert not may_import(path, "canvas", "model")
    assert not may_import(path, "train", "model")
    assert not may_import(path, "data", "sim")
    assert may_import(ROOT / "roam_jax" / "data" / "embedded.py", "data", "sim")


@pytest.mark.parametrize("name", ["axes.py", "contracts.py"])
def test_contracts_start_no_accelerator_runtime(name):
    tree = ast.parse((ROOT / "roam_jax" / name).read_text())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = ast.unparse(node)
            assert "jax" not in text.replace("roam_jax", ""), text


def test_the_canvas_is_numpy_only():
    for path in (ROOT / "roam_jax" / "canvas").glob("*.py"):
        assert not {m for m in imports(path) if m.split(".")[0] in ("jax", "flax")}
