"""Hints at names that do not exist."""

import pytest

from roam_jax.spelling import did_you_mean, nearest

KNOWN = ("visual", "text", "future_action")


@pytest.mark.parametrize(
    ("name", "closest"), [("visaul", "visual"), ("text", "text"), ("past_action", "future_action")]
)
def test_the_nearest_name(name, closest):
    assert nearest(name, KNOWN) == closest
    assert nearest(name, []) is None


def test_the_hint_lists_all_names_where_none_is_close():
    assert did_you_mean("visaul", KNOWN) == "did you mean 'visual'?"
    assert did_you_mean("zzz", KNOWN) == "known: future_action, text, visual"
    assert did_you_mean("zzz", []) == "there is none"
