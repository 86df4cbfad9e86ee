"""Base and upsampler together: inputs of the upsampler, its noise, its settings, and incompatible models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from piti.checkpoints.folder import ModelError
from piti.checkpoints.joining import share_upsampler
from piti.checkpoints.listing import ModelEntry
from piti.checkpoints.writing import write_model_folder
from piti.cli.app import app
from piti.conditions import NoCondition, condition_from_config
from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.core.images import quantized, to_pil, to_tensor, truncated
from piti.core.seeding import generator_for
from piti.diffusion.samplers import initial_noise, sample
from piti.diffusion.schedule import Estimate, NoiseSchedule, ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.diffusion.spacing import space_timesteps
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.models import Translator
from piti.pipelines.options import OWN_SAMPLING
from piti.pipelines.pipeline import PITIPipeline
from tests.conftest import TINY_MODEL
from tests.pipelines.test_pipeline import CLASSES, arrays, mask, seeded, tiny_pipeline

LINEAR = ScheduleSpec(betas="linear", prediction="epsilon")
FAST = {"steps": 2, "upsampler_steps": 2}


def tiny_upsampler(conditional: bool, image_size: int = 32, low_res: int = 16, one_step: bool = False) -> Translator:
    torch.manual_seed(1)
    if conditional:
        specs: dict[str, Any] = {
            "encoder_spec": TINY_MODEL["encoder"] | {"size": 32},  # type: ignore[operator]
            "unet_spec": TINY_MODEL["unet"],
        }
    else:
        unet = {"channels": [16, 32], "attention": [False] * 2, "layers": 1, "token_width": None, "norm_groups": 8}
        specs = {"unet_spec": unet}
    return Translator(**specs, image_size=image_size, patch_size=2, low_res=low_res, one_step=one_step).eval()


def tiny_cascade(conditional: bool = False, one_step: bool = False, **defaults: Any) -> PITIPipeline:
    base = tiny_pipeline()
    pipeline = PITIPipeline(
        base.base,
        base.scheduler,
        base.condition,
        tiny_upsampler(conditional, one_step=one_step),
        scheduler_of(LINEAR),
        defaults=FAST | defaults,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def watch(pipeline: PITIPipeline, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the upsampler is called with, call by call."""
    seen: list[dict[str, Any]] = []
    assert pipeline.upsampler is not None
    real = pipeline.upsampler.forward

    def forward(x_t: torch.Tensor, t: torch.Tensor, given: Any, low_res: torch.Tensor | None = None) -> Any:
        seen.append({"x_t": x_t, "t": t, "low_res": low_res})
        return real(x_t, t, given, low_res)

    monkeypatch.setattr(pipeline.upsampler, "forward", forward)
    return seen


@pytest.mark.parametrize("conditional", [False, True])
def test_the_upsampler_enlarges_what_base_only_gives(conditional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_cascade(conditional)
    seen = watch(pipeline, monkeypatch)
    large = pipeline([mask(1), mask(2)], num_images=2, generator=seeded()).images
    assert {image.size for image in large} == {(32, 32)}
    small = pipeline([mask(1), mask(2)], num_images=2, generator=seeded(), base_only=True).images
    assert {image.size for image in small} == {(16, 16)}
    assert len(seen) == 2 * len(small)  # one by one, as on every CPU
    for call, image in zip(seen, 2 * small, strict=True):
        assert torch.equal(call["low_res"], to_tensor(image)[None])  # 8 bits, exactly


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++sde"])
def test_the_same_seed_gives_the_same_image_whatever_the_batch(conditional: bool, sampler: str) -> None:
    pipeline, masks = tiny_cascade(conditional), [mask(1), mask(2)]

    def made(batch: int) -> np.ndarray:
        settings: Any = {"num_images": 3, "upsampler_sampler": sampler, "batch_size": batch}
        return arrays(pipeline(masks, generator=seeded(), **settings).images)

    whole = made(6)
    for batch in (1, 4):
        assert np.abs(made(batch) - whole).max() <= 1, batch
    assert np.abs(whole[0] - whole[1]).max() > 20


def test_by_hand_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base, 8 bits, noise × 0.997, the 27 released timesteps, ancestral steps."""
    pipeline = tiny_cascade(upsampler_steps="fast27")
    seen = watch(pipeline, monkeypatch)
    image = pipeline(mask(3), generator=[seeded(5)]).images[0]
    small = pipeline(mask(3), generator=[seeded(5)], base_only=True).images[0]
    assert [int(call["t"][0]) for call in seen] == space_timesteps(1000, "fast27")[::-1]
    assert pipeline.upsampler is not None
    upsampler, low_res = pipeline.upsampler, to_tensor(small)[None]
    own = torch.Generator().manual_seed(int(torch.randint(0, 2**62, (1,), generator=seeded(5))))
    peek = int(torch.randint(0, 2**62, (1,), generator=own))
    generators = [generator_for(peek, "upsampler")]
    x_T = 0.997 * initial_noise((1, 3, 32, 32), generators)
    assert torch.equal(seen[0]["x_t"], x_T)

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> Estimate:
        with torch.no_grad():
            output, variance = upsampler(x_t, t, upsampler.encode(torch.empty(1, 0, 1, 1)), low_res)
        return Estimate(output.double(), variance)

    expected = sample(denoise, x_T, NoiseSchedule(LINEAR), "ddpm", "fast27", generators)
    assert to_pil(expected)[0].tobytes() == image.tobytes()


def test_the_upsamplers_noise_does_not_depend_on_the_bases_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_cascade()
    seen = watch(pipeline, monkeypatch)
    for sampler, steps in (("ddpm", 5), ("ddim", 2)):
        pipeline(mask(1), generator=seeded(), sampler=sampler, steps=steps)
    assert torch.equal(seen[0]["x_t"], seen[2]["x_t"])
    assert not torch.equal(seen[0]["low_res"], seen[2]["low_res"])


def test_the_condition_reaches_the_upsampler(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_cascade(conditional=True, upsampler_guidance=1.0)
    assert pipeline.upsampler is not None
    shapes: list[tuple[int, ...]] = []
    encode = pipeline.upsampler.encode
    monkeypatch.setattr(pipeline.upsampler, "encode", lambda c: shapes.append(tuple(c.shape)) or encode(c))
    seen = watch(pipeline, monkeypatch)
    pipeline([mask(1), mask(2)], num_images=2, generator=seeded())
    assert shapes == [(2, 3, 32, 32), (1, 3, 32, 32)]  # each condition once, and the null, whatever the steps
    assert len(seen) == 2 * 8  # guided pairs, one image at a time
    first, second = ([call["low_res"] for call in seen[k : k + 4]] for k in (0, 4))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_steps_are_counted_over_both_networks() -> None:
    seen: list[tuple[int, int, int]] = []

    def on_step(done: int, total: int, x0: torch.Tensor) -> None:
        seen.append((done, total, x0.shape[-1]))

    tiny_cascade()(mask(1), num_images=2, batch_size=1, generator=seeded(), on_step=on_step)
    assert seen == [(1, 4, 16), (2, 4, 16), (3, 4, 32), (4, 4, 32)] * 2


def test_saved_and_loaded(tmp_path: Path) -> None:
    pipeline = tiny_cascade(upsampler_sampler="ddim")
    pipeline.save_pretrained(tmp_path)
    again = PITIPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.defaults == pipeline.defaults
    one, other = (p(mask(1), generator=seeded()).images[0] for p in (pipeline, again))
    assert one.tobytes() == other.tobytes()
    base = PITIPipeline.from_pretrained(tmp_path, base_only=True)
    assert base.upsampler is None
    base.save_pretrained(tmp_path / "base")
    assert not (tmp_path / "base/upsampler").exists()
    assert "upsampler_sampler" not in json.loads((tmp_path / "base/model_index.json").read_text())["defaults"]
    assert ModelEntry("x", "here", tmp_path).row()["image"] == "16 -> 32 px"
    assert ModelEntry("x", "here", tmp_path / "base").row()["image"] == "16 px"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The folder of an upsampler alone, as its training leaves it."""
    folder = tmp_path / "alone"
    parts: Any = {"upsampler": tiny_upsampler(False), "upsampler_scheduler": scheduler_of(LINEAR)}
    write_model_folder(folder, parts, NoCondition().to_config(), {"upsampler_steps": 3})
    return folder


def test_an_upsampler_beside_a_base(tmp_path: Path, alone: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"contains only an upsampler.*upsampler"):
        PITIPipeline.from_pretrained(alone)
    (tmp_path / "neither").mkdir()
    for name, content in (("model_index.json", {}), ("condition.json", {"kind": "none"})):
        (tmp_path / "neither" / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"lists neither 'base' nor 'upsampler'"):
        PITIPipeline.from_pretrained(tmp_path / "neither")
    with pytest.raises(ModelError, match="has no upsampler"):
        PITIPipeline.from_pretrained(tmp_path / "base", upsampler=tmp_path / "base")
    with pytest.raises(ModelError, match="remove one of the two"):
        PITIPipeline.from_pretrained(tmp_path / "base", upsampler=alone, base_only=True)
    both = PITIPipeline.from_pretrained(tmp_path / "base", upsampler=alone)
    assert OWN_SAMPLING.resolve(both).upsampler is not None
    assert OWN_SAMPLING.resolve(both).upsampler.steps == 3  # type: ignore[union-attr]
    assert ModelEntry("x", "here", alone).row()["image"] == "16 -> 32 px, upsampler alone"


def test_what_does_not_chain_is_refused() -> None:
    base = tiny_pipeline()
    scheduler = scheduler_of(LINEAR)
    with pytest.raises(ModelError, match="the base makes 16 px images, but the upsampler takes 8 px ones to 32 px"):
        PITIPipeline(base.base, base.scheduler, base.condition, tiny_upsampler(False, low_res=8), scheduler)
    with pytest.raises(ModelError, match="the upsampler is a base translator"):
        PITIPipeline(base.base, base.scheduler, base.condition, base.base, scheduler)
    with pytest.raises(ModelError, match="the base is an upsampler"):
        PITIPipeline(tiny_upsampler(True), base.scheduler, base.condition)
    with pytest.raises(ModelError, match="needs its scheduler"):
        PITIPipeline(base.base, base.scheduler, base.condition, tiny_upsampler(False))
    two = {key: values[:2] for key, values in CLASSES.items()}
    other = condition_from_config({"kind": "mask", "classes": two})
    with pytest.raises(ModelError, match="reads 3 channels, but the condition 'mask' has 2"):
        PITIPipeline(base.base, base.scheduler, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_only": True, "upsampler_steps": 3}, "upsampler_steps: does not apply: base_only"),
        ({"upsampler_steps": 3000}, "upsampler_steps 3000"),
        ({"upsampler_sampler": "ddmp"}, "did you mean 'ddpm'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_cascade()(mask(1), **settings)
    with pytest.raises(UserError, match="this model has no upsampler"):
        tiny_pipeline()(mask(1), upsampler_steps=3)
    with pytest.raises(UserError, match="takes no condition, so it has no guidance"):
        tiny_cascade(upsampler_guidance=1.0)(mask(1))


def test_quantized_is_what_a_file_keeps() -> None:
    x = torch.linspace(-1.2, 1.2, 3 * 40 * 40).view(3, 40, 40)
    assert torch.equal(quantized(x), to_tensor(to_pil(x)))


def test_truncating_takes_the_next_lower_level() -> None:
    levels = torch.arange(256) / 127.5 - 1
    torch.testing.assert_close(truncated(levels + 1 / 255), levels, atol=1e-6, rtol=0)  # halfway to the next
    assert truncated(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [-1, -1, 1, 1]


class TestFiles:
    @pytest.fixture
    def masks(self, tmp_path: Path) -> Path:
        folder = tmp_path / "masks"
        folder.mkdir()
        mask(0).save(folder / "m.png")
        return folder

    def test_settings_are_in_the_metadata(self, masks: Path, tmp_path: Path) -> None:
        translate_files(
            tiny_cascade(),
            TranslationFiles([masks], tmp_path / "out"),
            GenerationOptions.from_flat(upsampler_sampler="ddim"),
            "tiny",
        )
        with Image.open(tmp_path / "out/m_0.png") as image:
            assert image.size == (32, 32)
            text = image.text  # type: ignore[attr-defined]
        assert (text["piti:upsampler_sampler"], text["piti:upsampler_steps"]) == ("ddim", "2")
        assert text["piti:upsampler_noise"] == "0.997"
        translate_files(
            tiny_cascade(),
            TranslationFiles([masks], tmp_path / "small"),
            GenerationOptions.from_flat(base_only=True),
            "tiny",
        )
        with Image.open(tmp_path / "small/m_0.png") as image:
            assert image.size == (16, 16)
            assert image.text["piti:base_only"] == "True"  # type: ignore[attr-defined]
            assert "piti:upsampler_steps" not in image.text  # type: ignore[attr-defined]

    def test_an_image_of_another_size_is_not_kept_in_silence(self, masks: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        translate_files(
            tiny_cascade(), TranslationFiles([masks], out), GenerationOptions.from_flat(base_only=True), "tiny"
        )
        before = (out / "m_0.png").read_bytes()
        with pytest.raises(OutputError, match=r"m_0.png: already exists with 16 x 16, but 32 x 32 .*overwrite"):
            translate_files(tiny_cascade(), TranslationFiles([masks], out), GenerationOptions.from_flat(), "tiny")
        assert (out / "m_0.png").read_bytes() == before
        translate_files(
            tiny_cascade(), TranslationFiles([masks], out, overwrite=True), GenerationOptions.from_flat(), "tiny"
        )
        assert Image.open(out / "m_0.png").size == (32, 32)

    def test_on_the_command_line(self, masks: Path, tmp_path: Path, alone: Path) -> None:
        tiny_pipeline().save_pretrained(tmp_path / "base")
        command = ["translate", str(masks), "--model", str(tmp_path / "base"), "--num", "1", "--steps", "2", "--out"]
        run = CliRunner().invoke(app, [*command, str(tmp_path / "a"), "--upsampler", str(alone)])
        assert run.exit_code == 0, run.output
        assert Image.open(tmp_path / "a/m_0.png").size == (32, 32)
        given = ["--upsampler", str(alone), "--upsampler-steps", "fast27", "--upsampler-sampler", "ddim"]
        assert CliRunner().invoke(app, [*command, str(tmp_path / "b"), *given]).exit_code == 0
        assert CliRunner().invoke(app, [*command, str(tmp_path / "c"), "--base-only"]).exit_code == 0
        assert Image.open(tmp_path / "c/m_0.png").size == (16, 16)
        wrong = CliRunner().invoke(app, [*command, str(tmp_path / "d"), "--upsampler-steps", "3"])
        assert isinstance(wrong.exception, UserError)
        assert not (tmp_path / "d").exists()


def test_an_upsampler_may_be_shared(tmp_path: Path) -> None:
    whole, alone = tiny_cascade(), tiny_pipeline()
    whole.save_pretrained(tmp_path / "whole")
    alone.save_pretrained(tmp_path / "alone")
    with pytest.raises(ModelError, match="has no upsampler to share"):
        share_upsampler(tmp_path / "whole/../alone", str(tmp_path / "alone"))
    with pytest.raises(ModelError, match="is not a base alone"):
        share_upsampler(tmp_path / "whole", str(tmp_path / "whole"))
    share_upsampler(tmp_path / "alone", str(tmp_path / "whole"))
    assert not (tmp_path / "alone/upsampler").exists()
    borrowing = PITIPipeline.from_pretrained(tmp_path / "alone")
    borrowing.set_progress_bar_config(disable=True)
    assert borrowing.defaults.upsampler.steps == 2
    images = [arrays(p(mask(1), steps=2, generator=seeded()).images) for p in (borrowing, whole)]
    assert np.array_equal(*images)
    small = PITIPipeline.from_pretrained(tmp_path / "alone", base_only=True)
    assert small.upsampler is None
    assert ModelEntry("m", "here", tmp_path / "alone").row()["image"] == "16 -> 32 px"
    borrowing.save_pretrained(tmp_path / "copy")  # whole by itself
    assert (tmp_path / "copy/upsampler").is_dir()


def test_a_lender_that_is_gone_is_named(tmp_path: Path) -> None:
    tiny_cascade().save_pretrained(tmp_path / "whole")
    tiny_pipeline().save_pretrained(tmp_path / "alone")
    share_upsampler(tmp_path / "alone", str(tmp_path / "whole"))
    (tmp_path / "whole/model_index.json").unlink()
    with pytest.raises(ModelError, match=r"whole has no model_index\.json.*shares its upsampler.*base_only"):
        PITIPipeline.from_pretrained(tmp_path / "alone")


def test_a_base_of_one_step_is_sampled_in_one() -> None:
    pipeline = tiny_cascade()
    pipeline.base.one_step = True
    steps: list[int] = []
    pipeline(mask(1), generator=seeded(), base_only=True, on_step=lambda done, total, x0: steps.append(total))
    assert steps == [1]
    with pytest.raises(UserError, match="5 steps: this base was trained for one step"):
        pipeline(mask(1), steps=5)
