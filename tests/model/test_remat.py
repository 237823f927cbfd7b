"""What the backward pass finds kept changes memory, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.model.block import CanvasBlock
from roam_jax.model.loop_options import REMATS, LoopOptions
from roam_jax.model.stack import CanvasLoop
from roam_jax.train import names
from tests.cogvideox.graft_models import make_graft, make_inputs
from tests.cogvideox.graft_models import make_params as graft_params
from tests.model.test_block import HEADS, LAYOUT, PLAN, WIDTH
from tests.tasks.scenes import random_like

ROWS = 64


def canvas(over, kept):
    """A loss of a canvas model's blocks, and what it is called with."""
    module = CanvasLoop(
        make_block=functools.partial(CanvasBlock, WIDTH, HEADS, PLAN),
        depth=3,
        width=WIDTH,
        options=LoopOptions(rounds=3, over=over, gate="sigmoid", remat=kept),
        unroll=False,
    )
    count = sum(LAYOUT.region_numel(name) for name in LAYOUT.regions)
    cells = jax.random.normal(jax.random.key(1), (ROWS, count, WIDTH))
    shapes = jax.eval_shape(functools.partial(module.init, rounds=1), jax.random.key(0), cells)

    def loss(params, cells):
        return jnp.square(module.apply({"params": params}, cells, rounds=3)[0]).mean()

    return loss, random_like(shapes["params"]), cells


def graft(kept, wanted):
    """The same of a graft, whose last rounds keep fewer cells where few outputs are wanted."""
    model = make_graft(rounds=3, gate="sigmoid", remat=kept)
    inputs = make_inputs(model)
    params = graft_params(model, inputs)

    def loss(params, inputs):
        outputs, _ = model.apply({"params": params}, **inputs, rounds=3, wanted=wanted)
        return sum(jnp.square(x).mean() for x in outputs.values())

    more = jax.tree.map(lambda x: jnp.repeat(x, ROWS // 2, axis=0), inputs)
    return loss, params, more


CASES = {
    "canvas, blocks looped": lambda kept: canvas("block", kept),
    "canvas, stack looped": lambda kept: canvas("stack", kept),
    "graft": lambda kept: graft(kept, None),
    "graft, actions alone": lambda kept: graft(kept, ("actions",)),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_and_memory_falls(case):
    memory, first = [], None
    for kept in REMATS:
        loss, params, inputs = CASES[case](kept)
        compiled = jax.jit(jax.grad(loss)).lower(params, inputs).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        grads = names.flatten(jax.device_get(compiled(params, inputs)))
        first = first or grads
        largest = max(np.abs(grad).max() for grad in first.values())
        for name, grad in grads.items():
            # Some are 0 but for rounding, as that of a shift of all keys.
            scale = max(np.abs(first[name]).max(), 1e-2 * largest)
            np.testing.assert_allclose(grad, first[name], atol=3e-6 * scale, rtol=0, err_msg=name)
    assert memory[0] > memory[1] > memory[2] >= memory[3], dict(zip(REMATS, memory, strict=True))


def test_no_such_choice_is_refused():
    with pytest.raises(ValueError, match="train.remat = 'block': .*did you mean 'blocks'"):
        LoopOptions(rounds=1, remat="block")
