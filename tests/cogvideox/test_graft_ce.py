"""The graft with sigmoid gates against canvas-engineering's, on diffusers' model.

Its own code loops the blocks and decodes the action; ours gets the same weights. Compared are the
velocity, the action and the gradients of everything that the graft trains.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.graft import GraftedTransformer
from roam_jax.cogvideox.graft_canvas import NewRegions, graft_layout, graft_topology
from roam_jax.cogvideox.graft_config import GraftConfig
from roam_jax.contracts import TimeSpec
from tests.cogvideox.diffusers_models import (
    our_params,
    random_transformer,
    relative_error,
    state,
)

PARITY = 2e-6
TRAINED = 4
TIMESTEPS = (0, 437, 999)


def sizes(heads, head_dim, layers, *, time, text, latents):
    """A small model, and the (frames, height, width) of its latents."""
    config = TransformerConfig(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        time_embed_dim=time,
        text_embed_dim=24,
        num_layers=layers,
        max_text_seq_length=text,
        sample_width=10,
        sample_height=6,
        sample_frames=9,
    )
    return config, latents


# At these widths torch's float32 exp is correctly rounded for every frequency of the time
# embedding, so that both sides start from the same numbers.
SIZES = {
    "width 48": sizes(3, 16, 3, time=32, text=5, latents=(3, 6, 10)),
    "width 80": sizes(2, 40, 5, time=48, text=7, latents=(2, 2, 6)),
    "width 112": sizes(7, 16, 2, time=64, text=4, latents=(5, 8, 4)),
}
CASES = [("width 48", 1), ("width 80", 2), ("width 112", 3), ("width 48", 4), ("width 80", 4)]


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(name):
    """Latents, text and timesteps; and what velocity and action are multiplied by."""
    config, latents = SIZES[name]
    size = len(TIMESTEPS)
    shape = size, latents[0], config.in_channels, *latents[1:]
    text = normal(size, config.max_text_seq_length, config.text_embed_dim, seed=1)
    values = normal(*shape, seed=0), text, np.array(TIMESTEPS)
    return values, (normal(*shape, seed=2), normal(size, 7, seed=3))


class Theirs:
    """A diffusers model grafted by canvas-engineering, its loop parameters random."""

    def __init__(self, name):
        torch = pytest.importorskip("torch")
        graft = pytest.importorskip("canvas_engineering.graft")
        self.torch = torch
        self.model = random_transformer(SIZES[name][0], seed=list(SIZES).index(name))
        self.backbone = {key: value.copy() for key, value in state(self.model).items()}
        self.blocks, self.head = graft.graft_looped_blocks(self.model, max_loops=TRAINED)
        with torch.no_grad():
            for block in self.blocks:
                block.loop_emb.normal_(std=0.3)
                block.loop_emb_enc.normal_(std=0.3)
                block.loop_gate.normal_()

    def loop(self, read):
        """`read` of every block's parameters, under our names."""
        names = {"gate": "loop_gate", "text": "loop_emb_enc", "video": "loop_emb"}
        rows = {
            ours: np.stack([read(getattr(block, theirs)).numpy() for block in self.blocks])
            for ours, theirs in names.items()
        }
        return {**rows, "gate": rows["gate"][..., 0]}

    def decoder(self, read):
        """`read` of the action head's parameters, as our tree."""
        layers = {"hidden": self.head.net[0], "out": self.head.net[2]}
        return {
            name: {"kernel": read(layer.weight).numpy().T, "bias": read(layer.bias).numpy()}
            for name, layer in layers.items()
        }

    def run(self, values, cotangents, rounds):
        """(velocity, action), and the gradients of their product with `cotangents`."""
        torch = self.torch
        self.model.zero_grad(), self.head.zero_grad()
        for block in self.blocks:
            block.set_loops(rounds)
        velocity = self.model(*map(torch.tensor, values)).sample
        outputs = velocity, self.head(velocity)
        sum(
            (y * torch.tensor(c)).sum() for y, c in zip(outputs, cotangents, strict=True)
        ).backward()
        gradients = {
            "loop": self.loop(lambda parameter: parameter.grad),
            "decoder": self.decoder(lambda parameter: parameter.grad),
        }
        return [y.detach().numpy() for y in outputs], gradients


@functools.cache
def theirs(name):
    return Theirs(name)


def our_graft(name):
    """Our model of the same sizes, with the published gate and decoder and no new cells."""
    config, (frames, height, width) = SIZES[name]
    layout = graft_layout(
        time=TimeSpec(frames=4 * frames - 3, t_current=1),
        rows=height // 2,
        columns=width // 2,
        width=config.width,
        text_length=config.max_text_seq_length,
        new=NewRegions(actions=False),
    )
    return GraftedTransformer(
        config=config,
        graft_config=GraftConfig(rounds=TRAINED, gate="sigmoid", decoder="pooled"),
        layout=layout,
        topology=graft_topology(layout),
    )


def our_run(name, trained, backbone, values, cotangents, rounds):
    module = our_graft(name)

    @jax.jit
    def value_and_gradients(trained, backbone, values, cotangents):
        def loss(trained):
            blocks = {**backbone["blocks"], "loop": trained["loop"]}
            params = {**backbone, "blocks": blocks, "graft": {"decoder": trained["decoder"]}}
            outputs, _ = module.apply({"params": params}, *values, {}, rounds=rounds)
            pair = outputs["velocity"], outputs["actions"][:, 0]
            return sum(jnp.sum(y * c) for y, c in zip(pair, cotangents, strict=True)), pair

        gradients, pair = jax.grad(loss, has_aux=True)(trained)
        return pair, gradients

    return value_and_gradients(trained, backbone, values, cotangents)


@pytest.mark.parametrize(("name", "rounds"), CASES)
def test_outputs_and_gradients_equal_canvas_engineering(name, rounds):
    reference = theirs(name)
    values, cotangents = inputs(name)
    expected, expected_gradients = reference.run(values, cotangents, rounds)
    trained = {
        "loop": reference.loop(lambda parameter: parameter.detach()),
        "decoder": reference.decoder(lambda parameter: parameter.detach()),
    }
    backbone = our_params(SIZES[name][0], reference.backbone)
    outputs, gradients = our_run(name, trained, backbone, values, cotangents, rounds)
    for ours, wanted in zip(outputs, expected, strict=True):
        assert relative_error(ours, wanted) <= PARITY
    errors = jax.tree.map(relative_error, gradients, expected_gradients)
    assert max(jax.tree.leaves(errors)) <= PARITY, errors
    for rows in gradients["loop"].values():
        assert not np.any(rows[:, rounds:])  # rounds that did not run


def test_loop_parameters_are_counted_as_canvas_engineering_counts_them():
    counted = sum(block.trainable_params() for block in theirs("width 48").blocks)
    assert counted == 3 * TRAINED * (2 * 48 + 1)  # blocks x rounds x (two embeddings, one gate)
