"""Unusual diffusers folders: EMA weights, only variants, quantised weights."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from piti.checkpoints.prior_folders import recognised
from piti.checkpoints.priors import import_prior
from piti.conditions.tokenizers import PretrainedTokenizer
from piti.core.errors import UserError
from piti.models.foreign import foreign_network
from tests.priors import tiny
from tests.priors.test_import import changed

pytest.importorskip("transformers")

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(stable: tiny.Imported, tmp_path: Path) -> Path:
    return shutil.copytree(stable.folder, tmp_path / "diffusers")


def renamed(path: Path, name: str, dtype: torch.dtype) -> None:
    """Write weights in another type, under another name."""
    tensors = {key: tensor.to(dtype) if tensor.ndim > 1 else tensor for key, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path.with_name(name), {"format": "pt"})


def test_the_average_of_a_training_by_diffusers_is_imported(copied: Path, tmp_path: Path) -> None:
    """Its `EMAModel` writes what it is itself into the network's configuration."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    unet = UNet2DConditionModel.from_pretrained(copied / "unet")
    average: Any = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    average.save_pretrained(copied / "unet")
    assert "optimization_step" in json.loads((copied / "unet/config.json").read_text(encoding="utf-8"))
    import_prior(copied, tmp_path / "model")
    written = json.loads((tmp_path / "model/base/config.json").read_text(encoding="utf-8"))
    assert "optimization_step" not in written["unet_config"]


def test_switches_that_this_diffusers_does_not_know_are_left_out_where_they_are_off(copied: Path) -> None:
    changed(copied / "unet/config.json", later=None, later_too=False)
    foreign_network(recognised(copied).unet)
    changed(copied / "unet/config.json", later="on")
    with pytest.raises(UserError, match=r"unet/config\.json: 'later' is 'on', which UNet2DConditionModel .*; install"):
        recognised(copied).network()


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_weights_of_a_variant_alone_are_read(copied: Path, tmp_path: Path, variant: str) -> None:
    """Sana is published in bf16 too, one of its folders in that alone."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    for path in sorted(copied.glob("*/*.safetensors")):
        renamed(path, f"{path.stem}.{variant}.safetensors", dtype)
    import_prior(copied, tmp_path / "model")
    written = load_file(tmp_path / "model/base" / WEIGHTS)
    held = load_file(copied / f"unet/diffusion_pytorch_model.{variant}.safetensors")
    assert all(torch.equal(written[f"unet.{name}"], tensor) for name, tensor in held.items())


def test_weights_under_other_names_and_quantised_ones_are_told_as_what_they_are(copied: Path, tmp_path: Path) -> None:
    renamed(copied / "unet" / WEIGHTS, "diffusion_pytorch_model.non_ema.safetensors", torch.float32)
    with pytest.raises(
        UserError, match=r"unet: contains only weights with other names, such as .*non_ema\.safetensors"
    ):
        import_prior(copied, tmp_path / "model")
    renamed(copied / "unet/diffusion_pytorch_model.non_ema.safetensors", WEIGHTS, torch.float8_e4m3fn)
    with pytest.raises(UserError, match=r"'conv_in\.weight' has dtype F8_E4M3: only F16, .* quantisation"):
        import_prior(copied, tmp_path / "model")


def test_t5_in_half_precision_ends_in_numbers_beyond_it(floyd: tiny.Imported) -> None:
    """As transformers has it, which keeps some of its weights in float32."""
    encoder = copy.deepcopy(floyd.ours.base.encoder)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith((".wi.weight", ".wo.weight")):
                weight.mul_(2000)
    ids = torch.tensor([4, 5, 6, 1, *[-1] * (encoder.spec.context - 4)]).view(1, 1, 1, -1)
    exact = encoder(ids).sequence
    assert torch.isfinite(exact).all()
    half = encoder.half()(ids).sequence
    assert half.dtype is torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.02)


def test_a_tokenizer_whose_files_do_not_belong_together_is_named(tmp_path: Path) -> None:
    tiny.clip_tokenizer(tmp_path)  # its merges name a token that its vocabulary does not hold
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"cannot be loaded by any tokenizer of transformers \(.*`ab` out of vocabulary\); download"
    ):
        PretrainedTokenizer(tmp_path).vocabulary()
