import re

import numpy as np
import pytest

from roam_jax.canvas.layout import CanvasLayout, RegionSpec


def layout(**regions) -> CanvasLayout:
    return CanvasLayout(T=3, H=4, W=5, d_model=8, regions=regions, t_current=1)


def test_indices_are_row_major_over_time_height_width():
    made = layout(a=(1, 3, 0, 2, 3, 5))
    expected = [t * 20 + h * 5 + w for t in (1, 2) for h in (0, 1) for w in (3, 4)]
    np.testing.assert_array_equal(made.region_indices("a"), expected)
    np.testing.assert_array_equal(made.region_indices_at_t("a", 2), expected[4:])
    assert made.region_indices_at_t("a", 0).size == 0


def test_length_keeps_the_first_cells_in_row_major_order():
    made = layout(text=RegionSpec((0, 1, 0, 2, 0, 5), length=7))
    np.testing.assert_array_equal(made.region_indices("text"), np.arange(7))
    assert made.loss_weight_mask().sum() == 7


def test_loss_weights_and_outputs():
    made = layout(
        video=RegionSpec((0, 3, 0, 2, 0, 5), loss_weight=0.5),
        text=RegionSpec((0, 1, 2, 3, 0, 5), is_output=False),
    )
    weights = made.loss_weight_mask()
    assert weights[made.region_indices("video")].tolist() == [0.5] * 30
    assert weights.sum() == 15
    np.testing.assert_array_equal(made.output_mask(), np.arange(20, 60))


def test_real_and_canvas_frames_with_a_period():
    made = layout(slow=RegionSpec((0, 3, 0, 1, 0, 1), period=4))
    assert [made.real_frame("slow", t) for t in range(3)] == [0, 4, 8]
    assert [made.canvas_frame("slow", t) for t in (0, 3, 8, 12)] == [0, None, 2, None]


@pytest.mark.parametrize(
    "regions, message",
    [
        ({"a": (0, 2, 0, 2, 0, 2), "b": (1, 2, 1, 2, 1, 2)}, "'a' and 'b' overlap"),
        ({"a": (0, 4, 0, 1, 0, 1)}, "'a' .* leaves the canvas"),
        ({"a": (0, 0, 0, 1, 0, 1)}, "region 'a': bounds .*: expected 0 <= low < high"),
        ({"a": RegionSpec((0, 1, 0, 1, 0, 4), length=4), "b": (0, 1, 0, 1, 3, 5)}, "overlap"),
    ],
)
def test_bad_regions_are_refused_by_name(regions, message):
    with pytest.raises(ValueError, match=message):
        layout(**regions)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"period": 2.5}, "period 2.5: expected a whole number"),
        ({"period": True}, "period True: expected a whole number"),
        ({"length": 1.5}, "length 1.5: expected a whole number"),
        ({"is_output": "no"}, "is_output 'no': expected True or False"),
        (
            {"bounds": (0, 1.5, 0, 2, 0, 2)},
            "bounds (0, 1.5, 0, 2, 0, 2): 1.5: expected a whole number",
        ),
    ],
)
@pytest.mark.usefixtures("no_annotation_checks")
def test_wrong_types_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RegionSpec(**{"bounds": (0, 1, 0, 2, 0, 2), **fields})


@pytest.mark.usefixtures("no_annotation_checks")
def test_grids_of_wrong_types_are_refused():
    for name in ("T", "H", "W", "d_model", "t_current"):
        sizes = {"T": 3, "H": 4, "W": 5, "d_model": 8, "t_current": 1, name: 2.0}
        with pytest.raises(ValueError, match=f"{name} 2.0: expected a whole number"):
            CanvasLayout(**sizes, regions={})


@pytest.mark.usefixtures("no_annotation_checks")
def test_numpy_integers_are_whole_numbers():
    one, two = np.int64(1), np.int32(2)
    spec = RegionSpec((0, one, 0, two, 0, two), period=two, length=two)
    plain = RegionSpec((0, 1, 0, 2, 0, 2), period=2, length=2)
    assert spec == plain and repr(spec) == repr(plain)


def test_bad_lengths_periods_and_names_are_refused():
    with pytest.raises(ValueError, match="length 5: the box .* has 4 cells"):
        RegionSpec((0, 1, 0, 2, 0, 2), length=5)
    with pytest.raises(ValueError, match="period 0"):
        RegionSpec((0, 1, 0, 2, 0, 2), period=0)
    with pytest.raises(ValueError, match="unknown region 'visal': did you mean 'visual'"):
        layout(visual=(0, 1, 0, 1, 0, 1)).region_indices("visal")
