"""Figures of rows in pieces against numpy over all of them, held or sketched, merged or not."""

import itertools

import numpy as np
import pytest

from roam_jax.contracts import VectorSpec
from roam_jax.data.accumulate import BLOCK_ROWS, SKETCH_K, Accumulator
from roam_jax.data.statistics import StateStatistics, VectorStatistics

ALL = 1 << 40
# Rounding of float64 sums over 400,000 rows one after the other, as numpy makes them.
NUMPY = 1e-11


def spec(size):
    return VectorSpec(tuple(f"d{i}" for i in range(size)), ("m",) * size, ("linear",) * size)


def heavy(rows, seed=0):
    """Student's t, log-normal, Cauchy, mostly zero, and a normal far from 0."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.standard_t(1.5, rows),
        rng.lognormal(0, 2, rows),
        rng.standard_cauchy(rows),
        np.where(rng.random(rows) < 0.97, 0, rng.normal(size=rows)),
        rng.normal(1000, 0.01, rows),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def counted(rows, *, exact_bytes, cuts=(), size=None):
    found = Accumulator(spec(size or rows.shape[1]), exact_bytes=exact_bytes)
    for part in np.split(rows, cuts):
        found.update(part)
    return found


def assert_moments(found, rows, *, rtol=1e-12):
    rows = rows.astype(np.longdouble)
    assert found.count == len(rows)
    # The mean's rounding goes with the size of the numbers, not with what is left of them.
    size = np.abs(rows).mean(axis=0)
    np.testing.assert_array_less(np.abs(np.array(found.mean) - rows.mean(axis=0)), rtol * size)
    np.testing.assert_allclose(found.std, rows.std(axis=0), rtol=rtol)
    np.testing.assert_array_equal(found.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(found.maximum, rows.max(axis=0))


def assert_ranks(found, rows, *, error):
    error = 2 * error  # which holds with 99 % confidence; twice it, with 99.99997 %
    assert error < 1e-3
    for name, rank in (("q01", 0.01), ("q99", 0.99)):
        for value, column in zip(getattr(found, name), np.sort(rows, axis=0).T, strict=True):
            # A value that occurs often has all the ranks of its places.
            low, high = (
                np.searchsorted(column, value, side) / len(rows) for side in ("left", "right")
            )
            assert low - error <= rank <= high + error, (name, value)


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("rows", [1, 2, 9, 1000, 2 * BLOCK_ROWS + 77])
def test_held_rows_give_the_bits_of_numpy_however_they_are_cut(rows, size):
    rng = np.random.default_rng(rows)
    values = (rng.standard_t(2, (rows, size)) * 10.0 ** rng.integers(-3, 3, size)).astype(
        np.float32
    )
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    expected = {
        "mean": values.mean(axis=0, dtype=np.float64),
        "std": values.std(axis=0, dtype=np.float64),
        "minimum": values.min(axis=0),
        "maximum": values.max(axis=0),
        "q01": low,
        "q99": high,
    }
    for cuts in ((), np.sort(rng.integers(0, rows, 30))):
        found = counted(values, exact_bytes=ALL, cuts=cuts)
        assert found.rank_error == 0
        for name, value in expected.items():
            np.testing.assert_array_equal(getattr(found.finish(), name), value, err_msg=name)


def test_it_is_exact_as_long_as_the_rows_fit():
    rows = heavy(1000)
    for limit, exact in ((rows.nbytes, True), (rows.nbytes - 1, False)):
        found = counted(rows, exact_bytes=limit, cuts=(10, 500))
        np.testing.assert_array_equal(np.concatenate(found.held), rows)
        found.finish()
        assert (found.rank_error == 0) is (found.held is not None) is exact


def test_a_sketch_is_within_its_rank_error():
    rows = heavy(600_000)
    found = counted(rows, exact_bytes=0, cuts=np.arange(0, len(rows), 997))
    assert 0 < found.rank_error < 1e-4
    figures = found.finish()
    assert_moments(figures, rows)
    assert_ranks(figures, rows, error=found.rank_error)


@pytest.mark.parametrize("limit", [ALL, 0])
def test_the_layout_in_memory_does_not_matter(limit):
    rows = heavy(1000)
    wide = np.repeat(rows, 2, axis=1)
    expected = counted(rows, exact_bytes=limit).finish()
    for same in (np.asfortranarray(rows), wide[:, ::2]):
        assert counted(same, exact_bytes=limit).finish() == expected


def test_the_figures_do_not_end_the_counting():
    rows = heavy(3000)
    for limit in (ALL, 0):
        found = counted(rows[:2000], exact_bytes=limit)
        assert found.finish().count == 2000
        found.update(rows[2000:])
        assert_moments(found.finish(), rows)


@pytest.mark.parametrize("held", itertools.product([True, False], repeat=2))
def test_merged_is_what_one_stream_gives(held):
    rows = heavy(400_000)
    parts = [
        counted(part, exact_bytes=ALL if fits else 0)
        for part, fits in zip(np.split(rows, [150_001]), held, strict=True)
    ]
    before = [part.finish() for part in parts]
    parts[0].merge(parts[1])
    found = parts[0].finish()
    assert parts[1].finish() == before[1]
    assert_moments(found, rows, rtol=NUMPY if all(held) else 1e-12)
    if all(held):
        assert found == counted(rows, exact_bytes=ALL).finish()
    else:
        assert_ranks(found, rows, error=parts[0].rank_error)


def test_merged_rows_that_no_longer_fit_are_sketched():
    rows = heavy(4000)
    limit = 3000 * rows[0].nbytes
    one, two = (counted(part, exact_bytes=limit) for part in np.split(rows, 2))
    assert one.finish().count == 2000 and one.rank_error == 0
    one.merge(two)
    assert_moments(one.finish(), rows)
    assert one.rank_error > 0 and two.rank_error == 0


@pytest.mark.parametrize("limit", [ALL, 0])
def test_merging_is_associative(limit):
    rows = heavy(300_000)
    parts = np.split(rows, [100, 170_000])

    def make():
        return [counted(part, exact_bytes=limit) for part in parts]

    left, middle, right = make()
    left.merge(middle)
    left.merge(right)
    first, other, last = make()
    other.merge(last)
    first.merge(other)
    for found in (left, first):
        assert_moments(found.finish(), rows, rtol=NUMPY if limit else 1e-12)
        assert_ranks(found.finish(), rows, error=found.rank_error + 1 / len(rows))
    if limit:
        assert left.finish() == first.finish()


@pytest.mark.parametrize("limit", [ALL, 0])
def test_nothing_and_one_row(limit):
    empty = Accumulator(spec(3), exact_bytes=limit)
    empty.update(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="statistics of d0, d1, d2 over no row"):
        empty.finish()
    row = np.float32([[1, -2, 0.1]])
    one = counted(row, exact_bytes=limit)
    one.merge(empty)
    empty.merge(one)
    for found in (one.finish(), empty.finish(StateStatistics)):
        assert (found.count, found.std) == (1, (0.0, 0.0, 0.0))
        for name in ("mean", "minimum", "maximum", "q01", "q99"):
            np.testing.assert_array_equal(np.float32(getattr(found, name)), row[0])
    assert type(empty.finish(StateStatistics)) is StateStatistics
    assert type(one.finish()) is VectorStatistics


def test_other_dimensions_are_refused():
    found = Accumulator(spec(3))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(rows, 3\)"):
        found.update(np.zeros((2, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"statistics of \('d0', 'd1'\) added to \('d0', 'd1', 'd2'\)"
    ):
        found.merge(Accumulator(spec(2)))


def test_rows_are_copied():
    rows = np.ones((4, 2), np.float32)
    found = counted(rows, exact_bytes=ALL)
    rows[:] = 7
    assert found.finish().maximum == (1, 1)


def test_what_is_held_stops_growing():
    block = 4 * BLOCK_ROWS
    limit = 5 * block
    found = Accumulator(spec(1), exact_bytes=limit)
    rng = np.random.default_rng(0)
    most = []
    for million in range(4):
        most.append(0)
        for _ in range(100):
            found.update(rng.normal(size=(10_000, 1)).astype(np.float32))
            most[million] = max(most[million], found.nbytes)
    # Rows while they fit; then at most two blocks and a sketch of 3 k numbers.
    assert most[0] <= limit + 2 * block
    assert max(most[1:]) <= 2 * block + 4 * 3.1 * SKETCH_K
    assert max(most[2:]) <= 1.05 * most[1]
    assert found.count == 4_000_000
