"""Parameters of the graft at 2B, by closed forms; nothing is allocated."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import (
    NewRegions,
    graft_layout,
    graft_topology,
    view_regions,
)
from roam_jax.cogvideox.graft_config import CELL_DECODERS, GraftConfig, trainable_patterns
from roam_jax.contracts import TimeSpec
from tests.cogvideox.graft_models import (
    ALL_REGIONS,
    VIEWS,
)


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
    if regions and "proprio" in regions:
        data |= {"observed_proprio": jnp.zeros((1, 2, 7)), "observed_reward": jnp.zeros((1, 2, 1))}
    for name in (name for view in view_regions(layout) for name in view):
        data[name] = jnp.zeros((1, layout.region_spec(name).shape[0], 16, 32, 32))
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


def test_a_view_adds_one_vector_a_region_at_2b():
    bare, views = (tree_shapes(TransformerConfig(), regions=r) for r in (None, VIEWS))
    assert {name: views[name] for name in views.keys() - bare.keys()} == {
        f"graft/{name}/modality": 1920
        for name in ("observed_side", "future_side", "observed_wrist", "future_wrist", "goal")
    }
    assert all(views[name] == size for name, size in bare.items())
