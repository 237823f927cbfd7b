"""Demonstrations of the worlds' experts: made once, stored as RLDS TFRecords, read whole.

What is executed is the expert's action with noise, and what is stored is the clean one, so that a
cloned policy learns the way back (DART: Laskey et al., CoRL 2017). Episodes that did not end in
success, or whose simulation diverged, are dropped and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32, Int

from roam_jax.contracts import cache_dir
from roam_jax.data.demonstration_records import (
    GENERATOR_VERSION,
    MANIFEST,
    NAME,
    VERSION,
    StoredEpisode,
    demonstration_features,
    parse_demonstration,
    serialize_demonstration,
)
from roam_jax.data.records import index_shard, place, read_record
from roam_jax.data.rlds_writing import shard_name, write_folder_once, write_info, write_split
from roam_jax.morphology import WorldSpec
from roam_jax.sim.native import NativeWorlds
from roam_jax.sim.world_experts import make_expert
from roam_jax.sim.worlds import World, make_world

# Standard deviation of what is added to each action, by environment. Where the expert corrects it,
# more of it makes chunks hard to foretell (docs/demonstrations.md).
NOISE = {"reach": 0.1, "push": 0.1, "walk": 0.15}
SPLITS = ("train", "val")
NOISY_PART = 0.75  # of an episode; then the expert ends it undisturbed
BATCH = 256  # episodes at once
ROUNDS = 6  # of draws, each of as many episodes as are missing, before the generator gives up


@dataclasses.dataclass(frozen=True)
class DemonstrationSpec:
    """What a set of demonstrations holds; equal specs give equal bytes on one machine.

    Args:
        environment, body: of the world.
        episodes: of the train split; the val split has a tenth of them and at least 8.
        seed: of starts and noise.
        noise: standard deviation of what is added to each executed action.
        pixels: a side of the stored frames; 0 for none.

    Raises:
        ValueError: no episodes, or noise or pixels that are negative or not finite.
    """

    environment: str
    body: str
    episodes: int
    seed: int = 0
    noise: float = 0.0
    pixels: int = 0

    def __post_init__(self):
        for name, least in (("episodes", 1), ("noise", 0), ("pixels", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} of demonstrations is {getattr(self, name)}, expected at least {least}"
                )

    @property
    def splits(self) -> dict[str, int]:
        """Episodes of each split."""
        return dict(zip(SPLITS, (self.episodes, max(8, self.episodes // 10)), strict=True))

    def digest(self) -> str:
        """Eight hexadecimal digits that name the spec."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


def ensure_demonstrations(
    environment: str,
    body: str,
    *,
    episodes: int,
    seed: int = 0,
    noise: float | None = None,
    pixels: int = 0,
    directory: pathlib.Path | None = None,
) -> pathlib.Path:
    """Root of a world's demonstrations (".../1.0.0"), made on first use.

    Safe to call from several processes: each writes a folder of its own, the first to finish
    renames it into place, and the others drop theirs.

    Args:
        environment, body: of the world.
        episodes: successful ones of the train split; the val split has a tenth, at least 8.
        seed: of starts and noise.
        noise: standard deviation of what is added to each action; None: `NOISE[environment]`.
        pixels: a side of frames to store; 0 for none.
        directory: where demonstrations are kept; default `cache_dir() / "demonstrations"`.

    Raises:
        ValueError: no such world, no episodes, negative noise or pixels.
        RuntimeError: the expert succeeded too rarely.
    """
    world = make_world(environment, body)
    noise = NOISE[environment] if noise is None else noise
    spec = DemonstrationSpec(environment, body, episodes, seed, float(noise), pixels)
    directory = cache_dir() / "demonstrations" if directory is None else pathlib.Path(directory)
    folder = directory / f"{environment}-{body}-g{GENERATOR_VERSION}-{spec.digest()}"
    if not folder.exists():
        total = sum(spec.splits.values())
        logging.info("Making %d demonstrations of %s in %s", total, world.spec.name, folder)
        dropped = write_folder_once(folder, lambda empty: write_demonstrations(spec, empty))
        logging.info("Made %s; dropped %s", folder, dropped)
    return folder / VERSION


def write_demonstrations(spec: DemonstrationSpec, folder: pathlib.Path) -> dict[str, int]:
    """Writes `VERSION`/ with TFRecords, features, info and manifest into a folder.

    Returns:
        How many episodes were dropped because they "diverged" or were "unsuccessful".

    Raises:
        RuntimeError: the expert succeeded too rarely.
    """
    root = folder / VERSION
    root.mkdir(parents=True)
    world = make_world(spec.environment, spec.body)
    dropped = {"diverged": 0, "unsuccessful": 0}
    splits = [
        write_split(
            root,
            NAME,
            split,
            (
                serialize_demonstration(episode, spec=world.spec, number=number)
                for number, episode in enumerate(_episodes(spec, world, split, dropped))
            ),
        )
        for split in SPLITS
    ]
    write_info(
        root,
        demonstration_features(world.spec, pixels=spec.pixels),
        name=NAME,
        version=VERSION,
        module="roam_jax.data.demonstrations",
        description=f"Scripted demonstrations of {spec}; dropped: {dropped}.",
        generator=GENERATOR_VERSION,
        splits=splits,
    )
    manifest = {
        "generator": GENERATOR_VERSION,
        "world_spec": json.loads(world.spec.to_json()),
        "demonstrations": dataclasses.asdict(spec),
        "dropped": dropped,
    }
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    return dropped


def _episodes(
    spec: DemonstrationSpec, world: World, split: str, dropped: dict[str, int]
) -> Iterator[StoredEpisode]:
    """A split's successful episodes; what fails is counted, and others are drawn in its place."""
    missing = count = spec.splits[split]
    for attempt in range(ROUNDS):
        for first in range(0, missing, BATCH):
            # A stream of its own for every batch.
            seed = [spec.seed, SPLITS.index(split), attempt, first]
            size = min(BATCH, missing - first)
            for episode in record_episodes(world, spec, size, seed=seed):
                if episode.diverged:
                    dropped["diverged"] += 1
                elif not episode.success:
                    dropped["unsuccessful"] += 1
                else:
                    count -= 1
                    yield episode
        missing = count
        if not missing:
            return
    raise RuntimeError(
        f"demonstrations of {world.spec.name}: {count} episodes of split {split!r} are still "
        f"missing after {ROUNDS} rounds of draws ({spec}; dropped {dropped}); expected the expert "
        "to succeed: try less noise"
    )


def record_episodes(
    world: World, spec: DemonstrationSpec, count: int, *, seed: list[int]
) -> list[StoredEpisode]:
    """Plays the expert with noise in `count` episodes at once, successful or not."""
    rng = np.random.default_rng(seed)
    worlds = NativeWorlds(world, world.draw(rng, count))
    expert = make_expert(world)
    expert.reset(worlds, rng)
    seen: list[dict[str, np.ndarray]] = []
    actions, rewards = [], []
    for step in range(world.spec.steps):
        seen.append(worlds.observe(pixels=spec.pixels))
        clean = expert.act(worlds)
        noise = spec.noise if step < NOISY_PART * world.spec.steps else 0.0
        executed = np.clip(clean + noise * rng.normal(size=clean.shape), -1.0, 1.0)
        outcome = worlds.step(executed)
        actions.append(clean)
        rewards.append(outcome.reward)
    return [
        StoredEpisode(
            observations={name: np.stack([s[name][row] for s in seen]) for name in seen[0]},
            actions=np.stack([a[row] for a in actions]).astype(np.float32),
            rewards=np.array([r[row] for r in rewards], np.float32),
            success=bool(outcome.success[row]),
            diverged=bool(outcome.diverged[row]),
            seed=seed,
        )
        for row in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """One split of a world's demonstrations, the steps of all episodes end to end.

    Args:
        spec: of the world.
        observations: stream -> (N, cells, numbers) of float32 in SI units; with stored frames also
            `PIXELS` -> (N, S, S, 3) of uint8.
        actions: the expert's clean ones, in [-1, 1].
        rewards: of what was executed, which had noise.
        episode: number of each step's episode.
        step: its place in that episode.
        fingerprint: changes with the content.
        dropped: how many episodes of all splits "diverged" or were "unsuccessful".
    """

    spec: WorldSpec
    observations: dict[str, np.ndarray]
    actions: Float32[np.ndarray, "N J"]
    rewards: Float32[np.ndarray, " N"]
    episode: Int[np.ndarray, " N"]
    step: Int[np.ndarray, " N"]
    fingerprint: str
    dropped: dict[str, int]


def read_demonstrations(root: pathlib.Path, split: str) -> Demonstrations:
    """Reads one split that `ensure_demonstrations` made.

    Raises:
        FileNotFoundError: no demonstrations there.
        ValueError: they are of another generator version or of a world that is no longer so, there
            is no such split, or a file is damaged; names file and record.
    """
    root = pathlib.Path(root)
    manifest, spec = _checked_manifest(root)
    pixels = manifest["demonstrations"]["pixels"]
    path = root / shard_name(NAME, split)
    if not path.exists():
        known = [name for name in SPLITS if (root / shard_name(NAME, name)).exists()]
        raise ValueError(f"{root}: no split {split!r} of demonstrations, expected one of {known}")
    episodes, digest = [], hashlib.sha256(spec.to_json().encode())
    for record in index_shard(path):
        payload = read_record(record)
        try:
            episodes.append(parse_demonstration(payload, spec, pixels=pixels))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{place(record)}: {error}") from error
        digest.update(record.checksum.to_bytes(4, "little"))
    if not episodes:
        raise ValueError(f"{path}: no demonstrations, expected some")
    return Demonstrations(
        spec=spec,
        observations={
            name: np.concatenate([episode.observations[name] for episode in episodes])
            for name in episodes[0].observations
        },
        actions=np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        episode=np.repeat(np.arange(len(episodes)), spec.steps),
        step=np.tile(np.arange(spec.steps), len(episodes)),
        fingerprint=digest.hexdigest()[:16],
        dropped=manifest["dropped"],
    )


def _checked_manifest(root: pathlib.Path) -> tuple[dict[str, Any], WorldSpec]:
    """The manifest, and the spec of its world, which must be as it is today."""
    path = root / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not found; expected the folder that `ensure_demonstrations` returns"
        )
    try:
        manifest = json.loads(path.read_text())
        version = manifest["generator"]
        stored = WorldSpec.from_json(json.dumps(manifest["world_spec"]))
        made = manifest["demonstrations"]
        again = (
            f"ensure_demonstrations({made['environment']!r}, {made['body']!r}, "
            f"episodes={made['episodes']}, seed={made['seed']}, noise={made['noise']}, "
            f"pixels={made['pixels']})"
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged manifest of demonstrations ({error!r})") from error
    if version != GENERATOR_VERSION:
        raise ValueError(
            f"{root}: demonstrations of generator version {version}, expected "
            f"{GENERATOR_VERSION}; make them anew with {again}"
        )
    present = make_world(stored.environment, stored.morphology.name).spec
    if present != stored:
        differences = stored.differences(present) or ["ranges, lengths, scales or steps"]
        raise ValueError(
            f"{root}: the world {stored.name!r} of these demonstrations is not the present one: "
            f"{'; '.join(differences)}; make them anew with {again}"
        )
    return manifest, present
