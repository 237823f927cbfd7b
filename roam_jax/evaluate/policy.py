"""A trained run as a policy: from what a robot sees to the actions that it should do next.

The future is pure noise at t = 999 when a policy acts, so one pass through the model gives a chunk
of actions, and no video has to be sampled. Only what actions read is computed, and only observed
frames are encoded. Actions equal those that an evaluation measures on the same window.
"""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from roam_jax.contracts import Batch, Params, TimeSpec, VectorSpec
from roam_jax.evaluate.observation import Observation, ObservationReader, per_world
from roam_jax.evaluate.policy_inputs import (
    check_action_steps,
    make_embedder,
    make_reader,
    pick_robot,
    require_actions,
    world_seeds,
)
from roam_jax.evaluate.predictor import draw_noise
from roam_jax.evaluate.saved import read_saved
from roam_jax.evaluate.windows import PURE_NOISE
from roam_jax.model import loop_options
from roam_jax.model.looped import check_rounds
from roam_jax.tasks.build import Experiment
from roam_jax.tasks.graft import GraftModel
from roam_jax.tasks.graft_sampling import denoise_actions, encode_observed, pure_noise
from roam_jax.train.sharding import make_mesh

# Instructions whose embeddings are kept.
INSTRUCTIONS_KEPT = 16
Instruction = str | np.ndarray


class Policy:
    """Predicts actions; compiled on the first call, and once more for another number of worlds.

    Made by `Policy.load` or `Policy.of`.

    Args:
        model: the model.
        params: the whole tree.
        reader: makes batches of observations.
        embed: instruction -> text embedding.
        rounds: number of rounds.
        extrapolate: "last" allows more rounds than were trained.
        action_steps: denoising steps of diffused actions.
        step: training step that the parameters are of.
        threshold: with learned halting, the stopped mass from which a cell stops for good; None =
            never.
    """

    def __init__(
        self,
        model: GraftModel,
        params: Params,
        *,
        reader: ObservationReader,
        embed: Callable[[str], Float32[np.ndarray, "S D"]],
        rounds: int,
        extrapolate: str | None,
        action_steps: int,
        step: int,
        threshold: float | None = None,
    ):
        self._model, self._params, self._reader = model, params, reader
        self._embed = functools.lru_cache(maxsize=INSTRUCTIONS_KEPT)(embed)
        self.rounds, self.action_steps, self.step = rounds, action_steps, step
        self.exit_threshold = threshold
        self._extrapolate = extrapolate
        self._encode = jax.jit(self._encode_observed)
        self._act = jax.jit(self._predict_actions)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        *,
        step: int | None = None,
        rounds: int | None = None,
        action_steps: int | None = None,
        robot: str | None = None,
        extrapolate: str | None = None,
        exit_threshold: float | None = None,
        overrides: Callable[[ml_collections.ConfigDict], None] | None = None,
    ) -> Policy:
        """Loads a policy from a run; its data does not have to be there.

        Args:
            path: a workdir or a model directory.
            step: which checkpoint; None = the latest.
            rounds: number of rounds; None = the trained one.
            action_steps: denoising steps of the decoder `tokens_diffused`; None =
                `eval.action_steps` of the run. Other decoders take one.
            robot: whose actions are predicted, where a run has a mixture: a name of its members.
            extrapolate: "last" allows more rounds than were trained.
            exit_threshold: with learned halting, the stopped mass, above 0 and at most 1, from
                which a cell stops for good; 0 = all rounds run; None = `eval.exit_threshold` of
                the run.
            overrides: changes the run's config in place, such as `backbone.path`; see `read_saved`.

        Raises:
            FileNotFoundError: no such folder or checkpoint, or weights or text embeddings are not
                where the config says.
            ValueError: the run has no policy, its weights are others than it was trained with, or
                an argument that does not fit it.
        """
        saved = read_saved(path, overrides=overrides)
        config, where = saved.config, saved.path
        require_actions(config, where=where)
        plan = saved.model()
        model = plan.model
        rounds = config.loop.rounds if rounds is None else rounds
        check_rounds(rounds, trained=config.loop.rounds, extrapolate=extrapolate)
        if exit_threshold is None:
            exit_threshold = config.eval.exit_threshold
        threshold = loop_options.exit_threshold(exit_threshold, halting=config.loop.halting)
        if action_steps is None:
            action_steps = config.eval.action_steps if model.diffuses_actions else 1
        check_action_steps(model, action_steps)
        name = pick_robot(saved.statistics, robot)
        params, step = saved.params(
            plan.task, rules=plan.rules, mesh=make_mesh(1, 1, devices=jax.devices()[:1]), step=step
        )
        return cls(
            model,
            params,
            reader=make_reader(config, saved.statistics, model, name),
            embed=make_embedder(config.data, name, saved.check),
            rounds=rounds,
            extrapolate=extrapolate,
            threshold=threshold,
            action_steps=action_steps,
            step=step,
        )

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        params: Params,
        *,
        rounds: int,
        extrapolate: str | None = None,
        threshold: float | None = None,
    ) -> Policy:
        """The policy of an experiment that is open.

        Args:
            experiment: of a graft that learned actions, with one dataset.
            params: the whole tree.
            rounds, extrapolate, threshold: as for `Policy`.

        Raises:
            ValueError: it learned no actions, or has several robots.
        """
        config, model = experiment.config, experiment.model
        require_actions(config, where="the run")
        statistics = {member.name: member.statistics for member in experiment.members}
        name = pick_robot(statistics, None)
        return cls(
            model,
            params,
            reader=make_reader(config, statistics, model, name),
            embed=make_embedder(config.data, name, lambda found: None),
            rounds=rounds,
            extrapolate=extrapolate,
            threshold=threshold,
            action_steps=config.eval.action_steps if model.diffuses_actions else 1,
            step=0,
        )

    def with_params(self, params: Params) -> Policy:
        """The same policy with other parameters; nothing is compiled anew."""
        other = copy.copy(self)
        other._params = params
        return other

    @property
    def time(self) -> TimeSpec:
        """How observed frames and predicted actions lie in time."""
        return self._model.time

    @property
    def actions(self) -> VectorSpec:
        """Names, units and kinds of the predicted actions' dimensions."""
        return self._reader.statistics.actions.spec

    @property
    def rate(self) -> float:
        """Frames, and so actions, a second."""
        return self._reader.statistics.rate

    def __call__(
        self,
        observation: Observation,
        *,
        instruction: Instruction | Sequence[Instruction],
        seed: int | Sequence[int] = 0,
    ) -> Float32[np.ndarray, "P A"] | Float32[np.ndarray, "B P A"]:
        """Actions in their units, the first of them the one to do now.

        Args:
            observation: of one world, or of B with a leading axis.
            instruction: a text whose embedding is known (docs/policy.md says when), or the
                embedding, (S, D) or (D,) where S = 1; one for all worlds, or a list of one each.
            seed: of the noise that stands for the future, and that diffused actions start from. One
                number gives world i seed + i. The noise of seed i is that of window i in an
                evaluation.

        Returns:
            (P, A) actions of one world, (B, P, A) of B; `pooled` predicts one action, P = 1. A
            gripper above 0.5 is to be open.

        Raises:
            ValueError: the observation does not fit the model, an instruction is not known, or a
                seed is no integer of 32 bits.
        """
        rows = observation if observation.batched else observation.with_axis()
        batch = self._reader.read(rows)
        size = len(batch["frames"])
        batch["text"] = self._texts(instruction, size)
        seeds = world_seeds(seed, size)
        actions = np.asarray(self._act(self._params, self._encode(self._params, batch), seeds))
        chunk = actions[..., self._reader.action_places()]
        chunk = self._reader.statistics.actions.unnormalise(chunk)
        return chunk if observation.batched else chunk[0]

    def _texts(
        self, instruction: Instruction | Sequence[Instruction], size: int
    ) -> Float32[np.ndarray, "B S D"]:
        """The embedding of each world's instruction."""
        sizes = self._model.backbone.transformer_config
        shape = sizes.max_text_seq_length, sizes.text_embed_dim
        if instruction is None:
            raise ValueError(
                f"instruction: none; expected a text, an embedding of shape {shape}, or a list of "
                "one for each world"
            )
        if isinstance(instruction, str | np.ndarray):
            instruction = [instruction] * size
        found = []
        for one in per_world(instruction, size, name="instructions"):
            text = self._embed(one) if isinstance(one, str) else np.asarray(one, np.float32)
            if shape[0] == 1 and text.ndim == 1:
                text = text[None]
            if text.shape != shape:
                raise ValueError(
                    f"instruction: an embedding of shape {text.shape}, expected {shape} as the "
                    "run was trained with, or a text"
                )
            if not np.isfinite(text).all():
                raise ValueError(
                    "instruction: an embedding with NaN or infinite numbers, expected finite ones"
                )
            found.append(text)
        return np.stack(found)

    def _encode_observed(self, params: Params, batch: Batch) -> Batch:
        return encode_observed(self._model, params, batch)

    def _predict_actions(
        self, params: Params, windows: Batch, seeds: Int[Array, " B"]
    ) -> Float[Array, "B P A"]:
        model, pure = self._model, self._model.schedule.steps - 1
        _, noise, others = draw_noise(model, seeds, timesteps=(pure, pure + 1), stream=PURE_NOISE)
        noised = pure_noise(model, windows, noise, camera_noise=others.get("camera_noise"))
        options = {
            "timesteps": jnp.full(seeds.shape, pure),
            "rounds": self.rounds,
            "extrapolate": self._extrapolate,
            "threshold": self.exit_threshold,
            "wanted": ("actions",),
        }
        if model.diffuses_actions:
            action_noise, steps = others["action_noise"], self.action_steps
            outputs, _ = denoise_actions(
                model, params, windows, noised, action_noise=action_noise, steps=steps, **options
            )
        else:
            outputs, _ = model.denoise(params, windows, noised, **options)
        return outputs["actions"]
