"""Released files to model folders and back: bit-exact, atomic, with clear errors."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from piti.checkpoints import convert
from piti.checkpoints.convert import ImportSettings, import_release
from piti.checkpoints.export import export_release
from piti.checkpoints.folder import ModelFolder
from piti.checkpoints.release import Heads
from piti.checkpoints.writing import write_model_folder
from piti.cli.app import app
from piti.conditions import PaletteCondition, SketchCondition, TextCondition, coco_stuff
from piti.core.errors import UserError
from piti.diffusion.guidance import Guidance
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of, spec_of
from piti.models import Translator
from piti.pipelines.options import OWN_SAMPLING
from piti.pipelines.pipeline import PITIPipeline
from tests.cli.running import printed_error as mistake
from tests.conftest import TINY_CLASSES
from tests.released import TINY, encoder_weights, tiny_weights

CASCADES = [("piti", "piti_up"), ("glide", "glide_up"), ("inpaint", "inpaint_up"), ("sketch", None)]


def file(folder: Path, name: str, weights: dict[str, Tensor] | None = None, suffix: str = ".pt") -> Path:
    """A released file with tiny networks, or with the given weights."""
    path = folder / f"{name}{suffix}"
    weights = tiny_weights(name) if weights is None else weights
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def imported(folder: Path, base: str, upsampler: str | None = None, **settings: Any) -> Path:
    out = folder / "model"
    up = None if upsampler is None else file(folder, upsampler)
    import_release(file(folder, base), out, up, ImportSettings(**settings))
    return out


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Import


@pytest.mark.parametrize(("base", "upsampler"), CASCADES)
def test_an_imported_model_is_a_pipeline(tmp_path: Path, base: str, upsampler: str | None) -> None:
    pipeline = PITIPipeline.from_pretrained(imported(tmp_path, base, upsampler))
    pipeline.set_progress_bar_config(disable=True)
    assert spec_of(pipeline.scheduler) == ScheduleSpec(prediction="epsilon")
    text = isinstance(pipeline.condition, TextCondition)
    raw = torch.full((1, 1, 6), 3) if text else torch.zeros(1, 20, 20, dtype=torch.uint8)
    images = pipeline(raw, steps=2, generator=torch.Generator().manual_seed(0), base_only=True).images
    assert images[0].size == (16, 16)
    if upsampler is not None:
        assert spec_of(pipeline.upsampler_scheduler) == ScheduleSpec(betas="linear", prediction="epsilon")
        images = pipeline(raw, steps=2, upsampler_steps=2, generator=torch.Generator().manual_seed(0)).images
        assert images[0].size == (64, 64)


def test_conditions_and_settings_are_the_release_s(tmp_path: Path) -> None:
    piti = PITIPipeline.from_pretrained(imported(tmp_path, "piti", "piti_up"))
    assert piti.condition == PaletteCondition(coco_stuff())
    assert torch.equal(piti.condition.null(1, 4, 4), torch.ones(1, 3, 4, 4))
    settings = OWN_SAMPLING.resolve(piti)
    assert settings.upsampler is not None
    assert (settings.base.guidance, settings.base.steps) == (Guidance(kind="plain", w=0.3), 250)
    assert (settings.base.sampler, settings.upsampler.sampler) == ("ddpm", "ddpm")
    assert (settings.upsampler.steps, settings.upsampler.noise) == ("fast27", 0.997)
    assert (settings.upsampler.guidance, settings.upsampler.truncates) == (Guidance(kind="plain", w=0.0), True)


def test_glide_s_conditions_and_settings(tmp_path: Path) -> None:
    glide = PITIPipeline.from_pretrained(imported(tmp_path, "glide", "glide_up"))
    assert isinstance(glide.condition, TextCondition)
    assert (glide.condition.context, glide.condition.tokenizer.size) == (6, 40)
    settings = OWN_SAMPLING.resolve(glide)
    assert settings.upsampler is not None
    assert (settings.base.guidance, settings.base.steps) == (Guidance(kind="plain", w=2.0), 100)
    assert (settings.upsampler.sampler, settings.upsampler.steps) == ("ddim", "fast27")
    assert not settings.upsampler.truncates


def test_colours_and_class_ids_translate_to_the_same_images(tmp_path: Path) -> None:
    model = imported(tmp_path, "piti", "piti_up")
    ids = np.random.default_rng(0).integers(0, 182, (4, 4)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    ids[:8] = 255
    table = np.zeros((256, 3), np.uint8)
    table[:182] = coco_stuff().colours
    (tmp_path / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "masks/ids.png")
    Image.fromarray(table[ids]).save(tmp_path / "masks/colours.png")
    with_palette = Image.fromarray(ids).convert("P")
    with_palette.putpalette(table.flatten().tolist())
    with_palette.save(tmp_path / "masks/palette.png")
    arguments = ["--model", model, "--num", 1, "--steps", 2, "--upsampler-steps", 2, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, ["translate", str(tmp_path / "masks"), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    made = [Image.open(tmp_path / f"out/{name}_0.png").tobytes() for name in ("ids", "colours", "palette")]
    assert made[0] == made[1] == made[2]


def test_sketches_and_a_table_of_one_s_own(tmp_path: Path) -> None:
    assert ModelFolder.open(imported(tmp_path, "sketch")).condition == SketchCondition(threshold=0.6, null_value=1.0)
    (tmp_path / "classes.json").write_text(json.dumps(TINY_CLASSES))
    folder = imported(tmp_path, "piti", classes=tmp_path / "classes.json", masks="colours", overwrite=True)
    condition = ModelFolder.open(folder).condition
    assert isinstance(condition, PaletteCondition)
    assert condition.classes.names == ("sky", "road", "car")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    weights = {key: value.to(dtype) for key, value in tiny_weights("piti").items()}
    weights["decoder.out.0.bias"] = weights["decoder.out.0.bias"].double()
    import_release(file(tmp_path, "piti", weights, suffix), tmp_path / "model")
    ours = load_file(tmp_path / "model/base/diffusion_pytorch_model.safetensors")
    assert ours.pop("unet.conv_norm_out.bias").dtype == torch.float64
    assert {tensor.dtype for tensor in ours.values()} == {dtype}


def test_the_folder_is_what_a_saved_pipeline_s_is(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti", "piti_up")
    PITIPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    first, second = files_in(folder), files_in(tmp_path / "again")
    assert first.keys() == second.keys()
    for name in ("base/config.json", "upsampler/config.json", "condition.json"):
        assert json.loads(first[name]) == json.loads(second[name])
    for network in ("base", "upsampler"):
        name = f"{network}/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(folder / name), load_file(tmp_path / "again" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# An encoder alone


def test_an_encoder_alone_takes_a_prior_s_unet(tmp_path: Path) -> None:
    prior, alone = tiny_weights("glide"), encoder_weights()
    base = file(tmp_path, "stage1", alone)
    import_release(base, tmp_path / "model", settings=ImportSettings(prior=file(tmp_path, "glide", prior)))
    export_release(tmp_path / "model", tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert all(torch.equal(whole[f"encoder.{key}"], value) for key, value in alone.items())
    of_unet = {key.removeprefix("decoder."): value for key, value in whole.items() if key.startswith("decoder.")}
    assert all(torch.equal(value, prior[key]) for key, value in of_unet.items())
    assert PITIPipeline.from_pretrained(tmp_path / "model").defaults.base.steps == 250


@pytest.mark.parametrize("prior", ["piti", "folder"])
def test_a_prior_is_a_released_file_or_a_model(tmp_path: Path, prior: str) -> None:
    source: Path = file(tmp_path, "piti")
    if prior == "folder":
        import_release(source, tmp_path / "prior")
        source = tmp_path / "prior"
    alone = file(tmp_path, "stage1", encoder_weights(prefix="encoder."))
    import_release(alone, tmp_path / "model", settings=ImportSettings(prior=source))
    export_release(tmp_path / "model", tmp_path / "whole.pt")
    whole, piti = torch.load(tmp_path / "whole.pt", weights_only=True), tiny_weights("piti")
    assert list(whole) == list(piti)
    encoder = encoder_weights(prefix="encoder.")
    assert all(torch.equal(value, encoder.get(key, piti[key])) for key, value in whole.items())


def test_a_prior_s_own_schedule_stays(tmp_path: Path) -> None:
    """A prior trained here may predict velocity, with patches; the encoder joins it as it is."""
    torch.manual_seed(0)
    config = TINY["glide"] | {"patch_size": 2, "image_size": 32}
    parts: Any = {"base": Translator(**config), "scheduler": scheduler_of(ScheduleSpec(prediction="v_prediction"))}
    write_model_folder(tmp_path / "prior", parts, TextCondition(6).to_config(), {})
    alone = file(tmp_path, "stage1", encoder_weights())
    import_release(alone, tmp_path / "model", settings=ImportSettings(prior=tmp_path / "prior"))
    base, scheduler = ModelFolder.open(tmp_path / "model").load("base", torch.float32)
    assert base.config["patch_size"] == 2
    assert spec_of(scheduler).prediction == "v_prediction"
    assert all(torch.equal(v, base.state_dict()[f"unet.{k}"]) for k, v in parts["base"].unet.state_dict().items())


# Mistakes


def nan_in(name: str, key: str) -> dict[str, Tensor]:
    weights = tiny_weights(name)
    weights[key].view(-1)[-1] = float("nan")
    return weights


Case = tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any], str]
_GLIDE, _PITI, _UP = tiny_weights("glide"), tiny_weights("piti"), tiny_weights("piti_up")
_WIDE = TINY["glide"] | {"text_spec": TINY["glide"]["text_spec"] | {"width": 64}}
_WIDE["unet_spec"] = TINY["glide"]["unet_spec"] | {"token_width": 64}
MISTAKES: dict[str, Case] = {
    "an upsampler as base": (_UP, None, {}, "base.pt: is a PITI upsampler; give it as upsampler"),
    "a base as upsampler": (_PITI, _GLIDE, {}, "upsampler .*up.pt: is a GLIDE base; give it as BASE"),
    "an encoder as upsampler": (_PITI, encoder_weights(), {}, "up.pt: is a PITI encoder only"),
    "an encoder without a prior": (encoder_weights(), None, {}, "only an encoder.*, prior GLIDE"),
    "a whole file with a prior": (_PITI, None, {"prior": "glide.pt"}, "which has its own UNet; leave prior out"),
    "an encoder as prior": (encoder_weights(), None, {"prior": "stage1.pt"}, "is only an encoder, too"),
    "an upsampler as prior": (encoder_weights(), None, {"prior": "piti_up.pt"}, "prior .*is an upsampler"),
    "a prior of another width": (encoder_weights(), None, {"prior": "wide.pt"}, "tokens of width 64.*produces 32"),
    "no prior there": (encoder_weights(), None, {"prior": "nowhere"}, "there is no model"),
    "another family": (
        _PITI, tiny_weights("glide_up"), {},
        "upsampler .*up.pt: the upsampler reads text, not .*'palette'; give the upsampler .* with .*base.pt$",
    ),
    "other channels": (tiny_weights("sketch"), _UP, {}, "reads 3 channels, but the condition 'sketch' has 1"),
    "a tokenizer for masks": (_PITI, None, {"tokenizer": "."}, "tokenizer .*reads 'palette'"),
    "masks for texts": (_GLIDE, None, {"masks": "colours"}, "masks colours: does not apply, .*reads 'text'"),
    "classes for texts": (_GLIDE, None, {"classes": "c.json"}, "classes .*reads 'text'"),
    "heads that do not divide": (
        _PITI, None, {"heads": Heads(heads=5)}, r"^[^\n]*width 32, not a multiple of heads 5$"
    ),
    "no classes there": (_PITI, None, {"classes": "c.json"}, "c.json: cannot read"),
    "no tokenizer there": (_GLIDE, None, {"tokenizer": "."}, "contains none of vocab.json"),
    "not a number": (nan_in("piti", "decoder.out.0.bias"), None, {}, "base.pt: 'decoder.out.0.bias' has 1 of 32"),
    "not a number later": (_PITI, nan_in("piti_up", "decoder.out.2.bias"), {}, "up.pt: 'decoder.out.2.bias' has 1"),
    "another layout": ({"w": torch.zeros(3)}, None, {}, "base.pt: is neither a GLIDE nor a PITI checkpoint.*'w'"),
    "another number of channels": (
        tiny_weights("piti", encoder_spec=TINY["piti"]["encoder_spec"] | {"in_channels": 4}), None, {},
        r"base\.pt: its encoder reads 4 channels, and PITI's read a mask in colours .*"
        "give their classes: classes FILE",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that mistakes name as priors."""
    folder = tmp_path_factory.mktemp("priors")
    file(folder, "stage1", encoder_weights())
    file(folder, "wide", tiny_weights("glide", **_WIDE))
    file(folder, "piti_up")
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(
    tmp_path: Path, priors: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    base, upsampler, settings, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    for path in priors.iterdir():
        os.link(path, tmp_path / path.name)
    up = None if upsampler is None else file(tmp_path, "up", upsampler)
    path = file(tmp_path, "base", base)
    was = files_in(tmp_path)
    chosen = ImportSettings(**{k: v if k in ("prior", "heads", "masks") else Path(v) for k, v in settings.items()})
    with pytest.raises(UserError, match=f"(?s){message}"):
        import_release(path, tmp_path / "deep/model", up, chosen)
    assert files_in(tmp_path) == was
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, r"cannot be written \(No space left on device\)"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "^stop$"),
    ],
)
def test_a_full_disk_or_an_interruption_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    folder = imported(tmp_path, "piti")
    was, real = files_in(tmp_path), convert.write_weights
    file(tmp_path, "glide"), file(tmp_path, "glide_up")
    was = files_in(tmp_path)

    def failing(path: Path, kinds: Any, tensors: Any) -> None:
        def some() -> Any:
            for k, tensor in enumerate(tensors):
                if k == 20 and "upsampler" in str(path):
                    raise error
                yield tensor

        real(path, kinds, some())

    monkeypatch.setattr(convert, "write_weights", failing)
    with pytest.raises(raised, match=message):
        import_release(tmp_path / "glide.pt", folder, tmp_path / "glide_up.pt", settings=ImportSettings(overwrite=True))
    assert files_in(tmp_path) == was
    assert {path.name for path in tmp_path.iterdir()} == {"glide.pt", "glide_up.pt", "piti.pt", "model"}


@pytest.mark.parametrize("zeroed", [0.2, 0.5, 0.8])
def test_a_damaged_archive_is_refused(tmp_path: Path, zeroed: float) -> None:
    path = file(tmp_path, "piti")
    data = bytearray(path.read_bytes())
    start = int(zeroed * len(data))
    data[start : start + 1000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"piti.pt: is damaged, '.*/data/\d+' has changed since it was saved.*download it again"
    ):
        import_release(path, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"piti.pt"}


OTHERS: dict[str, dict[str, str]] = {
    "another pipeline": {"model_index.json": '{"_class_name": "DDPMPipeline"}'},
    "not an index": {"model_index.json": "mine"},
    "no object": {"model_index.json": "[]"},
    "a model, and photographs": {"model_index.json": '{"_class_name": "PITIPipeline"}', "cat.jpg": "mine"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_of_others_is_never_replaced(tmp_path: Path, case: str) -> None:
    (tmp_path / "model").mkdir()
    for name, text in OTHERS[case].items():
        (tmp_path / "model" / name).write_text(text)
    with pytest.raises(UserError, match="model: holds other files"):
        imported(tmp_path, "piti", overwrite=True)
    assert {name: (tmp_path / "model" / name).read_text() for name in OTHERS[case]} == OTHERS[case]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti", "piti_up")
    with pytest.raises(UserError, match="add overwrite"):
        imported(tmp_path, "glide")
    imported(tmp_path, "glide", overwrite=True)
    assert "upsampler" not in ModelFolder.open(folder)
    (folder / "README.md").write_text("a model's card")
    imported(tmp_path, "glide", overwrite=True)
    assert not (folder / "README.md").exists()
    inside = file(folder, "piti")
    with pytest.raises(UserError, match=r"contains .*piti.pt, an input"):
        import_release(inside, folder, settings=ImportSettings(overwrite=True))


# The command line


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    base, up, out = file(tmp_path, "piti"), file(tmp_path, "piti_up"), tmp_path / "model"
    runner = CliRunner()
    result = runner.invoke(app, ["import", str(base), "--upsampler", str(up), "--out", str(out)])
    assert result.exit_code == 0
    assert "PITI base" in result.stdout
    assert "PITI upsampler" in result.stdout
    result = runner.invoke(app, ["export", str(out), "--layout", "release", "--out", str(tmp_path / "back")])
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["base.pt", "upsampler.pt"]
    assert "give it as --upsampler" in mistake(monkeypatch, capfd, "import", up, "--out", tmp_path / "other")
    assert "add --overwrite" in mistake(monkeypatch, capfd, "import", base, "--out", out)
