"""Reads windows that `python -m roam_jax encode` has encoded: one record each, at random.

A folder is opened for the windows of a run, and refused where it holds others: other weights of the
VAE, other data, other preprocessing. Nothing of it stays in memory but texts of some shards.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from absl import logging
from array_record.python import array_record_module

from roam_jax.contracts import Batch
from roam_jax.data.array_records import ERRORS, READER_OPTIONS
from roam_jax.data.latent_layout import (
    COMPLETE,
    differences,
    read_layout,
    read_sizes,
)
from roam_jax.data.latent_shards import TEXT_ROW, missing_shards
from roam_jax.data.latent_units import ROBOT_FIELDS, Scaling
from roam_jax.data.latents import LatentSource
from roam_jax.data.text import TextEmbeddings
from roam_jax.data.windows import WindowSource

KEY = "data.latents"
# Shards whose texts are kept, about 100 kB each.
TEXTS_KEPT = 256
PLACES = ("episode", "start")


class CachedLatents(LatentSource):
    """Random access to windows on disk; `draw` chooses one of the copies of a window.

    Args:
        folder: that `encode` has filled.
        windows: of the run, whose statistics scale what is stored.
        made_with: what the run's numbers depend on, as in the folder's description.
        fields: latents and log-variances that the run reads.
        arithmetic: dtype and kind of device of the run.
        stride: that the run asks for; 0 = that of the folder.

    Raises:
        FileNotFoundError: nothing was encoded there.
        ValueError: it was made with other weights or preprocessing (names all that differs), is
            not complete (names the command), or a shard was cut short.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        windows: WindowSource,
        *,
        made_with: Mapping[str, Any],
        fields: Collection[str],
        arithmetic: str,
        stride: int = 0,
    ):
        super().__init__(windows)
        self.folder = pathlib.Path(folder).expanduser()
        self.layout = read_layout(self.folder, key=KEY)
        self._check_made_with(made_with, fields, stride)
        self._check_shards()
        if arithmetic != self.layout.arithmetic:
            logging.warning(
                "%s = %s was encoded in %s; this run computes in %s, so its latents differ from "
                "those that it would make itself by rounding",
                KEY,
                self.folder,
                self.layout.arithmetic,
                arithmetic,
            )
        self._fields = tuple(fields)
        template = windows[0]
        self._scaling = Scaling(windows, template)
        self._member, self._no_text = template["dataset"], template["text"]
        text = windows.options.text
        self._file = None if self.layout.own_text or not text else TextEmbeddings(text)
        self._open_texts()

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: without the texts at hand."""
        return {name: value for name, value in vars(self).items() if name != "_texts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_texts()

    def __len__(self) -> int:
        return self.layout.windows

    def __getitem__(self, index: int) -> Batch:
        """Window `index`, always the same: the first copy.

        Raises:
            IndexError: there is no such window.
            ValueError: its record is damaged (names file and record).
        """
        return self._window(index, 0)

    def draw(self, index: int, rng: np.random.Generator) -> Batch:
        """One copy of window `index`, each as likely.

        Raises:
            IndexError, ValueError: as for `source[index]`.
        """
        copies = self.layout.copies
        return self._window(index, int(rng.integers(copies)) if copies > 1 else 0)

    @property
    def fingerprint(self) -> str:
        """Hash of what the latents, their copies and their order depend on."""
        return self.layout.fingerprint

    def describe(self) -> dict[str, Any]:
        """As `WindowSource.describe`, with what is on disk."""
        layout = self.layout
        latents = {
            "folder": str(self.folder),
            "windows": layout.windows,
            "stride": layout.stride,
            "copies": layout.copies,
            "bytes": layout.windows * layout.window_bytes,
            "arithmetic": layout.arithmetic,
            "fingerprint": self.fingerprint,
        }
        return {**super().describe(), "latents": latents}

    def _window(self, index: int, copy: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        shard, record = self.layout.place(index, copy)
        stored = self._unpack(shard, record)
        window = {name: stored[name] for name in self._fields}
        window |= {"text": self._text(shard, stored), **self._scaling(stored)}
        window |= {name: np.int32(stored[name]) for name in PLACES}
        return Batch(**window, dataset=self._member)

    def _unpack(self, shard: int, record: int) -> dict[str, np.ndarray]:
        path = self.folder / self.layout.shard_name(shard)
        try:
            wanted = {*self._fields, *ROBOT_FIELDS, *PLACES, TEXT_ROW}
            return self.layout.unpack(_read(path, record), wanted)
        except ERRORS as error:
            raise self._damaged(path, f"record {record}", error) from error

    def _damaged(self, path: pathlib.Path, what: str, error: Exception) -> ValueError:
        return ValueError(
            f"{path}: {what} is damaged ({error}); delete the file, and this makes it again: "
            f"{self.layout.command(self.folder)}"
        )

    def _text(self, shard: int, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.layout.own_text:
            return self._texts(shard)[int(stored[TEXT_ROW])]
        if self._file is None:
            return self._no_text
        return self._file[self.windows.reader.headers[int(stored["episode"])].instruction]

    def _open_texts(self) -> None:
        self._texts = functools.lru_cache(maxsize=TEXTS_KEPT)(self._read_texts)

    def _read_texts(self, shard: int) -> np.ndarray:
        """The distinct texts of a shard, its last record."""
        path = self.folder / self.layout.shard_name(shard)
        last = len(self.layout.shard_range(shard)) * self.layout.copies
        try:
            return np.frombuffer(_read(path, last), np.float32).reshape(-1, *self._no_text.shape)
        except ERRORS as error:
            raise self._damaged(path, f"record {last}, its texts,", error) from error

    def _check_made_with(
        self, made_with: Mapping[str, Any], fields: Collection[str], stride: int
    ) -> None:
        layout = self.layout
        there, here = dict(layout.made_with), dict(made_with)
        if stride and stride != layout.stride:
            there["data.latents_stride"], here["data.latents_stride"] = layout.stride, stride
        changed = differences(there, here)
        stored = [field.name for field in layout.fields]
        lacking = sorted(set(fields) - set(stored))
        if lacking:
            changed.append(f"videos: no {', '.join(lacking)} there, which this run reads")
        if changed:
            raise ValueError(
                f"{KEY} = {self.folder} was made with other weights or preprocessing: "
                f"{'; '.join(changed)}. Expected the values that it was made with, or a folder "
                "that `python -m roam_jax encode` fills with this config"
            )

    def _check_shards(self) -> None:
        layout, path = self.layout, self.folder / COMPLETE
        names = [layout.shard_name(n) for n in range(layout.shards)]
        if not path.is_file() or not all((self.folder / name).is_file() for name in names):
            missing = missing_shards(self.folder, layout)
            raise ValueError(
                f"{KEY} = {self.folder}: encoding was interrupted, {len(missing)} of "
                f"{layout.shards} shards are missing; this goes on with it: "
                f"{layout.command(self.folder)}"
            )
        for name, size in read_sizes(self.folder, layout).items():
            found = (self.folder / name).stat().st_size
            if found != size:
                raise ValueError(
                    f"{self.folder / name}: {found:,} bytes, expected {size:,}: cut short or "
                    f"replaced; this makes it again: {layout.command(self.folder)}"
                )


def _read(path: pathlib.Path, record: int) -> bytes:
    # Opening costs a tenth of a millisecond, and holds no file that a fork would share.
    reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
    return reader.read([record])[0]
