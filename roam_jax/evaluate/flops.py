"""FLOPs of a traced function, counted and not measured.

Walks a jaxpr and counts its matrix products and convolutions, which are nearly all the arithmetic
of a network; a multiply-add is 2. What multiplies the zeros of a convolution's padding or dilation
is left out, as in XLA's cost analysis. That analysis counts the body of a loop once, whatever its
length; here the body of a scan counts as often as it runs.
"""

from __future__ import annotations

import collections
import math
import re

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params

# Primitives that run their one jaxpr once.
CALLS = {
    "jit",
    "closed_call",
    "core_call",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
}

# Fused attention of cuDNN: its products, two forward; five backward, which makes the scores again.
_FUSED = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}

# Primitives that multiply matrices, by themselves or out of sight, in a number that is not counted
# here: ragged, scaled and sparse products, fused attention and recurrences, decompositions, Fourier
# transforms, and code from outside.
_UNCOUNTED = re.compile(
    r"dot|matmul|attention|mma$|_(matmat|matvec|spmm|spmv)$|^spsolve$|^rnn_|^fft$"
    r"|^(cholesky|eig|eigh|svd|qr|geqrf|geqp3|lu|schur|hessenberg|tridiagonal)$"
    r"|cholesky_update|householder|ormqr|_solve$"
    r"|^(ffi_call|call_tf|call_exported)$|^(pure|io|buffer)_callback$|custom_call|mosaic"
)


def count_flops(jaxpr: ClosedJaxpr | Jaxpr) -> collections.Counter[str]:
    """FLOPs of the matrix products and convolutions of a jaxpr, by where they come from.

    Args:
        jaxpr: from `jax.make_jaxpr`, which needs shapes only.

    Returns:
        Scope -> FLOPs. A scope is the "/"-joined name stack: flax module names, within
        "jvp(...)" or "transpose(...)" where JAX derived the product, below "rematted_computation"
        where it computes a product again. Of a `cond` the costliest branch counts.

    A Pallas kernel counts as much as its `cost_estimate` says, fused attention all of its pairs.

    Raises:
        ValueError: a product lies in something whose repetitions are not known from its shapes,
            such as a `while` loop or a kernel without an estimate, or is of a kind that is not
            counted here.
    """
    total: collections.Counter[str] = collections.Counter()
    for eqn in jaxpr.eqns:
        scope = str(eqn.source_info.name_stack)
        name = eqn.primitive.name
        if name in _COUNTED:
            total[scope] += count_equation(eqn)
        elif _UNCOUNTED.search(name):
            raise ValueError(
                f"cannot count {name!r}{f' at {scope}' if scope else ''}: known products are "
                "dot_general and conv_general_dilated"
            )
        else:
            for inner, flops in _inner_flops(eqn).items():
                total["/".join(part for part in (scope, inner) if part)] += flops
    return total


def count_equation(eqn: JaxprEqn) -> int:
    """FLOPs of one equation by itself: of a product, convolution or kernel, else 0."""
    return _COUNTED.get(eqn.primitive.name, lambda eqn: 0)(eqn)


def _inner_flops(eqn: JaxprEqn) -> collections.Counter[str]:
    """What the jaxprs within an equation's parameters cost in one execution of it."""
    name = eqn.primitive.name
    inner = [count_flops(jaxpr) for jaxpr in jaxprs_in_params(eqn.params)]
    inner = [counts for counts in inner if counts.total()]
    if not inner:
        return collections.Counter()
    if name == "cond":
        return max(inner, key=collections.Counter.total)
    if name == "scan" or name in CALLS:
        times = eqn.params["length"] if name == "scan" else 1
        return collections.Counter({scope: times * n for scope, n in inner[0].items()})
    scope = next(iter(inner[0]))
    raise ValueError(
        f"cannot count the products in a {name!r} at {eqn.source_info.name_stack}/{scope}: how "
        f"often they run is not known; known are scan, cond, {', '.join(sorted(CALLS))}"
    )


def _dot_flops(eqn: JaxprEqn) -> int:
    """2 x results x terms of each."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: JaxprEqn) -> int:
    """2 x batch x channels out x channels in of a group x pairs of an output and a real input."""
    params = eqn.params
    numbers = params["dimension_numbers"]
    (image, kernel), result = (v.aval.shape for v in eqn.invars), eqn.outvars[0].aval.shape
    pairs = [
        _tap_pairs(
            image[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            result[numbers.out_spec[2 + axis]],
            stride=params["window_strides"][axis],
            before=params["padding"][axis][0],
            spread=params["lhs_dilation"][axis],
            dilation=params["rhs_dilation"][axis],
        )
        for axis in range(len(image) - 2)
    ]
    batch, channels_out = (result[numbers.out_spec[i]] for i in (0, 1))
    return 2 * batch * channels_out * kernel[numbers.rhs_spec[1]] * math.prod(pairs)


def _tap_pairs(
    size: int, taps: int, outputs: int, *, stride: int, before: int, spread: int, dilation: int
) -> int:
    """How many (output, tap) of one axis fall on an input, not on padding or between inputs.

    Args:
        size, taps, outputs: length of input, kernel and output.
        stride: of the outputs.
        before: padding before the input.
        spread: distance of neighbouring inputs.
        dilation: distance of neighbouring taps.
    """
    first = np.arange(outputs)[:, None] * stride - before
    places = first + np.arange(taps) * dilation
    inside = (places >= 0) & (places <= (size - 1) * spread)
    return int(np.count_nonzero(inside & (places % spread == 0)))


def _fused_flops(eqn: JaxprEqn) -> int:
    """Of cuDNN's attention; layout 0 is (B, N, K, D), 1 is (B, K, N, D)."""
    query, key = (v.aval.shape for v in eqn.invars[:2])
    pairs = math.prod(query) * key[2 if eqn.params["layout"] else 1]
    return 2 * _FUSED[eqn.primitive.name] * pairs


def _kernel_flops(eqn: JaxprEqn) -> int:
    """What a Pallas kernel says of itself."""
    if (estimate := eqn.params["cost_estimate"]) is None:
        raise ValueError(
            f"cannot count the products in a 'pallas_call' at {eqn.source_info.name_stack}: the "
            "kernel has no cost_estimate"
        )
    return estimate.flops


_COUNTED = {
    "dot_general": _dot_flops,
    "conv_general_dilated": _convolution_flops,
    "pallas_call": _kernel_flops,
    **dict.fromkeys(_FUSED, _fused_flops),
}
