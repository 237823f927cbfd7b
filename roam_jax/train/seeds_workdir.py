"""The folder of runs that differ in their seed alone.

    WORKDIR/metrics.jsonl   the numbers of all, each line with its `seed`
    WORKDIR/seeds.json      {"groups": [[0, 1], [2, 3]]}: which were trained as one program
    WORKDIR/seeds/3/        a workdir as any other, which resumes and evaluates alone

A resumed group is the same group, so that its numbers are the same bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from roam_jax.files import write_atomically
from roam_jax.train.checkpoint import Checkpoints
from roam_jax.train.workdir import SEEDS_FOLDER, Workdir


@dataclasses.dataclass(frozen=True)
class SeedsWorkdir:
    """Paths of the folder.

    Args:
        path: the folder; `create` makes it.
    """

    path: pathlib.Path

    @property
    def metrics_file(self) -> pathlib.Path:
        """One JSON object a line, see `metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def incidents_file(self) -> pathlib.Path:
        """One JSON object a refused update, each with its seed, see `guard`."""
        return self.path / "incidents.jsonl"

    @property
    def groups_file(self) -> pathlib.Path:
        """{"groups": [[seed, ...], ...]}."""
        return self.path / "seeds.json"

    def run(self, seed: int) -> Workdir:
        """The folder of one seed."""
        return Workdir(self.path / SEEDS_FOLDER / str(seed))

    def require(
        self, configs: Mapping[int, ConfigDict], provenances: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Refuse a folder of other runs; a folder that does not exist is right.

        Args:
            configs: seed -> the config of its run.
            provenances: seed -> where its run comes from.

        Raises:
            ValueError: it is the workdir of one run, or as `Workdir.require` for a seed.
        """
        alone = Workdir(self.path)
        if alone.config_file.exists() or alone.checkpoints.exists():
            raise ValueError(
                f"{self.path} is the workdir of one run: expected a new folder, or one that "
                "--seeds has made"
            )
        for seed, config in configs.items():
            self.run(seed).require(config, provenances[seed])

    def create(
        self, configs: Mapping[int, ConfigDict], provenances: Mapping[int, Mapping[str, Any]]
    ) -> None:
        """Make the folders of these seeds, unless they are there."""
        for seed, config in configs.items():
            self.run(seed).create(config, provenances[seed])

    def groups(self) -> list[list[int]]:
        """Seeds that were trained as one program, in the order in which they began.

        Raises:
            ValueError: the file is not what `record` writes.
        """
        if not self.groups_file.exists():
            return []
        try:
            found = json.loads(self.groups_file.read_text(encoding="utf-8"))["groups"]
            return [[int(seed) for seed in group] for group in found]
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{self.groups_file}: expected {{"groups": [[seed, ...], ...]}}, got {error!r}'
            ) from error

    def record(self, group: Sequence[int]) -> None:
        """Note that these seeds are trained together, and no longer with others."""
        group = list(group)
        if group in (groups := self.groups()):
            return
        others = [[seed for seed in old if seed not in group] for old in groups]
        groups = [*filter(None, others), group]
        write_atomically(self.groups_file, json.dumps({"groups": groups}) + "\n")

    def plan(self, seeds: Sequence[int]) -> list[list[int]]:
        """These seeds as they were trained together; last, together, those that are new."""
        begun = [[seed for seed in group if seed in seeds] for group in self.groups()]
        known = {seed for group in begun for seed in group}
        return list(filter(None, [*begun, [seed for seed in seeds if seed not in known]]))

    def common_step(self, group: Sequence[int]) -> int:
        """The last step that all seeds of a group have saved; 0 = the start.

        A kill between the saves of two seeds leaves one checkpoint more in some of them, which is
        made again. Whatever has more was trained alone since.

        Raises:
            ValueError: a seed is further than that.
        """
        saved = {seed: {0, *self._steps(seed)} for seed in group}
        common = max(functools.reduce(set.intersection, saved.values()))
        ahead = [s for s in group if sum(step > common for step in saved[s]) > 1]
        if ahead:
            last = ", ".join(f"seed {seed}: {max(saved[seed])}" for seed in group)
            raise ValueError(
                f"{self.path}: seeds are at different steps ({last}), and the last one that all "
                f"have saved is {common}; expected --seeds without {', '.join(map(str, ahead))}, "
                "which went on alone"
            )
        return common

    def _steps(self, seed: int) -> list[int]:
        folder = self.run(seed).checkpoints
        if not folder.is_dir():
            return []
        found = []
        with Checkpoints(folder) as checkpoints:
            for step in checkpoints.steps:
                if fault := checkpoints.fault(step):
                    logging.warning("checkpoint %s is damaged: %s", folder / str(step), fault)
                else:
                    found.append(step)
        return found
