"""The distinct instructions of a robot dataset, which `convert text` embeds."""

from __future__ import annotations

import pathlib

from roam_jax.data.dataset import EpisodeReader
from roam_jax.data.declaration import load_declaration
from roam_jax.files import write_atomically


def write_prompts(root: pathlib.Path, out: pathlib.Path, *, declaration: str) -> int:
    """Writes every instruction of the training and validation splits once, one a line.

    Args:
        root: the dataset.
        out: the new file.
        declaration: what describes the dataset; see `load_declaration`.

    Returns:
        How many there are.

    Raises:
        FileExistsError: `out` exists.
        FileNotFoundError: the dataset or one of its splits is not there.
        ValueError: an instruction has more than one line.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it, or choose another file")
    chosen, split = {}, "train"
    if found := load_declaration(declaration):
        cameras = tuple(found.cameras)[:1]
        chosen, split = {"declaration": found, "cameras": cameras}, found.splits[0]
    train = EpisodeReader(root, split, **chosen)
    val = EpisodeReader(root, train.declaration.splits[1], **chosen)
    prompts = sorted({*train.headers.instructions, *val.headers.instructions})
    broken = [prompt for prompt in prompts if "\n" in prompt or "\r" in prompt]
    if broken:
        raise ValueError(f"{root}: instruction {broken[0]!r} has more than one line")
    write_atomically(out, "".join(f"{prompt}\n" for prompt in prompts))
    return len(prompts)
