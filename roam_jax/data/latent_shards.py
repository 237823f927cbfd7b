"""Encodes windows into shards on disk, by one process or many, and goes on where it was stopped.

A shard is written to a hidden file and put in place by a rename, so what is there is whole, and a
kill costs one shard at most. Which process writes a shard follows from its number alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from roam_jax.contracts import Batch
from roam_jax.data.array_records import (
    count_records,
    put_in_place,
    remove_leftovers,
    writing,
)
from roam_jax.data.latent_layout import (
    COMPLETE,
    DESCRIPTION,
    Field,
    LatentLayout,
    differences,
    read_layout,
    read_sizes,
)
from roam_jax.data.latent_units import in_physical_units, own_dimensions
from roam_jax.data.latents import COPY, Encoder, encoded
from roam_jax.data.options import LANGUAGE_EMBEDDING
from roam_jax.data.windows import WindowSource
from roam_jax.files import free_bytes, write_atomically, write_once

# What a record and a shard take beyond their payload.
RECORD_OVERHEAD, SHARD_OVERHEAD = 64, 3 * 2**16
# Row of a window's text among those of its shard.
TEXT_ROW = "text_row"


class Part(NamedTuple):
    """Which shards are written here: every `count`-th from `index` on."""

    index: int = 0
    count: int = 1


WHOLE = Part()


def window_indices(counts: Int[np.ndarray, " episodes"], stride: int) -> Int[np.ndarray, " N"]:
    """Index of every `stride`-th window of each episode."""
    firsts = np.cumsum(counts) - counts
    rows = [first + np.arange(0, n, stride) for first, n in zip(firsts, counts, strict=True)]
    return np.concatenate(rows).astype(np.int64)


def record_fields(
    source: WindowSource, latents: Mapping[str, tuple[int, ...]], *, dtype: str
) -> tuple[Field, ...]:
    """What a record holds.

    Args:
        source: windows.
        latents: name and shape of a window's latents and their log-variances.
        dtype: that these are stored as.
    """
    robot = own_dimensions(source, source[0])
    places = ["episode", "start", *([TEXT_ROW] if own_text(source) else [])]
    return (
        *(Field(name, tuple(shape), dtype) for name, shape in latents.items()),
        *(Field(name, rows.shape, "float32") for name, rows in robot.items()),
        *(Field(name, (), "int32") for name in places),
    )


def own_text(source: WindowSource) -> int:
    """Bytes of an embedding that the dataset stores; 0 where a run takes texts from elsewhere."""
    return source[0]["text"].nbytes if source.options.text == LANGUAGE_EMBEDDING else 0


class Encoding:
    """What is to be encoded into a folder, and what earlier attempts have done of it.

    Args:
        source: windows with frames, of the train split.
        out: folder to fill: new, empty, or begun with the same layout.
        layout: what it shall hold.
        part: the share of the shards that is encoded here.

    Raises:
        ValueError: `out` holds something else, or was begun with another layout.
    """

    def __init__(
        self,
        source: WindowSource,
        out: pathlib.Path,
        layout: LatentLayout,
        *,
        part: Part = WHOLE,
    ):
        self.source, self.out, self.layout = source, out.expanduser(), layout
        self._physical = in_physical_units(source)
        self._indices = window_indices(source.counts, layout.stride)
        self._check_folder()
        self._part, self.ours = part, range(part.index, layout.shards, part.count)
        self.missing = missing_shards(self.out, layout, among=self.ours)

    @property
    def missing_windows(self) -> int:
        """Windows that are still to be encoded here, each with all of its copies."""
        return sum(len(self.layout.shard_range(n)) for n in self.missing)

    def size(self, shards: Sequence[int] | None = None) -> int:
        """Bytes that shards take on disk; None = all of them.

        The dataset's own texts are counted once an episode, which is the most that they can take.
        """
        layout = self.layout
        shards = range(layout.shards) if shards is None else shards
        windows = sum(len(layout.shard_range(n)) for n in shards)
        texts = layout.own_text * np.count_nonzero(self.source.counts) * windows // layout.windows
        records = layout.window_bytes + layout.copies * RECORD_OVERHEAD
        return int(windows * records + texts + len(shards) * SHARD_OVERHEAD)

    @property
    def free(self) -> int:
        """Bytes that are free where the folder is."""
        return free_bytes(self.out)

    def run(
        self,
        encode: Encoder,
        *,
        batch_size: int,
        advance: Callable[[int], None] = lambda count: None,
    ) -> bool:
        """Encodes what is missing of this part; completes the folder where nothing else is.

        Args:
            encode: videos of a batch to latents and log-variances.
            batch_size: windows of one call.
            advance: told how many windows were encoded, all copies of them.

        Returns:
            Whether the folder is complete.

        Raises:
            ValueError: a record of the dataset is damaged, a shard cannot be written, or another
                process encodes this part. Finished shards stay.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_once(self.out / DESCRIPTION, self.layout.to_json())
        self._check_folder()  # another process may have been first, with another layout
        time = self.source.options.time
        with _alone(self.out, self._part):
            if self.missing:  # sizes of shards that are to be replaced
                (self.out / COMPLETE).unlink(missing_ok=True)
            for shard in self.missing:
                target = self.out / self.layout.shard_name(shard)
                remove_leftovers(target)
                with put_in_place(target) as partial, writing(partial, target) as write:
                    texts: dict[bytes, int] = {}
                    windows = encoded(
                        self._windows(shard), encode, batch_size=batch_size, time=time
                    )
                    for count, window in enumerate(windows, start=1):
                        write(self._record(window, texts))
                        if count % self.layout.copies == 0:
                            advance(1)
                    if texts:
                        write(b"".join(texts))
            return self._complete()

    def _record(self, window: Batch, texts: dict[bytes, int]) -> bytes:
        window = {**window, **own_dimensions(self.source, window)}
        if self.layout.own_text:
            text = np.asarray(window["text"], np.float32).tobytes()
            window[TEXT_ROW] = texts.setdefault(text, len(texts))
        return self.layout.pack(window)

    def _windows(self, shard: int) -> Iterator[Batch]:
        """Windows of a shard in physical units, each copy in turn."""
        layout = self.layout
        for row in layout.shard_range(shard):
            index = int(self._indices[row])
            if not layout.drawn:
                yield self._physical[index]
                continue
            for copy in range(layout.copies):
                rng = np.random.default_rng([layout.seed, index, copy])
                window = self._physical.draw(index, rng)
                yield {**window, COPY: np.array([layout.seed, index, copy], np.uint32)}

    def _complete(self) -> bool:
        if missing_shards(self.out, self.layout):
            return False
        names = [self.layout.shard_name(n) for n in range(self.layout.shards)]
        sizes = {name: (self.out / name).stat().st_size for name in names}
        write_atomically(self.out / COMPLETE, json.dumps({"shards": sizes}, indent=1))
        return True

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out}: a file; expected a folder")
        if not (self.out / DESCRIPTION).is_file():
            there = sorted(path.name for path in self.out.glob("[!.]*"))
            if there:
                raise ValueError(
                    f"--out {self.out}: holds {there[0]} and is no folder that `encode` began; "
                    "expected a new or empty one"
                )
            return
        found = read_layout(self.out, key="--out")
        changed = differences(_flat(found), _flat(self.layout))
        if changed:
            raise ValueError(
                f"--out {self.out} was begun otherwise: {'; '.join(changed)}. Expected a folder of "
                f"its own, or the command that began it: {found.command(self.out)}"
            )


def _flat(layout: LatentLayout) -> dict[str, object]:
    """What must be the same for one command to go on with what another began."""
    return {
        **layout.made_with,
        "arithmetic": layout.arithmetic,
        "--stride": layout.stride,
        "--copies": layout.copies,
        "drawn": layout.drawn,
        "seed": layout.seed,
        "--shard_windows": layout.shard_windows,
        "windows": layout.windows,
        "record": {field.name: (field.shape, field.dtype) for field in layout.fields},
    }


def missing_shards(
    folder: pathlib.Path, layout: LatentLayout, *, among: Iterable[int] | None = None
) -> list[int]:
    """Shards that are not there, or not as they were written.

    They are known by their sizes once `COMPLETE` keeps these, and by their records before.

    Args:
        folder: that holds them.
        layout: what they should hold.
        among: which are looked at; None = all.
    """
    try:
        sizes = read_sizes(folder, layout)
    except (FileNotFoundError, ValueError):
        sizes = None  # a damaged file is as good as none: it is made again

    def is_whole(shard: int) -> bool:
        path = folder / layout.shard_name(shard)
        if not path.is_file():
            return False
        if sizes is not None:
            return path.stat().st_size == sizes[path.name]
        try:
            return count_records(path) == layout.shard_records(shard)
        except ValueError:
            return False

    shards = range(layout.shards) if among is None else among
    return [shard for shard in shards if not is_whole(shard)]


@contextlib.contextmanager
def _alone(out: pathlib.Path, part: Part) -> Iterator[None]:
    """Holds a lock on a part of the folder, which ends with the process however that ends.

    Raises:
        ValueError: another process holds it.
    """
    path = out / f".part-{part.index}-of-{part.count}.lock"
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--out {out}: another process encodes this part (--process {part.index}/"
                f"{part.count}); expected one process a part, as in --process 0/2 and 1/2"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
