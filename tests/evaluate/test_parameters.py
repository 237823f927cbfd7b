"""Parameter counts by group and policy, and how parameters are stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.evaluate.parameters import (
    count_parameters,
    parameter_group,
    stored_parameters,
    trained_by_policy,
)
from tests.train.toy import SHAPES, TRAINABLE, make_task


@pytest.mark.parametrize(
    "name, group",
    [
        ("blocks/loop/gate", "loop"),
        ("blocks/ff/up/kernel", "backbone"),
        ("graft/past_action/encoder/kernel", "encoders"),
        ("graft/decoder/out/kernel", "decoder"),
        ("graft/future_proprio_decoder/out/kernel", "decoder"),
        ("vae/decoder/conv_in/kernel", "vae"),
        ("encoder/conv_in/kernel", "vae"),
        ("norm_out/linear/kernel", "backbone"),
    ],
)
def test_groups(name, group):
    assert parameter_group(name) == group


def test_what_trains_is_float32_and_the_rest_as_stored():
    stored = stored_parameters(make_task())
    assert {name: leaf.shape for name, leaf in stored.items()} == SHAPES
    assert stored["hidden/bias"].dtype == jnp.float32  # trains, though made in bfloat16
    assert stored["hidden/kernel"].dtype == np.float16  # frozen, in no file
    bfloat = dataclasses.replace(make_task(), frozen_dtype=jnp.dtype(jnp.bfloat16))
    assert stored_parameters(bfloat)["hidden/kernel"].dtype == jnp.bfloat16
    files = {"hidden": {"kernel": np.zeros(SHAPES["hidden/kernel"], np.float32)}}
    filed = dataclasses.replace(make_task(), pretrained=lambda: files)
    assert stored_parameters(filed)["hidden/kernel"].dtype == np.float32


def test_counts_and_bytes():
    rows = count_parameters(stored_parameters(make_task()), TRAINABLE)
    frozen, trained = 8 * 32, 32 + 32 * 4 + 4
    assert rows == [
        {"group": "backbone", "trains": False, "count": frozen, "bytes": 2 * frozen},
        {"group": "backbone", "trains": True, "count": trained, "bytes": 16 * trained},
    ]


def test_policies():
    names = {
        "blocks/loop/gate": (2, 3),
        "graft/decoder/bias": (7,),
        "norm_out/bias": (5,),
        "vae/bias": (9,),
    }
    stored = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in names.items()}
    policies = {"full": ("^blocks/loop/", "^graft/"), "half": ("^graft/", "^norm_out/")}
    assert trained_by_policy(stored, policies) == {
        "full": {"loop": 6, "decoder": 7},
        "half": {"decoder": 7, "backbone": 5},
    }
