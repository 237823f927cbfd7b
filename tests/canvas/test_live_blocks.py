"""Live blocks against blocks of the whole mask, and the choice of the order of tokens."""

import itertools
import tracemalloc

import numpy as np
import pytest

from roam_jax.canvas.live_blocks import live_blocks
from roam_jax.canvas.segments import SegmentTable


def random_table(seed: int, *, segments: int = 9, keys: int = 300, queries: int | None = None):
    """Weighted, plain and missing edges; a segment that reads nothing and one that nobody reads."""
    rng = np.random.default_rng(seed)
    weight = rng.choice([0, 0, 0.25, 1, 1, 1], size=(segments, segments))
    weight[3], weight[:, 5] = 0, 0
    with np.errstate(divide="ignore"):
        log_weight = np.log(weight).astype(np.float32)
    cells = [
        None if count is None else np.sort(rng.integers(0, segments, count)).astype(np.int32)
        for count in (keys, queries)
    ]
    return SegmentTable(cells[0], log_weight, cells[1])


def ordered_weights(table: SegmentTable, query_order, key_order) -> np.ndarray:
    """(N, M) edge weights, in the given orders."""
    rows, columns = table.query_segments, table.segments
    rows = rows if query_order is None else rows[query_order]
    columns = columns if key_order is None else columns[key_order]
    return np.exp(table.log_weight)[rows[:, None], columns[None]]


def blocks_of(weight: np.ndarray, block_q: int, block_k: int):
    """Live and full blocks of the whole mask: queries that fill a block count as allowed."""
    rows, columns = -weight.shape[0] % block_q, -weight.shape[1] % block_k
    weight = np.pad(weight, ((0, rows), (0, 0)), mode="edge")
    weight = np.pad(weight, ((0, 0), (0, columns)))
    tiles = weight.reshape(len(weight) // block_q, block_q, -1, block_k).swapaxes(1, 2)
    return (tiles > 0).any((2, 3)), (tiles == 1).all((2, 3))


def check_lists(lists, live: np.ndarray, full: np.ndarray) -> None:
    np.testing.assert_array_equal(lists.count, live.sum(axis=1))
    np.testing.assert_array_equal(lists.full, full.sum(axis=1))
    for number, (few, count) in enumerate(zip(lists.full, lists.count, strict=True)):
        listed = lists.live[number]
        np.testing.assert_array_equal(listed[:few], np.flatnonzero(full[number]))
        partial = live[number] & ~full[number]
        np.testing.assert_array_equal(listed[few:count], np.flatnonzero(partial))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("block_q", "block_k"), [(32, 32), (16, 64), (300, 7), (512, 1)])
@pytest.mark.parametrize("queries", [None, 133])
def test_lists_are_the_blocks_of_the_mask(seed, block_q, block_k, queries):
    table = random_table(seed, queries=queries)
    blocks = live_blocks(table, block_q=block_q, block_k=block_k)
    weight = ordered_weights(table, blocks.query_order, blocks.key_order)
    live, full = blocks_of(weight, block_q, block_k)
    assert (blocks.live, blocks.partial) == (live.sum(), live.sum() - full.sum())
    assert blocks.blocks == live.size
    check_lists(blocks.keys_of, live, full)
    check_lists(blocks.queries_of, live.T, full.T)
    # What a kernel gathers is the mask, and cells that fill blocks are no keys.
    gathered = np.exp(blocks.log_weight)[blocks.query_segments[:, None], blocks.key_segments]
    rows, columns = weight.shape
    np.testing.assert_array_equal(gathered[:rows, :columns], weight)
    np.testing.assert_array_equal(gathered[:, columns:], 0)


def frames_within(regions: int, frames: int, cells: int) -> SegmentTable:
    """Regions that meet in each frame, as a layout declares them: region after region."""
    frame = np.tile(np.arange(frames), regions)
    log_weight = np.where(frame[:, None] == frame, 0.0, -np.inf).astype(np.float32)
    return SegmentTable(np.repeat(np.arange(regions * frames, dtype=np.int32), cells), log_weight)


def test_tokens_that_read_alike_lie_together():
    """2 x 4 segments of 32 cells: by frames a block of 64 has one frame, by regions two."""
    table = frames_within(2, 4, 32)
    blocks = live_blocks(table, block_q=64, block_k=64)
    assert (blocks.live, blocks.partial) == (4, 0)
    weight = ordered_weights(table, blocks.query_order, blocks.key_order)
    assert blocks_of(weight, 64, 64)[0].sum() == 4
    assert blocks_of(ordered_weights(table, None, None), 64, 64)[0].sum() == 8


def test_a_sequence_that_is_best_as_it_is_stays():
    frames = np.arange(4)
    log_weight = np.where(frames[:, None] >= frames, 0.0, -np.inf).astype(np.float32)
    blocks = live_blocks(SegmentTable(np.repeat(frames.astype(np.int32), 64), log_weight))
    assert blocks.query_order is None and blocks.key_order is None


def test_the_best_of_the_given_orders_is_taken():
    table = random_table(7, segments=6)
    orders = list(itertools.permutations(range(6)))[::40]
    sizes = {"block_q": 32, "block_k": 32}
    found = live_blocks(table, orders=orders, **sizes)

    def in_order(order):
        return np.argsort(np.argsort(order)[table.segments], kind="stable")

    choices = [None, *map(in_order, orders)]
    live = [
        blocks_of(ordered_weights(table, a, b), 32, 32)[0].sum()
        for a, b in itertools.product(choices, repeat=2)
    ]
    assert found.live <= min(live)
    weight = ordered_weights(table, found.query_order, found.key_order)
    assert found.live == blocks_of(weight, 32, 32)[0].sum()
    assert found.live < live_blocks(table, **sizes).live


def test_equal_tables_have_equal_blocks():
    first, second, other = (live_blocks(random_table(seed)) for seed in (1, 1, 2))
    assert first == second and hash(first) == hash(second)
    assert first != other
    assert first != live_blocks(random_table(1), block_q=64)


def test_a_large_canvas_needs_no_array_of_all_pairs():
    """17,776 cells, 3 x 13 segments of one causal video: 316 M pairs, a few MB."""
    frame = np.tile(np.arange(13), 3)
    log_weight = np.where(frame[:, None] >= frame, 0.0, -np.inf).astype(np.float32)
    segments = np.sort(np.arange(17_776) % 39).astype(np.int32)
    tracemalloc.start()
    blocks = live_blocks(SegmentTable(segments, log_weight))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert blocks.blocks == 139**2
    # The share of allowed pairs is (1 + 1/13) / 2; blocks on borders add little.
    assert 0.538 < blocks.live / blocks.blocks < 0.56
    assert peak < 8e6


def test_bad_sizes_and_orders_are_refused():
    table = random_table(0)
    with pytest.raises(ValueError, match="block_k = 0"):
        live_blocks(table, block_k=0)
    with pytest.raises(ValueError, match=r"order \[0, 0, 1\]: expected a permutation of 9"):
        live_blocks(table, orders=[[0, 0, 1]])
