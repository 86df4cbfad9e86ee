"""Released files to model folders and back: bit for bit, whole or not at all, and clear about what is wrong."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from piti import exchange
from piti.cli import app
from piti.conditions import ConditionError, PaletteCondition, SketchCondition, TextCondition, coco_stuff
from piti.diffusion.guidance import Guidance
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of, spec_of
from piti.errors import UserError
from piti.exchange import ImportSettings, export_release, import_release
from piti.models import Translator
from piti.models.checkpoints import ModelFolder, write_model_folder
from piti.models.release import Heads, as_released, expected_shapes, our_tensors
from piti.pipeline import PITIPipeline
from tests.conftest import TINY_CLASSES
from tests.released import TINY, encoder_weights, tiny_weights
from tests.test_cli import mistake

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
    settings = piti.sampling()
    assert settings.upsampler is not None
    assert (settings.base.guidance, settings.base.steps) == (Guidance(kind="plain", w=0.3), 250)
    assert (settings.base.sampler, settings.upsampler.sampler) == ("ddpm", "ddpm")
    assert (settings.upsampler.steps, settings.upsampler.noise) == ("fast27", 0.997)
    assert (settings.upsampler.guidance.w, settings.upsampler.truncates) == (0, True)


def test_glide_s_conditions_and_settings(tmp_path: Path) -> None:
    glide = PITIPipeline.from_pretrained(imported(tmp_path, "glide", "glide_up"))
    assert isinstance(glide.condition, TextCondition)
    assert (glide.condition.context, glide.condition.tokenizer.size) == (6, 40)
    settings = glide.sampling()
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
    folder = imported(tmp_path, "piti", classes=tmp_path / "classes.json", overwrite=True)
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
    assert PITIPipeline.from_pretrained(tmp_path / "model").defaults["steps"] == 250


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
    base, scheduler = ModelFolder.open(tmp_path / "model").load("base", "scheduler", torch.float32)
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
    "an upsampler as base": (_UP, None, {}, "base.pt: is a PITI upsampler; give it as --upsampler"),
    "a base as upsampler": (_PITI, _GLIDE, {}, "--upsampler .*up.pt: is a GLIDE base; give it as BASE"),
    "an encoder as upsampler": (_PITI, encoder_weights(), {}, "up.pt: is a PITI encoder alone"),
    "an encoder without a prior": (encoder_weights(), None, {}, "an encoder alone.*--prior"),
    "a whole file with a prior": (_PITI, None, {"prior": "glide.pt"}, "PITI base and has a UNet; leave --prior out"),
    "an encoder as prior": (encoder_weights(), None, {"prior": "stage1.pt"}, "is an encoder alone as well"),
    "an upsampler as prior": (encoder_weights(), None, {"prior": "piti_up.pt"}, "--prior .*is an upsampler"),
    "a prior of another width": (encoder_weights(), None, {"prior": "wide.pt"}, "tokens of width 64.*makes 32"),
    "no prior there": (encoder_weights(), None, {"prior": "nowhere"}, "there is no model"),
    "another family": (_PITI, tiny_weights("glide_up"), {}, "the upsampler reads text, not the condition 'palette'"),
    "other channels": (tiny_weights("sketch"), _UP, {}, "reads 3 channels, but the condition 'sketch' has 1"),
    "a tokenizer for masks": (_PITI, None, {"tokenizer": "."}, "--tokenizer .*reads 'palette'"),
    "classes for texts": (_GLIDE, None, {"classes": "c.json"}, "--classes .*reads 'text'"),
    "no classes there": (_PITI, None, {"classes": "c.json"}, "c.json: cannot read"),
    "no tokenizer there": (_GLIDE, None, {"tokenizer": "."}, "holds none of vocab.json"),
    "not a number": (nan_in("piti", "decoder.out.0.bias"), None, {}, "base.pt: 'decoder.out.0.bias' has 1 of 32"),
    "not a number later": (_PITI, nan_in("piti_up", "decoder.out.2.bias"), {}, "up.pt: 'decoder.out.2.bias' has 1"),
    "another layout": ({"w": torch.zeros(3)}, None, {}, "base.pt: is neither GLIDE's nor PITI's.*'w'"),
    "another number of channels": (
        tiny_weights("piti", encoder_spec=TINY["piti"]["encoder_spec"] | {"in_channels": 4}), None, {},
        "reads 4 channels; PITI's read 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    base, upsampler, settings, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    for name, weights in (("stage1", encoder_weights()), ("wide", tiny_weights("glide", **_WIDE))):
        file(tmp_path, name, weights)
    file(tmp_path, "piti_up")
    up = None if upsampler is None else file(tmp_path, "up", upsampler)
    path = file(tmp_path, "base", base)
    was = files_in(tmp_path)
    chosen = ImportSettings(**{k: v if k == "prior" else Path(v) for k, v in settings.items()})
    with pytest.raises(UserError, match=f"(?s){message}"):
        import_release(path, tmp_path / "deep/model", up, chosen)
    assert files_in(tmp_path) == was
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = imported(tmp_path, "piti")
    was, real = files_in(tmp_path), exchange.write_weights
    file(tmp_path, "glide"), file(tmp_path, "glide_up")
    was = files_in(tmp_path)

    def failing(path: Path, kinds: Any, tensors: Any) -> None:
        def some() -> Any:
            for k, tensor in enumerate(tensors):
                if k == 20 and "upsampler" in str(path):
                    raise error
                yield tensor

        real(path, kinds, some())

    monkeypatch.setattr(exchange, "write_weights", failing)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt, match=r"space|$"):
        import_release(tmp_path / "glide.pt", folder, tmp_path / "glide_up.pt", settings=ImportSettings(overwrite=True))
    assert files_in(tmp_path) == was
    assert {path.name for path in tmp_path.iterdir()} == {"glide.pt", "glide_up.pt", "piti.pt", "model"}


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti", "piti_up")
    with pytest.raises(UserError, match="add --overwrite"):
        imported(tmp_path, "glide")
    imported(tmp_path, "glide", overwrite=True)
    assert "upsampler" not in ModelFolder.open(folder)
    inside = file(folder, "piti")
    with pytest.raises(UserError, match=r"holds .*piti.pt, which is read"):
        import_release(inside, folder, settings=ImportSettings(overwrite=True))


# The tokenizer

PIECES = [chr(k) for k in range(97, 123)] + ["Ġ", "th", "the", "Ġthe", "<|endoftext|>"] + [f"x{k}" for k in range(9)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Byte pairs of 40 ids, in the files that transformers writes."""
    pytest.importorskip("tokenizers")
    folder = tmp_path / "gpt2"
    folder.mkdir()
    assert len(PIECES) == 40
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(PIECES)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    (folder / "README").write_text("not needed")
    return folder


def test_a_tokenizer_travels_with_the_model(tmp_path: Path, tokenizer: Path) -> None:
    folder = imported(tmp_path, "glide", tokenizer=tokenizer)
    config = json.loads((folder / "condition.json").read_text())
    assert config["tokenizer"]["folder"] == "tokenizer"
    moved = folder.rename(tmp_path / "elsewhere")
    assert {path.name for path in (moved / "tokenizer").iterdir()} == {"vocab.json", "merges.txt"}
    pipeline = PITIPipeline.from_pretrained(moved)
    assert isinstance(pipeline.condition, TextCondition)
    assert pipeline.condition.tokens("The cat")[0, 0].tolist() == [28, 26, 2, 0, 19, -1]
    pipeline.save_pretrained(tmp_path / "again")
    pipeline.save_pretrained(moved)
    for saved in ("again", "elsewhere"):
        condition = ModelFolder.open(tmp_path / saved).condition
        assert isinstance(condition, TextCondition)
        assert condition.tokens("the")[0, 0, 0] == 28


def test_where_a_tokenizer_lies_does_not_part_a_cascade(tmp_path: Path, tokenizer: Path) -> None:
    first = imported(tmp_path, "glide", "glide_up").rename(tmp_path / "first")
    second = imported(tmp_path, "glide", "glide_up", tokenizer=tokenizer)
    assert PITIPipeline.from_pretrained(second, upsampler=first).upsampler is not None


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tokenizer / "vocab.json").write_text("{}")
    with pytest.raises(ConditionError, match="the vocabulary has 0 ids, the model 40"):
        imported(tmp_path, "glide", tokenizer=tokenizer)
    assert not (tmp_path / "model").exists()


# Export


@pytest.mark.parametrize(("base", "upsampler"), CASCADES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_was_imported_comes_out_as_it_was(
    tmp_path: Path, base: str, upsampler: str | None, dtype: torch.dtype
) -> None:
    names = {"base": base} | ({"upsampler": upsampler} if upsampler else {})
    originals: dict[str, dict[str, Tensor]] = {}
    for network, name in names.items():
        weights = {key: value.to(dtype) for key, value in tiny_weights(name).items()}
        weights["".join(key for key in weights if key.endswith("out.0.bias"))].data = torch.ones(32)
        originals[network] = weights
    paths = [file(tmp_path, network, weights) for network, weights in originals.items()]
    import_release(paths[0], tmp_path / "model", *paths[1:])
    export_release(tmp_path / "model", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{network}.pt" for network in names}
    for network, original in originals.items():
        back = torch.load(tmp_path / "out" / f"{network}.pt", weights_only=True)
        assert list(back) == list(original)
        assert all(back[key].dtype == original[key].dtype for key in original)
        assert all(torch.equal(back[key], original[key]) for key in original)
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in back.values())


def test_a_single_network_is_exported_to_a_file(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti")
    export_release(folder, tmp_path / "out.pt")
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == list(tiny_weights("piti"))
    with pytest.raises(UserError, match="add --overwrite"):
        export_release(folder, tmp_path / "out.pt")
    cascade = imported(tmp_path, "piti", "piti_up", overwrite=True)
    with pytest.raises(UserError, match="has base and upsampler; give a folder"):
        export_release(cascade, tmp_path / "out.pt", overwrite=True)


def test_exports_are_replaced_only_when_asked_and_nothing_else_ever(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti")
    export_release(folder, tmp_path / "out")
    with pytest.raises(UserError, match="add --overwrite"):
        export_release(folder, tmp_path / "out")
    export_release(folder, tmp_path / "out", overwrite=True)
    (tmp_path / "out/notes").write_text("mine")
    with pytest.raises(UserError, match="other things"):
        export_release(folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes").read_text() == "mine"


def test_a_full_disk_leaves_no_half_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = imported(tmp_path, "piti")

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"out.pt: cannot be written .*unexpected pos 704 vs 598\)"):
        export_release(folder, tmp_path / "out.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"piti.pt", "model"}


def test_heads_of_unusual_size_are_told(tmp_path: Path) -> None:
    heads = Heads(head_dim=16, heads=4)
    folder = imported(tmp_path, "piti", heads=heads)
    (done,) = export_release(folder, tmp_path / "out.pt")
    assert done.what == "PITI base (to import: --head-dim 16 --heads 4)"
    import_release(tmp_path / "out.pt", tmp_path / "again", settings=ImportSettings(heads=heads))
    name = "base/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_models_without_a_released_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base: has no released layout: it folds patches of \d px.*aligned residuals"):
        export_release("street", tmp_path / "out")
    folder = imported(tmp_path, "piti")
    scheduler = scheduler_of(ScheduleSpec(prediction="v_prediction"))
    assert isinstance(scheduler, DDPMScheduler)
    scheduler.save_pretrained(folder / "scheduler")
    with pytest.raises(UserError, match="trained with squaredcos_cap_v2, 1000, v_prediction; the layout stands for"):
        export_release(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


# Memory

MEASURE = """
import resource, sys
from pathlib import Path
import torch
from piti.exchange import import_release
from piti.models import Translator
with torch.device("meta"):
    Translator()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
import_release(Path(sys.argv[1]), Path(sys.argv[2]))
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts KiB, as Linux does")
def test_importing_takes_little_more_memory_than_the_file_is_large(tmp_path: Path) -> None:
    """The whole process, pages of the file that lie in memory included."""
    unet = {"channels": [128, 256, 384, 512], "layers": 1}
    config = {"encoder_spec": {"layers": 1}, "unet_spec": unet, "image_size": 64}
    shapes = expected_shapes(as_released(config).rules, our_tensors(config))
    path = file(tmp_path, "large", {key: torch.ones(shape) for key, shape in shapes.items()})
    assert path.stat().st_size > 3e8
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, path, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 1.3
