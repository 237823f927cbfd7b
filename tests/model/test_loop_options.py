"""What a config may ask of a loop, and what is refused."""

import numpy as np
import pytest

from configs import defaults
from roam_jax.model.loop_options import LoopOptions, check_ponder, exit_threshold


def test_a_section_gives_its_leaves():
    section = defaults.get_config().loop
    section.rounds, section.reinject, section.backprop_rounds = 4, "channel", 2
    section.sharpening, section.final_inverse_temperature = "linear", 2.5
    options = LoopOptions.from_section(section)
    assert options == LoopOptions(
        rounds=4,
        gate="identity",
        reinject="channel",
        backprop_rounds=2,
        sharpening="linear",
        final_inverse_temperature=2.5,
    )
    np.testing.assert_allclose(options.inverse_temperatures, (1, 1.5, 2, 2.5))
    assert LoopOptions(rounds=4, final_inverse_temperature=2.5).inverse_temperatures == ()
    assert not options.halts and LoopOptions(rounds=2, halting="learned").halts


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rounds": 0}, "loop.rounds = 0: expected at least 1"),
        ({"over": "stak"}, "loop.over = 'stak': .* did you mean 'stack'"),
        ({"gate": "sigmoi"}, "loop.gate = 'sigmoi': .* did you mean 'sigmoid'"),
        ({"gate_scope": "tokn"}, "loop.gate_scope = 'tokn': .* did you mean 'token'"),
        ({"gate": "off", "gate_scope": "token"}, "'token' with loop.gate = 'off'"),
        ({"reinject": "chanel"}, "loop.reinject = 'chanel': .* did you mean 'channel'"),
        ({"halting": "learn"}, "loop.halting = 'learn': .* did you mean 'learned'"),
        ({"backprop_rounds": -1}, r"backprop_rounds = -1: expected 0 \(all\) to loop.rounds = 3"),
        ({"backprop_rounds": 4}, "backprop_rounds = 4: expected 0 .* to loop.rounds = 3"),
        (
            {"self_distillation": True, "rounds": 1},
            "loop.self_distillation = True with loop.rounds = 1",
        ),
        ({"halting": "learned", "rounds": 1}, "loop.halting = 'learned' with loop.rounds = 1"),
        (
            {"halting": "learned", "self_distillation": True},
            "loop.self_distillation = True with loop.halting = 'learned'",
        ),
        ({"sharpening": "linea"}, "loop.sharpening = 'linea': .* did you mean 'linear'"),
        ({"final_inverse_temperature": 0.5}, "final_inverse_temperature = 0.5: .* at least 1"),
    ],
)
def test_what_does_not_go_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LoopOptions(**{"rounds": 3, **values})


@pytest.mark.parametrize("ponder", [-0.1, float("nan"), float("inf")])
def test_a_ponder_cost_that_is_none_is_refused(ponder):
    check_ponder(0.0)
    with pytest.raises(ValueError, match=f"loss.ponder = {ponder}: expected a finite number"):
        check_ponder(ponder)


def test_thresholds():
    assert exit_threshold(0.0, halting="none") is None
    assert exit_threshold(0.0, halting="learned") is None
    assert exit_threshold(1.0, halting="learned") == 1.0
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"eval.exit_threshold = {value}: expected"):
            exit_threshold(value, halting="learned")
    with pytest.raises(ValueError, match="eval.exit_threshold = 0.5 with loop.halting = 'none'"):
        exit_threshold(0.5, halting="none")
