"""Two processes started by torchrun's agent: one run, one curve, one message; FSDP, DeepSpeed; translation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from PIL import Image
from safetensors.torch import load_file

from piti.core.seeding import noise_for, uniform_for
from piti.data.order import numbers_of
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.pipeline import PITIPipeline
from piti.training import Recipe, train
from piti.training.run_folder import RunFolder
from tests.conftest import ROOT, TINY_MODEL, tiny_recipe
from tests.forked import Forked
from tests.training.in_processes import launch
from tests.training.upsamplers import MODEL

STAGES = [
    {"name": "adapt", "trains": ["encoder"], "steps": 1, "lr": 1e-3},
    {"name": "joint", "steps": 3, "lr": 1e-3},
]
SHALLOW = {"channels": [16], "attention": [True]}
ADVERSARIAL = {"kind": "wgan_gp", "weight": 0.1, "after": 1, "noise": [0.0, 0.75]}
UPSAMPLE = [{"name": "upsample", "trains": ["unet"], "steps": 4, "lr": 1e-3, "adversarial": ADVERSARIAL}]
CONFIGS = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """Four steps of a network of one level."""
    model = TINY_MODEL | {"unet": TINY_MODEL["unet"] | SHALLOW}  # type: ignore[operator]
    values = {"model": model, "stages": STAGES, "log_every": 1, "preview": {"every": 99, "count": 2, "steps": 2}}
    return tiny_recipe(root, **(values | changes))


def upsampler(root: Path, **changes: Any) -> dict[str, Any]:
    values = {"model": MODEL, "condition": {"kind": "none"}, "discriminator": {"channels": [4, 8]}, "stages": UPSAMPLE}
    data = {"root": str(root), "size": 32, "crop_scale": [1.0, 1.0]}
    return recipe(root, **values, data=data, condition_dropout=0.0, **changes)


def baseline(root: Path, **changes: Any) -> dict[str, Any]:
    """Pix2PixHD: it has no batch norms, whose statistics each process takes of its own images."""
    narrow = {"channels": 4, "blocks": 1, "downsamplings": 1, "layers": 1, "discriminator_channels": 4}
    stages = [{"name": "adversarial", "trains": ["generator"], "steps": 4, "lr": 1e-3}]
    values = {"baseline": {"kind": "pix2pixhd", "perceptual": 0, **narrow}, "model": {"image_size": 32}}
    return recipe(root, **values, data={"root": str(root), "size": 32}, stages=stages, **changes)


def environment(config: Path) -> dict[str, str]:
    """What `accelerate launch` sets for a config."""
    args = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    args, _, _ = _validate_launch_command(args)
    zero, prefixes = args.use_deepspeed, ("FSDP_", "ACCELERATE_DEEPSPEED_")
    args.deepspeed_fields_from_accelerate_config = ""
    values = prepare_deepspeed_cmd_env(args)[1] if zero else prepare_multi_gpu_env(args)
    return {key: value for key, value in values.items() if key.startswith(prefixes)}


def launched(jobs: list[dict[str, Any]], folder: Path, config: str = "fsdp") -> tuple[int | None, str, str]:
    """Two processes' exit status after the jobs, on the CPU, what they print, and what they say."""
    settings = environment(ROOT / f"recipes/accelerate/{config}.yaml")
    settings |= {"ACCELERATE_USE_CPU": "1", "DS_ACCELERATOR": "cpu"}
    process = Forked(launch, jobs, folder=folder, environment=settings)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """Ten small pairs, two of them for validation."""
    root = place / "data"
    rng = np.random.default_rng(0)
    classes = [{"id": k, "name": name, "color": [90 * k, 0, 9]} for k, name in enumerate(("sky", "road", "car"))]
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))
    keys = [f"scene-{k}" for k in range(10)]
    for key in keys:
        label = rng.integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(label).save(root / "labels" / f"{key}.png")
        Image.fromarray(np.stack([label * 100, 255 - label * 80, label], 2)).save(root / "images" / f"{key}.png")
    (root / "splits.json").write_text(json.dumps({"train": keys[:8], "val": keys[8:]}))
    return root


@pytest.fixture(scope="module")
def one(place: Path, data: Path) -> Path:
    """The run of one process with twice the batch, and a model to translate with."""
    train(Recipe.parse(recipe(data, batch=4), "test"), place / "one")
    return place / "one"


def jobs_of(place: Path, data: Path, model: Path) -> list[dict[str, Any]]:
    """All that two processes do one after the other; the last job fails in the second."""
    two, large, sharded = recipe(data, batch=2), upsampler(data, batch=2), {"sharded": True}
    translate = ["translate", str(data / "labels"), "--model", str(model), "--num", "1", "--batch", "2"]
    translate += ["--steps", "2", "--out", str(place / "translated")]
    fails = ["train", str(place / "two/recipe.yaml"), "--out", str(place / "none")]
    jobs: list[dict[str, Any]] = [
        {"recipe": two, "out": "two"},
        {"recipe": two, "out": "cut", "stop_at": 2, "lingers": True},
        {"recipe": two, "out": "cut", "resume": True},
        {"recipe": large, "out": "upsampler"},
        {"recipe": baseline(data, batch=2), "out": "baseline"},
        {"recipe": two, "out": "sharded", **sharded},
        {"recipe": two, "out": "sharded-cut", "stop_at": 2, **sharded},
        {"recipe": two, "out": "sharded-cut", "resume": True, **sharded},
        {"argv": ["train", str(place / "upsampler/recipe.yaml"), "--out", str(place / "none")], **sharded},
        {"argv": translate, "full_disk": 1},
        {"argv": translate},
        {"argv": translate},
        {"argv": fails, "no_data": 1},
    ]
    return [job | ({"out": str(place / job["out"])} if "out" in job else {}) for job in jobs]


@pytest.fixture(scope="module")
def two(place: Path, data: Path, one: Path) -> tuple[int | None, str, str]:
    """Two processes' exit status, what they print, and what they say."""
    return launched(jobs_of(place, data, one), place)


def zero_jobs(place: Path, data: Path) -> list[dict[str, Any]]:
    """What two processes do under DeepSpeed; the last job fails in the second."""
    two, half = recipe(data, batch=2), recipe(data, batch=2, precision="bf16")
    parted = recipe(data, batch=1, accumulation=2)
    (place / "two.yaml").write_text(json.dumps(two))
    (place / "large.yaml").write_text(json.dumps(upsampler(data, batch=2)))
    none = ["--out", str(place / "zero-none")]
    jobs: list[dict[str, Any]] = [
        {"recipe": two, "out": "zero"},
        {"recipe": two, "out": "zero-cut", "stop_at": 2},
        {"recipe": two, "out": "zero-cut", "resume": True},
        {"recipe": parted, "out": "zero-parted"},
        {"recipe": parted, "out": "zero-1", "zero": 1},
        {"recipe": half, "out": "zero-bf16"},
        {"recipe": half, "out": "bf16", "zero": None},
        {"argv": ["train", str(place / "two.yaml"), *none], "zero": 3},
        {"argv": ["train", str(place / "large.yaml"), *none]},
        {"argv": ["train", str(place / "two.yaml"), "--out", str(place / "zero-spoilt")], "spoil_at": 4},
    ]
    return [{"zero": 2} | job | ({"out": str(place / job["out"])} if "out" in job else {}) for job in jobs]


@pytest.fixture(scope="module")
def zero(place: Path, data: Path) -> tuple[int | None, str, str]:
    """Two processes' exit status under DeepSpeed, what they print, and what they say."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed: not installed (pip install 'piti[deepspeed]')")
    return launched(zero_jobs(place, data), place, "deepspeed-zero2")


def rows(run: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "seconds", "waiting"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_same_curve(run: Path, other: Path, **tolerances: float) -> None:
    pairs = list(zip(rows(run), rows(other), strict=True))
    assert len(pairs) > 4
    for row, wanted in pairs:
        assert row.keys() == wanted.keys()
        assert row.get("stage") == wanted.get("stage")
        for key in row.keys() - {"stage"}:
            assert row[key] == pytest.approx(wanted[key], rel=0, abs=tolerances.get(key, 1e-5)), (row["step"], key)


def weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = (run / "model").rglob("diffusion_pytorch_model.safetensors")
    return load_file(path)


def test_two_processes_have_the_curve_of_one_with_twice_the_batch(place: Path, one: Path, two: Any) -> None:
    assert (place / "two/metrics.jsonl").exists(), two[2]
    assert_same_curve(place / "two", one)
    a, b = weights(place / "two"), weights(one)
    assert all(torch.allclose(a[key], b[key], atol=2e-4) for key in b)
    pictures = [np.asarray(Image.open(run / "previews/step-00000004.png"), np.int16) for run in (place / "two", one)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_a_baseline_has_the_curve_of_one_process_or_one_pass(place: Path, data: Path, two: Any, tmp_path: Path) -> None:
    assert (place / "baseline/metrics.jsonl").exists(), two[2]
    for name, batch, parts in (("one", 4, 1), ("parts", 2, 2)):
        train(Recipe.parse(baseline(data, batch=batch, accumulation=parts), "test"), tmp_path / name)
    assert_same_curve(tmp_path / "parts", tmp_path / "one", grad_norm=1e-4)
    assert_same_curve(place / "baseline", tmp_path / "one", grad_norm=1e-4)


def test_accumulation_has_the_curve_of_the_whole_batch(data: Path, one: Path, tmp_path: Path) -> None:
    train(Recipe.parse(recipe(data, batch=2, accumulation=2), "test"), tmp_path / "run")
    assert_same_curve(tmp_path / "run", one)


def test_stopped_in_one_process_and_resumed_in_both(place: Path, two: Any) -> None:
    assert "stopped and saved at step 2" in two[1]
    a, b = weights(place / "two"), weights(place / "cut")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows(place / "cut")[-3:] == rows(place / "two")[-3:]


def test_an_adversary_sees_the_samples_as_one_process_does(place: Path, data: Path, tmp_path: Path, two: Any) -> None:
    train(Recipe.parse(upsampler(data, batch=4), "test"), tmp_path / "run")
    assert (place / "upsampler/metrics.jsonl").exists(), two[2]
    # the discriminator's first steps by AdamW are signs of gradients, also of those that are all but 0
    logits = dict.fromkeys(["adversarial", "discriminator", "discriminator_grad_norm"], 1e-4)
    assert_same_curve(place / "upsampler", tmp_path / "run", **logits)
    assert "discriminator_accuracy" in rows(tmp_path / "run")[-2]


def test_sharded_weights_have_the_curve_of_whole_ones(place: Path, one: Path, two: Any) -> None:
    assert (place / "sharded/metrics.jsonl").exists(), two[2]
    assert_same_curve(place / "sharded", one)
    assert list((place / "sharded/checkpoints").glob("*/pytorch_model_fsdp_0/*"))
    a, b = weights(place / "sharded"), weights(one)
    assert all(torch.allclose(a[key], b[key], atol=2e-4) for key in b)


def test_sharded_weights_are_resumed(place: Path, two: Any) -> None:
    assert "stopped and saved at step 2" in two[1]
    a, b = weights(place / "sharded"), weights(place / "sharded-cut")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("run", ["zero", "zero-parted", "zero-1"])
def test_a_sharded_optimiser_has_the_curve_of_a_whole_one(run: str, place: Path, one: Path, zero: Any) -> None:
    assert (place / run / "metrics.jsonl").exists(), zero[2]
    assert_same_curve(place / run, one)
    assert len(list((place / run / "checkpoints/step-00000004").glob("*/*_optim_states.pt"))) == 2
    a, b = weights(place / run), weights(one)
    assert all(torch.allclose(a[key], b[key], atol=2e-4) for key in b)


def test_a_sharded_optimiser_is_resumed(place: Path, zero: Any) -> None:
    assert "stopped and saved at step 2" in zero[1]
    a, b = weights(place / "zero"), weights(place / "zero-cut")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows(place / "zero-cut")[-3:] == rows(place / "zero")[-3:]


def test_a_sharded_optimiser_in_half_precision(place: Path, zero: Any) -> None:
    assert (place / "zero-bf16/metrics.jsonl").exists(), zero[2]
    half, wanted, single = (rows(place / run) for run in ("zero-bf16", "bf16", "zero"))
    for row, other in zip(half[:3], wanted, strict=False):  # later steps are apart by bf16's rounding
        assert row.pop("stage", None) == other.pop("stage", None)
        assert row == pytest.approx(other, rel=0, abs=1e-5)
    assert abs(half[0]["loss"] - single[0]["loss"]) > 1e-5
    assert {value.dtype for value in weights(place / "zero-bf16").values()} == {torch.float32}


def test_what_deepspeed_cannot_do_ends_before_anything_is_written(place: Path, zero: Any) -> None:
    status, _, said = zero
    assert status == 1
    assert said.count("zero_stage: 3 of DeepSpeed is not supported") == 1
    assert said.count("DeepSpeed supports one network, and an adversary is a second") == 1
    assert not (place / "zero-none").exists()


def test_a_loss_that_is_no_number_ends_a_run_under_deepspeed(place: Path, zero: Any) -> None:
    assert zero[2].count("step 4: loss nan") == 1
    newest = RunFolder(place / "zero-spoilt").newest()
    assert newest is not None
    assert newest.name == "step-00000003"
    assert all(value.isfinite().all() for value in weights(place / "zero-spoilt").values())


def test_what_one_process_alone_cannot_do_is_said_once_and_ends_both(place: Path, two: Any) -> None:
    status, _, said = two
    assert status == 1
    assert said.count("no data in process 1") == 1
    assert said.count("FSDP supports one network, and an adversary is a second") == 1
    assert said.count("no space left for process 1") == 1
    assert "[rank0]: Traceback" not in said
    assert "[rank1]: Traceback" not in said
    assert not (place / "none").exists()


def test_translations_are_shared_and_resumed(place: Path, data: Path, one: Path, two: Any) -> None:
    model = PITIPipeline.from_pretrained(str(one))
    report = translate_files(
        model,
        TranslationFiles([data / "labels"], place / "alone"),
        GenerationOptions.from_flat(steps=2, batch=2),
        "one",
    )
    assert len(report.made) == 10
    said = two[1]
    # the first process made three batches, the second one picture of its two
    assert "3 images made, 7 kept" in said
    assert "0 images made, 10 kept" in said
    for path in report.made:
        a, b = (np.asarray(Image.open(folder / path.name)) for folder in (place / "alone", place / "translated"))
        assert np.abs(a.astype(int) - b).max() <= 1  # some processors round one image alone otherwise than two
        assert (a != b).sum() <= 3  # of 768 values
    assert (place / "translated/sheet.png").exists()
    assert not list((place / "translated").glob("*.partial"))


def test_terminated_processes_save_first(place: Path, data: Path) -> None:
    status, _, err = launched(
        [{"recipe": recipe(data, batch=2), "out": str(place / "ended"), "terminate_at": 3}], place
    )
    assert status != 0
    newest = RunFolder(place / "ended").newest()
    assert newest is not None, err
    assert newest.name == "step-00000003"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_config(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"  # the recipe's precision decides
    if path.stem == "fsdp":
        assert environment(path)["FSDP_VERSION"] == "2"


def test_what_is_random_about_a_sample_is_its_own() -> None:
    numbers = [n for rank in (0, 1) for n in numbers_of(5, 3, rank, 2)]
    assert numbers == [*numbers_of(5, 6, 0, 1)] == list(range(30, 36))
    together, apart = noise_for(7, numbers, (3, 4, 4)), [noise_for(7, [n], (3, 4, 4)) for n in numbers]
    assert torch.equal(together, torch.cat(apart))
    assert abs(noise_for(7, range(500), (3, 4, 4)).std() - 1) < 0.02
    assert torch.equal(uniform_for(7, "dropout", numbers)[2:3], uniform_for(7, "dropout", numbers[2:3]))
    assert not torch.equal(uniform_for(7, "dropout", numbers), uniform_for(7, "penalty", numbers))
