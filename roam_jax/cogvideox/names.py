"""Names and layouts of CogVideoX tensors: diffusers' checkpoint on one side, our tree on the other.

One `TensorName` states all that differs between the two for one parameter, so that import, export
and the check of every key are the same few functions for every model. NumPy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from roam_jax.spelling import nearest

if TYPE_CHECKING:
    from roam_jax.cogvideox.config import TransformerConfig

# Axes of torch's tensor in the order in which Flax keeps them.
_AXES = {
    "same": None,
    "linear": (1, 0),  # OI -> IO
    "conv2d": (2, 3, 1, 0),  # OIHW -> HWIO
    "conv3d": (2, 3, 4, 1, 0),  # OIDHW -> DHWIO
}
LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class TensorName:
    """One parameter of our tree and the checkpoint tensors that it is made of.

    Args:
        source: diffusers key; holds "{layer}" exactly where `stacked` is not 0.
        target: "/"-joined path in our parameter tree.
        shape: shape of one source tensor, as torch has it.
        layout: how torch's axes become Flax's.
        stacked: number of layers stacked on axis 0 of the target; 0 = a single tensor.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    layout: Literal["same", "linear", "conv2d", "conv3d"] = "same"
    stacked: int = 0

    def __post_init__(self):
        axes = _AXES[self.layout]
        if axes is not None and len(axes) != len(self.shape):
            raise ValueError(f"{self.source}: layout {self.layout!r} of a tensor {self.shape}")
        if (LAYER in self.source) != bool(self.stacked):
            raise ValueError(f"{self.source}: {LAYER} and stacked = {self.stacked} disagree")

    @property
    def keys(self) -> tuple[str, ...]:
        """The diffusers keys, one a layer."""
        if not self.stacked:
            return (self.source,)
        return tuple(self.source.replace(LAYER, str(i)) for i in range(self.stacked))

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape in our tree, the stack's axis included."""
        axes = _AXES[self.layout] or range(len(self.shape))
        layer = tuple(self.shape[axis] for axis in axes)
        return (self.stacked, *layer) if self.stacked else layer

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """A view of one source tensor (one layer) in our layout."""
        axes = _AXES[self.layout]
        return tensor if axes is None else tensor.transpose(axes)

    def to_theirs(self, parameter: np.ndarray) -> dict[str, np.ndarray]:
        """Views of our (stacked) parameter as diffusers' tensors, by key."""
        axes = _AXES[self.layout]
        back = None if axes is None else np.argsort(axes)
        layers = parameter if self.stacked else parameter[None]
        return {
            key: layer if back is None else layer.transpose(back)
            for key, layer in zip(self.keys, layers, strict=True)
        }


def source_shapes(names: Sequence[TensorName]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the diffusers checkpoint, by key."""
    return {key: name.shape for name in names for key in name.keys}


def target_shapes(names: Sequence[TensorName]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of our tree, by path."""
    return {name.target: name.target_shape for name in names}


def account(
    names: Sequence[TensorName], found: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """Checks that a diffusers checkpoint holds exactly the named tensors.

    Args:
        names: what the model needs.
        found: key -> shape, all that there is.
        where: the checkpoint, for the message.

    Raises:
        ValueError: lists missing, unexpected and misshapen tensors together.
    """
    _compare(source_shapes(names), found, where=where)


def account_params(
    names: Sequence[TensorName], found: Mapping[str, tuple[int, ...]], *, where: str
) -> None:
    """The same check of our tree: `found` is path -> shape."""
    _compare(target_shapes(names), found, where=where)


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> None:
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} has {tuple(found[name])}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    report = [
        f"{len(lines)} {word}: {_shorten(lines, candidates)}"
        for word, lines, candidates in (
            ("missing", missing, ()),
            ("unexpected", unexpected, missing),
            ("misshapen", misshapen, ()),
        )
        if lines
    ]
    if report:
        raise ValueError(f"{where}: tensors do not fit the model. " + "; ".join(report))


def _shorten(lines: Sequence[str], missing: Sequence[str], *, shown: int = 20) -> str:
    listed = []
    for line in lines[:shown]:
        match = nearest(line, missing, cutoff=0.8)
        listed.append(f"{line} (nearest missing: {match})" if match else line)
    rest = f" and {len(lines) - shown} more" if len(lines) > shown else ""
    return ", ".join(listed) + rest


def linear(
    source: str, target: str, *, inputs: int, outputs: int, stacked: int = 0
) -> Iterator[TensorName]:
    """Weight and bias of a `torch.nn.Linear`, our `nn.Dense`."""
    weight = (outputs, inputs)
    yield TensorName(f"{source}.weight", f"{target}/kernel", weight, "linear", stacked)
    yield TensorName(f"{source}.bias", f"{target}/bias", (outputs,), "same", stacked)


def norm(source: str, target: str, width: int, *, stacked: int = 0) -> Iterator[TensorName]:
    """Weight and bias of an affine normalisation."""
    yield TensorName(f"{source}.weight", f"{target}/scale", (width,), "same", stacked)
    yield TensorName(f"{source}.bias", f"{target}/bias", (width,), "same", stacked)


def transformer_names(config: TransformerConfig) -> tuple[TensorName, ...]:
    """Every tensor of `CogVideoXTransformer3DModel`, in the order of the forward pass."""
    width, embedding, patch = config.width, config.time_embed_dim, config.patch_size

    def dense(name, inputs, outputs):
        target = name.replace(".", "/")
        return linear(name, target, inputs=inputs, outputs=outputs)

    kernel = (width, config.in_channels, patch, patch)
    return (
        TensorName("patch_embed.proj.weight", "patch_embed/proj/kernel", kernel, "conv2d"),
        TensorName("patch_embed.proj.bias", "patch_embed/proj/bias", (width,)),
        *dense("patch_embed.text_proj", config.text_embed_dim, width),
        *dense("time_embedding.linear_1", width, embedding),
        *dense("time_embedding.linear_2", embedding, embedding),
        *_block_names(config),
        *norm("norm_final", "norm_final", width),
        *dense("norm_out.linear", embedding, 2 * width),
        *norm("norm_out.norm", "norm_out/norm", width),
        *dense("proj_out", width, config.out_channels * patch**2),
    )


def _block_names(config: TransformerConfig) -> Iterator[TensorName]:
    width, depth = config.width, config.num_layers

    def dense(source, target, inputs, outputs):
        prefix = f"transformer_blocks.{LAYER}.{source}"
        return linear(prefix, f"blocks/{target}", inputs=inputs, outputs=outputs, stacked=depth)

    def affine(source, target, size):
        prefix = f"transformer_blocks.{LAYER}.{source}"
        return norm(prefix, f"blocks/{target}", size, stacked=depth)

    for name in ("norm1", "norm2"):
        yield from dense(f"{name}.linear", f"{name}/linear", config.time_embed_dim, 6 * width)
        yield from affine(f"{name}.norm", f"{name}/norm", width)
    for name in ("norm_q", "norm_k"):
        yield from affine(f"attn1.{name}", f"attn1/{name}", config.attention_head_dim)
    for name in ("to_q", "to_k", "to_v"):
        yield from dense(f"attn1.{name}", f"attn1/{name}", width, width)
    yield from dense("attn1.to_out.0", "attn1/to_out", width, width)
    yield from dense("ff.net.0.proj", "ff/up", width, 4 * width)
    yield from dense("ff.net.2", "ff/down", 4 * width, width)
