"""Cells that stop: the rules against closed forms, a thresholded loop against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roam_jax.model import halting
from roam_jax.model.loop_options import check_threshold
from roam_jax.model.loop_rows import uniform_halt
from tests.model import loop_reference
from tests.model.test_looped import STREAMS, apply, make_streams
from tests.model.test_looped_options import looped, params_for


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_at_first_every_round_is_as_likely_the_last(rounds):
    chance = 1 / (1 + np.exp(-np.float64(uniform_halt(rounds))))
    chance[-1] = 1
    stops = chance * np.cumprod(np.append(1, 1 - chance[:-1]))
    np.testing.assert_allclose(stops, np.full(rounds, 1 / rounds), rtol=1e-6)


def test_the_rest_of_a_mass_stops_at_the_threshold():
    running, chance = jnp.array([1.0, 0.5, 0.4, 0.0]), jnp.array([0.25, 0.5, 0.25, 0.9])
    shape = lambda x: x.reshape(1, -1, 1)  # noqa: E731

    def left(threshold):
        return halting.mass_left(shape(running), shape(chance), threshold=threshold).ravel()

    np.testing.assert_allclose(left(None), [0.75, 0.25, 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(left(0.75), [0.75, 0, 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(left(0.7), [0.75, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(left(1.0), [0.75, 0.25, 0.3, 0], rtol=1e-6)


def test_cells_that_run_come_first_in_the_smallest_bucket():
    assert halting.bucket_sizes(120) == (120, 60, 30, 15, 0)
    assert halting.bucket_sizes(5) == (5, 3, 2, 1, 0)
    assert halting.bucket_sizes(1) == (1, 0)
    runs = jnp.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
    sizes = halting.bucket_sizes(5)
    assert sizes[int(halting.choose_bucket(runs, sizes))] == 2
    np.testing.assert_array_equal(halting.running_first(runs, 2), [[1, 3], [4, 0]])
    for count in range(6):
        runs = jnp.arange(5)[None] < count
        chosen = sizes[int(halting.choose_bucket(runs, sizes))]
        assert chosen == min(size for size in sizes if size >= count)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("gate", ["identity", "sigmoid"])
def test_stopped_cells_never_change_again(gate, threshold):
    """Against torch, where all cells are computed and masked."""
    fields = {"halting": "learned", "reinject": "scalar"}
    params, streams = params_for(**fields), make_streams()
    out, info = apply(
        looped(gate=gate, **fields), params, streams, rounds=4, threshold=threshold, collect=True
    )
    values, states, running = loop_reference.loop(
        loop_reference.tensors(params),
        loop_reference.tensors(streams),
        gate=gate,
        rounds=4,
        threshold=threshold,
    )
    for name in STREAMS:
        np.testing.assert_allclose(out[name], values[name].detach(), rtol=2e-5, atol=2e-5)
        for r in range(4):
            np.testing.assert_allclose(
                info["states"][name][r], states[r][name].detach(), rtol=2e-5, atol=2e-5
            )
        shares = [share[name].mean().item() for share in running]
        np.testing.assert_allclose(info["running"][name], shares, rtol=1e-6)
        stopped = running[-1][name].numpy()[..., 0] == 0
        if threshold < 1:
            assert stopped.any()
        np.testing.assert_array_equal(
            np.asarray(info["states"][name][3])[stopped],
            np.asarray(info["states"][name][2])[stopped],
        )


def test_a_round_without_running_cells_is_not_computed():
    calls = []

    def call(block, streams, this):
        jax.debug.callback(lambda index: calls.append(int(index)), this.index)
        return block(streams)

    params = params_for(halting="learned")
    params["loop"]["halt"] = np.float32([-9, 9, 0, 0])
    params["loop"]["halt_token"] *= 0
    module = looped(halting="learned").clone(call=call)
    out, info = apply(module, params, make_streams(), rounds=4, threshold=0.9)
    jax.effects_barrier()
    assert sorted(calls) == [0, 1]
    expected, _ = apply(looped(halting="learned"), params, make_streams(), rounds=2)
    for name in STREAMS:
        np.testing.assert_array_equal(info["running"][name], [1, 1, 0, 0])
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5])
def test_thresholds_out_of_range_are_refused(threshold):
    message = f"eval.exit_threshold = {threshold}: expected a number above 0 and at most 1"
    with pytest.raises(ValueError, match=message):
        check_threshold(threshold, halting="learned")


def test_a_threshold_without_halting_is_refused():
    check_threshold(None, halting="none")
    with pytest.raises(ValueError, match=r"eval.exit_threshold = 0.5 with loop.halting = 'none'"):
        looped().apply({"params": params_for()}, make_streams(), rounds=2, threshold=0.5)
