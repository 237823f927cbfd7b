"""Edge kinds other than softmax, on projected heads.

Names and formulas are those of canvas-engineering 0.5.0 (`attention.py`), in head space: where it
gives each edge projections of its own, here all edges of a layer share one set of queries, keys,
values and output. So `pooling` and `copy` move values, and `perceiver` reads its compressed cells
without projecting them again. Scores, softmax and sums are float32.

No kind keeps an array of queries x keys: `linear_attention`, `pooling`, `copy` and `perceiver`
never have one, `local_attention` and `random_fixed` gather the few keys of each query, the others
run over tiles of queries that are computed again in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from roam_jax.attention import dense
from roam_jax.canvas.plan import CellStack, EdgePlan
from roam_jax.canvas.tiles import largest_divisor
from roam_jax.spelling import check_choice

# Sizes of canvas-engineering.
LATENTS = 8
TOP_K = 8
RANDOM_KEYS = 8
# A query reads keys up to half of this away, on either side.
WINDOW = 8
# Added to the denominator of linear attention.
EPSILON = 1e-6
# Smallest length by which cosine attention divides.
SMALLEST_NORM = 1e-12
# Most queries of a tile; scores up to which heads share one, and groups of queries run together.
TILE = 256
PIECE_SCORES = 1 << 21

Heads = Float[Array, "B _ K _"]
# Of each query in its whole group.
Places = Int[Array, " N"]


def linear_attention(query: Heads, key: Heads, value: Heads) -> Heads:
    """phi(q) . (sum phi(k) v) / phi(q) . sum phi(k), phi = elu + 1; linear in queries and keys."""
    query, key = jax.nn.elu(query) + 1, jax.nn.elu(key) + 1
    sums = jnp.einsum("BMKD,BMKE->BKDE", key, value)
    total = jnp.einsum("BNKD,BKD->BNK", query, key.sum(axis=1))
    return jnp.einsum("BNKD,BKDE->BNKE", query, sums) / (total[..., None] + EPSILON)


def cosine_attention(
    query: Heads, key: Heads, value: Heads, temperature: Float[Array, ""]
) -> Heads:
    """Softmax of temperature x the cosine of query and key."""
    # Dense attention divides by the root of the width.
    query = _unit(query) * temperature * np.float32(np.sqrt(query.shape[-1]))
    return dense.attention(query, _unit(key), value)


def _unit(heads: Heads) -> Heads:
    square = jnp.sum(jnp.square(heads), axis=-1, keepdims=True)
    return heads * lax.rsqrt(jnp.maximum(square, SMALLEST_NORM**2))


def sigmoid_attention(query: Heads, key: Heads, value: Heads) -> Heads:
    """Sum of sigmoid(q . k / sqrt(D)) v: keys do not compete."""

    def tile(query, key, value):
        return _sums(jax.nn.sigmoid(_scores(query, key)), value)

    return _by_tiles(tile, query, key, value, keys=key.shape[1])


def gated(query: Heads, key: Heads, value: Heads, gate: Float[Array, ""]) -> Heads:
    """sigmoid(gate) x softmax attention."""
    return jax.nn.sigmoid(gate) * dense.attention(query, key, value)


def perceiver(
    query: Heads, key: Heads, value: Heads, latents: Float[Array, "K latents D"]
) -> Heads:
    """Latents read the keys; each query then reads what the latents read, as keys and values."""
    latents = einops.repeat(latents, "K N D -> B N K D", B=query.shape[0])
    compressed = dense.attention(latents, key, value)
    return dense.attention(query, compressed, compressed)


def pooling(query: Heads, key: Heads, value: Heads) -> Heads:
    """The mean of the values."""
    return jnp.broadcast_to(value.mean(axis=1, keepdims=True), (*query.shape[:3], value.shape[3]))


def copy(query: Heads, key: Heads, value: Heads, places: Places, size: int) -> Heads:
    """The value of the i-th key for the i-th query; 0 beyond the last key."""
    missing = max(size - value.shape[1], 0)
    return jnp.pad(value, ((0, 0), (0, missing), (0, 0), (0, 0)))[:, places]


def sparse_attention(query: Heads, key: Heads, value: Heads) -> Heads:
    """Softmax over the keys that score at least as high as the `TOP_K`-th: ties may be more."""

    def tile(query, key, value):
        scores = _scores(query, key)
        return _sums(_softmax(scores, scores >= _threshold(scores)), value)

    return _by_tiles(tile, query, key, value, keys=key.shape[1])


def _threshold(scores: Float[Array, "K N M"]) -> Float[Array, "K N 1"]:
    """The `TOP_K`-th highest score of each row, equal ones counted apart; the lowest of fewer.

    Level after level by row maxima: for `top_k` XLA's CPU backend sorts whole rows, and the edge
    takes ten times as long at 8,192 keys.
    """
    scores = lax.stop_gradient(scores)
    wanted = min(TOP_K, scores.shape[-1])

    def lower(_, level):
        below = jnp.where(scores < level, scores, -jnp.inf).max(axis=-1, keepdims=True)
        found = jnp.sum(scores >= level, axis=-1, keepdims=True)
        return jnp.where(found < wanted, below, level)

    return lax.fori_loop(0, wanted, lower, jnp.full((*scores.shape[:-1], 1), jnp.inf))


def local_attention(query: Heads, key: Heads, value: Heads, places: Places, size: int) -> Heads:
    """Softmax over the keys at most `WINDOW` / 2 places away, key places scaled to the queries'.

    A query without such a key gets 0 (where canvas-engineering gives NaN).
    """
    found = map(jnp.asarray, local_keys(size, key.shape[1]))
    return _few_keys(query, key, value, *(x[places] for x in found))


def local_keys(queries: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys (queries, most keys of one) that each query reads, and which of them are there."""
    places = np.arange(keys) * queries // keys
    query = np.arange(queries)
    first = np.searchsorted(places, query - WINDOW // 2, side="left")
    end = np.searchsorted(places, query + WINDOW // 2, side="right")
    found = first[:, None] + np.arange((end - first).max())
    return np.minimum(found, keys - 1).astype(np.int32), found < end[:, None]


def random_fixed(
    query: Heads, key: Heads, value: Heads, places: Places, size: int, *, seed: int
) -> Heads:
    """Softmax over `RANDOM_KEYS` keys of each query, drawn once."""
    keys = jnp.asarray(random_keys(size, key.shape[1], seed=seed))[places]
    return _few_keys(query, key, value, keys, jnp.ones(keys.shape, bool))


def random_keys(queries: int, keys: int, *, seed: int) -> np.ndarray:
    """(queries, `RANDOM_KEYS` or all) different keys of each query.

    The same for all groups of one size, as in canvas-engineering. Robert Floyd's draw: each round
    takes a number below a bound that grows, or the bound where the number is already taken.
    """
    rng = np.random.default_rng([seed, queries, keys])
    drawn = np.empty((queries, 0), np.int32)
    for bound in range(max(keys - RANDOM_KEYS, 0), keys):
        new = rng.integers(bound + 1, size=(queries, 1))
        new = np.where((drawn == new).any(axis=1, keepdims=True), bound, new)
        drawn = np.append(drawn, new.astype(np.int32), axis=1)
    return drawn


# Kinds without anything learned, with something learned, and those in which the place of a query in
# its group counts; a slice may lack some of the group.
PLAIN: dict[str, Callable[..., Any]] = {
    "linear_attention": linear_attention,
    "sigmoid_attention": sigmoid_attention,
    "pooling": pooling,
    "sparse_attention": sparse_attention,
}
LEARNED: dict[str, Callable[..., Any]] = {
    "cosine_attention": cosine_attention,
    "gated": gated,
    "perceiver": perceiver,
}
PLACED: dict[str, Callable[..., Any]] = {
    "copy": copy,
    "local_attention": local_attention,
    "random_fixed": random_fixed,
}
RUNNABLE = (*PLAIN, *LEARNED, *PLACED)
# Kinds whose scores are q . k / sqrt(D): what positions and temperatures put into q and k acts on
# these and on softmax edges; the other kinds read plain queries and keys.
DOT_PRODUCT_KINDS = (
    "sigmoid_attention",
    "gated",
    "sparse_attention",
    "local_attention",
    "random_fixed",
)


def run_edge(
    edge: EdgePlan,
    query: Float[Array, "B N K D"],
    key: Float[Array, "B M K D"],
    value: Float[Array, "B M K Dv"],
    parameter: Array | None = None,
) -> Float[Array, "B N K Dv"]:
    """What one edge gives every query; float32, 0 for queries that it does not serve.

    Args:
        edge: from a plan for sequences of these lengths.
        query, key, value: projected heads of the whole sequences.
        parameter: temperature (), gate () or latents (K, latents, D) of the kinds in `LEARNED`.

    Raises:
        ValueError: the edge is of a kind that is not one of `RUNNABLE`.
    """
    check_choice(f"connection {edge.src} -> {edge.dst}: kind", edge.kind, RUNNABLE)
    out = jnp.zeros((*query.shape[:3], value.shape[3]), jnp.float32)
    for stack in edge.stacks:
        run = _edge_function(edge, stack, parameter)
        made = _by_groups(run, stack, query, key, value)
        out = out.at[:, stack.query_cells].set(made, unique_indices=True)
    return out


def _edge_function(
    edge: EdgePlan, stack: CellStack, parameter: Array | None
) -> Callable[..., Heads]:
    """(query, key, value, places) of one group -> what its queries get."""
    if edge.kind in LEARNED:
        return lambda query, key, value, _: LEARNED[edge.kind](query, key, value, parameter)
    if edge.kind in PLAIN:
        return lambda query, key, value, _: PLAIN[edge.kind](query, key, value)
    options = {"seed": edge.index} if edge.kind == "random_fixed" else {}
    return functools.partial(PLACED[edge.kind], size=stack.size, **options)


def _by_groups(run: Callable[..., Any], stack: CellStack, query, key, value) -> Array:
    """(B, G, Q, K, Dv) of all groups, some at once, each computed again for the backward pass."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def group(cells):
        rows, columns, places = cells
        heads = (query[:, rows], key[:, columns], value[:, columns])
        return run(*(x.astype(jnp.float32) for x in heads), places)

    groups, rows = stack.query_cells.shape
    scores = query.shape[0] * query.shape[2] * rows * stack.key_cells.shape[1]
    together = min(max(PIECE_SCORES // scores, 1), groups)
    cells = tuple(map(jnp.asarray, (stack.query_cells, stack.key_cells, stack.places)))
    made = lax.map(group, cells, batch_size=together)
    return einops.rearrange(made, "G B Q K D -> B G Q K D")


def _by_tiles(
    tile: Callable[..., Array], query: Heads, key: Heads, value: Heads, *more: Array, keys: int
) -> Heads:
    """`tile` on some heads and queries at a time, each computed again for the backward pass.

    Args:
        tile: queries (heads, N, D), all keys and values of these heads (heads, M, D), and the
            queries' rows of `more` -> (heads, N, D).
        query, key, value: of a group.
        more: arrays with a row a query.
        keys: how many each query reads.
    """
    batch, count, heads, _ = query.shape
    tiles = -(-count // TILE)
    rows = -(-count // tiles)
    together = largest_divisor(batch * heads, most=PIECE_SCORES // (rows * keys))

    def cut(cells, axis):
        """Pads and cuts queries into tiles, which come first."""
        padding = [(0, 0)] * cells.ndim
        padding[axis] = (0, tiles * rows - count)
        cells = jnp.pad(cells, padding)
        shape = (*cells.shape[:axis], tiles, rows, *cells.shape[axis + 1 :])
        return jnp.moveaxis(cells.reshape(shape), axis, 0)

    more = tuple(cut(jnp.asarray(x), 0) for x in more)
    step = jax.checkpoint(tile, prevent_cse=False)

    def some_heads(inputs):
        query, key, value = inputs
        return lax.map(lambda part: step(part[0], key, value, *part[1]), (cut(query, 1), more))

    parts = (_in_groups(x, together) for x in (query, key, value))
    made = lax.map(some_heads, tuple(parts))
    made = einops.rearrange(made, "groups tiles K N D -> (groups K) (tiles N) D")[:, :count]
    return einops.rearrange(made, "(B K) N D -> B N K D", B=batch)


def _in_groups(cells: Heads, together: int) -> Float[Array, "groups heads N D"]:
    """Heads of all batch rows, some in each group."""
    cells = einops.rearrange(cells, "B N K D -> (B K) N D")
    return einops.rearrange(cells, "(groups heads) N D -> groups heads N D", heads=together)


def _few_keys(query, key, value, cells: Array, present: Array) -> Heads:
    """Softmax of each query over its own keys.

    Args:
        query, key, value: of a group.
        cells: (queries, most keys of one), each query's keys.
        present: which of them are there.
    """

    def tile(query, key, value, cells, present):
        scores = jnp.einsum("KND,KNMD->KNM", _scaled(query), key[:, cells])
        return jnp.einsum("KNM,KNMD->KND", _softmax(scores, present), value[:, cells])

    return _by_tiles(tile, query, key, value, cells, present, keys=cells.shape[1])


def _scaled(query: Float[Array, "K N D"]) -> Float[Array, "K N D"]:
    return query / np.sqrt(query.shape[-1])


def _scores(query: Float[Array, "K N D"], key: Float[Array, "K M D"]) -> Float[Array, "K N M"]:
    return jnp.einsum("KND,KMD->KNM", _scaled(query), key)


def _sums(weights: Float[Array, "K N M"], value: Float[Array, "K M D"]) -> Float[Array, "K N D"]:
    return jnp.einsum("KNM,KMD->KND", weights, value)


def _softmax(scores: Float[Array, "*B M"], present: Array) -> Float[Array, "*B M"]:
    """Over the keys that are there; all 0 where none is."""
    scores = jnp.where(present, scores, -jnp.inf)
    peak = lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(peak), peak, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)
