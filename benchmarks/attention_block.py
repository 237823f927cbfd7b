"""One looped block against canvas-engineering's and torch's, for `attention.py`.

All blocks are the same but for their attention: LayerNorm, attention, feed-forward layer, one round
with a sigmoid gate. canvas-engineering runs its `AttentionDispatcher`, which is another function, a
mean of one softmax an edge; torch runs its fused attention under the mask, with our weights. A
block whose attention adds queries, keys and values shows what would be left at no cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from unittest import mock

import canvas_engineering as ce
import einops
import jax
import numpy as np
import torch
from against_torch import alternate, relative_error
from attention_cases import HEADS, WIDTH, Figure, causal_case, milliseconds, ratio
from canvas_engineering.dispatch import AttentionDispatcher
from canvas_engineering.looped_block import LoopedBlockWrapper

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.canvas.plan import AttentionPlan, compile_plan
from roam_jax.contracts import Params
from roam_jax.model import edge_kinds
from roam_jax.model.block import CELLS, CanvasBlock, call_block
from roam_jax.model.looped import LAYER_OUTPUT, LoopedBlock
from roam_jax.train import names

CELLS_OF_CANVAS = 4096
TOLERANCE = 5e-6
# Times faster than the other side.
CE_TIMES, TORCH_TIMES = 2.5, 2.0


class MaskedAttention(torch.nn.Module):
    """Projections around torch's fused attention under a mask.

    Args:
        mask: (N, N) bool, which pairs are allowed.
    """

    def __init__(self, mask: np.ndarray):
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "to_out"):
            self.add_module(name, torch.nn.Linear(WIDTH, WIDTH))
        self.mask = torch.tensor(mask)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(B, N, D) from (B, N, D)."""
        heads = (
            einops.rearrange(project(cells), "B N (K D) -> B K N D", K=HEADS)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attend = torch.nn.functional.scaled_dot_product_attention
        out = attend(*heads, attn_mask=self.mask)
        return self.to_out(einops.rearrange(out, "B K N D -> B N (K D)"))


class TorchBlock(torch.nn.Module):
    """Our block in torch, around any attention."""

    def __init__(self, attention: torch.nn.Module):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attn = attention
        self.ff = torch.nn.ModuleDict(
            {
                "up": torch.nn.Linear(WIDTH, 4 * WIDTH),
                "down": torch.nn.Linear(4 * WIDTH, WIDTH),
            }
        )

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """(B, N, D) from (B, N, D)."""
        cells = cells + self.attn(self.norm1(cells))
        hidden = torch.nn.functional.gelu(self.ff["up"](self.norm2(cells)), approximate="tanh")
        return cells + self.ff["down"](hidden)


class TorchLooped:
    """Forward and backward of one looped block in torch, with random weights.

    Args:
        attention: of the block.
        inputs: (1, N, D) cells, and the gradient of the output.
    """

    def __init__(self, attention: torch.nn.Module, inputs: tuple[np.ndarray, ...]):
        self.looped = LoopedBlockWrapper(TorchBlock(attention), max_loops=1, embed_dim=WIDTH)
        self.cells, self.change = (torch.tensor(x) for x in inputs)
        self.cells.requires_grad_()
        self.leaves = dict(self.looped.named_parameters())

    def step(self) -> tuple[torch.Tensor, ...]:
        """The output, gradients of the cells and of every parameter."""
        out = self.looped(self.cells)
        leaves = (self.cells, *self.leaves.values())
        return out, *torch.autograd.grad(out, leaves, self.change)

    def params(self) -> Params:
        """What it has learned, as our parameters."""
        return names.unflatten(_named(self.leaves, self.leaves.values()))

    def outputs(self) -> dict[str, np.ndarray]:
        """What `step` gives, by our names."""
        out, cells, *grads = self.step()
        made = {"out": out.detach().numpy(), "cells": cells.numpy()}
        return {**made, **_named(self.leaves, grads)}


def _named(leaves: Iterable[str], values: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    """Parameters of a `LoopedBlockWrapper`, or their gradients, by our names and in our shapes."""
    found = {}
    for name, value in zip(leaves, values, strict=True):
        array = value.detach().numpy().T if value.ndim == 2 else value.detach().numpy()
        *path, leaf = name.removeprefix("original.").split(".")
        if leaf == "loop_gate":
            found["loop/gate"] = array[0]
        elif leaf == "loop_emb":
            found[f"loop/{CELLS}"] = array.T
        else:
            kind = "scale" if path[0].startswith("norm") else "kernel"
            found["/".join([*path, kind if leaf == "weight" else leaf])] = array
    return found


class OurLooped:
    """Forward and backward of our looped block, compiled.

    Args:
        plan: of the topology.
        params: of the block.
        inputs: (1, N, D) cells, and the gradient of the output.
    """

    def __init__(self, plan: AttentionPlan, params: Params, inputs: tuple[np.ndarray, ...]):
        looped = LoopedBlock(
            make_block=functools.partial(CanvasBlock, WIDTH, HEADS, plan),
            call=call_block,
            gate="sigmoid",
            trained_rounds=1,
            width=WIDTH,
            streams=(CELLS,),
            saved=(LAYER_OUTPUT,),
        )

        def run(params, cells):
            streams, _ = looped.apply({"params": params}, {CELLS: cells}, rounds=1)
            return streams[CELLS]

        def step(params, cells, change):
            out, pull = jax.vjp(run, params, cells)
            grads, d_cells = pull(change)
            return out, d_cells, grads

        self.arguments = jax.device_put((params, *inputs))
        self.compiled = jax.jit(step).lower(*self.arguments).compile()

    def step(self) -> tuple:
        """The output, gradients of the cells and of every parameter."""
        return jax.block_until_ready(self.compiled(*self.arguments))

    def outputs(self) -> dict[str, np.ndarray]:
        """What `step` gives, by name."""
        out, cells, grads = self.step()
        return {"out": out, "cells": cells, **names.flatten(grads)}


def ce_dispatcher(layout: CanvasLayout) -> AttentionDispatcher:
    """canvas-engineering's attention under the same topology."""
    theirs = ce.CanvasLayout(
        T=layout.T,
        spatial_shape=(layout.H, layout.W),
        d_model=WIDTH,
        regions={name: spec.bounds for name, spec in layout.regions.items()},
    )
    topology = ce.CanvasTopology.causal_temporal(list(layout.regions))
    return AttentionDispatcher(topology, theirs, WIDTH, n_heads=HEADS)


def block_errors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 errors of the output, and of gradients of cells and of all parameters together.

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


def measure_block(*, repeats: int) -> list[Figure]:
    """Forward and backward of all blocks in turn.

    Raises:
        ValueError: ours is not torch's under the mask.
    """
    case = causal_case(CELLS_OF_CANVAS)
    plan = compile_plan(case.layout, case.topology)
    rng = np.random.default_rng(0)
    inputs = tuple(rng.standard_normal((1, plan.query_cells, WIDTH), np.float32) for _ in range(2))
    torch.manual_seed(0)
    masked = TorchLooped(MaskedAttention(plan.table.mask()), inputs)
    dispatched = TorchLooped(ce_dispatcher(case.layout), inputs)
    ours = OurLooped(plan, masked.params(), inputs)

    def free(query, key, value, plan):
        return query + key + value

    with mock.patch.object(edge_kinds, "planned_attention", free):
        ceiling = OurLooped(plan, masked.params(), inputs)

    errors = block_errors(ours.outputs(), masked.outputs())
    if max(errors.values()) > TOLERANCE:
        raise ValueError(f"relative L2 errors {errors}, expected {TOLERANCE:.0e}")
    print(
        f"  {case.name}, {plan.query_cells:,} cells, {plan.pairs / plan.query_cells**2:.1%} of "
        f"pairs, width {WIDTH}; largest relative L2 error {max(errors.values()):.1e}"
    )
    sides: dict[str, Callable] = {
        "ours": ours.step,
        "canvas-engineering": dispatched.step,
        "torch, mask": masked.step,
        "attention at no cost": ceiling.step,
    }
    for run in sides.values():
        run()
    timings, _ = alternate(list(sides.values()), repeats=repeats)
    taken = dict(zip(sides, timings, strict=True))
    for name, timing in taken.items():
        times = ratio(timing, taken["ours"])
        print(f"    {name:<21} {milliseconds(timing):<26} {times:.2f} x ours")
    figures = []
    for name, asked in (("canvas-engineering", CE_TIMES), ("torch, mask", TORCH_TIMES)):
        most = ratio(taken[name], taken["attention at no cost"])
        print(f"    at most {most:.2f} x faster than {name}, with attention at no cost")
        title = f"block, faster than {name}"
        figures.append(Figure(title, ratio(taken[name], taken["ours"]), asked, True, "x"))
    return figures
