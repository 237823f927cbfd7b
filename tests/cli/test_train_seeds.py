"""The options of `train.py --seeds`."""

import argparse

import pytest

from roam_jax.cli.arguments import seeds_list
from roam_jax.cli.train_seeds import set_first_seed
from tests.train import toy


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0:3", (0, 1, 2)),
        ("7", (7,)),
        ("0,3,5", (0, 3, 5)),
        ("4:6,9,1", (4, 5, 9, 1)),
        ("4294967295", (2**32 - 1,)),
    ],
)
def test_seeds_as_they_are_typed(text, seeds):
    assert seeds_list(text) == seeds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8:0", "8:0 has none"),
        ("3:3", "3:3 has none"),
        ("a", "expected seeds such as"),
        ("", "expected seeds such as"),
        ("-1", "expected seeds such as"),
        ("-2:2", "expected seeds such as"),
        ("0:", "expected seeds such as"),
        ("0,", "expected seeds such as"),
        ("1.5", "expected seeds such as"),
        ("0,1,0", "seed 0 is there twice"),
        ("0:4,2:3", "seed 2 is there twice"),
        ("0:99999999999", "each below 2"),
        ("0:2000000000", "at most 4,096 of them; these are 2,000,000,000 or more"),
        ("0:4096,5000", "at most 4,096 of them; these are 4,097 or more"),
    ],
)
def test_seeds_that_are_none(text, why):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}': expected seeds.*") as error:
        seeds_list(text)
    assert why in str(error.value)


def options(seeds=None, seeds_at_once=None):
    return argparse.Namespace(seeds=seeds, seeds_at_once=seeds_at_once)


def test_the_first_seed_builds_the_experiment():
    config = toy.make_config()
    set_first_seed(config, options(), ["--config.seed=4"])
    assert config.seed == 3
    set_first_seed(config, options((5, 6)), ["--config.optim.lr=1"])
    assert config.seed == 5


def test_options_that_contradict_each_other():
    config = toy.make_config()
    with pytest.raises(ValueError, match="--seeds_at_once 2: expected --seeds with it"):
        set_first_seed(config, options(seeds_at_once=2), [])
    with pytest.raises(ValueError, match="--config.seed=4 with --seeds, which sets it"):
        set_first_seed(config, options((5,)), ["--config.seed=4"])
