"""A conversion against diffusers: stored tensors, then every module, then the whole networks.

Each of our modules is given the very input that diffusers' module had, so that an error in the
table is that module's alone; the whole networks show how errors add up. Both sides compute in
float32 on the CPU from the same stored values.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from convert import reference
from roam_jax.cogvideox.components import COMPONENTS
from roam_jax.cogvideox.importing import find_networks, import_diffusers, open_network
from roam_jax.cogvideox.load import load_transformer, load_vae
from roam_jax.contracts import FRAMES_PER_LATENT, Params

# Relative L2 error that a module and its network may have: four times the largest that random
# weights of the published sizes give, far below what a wrong tensor or formula does.
BOUNDS = {"transformer": 1e-5, "vae": 3e-5}
_SEED = 0
# A row of a batch each, early and late: late ones show an inexact time embedding.
_TIMESTEPS = np.array([250, 999])
# Latent frames and patches of the transformer's input.
_LATENTS = (2, 6, 8)
# Environment frames and latent pixels of the VAE's input; the frames are two chunks.
_FRAMES, _PIXELS = 17, (4, 5)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        group: rows of a group share a line of the table.
        module: what was compared, under diffusers' name.
        shape: of the output, as text.
        relative: relative L2 error.
        largest: largest absolute error.
        bound: what `relative` may be.
    """

    group: str
    module: str
    shape: str
    relative: float
    largest: float
    bound: float

    @property
    def ok(self) -> bool:
        """Within the bound; never with a NaN."""
        return self.relative <= self.bound


def verify(
    src: pathlib.Path, dst: pathlib.Path | None = None, *, bound: float | None = None
) -> list[Row]:
    """Compares every network of a diffusers directory with its conversion.

    Args:
        src: the diffusers directory.
        dst: its conversion; None = it is converted in a temporary folder.
        bound: for every module; None = `BOUNDS`. Stored tensors must be equal in any case.

    Raises:
        FileNotFoundError, ValueError: `src` is of another model or damaged, or `dst` is no
            conversion, or one of another model.
    """
    networks = find_networks(src)
    with tempfile.TemporaryDirectory() as temporary:
        if dst is None:
            dst = pathlib.Path(temporary) / "converted"
            import_diffusers(src, dst)
        rows = []
        for name in networks:
            # Only the CPU computes in float32 without being asked twice.
            with jax.default_device(jax.devices("cpu")[0]):
                rows += _stored(src, dst, name)
                limit = BOUNDS[name] if bound is None else bound
                rows += [_row(name, *pair, bound=limit) for pair in _PAIRS[name](src / name, dst)]
        return rows


def table(rows: Iterable[Row]) -> str:
    """The rows as text: of each group the worst, and all that are beyond their bounds."""
    lines = [("module", "shape", "relative L2", "max abs", "bound", "ok")]
    for name, group in itertools.groupby(rows, key=lambda row: row.group):
        group = list(group)
        # NaN is worse than any number.
        worst = max(group, key=lambda row: (np.isnan(row.relative), row.relative))
        for row in [row for row in group if row is worst or not row.ok]:
            label = row.module
            if row is worst and len(group) > 1:
                label = f"{label} (worst of {len(group)})" if row.largest else f"{name} (equal)"
            errors = [f"{x:.1e}" if x else "0" for x in (row.relative, row.largest, row.bound)]
            lines.append((label, row.shape, *errors, "yes" if row.ok else "NO"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(form.format(*line) for line in lines)


def _row(network: str, module: str, ours: np.ndarray, theirs: np.ndarray, *, bound: float) -> Row:
    name = f"{network}.{module}"
    # Blocks share a line, and so do the layers of one resolution.
    group = re.sub(r"(\.(resnets|downsamplers|upsamplers))?\.\d+$", "", name)
    return Row(group, name, "x".join(map(str, theirs.shape)), *_errors(ours, theirs), bound)


def _errors(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Relative L2 and largest absolute error."""
    theirs = np.asarray(theirs, np.float64)
    difference = np.asarray(ours, np.float64) - theirs
    scale = max(np.linalg.norm(theirs), np.finfo(np.float64).tiny)
    return float(np.linalg.norm(difference) / scale), float(np.abs(difference).max())


def _stored(src: pathlib.Path, dst: pathlib.Path, name: str) -> Iterator[Row]:
    """A row for each tensor of the checkpoint.

    Raises:
        ValueError: the two have different configs.
    """
    component = COMPONENTS[name]
    config, _ = open_network(src / name, component)
    module, params = (load_transformer if name == "transformer" else load_vae)(dst)
    theirs, found = dataclasses.asdict(config), dataclasses.asdict(module.config)
    if differing := [key for key in theirs if found[key] != theirs[key]]:
        values = ", ".join(f"{key} = {found[key]!r}, not {theirs[key]!r}" for key in differing)
        raise ValueError(f"{dst / name}: no conversion of {src / name}: {values}")
    flat = traverse_util.flatten_dict(params, sep="/")
    ours = {
        key: tensor
        for place in component.names(config)
        for key, tensor in place.to_theirs(flat[place.target]).items()
    }
    for key, theirs in reference.stored_tensors(src / name):
        equal = np.array_equal(ours[key], theirs)
        errors = (0.0, 0.0) if equal else _errors(ours[key], theirs)
        shape = "x".join(map(str, theirs.shape))
        yield Row(f"{name}: {len(ours)} stored tensors", f"{name}.{key}", shape, *errors, 0.0)


def _transformer(src: pathlib.Path, dst: pathlib.Path) -> Pairs:
    """Patch and time embedding, every block, norms and projection, the whole."""
    module, params = load_transformer(dst, dtype=jnp.float32)
    config, batch = module.config, len(_TIMESTEPS)
    frames, rows, columns = _LATENTS
    size = (frames, config.in_channels, rows * config.patch_size, columns * config.patch_size)
    text_size = (config.max_text_seq_length, config.text_embed_dim)
    latents, text = _normal((batch, *size), (batch, *text_size))
    calls, velocity = reference.run_transformer(src, latents, text, _TIMESTEPS)

    def all_but_blocks(module, latents, text, timesteps, video, temb):
        module.patch_embed(latents, text)
        module.time_embedding(timesteps)
        module.readout(video, temb, latents.shape)

    feeds = {name: calls[name].inputs[0] for name in ("norm_final", "norm_out", "proj_out")}
    feeds |= {"patch_embed": latents, "time_embedding": _TIMESTEPS}
    others = {name: params[name] for name in feeds}
    norm_inputs = calls["norm_out"].inputs
    outputs = _fed(module, all_but_blocks, others, feeds, latents, text, _TIMESTEPS, *norm_inputs)

    @jax.jit
    def block(params, video, text, temb):
        run = functools.partial(module.apply, {"params": {"blocks": params}})
        return run(text, video, temb, method=lambda m, *streams: m.blocks(*streams))[::-1]

    for name, call in calls.items():
        if match := re.fullmatch(r"transformer_blocks\.(\d+)", name):
            layer = jax.tree.map(lambda stack, i=int(match[1]): stack[i], params["blocks"])
            outputs[name] = block(layer, *call.inputs)
        yield name, _joined(outputs[name]), _joined(call.outputs)
    yield "velocity", jax.jit(module.apply)({"params": params}, latents, text, _TIMESTEPS), velocity


def _vae(src: pathlib.Path, dst: pathlib.Path) -> Pairs:
    """Every layer of encoder and decoder for their first chunk; both as a whole over two."""
    module, params = load_vae(dst, dtype=jnp.float32)
    config, (height, width) = module.config, _PIXELS
    scale = config.spatial_compression_ratio
    video, latents = _normal(
        (1, config.in_channels, _FRAMES, height * scale, width * scale),
        (1, config.latent_channels, (_FRAMES - 1) // FRAMES_PER_LATENT + 1, height, width),
    )
    calls, moments, decoded = reference.run_vae(src, video, latents)

    def first_chunks(module, frames, latents):
        module.encoder({}, frames)
        module.decoder({}, latents)

    feeds = {_path(name): _channels_last(call.inputs[0]) for name, call in calls.items()}
    chunks = feeds["encoder/conv_in"], feeds["decoder/conv_in"]
    outputs = _fed(module, first_chunks, params, feeds, *chunks)
    for name, call in calls.items():
        ours = outputs[_path(name)]
        # Convolutions and blocks give their cache for the next chunk as well.
        ours = ours[0] if isinstance(ours, tuple) else ours
        yield name, np.moveaxis(ours, -1, 1), call.outputs[0]
    encode, decode = (
        jax.jit(functools.partial(module.apply, method=name)) for name in ("encode", "decode")
    )
    yield "encode", _joined(encode({"params": params}, video)), moments
    yield "decode", decode({"params": params}, latents), decoded


# Module, our output and diffusers' output.
Pairs = Iterator[tuple[str, np.ndarray, np.ndarray]]
_PAIRS: Mapping[str, Callable[[pathlib.Path, pathlib.Path], Pairs]] = {
    "transformer": _transformer,
    "vae": _vae,
}


def _fed(module: nn.Module, method: Callable, params: Params, feeds: Mapping, *args) -> dict:
    """Runs `method(module, *args)`, its submodules with inputs of their own.

    Args:
        module: with parameters `params`.
        method: what is run; its result is not used.
        params: of the submodules that it calls.
        feeds: path of a submodule -> what its first argument becomes.
        *args: of the method.

    Returns:
        Path -> output of each submodule in `feeds`.
    """

    @jax.jit
    def run(params, feeds, *args):
        outputs = {}

        def feed(call, args, kwargs, context):
            path = "/".join(context.module.path)
            if path not in feeds or context.method_name != "__call__":
                return call(*args, **kwargs)
            outputs[path] = call(feeds[path], *args[1:], **kwargs)
            return outputs[path]

        with nn.intercept_methods(feed):
            module.apply({"params": params}, *args, method=method)
        return outputs

    return run(params, dict(feeds), *args)


def _path(name: str) -> str:
    """Our path of one of the VAE's modules in diffusers."""
    name = re.sub(r"(?:down|up)_blocks\.(\d+)\.(\w+samplers)\.0", r"\2.\1", name)
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


def _channels_last(frames: np.ndarray) -> np.ndarray:
    return np.moveaxis(frames, 1, -1)


def _joined(streams: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    """Streams of tokens, or moments, as one array."""
    return np.concatenate(streams, axis=1) if isinstance(streams, tuple) else streams


def _normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(_SEED)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]
