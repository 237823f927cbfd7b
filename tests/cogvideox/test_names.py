"""Names and layouts of tensors against torch's own, and the report on a misfit."""

import re

import numpy as np
import pytest

from roam_jax.cogvideox.config import TransformerConfig
from roam_jax.cogvideox.names import (
    TensorName,
    account,
    account_params,
    source_shapes,
    target_shapes,
    transformer_names,
)
from tests.cogvideox.diffusers_models import TINY


def test_2b_names_and_shapes_are_diffusers():
    """All 736 tensors of the real size, from a torch model without memory."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.CogVideoXTransformer3DModel().state_dict()
    ours = source_shapes(transformer_names(TransformerConfig()))
    assert ours == {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    assert len(ours) == 736


@pytest.mark.parametrize(
    "layout, shape, axes",
    [
        ("same", (5,), "a->a"),
        ("linear", (3, 2), "oi->io"),
        ("conv2d", (5, 4, 2, 3), "oihw->hwio"),
        ("conv3d", (5, 4, 1, 2, 3), "oidhw->dhwio"),
    ],
)
@pytest.mark.parametrize("stacked", [0, 3])
def test_layouts_go_both_ways(layout, shape, axes, stacked):
    source = "a.{layer}.w" if stacked else "a.w"
    name = TensorName(source, "a/w", shape, layout, stacked)
    rng = np.random.default_rng(0)
    tensors = {key: rng.standard_normal(shape) for key in name.keys}
    layers = [name.to_ours(tensor) for tensor in tensors.values()]
    for tensor, layer in zip(tensors.values(), layers, strict=True):
        np.testing.assert_array_equal(layer, np.einsum(axes, tensor))
    ours = np.stack(layers) if stacked else layers[0]
    assert ours.shape == name.target_shape
    back = name.to_theirs(ours)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)


def test_stacked_keys():
    name = TensorName("a.{layer}.w", "a/w", (2,), stacked=2)
    assert name.keys == ("a.0.w", "a.1.w")
    assert name.target_shape == (2, 2)


def test_one_error_lists_all_misfits():
    names = transformer_names(TINY)
    found = source_shapes(names)
    del found["proj_out.weight"], found["norm_final.bias"]
    found |= {"proj_out.wieght": (64, 48), "transformer_blocks.1.attn1.to_q.weight": (48, 47)}
    message = (
        "src: tensors do not fit the model. 2 missing: norm_final.bias, proj_out.weight; "
        "1 unexpected: proj_out.wieght (nearest missing: proj_out.weight); "
        "1 misshapen: transformer_blocks.1.attn1.to_q.weight has (48, 47), expected (48, 48)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        account(names, found, where="src")
    account(names, source_shapes(names), where="src")


def test_long_lists_are_counted():
    names = transformer_names(TINY)
    message = f"{len(names)} missing: .* and {len(names) - 20} more$"
    with pytest.raises(ValueError, match=message):
        account_params(names, {}, where="params")
    account_params(names, target_shapes(names), where="params")


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match=r"a: layout 'linear' of a tensor \(2,\)"):
        TensorName("a", "a", (2,), "linear")
    with pytest.raises(ValueError, match=r"a: {layer} and stacked = 3 disagree"):
        TensorName("a", "a", (2,), stacked=3)
