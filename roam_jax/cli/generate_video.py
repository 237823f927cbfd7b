"""`generate --model`: a video of a prompt by a converted CogVideoX, as diffusers makes it."""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time

import numpy as np
import tqdm
from absl import logging

from roam_jax.cli.generate import GUIDANCE, RATE
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.load import load_transformer, load_vae
from roam_jax.cogvideox.pipeline import TILE, Pipeline, to_pixels
from roam_jax.cogvideox.prompts import encode_prompts
from roam_jax.cogvideox.scheduler import read_scheduler
from roam_jax.cogvideox.vae_config import VAEConfig
from roam_jax.cogvideox.video_size import VideoSize
from roam_jax.data.embedded import EMBEDDING_DIM, language_embedding
from roam_jax.data.text import TextEmbeddings
from roam_jax.data.windows import resize_frames
from roam_jax.diffusion.samplers import Sampler
from roam_jax.tasks.backbone import weights_folder
from roam_jax.video_files import read_frames, write_video

LINE_EVERY_S = 30.0


def generate_video(options: argparse.Namespace) -> None:
    """Writes OUT.

    Raises:
        FileNotFoundError, ValueError: no converted folder, or a size, prompt, file or number that
            does not fit the model.
    """
    folder = weights_folder(options.model)
    # What is wrong shows before anything heavy begins.
    configs = load_transformer(folder)[0].config, load_vae(folder)[0].config
    size = _video_size(options, *configs)
    tile = _tile(options, configs[1])
    schedule, kind = read_scheduler(folder)
    sampler = Sampler(
        kind if options.sampler == "auto" else options.sampler, options.steps, schedule
    )
    first_frames = _first_frames(options, size, configs[1])
    # Text first: its encoder and the transformer are never in memory together.
    guidance, texts = _texts(options, folder, configs[0])

    pipeline = Pipeline.load(folder)
    guided = "no guidance" if guidance <= 1 else f"guidance {guidance:g}"
    guided += " at most, dynamic" if guidance > 1 and options.dynamic_guidance else ""
    print(f"sampling: {sampler.kind}, {sampler.steps} steps, {guided}, seed {options.seed or 0}")
    with StepProgress(sampler.steps) as progress:
        latents = pipeline.sample(
            texts[:1],
            empty_text=texts[1:] if guidance > 1 else None,
            size=size,
            sampler=sampler,
            guidance=guidance,
            dynamic_guidance=options.dynamic_guidance,
            seed=options.seed or 0,
            first_frames=first_frames,
            clean_timestep=options.clean_timestep,
            progress=progress,
        )
    logging.info("decoding %d frames of %dx%d", size.frames, size.height, size.width)
    began = time.monotonic()
    video = to_pixels(pipeline.decode(latents, tile=tile))[0]
    decoded = time.monotonic() - began
    rate = RATE if options.rate is None else options.rate
    write_video(options.out, video, rate=rate)
    print(f"video:    {options.out}: {_describe(size)}, {rate:g} frames a second")
    seconds = progress.seconds_per_step
    print(f"time:     {seconds:.3g} s a step after compilation, decoding {decoded:.3g} s")


def _describe(size: VideoSize) -> str:
    return f"{size.frames} frames of {size.height}x{size.width} pixels"


def _video_size(
    options: argparse.Namespace, transformer: TransformerConfig, vae: VAEConfig
) -> VideoSize:
    own = VideoSize.of_model(transformer, vae)
    size = VideoSize(
        own.frames if options.frames is None else options.frames,
        *(options.size or (own.height, own.width)),
    )
    size.latent_shape(transformer, vae)
    return size


def _tile(options: argparse.Namespace, vae: VAEConfig) -> tuple[int, int]:
    """Refuses tiles that the VAE does not blend, which would show after the last step."""
    tile = options.tile or TILE
    units = [n * vae.spatial_compression_ratio for n in (6, 5)]
    if any(pixels < unit or pixels % unit for pixels, unit in zip(tile, units, strict=True)):
        raise ValueError(
            f"--tile {tile[0]}x{tile[1]}: expected multiples of {units[0]}x{units[1]} pixels, so "
            "that tiles overlap by whole latent pixels"
        )
    return tile


def _first_frames(
    options: argparse.Namespace, size: VideoSize, vae: VAEConfig
) -> np.ndarray | None:
    """Resized, with a batch axis."""
    if options.first_frames is None:
        return None
    frames = read_frames(options.first_frames, count=options.first_count)
    size.check_first_frames((len(frames), size.height, size.width), vae)
    return resize_frames(frames, (size.height, size.width))[None]


def _texts(
    options: argparse.Namespace, folder: pathlib.Path, config: TransformerConfig
) -> tuple[float, np.ndarray]:
    """The guidance scale; embeddings of the prompt and, with guidance, of the negative prompt."""
    length, width = config.max_text_seq_length, config.text_embed_dim
    has_encoder = (folder / "text_encoder").is_dir()
    # Trained on the embedded data, whose instructions are one vector each, none of them empty.
    by_words = (
        options.embeddings is None
        and not has_encoder
        and (length, width)
        == (
            1,
            EMBEDDING_DIM,
        )
    )
    guidance = options.guidance
    if guidance is None:
        guidance = 1.0 if by_words else GUIDANCE
    prompts = [options.prompt, options.negative_prompt] if guidance > 1 else [options.prompt]
    if by_words:
        return guidance, np.stack([language_embedding(prompt)[None] for prompt in prompts])
    if options.embeddings is None:
        if not has_encoder:
            raise ValueError(
                f"{folder} has no text_encoder/: expected --embeddings FILE of `python -m convert "
                "text` with the prompts, or a folder that was imported with its text encoder"
            )
        logging.info("encoding %d prompts", len(prompts))
        return guidance, encode_prompts(folder, prompts, length=length)
    embeddings = TextEmbeddings(options.embeddings)
    if (embeddings.tokens, embeddings.width) != (length, width):
        raise ValueError(
            f"{options.embeddings}: embeddings of {embeddings.tokens} tokens x {embeddings.width}, "
            f"the model reads {length} x {width}"
        )
    embeddings.require(prompts)
    return guidance, np.stack([embeddings[prompt] for prompt in prompts])


class StepProgress:
    """Finished steps: a bar on a terminal, a line now and then in a log file.

    Called with the number of finished steps, first with 0 when compilation is done.

    Args:
        total: steps.
    """

    def __init__(self, total: int):
        self._total, self._times = total, []
        self._bar = tqdm.tqdm(total=total, unit="step", disable=not sys.stderr.isatty())
        self._last_line = time.monotonic()

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, done: int) -> None:
        """Counts finished steps."""
        now = time.monotonic()
        self._times.append(now)
        if done == 0:
            self._bar.reset()  # compilation counts for no step
        self._bar.update(done - self._bar.n)
        if self._bar.disable and done and now - self._last_line > LINE_EVERY_S:
            self._last_line = now
            left = self.seconds_per_step * (self._total - done)
            shown = tqdm.tqdm.format_interval(left)
            logging.info("step %d of %d, %s left", done, self._total, shown)

    @property
    def seconds_per_step(self) -> float:
        """Median of the finished steps."""
        pairs = zip(self._times, self._times[1:], strict=False)
        return statistics.median(end - begin for begin, end in pairs)
