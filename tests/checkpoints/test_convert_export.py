"""Model folders to released files: imported files are restored exactly, and written atomically."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from piti.checkpoints.convert import ImportSettings, import_release
from piti.checkpoints.export import export_release
from piti.checkpoints.folder import ModelError
from piti.checkpoints.release import Heads
from piti.core.errors import UserError
from piti.diffusion.schedule import ScheduleSpec
from piti.diffusion.schedulers import scheduler_of
from piti.pipelines.pipeline import PITIPipeline
from tests.checkpoints.test_convert import CASCADES, file, imported
from tests.released import encoder_weights, tiny_weights


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
    with pytest.raises(UserError, match="add overwrite"):
        export_release(folder, tmp_path / "out.pt")
    cascade = imported(tmp_path, "piti", "piti_up", overwrite=True)
    with pytest.raises(UserError, match="has base and upsampler; give a folder"):
        export_release(cascade, tmp_path / "out.pt", overwrite=True)
    with pytest.raises(
        UserError, match=r"out\.safetensors: released files are written by torch\.save; end the name in \.pt or"
    ):
        export_release(folder, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_exports_are_replaced_only_when_asked_and_nothing_else_ever(tmp_path: Path) -> None:
    folder = imported(tmp_path, "piti")
    export_release(folder, tmp_path / "out")
    with pytest.raises(UserError, match="add overwrite"):
        export_release(folder, tmp_path / "out")
    export_release(folder, tmp_path / "out", overwrite=True)
    (tmp_path / "out/notes").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        export_release(folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/notes").read_text() == "mine"


@pytest.mark.parametrize("content", ["text", "legacy", "other", "folder"])
def test_a_base_pt_of_others_is_no_earlier_export(tmp_path: Path, content: str) -> None:
    folder, theirs = imported(tmp_path, "piti"), tmp_path / "out/base.pt"
    theirs.parent.mkdir()
    if content == "folder":
        theirs.mkdir()
        theirs /= "upsampler.pt"
    if content in ("legacy", "other"):
        weights = tiny_weights("piti") if content == "legacy" else {"w": torch.zeros(3)}
        torch.save(weights, theirs, _use_new_zipfile_serialization=content == "other")
    else:
        theirs.write_text("mine")
    was = theirs.read_bytes()
    with pytest.raises(UserError, match="other files"):
        export_release(folder, tmp_path / "out", overwrite=True)
    assert theirs.read_bytes() == was


class FullDisk:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file: Any, space: int) -> None:
        self.file, self.space = file, space

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def flush(self) -> None:
        self.file.flush()

    def write(self, data: Any) -> int:
        self.space -= len(data)
        if self.space < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("space", [0, 1000, 300_000])
def test_a_full_disk_is_named_and_leaves_no_half_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: int
) -> None:
    folder, real = imported(tmp_path, "piti"), Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = real(self, mode, *arguments, **options)
        return FullDisk(file, space) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UserError, match=r"out.pt: cannot be written \(No space left on device\)"):
        export_release(folder, tmp_path / "out.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"piti.pt", "model"}


def test_heads_of_unusual_size_are_told(tmp_path: Path) -> None:
    heads = Heads(head_dim=16, heads=4)
    folder = imported(tmp_path, "piti", heads=heads)
    (done,) = export_release(folder, tmp_path / "out.pt")
    assert done.what == "PITI base (to import: head_dim 16 heads 4)"
    import_release(tmp_path / "out.pt", tmp_path / "again", settings=ImportSettings(heads=heads))
    name = "base/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_models_without_a_released_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base: has no released layout: it uses patches of \d px.*aligned residuals"):
        export_release("street", tmp_path / "out")
    folder = imported(tmp_path, "piti")
    scheduler = scheduler_of(ScheduleSpec(prediction="v_prediction"))
    assert isinstance(scheduler, DDPMScheduler)
    scheduler.save_pretrained(folder / "scheduler")
    with pytest.raises(
        UserError, match="trained with prediction = v_prediction; the layout stands for prediction = eps"
    ):
        export_release(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "asked"),
    [
        ({"safe_serialization": False}, "FOLDER"),
        ({"max_shard_size": 400_000}, "FOLDER"),
        ({"variant": "fp16"}, "FOLDER, variant='fp16'"),
    ],
    ids=["pickles", "shards", "variant"],
)
def test_weights_in_other_files_than_one_are_told_with_how_to_save_them_in_one(
    tmp_path: Path, form: dict[str, Any], asked: str
) -> None:
    import_release(file(tmp_path, "base", tiny_weights("piti")), tmp_path / "model")
    PITIPipeline.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "other", **form)
    encoder = file(tmp_path, "encoder", encoder_weights(prefix="encoder."))
    remedy = re.escape(f"save the model again: PITIPipeline.from_pretrained({asked}).save_pretrained(OTHER_FOLDER)")
    with pytest.raises(ModelError, match=f"other/base: has no .*safetensors, .* in this single file; {remedy}"):
        export_release(tmp_path / "other", tmp_path / "out")
    with pytest.raises(ModelError, match=f"other/base: has no .*safetensors, .* in this single file; {remedy}"):
        import_release(encoder, tmp_path / "joined", settings=ImportSettings(prior=tmp_path / "other"))
