"""Further cameras and the goal: regions whose cells are the backbone's own patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.topology import CanvasTopology, Connection
from roam_jax.cogvideox.embedding import PatchEmbed
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import (
    BACKBONE_REGIONS,
    NewRegions,
    camera_regions,
    graft_layout,
    graft_topology,
    latent_frames,
    view_regions,
)
from tests.cogvideox.diffusers_models import relative_error
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    CONFIG,
    LATENT,
    TIME,
    VIEWS,
    backbone_output,
    make_graft,
    make_inputs,
    make_params,
    run,
)


def test_layout_of_views():
    layout = make_graft(regions={**ALL_REGIONS, **VIEWS}).layout
    names = ["observed_side", "future_side", "observed_wrist", "future_wrist", "goal"]
    assert list(layout.regions)[-5:] == names
    assert [layout.region_numel(name) for name in names] == [12, 12, 12, 12, 6]
    boxes = [layout.region_spec(name).bounds for name in names]
    top = boxes[0][2]
    assert boxes == [
        (0, 2, top, top + 2, 0, 3), (2, 4, top, top + 2, 0, 3),
        (0, 2, top + 2, top + 4, 0, 3), (2, 4, top + 2, top + 4, 0, 3),
        (0, 1, top + 4, top + 6, 0, 3),
    ]  # fmt: skip
    assert [layout.region_spec(name).is_output for name in names] == [False, True] * 2 + [False]
    weights = layout.loss_weight_mask()
    assert (weights[layout.region_indices("future_wrist")] == 0.5).all()
    assert camera_regions(layout) == {"side": tuple(names[:2]), "wrist": tuple(names[2:4])}
    assert view_regions(layout) == [tuple(names[:2]), tuple(names[2:4]), ("goal",)]
    frames = np.concatenate([np.repeat([0, 1, 2, 3], 6)] * 2 + [np.zeros(6, int)])
    np.testing.assert_array_equal(latent_frames(layout, names), frames)
    np.testing.assert_array_equal(latent_frames(layout)[-54:], frames)


def test_without_a_weight_cameras_are_seen_and_not_predicted():
    layout = make_graft(regions={"cameras": ("side",)}).layout
    assert list(layout.regions)[-1:] == ["observed_side"] and "goal" not in layout.regions
    assert camera_regions(layout) == {"side": ("observed_side",)}
    vectors = make_graft(regions=ALL_REGIONS).layout
    assert camera_regions(vectors) == {} and view_regions(vectors) == []


def test_nothing_of_the_backbone_reads_views_by_default():
    layout = make_graft(regions={**ALL_REGIONS, **VIEWS}).layout
    table, _ = graft_topology(layout).segment_table(layout)
    mask = table.mask()
    assert mask[:29, :29].all() and not mask[:29, 29:].any() and mask[29:].all()


def test_cells_are_the_backbones_own_patches_and_one_vector():
    """Attention switched off and gates closed, what leaves the blocks is what entered them."""
    views = {"cameras": ("side",), "goal": True, "camera_weight": 1.0}
    model = make_graft(regions=views)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    closed = {**params["blocks"]["loop"], "gate": params["blocks"]["loop"]["gate"] - 1}
    params = {**params, "blocks": {**params["blocks"], "loop": closed}}

    class Cells(GraftedTransformer):
        """Gives the new cells that leave the blocks instead of what is read off them."""

        def _cameras(self, cells, temb, shape, frames):
            return dict(cells)

    model = Cells(model.config, model.graft_config, model.layout, model.topology)
    found, _ = run(model, params, inputs)

    def embed(*parts):
        video = jnp.concatenate([inputs["data"][part] for part in parts], axis=1)
        return PatchEmbed(CONFIG).apply({"params": params["patch_embed"]}, video, inputs["text"])[1]

    side, goal = embed("observed_side", "future_side"), embed("goal")
    expected = {"observed_side": side[:, :12], "future_side": side[:, 12:], "goal": goal}
    for name, patches in expected.items():
        modality = params["graft"][name].pop("modality")
        assert not params["graft"][name] and np.abs(modality).max() > 0.1
        np.testing.assert_allclose(found[name], patches + modality, rtol=1e-5, atol=1e-5)


def test_a_camera_alone_is_what_the_backbone_makes_of_it():
    """A camera that reads itself and the text, without its vector, is a first camera."""
    views = {"cameras": ("side",), "camera_weight": 1.0}
    model = make_graft(decoder="pooled", regions=views)
    names = ("observed_side", "future_side")
    edges = [Connection(s, d) for s in BACKBONE_REGIONS for d in BACKBONE_REGIONS]
    edges += [Connection(s, d) for s in names for d in (*names, "text")]
    # The text reads the camera in place of the first video.
    edges = [e for e in edges if (e.src, e.dst) != ("text", "visual")]
    edges += [Connection("text", name) for name in names]
    model = GraftedTransformer(
        model.config, model.graft_config, model.layout, CanvasTopology(tuple(edges))
    )
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    for name in names:
        params["graft"][name]["modality"] = 0 * params["graft"][name]["modality"]
    for timesteps in (inputs["timesteps"], jnp.array([[0, 0, 999, 999], [3, 7, 250, 260]])):
        outputs, _ = run(model, params, {**inputs, "timesteps": timesteps})
        video = jnp.concatenate([inputs["data"][name] for name in names], axis=1)
        alone = backbone_output(params, {**inputs, "latents": video, "timesteps": timesteps})
        found = outputs["camera_velocity"][:, 0]
        assert relative_error(found, alone[:, TIME.t_current :]) <= 2e-6


@pytest.mark.parametrize("decoder", ["tokens", "tokens_diffused"])
def test_views_change_actions_and_each_other(decoder):
    model = make_graft(decoder=decoder, regions=VIEWS)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    apply = jax.jit(lambda x: model.apply({"params": params}, **x, rounds=1)[0])
    base = apply(inputs)
    for name in ("observed_side", "future_wrist", "goal"):
        changed = {**inputs, "data": {**inputs["data"], name: -inputs["data"][name]}}
        found = apply(changed)
        for output in ("actions", "camera_velocity"):
            assert np.abs(found[output] - base[output]).max() > 1e-5, (name, output)
        np.testing.assert_array_equal(found["velocity"], base["velocity"])


def test_equal_timesteps_of_all_frames_reproduce_one_a_row():
    model = make_graft(regions=VIEWS)
    inputs = make_inputs(model)
    params = make_params(model, inputs)
    expected, _ = run(model, params, inputs, rounds=2)
    frames = jnp.tile(inputs["timesteps"][:, None], (1, TIME.latents))
    found, _ = run(model, params, {**inputs, "timesteps": frames}, rounds=2)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("decoder", ["tokens", "tokens_diffused", "pooled", "per_frame"])
def test_other_sizes_of_actions_and_states(decoder):
    model = make_graft(decoder=decoder, regions=ALL_REGIONS, action_dim=5, proprio_dim=9)
    inputs = make_inputs(model)
    init = lambda rng: model.init(rng, **inputs, rounds=1)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    outputs, _ = jax.eval_shape(lambda p: model.apply(p, **inputs, rounds=1), shapes)
    assert outputs["actions"].shape == (2, 1 if decoder == "pooled" else TIME.chunk, 5)
    assert outputs["proprio"].shape == (2, TIME.latents - TIME.t_current, 9)
    encoder = shapes["params"]["graft"]["observed_proprio"]["encoder"]["kernel"]
    assert encoder.shape == (9, CONFIG.width)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"cameras": ("proprio",)}, "data.cameras has 'proprio' beside the first: expected each"),
        ({"cameras": ("action",)}, "data.cameras has 'action'"),
        ({"cameras": ("reward_decoder",)}, "data.cameras has 'reward_decoder'"),
        ({"cameras": ("side", "side")}, "data.cameras has 'side' beside the first"),
        ({"cameras": ("left/rgb",)}, "data.cameras has 'left/rgb'.*letters, digits"),
        ({"camera_weight": 0.5}, "canvas.camera_weight = 0.5 without a region"),
    ],
)
def test_views_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_graft(regions=values)


def test_latents_that_do_not_fit_a_view_are_refused():
    model = make_graft(regions=VIEWS)
    inputs = make_inputs(model)

    def init(data):
        return jax.eval_shape(
            lambda rng: model.init(rng, **{**inputs, "data": data}, rounds=1), jax.random.key(0)
        )

    short = jnp.zeros((2, 1, *LATENT))
    with pytest.raises(ValueError, match=r"'observed_side' have shape \(2, 1, .*expected 2 frames"):
        init({**inputs["data"], "observed_side": short})
    with pytest.raises(ValueError, match="expected it for .*'goal'"):
        init({name: x for name, x in inputs["data"].items() if name != "goal"})


def test_a_full_size_frame_has_its_cells():
    """480 x 640 pixels: 30 x 40 cells a frame of each view."""
    layout = graft_layout(
        time=TIME, rows=30, columns=40, width=1920, text_length=226,
        new=NewRegions(cameras=("side", "wrist"), goal=True, camera_weight=1.0),
    )  # fmt: skip
    cells = {name: layout.region_numel(name) for name in layout.regions}
    assert cells["visual"] == cells["observed_side"] + cells["future_side"] == 4 * 1200
    assert cells["goal"] == 1200
