"""The account of temporaries against sums by hand."""

import jax
import jax.numpy as jnp
import pytest

from roam_jax.budget.liveness import peak_bytes
from roam_jax.budget.program import read_program

SIDE = 64
ARRAY = 4 * SIDE**2
SQUARE = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def peak(function, *args, **options):
    return peak_bytes(read_program(jax.make_jaxpr(function)(*args)), **options)


def test_what_is_computed_in_passing_has_no_buffer():
    def chain(x):
        return jnp.sum(jnp.exp(jnp.tanh(x) * 2 + 1))

    assert peak(chain, SQUARE) == 4  # the sum alone


def test_products_live_until_they_are_read():
    def two(x):
        first = x @ x
        second = first @ x
        return second @ x  # the first is dead by now

    assert peak(two, SQUARE) == 2 * ARRAY


def test_a_value_that_is_read_late_in_passing_stays():
    def skip(x):
        first = x @ x
        later = jnp.tanh(first)  # computed where it is read: keeps `first`
        second = x @ x
        third = second @ x
        return third + later

    # Before the sum: first, and second with third; then first, third and the result.
    assert peak(skip, SQUARE) == 3 * ARRAY


def test_names_of_a_buffer_cost_nothing():
    def renamed(x):
        made = x @ x
        return (made.reshape(-1, 2).reshape(SIDE, SIDE).T @ x).sum()

    assert peak(renamed, SQUARE) == 2 * ARRAY


def test_calls_are_written_out():
    inner = jax.jit(lambda x: jnp.tanh(x) + 1)
    assert peak(lambda x: jnp.sum(inner(x)), SQUARE) == 4


@pytest.mark.parametrize("length", [3, 10])
def test_a_loop_keeps_what_its_backward_pass_reads(length):
    def loss(weight, x):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ weight), None))
        return jnp.sum(jax.lax.scan(body, x, None, length=length)[0])

    def gradient(weight, x):
        return jax.grad(loss)(weight, x)

    found = peak(gradient, SQUARE, SQUARE)
    # One state a round, and a few arrays of one round.
    assert length * ARRAY < found <= (length + 7) * ARRAY


def test_a_stacked_result_is_written_in_place():
    def stack(x):
        return jax.lax.scan(lambda carry, _: (carry, jnp.tanh(carry)), x, None, length=5)[1]

    assert peak(stack, SQUARE) == pytest.approx(5 * ARRAY, abs=ARRAY)


def test_sizes_may_be_those_of_one_device():
    assert peak(lambda x: (x @ x) @ x, SQUARE, size_of=lambda shape, itemsize: 1) == 2


def test_of_a_branch_the_largest_counts():
    def branch(x):
        wide = lambda x: ((x @ x) @ x) @ (x @ x)  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, wide, lambda x: x, x)

    narrow = peak(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x + 1, lambda x: x, x), SQUARE)
    assert peak(branch, SQUARE) >= narrow + ARRAY
