"""Names of edge kinds: how a query reads the keys of a connection.

The names are canvas-engineering's (`ATTENTION_REGISTRY`), so that schema files mean the same in
both.
"""

from __future__ import annotations

from roam_jax.spelling import did_you_mean

# Attention is softmax attention, and inside a CogVideoX its own is nothing else.
SOFTMAX_KINDS = ("cross_attention", "self_attention", "cogvideox")
# Kinds with a function of their own.
OTHER_KINDS = (
    "linear_attention",
    "cosine_attention",
    "sigmoid_attention",
    "gated",
    "perceiver",
    "pooling",
    "copy",
    "sparse_attention",
    "local_attention",
    "random_fixed",
)
# Declared but disabled: such an edge adds nothing and dilutes nothing.
NONE_KIND = "none"
# Read and written in schema files, but not run.
STORED_KINDS = ("mamba", "rwkv", "hyena", "mixture")
KINDS = (*SOFTMAX_KINDS, *OTHER_KINDS, NONE_KIND, *STORED_KINDS)


def check_kind(edge: str, kind: str) -> None:
    """Refuses kinds that cannot run.

    Args:
        edge: the edge in words, for the message.
        kind: its kind.

    Raises:
        ValueError: no such kind (names the nearest), or one that is only stored.
    """
    if kind in STORED_KINDS:
        running = (*SOFTMAX_KINDS, *OTHER_KINDS, NONE_KIND)
        raise ValueError(
            f"{edge}: kind {kind!r} is kept in schema files but cannot be run, expected one of "
            f"{', '.join(running)}"
        )
    if kind not in KINDS:
        raise ValueError(f"{edge}: unknown kind {kind!r}: {did_you_mean(kind, KINDS)}")
