"""Specs of worlds: trees, JSON, and what differs."""

import json

import pytest

from roam_jax.morphology import ROOT, Joint, Morphology, VectorStream, WorldSpec


def joint(name: str, parent: int, **changes) -> Joint:
    return Joint(
        **{"name": name, "parent": parent, "kind": "hinge", "low": -1.0, "high": 1.0, "length": 0.2}
        | changes
    )


def spec(*joints: Joint) -> WorldSpec:
    streams = (
        VectorStream("joints", ("position", "velocity", "lag"), (1.0, 2.0, 0.1), len(joints)),
    )
    return WorldSpec("reach", Morphology("body", joints), streams, period=0.1, steps=40)


BRANCHED = (joint("a", ROOT), joint("b", 0), joint("c", 0), joint("d", 2))


def test_depths_and_edges_of_a_branched_tree():
    body = Morphology("body", BRANCHED)
    assert body.depths == (0, 1, 1, 2)
    assert body.edges == ((0, 1), (0, 2), (2, 3))


def test_json_brings_back_the_same_spec():
    assert WorldSpec.from_json(spec(*BRANCHED).to_json()) == spec(*BRANCHED)


def test_another_tree_is_named():
    other = spec(*BRANCHED[:3], joint("d", 1))
    (found,) = spec(*BRANCHED).differences(other)
    assert found == "tree of parents: here (-1, 0, 0, 2), there (-1, 0, 0, 1)"


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        ((), "expected some"),
        ((joint("a", ROOT), joint("a", 0)), "each name once"),
        ((joint("a", 0),), "has parent 0, expected -1"),
        ((joint("a", ROOT, kind="ball"),), "ball"),
        ((joint("a", ROOT, low=1.0),), "low < high"),
    ],
)
def test_what_is_no_body(joints, message):
    with pytest.raises(ValueError, match=message):
        Morphology("body", joints)


def test_json_of_something_else_is_refused():
    with pytest.raises(ValueError, match="world spec"):
        WorldSpec.from_json(json.dumps({"environment": "reach"}))
