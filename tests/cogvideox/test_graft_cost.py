"""What a training step of the graft computes and keeps, read off the compiled program."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from roam_jax.cogvideox import graft
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.cogvideox.graft_config import GraftConfig, trainable_patterns
from roam_jax.contracts import TimeSpec
from roam_jax.train.state import merge, partition
from tests.cogvideox.graft_models import CONFIG, make_graft, make_inputs, make_params


def gradient(model, inputs, *, rounds):
    """(trainable, frozen) -> the gradient of what policy `full` trains."""

    def loss(trainable, frozen):
        variables = {"params": merge(trainable, frozen)}
        outputs, _ = model.apply(variables, **inputs, rounds=rounds)
        return sum(jnp.sum(jnp.square(value)) for value in outputs.values())

    # Compiling takes most of the time here, and half of it is LLVM's.
    return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})


def test_no_product_is_computed_that_the_frozen_backbone_does_not_need():
    """Matrix products by shape: their count in one block's forward and backward pass.

    The forward pass has four of the attention layer and the narrowing one of shape (N, D); the
    backward pass runs those of q, k, v again and has one for each of these five, and none that
    gives the gradient of a weight. The widening product runs twice, and once backward.
    """
    model = make_graft(decoder="pooled", gate="sigmoid")
    inputs = make_inputs(model, batch=1)
    split = partition(make_params(model, inputs), trainable_patterns("full"))
    program = gradient(model, inputs, rounds=3).lower(*split).compile().as_text()
    shapes = Counter(re.findall(r"= f32\[([\d,]+)\]\S* dot\(", program))
    cells = CONFIG.max_text_seq_length + 4 * 2 * 3
    width = CONFIG.width
    assert shapes[f"{cells},{width}"] == (4 + 1) + 3 + (4 + 1)
    assert shapes[f"{cells},{4 * width}"] == 3
    weights = [(width, width), (width, 4 * width), (4 * width, width)]
    assert not [s for s in weights if shapes[f"{s[0]},{s[1]}"]]


def test_gradients_do_not_depend_on_what_is_kept(monkeypatch):
    model = make_graft(gate="sigmoid")
    inputs = make_inputs(model)
    split = partition(make_params(model, inputs), trainable_patterns("half"))
    kept = gradient(model, inputs, rounds=2)(*split)
    monkeypatch.setattr(graft, "LAYER_OUTPUT", "nothing has this name")
    again = gradient(model, inputs, rounds=2)(*split)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(b).max())


def test_three_rounds_take_at_most_a_quarter_more_memory_than_one():
    """Width 512, 6 layers, 506 tokens: the size that benchmarks/graft_step.py measures."""
    config = TransformerConfig(num_attention_heads=8, num_layers=6)
    time = TimeSpec(frames=17, t_current=1)
    layout = graft_layout(
        time=time, rows=7, columns=8, width=config.width, text_length=226,
        new=NewRegions(actions=False),
    )  # fmt: skip
    model = graft.GraftedTransformer(
        config=config,
        graft_config=GraftConfig(rounds=3, gate="sigmoid", decoder="pooled"),
        layout=layout,
        topology=graft_topology(layout),
    )
    inputs = {
        "latents": jnp.zeros((1, 5, 16, 14, 16)),
        "text": jnp.zeros((1, 226, 4096)),
        "timesteps": jnp.zeros(1, jnp.int32),
        "data": {},
    }
    init = functools.partial(model.init, rounds=1)
    shapes = jax.eval_shape(init, jax.random.key(0), **inputs)["params"]
    split = partition(shapes, trainable_patterns("full"))

    def bytes_needed(rounds):
        compiled = gradient(model, inputs, rounds=rounds).lower(*split).compile()
        plan = compiled.memory_analysis()
        return plan.temp_size_in_bytes + plan.argument_size_in_bytes

    assert bytes_needed(3) <= 1.25 * bytes_needed(1)
