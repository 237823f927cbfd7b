"""Seconds by hand."""

import jax
import jax.numpy as jnp
import pytest

from roam_jax.accelerators import by_name
from roam_jax.budget.collectives import Collective
from roam_jax.budget.program import read_program
from roam_jax.budget.roofline import ATTAINED, roofline

A100 = by_name("a100-40")


def line(function, *args, **options):
    return roofline(read_program(jax.make_jaxpr(function)(*args)), A100, **options)


def array(side, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((side, side), dtype)


@pytest.mark.parametrize(("dtype", "rate"), [(jnp.bfloat16, 312e12), (jnp.float32, 156e12)])
def test_a_large_product_is_bound_by_its_flops(dtype, rate):
    found = line(lambda x: x @ x, array(8192, dtype))
    assert found.flops == 2 * 8192**3
    assert found.products == pytest.approx(2 * 8192**3 / rate)
    assert found.memory == 0


def test_a_product_of_few_rows_is_bound_by_its_weights():
    row = jax.ShapeDtypeStruct((1, 8192), jnp.bfloat16)
    found = line(lambda x, w: x @ w, row, array(8192))
    assert found.products == 0
    assert found.memory == pytest.approx(2 * (8192**2 + 2 * 8192) / 1555e9)


def test_what_is_computed_in_passing_is_read_and_written_once():
    found = line(lambda x: jnp.exp(jnp.tanh(x) * 2), array(4096, jnp.float32))
    assert found.memory == pytest.approx(2 * 4 * 4096**2 / 1555e9)


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    once, often = line(lambda x: x @ x, array(8192)), line(looped, array(8192))
    assert often.products == pytest.approx(7 * once.products)


def test_work_that_is_shared_takes_its_share():
    whole, half = (line(lambda x: x @ x, array(8192), split=n) for n in (1, 2))
    assert half.products == whole.products / 2


def sent(across):
    return Collective("all-gather", ("fsdp",), 8, 10**9, 3, across, "")


def test_links_are_those_of_a_node_or_of_the_network():
    near, far = (
        line(lambda x: x @ x, array(8), sent=[sent(across)]).links["fsdp"]
        for across in (False, True)
    )
    assert near == pytest.approx(3 * 7e9 / 300e9)
    assert far == pytest.approx(3 * 7e9 / 25e9)


def test_between_the_roofline_and_what_is_expected():
    found = line(lambda x: x @ x, array(8192), sent=[sent(False)])
    assert found.fastest == max(found.compute, found.links["fsdp"])
    assert found.expected == pytest.approx(found.compute / ATTAINED + found.links["fsdp"])
