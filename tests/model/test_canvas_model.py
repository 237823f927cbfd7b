"""The canvas model against a forward pass written out in numpy, part by part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.canvas.layout import CanvasLayout
from roam_jax.model.cells import CLEAN, CellRegion, scalar_features
from roam_jax.model.embed import cell_positions
from tests.tasks.scenes import CELLS, random_like, small_batch, small_model, small_module


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def layer_norm(params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return normed * params["scale"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(params, queries, keys, mask, heads=2):
    def split(name, x):
        x = linear(params[name], x)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split("to_q", queries), split("to_k", keys), split("to_v", keys)
    scores = np.where(mask, q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    read = (weights @ v).transpose(0, 2, 1, 3).reshape(queries.shape)
    return linear(params["to_out"], read)


def block(params, x, mask):
    normed = layer_norm(params["norm1"], x)
    x = x + attention(params["attn"], normed, normed, mask)
    hidden = gelu(linear(params["ff"]["up"], layer_norm(params["norm2"], x)))
    return x + linear(params["ff"]["down"], hidden)


def level_code(timestep):
    frequencies = np.exp(-np.log(10_000.0) * np.arange(128) / 128)
    angles = (timestep + 1) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)])


def embed(params, noised, module):
    """Region by region; the clean level has the code of 0."""
    parts = []
    for region in module.regions:
        own = params["cells"][region.name]
        here = own["modality"] + cell_positions(module.layout, region.name)
        if region.name not in noised.data:
            cells = np.broadcast_to(own["query"], (4, *own["query"].shape))
        elif region.kind == "tokens":
            cells = own["encoder"]["embedding"][noised.data[region.name]]
        else:
            values = noised.data[region.name]
            if region.kind == "scalars":
                angles = values[..., None] * (2 * np.pi / 16 * 2.0 ** np.arange(8))
                values = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
            cells = linear(own["encoder"], values)
        if region.name in noised.timesteps:
            codes = np.stack([level_code(t) for t in noised.timesteps[region.name]])
            cells = cells + linear(own["noise_level"], codes)[:, None]
        parts.append(cells + here)
    return np.concatenate(parts, axis=1)


def loop(params, cells, module, rounds):
    """Gate sigmoid; each block in its rounds, or all blocks in each round."""
    places = np.concatenate([module.layout.region_indices(name) for name in module.layout.regions])
    mask = module.topology.to_attention_mask(module.layout)[np.ix_(places, places)] > 0
    stacked, rows = params["blocks"], params["blocks"]["loop"]
    blocks = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(module.depth)]

    def one_round(cells, row, gate, blocks):
        out = cells + row
        for own in blocks:
            out = block(own, out, mask)
        share = 1 / (1 + np.exp(-gate))
        return share * out + (1 - share) * cells

    if module.options.over == "stack":
        for r in range(rounds):
            cells = one_round(cells, rows["cells"][r], rows["gate"][r], blocks)
        return cells
    for i, own in enumerate(blocks):
        for r in range(rounds):
            cells = one_round(cells, rows["cells"][i, r], rows["gate"][i, r], [own])
    return cells


def decode(params, cells, module):
    ends = np.cumsum(list(CELLS.values()))
    own_cells = dict(zip(CELLS, np.split(cells, ends[:-1], axis=1), strict=True))
    found = {}
    for region in module.regions:
        if not region.objective:
            continue
        own, x = params["decoders"][region.name], own_cells[region.name]
        if region.decoder == "attention":
            x = layer_norm(own["norm"], x + attention(own, x, cells, True))
        if region.decoder != "linear":
            x = gelu(linear(own["hidden"], x))
        found[region.name] = linear(own["out"], x)
    return found


@functools.cache
def noised_batch():
    model = small_model(noised_fraction=0.5)
    return jax.jit(lambda key: model.draw(key, model.examples(small_batch())))(jax.random.key(3))


@pytest.mark.parametrize("over", ["block", "stack"])
def test_the_model_is_its_numpy_forward_pass(over):
    module = small_module(over=over)
    noised = noised_batch()
    assert {CLEAN} < {int(t) for steps in noised.timesteps.values() for t in steps}

    def init(rng):
        return module.init(rng, noised.data, noised.timesteps, batch=4, rounds=1)["params"]

    params = random_like(jax.eval_shape(init, jax.random.key(0)))
    values = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    apply = jax.jit(module.apply, static_argnames=("batch", "rounds", "method"))
    outputs, info = apply({"params": params}, noised.data, noised.timesteps, batch=4, rounds=2)
    before = embed(values, jax.tree.map(np.asarray, noised), module)
    after = loop(values, before, module, rounds=2)
    expected = decode(values, layer_norm(values["norm_out"], after), module)
    assert set(outputs) == set(expected) == {"film", "later", "gain", "price", "answer"}
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    shape = (1 if over == "stack" else 2, 2)
    assert {name: x.shape for name, x in info["cosine"].items()} == dict.fromkeys(CELLS, shape)


def test_an_untrained_model_predicts_0_and_classes_alike():
    model = small_model()
    noised = noised_batch()
    params = jax.jit(model.init)(jax.random.key(0))
    outputs, _ = jax.jit(functools.partial(model.predict, rounds=2))(params, noised)
    assert all((x == 0).all() for x in outputs.values())


def test_numbers_of_any_size_are_told_apart():
    x = jnp.linspace(-4, 4, 201)[None]
    features = np.asarray(scalar_features(x))[0]
    away = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert (away[~np.eye(201, dtype=bool)] > 0.25).all()


@pytest.mark.parametrize(
    "region, message",
    [
        (("sound", "audio", 3), "kind of region 'sound' = 'audio': expected one of patches"),
        (("pose", "vectors", 3, "diffusion"), "decoder of region 'pose' = '': expected one of"),
        (("pose", "vectors", 3, "diffusion", "mpl"), "did you mean 'mlp'"),
        (("pose", "vectors", 3, "guessing", "mlp"), "objective of region 'pose' = 'guessing'"),
        (("pose", "vectors", 3, "", "mlp"), "'pose' has the decoder 'mlp', but is not predicted"),
        (("pose", "vectors", 3, "classification", "mlp"), "tokens are classified, and nothing"),
        (("words", "tokens", 3, "diffusion", "mlp"), "tokens are classified, and nothing else"),
    ],
)
def test_regions_without_encoder_or_decoder_are_refused(region, message):
    with pytest.raises(ValueError, match=message):
        CellRegion(*region)


def test_data_of_other_regions_or_shapes_is_refused():
    module, noised = small_module(), noised_batch()

    def init(data, timesteps):
        jax.eval_shape(lambda: module.init(jax.random.key(0), data, timesteps, batch=4, rounds=1))

    with pytest.raises(ValueError, match=r"data of regions .*price.*: expected \["):
        init({**noised.data, "price": noised.targets["price"]}, noised.timesteps)
    with pytest.raises(ValueError, match=r"noise levels of regions \['film'\]: expected"):
        init(noised.data, {"film": noised.timesteps["film"]})
    with pytest.raises(ValueError, match=r"'pose' has shape \(4, 1, 2\): expected \(4, 1, 3\)"):
        init({**noised.data, "pose": noised.data["pose"][..., :2]}, noised.timesteps)


def test_a_model_of_other_regions_than_its_layout_is_refused():
    module = small_module()
    layout = CanvasLayout(1, 1, 2, 16, {"seen": (0, 1, 0, 1, 0, 2)})
    with pytest.raises(ValueError, match=r"regions \[.*\]: expected those of the layout"):
        jax.eval_shape(
            lambda: module.clone(layout=layout).init(jax.random.key(0), {}, {}, batch=1, rounds=1)
        )
