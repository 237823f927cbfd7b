"""Regions and timesteps of the graft, and what does not fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.plan import AttentionPlan
from roam_jax.canvas.segments import SegmentTable
from roam_jax.cogvideox.block import Block, JointCells
from roam_jax.cogvideox.embedding import PatchEmbed, TimeEmbedding, condition
from roam_jax.cogvideox.graft_canvas import (
    graft_topology,
    latent_frames,
)
from roam_jax.cogvideox.graft_config import GraftConfig, trainable_patterns
from roam_jax.contracts import TimeSpec
from roam_jax.model.heads import CrossAttentionDecoder
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    CONFIG,
    TIME,
    make_graft,
    make_inputs,
    make_params,
    run,
)


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


def test_layout_of_all_regions():
    layout = make_graft(regions=ALL_REGIONS).layout
    cells = {name: layout.region_numel(name) for name in layout.regions}
    assert cells == {
        "text": 5, "visual": 24, "past_action": 4, "future_action": 8, "observed_proprio": 2,
        "future_proprio": 2, "observed_reward": 2, "future_reward": 2, "thought": 6,
    }  # fmt: skip
    frames = latent_frames(layout)
    assert len(frames) == sum(cells.values()) - 5
    np.testing.assert_array_equal(frames[:24], np.repeat(np.arange(4), 6))
    np.testing.assert_array_equal(frames[24:36], np.repeat([1, 2, 3], 4))
    np.testing.assert_array_equal(frames[36:], [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 0, 2, 2, 2])
    assert layout.loss_weight_mask()[layout.region_indices("future_reward")].tolist() == [0.5, 0.5]


def test_thought_cells_change_what_is_predicted_and_are_learned():
    model = make_graft(regions=ALL_REGIONS)
    inputs = make_inputs(model)
    params = make_params(model, inputs)

    @jax.jit
    def actions(query):
        thought = {**params["graft"]["thought"], "query": query}
        moved = {**params, "graft": {**params["graft"], "thought": thought}}
        return model.apply({"params": moved}, **inputs, rounds=2)[0]["actions"]

    query = params["graft"]["thought"]["query"]
    gradient = jax.jit(jax.grad(lambda q: jnp.sum(actions(q) ** 2)))(query)
    assert (np.linalg.norm(gradient, axis=-1) > 0).all()
    assert np.abs(actions(-query) - actions(query)).max() > 1e-5


@pytest.mark.parametrize("regions", [{}, ALL_REGIONS])
def test_equal_timesteps_of_all_frames_reproduce_one_a_row(regions):
    model = make_graft(regions=regions)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    expected, _ = run(model, params, inputs, rounds=2)
    frames = jnp.tile(inputs["timesteps"][:, None], (1, TIME.latents))
    found, _ = run(model, params, {**inputs, "timesteps": frames}, rounds=2)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_timestep_of_a_frame_modulates_its_cells_alone():
    """One block that reads nothing: cells of other frames, and the text, must not notice."""
    block, rng = Block(CONFIG), np.random.default_rng(0)
    text = jnp.asarray(rng.standard_normal((1, 5, CONFIG.width)), jnp.float32)
    video = jnp.asarray(rng.standard_normal((1, 8, CONFIG.width)), jnp.float32)
    cells = np.repeat(np.arange(4), 2)
    table = SegmentTable(
        np.arange(13, dtype=np.int32), np.where(np.eye(13), 0, -np.inf).astype(np.float32)
    )
    apart = AttentionPlan(table, None, (), np.ones((1, 13)))
    params = block.init(jax.random.key(0), text, video, jnp.ones((1, 32)))["params"]
    embed = TimeEmbedding(CONFIG)
    weights = embed.init(jax.random.key(1), jnp.zeros(1))

    @jax.jit
    def apply(timesteps):
        temb, frames = condition(embed.bind(weights), timesteps, cells)
        return block.apply({"params": params}, text, video, temb, JointCells(apart, frames))

    base_text, base = apply(jnp.array([[900, 900, 900, 900]]))
    new_text, new = apply(jnp.array([[900, 0, 900, 900]]))
    np.testing.assert_array_equal(new_text, base_text)  # the largest is still 900
    moved = np.abs(np.asarray(new - base)).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(moved, cells == 1)
    lower_text, _ = apply(jnp.array([[0, 0, 0, 0]]))
    assert np.abs(np.asarray(lower_text - base_text)).max() > 1e-4


def test_cross_attention_reads_the_chosen_blocks():
    """Its activations are the video cells of backbones cut after each chosen block."""
    model = make_graft(decoder="cross_attention", blocks=(0, -1))
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    found, _ = run(model, params, inputs, rounds=1)

    @jax.jit
    def expected():
        own = {name: {"params": params[name]} for name in ("patch_embed", "time_embedding")}
        temb = TimeEmbedding(CONFIG).apply(own["time_embedding"], inputs["timesteps"])
        streams = PatchEmbed(CONFIG).apply(own["patch_embed"], inputs["latents"], inputs["text"])
        activations = []
        for number in range(CONFIG.num_layers):
            weights = {name: v for name, v in params["blocks"].items() if name != "loop"}
            weights = jax.tree.map(lambda stack, n=number: stack[n], weights)
            streams = Block(CONFIG).apply({"params": weights}, *streams, temb)
            activations.append(streams[1])
        decoder = CrossAttentionDecoder(7, TIME.chunk)
        read = jnp.stack([activations[0], activations[-1]])
        return decoder.apply({"params": params["graft"]["decoder"]}, read)

    assert relative_error(found["actions"], expected()) <= 1e-5


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="freeze = 'ful': expected one of full"):
        trainable_patterns("ful")
    with pytest.raises(ValueError, match="decoder.kind = 'token': .* did you mean 'tokens'"):
        GraftConfig(rounds=1, decoder="token")
    with pytest.raises(ValueError, match="loop.gate = 'sigmoi'"):
        GraftConfig(rounds=1, gate="sigmoi")


@pytest.mark.parametrize(
    "blocks, message",
    [
        ((3,), "expected -3..2"),
        ((), "at least one block"),
        ((0, -3), "each once"),
        ((0.5,), "whole numbers"),
        (("a",), "whole numbers"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(blocks, message):
    config = GraftConfig(rounds=1, decoder="cross_attention", decoder_blocks=blocks)
    with pytest.raises(ValueError, match=f"decoder.blocks = .*{message}"):
        config.taps(3)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"thought_cells": -1}, "canvas.thought_cells = -1"),
        ({"proprio_weight": 1.0}, "canvas.proprio_weight = 1.0 without a region"),
        ({"thought_cells": 2, "thought_period": 5}, r"thought_period = 5: expected 1..4"),
        ({"thought_cells": 2, "thought_period": 0}, r"thought_period = 0: expected 1..4"),
        ({"thought_period": 9}, r"thought_period = 9: expected 1..4"),
    ],
)
def test_regions_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_graft(regions=values)


def test_blocks_of_a_decoder_that_reads_none_are_refused():
    with pytest.raises(ValueError, match="decoder.blocks = .* with decoder.kind = 'tokens'"):
        GraftConfig(rounds=1, decoder="tokens", decoder_blocks=(0,))


def test_inputs_that_do_not_fit_the_regions_are_refused():
    model = make_graft(regions=ALL_REGIONS)
    inputs = make_inputs(model)

    def init(**changes):
        return jax.eval_shape(
            lambda rng: model.init(rng, **{**inputs, **changes}, rounds=1), jax.random.key(0)
        )

    data = {name: x for name, x in inputs["data"].items() if name != "observed_reward"}
    with pytest.raises(ValueError, match="expected it for .*observed_reward"):
        init(data=data)
    with pytest.raises(ValueError, match="'tokens' with action_timesteps"):
        init(action_timesteps=jnp.zeros(2, jnp.int32))
