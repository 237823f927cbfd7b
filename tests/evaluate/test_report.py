"""The printed table: the right numbers under the right headings."""

from roam_jax.evaluate.report import format_report


def estimate(mean, *interval):
    return {"mean": mean, "interval": list(interval) or None}


def buckets(*means):
    spans = ([0, 499], [500, 999])
    found = [
        {"timesteps": span, "mse": estimate(mean), "zero_mse": 2 * mean}
        for span, mean in zip(spans, means, strict=True)
    ]
    return {"mse": estimate(sum(means) / 2), "buckets": found}


def actions(mse, gripper):
    one = {
        "actions": 4,
        "mse": mse,
        "absolute_error": {"x": 0.01, "yaw": 0.5},
        "gripper_accuracy": gripper,
    }
    return {"chunk": one, "first": {**one, "mse": estimate(0.75)}}


def table(report):
    """Figures of each line, by its label."""
    lines = [line for line in format_report(report).splitlines() if line]
    return {line[4:21].strip(): " ".join(line[21:].split()) for line in lines}


def test_graft():
    measures = {
        measure: {"text": [[0.1, 0.3], [0.2, 0.4]], "visual": [[1, 1], [2, 2]]}
        for measure in ("gated_step", "residual", "cosine")
    }
    one = {
        "actions": actions(estimate(0.5, 0.25, 1.0), 0.875),
        "video": buckets(1.0, 3.0),
        "measures": measures,
        "streams": {"proprio": {"mse": estimate(0.125), "last_observed_mse": estimate(0.375)}},
    }
    split = {
        "windows": 7,
        "episodes": 3,
        "action_units": {"x": "m", "yaw": "rad", "gripper": "1 = open"},
        "baselines": {"training_mean": actions(estimate(0.625), 0.5)},
        "rounds": {"1": {"extrapolated": False, **one}, "2": {"extrapolated": False, **one}},
    }
    text = format_report({"task": "graft", "splits": {"val": split}})
    assert text.startswith("val: 7 windows of 3 episodes\n")
    assert "absolute errors in m and rad over 4 action(s)" in text
    lines = table({"task": "graft", "splits": {"val": split}})
    expected = "0.6250 [one episode, no interval] 0.7500 50.0% 0.0100 0.5000"
    assert lines["training mean"] == expected
    line, _, state = (line for line in text.splitlines() if "rounds = 2  " in line)
    expected = "rounds = 2 0.5000 [0.2500, 1.0000] 0.7500 87.5% 0.0100 0.5000"
    assert " ".join(line.split()) == expected
    assert " ".join(state.split()) == "rounds = 2 0.1250 [one episode, no interval]"
    assert lines["last observed"] == "0.3750 [one episode, no interval]"
    assert lines["predicting zero"] == "2.0000 6.0000 4.0000"
    # The mean over blocks after each round, with the largest number of rounds.
    assert lines["residual   text"] == "0.2000 0.3000"
    assert lines["gated step visual"] == "1.0000 2.0000"
    assert "with rounds = 2" in text
    assert "*" not in text
    split["rounds"]["3"] = {**split["rounds"]["2"], "extrapolated": True}
    text = format_report({"task": "graft", "splits": {"val": split}})
    assert "    rounds = 3 *     0.5000" in text and "with rounds = 3 *," in text
    assert text.endswith(
        "  * more rounds than were trained: they reuse the last one's parameters\n"
    )


def test_a_robot_without_a_gripper_and_a_second_camera():
    one = actions(estimate(0.5), 0.5)
    for figures in one.values():
        del figures["gripper_accuracy"]
        figures["absolute_error"] = {"shoulder_pan": 0.25}
    found = {"actions": one, "video": buckets(0.5, 0.5), "cameras": buckets(1.0, 3.0)}
    split = one_round({**found, "streams": {}}, action_units={"shoulder_pan": "deg"})
    lines = format_report({"task": "graft", "splits": {"val/arm": split}}).splitlines()
    assert lines[0] == "val/arm: 7 windows of 3 episodes"
    assert "absolute errors in deg over 4" in lines[1]
    assert lines[2].endswith("  shoulder_pan") and lines[3].split()[-2:] == ["-", "0.2500"]
    assert len(lines[2]) == len(lines[3])
    place = lines.index("  velocity error of predicted frames of other cameras, by timestep")
    assert lines[place + 2].split()[-3:] == ["1.0000", "3.0000", "2.0000"]
    assert lines[place + 3].split() == ["predicting", "zero", "2.0000", "6.0000", "4.0000"]


def test_files_of_earlier_versions_lack_some_figures():
    cameras = buckets(1.0, 3.0)
    for bucket in cameras["buckets"]:
        del bucket["zero_mse"]
    one = {"actions": actions(estimate(0.5), 0.5), "video": buckets(0.5, 0.5), "cameras": cameras}
    text = format_report({"task": "graft", "splits": {"val": one_round(one)}})
    assert "absolute errors in m and rad over 4 action(s)" in text
    assert text.count("predicting zero") == 1 and "last observed" not in text
    assert text.count(" 1.0000    3.0000    2.0000\n") == 1


def one_round(figures, **split):
    measures = {measure: {} for measure in ("gated_step", "residual", "cosine")}
    rounds = {"1": {"extrapolated": False, "measures": measures, **figures}}
    return {"windows": 7, "episodes": 3, "baselines": {}, "rounds": rounds, **split}


def test_video():
    figures = {"continued": buckets(1.0, 3.0), "generated": buckets(0.5, 1.5)}
    split = {"windows": 7, "episodes": 3, "video": figures}
    text = format_report({"task": "video", "splits": {"train": split}})
    lines = [line.split() for line in text.splitlines()]
    assert ["model", "1.0000", "3.0000", "2.0000"] in lines
    assert ["model", "0.5000", "1.5000", "1.0000"] in lines
    assert ["predicting", "zero", "2.0000", "6.0000", "4.0000"] in lines
    assert ["0-499", "500-999", "all"] in lines


def test_vae():
    split = {
        "windows": 7,
        "episodes": 3,
        "psnr": estimate(30.0, 28.5, 31.0),
        "mean_colour_psnr": 16.25,
        "psnr_gain": 13.75,
    }
    text = format_report({"task": "vae", "splits": {"val": split}})
    assert "PSNR               30.0000 [28.5000, 31.0000] dB" in text
    assert "of the mean colour 16.2500 dB" in text
    assert "gain               13.7500 dB" in text
