"""Actions of overlapping chunks against the closed form of ACT's Algorithm 2."""

import numpy as np
import pytest

from roam_jax.evaluate.ensembling import ActionBuffer, Chunking, ensemble_weights


def actions_of(chunking, *, chunk, steps, worlds=2, joints=3):
    """Actions of every step, and the chunks that were predicted, by step."""
    rng = np.random.default_rng(0)
    predicted = {}
    buffer, found = ActionBuffer(chunking), []
    for step in range(steps):

        def predict(step=step):
            predicted[step] = rng.normal(size=(worlds, chunk, joints))
            return predicted[step]

        found.append(buffer.next(predict))
    return np.stack(found), predicted


@pytest.mark.parametrize("replan, chunk, decay", [(1, 5, 0.3), (2, 5, 0.01), (3, 8, 0.0)])
def test_closed_form(replan, chunk, decay):
    chunking = Chunking(replan=replan, ensembling=True, decay=decay)
    found, predicted = actions_of(chunking, chunk=chunk, steps=13)
    assert list(predicted) == list(range(0, 13, replan))
    for step, actions in enumerate(found):
        told = [s for s in predicted if s <= step < s + chunk]
        weights = [np.exp(-decay * i) for i in range(len(told))]
        expected = sum(
            w * predicted[s][:, step - s] for w, s in zip(weights, sorted(told), strict=True)
        ) / sum(weights)
        np.testing.assert_allclose(actions, expected, rtol=1e-12)


def test_two_chunks_in_numbers():
    buffer = ActionBuffer(Chunking(replan=1, ensembling=True, decay=np.log(2)))
    first, second = np.array([[[1.0], [4.0]]]), np.array([[[7.0], [0.0]]])
    assert buffer.next(lambda: first) == 1.0
    # The older one weighs twice the newer: (2 * 4 + 7) / 3.
    assert buffer.next(lambda: second) == pytest.approx(5.0)
    np.testing.assert_allclose(ensemble_weights(3, np.log(2)), np.array([4, 2, 1]) / 7)


def test_without_ensembling_the_newest_counts():
    found, predicted = actions_of(Chunking(replan=2, ensembling=False), chunk=4, steps=6)
    for step, actions in enumerate(found):
        np.testing.assert_array_equal(actions, predicted[step // 2 * 2][:, step % 2])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="eval.replan = 0: expected at least 1"):
        Chunking(replan=0)
    for decay in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="eval.ensemble_decay = .*: expected 0"):
            Chunking(decay=decay)
    with pytest.raises(ValueError, match="eval.replan = 4: a chunk has 3 actions"):
        actions_of(Chunking(replan=4), chunk=3, steps=1)
