"""The main task: video and actions from a looped, grafted CogVideoX.

Video is trained as CogVideoX is: v-prediction on noised latents, plain MSE. Frames before
`t_current` enter clean and carry no loss. Actions are regressed; a stated share of the rows is
drawn at t = 999, where the future is pure noise, because that is how the policy is deployed.
Cells that may stop early pay for the rounds that they run; the deepest round may teach earlier ones
(`tasks/distillation.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from roam_jax.cogvideox.graft import ALL
from roam_jax.contracts import Batch, Params
from roam_jax.microbatch import draw_rows, part_of
from roam_jax.model.loop_options import check_ponder
from roam_jax.tasks.augment import Augmentation
from roam_jax.tasks.distillation import blend, mix, student_exit
from roam_jax.tasks.graft_denoiser import GraftDenoiser
from roam_jax.tasks.rows import share_of_rows
from roam_jax.tasks.streams import LOSSES, TARGETS, noise_actions, stream_error

# Output of the module -> what it is compared with.
COMPARED = {**TARGETS, "velocity": "target", "camera_velocity": "camera_target"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraftModel(GraftDenoiser):
    """The grafted model with everything that its loss and its evaluation share.

    Args:
        module, ...: of the model, as for `GraftDenoiser`.
        deploy_fraction: share of training rows at t = 999.
        weights: loss weights of "diffusion", "action" and what else is predicted.
        augmentation: of the frames, in training alone.
        ponder: weight of the mean number of rounds that cells run, with learned halting.
        steps: of the training, over which a student turns from the data to its teacher.

    Raises:
        ValueError: no such `clean_timestep`, or a fraction or weight out of range.
    """

    deploy_fraction: float
    weights: Mapping[str, float]
    augmentation: Augmentation = Augmentation()
    ponder: float = 0.0
    steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.deploy_fraction <= 1:
            raise ValueError(f"loss.deploy_fraction = {self.deploy_fraction}: expected 0 to 1")
        check_ponder(self.ponder)

    def diffusion_error(self, outputs: dict[str, Array]) -> Float[Array, " B"]:
        """Mean squared error of the velocity over predicted frames, by row."""
        future = slice(self.time.t_current, None)
        error = jnp.square(outputs["velocity"][:, future] - outputs["target"][:, future])
        return error.mean(axis=(1, 2, 3, 4))

    def camera_error(self, outputs: dict[str, Array]) -> Float[Array, " B"]:
        """The same over the predicted frames of all further cameras."""
        error = jnp.square(outputs["camera_velocity"] - outputs["camera_target"])
        return error.mean(axis=(1, 2, 3, 4, 5))

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """Outputs whose errors weigh something; None where all do."""
        outputs = self.module.graft_config.outputs(self.module.layout)
        found = tuple(name for name in outputs if self.weights[LOSSES[name]])
        return None if len(found) == len(outputs) else found

    def errors(self, outputs: dict[str, Array], truth: dict) -> dict[str, Float[Array, ""]]:
        """Mean error of each output, by the names of `weights`.

        Args:
            outputs: of the module.
            truth: what they are compared with: velocities of the videos, and the batch's targets.
        """
        errors, compared = {}, {**outputs, **truth}
        if "velocity" in outputs:
            errors["diffusion"] = self.diffusion_error(compared).mean()
        if "camera_velocity" in outputs:
            errors["camera"] = self.camera_error(compared).mean()
        for stream in TARGETS:
            if stream in outputs:
                errors[LOSSES[stream]] = stream_error(outputs[stream], truth, stream).mean()
        return errors

    def loss(self, params: Params, batch: Batch, rng: jax.Array, rounds: int):
        """Weighted sum of the errors that weigh something, and each apart; see `contracts.Task`.

        With self-distillation "distillation/NAME" is what the student adds to each, with learned
        halting "loss/ponder" what the rounds cost that cells run, and "rounds_used" their mean
        number.
        """
        size = batch["text"].shape[0]
        keys = jax.random.split(rng, 7)
        time_rng, noise_rng, deploy_rng, action_rng, camera_rng, augment_rng, exit_rng = keys
        batch = self.augmentation(batch, augment_rng)
        drawn = functools.partial(draw_rows, part_of(batch), size)
        timesteps = drawn(lambda n: jax.random.randint(time_rng, (n,), 0, self.schedule.steps))
        deployed = drawn(lambda n: share_of_rows(deploy_rng, n, self.deploy_fraction))
        timesteps = jnp.where(deployed, self.schedule.steps - 1, timesteps)
        shape = (self.time.latents, *self.backbone.latent_shape)
        noise = drawn(lambda n: jax.random.normal(noise_rng, (n, *shape)))
        camera_noise = None
        if self.predicts_cameras:
            shape = self.camera_noise_shape
            camera_noise = drawn(lambda n: jax.random.normal(camera_rng, (n, *shape)))
        latents = self.backbone.latents(params["vae"], batch, self.time, fields=self.latent_fields)
        noised, targets = self.noise_videos(latents, timesteps, noise, camera_noise=camera_noise)
        actions, truth = None, {**batch, **targets}
        if self.diffuses_actions:
            actions, truth[TARGETS["actions"]] = noise_actions(self.schedule, batch, action_rng)
        run = functools.partial(
            self.denoise,
            params,
            {**batch, **latents},
            noised,
            timesteps=timesteps,
            rounds=rounds,
            actions=actions,
            wanted=self.wanted,
        )
        outputs, measures = run()
        errors, options = self.errors(outputs, truth), self.module.graft_config
        total, metrics = self._weighted(errors), {f"loss/{n}": error for n, error in errors.items()}
        if options.self_distillation and rounds > 1:
            student, _ = run(exit=student_exit(exit_rng, rounds))
            added = self._student_errors(student, outputs, truth)
            total += self._weighted(added)
            metrics |= {f"distillation/{name}": error for name, error in added.items()}
        if options.halts:
            used = measures["running"][ALL].sum(axis=1).mean()
            metrics |= {"loss/ponder": self.ponder * used, "rounds_used": used}
            total += metrics["loss/ponder"]
        return total, metrics

    def _weighted(self, errors: Mapping[str, Array]) -> Float[Array, ""]:
        return sum(self.weights[name] * error for name, error in errors.items())

    def _student_errors(
        self, student: dict[str, Array], teacher: dict[str, Array], truth: dict
    ) -> dict[str, Float[Array, ""]]:
        """What an earlier exit learns from the data and from the deepest round, by part."""
        taught = {COMPARED[name]: jax.lax.stop_gradient(x) for name, x in teacher.items()}
        return blend(
            self.errors(student, truth),
            self.errors(student, {**truth, **taught}),
            share=mix(truth.get("step"), self.steps),
        )
