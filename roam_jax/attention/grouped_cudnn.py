"""Groups of a plan by cuDNN's fused attention: each group is an unmasked dense call.

A plan's groups of equal shape are a batch, so that one call of the library runs all of them and
nothing masked is computed; keys that fill a group are cut off by its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from roam_jax.canvas.tiles import TileStack

# What cuDNN multiplies, and the widest head on an A100.
DTYPES = (jnp.bfloat16, jnp.float16)
MOST_WIDTH = 128


def cudnn_attention(
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K D"],
    stacks: Sequence[TileStack],
) -> Float[Array, "B N K D"]:
    """Softmax attention over the stacks of a plan, one call a stack; queries in none get 0.

    Args:
        query, key, value: projected heads, bfloat16 or float16.
        stacks: without log weights.

    Raises:
        ValueError: a stack weighs or hides keys, or as `attend_groups`.
        RuntimeError: there is no cuDNN here.
    """
    out = jnp.zeros((*query.shape[:3], value.shape[3]), value.dtype)
    for stack in stacks:
        if stack.log_weight is not None:
            raise ValueError("cuDNN attention: a stack has log weights, expected plain edges alone")
        rows, keys = stack.query_cells, stack.key_cells
        heads = (query[:, rows], key[:, keys], value[:, keys])
        made = attend_groups(*(einops.rearrange(x, "B G N K D -> G B N K D") for x in heads))
        made = einops.rearrange(made, "G B N K D -> B (G N) K D")
        # Rows that the tile before has as well are taken from there.
        first = (np.arange(stack.rows) >= stack.skipped[..., None]).reshape(-1)
        cells = rows.reshape(-1)[first]
        out = out.at[:, cells].set(made[:, np.flatnonzero(first)], unique_indices=True)
    return out


def attend_groups(
    query: Float[Array, "G B N K D"],
    key: Float[Array, "G B M K D"],
    value: Float[Array, "G B M K D"],
    *,
    key_lengths: Int[np.ndarray, " G"] | None = None,
) -> Float[Array, "G B N K D"]:
    """Softmax attention of every group over its own keys, with scale 1/sqrt(D), on CUDA GPUs.

    JAX looks at the device when this is traced, so that it traces on machines with cuDNN only.

    Args:
        query, key, value: projected heads of G groups, bfloat16 or float16.
        key_lengths: leading keys of each group that are read; None = all of them.

    Raises:
        ValueError: `unsupported` says why.
        RuntimeError: there is no cuDNN here.
    """
    problem = unsupported(query, key, value, key_lengths=key_lengths)
    if problem:
        raise ValueError(f"cuDNN attention: {problem}")
    groups, batch, rows = query.shape[:3]
    if key_lengths is None and key.shape[2] % 2:
        key_lengths = np.full(groups, key.shape[2])
    lengths = None if key_lengths is None else np.repeat(key_lengths, batch).astype(np.int32)
    out = jax.nn.dot_product_attention(
        *map(_even, (query, key, value)), key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return einops.rearrange(out[:, :rows], "(G B) N K D -> G B N K D", G=groups)


def _even(cells: Array) -> Array:
    """Groups and batch as one axis, with one more cell where their number is odd.

    JAX 0.10 refuses the gradient of odd lengths (it takes a bias that is not there for one).
    """
    cells = einops.rearrange(cells, "G B N K D -> (G B) N K D")
    return jnp.pad(cells, ((0, 0), (0, cells.shape[1] % 2), (0, 0), (0, 0)))


def unsupported(
    query: Float[Array, "G B N K D"],
    key: Float[Array, "G B M K D"],
    value: Float[Array, "G B M K Dv"],
    *,
    key_lengths: Int[np.ndarray, " G"] | None = None,
) -> str | None:
    """Why cuDNN cannot run these groups; None where it can."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.dtype not in DTYPES:
            return f"{name} is {array.dtype}, expected bfloat16 or float16"
    width = query.shape[-1]
    if width % 8 or width > MOST_WIDTH:
        return f"heads are {width} wide, expected a multiple of 8 up to {MOST_WIDTH}"
    if value.shape[-1] != width:
        return f"heads of the value are {value.shape[-1]} wide, expected {width}"
    if key_lengths is not None:
        keys = key.shape[2]
        for length in key_lengths.tolist():
            if not 1 <= length <= keys:
                return f"a group reads {length} of {keys} keys, expected 1..{keys}"
    return None
