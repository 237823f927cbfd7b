"""Attention under topologies on one NVIDIA GPU: our paths against each other and dense cuDNN.

    python benchmarks/attention_gpu.py [--cells 8192 --batch 4 --heads 8] [--tune]

bfloat16, forward and forward+backward. Every path is first compared with the plan's tiles in
float32. The dense side is `jax.nn.dot_product_attention(implementation="cudnn")` without a mask,
what a model without topology would run. `--tune` tries other cuts of the block-sparse kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import HEAD_WIDTH, Case, causal_case, dense_case, hub_case, thought_case

from roam_jax.attention import block_sparse
from roam_jax.attention.grouped_cudnn import attend_groups
from roam_jax.attention.planned import best_implementation, planned_attention
from roam_jax.canvas.plan import compile_plan

CASES = {
    "causal": causal_case,
    "thought": thought_case,
    "hub": hub_case,
    "dense": dense_case,
}
PATHS = ("triton", "cudnn", "tiles")
# Cuts of the forward and backward kernels that --tune tries: rows, step, warps, stages.
CUTS = (
    (128, 64, 8, 2),
    (128, 64, 4, 3),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
    (128, 32, 4, 3),
    (64, 64, 4, 3),
    (64, 32, 4, 3),
    (128, 32, 8, 2),
)
REPEATS, CALLS = 7, 5


def main(argv: Sequence[str] | None = None) -> None:
    """Compares, times and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--tune", action="store_true", help="other cuts of the kernels")
    options = parser.parse_args(argv)
    cases = options.cases.split(",")
    if unknown := set(cases) - CASES.keys():
        parser.error(f"--cases {', '.join(unknown)}: expected some of {', '.join(CASES)}")
    if jax.default_backend() != "gpu":
        raise SystemExit(f"this needs an NVIDIA GPU, found {jax.default_backend()}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    heads = draw(options.batch, options.cells, options.heads)
    base = time_both(cudnn_dense, heads)
    print(f"dense cuDNN, {options.cells} cells: {shown(base)}")
    for name in cases:
        case = CASES[name](options.cells)
        plan = compile_plan(case.layout, case.topology)
        chosen = best_implementation(plan, *heads[:3], platform="gpu")
        print(f"\n{case.name}: chosen by itself: {chosen}")
        for path in PATHS:
            compare_and_time(case, plan, path, heads, base)
        if options.tune and case.name != "dense":
            tune(plan, heads)


def draw(batch: int, cells: int, heads: int) -> tuple[jax.Array, ...]:
    """Query, key, value and the output's gradient, bfloat16."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape = batch, cells, heads, HEAD_WIDTH
    return tuple(jax.random.normal(key, shape, jnp.bfloat16) for key in keys)


def cudnn_dense(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Every query reads every key."""
    return attend_groups(query[None], key[None], value[None])[0]


def compare_and_time(case: Case, plan, path: str, heads, base: tuple[float, float]) -> None:
    """One line: errors against tiles in float32, times, and how often faster than dense."""
    attend = functools.partial(planned_attention, plan=plan, implementation=path)
    try:
        error = largest_error(attend, plan, heads)
        times = time_both(attend, heads)
    except Exception as problem:  # a path that cannot run here is part of the result
        print(f"  {path:<8} {type(problem).__name__}: {str(problem).splitlines()[0][:150]}")
        return
    ratios = "  ".join(f"{b / t:.2f}x" for b, t in zip(base, times, strict=True))
    print(f"  {path:<8} {shown(times)}  of dense {ratios}  error {error:.1e}")


def largest_error(attend: Callable, plan, heads) -> float:
    """Largest relative L2 error of output and gradients, on two rows of the batch."""
    few = tuple(x[:2] for x in heads)
    exact = functools.partial(planned_attention, plan=plan, implementation="tiles")
    with jax.default_matmul_precision("highest"):
        theirs = jax.jit(both(exact))(*(x.astype(jnp.float32) for x in few))
    ours = jax.jit(both(attend))(*few)
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        errors.append(np.linalg.norm(a - b) / np.linalg.norm(b))
    return float(max(errors))


def both(attend: Callable) -> Callable:
    """The output and its three gradients."""

    def run(query, key, value, change):
        out, pull = jax.vjp(attend, query, key, value)
        return out, *pull(change)

    return run


def time_both(attend: Callable, heads) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of forward and backward."""
    return timed(jax.jit(attend), heads[:3]), timed(jax.jit(both(attend)), heads)


def timed(run: Callable, inputs) -> float:
    """Median milliseconds of a call, after two that do not count."""
    for _ in range(2):
        jax.block_until_ready(run(*inputs))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            made = run(*inputs)
        jax.block_until_ready(made)
        found.append(1e3 * (time.perf_counter() - start) / CALLS)
    return statistics.median(found)


def shown(times: tuple[float, float]) -> str:
    """Both times as text."""
    return f"forward {times[0]:.3f} ms, forward+backward {times[1]:.3f} ms"


def tune(plan, heads) -> None:
    """Times other cuts of the kernels, backward with the best forward, and keeps the best."""
    key = 2, False
    attend = functools.partial(planned_attention, plan=plan, implementation="triton")
    for table, run, inputs in (
        (block_sparse.FORWARD, attend, heads[:3]),
        (block_sparse.BACKWARD, both(attend), heads),
    ):
        kept, results = table[key], []
        fields = [field.name for field in dataclasses.fields(kept)]
        for cut in CUTS:
            table[key] = dataclasses.replace(kept, **dict(zip(fields, cut, strict=True)))
            jax.clear_caches()
            try:
                results.append((timed(jax.jit(run), inputs), cut))
            except Exception as problem:  # too much shared memory, say
                print(f"    {cut}: {str(problem).splitlines()[0][:80]}")
        # The backward pass is then timed behind the best forward one.
        table[key] = dataclasses.replace(kept, **dict(zip(fields, min(results)[1], strict=True)))
        jax.clear_caches()
        for milliseconds, cut in sorted(results)[:4]:
            print(f"    {cut}: {milliseconds:.3f} ms")


if __name__ == "__main__":
    main()
