"""Every module of a network, ours and theirs, with the very same inputs.

Each function yields a module's name, our output and theirs, as it goes through the network.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from convert import reference
from roam_jax.cogvideox.load import load_text_encoder, load_transformer, load_vae
from roam_jax.cogvideox.text_encoder import Layer, encode_by_layers
from roam_jax.contracts import FRAMES_PER_LATENT, Params

# Module, our output and theirs.
Pairs = Iterator[tuple[str, np.ndarray, np.ndarray]]

_SEED = 0
# A row of a batch each, early and late: late ones show an inexact time embedding.
_TIMESTEPS = np.array([250, 999])
# Latent frames and patches of the transformer's input.
_LATENTS = (2, 6, 8)
# Environment frames and latent pixels of the VAE's input; the frames are two chunks.
_FRAMES, _PIXELS = 17, (4, 5)
# Tokens of the text encoder's input: enough for every bucket of distances.
_TOKENS = 226


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


def _text_encoder(src: pathlib.Path, dst: pathlib.Path) -> Pairs:
    """Token embedding, position bias, every layer and the last norm; the whole."""
    module, params = load_text_encoder(dst, dtype=jnp.float32)
    config = module.config
    shape = 1, _TOKENS
    ids = np.random.default_rng(_SEED).integers(0, config.vocab_size, shape, np.int32)
    calls, embeddings = reference.run_text_encoder(src, ids)
    first, last = "encoder.block.0", "encoder.final_layer_norm"
    # Every layer is given the bias that the first one made.
    bias = calls[first].outputs[1][0]

    def run(method, params, *inputs):
        return jax.jit(functools.partial(module.apply, method=method))({"params": params}, *inputs)

    outputs = run("embed", {n: params[n] for n in params.keys() - {"layers", "norm"}}, ids)
    yield "shared", outputs[0], calls["shared"].outputs[0]
    yield f"{first}.relative_attention_bias", outputs[1], bias
    layer = jax.jit(Layer(config, jnp.float32).apply)
    for name, call in calls.items():
        if match := re.fullmatch(r"encoder\.block\.(\d+)", name):
            own = jax.tree.map(lambda stack, i=int(match[1]): stack[i], params["layers"])
            yield name, layer({"params": own}, call.inputs[0], bias), call.outputs[0]
    yield (
        last,
        run("finish", {"norm": params["norm"]}, calls[last].inputs[0]),
        calls[last].outputs[0],
    )
    yield "embeddings", encode_by_layers(module, params, ids), embeddings


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


PAIRS: Mapping[str, Callable[[pathlib.Path, pathlib.Path], Pairs]] = {
    "transformer": _transformer,
    "vae": _vae,
    "text_encoder": _text_encoder,
}
