"""Declarations of the datasets that the package knows, told apart by their features."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from roam_jax.contracts import ACTION_NAMES
from roam_jax.data.declaration import (
    DatasetDeclaration,
    FeatureTable,
    Published,
    Reached,
    Stored,
)
from roam_jax.data.folder import feature_table, open_dataset

_POSITION, _ANGLES, _GRIPPER = ACTION_NAMES[:3], ACTION_NAMES[3:6], ACTION_NAMES[6:]


def _bridge_state(feature: str) -> tuple[Stored, ...]:
    return (
        Stored(_POSITION, feature, unit="m", columns=(0, 1, 2), width=7),
        Stored(_ANGLES, feature, unit="rad", kind="angle", columns=(3, 4, 5)),
        Stored(_GRIPPER, feature, unit="1 = open", kind="gripper", columns=(6,)),
    )


def _bridge_action(feature: str, *, column: int, width: int) -> tuple[Stored | Reached, ...]:
    """Commands and motion differ (correlation 0.72 to 0.93), so poses are what was reached."""
    gripper = Stored(
        _GRIPPER, feature, unit="1 = open", kind="gripper", columns=(column,), width=width
    )
    return Reached((*_POSITION, *_ANGLES)), gripper


# Quantiles over 2,135,463 transitions of BridgeData V2, relabelled as here (OpenVLA's figures).
_BRIDGE_FIGURES = Published(
    datasets=("bridge_dataset", "bridge_orig", "bridge"),
    q01=(-0.0287, -0.0417, -0.0261, -0.0809, -0.0929, -0.2072, 0.0),
    q99=(0.0283, 0.0409, 0.0402, 0.0819, 0.0779, 0.2038, 1.0),
)

# Walke et al., CoRL 2023, as its authors publish it. The first action of an episode is all zeros.
BRIDGE = DatasetDeclaration(
    name="BridgeData V2",
    cameras={f"image_{i}": f"steps/observation/image_{i}" for i in range(4)},
    state=_bridge_state("steps/observation/state"),
    action=_bridge_action("steps/action", column=6, width=7),
    rate=5.0,
    instruction="steps/language_instruction",
    embedding="steps/language_embedding",
    reward="steps/reward",
    episode_name=("episode_metadata/file_path", "episode_metadata/episode_id"),
    skip_first=1,
    published=_BRIDGE_FIGURES,
)

# The same robot in the Open X-Embodiment collection (2023), version 0.1.0: one camera, action
# dicts, no name of an episode, and a test split.
OXE_BRIDGE = DatasetDeclaration(
    name="OXE bridge",
    cameras={"image_0": "steps/observation/image"},
    state=_bridge_state("steps/observation/state"),
    action=_bridge_action("steps/action/open_gripper", column=0, width=1),
    rate=5.0,
    instruction="steps/observation/natural_language_instruction",
    embedding="steps/observation/natural_language_embedding",
    reward="steps/reward",
    skip_first=1,
    splits=("train", "test"),
    published=_BRIDGE_FIGURES,
)

BUILT_IN = (BRIDGE, OXE_BRIDGE)


def detect_in(root: str | os.PathLike) -> DatasetDeclaration:
    """`detect_declaration` of the dataset in a folder.

    Raises:
        FileNotFoundError, ValueError: no dataset there, or none that the package knows.
    """
    root = pathlib.Path(root).expanduser()
    info = open_dataset(root)
    where = f"{info.name}/{info.version} in {root}"
    return detect_declaration(feature_table(info.features), where=where)


def detect_declaration(features: FeatureTable, *, where: str) -> DatasetDeclaration:
    """The built-in declaration whose numbers the features are, without what they lack.

    Cameras, instruction, embedding and the episode's name may be missing.

    Args:
        features: of `features.json`, by the names that they have in records.
        where: the dataset, for the message.

    Raises:
        ValueError: none fits; names what each lacks.
    """
    lacking = {}
    for declaration in BUILT_IN:
        missing = [name for name in declaration.number_features() if name not in features]
        cameras = {n: f for n, f in declaration.cameras.items() if f in features}
        if cameras and not missing:
            named = all(name in features for name in declaration.episode_name)
            return dataclasses.replace(
                declaration,
                cameras=cameras,
                episode_name=declaration.episode_name if named else (),
                **{
                    field: feature if (feature := getattr(declaration, field)) in features else None
                    for field in ("instruction", "embedding")
                },
            )
        lacking[declaration.name] = missing or list(declaration.cameras.values())
    listed = "; ".join(f"{name} needs {', '.join(fs)}" for name, fs in lacking.items())
    raise ValueError(
        f"{where}: features.json is that of no dataset which the package knows: {listed}. Describe "
        "it in a file of your own: --config.data.declaration=FILE (docs/data.md)"
    )
