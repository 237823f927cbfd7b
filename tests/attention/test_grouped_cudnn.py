"""Groups for cuDNN: what is handed over, what it lowers to, what is refused.

No test here runs cuDNN itself: JAX asks for the library when the call is traced.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.attention.grouped_cudnn import attend_groups, unsupported
from tests.attention import oracle


def groups(*, width=16, dtype=jnp.bfloat16, count=3, rows=5, columns=7):
    """Query, key and value of some groups, batch 2, two heads."""
    shapes = [(count, 2, cells, 2, width) for cells in (rows, columns, columns)]
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))


@pytest.fixture
def in_xla(monkeypatch):
    """The same call by XLA, which takes the same arguments."""
    call = jax.nn.dot_product_attention

    def instead(*args, implementation, **options):
        assert implementation == "cudnn"
        return call(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)


@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
def test_every_group_reads_its_own_keys(in_xla, lengths):
    inputs = groups()
    lengths = None if lengths is None else np.array(lengths, np.int32)
    out = attend_groups(*inputs, key_lengths=lengths)
    assert out.dtype == jnp.bfloat16
    for number in range(3):
        count = 7 if lengths is None else lengths[number]
        query, key, value = (x[number] for x in inputs)
        table = oracle.table([[0, 1], [0, 1]], [0, count], queries=[5, 0])
        expected, *_ = oracle.attention(query, key[:, :count], value[:, :count], table, query)
        assert oracle.distance(out[number], expected) < 2**-7


@pytest.mark.parametrize("lengths", [None, [7, 4, 1]])
def test_lowers_to_cudnn_forward_and_backward(monkeypatch, lengths):
    """With the question for the library answered: JAX then lowers without a device."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    lengths = None if lengths is None else np.array(lengths, np.int32)
    attend = functools.partial(attend_groups, key_lengths=lengths)
    step = jax.jit(jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).sum(), (0, 1, 2)))
    text = step.trace(*groups(width=64)).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    assert "PADDING" in text  # 5 queries and 7 keys are filled to even numbers
    assert "fmhaScaleBias" not in text  # no dense bias


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="has cuDNN")
def test_without_cudnn_the_call_says_so():
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        attend_groups(*groups())


def test_what_cudnn_lacks_is_refused():
    query, key, value = groups()
    assert unsupported(query, key, value) is None
    with pytest.raises(ValueError, match="query is float32, expected bfloat16 or float16"):
        attend_groups(*groups(dtype=jnp.float32))
    with pytest.raises(ValueError, match="12 wide, expected a multiple of 8 up to 128"):
        attend_groups(*groups(width=12))
    assert "136 wide" in unsupported(*groups(width=136))
    assert "value are 8 wide, expected 16" in unsupported(query, key, value[..., :8])
    lengths = np.array([7, 0, 7], np.int32)
    assert "0 of 7 keys" in unsupported(query, key, value, key_lengths=lengths)
