"""A looped stack against the same model in torch, looped by canvas-engineering.

    python benchmarks/looped_stack.py

3 blocks x 4 rounds with sigmoid gates, forward and backward, alternated in one process: every block
looped, and the stack looped as a whole. Width 512 (512 cells) is asked to be at most 1.0 of torch's
time; width 64 (120 cells, batch 8) is reported. Then 4 rounds against 1 with rematerialisation,
of each round and nested: temporary memory at most 1.25, compile time at most 1.5. With --forms
every way to run our loop is timed, which is what `model/unrolling.py` decides by.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable

import einops
import jax
import numpy as np
import torch
from against_torch import alternate, machine, relative_error, report
from canvas_engineering.looped_block import LoopedBlockWrapper

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import compile_plan
from roam_jax.canvas.topology import CanvasTopology
from roam_jax.contracts import Params
from roam_jax.model.block import CELLS, CanvasBlock
from roam_jax.model.loop_options import LoopOptions
from roam_jax.model.stack import CanvasLoop
from roam_jax.train import names

DEPTH, ROUNDS = 3, 4
TOLERANCE = 5e-6
# Asked for: of torch's time at the large size; of one round's memory and compile time.
TIME, MEMORY, COMPILE = 1.0, 1.25, 1.5


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a model.

    Args:
        width, heads: of its blocks.
        cells: in three frames or more, a multiple of 4.
        batch: batch size.
        required: ratio to torch's time that is asked for.
    """

    width: int
    heads: int
    cells: int
    batch: int
    required: float


SIZES = (Size(512, 8, 512, 1, TIME), Size(64, 4, 120, 8, float("inf")))


class TorchBlock(torch.nn.Module):
    """Our block in torch, with its fused attention.

    Args:
        width, heads: of the block.
    """

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        linear = torch.nn.Linear
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        projections = ("to_q", "to_k", "to_v", "to_out")
        self.attn = torch.nn.ModuleDict({name: linear(width, width) for name in projections})
        layers = {"up": linear(width, 4 * width), "down": linear(4 * width, width)}
        self.ff = torch.nn.ModuleDict(layers)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(B, N, D) from (B, N, D)."""
        normed = self.norm1(cells)
        heads = (
            einops.rearrange(self.attn[name](normed), "B N (K D) -> B K N D", K=self.heads)
            for name in ("to_q", "to_k", "to_v")
        )
        out = torch.nn.functional.scaled_dot_product_attention(*heads)
        cells = cells + self.attn["to_out"](einops.rearrange(out, "B K N D -> B N (K D)"))
        hidden = torch.nn.functional.gelu(self.ff["up"](self.norm2(cells)), approximate="tanh")
        return cells + self.ff["down"](hidden)


class TorchLoop:
    """Forward and backward in torch, with random weights.

    Args:
        size: of the model.
        over: block or stack.
        inputs: (B, N, D) cells, and the gradient of the output.
        checkpoint: whether rounds are computed again, as canvas-engineering does by default.
    """

    def __init__(
        self, size: Size, over: str, inputs: tuple[np.ndarray, ...], *, checkpoint: bool = True
    ):
        torch.manual_seed(0)
        self.over = over
        blocks = [TorchBlock(width=size.width, heads=size.heads) for _ in range(DEPTH)]
        looped = blocks if over == "block" else [torch.nn.Sequential(*blocks)]
        wrap = functools.partial(
            LoopedBlockWrapper,
            max_loops=ROUNDS,
            embed_dim=size.width,
            use_gradient_checkpointing=checkpoint,
        )
        self.looped = torch.nn.Sequential(*(wrap(part) for part in looped))
        for part in self.looped:
            part.set_loops(ROUNDS)
            torch.nn.init.normal_(part.loop_emb, std=0.1)
            torch.nn.init.normal_(part.loop_gate)
        self.cells, self.change = (torch.tensor(x) for x in inputs)
        self.cells.requires_grad_()
        self.leaves = dict(self.looped.named_parameters())

    def step(self) -> tuple[torch.Tensor, ...]:
        """The output, gradients of the cells and of every parameter."""
        out = self.looped(self.cells)
        return out, *torch.autograd.grad(out, (self.cells, *self.leaves.values()), self.change)

    def params(self) -> Params:
        """Its parameters as ours."""
        return names.unflatten(self._named(list(self.leaves.values())))

    def outputs(self) -> dict[str, np.ndarray]:
        """What `step` gives, by our names."""
        out, cells, *grads = self.step()
        return {"out": out.detach().numpy(), "cells": cells.numpy(), **self._named(grads)}

    def _named(self, values: list[torch.Tensor]) -> dict[str, np.ndarray]:
        """Values of the leaves by our names and in our shapes, blocks stacked."""
        found: dict[str, list[np.ndarray]] = {}
        for name, value in zip(self.leaves, values, strict=True):
            array = value.detach().numpy()
            *path, leaf = [part for part in name.split(".") if not part.isdigit()]
            path = [part for part in path if part != "original"]
            if leaf == "loop_gate":
                key, array = "loop/gate", array[:, 0]
            elif leaf == "loop_emb":
                key = f"loop/{CELLS}"
            else:
                weight = "scale" if path[0].startswith("norm") else "kernel"
                key = "/".join([*path, weight if leaf == "weight" else leaf])
                array = array.T
            found.setdefault(f"blocks/{key}", []).append(array)
        rows_of_stack = ("blocks/loop/",) if self.over == "stack" else ()
        return {
            key: arrays[0] if key.startswith(rows_of_stack) else np.stack(arrays)
            for key, arrays in found.items()
        }


def our_loop(
    size: Size, over: str, *, unroll: bool | None, remat: bool | None, nested: bool | None = None
) -> CanvasLoop:
    """The same model, without random weights."""
    layout = CanvasLayout(
        T=size.cells // 4,
        H=2,
        W=2,
        d_model=size.width,
        regions={"all": (0, size.cells // 4, 0, 2, 0, 2)},
    )
    plan = compile_plan(layout, CanvasTopology.dense(["all"]))
    return CanvasLoop(
        make_block=functools.partial(CanvasBlock, size.width, size.heads, plan),
        depth=DEPTH,
        width=size.width,
        options=LoopOptions(rounds=ROUNDS, over=over, gate="sigmoid"),
        unroll=unroll,
        remat=remat,
        nested=nested,
    )


def our_step(module: CanvasLoop, *, rounds: int = ROUNDS) -> Callable:
    """(params, cells, change) -> (output, gradients of the cells, of the parameters)."""

    def step(params, cells, change):
        run = lambda params, cells: module.apply({"params": params}, cells, rounds=rounds)[0]  # noqa: E731
        out, pull = jax.vjp(run, params, cells)
        grads, d_cells = pull(change)
        return out, d_cells, grads

    return step


class OurLoop:
    """Forward and backward of ours, compiled.

    Args:
        module: from `our_loop`.
        params: its parameters.
        inputs: (B, N, D) cells, and the gradient of the output.
    """

    def __init__(self, module: CanvasLoop, params: Params, inputs: tuple[np.ndarray, ...]):
        self.arguments = jax.device_put((params, *inputs))
        began = time.perf_counter()
        self.compiled = jax.jit(our_step(module)).lower(*self.arguments).compile()
        self.compile_seconds = time.perf_counter() - began

    def step(self) -> tuple:
        """The output, gradients of the cells and of every parameter."""
        return jax.block_until_ready(self.compiled(*self.arguments))

    def outputs(self) -> dict[str, np.ndarray]:
        """What `step` gives, by name."""
        out, cells, grads = self.step()
        return {"out": out, "cells": cells, **names.flatten(grads)}

    @property
    def temporaries(self) -> int:
        """Bytes."""
        return self.compiled.memory_analysis().temp_size_in_bytes


def compare(size: Size, over: str, *, repeats: int, forms: bool) -> bool:
    """Times both sides in turn; whether all that is asked for holds."""
    rng = np.random.default_rng(0)
    shape = (size.batch, size.cells, size.width)
    inputs = tuple(rng.standard_normal(shape, np.float32) for _ in range(2))
    theirs = {
        "torch, computed again": TorchLoop(size, over, inputs),
        "torch, all kept": TorchLoop(size, over, inputs, checkpoint=False),
    }
    asked = {"ours": (None, None)}
    if forms:
        asked |= {
            f"{'written out' if unroll else 'scanned'}{', remat' if remat else ''}": (unroll, remat)
            for unroll in (True, False)
            for remat in (False, True)
        }
    wrapped = theirs["torch, computed again"]
    ours = {
        name: OurLoop(our_loop(size, over, unroll=unroll, remat=remat), wrapped.params(), inputs)
        for name, (unroll, remat) in asked.items()
    }
    errors = parameter_errors(ours["ours"].outputs(), wrapped.outputs())
    sides = {**ours, **theirs}
    for side in sides.values():
        side.step()
    timings, _ = alternate([side.step for side in sides.values()], repeats=repeats)
    timed = dict(zip(sides, timings, strict=True))
    for name, side in ours.items():
        print(
            f"  {name:<22} {timed[name]}, compiled in {side.compile_seconds:.1f} s, "
            f"temporaries {side.temporaries / 2**20:.0f} MiB"
        )
    for name in theirs:
        ratios = zip(timed["ours"].seconds, timed[name].seconds, strict=True)
        middle = statistics.median(a / b for a, b in ratios)
        print(f"  {name:<22} {timed[name]}, ours in {middle:.2f} of it")
    title = f"{over} looped, width {size.width}, {size.cells} cells, batch {size.batch}"
    return report(
        title,
        errors,
        timed["ours"],
        timed[next(iter(theirs))],
        tolerance=TOLERANCE,
        required=size.required,
    )


def parameter_errors(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, float]:
    """Relative L2 errors of the output, the cells' gradient and that of all parameters together.

    Raises:
        ValueError: the parameters have other names.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of {sorted(ours)} against {sorted(theirs)}")
    # Together: that of the keys' bias is 0 but for rounding.
    groups = {"out": ["out"], "cells": ["cells"], "params": sorted({*ours} - {"out", "cells"})}
    return {
        group: relative_error([ours[n] for n in chosen], [theirs[n] for n in chosen])
        for group, chosen in groups.items()
    }


def growth(size: Size, over: str, *, nested: bool, repeats: int) -> bool:
    """Memory and compile time of 4 rounds against 1, with rematerialisation."""
    module = our_loop(size, over, unroll=False, remat=True, nested=nested)
    cells = jax.ShapeDtypeStruct((size.batch, size.cells, size.width), np.float32)
    init = functools.partial(module.init, rounds=1)
    params = jax.eval_shape(init, jax.random.key(0), cells)["params"]

    def compile_rounds(rounds: int) -> jax.stages.Compiled:
        return jax.jit(our_step(module, rounds=rounds)).lower(params, cells, cells).compile()

    compile_rounds(1)
    runs = [functools.partial(compile_rounds, rounds) for rounds in (ROUNDS, 1)]
    (many, one), compiled = alternate(runs, repeats=repeats)
    longer = statistics.median(a / b for a, b in zip(many.seconds, one.seconds, strict=True))
    memory = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in compiled]
    more = memory[0] / memory[1]
    print(
        f"{over} looped, width {size.width}, batch {size.batch}: {ROUNDS} rounds against 1 with "
        f"rematerialisation{', nested' if nested else ''}\n"
        f"  temporaries {memory[0]:.1f} MiB against {memory[1]:.1f}, {more:.2f}, required: {MEMORY}"
        f"\n  compiled in {many} against {one}, {longer:.2f}, required: {COMPILE}"
    )
    return more <= MEMORY and longer <= COMPILE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compiles", type=int, default=3)
    parser.add_argument("--forms", action="store_true", help="time every way to run ours")
    parser.add_argument("--width", type=int, help="this size alone: 512 or 64")
    parser.add_argument("--over", choices=("block", "stack"), help="what is looped; both if absent")
    args = parser.parse_args()
    print(machine())
    sizes = [size for size in SIZES if args.width in (None, size.width)]
    overs = [args.over] if args.over else ["block", "stack"]
    met = [
        compare(size, over, repeats=args.repeats, forms=args.forms)
        for size in sizes
        for over in overs
    ]
    met += [
        growth(size, over, nested=nested, repeats=args.compiles)
        for size in sizes
        for over in overs
        for nested in (False, True)
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
