"""Import of diffusers directories: every value kept, every misfit named, nothing half-written."""

import json

import numpy as np
import pytest

from roam_jax.cogvideox.importing import WEIGHTS_FILE, hash_file, import_diffusers
from roam_jax.cogvideox.mapped import create_tensors, open_tensors
from roam_jax.cogvideox.names import transformer_names
from tests.cogvideox.diffusers_models import TINY, random_transformer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def src(model, tmp_path):
    """A diffusers directory with the transformer alone."""
    model.save_pretrained(tmp_path / "src" / "transformer")
    return tmp_path / "src"


def bits(array):
    """The bit pattern, comparable where bfloat16 is not."""
    return array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)


def check_values(torch, model, folder):
    parameters = open_tensors(folder / "weights.safetensors")
    tensors = model.state_dict()
    for name in transformer_names(TINY):
        for key, ours in name.to_theirs(parameters[name.target]).items():
            integer = torch.int16 if tensors[key].itemsize == 2 else torch.int32
            theirs = tensors[key].view(integer).numpy().view(bits(ours).dtype)
            np.testing.assert_array_equal(bits(ours), theirs, err_msg=key)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_kept_bit_for_bit(torch, tmp_path, dtype):
    model = random_transformer(TINY).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "src" / "transformer")
    manifest = import_diffusers(tmp_path / "src", tmp_path / "dst")["transformer"]
    check_values(torch, model, tmp_path / "dst" / "transformer")
    assert manifest.fingerprint == hash_file(tmp_path / "dst" / "transformer" / WEIGHTS_FILE)
    assert manifest.dtypes == {dtype: 88}
    assert manifest.tensors == 88
    assert manifest.parameters == sum(tensor.numel() for tensor in model.parameters())


def test_shards_give_the_same_files(torch, model, src, tmp_path):
    model.save_pretrained(tmp_path / "sharded" / "transformer", max_shard_size="100kB")
    assert len(list((tmp_path / "sharded" / "transformer").glob("*-of-*.safetensors"))) > 2
    whole = import_diffusers(src, tmp_path / "a")
    shards = import_diffusers(tmp_path / "sharded", tmp_path / "b")
    assert whole == shards
    check_values(torch, model, tmp_path / "b" / "transformer")


def test_both_networks(src, tmp_path):
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8), down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2, norm_num_groups=4, layers_per_block=1,
        temporal_compression_ratio=2,
    )  # fmt: skip
    vae.save_pretrained(src / "vae")
    written = import_diffusers(src, tmp_path / "deep" / "dst")
    assert written.keys() == {"transformer", "vae"}
    assert written["vae"].parameters == sum(tensor.numel() for tensor in vae.parameters())
    parameters = open_tensors(tmp_path / "deep" / "dst" / "vae" / "weights.safetensors")
    kernel = vae.encoder.conv_in.conv.weight.detach().numpy()
    np.testing.assert_array_equal(
        parameters["encoder/conv_in/kernel"], kernel.transpose(2, 3, 4, 1, 0)
    )


def rewrite(src, change):
    """Changes the tensors of the weights file."""
    path = src / "transformer" / WEIGHTS
    tensors = {name: np.array(tensor) for name, tensor in open_tensors(path).items()}
    change(tensors)
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with create_tensors(path, specs) as views:
        for name, tensor in tensors.items():
            views[name][...] = tensor


def refuse(src, message, *, error=ValueError):
    """The import ends with the message and leaves nothing behind."""
    before = sorted(src.parent.iterdir())
    with pytest.raises(error, match=message):
        import_diffusers(src, src.parent / "dst")
    assert sorted(src.parent.iterdir()) == before


def test_misfits_are_listed_together(src):
    def change(tensors):
        tensors["extra.weight"] = tensors.pop("proj_out.bias")
        tensors["norm_final.weight"] = np.zeros(7, np.float32)

    rewrite(src, change)
    refuse(
        src,
        r"transformer: .* 1 missing: proj_out.bias; 1 unexpected: extra.weight; "
        r"1 misshapen: norm_final.weight has \(7,\), expected \(48,\)",
    )


def test_a_stack_of_two_dtypes_is_refused(src):
    key = "transformer_blocks.1.ff.net.2.bias"

    def change(tensors):
        tensors[key] = tensors[key].astype(np.float16)

    rewrite(src, change)
    refuse(src, "ff.net.2.bias: layers have dtypes float16, float32, expected one")


def test_truncated_weights_are_refused(src):
    path = src / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    refuse(src, rf"{WEIGHTS}: ends early: it has \d+ bytes, expected \d+")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_pickles_are_refused(src, suffix):
    name = f"diffusion_pytorch_model{suffix}"
    (src / "transformer" / WEIGHTS).rename(src / "transformer" / name)
    refuse(src, f"{name}: pickles can run code and are not read; expected")


def test_another_model_is_refused(src):
    config = src / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Other"}))
    refuse(src, "config.json: _class_name = 'Other': expected CogVideoXTransformer3DModel")
    config.write_text("{")
    refuse(src, "config.json: Expecting")
    for text in ("[]", "null", '"t5"'):
        config.write_text(text)
        refuse(src, "transformer/config.json: holds .*, expected a JSON object")


@pytest.mark.parametrize(
    "pipeline",
    ["StableDiffusionPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXFunControlPipeline"],
)
def test_another_pipeline_is_refused(src, pipeline):
    index = src / "model_index.json"
    index.write_text(json.dumps({"_class_name": pipeline, "_diffusers_version": "0.42.1"}))
    refuse(src, f"model_index.json: this is a {pipeline}, expected CogVideoXPipeline or ")
    index.write_text("[]")
    refuse(src, "model_index.json: expected diffusers' JSON with a _class_name")


def test_a_pipeline_of_ours_is_read(src, tmp_path):
    (src / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    assert import_diffusers(src, tmp_path / "dst").keys() == {"transformer"}


def test_the_member_of_the_family_is_named_with_its_file(src):
    config = src / "transformer" / "config.json"
    rotary = {"use_rotary_positional_embeddings": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | rotary))
    refuse(src, "transformer/config.json: this is CogVideoX-5B: use_rotary_positional_embeddings")


def test_a_vae_of_another_model_is_refused(src):
    (src / "transformer").rename(src / "vae")
    (src / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    refuse(src, "vae/config.json: _class_name = 'AutoencoderKL': expected AutoencoderKLCogVideoX")


def test_missing_parts_are_named(src):
    (src / "transformer" / WEIGHTS).rename(src / "moved")
    refuse(src, r"transformer: no \*.safetensors file", error=FileNotFoundError)
    found = "one network, a CogVideoXTransformer3DModel; expected a folder transformer, vae or"
    refuse(src / "transformer", found, error=FileNotFoundError)
    (src / "transformer" / "config.json").unlink()
    refuse(src, "config.json: no such file", error=FileNotFoundError)
    refuse(
        src / "transformer",
        "folder transformer, vae or text_encoder in it, found nothing",
        error=FileNotFoundError,
    )
    refuse(src / "nowhere", "nowhere: no such folder", error=FileNotFoundError)
    (src / "transformer").rename(src / "unet")
    refuse(src, "vae or text_encoder in it, found moved, unet", error=OSError)


def test_two_candidates_are_refused(src):
    weights = (src / "transformer" / WEIGHTS).read_bytes()
    (src / "transformer" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights)
    refuse(src, "fp16.safetensors, .*: expected one weights file, or one index of shards")


def test_existing_folder_is_kept(src, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").write_text("mine")
    refuse(src, "dst exists: remove it, or choose another folder", error=FileExistsError)
    assert (tmp_path / "dst" / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "index, message",
    [
        ({"weight_map": {"proj_out.weight": "gone.safetensors"}}, "its shard gone.safetensors is"),
        ({"weight_map": {"proj_out.weight": "../x.safetensors"}}, "expected the name of a file"),
        ({"weight_map": {"proj_out.weight": WEIGHTS}}, "index and shard disagree: lacks .*, not"),
        ({}, "expected JSON with a weight_map"),
    ],
)
def test_bad_indices_are_refused(src, index, message):
    path = src / "transformer" / f"{WEIGHTS}.index.json"
    path.write_text(json.dumps(index))
    refuse(src, message, error=(ValueError, FileNotFoundError))
