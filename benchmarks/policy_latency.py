"""How long a policy takes to answer, beside sampling the whole video.

    python benchmarks/policy_latency.py [--repeats 15]
    python benchmarks/policy_latency.py --workdir RUN

Without a workdir these are the decoders tokens and tokens_diffused of `bridge_3loop:tiny`, with the
package's weights and loops as they are initialised. One world, all variants in turn in one process.
The whole video is what `eval.py --metrics video` samples: `eval.video_steps` steps, then the VAE's
decoder. Of the first policy an answer has to be ten times faster than that. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from against_torch import Timing, alternate, machine

from roam_jax.cli.arguments import load_config
from roam_jax.contracts import Params
from roam_jax.data.embedded import language_embedding
from roam_jax.diffusion.samplers import Sampler
from roam_jax.evaluate.observation import Observation, ObservationReader
from roam_jax.evaluate.policy import Policy
from roam_jax.evaluate.predictor import draw_noise
from roam_jax.evaluate.saved import read_saved
from roam_jax.tasks.build import build
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.graft_sampling import pure_noise, sample_jointly
from roam_jax.tasks.streams import NoisedActions
from roam_jax.train.sharding import make_mesh
from roam_jax.train.state import abstract_params, create_params, load_pretrained

ROOT = pathlib.Path(__file__).resolve().parent.parent
# How many times faster an action chunk has to be than the whole video.
REQUIRED = 10.0


@dataclasses.dataclass(frozen=True)
class Subject:
    """A policy with what it is made of."""

    policy: Policy
    model: GraftModel
    params: Params
    config: ml_collections.ConfigDict


def tiny_subject(decoder: str, *, action_steps: int = 1) -> Subject:
    """The tiny run before its first step."""
    config = load_config(str(ROOT / "configs/bridge_3loop.py:tiny"))
    config.decoder.kind = decoder
    experiment = build(config)
    mesh = make_mesh(1, 1, devices=jax.devices()[:1])
    like = abstract_params(experiment.task, mesh, rules=experiment.rules)
    pretrained = load_pretrained(experiment.task, like)
    params = create_params(experiment.task, like, pretrained=pretrained, seed=config.seed)
    model = experiment.model
    reader = ObservationReader(
        time=model.time,
        image_size=tuple(config.data.image_size),
        statistics=experiment.members[0].statistics,
        spaces=None,
        cameras=(),
        reads=("past_actions",),
        has_goal=False,
    )
    policy = Policy(
        model,
        params,
        reader=reader,
        embed=lambda text: language_embedding(text)[None],
        rounds=config.loop.rounds,
        extrapolate=None,
        action_steps=action_steps,
        step=0,
    )
    return Subject(policy, model, params, config)


def saved_subject(path: pathlib.Path) -> Subject:
    """The policy of a run."""
    policy = Policy.load(path)
    return Subject(policy, policy._model, policy._params, read_saved(path).config)


def observe(subject: Subject) -> tuple[Observation, np.ndarray]:
    """A random observation and instruction of the right sizes."""
    reader, time, rng = subject.policy._reader, subject.model.time, np.random.default_rng(0)
    sizes = subject.model.backbone.transformer_config
    actions, states = reader.statistics.actions, reader.statistics.proprio

    def clip(frames: int) -> np.ndarray:
        return rng.integers(0, 256, (frames, *reader.image_size, 3), dtype=np.uint8)

    observation = Observation(
        clip(time.observed_frames),
        np.tile(np.float32(actions.q01), (time.past_actions, 1)),
        proprio=np.tile(np.float32(states.q01), (time.t_current, 1)),
        reward=np.zeros(time.t_current, np.float32),
        camera_frames={name: clip(time.observed_frames) for name in reader.cameras},
        goal_frame=clip(1)[0],
    )
    text = rng.standard_normal((sizes.max_text_seq_length, sizes.text_embed_dim))
    return observation, text.astype(np.float32)


def variants(subject: Subject) -> dict[str, Callable[[], Any]]:
    """Name -> what is timed, compiled; each waits for its result."""
    policy, model, params = subject.policy, subject.model, subject.params
    settings, rounds = subject.config.eval, subject.policy.rounds
    observation, text = observe(subject)
    batch = policy._reader.read(observation.with_axis()) | {"text": text[None]}
    windows, seeds = policy._encode(params, batch), np.zeros(1, np.int32)
    pure = model.schedule.steps - 1
    _, noise, others = draw_noise(model, seeds, timesteps=(pure, pure + 1), stream=0)
    sampler = Sampler(settings.video_sampler, settings.video_steps, model.schedule)

    @jax.jit
    def everything(windows, noise, others):
        actions = {}
        if model.diffuses_actions:
            actions = {"actions": NoisedActions(others["action_noise"], np.full(1, pure))}
        noised = pure_noise(model, windows, noise, camera_noise=others.get("camera_noise"))
        return model.denoise(
            params, windows, noised, timesteps=np.full(1, pure), rounds=rounds, **actions
        )[0]

    @jax.jit
    def video(params, batch, noise, others):
        found = sample_jointly(
            model,
            params,
            batch,
            sampler=sampler,
            noise=noise,
            step_noise_key=jax.random.key(0),
            rounds=rounds,
            **others,
        )
        return model.backbone.decode(params["vae"], found["latents"]), found["actions"]

    taken = "one step" if policy.action_steps == 1 else f"{policy.action_steps} steps"
    found = {
        "encode what was observed": functools.partial(policy._encode, params, batch),
        f"actions in {taken}, sliced": functools.partial(policy._act, params, windows, seeds),
        "one step, everything": functools.partial(everything, windows, noise, others),
        "policy call": functools.partial(policy, observation, instruction=text),
        f"video, {sampler.steps} steps, decoded": functools.partial(
            video, params, batch, noise, others
        ),
    }
    waiting = {n: functools.partial(_wait, run) for n, run in found.items()}
    for run in waiting.values():
        run()
    return waiting


def _wait(run: Callable[[], Any]) -> None:
    jax.block_until_ready(run())


def measure(name: str, subject: Subject, *, repeats: int) -> dict[str, Any]:
    """Prints the table of one policy and returns its medians, and by how much it is faster."""
    runs = variants(subject)
    timings, _ = alternate(list(runs.values()), repeats=repeats)
    by_name: dict[str, Timing] = dict(zip(runs, timings, strict=True))
    *_, call, video = by_name.values()
    ratio = float(np.median(np.divide(video.seconds, call.seconds)))
    print(f"{name}, {subject.policy.rounds} rounds")
    for part, taken in by_name.items():
        low, high = (1e3 * end(taken.seconds) for end in (min, max))
        print(f"  {part:<28}{1e3 * taken.median:>9.1f} ms [{low:.1f}, {high:.1f}]")
    print(f"  video / policy call {ratio:.1f} (asked: {REQUIRED:g})")
    return {"milliseconds": {n: 1e3 * t.median for n, t in by_name.items()}, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="a run (default: tiny, untrained)")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(machine())
    if args.workdir:
        subjects = {str(args.workdir): functools.partial(saved_subject, args.workdir)}
    else:
        subjects = {
            f"tiny, {decoder}": functools.partial(tiny_subject, decoder, action_steps=steps)
            for decoder, steps in (("tokens", 1), ("tokens_diffused", 10))
        }
    found = {n: measure(n, make(), repeats=args.repeats) for n, make in subjects.items()}
    print(json.dumps(found))
    # Diffused actions take several steps, each as long as one of the video's.
    sys.exit(0 if next(iter(found.values()))["ratio"] >= REQUIRED else 1)


if __name__ == "__main__":
    main()
