"""A converted folder as a diffusers directory again: the inverse of `import_diffusers`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection

from flax import traverse_util

from roam_jax.cogvideox.components import (
    COMPONENTS,
    SCHEDULER,
    SCHEDULER_FILE,
    TOKENIZER,
)
from roam_jax.cogvideox.importing import copy_companions, new_directory
from roam_jax.cogvideox.load import fingerprint, open_parameters
from roam_jax.cogvideox.save import write_networks
from roam_jax.cogvideox.scheduler import CLASSES, write_scheduler
from roam_jax.cogvideox.source import PIPELINE, PIPELINE_FILE, class_name
from roam_jax.contracts import Params
from roam_jax.spelling import check_choice

_TOKENIZER_CLASS = ("transformers", "T5Tokenizer")


def export_converted(src: pathlib.Path, dst: pathlib.Path) -> str:
    """Writes whatever a converted folder has, in the dtypes that it has.

    Args:
        src: the converted folder.
        dst: the new diffusers directory; appears whole or not at all.

    Returns:
        What was written, for a person.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: `src` is no converted folder or damaged (all
            of it is read and compared with its manifests), or `dst` exists.
    """
    networks = find_converted(src)
    with new_directory(dst) as folder:
        for name in networks:
            fingerprint(src / name)
            write_networks(folder, {name: converted_network(src, name)})
        copy_companions(src, folder)
        lines = [f"{dst / name}: as it was imported" for name in networks]
        return "\n".join([*lines, *finish_pipeline(folder, dst)])


def find_converted(src: pathlib.Path) -> tuple[str, ...]:
    """Which networks a converted folder holds.

    Raises:
        FileNotFoundError: none.
    """
    found = tuple(name for name in COMPONENTS if (src / name).is_dir())
    if not found:
        *others, last = COMPONENTS
        raise FileNotFoundError(
            f"{src}: no converted folder, expected {', '.join(others)} or {last} in it as "
            "`python -m convert import` writes them"
        )
    return found


def converted_network(src: pathlib.Path, name: str) -> tuple[object, Params]:
    """Config and memory-mapped parameters of one network of a converted folder."""
    config, parameters = open_parameters(src, name)
    return config, traverse_util.unflatten_dict(parameters, sep="/")


def finish_pipeline(folder: pathlib.Path, dst: pathlib.Path) -> list[str]:
    """Gives a diffusers directory its noise schedule, and its index where no part is missing.

    diffusers refuses a pipeline of which a part is null, so a directory without the text encoder,
    say, gets no model_index.json; its parts load one by one.

    Args:
        folder: with the networks and what was copied.
        dst: what it will be called.

    Returns:
        What was written or left out, for a person.
    """
    lines = []
    if not (folder / SCHEDULER).exists():
        write_scheduler(folder)
        lines.append(f"{dst / SCHEDULER}: that of CogVideoX-2B, since the source has none")
    missing = [name for name in (*COMPONENTS, TOKENIZER) if not (folder / name).is_dir()]
    if missing:
        return [
            *lines,
            f"no {PIPELINE_FILE}: {', '.join(missing)} {_are(missing)} not there, and diffusers "
            "loads no pipeline without; load the parts by their own classes",
        ]
    (folder / PIPELINE_FILE).write_text(json.dumps(_index(folder), indent=2) + "\n")
    return [*lines, f"{dst / PIPELINE_FILE}: {PIPELINE}"]


def _index(folder: pathlib.Path) -> dict[str, object]:
    """Part -> (package, class), as diffusers notes it."""
    scheduler = class_name(folder / SCHEDULER / SCHEDULER_FILE)
    check_choice(f"{SCHEDULER}/{SCHEDULER_FILE}: _class_name", scheduler, CLASSES.values())
    parts = {name: (part.library, part.class_name) for name, part in COMPONENTS.items()}
    parts |= {SCHEDULER: ("diffusers", scheduler), TOKENIZER: _TOKENIZER_CLASS}
    return {"_class_name": PIPELINE, **{name: list(parts[name]) for name in sorted(parts)}}


def _are(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"
