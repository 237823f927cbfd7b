"""Names of the text encoder's tensors against transformers, both ways and at full size."""

import json

import numpy as np
import pytest

from roam_jax.cogvideox.names import account
from roam_jax.cogvideox.text_config import TextEncoderConfig
from roam_jax.cogvideox.text_names import ALIASES, text_encoder_names

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = TextEncoderConfig(
    vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=3, num_heads=2,
    relative_attention_num_buckets=8,
)  # fmt: skip


def their_model(config):
    return transformers.T5EncoderModel(transformers.T5Config(**config.to_json()))


def test_the_default_is_the_published_encoder():
    names = text_encoder_names(TextEncoderConfig())
    with torch.device("meta"):
        theirs = their_model(TextEncoderConfig()).state_dict()
    for copy, original in ALIASES.items():
        assert theirs.pop(copy).shape == theirs[original].shape
    account(names, {key: tuple(value.shape) for key, value in theirs.items()}, where="T5")
    assert sum(tensor.numel() for tensor in theirs.values()) == 4_762_310_656
    assert sum(int(np.prod(name.target_shape)) for name in names) == 4_762_310_656


def test_tensors_survive_the_round_trip_bit_for_bit():
    state = {key: tensor.numpy() for key, tensor in their_model(TINY).state_dict().items()}
    np.testing.assert_array_equal(state.pop("encoder.embed_tokens.weight"), state["shared.weight"])
    back = {}
    for name in text_encoder_names(TINY):
        mine = [name.to_ours(state[key]) for key in name.keys]
        mine = np.stack(mine) if name.stacked else mine[0]
        assert mine.shape == name.target_shape
        back |= name.to_theirs(mine)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor)


def test_transformers_loads_our_config_without_a_warning(tmp_path, caplog):
    """The folder that an export writes: our config.json beside the tensors that we name."""
    from safetensors.torch import save_file

    model = their_model(TINY)
    keys = [key for name in text_encoder_names(TINY) for key in name.keys]
    save_file(
        {key: model.state_dict()[key] for key in keys},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        loaded, report = transformers.T5EncoderModel.from_pretrained(
            tmp_path, output_loading_info=True
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert not any(report.values())
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
