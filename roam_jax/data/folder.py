"""The folder of a dataset as tfds describes it: its features, and the format of its shards."""

from __future__ import annotations

import pathlib

import tensorflow_datasets as tfds

from roam_jax.data import array_records, records

FILE_FORMATS = {
    tfds.core.FileFormat.TFRECORD: records,
    tfds.core.FileFormat.ARRAY_RECORD: array_records,
}
# What `pack` has done so far, in the folder that it fills.
PACK_JOURNAL = "pack.json"


def open_dataset(root: pathlib.Path, *, key: str = "data.root") -> tfds.core.DatasetInfo:
    """The description of the dataset in `root`, whose shards are of a format that can be read.

    Args:
        root: version folder of a tfds dataset.
        key: what named it, for messages.

    Raises:
        FileNotFoundError: no dataset there; names the version folder below where there is one.
        ValueError: a description that tfds cannot read (names the file), or shards of an unknown
            format.
    """
    missing = [n for n in ("features.json", "dataset_info.json") if not (root / n).is_file()]
    if missing and (root / PACK_JOURNAL).is_file():
        raise FileNotFoundError(
            f"{key} = {root}: found no {' and no '.join(missing)}: `python -m roam_jax pack` has "
            "not finished there; run it again, and it goes on where it stopped"
        )
    if missing:
        below = sorted(path.parent for path in root.glob("*/features.json"))
        hint = f"; did you mean {below[-1]}?" if below else ""
        raise FileNotFoundError(
            f"{key} = {root}: found no {' and no '.join(missing)}; expected the version folder "
            f"of a tfds dataset, such as bridge_dataset/1.0.0{hint}"
        )
    info = _read(root)
    if info.file_format not in FILE_FORMATS:
        known = ", ".join(form.value for form in FILE_FORMATS)
        raise ValueError(f"{root}: file format {info.file_format.value}, expected one of {known}")
    return info


def _read(root: pathlib.Path) -> tfds.core.DatasetInfo:
    file = root / "features.json"
    try:
        tfds.features.FeatureConnector.from_config(str(root))  # alone, to tell which file is wrong
        file = root / "dataset_info.json"
        return tfds.builder_from_directory(root).info
    except Exception as error:  # whatever tfds raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{file}: {reason}; expected the file as tfds wrote it") from error


def feature_table(
    features: tfds.features.FeaturesDict,
) -> dict[str, tfds.features.FeatureConnector]:
    """Leaf features by the names that they have in a record, such as steps/observation/state."""
    table = {}

    def visit(prefix: str, feature: tfds.features.FeatureConnector) -> None:
        if isinstance(feature, tfds.features.Dataset):
            feature = feature.feature
        if isinstance(feature, tfds.features.FeaturesDict):
            for name, child in feature.items():
                visit(f"{prefix}/{name}" if prefix else name, child)
        else:
            table[prefix] = feature

    visit("", features)
    return table
