"""The graft: equal to its backbone at initialisation, counted exactly, blind to the future."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.segments import SegmentTable
from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.embedding import PatchEmbed, TimeEmbedding, condition
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import (
    NewRegions,
    graft_layout,
    graft_topology,
    latent_frames,
)
from roam_jax.cogvideox.graft_config import CELL_DECODERS, GraftConfig, trainable_patterns
from roam_jax.cogvideox.transformer import Block
from roam_jax.contracts import TimeSpec
from roam_jax.model.heads import CrossAttentionDecoder
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
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


@pytest.mark.parametrize(
    "rounds, scope", [(1, "round"), (2, "round"), (3, "round"), (4, "round"), (2, "token")]
)
def test_equals_the_backbone_at_initialisation_with_all_regions(rounds, scope):
    model = make_graft(regions=ALL_REGIONS, gate_scope=scope)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    assert relative(outputs["velocity"], backbone_output(params, inputs)) <= 1e-6
    assert outputs["actions"].shape == (2, TIME.chunk, 7)
    assert outputs["proprio"].shape == (2, TIME.latents - TIME.t_current, 7)
    assert outputs["reward"].shape == (2, TIME.latents - TIME.t_current, 1)


@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_the_backbone_bitwise_without_new_cells(rounds):
    model = make_graft(decoder="pooled")
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    outputs, _ = run(model, params, inputs, rounds=rounds)
    np.testing.assert_array_equal(outputs["velocity"], backbone_output(params, inputs))
    assert outputs["actions"].shape == (2, 1, 7)


def test_backbone_reading_new_cells_gives_the_equality_up_by_a_bounded_change():
    model = make_graft()
    inputs = make_inputs(model)
    params = make_params(model, inputs)
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
        outputs, _ = model.apply({"params": {**params, "blocks": blocks}}, **inputs, rounds=rounds)
        return jnp.sum(outputs["velocity"] ** 2)

    return jax.jit(jax.grad(loss))(params["blocks"]["loop"])


def test_gradients_of_the_loop_at_the_start_and_after_the_gates_moved():
    model = make_graft(rounds=3)
    inputs = make_inputs(model)
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
    model = make_graft(rounds=2)
    inputs = make_inputs(model, batch=1)
    params = make_params(model, inputs)
    exact = loop_gradients(model, params, inputs, 2)["gate"][1, 1]

    @jax.jit
    def outputs(shift):
        gate = params["blocks"]["loop"]["gate"].at[1, 1].add(shift)
        loop = {**params["blocks"]["loop"], "gate": gate}
        moved = {**params, "blocks": {**params["blocks"], "loop": loop}}
        return model.apply({"params": moved}, **inputs, rounds=2)[0]["velocity"]

    def value(shift):
        return np.sum(np.asarray(outputs(shift), np.float64) ** 2)

    assert abs((value(1e-2) - value(-1e-2)) / 2e-2 / exact - 1) < 2e-2


def test_sigmoid_gate_is_the_published_rule():
    """One round, gates at zero: halfway between the state and the block's output."""
    model, closed = make_graft(gate="sigmoid"), make_graft(gate="identity")
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    half = params["blocks"]["loop"]["gate"] - 0.5  # identity's first round then steps by 0.5
    same = {**params["blocks"], "loop": {**params["blocks"]["loop"], "gate": half}}
    ours, _ = run(model, params, inputs, rounds=1)
    expected, _ = run(closed, {**params, "blocks": same}, inputs)
    assert relative(ours["velocity"], expected["velocity"]) < 1e-6


def test_round_measures_have_their_closed_forms():
    model = make_graft(rounds=3)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    _, measures = run(model, params, inputs, rounds=3)
    for stream in ("text", "video"):
        gated, residual = measures["gated_step"][stream], measures["residual"][stream]
        assert gated.shape == (CONFIG.num_layers, 3)
        np.testing.assert_array_equal(gated[:, 1:], 0)  # identity gates are closed at first
        np.testing.assert_allclose(gated[:, 0], residual[:, 0], rtol=1e-6)
        assert (np.abs(measures["cosine"][stream]) <= 1 + 1e-6).all()


def tree_shapes(config, *, rounds=3, decoder="tokens", regions=None, **loop):
    cells = decoder in CELL_DECODERS
    layout = graft_layout(
        time=TimeSpec(frames=17, t_current=2), rows=16, columns=16, width=config.width,
        text_length=226, new=NewRegions(actions=cells, **(regions or {})),
    )  # fmt: skip
    model = GraftedTransformer(
        config=config,
        graft_config=GraftConfig(rounds=rounds, decoder=decoder, **loop),
        layout=layout,
        topology=graft_topology(layout),
    )
    data = {"past_action": jnp.zeros((1, 4, 7))} if cells else {}
    if decoder == "tokens_diffused":
        data["future_action"] = jnp.zeros((1, 12, 7))
    if regions:
        data |= {"observed_proprio": jnp.zeros((1, 2, 7)), "observed_reward": jnp.zeros((1, 2, 1))}
    shapes = jax.eval_shape(
        lambda rng: model.init(
            rng,
            jnp.zeros((1, 5, 16, 32, 32)),
            jnp.zeros((1, 226, 4096)),
            jnp.zeros(1, jnp.int32),
            data,
            action_timesteps=jnp.zeros(1, jnp.int32) if decoder == "tokens_diffused" else None,
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


def test_gates_by_token_at_2b():
    sizes = tree_shapes(TransformerConfig(), gate_scope="token")
    assert count(sizes, (r"^blocks/loop/",)) == 345_690 + 172_800


def dense(inputs, outputs) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize(
    "decoder, expected",
    [
        ("pooled", 199),
        ("per_frame", dense(16, 8) + dense(8, 28)),
        ("tokens", 2 * 1920 + dense(1920, 64) + dense(64, 7)),
        ("tokens_diffused", 2 * 1920 + dense(1920, 64) + dense(64, 7)),
        (
            "cross_attention",
            12 * 256  # queries
            + 2 * 1920 + dense(1920, 256)  # one block's activations
            + 4 * dense(256, 256) + dense(256, 1024) + dense(1024, 256)
            + 3 * 2 * 256 + dense(256, 7),
        ),
    ],
)  # fmt: skip
def test_decoders_have_their_closed_form_of_parameters_at_2b(decoder, expected):
    sizes = tree_shapes(TransformerConfig(), decoder=decoder)
    assert sum(n for name, n in sizes.items() if name.startswith("graft/decoder/")) == expected


def test_what_a_noise_level_and_a_further_block_cost_at_2b():
    def graft(*prefixes, **sizes):
        sizes = tree_shapes(TransformerConfig(), **sizes)
        return sum(n for name, n in sizes.items() if name.startswith(prefixes))

    level = graft("graft/future_action/noise_level/", decoder="tokens_diffused")
    assert level == dense(256, 1920) == 493_440
    counts = [
        graft("graft/", decoder="cross_attention", decoder_blocks=blocks)
        for blocks in ((-1,), (14, -1))
    ]
    assert counts[1] - counts[0] == 2 * 1920 + dense(1920, 256) == 495_616


def test_every_region_has_its_closed_form_of_parameters_at_2b():
    sizes = tree_shapes(TransformerConfig(), regions=ALL_REGIONS)
    width, found = 1920, {}
    for name, n in sizes.items():
        if name.startswith("graft/"):
            region = name.split("/")[1]
            found[region] = found.get(region, 0) + n
    assert found == {
        "past_action": dense(7, width) + width,
        "future_action": 12 * width + width,
        "observed_proprio": dense(7, width) + width,
        "future_proprio": 3 * width + width,
        "future_proprio_decoder": 2 * width + dense(width, 64) + dense(64, 7),
        "observed_reward": dense(1, width) + width,
        "future_reward": 3 * width + width,
        "future_reward_decoder": 2 * width + dense(width, 64) + dense(64, 1),
        "thought": 3 * 3 * width + width,
        "decoder": 127_239,
    }


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
    apart = SegmentTable(
        np.arange(13, dtype=np.int32), np.where(np.eye(13), 0, -np.inf).astype(np.float32)
    )
    params = block.init(jax.random.key(0), text, video, jnp.ones((1, 32)))["params"]
    embed = TimeEmbedding(CONFIG)
    weights = embed.init(jax.random.key(1), jnp.zeros(1))

    @jax.jit
    def apply(timesteps):
        temb, frames = condition(embed.bind(weights), timesteps, cells)
        return block.apply({"params": params}, text, video, temb, table=apart, frames=frames)

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

    assert relative(found["actions"], expected()) <= 1e-5


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
