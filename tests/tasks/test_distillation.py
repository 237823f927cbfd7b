"""Self-distillation: which exit, how much of the data, what is added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.tasks.distillation import blend, mix, student_exit


def test_exits_are_uniform_over_the_rounds_before_the_last():
    keys = jax.random.split(jax.random.key(0), 6000)
    exits = np.asarray(jax.jit(jax.vmap(lambda key: student_exit(key, 4)))(keys))
    found, counts = np.unique(exits, return_counts=True)
    np.testing.assert_array_equal(found, [1, 2, 3])
    np.testing.assert_allclose(counts / 6000, 1 / 3, atol=0.02)
    assert int(student_exit(keys[0], 2)) == 1
    with pytest.raises(ValueError, match="rounds = 1: expected at least 2"):
        student_exit(keys[0], 1)


def test_the_share_of_the_data_falls_to_nothing():
    found = [float(mix(step, 200)) for step in (0, 50, 100, 199, 200, 300)]
    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.005, 0, 0], atol=1e-6)
    assert float(mix(None, 200)) == 1


def test_parts_are_blended_one_by_one():
    data, distance = ({"a": jnp.array(x), "b": jnp.array(y)} for x, y in ((1.0, 4.0), (3.0, 0.0)))
    found = blend(data, distance, share=jnp.array(0.25))
    assert found == {"a": 0.25 * 1 + 0.75 * 3, "b": 1.0}
