"""The 2B graft, traced and never allocated: where its parameters go, and their bytes."""

import jax
import pytest
from jax.sharding import PartitionSpec

from roam_jax.cli.arguments import load_config
from roam_jax.cogvideox.graft_config import trainable_patterns
from roam_jax.tasks.graft_task import SHARDING_RULES
from roam_jax.tasks.sketch import sketch
from roam_jax.train import names
from roam_jax.train.sharding import match_rules

FSDP = 8


@pytest.fixture(scope="module")
def shapes():
    task = sketch(load_config("configs/bridge_3loop.py")).task
    return names.flatten(jax.eval_shape(task.init, jax.random.key(0)))


def test_every_large_matrix_is_split_over_fsdp(shapes):
    specs = match_rules(
        SHARDING_RULES, names.unflatten(shapes), axis_sizes={"data": 1, "fsdp": FSDP}
    )
    specs = names.flatten(specs)
    assert specs["blocks/ff/up/kernel"] == PartitionSpec(None, None, "fsdp")
    assert specs["blocks/ff/down/kernel"] == PartitionSpec(None, "fsdp")
    assert specs["blocks/norm1/linear/kernel"] == PartitionSpec(None, None, "fsdp")
    assert specs["blocks/loop/gate"] == specs["blocks/norm1/norm/scale"] == PartitionSpec()
    whole = [n for n, spec in specs.items() if spec == PartitionSpec() and not n.startswith("vae/")]
    assert sum(shapes[name].size for name in whole) < 6e6


@pytest.mark.parametrize(
    "policy, trained", [("full", 345_690), ("half", 3_692_442), ("none", 11_683_482)]
)
def test_bytes_a_device(shapes, policy, trained):
    specs = names.flatten(
        match_rules(SHARDING_RULES, names.unflatten(shapes), axis_sizes={"data": 1, "fsdp": FSDP})
    )
    patterns = trainable_patterns(policy)
    backbone = {n: x for n, x in shapes.items() if not n.startswith(("graft/", "vae/"))}
    assert sum(x.size for n, x in backbone.items() if names.matches(n, patterns)) == trained
    total = 0
    for name, leaf in shapes.items():
        share = FSDP if "fsdp" in specs[name] else 1
        width = 12 if names.matches(name, patterns) else 2  # value and two moments, or bfloat16
        total += leaf.size * width / share
    # 1.69 B frozen parameters of 2 bytes over 8 devices, and a whole VAE on each.
    frozen = (1_693_783_872 / FSDP + 215_583_907) * 2
    assert frozen < total < frozen + 12 * trained + 50e6
