"""Recognition of diffusers folders, errors, and written files."""

from __future__ import annotations

import json
import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from piti.checkpoints.convert import import_release
from piti.checkpoints.export import export_release
from piti.checkpoints.folder import ModelError
from piti.checkpoints.prior_folders import recognised
from piti.checkpoints.priors import import_prior, is_pipeline
from piti.checkpoints.shards import WeightFiles
from piti.cli.app import app
from piti.cli.console import with_flags
from piti.conditions import tokenizers
from piti.core.errors import UserError
from piti.pipelines.pipeline import PITIPipeline
from tests.priors import tiny

pytest.importorskip("transformers")


@pytest.fixture
def copied(stable: tiny.Imported, tmp_path: Path) -> Path:
    return shutil.copytree(stable.folder, tmp_path / "diffusers")


def changed(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values), encoding="utf-8")


def refused(folder: Path, tmp_path: Path, file: str, values: dict[str, Any], why: str) -> None:
    """Assert that a folder with these values in one of its files is not imported."""
    copied = shutil.copytree(folder, tmp_path / "diffusers")
    changed(copied / file, **values)
    with pytest.raises(UserError, match=why):
        import_prior(copied, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_says_itself_what_it_is(stable: tiny.Imported) -> None:
    found = recognised(stable.folder)
    assert found.what == "Stable Diffusion, predicts noise, 16 px, tokens of 16"
    assert found.use().endswith("used scheduler, text_encoder, tokenizer, unet, vae")
    assert found.schedule.to_dict() == {
        "betas": "scaled_linear",
        "steps": 1000,
        "prediction": "epsilon",
        "beta_range": [0.00085, 0.012],
        "shift": 1.0,
        "clip": False,
        "threshold": None,
        "to_clean": False,
    }
    assert (found.space.channels, found.space.factor) == (4, 2)


def test_a_transformer_is_one_too(pixart: tiny.Imported) -> None:
    found = recognised(pixart.folder)
    assert found.what == "PixArt-Σ, predicts noise and its variance, 16 px, tokens of 8"
    assert found.use().endswith("used scheduler, text_encoder, tokenizer, transformer, vae")
    assert (found.language.context, found.language.mask) == (300, True)


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "is an inpainting"),
        ("model_index.json", {"_class_name": "StableDiffusionUpscalePipeline"}, "after DeepFloyd IF's second stage"),
        ("model_index.json", {"_class_name": "LatentConsistencyModelPipeline"}, "distilled for a few guided steps"),
        (
            "model_index.json",
            {"_class_name": "FluxFillPipeline"},
            "a FluxFillPipeline is an inpainting model, whose tra",
        ),
        ("model_index.json", {"_class_name": "FluxKontextPipeline"}, "is an image-editing model"),
        ("model_index.json", {"_class_name": "FluxControlNetPipeline"}, "is a model with a ControlNet"),
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, "a Flux2Pipeline is not supported; .*FluxPipeline"),
        ("model_index.json", {"_class_name": "SomePipeline"}, "is not supported; .*StableDiffusionPipeline"),
        ("model_index.json", {"text_encoder": [None, None]}, "has no 'text_encoder', which is needed"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels: it is an inpainting variant"),
        ("model_index.json", {"vae": []}, r"model_index\.json: 'vae' is \[\], expected its library and class"),
        ("model_index.json", {"text_encoder": ["transformers"]}, r"'text_encoder' is \['transformers'\], expected its"),
        ("unet/config.json", {"in_channels": 8}, "takes 8 channels, expected 4, as its autoencoder has 4"),
        (
            "unet/config.json",
            {"_class_name": "UNet2DModel"},
            r"is an? UNet2DModel, expected UNet2DConditionModel; give",
        ),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "it is distilled for a few guided steps"),
        ("unet/config.json", {"class_embed_type": "identity"}, "'class_embed_type' is 'identity'"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, r"distilled for a few steps \(LCM, turbo"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}, r"distilled for a few steps \(LCM, turb"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr' is set"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "neither a DDPM process"),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "'beta_schedule' is 'sigmoid'; only squaredcos_cap_v2, linear, scaled_linear are supported",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'prediction_type' is 'flow'; only epsilon"),
        ("model_index.json", {"_class_name": ""}, r"model_index\.json: does not name its pipeline"),
        (
            "unet/config.json",
            {"sample_size": [8, 16]},
            r"^[^:]*unet/config\.json: 'sample_size' is \[8, 16\]",
        ),
        (
            "unet/config.json",
            {"down_block_types": ["A", "B"]},
            r"network configurations are invalid \(A does not exist",
        ),
        ("text_encoder/config.json", {"max_position_embeddings": None}, "'max_position_embeddings' is None, expected"),
        ("vae/config.json", {"block_out_channels": None}, r"vae/config\.json: lacks 'block_out_channels'"),
        ("vae/config.json", {"latents_mean": [0.0]}, "'latents_mean' is set"),
        ("vae/config.json", {"scaling_factor": None}, "'scaling_factor' is None, expected a number above 0"),
        ("vae/config.json", {"latent_channels": 16}, r"unet/config\.json: takes 4 channels, .* its autoencoder has 16"),
        (
            "vae/config.json",
            {"_class_name": "AutoencoderTiny"},
            "is an AutoencoderTiny; give a model whose",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused_in_words(
    copied: Path, tmp_path: Path, file: str, values: dict[str, Any], why: str
) -> None:
    changed(copied / file, **values)
    with pytest.raises(UserError, match=why):
        import_prior(copied, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_part_that_is_not_there_and_weights_that_are_pickles_are_refused(copied: Path, tmp_path: Path) -> None:
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"unet: contains only pickled weights, which can run code; .*safetensors"):
        import_prior(copied, tmp_path / "model")
    shutil.rmtree(copied / "vae")
    with pytest.raises(UserError, match="has no 'vae', which is needed"):
        import_prior(copied, tmp_path / "model")


def test_a_flow_is_one_too(sana: tiny.Imported, tmp_path: Path) -> None:
    """Named by either scheduler with which it is published."""
    found = recognised(sana.folder)
    assert found.what == "Sana, predicts a flow, 16 px, tokens of 8"
    assert (found.schedule.betas, found.schedule.shift) == ("flow", 3.0)
    assert found.arguments()["flow_shift"] == 3.0
    tiny.sana(tmp_path, euler=True)
    assert recognised(tmp_path / "diffusers").schedule == found.schedule


def test_a_model_that_reads_texts_by_two_tokenizers_keeps_both(sd3: tiny.Imported, tmp_path: Path) -> None:
    found = recognised(sd3.folder)
    assert found.what == "Stable Diffusion 3, predicts a flow, 16 px, tokens of 40"
    assert found.language.context == tiny.CONTEXT + 256
    moved = shutil.copytree(sd3.model, tmp_path / "moved")
    for number in (0, 1):
        assert (moved / tokenizers.TOKENIZER_FOLDER / str(number)).is_dir()
    assert torch.equal(PITIPipeline.from_pretrained(moved).read("a cat"), sd3.ours.read("a cat"))
    shutil.rmtree(moved / tokenizers.TOKENIZER_FOLDER / "1")
    with pytest.raises(UserError, match="download the whole model again"):
        PITIPipeline.from_pretrained(moved).read("a cat")


def test_transformers_does_not_warn_of_a_long_text_that_is_cut(
    sd3: tiny.Imported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It warns of indexing errors, but the text is cut to what is read, and a note says so."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = tokenizers.PretrainedTokenizer(sd3.folder / "tokenizer")
    assert len(tokenizer.encode("cat " * 20)) > tokenizer.most()
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["stable-diffusion-3.5-large-turbo", "FLUX.1-schnell"])
def test_a_folder_that_is_named_as_distilled_is_refused(sd3: tiny.Imported, tmp_path: Path, name: str) -> None:
    """Stable Diffusion 3.5 Large Turbo has the configurations of the model that it was made from."""
    named = shutil.copytree(sd3.folder, tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: its name suggests that it is distilled .* or rename the folder"):
        import_prior(named, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("index", [{"text_encoder_3": [None, None]}, {"text_encoder_3": None}])
def test_stable_diffusion_3_without_its_largest_text_encoder(
    sd3: tiny.Imported, tmp_path: Path, index: dict[str, Any]
) -> None:
    """As who has no room for it leaves it out."""
    copied = shutil.copytree(sd3.folder, tmp_path / "diffusers")
    changed(copied / "model_index.json", **index, tokenizer_3=[None, None])
    shutil.rmtree(copied / "text_encoder_3")
    shutil.rmtree(copied / "tokenizer_3")
    found = recognised(copied)
    assert (found.language.context, found.language.zeros) == (tiny.CONTEXT, 256)
    used = "scheduler, text_encoder, text_encoder_2, tokenizer, tokenizer_2, transformer, vae"
    assert found.use().endswith(f"used {used}")
    changed(copied / "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(UserError, match="has no 'text_encoder_2', which is needed"):
        recognised(copied)


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        (
            "scheduler/scheduler_config.json",
            {"use_dynamic_shifting": True},
            "'use_dynamic_shifting' is set: only flows",
        ),
        (
            "scheduler/scheduler_config.json",
            {"flow_shift": -1.0},
            "'shift' = -1.0: is too small; give more than",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "epsilon"},
            "'prediction_type' is 'epsilon' and 'use_flow_sigmas' True: a flow has 'flow_prediction' and true",
        ),
        (
            "scheduler/scheduler_config.json",
            {"use_flow_sigmas": False},
            "'prediction_type' is 'flow_prediction' and 'use_flow_sigmas' False: a flow has",
        ),
        ("transformer/config.json", {"guidance_embeds": True}, "distilled for a few guided steps; take the model that"),
        (
            "vae/config.json",
            {"_class_name": "AutoencoderTiny"},
            "give a model whose autoencoder is an AutoencoderKL or an",
        ),
        (
            "model_index.json",
            {"_class_name": "SanaSprintPipeline"},
            "a SanaSprintPipeline is distilled for a few guided",
        ),
    ],
)
def test_a_flow_of_another_kind_is_refused(
    sana: tiny.Imported, tmp_path: Path, file: str, values: dict[str, Any], why: str
) -> None:
    refused(sana.folder, tmp_path, file, values, why)


def test_flux_says_where_its_shift_comes_from(flux: tiny.Imported) -> None:
    found = recognised(flux.folder)
    assert found.what == "FLUX.1, predicts a flow, 256 px, tokens of 40"
    used, grown = found.notes()
    assert used.endswith("used scheduler, text_encoder, text_encoder_2, tokenizer, tokenizer_2, transformer, vae")
    assert grown == (
        "its noise levels follow the image's size: shift 3.1581929 for 256 px, the exponential of 1.15, to which each "
        "token of a larger image adds 0.00016927083"
    )
    assert (found.language.context, found.arguments()["patch_size"]) == (tiny.CONTEXT + 512, 2)


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        (
            "transformer/config.json",
            {"guidance_embeds": False},
            "as FLUX.1-schnell, which is distilled for a few steps",
        ),
        (
            "transformer/config.json",
            {"in_channels": 32},
            "takes 32 channels, expected 16, as its .* 4, folded 2 x 2; gi",
        ),
        ("transformer/config.json", {"out_channels": 4}, "outputs 4 channels, expected 16"),
        (
            "scheduler/scheduler_config.json",
            {"time_shift_type": "linear"},
            "'time_shift_type' is 'linear'; only 'expon",
        ),
        ("scheduler/scheduler_config.json", {"max_shift": None}, "'max_shift' is None, expected a number"),
        ("scheduler/scheduler_config.json", {"max_shift": 1e6}, "'shift' = .*: is too large"),
        ("scheduler/scheduler_config.json", {"max_shift": 0.1}, r"its shift \(base_shift 0.5, .*\) does not grow"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.02}, "'shift_terminal' is set: only flows"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "has no 'text_encoder_2', which is needed"),
    ],
)
def test_a_flux_of_another_kind_is_refused(
    flux: tiny.Imported, tmp_path: Path, file: str, values: dict[str, Any], why: str
) -> None:
    refused(flux.folder, tmp_path, file, values, why)


def test_a_flux_with_one_shift_for_all_sizes_is_imported_with_it(flux: tiny.Imported, tmp_path: Path) -> None:
    copied = shutil.copytree(flux.folder, tmp_path / "diffusers")
    changed(copied / "scheduler/scheduler_config.json", use_dynamic_shifting=False)
    found = recognised(copied)
    assert (found.schedule.shift, found.shift_growth, len(found.notes())) == (3.0, 0.0, 1)


def test_a_transformer_of_another_kind_is_refused(pixart: tiny.Imported, tmp_path: Path) -> None:
    copied = shutil.copytree(pixart.folder, tmp_path / "diffusers")
    config = copied / "transformer/config.json"
    # as they were saved once, under the name of another class
    changed(config, _class_name="Transformer2DModel", double_self_attention=False, num_vector_embeds=None)
    import_prior(copied, tmp_path / "model")
    changed(config, num_vector_embeds=8)
    with pytest.raises(UserError, match=r"transformer/config\.json: the transformer's 'num_vector_embeds' is set"):
        import_prior(copied, tmp_path / "other")
    changed(config, num_vector_embeds=None, norm_type="ada_norm")
    with pytest.raises(UserError, match="its network configurations are invalid"):
        import_prior(copied, tmp_path / "other")
    shutil.rmtree(copied / "vae")
    with pytest.raises(UserError, match=r"has no 'vae'.*with its text encoder and its autoencoder, which models of Pi"):
        import_prior(copied, tmp_path / "other")


@pytest.mark.parametrize("fault", ["missing", "more", "shape", "nan"])
def test_weights_that_are_not_what_the_configuration_says_are_refused(copied: Path, tmp_path: Path, fault: str) -> None:
    path, key = copied / "unet/diffusion_pytorch_model.safetensors", "conv_in.weight"
    tensors = load_file(path)
    match fault:
        case "missing":
            del tensors[key]
        case "more":
            tensors["other.weight"] = torch.zeros(1)
        case "shape":
            tensors[key] = tensors[key][:1].clone()
        case _:
            tensors[key][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"conv_in\.weight|does not define, such as 'other\.weight'"):
        import_prior(copied, tmp_path / "model")


@pytest.mark.parametrize("fault", ["missing", "nan"])
def test_an_autoencoder_that_lacks_a_weight_or_holds_nan_is_refused(copied: Path, tmp_path: Path, fault: str) -> None:
    path, key = copied / "vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"
    tensors = load_file(path)
    tensors[key][0] = torch.nan
    save_file({name: x for name, x in tensors.items() if fault == "nan" or name != key}, path, {"format": "pt"})
    with pytest.raises(UserError, match=rf"vae: .*'{key}'"):
        import_prior(copied, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_whose_autoencoder_lacks_a_weight_is_not_loaded_with_one_drawn_at_random(
    stable: tiny.Imported, tmp_path: Path
) -> None:
    folder = shutil.copytree(stable.model, tmp_path / "model")
    path, key = folder / "vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"
    save_file({name: x for name, x in load_file(path).items() if name != key}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"vae: its weights lack '{key}', which config\.json requires"):
        PITIPipeline.from_pretrained(folder)


def test_shards_and_half_precision_are_read(copied: Path, tmp_path: Path) -> None:
    path = copied / "unet/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
    path.unlink()
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, path.with_name(name))
    places = {key: name for name, keys in halves.items() for key in keys}
    index = path.with_name("diffusion_pytorch_model.safetensors.index.fp16.json")
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    import_prior(copied, tmp_path / "model")
    written = load_file(tmp_path / "model/base/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[f"unet.{name}"], tensor) for name, tensor in tensors.items())


def test_a_model_that_was_imported_is_saved_and_loaded_again(stable: tiny.Imported, tmp_path: Path) -> None:
    pipe = stable.ours
    pipe.save_pretrained(tmp_path / "again")
    again = PITIPipeline.from_pretrained(tmp_path / "again")
    assert again.defaults == pipe.defaults
    assert again.schedule is not None
    assert pipe.schedule is not None
    assert again.schedule.spec == pipe.schedule.spec
    ours, theirs = again.base.state_dict(), pipe.base.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_files_are_told_from_folders_and_ids(stable: tiny.Imported) -> None:
    assert is_pipeline(str(stable.folder))
    assert is_pipeline("owner/name")
    assert not is_pipeline("models/base.pt")
    assert not is_pipeline("base.pt")


@pytest.mark.parametrize("name", ["models/none", "./models/none", "none", "a/deep/path"])
def test_a_path_that_is_missing_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def absent(*args: Any, **kwargs: Any) -> str:
        raise OSError("no connection\nand much more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    assert is_pipeline(name)
    with pytest.raises(UserError, match=rf"^there is no folder .*'{name}'.*; check the path, or [^\n]*$"):
        import_prior(name, tmp_path / "model")


def test_a_model_of_this_package_and_an_empty_folder_are_told_as_what_they_are(
    stable: tiny.Imported, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="is already a model of this package; use it directly"):
        import_prior(stable.model, tmp_path / "model")
    with pytest.raises(UserError, match=r"^street: is already a model of this package; use it directly"):
        import_prior("street", tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty: has no model_index\.json; give the complete folder of a diffusers pipeline"
    ):
        import_prior(tmp_path / "empty", tmp_path / "model")


def test_a_tokenizer_without_files_and_one_of_sentencepiece_alone(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepFloyd IF's is published as SentencePiece's file."""
    for path in (copied / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"tokenizer: contains no tokenizer files; download the whole model again$"):
        import_prior(copied, tmp_path / "model")
    (copied / "tokenizer/spiece.model").write_bytes(b"none")
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sentencepiece is not installed; pip install 'piti\[text\]'$"):
        import_prior(copied, tmp_path / "model")


def test_a_folder_of_diffusers_is_told_from_a_model_wherever_a_model_is_named(
    stable: tiny.Imported, tmp_path: Path
) -> None:
    how = f"is a diffusers folder, a StableDiffusionPipeline; import it: piti import {stable.folder} --out FOLDER"
    for line in (
        ["translate", "--text", "a", "--model", str(stable.folder)],
        ["train", "sd15", "--dry-run", "--set", f"prior={stable.folder}"],
    ):
        result = CliRunner().invoke(app, line)
        assert isinstance(result.exception, UserError)
        assert how in with_flags(result.exception)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"base: is of another family and has no released layout"):
        export_release(stable.model, tmp_path / "out")


@pytest.mark.parametrize("key", ["model.diffusion_model.time_embed.0.weight", "down_blocks.0.resnets.0.conv1.weight"])
def test_a_single_file_of_another_family_is_told_from_a_released_one(tmp_path: Path, key: str) -> None:
    save_file({key: torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: is a model of another family, or a part of one; "):
        import_release(tmp_path / "model.safetensors", tmp_path / "model")


def test_options_of_released_files_are_refused_for_a_folder(stable: tiny.Imported, tmp_path: Path) -> None:
    line = ["import", str(stable.folder), "--out", str(tmp_path / "model")]
    for option in (["--weights", "raw"], ["--heads", "2"], ["--upsampler", "up.pt"]):
        result = CliRunner().invoke(app, [*line, *option])
        assert "does not apply" in str(result.exception)
    assert not (tmp_path / "model").exists()
    assert CliRunner().invoke(app, [*line, "--weights", "averaged"]).exit_code == 0


class Held:
    """How many tensors that were read are still there, and the most at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = self.most = self.all = 0
        read = WeightFiles.read

        def counted(files: WeightFiles, name: str) -> torch.Tensor:
            tensor = read(files, name)
            self.bytes += tensor.nbytes
            self.all += tensor.nbytes
            self.most = max(self.most, self.bytes)
            weakref.finalize(tensor, self.dropped, tensor.nbytes)
            return tensor

        monkeypatch.setattr(WeightFiles, "read", counted)

    def dropped(self, size: int) -> None:
        self.bytes -= size


@pytest.mark.parametrize("family", ["stable", "sdxl", "floyd", "pixart", "sana", "sd3", "flux"])
def test_importing_holds_two_tensors_at_most(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The one that is written, and the next one that is read; of UNet and text encoders alike."""
    prior: tiny.Imported = request.getfixturevalue(family)
    held = Held(monkeypatch)
    import_prior(prior.folder, tmp_path / "model")
    written = load_file(tmp_path / "model/base/diffusion_pytorch_model.safetensors")
    assert held.all == sum(tensor.nbytes for tensor in written.values())
    assert held.most <= 2 * max(tensor.nbytes for tensor in written.values())
