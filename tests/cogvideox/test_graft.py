"""The graft: equal to its backbone at initialisation, counted exactly, blind to the future."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftConfig, GraftedTransformer, trainable_patterns
from roam_jax.cogvideox.graft_canvas import graft_layout, graft_topology
from roam_jax.contracts import TimeSpec
from tests.cogvideox.graft_models import (
    CONFIG,
    TIME,
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)


def relative(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_equals_the_backbone_at_initialisation(rounds):
    inputs = make_inputs()
    model = make_graft()
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    assert relative(outputs["velocity"], backbone_output(params, inputs)) <= 1e-6
    assert outputs["actions"].shape == (2, TIME.chunk, 7)


@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_the_backbone_bitwise_without_new_cells(rounds):
    inputs = make_inputs()
    model = make_graft(decoder="pooled")
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    np.testing.assert_array_equal(outputs["velocity"], backbone_output(params, inputs))
    assert outputs["actions"].shape == (2, 1, 7)


def test_backbone_reading_new_cells_gives_the_equality_up_by_a_bounded_change():
    inputs = make_inputs()
    params = make_params(make_graft(), inputs)
    base = backbone_output(params, inputs)
    changes = []
    for weight in (1e-4, 1e-2, 1.0):
        outputs, _ = run(make_graft(reads_new=weight), params, inputs)
        changes.append(relative(outputs["velocity"], base))
    assert 0 < changes[0] < changes[1] < changes[2]
    assert changes[0] < 1e-3


def loop_gradients(model, params, inputs, rounds):
    def loss(loop):
        blocks = {**params["blocks"], "loop": loop}
        outputs, _ = model.apply({"params": {**params, "blocks": blocks}}, *inputs, rounds=rounds)
        return jnp.sum(outputs["velocity"] ** 2)

    return jax.jit(jax.grad(loss))(params["blocks"]["loop"])


def test_gradients_of_the_loop_at_the_start_and_after_the_gates_moved():
    inputs = make_inputs()
    model = make_graft(rounds=3)
    params = make_params(model, inputs)
    start = loop_gradients(model, params, inputs, 3)
    assert (np.abs(start["gate"]) > 0).all()
    for stream in ("text", "video"):
        assert (np.linalg.norm(start[stream][:, 0], axis=-1) > 0).sum() >= CONFIG.num_layers - 1
        np.testing.assert_array_equal(start[stream][:, 1:], 0)
    params["blocks"]["loop"]["gate"] = params["blocks"]["loop"]["gate"] + 0.1
    moved = loop_gradients(model, params, inputs, 3)
    assert (np.linalg.norm(moved["video"], axis=-1) > 0).all()


def test_gradient_of_a_gate_equals_a_finite_difference():
    inputs = make_inputs(batch=1)
    model = make_graft(rounds=2)
    params = make_params(model, inputs)
    exact = loop_gradients(model, params, inputs, 2)["gate"][1, 1]

    @jax.jit
    def outputs(shift):
        gate = params["blocks"]["loop"]["gate"].at[1, 1].add(shift)
        loop = {**params["blocks"]["loop"], "gate": gate}
        moved = {**params, "blocks": {**params["blocks"], "loop": loop}}
        return model.apply({"params": moved}, *inputs, rounds=2)[0]["velocity"]

    def value(shift):
        return np.sum(np.asarray(outputs(shift), np.float64) ** 2)

    assert abs((value(1e-2) - value(-1e-2)) / 2e-2 / exact - 1) < 2e-2


def test_sigmoid_gate_is_the_published_rule():
    """One round, gates at zero: halfway between the state and the block's output."""
    inputs = make_inputs()
    model, closed = make_graft(gate="sigmoid"), make_graft(gate="identity")
    params = make_params(model, inputs)
    half = params["blocks"]["loop"]["gate"] - 0.5  # identity's first round then steps by 0.5
    same = {**params["blocks"], "loop": {**params["blocks"]["loop"], "gate": half}}
    ours, _ = run(model, params, inputs, rounds=1)
    expected, _ = run(closed, {**params, "blocks": same}, inputs)
    assert relative(ours["velocity"], expected["velocity"]) < 1e-6


def test_round_measures_have_their_closed_forms():
    inputs = make_inputs()
    model = make_graft(rounds=3)
    params = make_params(model, inputs)
    _, measures = run(model, params, inputs, rounds=3)
    for stream in ("text", "video"):
        gated, residual = measures["gated_step"][stream], measures["residual"][stream]
        assert gated.shape == (CONFIG.num_layers, 3)
        np.testing.assert_array_equal(gated[:, 1:], 0)  # identity gates are closed at first
        np.testing.assert_allclose(gated[:, 0], residual[:, 0], rtol=1e-6)
        assert (np.abs(measures["cosine"][stream]) <= 1 + 1e-6).all()


def tree_shapes(config, *, rounds=3, decoder="tokens"):
    time = TimeSpec(frames=17, t_current=2)
    layout = graft_layout(
        time=time, rows=16, columns=16, width=config.width, text_length=226,
        action_cells=decoder == "tokens",
    )  # fmt: skip
    model = GraftedTransformer(
        config=config,
        graft_config=GraftConfig(rounds=rounds, decoder=decoder),
        layout=layout,
        topology=graft_topology(layout),
    )
    shapes = jax.eval_shape(
        lambda rng: model.init(
            rng,
            jnp.zeros((1, 5, 16, 32, 32)),
            jnp.zeros((1, 226, 4096)),
            jnp.zeros(1, jnp.int32),
            jnp.zeros((1, 4, 7)),
            rounds=1,
        ),
        jax.random.key(0),
    )["params"]
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    return {"/".join(k.key for k in path): int(np.prod(leaf.shape)) for path, leaf in flat}


def count(sizes, patterns) -> int:
    return sum(
        n
        for name, n in sizes.items()
        if not name.startswith("graft/") and any(re.search(p, name) for p in patterns)
    )


@pytest.mark.parametrize(
    "policy, expected",
    [("full", 345_690), ("half", 3_692_442), ("none", 11_683_482), ("unfrozen", 1_694_129_562)],
)
def test_freeze_policies_train_the_published_counts_at_2b(policy, expected):
    sizes = tree_shapes(TransformerConfig())
    assert count(sizes, trainable_patterns(policy)) == expected


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_loop_parameters_at_2b(rounds):
    sizes = tree_shapes(TransformerConfig(), rounds=rounds)
    assert count(sizes, (r"^blocks/loop/",)) == 30 * rounds * 3841


def test_pooled_head_has_199_parameters():
    sizes = tree_shapes(TransformerConfig(), decoder="pooled")
    assert sum(n for name, n in sizes.items() if name.startswith("graft/")) == 199


def test_layout_regions_and_default_edges():
    layout = make_graft().layout
    assert list(layout.regions) == ["text", "visual", "past_action", "future_action"]
    assert [layout.region_numel(n) for n in layout.regions] == [5, 24, 4, 8]
    weights = layout.loss_weight_mask()
    assert weights[layout.region_indices("past_action")].sum() == 0
    table, _ = graft_topology(layout).segment_table(layout)
    mask = table.mask()
    assert mask[:29, :29].all() and not mask[:29, 29:].any() and mask[29:].all()
    first = make_graft(time=TimeSpec(frames=13, t_current=1)).layout
    assert list(first.regions) == ["text", "visual", "future_action"]


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="freeze = 'ful': expected one of full"):
        trainable_patterns("ful")
    with pytest.raises(ValueError, match="decoder.kind = 'token'"):
        GraftConfig(rounds=1, decoder="token")
    inputs = make_inputs()
    with pytest.raises(ValueError, match="loop.gate = 'sigmoi'"):
        make_graft(gate="sigmoi").init(jax.random.key(0), *inputs, rounds=1)
