"""Edges of photographs: closed forms for the built-in extractor and thinning, and detectors by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from piti.core.images import read_rgb
from piti.core.spec import SpecError
from piti.data.archives import list_archived
from piti.data.edges import (
    DetectorError,
    LineSpec,
    binarised,
    detector_spec,
    draw_lines,
    line_source,
    thinned,
    without_short,
)
from piti.models.hed import HED
from tests.conftest import SHARED


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1).astype(np.uint8)


def square(side: int = 64, first: int = 16, last: int = 48, light: int = 255) -> np.ndarray:
    pixels = np.zeros((side, side))
    pixels[first:last, first:last] = light
    return grey(pixels)


def pieces(lines: torch.Tensor) -> int:
    """Connected sets of pixels, corners touching."""
    left, count = lines.clone(), 0
    while left.any():
        seed = torch.zeros_like(left)
        seed.view(-1)[left.flatten().nonzero()[0]] = True
        while True:
            grown = (F.max_pool2d(seed[None, None].float(), 3, 1, 1)[0, 0] > 0) & left
            if torch.equal(grown, seed):
                break
            seed = grown
        left &= ~seed
        count += 1
    return count


class TestBuiltIn:
    def test_a_square_gives_its_outline(self) -> None:
        lines = draw_lines(square(), LineSpec(smoothing=0, shortest=1))
        rows, columns = lines.nonzero(as_tuple=True)
        outside = torch.stack([16 - rows, rows - 47, 16 - columns, columns - 47]).amax(0)
        assert outside.abs().max() <= 1  # every line pixel lies on the border, or beside it
        for side in (lines[14:18, 20:44], lines[46:50, 20:44], lines[20:44, 14:18].T, lines[20:44, 46:50].T):
            assert (side.sum(0) == 1).all()  # one pixel, everywhere along it
        assert pieces(lines) == 1

    def test_smoothing_takes_faint_texture_away_and_leaves_the_outline(self) -> None:
        rng = np.random.default_rng(0)
        noisy = np.clip(square(light=200).astype(int) + grey(rng.integers(0, 40, (64, 64))), 0, 255).astype(np.uint8)
        plain = draw_lines(noisy, LineSpec(smoothing=0, low=0.02, high=0.04, shortest=1))
        smooth = draw_lines(noisy, LineSpec(low=0.02, high=0.04, shortest=1))
        inside = (slice(22, 42), slice(22, 42))
        assert plain[inside].any()
        assert not smooth[inside].any()
        assert (smooth[14:18, 20:44].sum(0) >= 1).all()

    def test_a_blank_picture_has_no_lines(self) -> None:
        for value in (0, 128, 255):
            assert not draw_lines(grey(np.full((40, 30), value))).any()

    def test_weak_edges_count_where_they_continue_strong_ones(self) -> None:
        pixels = np.zeros((64, 64))
        pixels[:32, 20:40] = np.linspace(255, 20, 32)[:, None]  # a bar that fades
        pixels[40:60, 20:40] = 20  # one that is faint everywhere
        lines = draw_lines(grey(pixels), LineSpec(smoothing=0, low=0.1, high=1.0, shortest=1))
        both = draw_lines(grey(pixels), LineSpec(smoothing=0, low=0.1, high=0.1, shortest=1))
        assert lines[28, 16:24].any()  # faint there, but it hangs together with the strong end
        assert not lines[42:58].any()
        assert both[42:58].any()

    def test_large_photographs_are_drawn_small_and_enlarged(self) -> None:
        spec = LineSpec(smoothing=0, shortest=1, side=64)
        large = draw_lines(square(256, 64, 192), spec)
        assert large.shape == (256, 256)
        small = large[::4, ::4]
        assert torch.equal(large, small.repeat_interleave(4, 0).repeat_interleave(4, 1))
        rows, columns = small.nonzero(as_tuple=True)
        outside = torch.stack([16 - rows, rows - 47, 16 - columns, columns - 47]).amax(0)
        assert outside.abs().max() <= 1
        assert pieces(small) == 1
        thin = draw_lines(square(256, 64, 192), spec.model_copy(update={"thin": True}))
        assert torch.equal(thin, thinned(large))

    @pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 3), (1, 300), (700, 3)])
    def test_any_size_can_be_drawn(self, size: tuple[int, int]) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert draw_lines(noise).shape == size

    def test_a_photograph_has_lines_and_room_between_them(self, camvid) -> None:
        path = sorted((camvid / "images").iterdir())[0]
        photograph = np.asarray(read_rgb(path).resize((240, 180)))
        lines = draw_lines(photograph)
        assert lines.shape == (180, 240)
        assert 0.01 < lines.float().mean() < 0.2
        assert torch.equal(draw_lines(photograph), lines)

    def test_a_photograph_in_an_archive(self, scenes) -> None:
        pixels = np.asarray(read_rgb(list_archived(sorted(scenes.glob("*.tar"))[0])[0]))
        assert draw_lines(pixels).any()


class TestThinning:
    def shapes(self) -> list[torch.Tensor]:
        disc = (torch.arange(40)[:, None] - 20) ** 2 + (torch.arange(40) - 20) ** 2
        ring = (disc < 15**2) & (disc > 9**2)
        bar = torch.zeros(40, 40, dtype=torch.bool)
        bar[10:15, 5:35] = True
        cross = bar | bar.T
        return [ring, bar, cross, disc < 10**2]

    def test_lines_become_one_pixel_wide(self) -> None:
        for shape in self.shapes():
            thin = thinned(shape)
            blocks = F.avg_pool2d(thin[None, None].float(), 2, 1)
            assert thin.any()
            assert not (thin & ~shape).any()
            assert blocks.max() < 1  # no block of two by two is left

    def test_topology_stays(self) -> None:
        for shape in self.shapes():
            thin = thinned(shape)
            assert pieces(thin) == pieces(shape) == 1
        ring = thinned(self.shapes()[0])
        outside = ~ring
        flood = torch.zeros_like(outside)
        flood[0, 0] = True
        kernel = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
        for _ in range(200):
            flood = (F.conv2d(flood[None, None].float(), kernel, padding=1)[0, 0] > 0) & outside
        assert not flood[20, 20]  # the hole is still shut

    def test_thinning_again_changes_nothing_and_batches_are_alike(self) -> None:
        shapes = torch.stack(self.shapes())
        thin = thinned(shapes)
        assert torch.equal(thinned(thin), thin)
        for one, alone in zip(thin, shapes, strict=True):
            assert torch.equal(one, thinned(alone))

    def test_a_straight_line_is_left_as_it_is(self) -> None:
        line = torch.zeros(9, 20, dtype=torch.bool)
        line[4, 2:18] = True
        assert torch.equal(thinned(line), line)


def test_short_lines_go() -> None:
    lines = torch.zeros(1, 1, 30, 30, dtype=torch.bool)
    lines[..., 2, 2:6] = True  # 4 pixels
    lines[..., 10, 2:14] = True  # 12
    lines[..., 20:28, 20:28] = torch.eye(8, dtype=torch.bool)  # 8, joined at corners
    kept = without_short(lines, 8)
    assert kept[..., 10, :].sum() == 12
    assert kept[..., 20:, :].sum() == 8
    assert not kept[..., :5, :].any()
    assert torch.equal(without_short(lines, 1), lines)


def test_long_lines_stay_whole() -> None:
    lines = torch.zeros(2, 1, 90, 90, dtype=torch.bool)
    lines[0, 0, 5:85, 40] = True
    lines[0, 0, 10, 3:30] = True
    lines[1, 0] = torch.eye(90, dtype=torch.bool) | torch.eye(90, dtype=torch.bool).flip(-1)
    lines[1, 0, 45:, 46:] = False
    for shortest in (2, 10, 27):
        assert torch.equal(without_short(lines, shortest), lines)
    alone = torch.zeros_like(lines)
    alone[0, 0, 5:85, 40] = True
    alone[1] = lines[1]
    assert torch.equal(without_short(lines, 28), alone)


def test_short_lines_are_found_as_by_flooding() -> None:
    generator = torch.Generator().manual_seed(0)
    lines = torch.rand(1, 1, 40, 40, generator=generator) < 0.2
    kept, left = torch.zeros_like(lines), lines[0, 0].clone()
    while left.any():
        seed = torch.zeros_like(left)
        seed.view(-1)[left.flatten().nonzero()[0]] = True
        for _ in range(80):
            seed = (F.max_pool2d(seed[None, None].float(), 3, 1, 1)[0, 0] > 0) & left
        left &= ~seed
        kept[0, 0] |= seed if seed.sum() >= 7 else False
    assert torch.equal(without_short(lines, 7), kept)


def test_a_long_border_is_drawn_to_its_ends() -> None:
    pixels = square(64, 0, 32)
    assert draw_lines(pixels)[:30, 30:34].any(1).all()


def test_soft_maps_become_lines() -> None:
    soft = torch.zeros(12, 12)
    soft[3:8] = torch.tensor([0.2, 0.5, 0.9, 0.5, 0.2])[:, None]
    wide = binarised(soft, 0.3, thin=False)
    assert wide.any(1).nonzero().flatten().tolist() == [4, 5, 6]
    thin = binarised(soft, 0.3)
    assert (thin.sum(0) <= 1).all()
    assert thin[5].any()


class TestHED:
    def test_real_edges_as_the_release_binarises_them(self, camvid: Path) -> None:
        weights = SHARED / "weights" / "hed_fp16.safetensors"
        if not weights.exists():
            pytest.skip(f"{weights.name}: not present at {weights} (set PITI_SHARED)")
        spec, draw = line_source("hed", {"weights": str(weights)})
        photograph = np.asarray(read_rgb(sorted((camvid / "images").iterdir())[0]).crop((180, 60, 301, 181)))
        lines = draw(photograph)
        assert spec.to_dict() == {"threshold": 0.6, "thin": False, "shortest": 1, "side": 256}
        assert lines.shape == (121, 121)
        assert 0.02 < lines.float().mean() < 0.4
        steps = np.abs(np.diff(photograph.mean(-1), axis=1, append=0))
        assert steps[lines.numpy()].mean() > 2 * steps[~lines.numpy()].mean()  # lines lie where the photograph changes

    def test_larger_photographs_are_drawn_smaller(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        save_file(HED().state_dict(), tmp_path / "hed.safetensors")
        draw = line_source("hed", {"weights": str(tmp_path / "hed.safetensors"), "side": 64, "threshold": 0.5})[1]
        assert draw(np.zeros((70, 81, 3), np.uint8)).shape == (70, 81)

    def test_without_a_file(self) -> None:
        with pytest.raises(DetectorError, match=r"^detector hed: needs a weights file; give it as weights"):
            line_source("hed")


class FakeDetector:
    """What `controlnet_aux` offers: as wide as multiples of 64, grey as RGB, sometimes as a picture."""

    made_from: str = ""
    picture = True

    @classmethod
    def from_pretrained(cls, place: str) -> FakeDetector:
        if place == "nowhere":
            raise OSError("no connection")
        cls.made_from = place
        return cls()

    def to(self, device: str) -> FakeDetector:
        self.device = device
        return self

    def __call__(self, photograph: np.ndarray, detect_resolution: int, image_resolution: int) -> object:
        assert detect_resolution == image_resolution == 128
        found = np.zeros((128, 192, 3), np.uint8)
        found[:, 90:102] = 255
        found[10:12, 10:12] = 255  # a speck
        return Image.fromarray(found) if self.picture else found


class TestLearned:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> type[FakeDetector]:
        module = ModuleType("controlnet_aux")
        module.PidiNetDetector = FakeDetector  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "controlnet_aux", module)
        return FakeDetector

    @pytest.mark.parametrize("picture", [True, False])
    def test_soft_edges_become_lines_of_the_photographs_size(self, installed, monkeypatch, picture) -> None:
        name = "pidinet"
        monkeypatch.setattr(installed, "picture", picture)
        photograph = np.zeros((100, 150, 3), np.uint8)
        spec, draw = line_source(name, {"side": 128, "weights": "/some/folder"})
        lines = draw(photograph)
        assert installed.made_from == "/some/folder"
        assert lines.shape == (100, 150)
        assert lines.dtype == torch.bool
        assert (lines[8:92].sum(1) == 1).all()  # thin, and no speck
        assert (lines[50].nonzero() - 75).abs() <= 1
        assert "weights" not in spec.to_dict()  # where they lie changes no line
        wide = line_source(name, {"side": 128, "thin": False})[1](photograph)
        assert (wide[8:92].sum(1) > 5).all()

    def test_weights_out_of_reach(self, installed) -> None:
        with pytest.raises(DetectorError, match=r"^detector pidinet: cannot load .* nowhere \(no con.*weights"):
            line_source("pidinet", {"weights": "nowhere"})

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "controlnet_aux", None)
        with pytest.raises(DetectorError, match=r"^detector pidinet: needs the package cont.*detector lines"):
            line_source("pidinet")

    def test_an_older_package_without_the_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "controlnet_aux", ModuleType("controlnet_aux"))
        with pytest.raises(DetectorError, match="cannot be imported"):
            line_source("pidinet")

    def test_low_is_not_above_high(self) -> None:
        with pytest.raises(SpecError, match=r"detector lines:\n  low = 0.5 is above high = 0.2; .*: lower low, or"):
            detector_spec("lines", {"low": 0.5})
        detector_spec("lines", {"low": 0.2})

    def test_names_and_settings_are_checked(self) -> None:
        with pytest.raises(DetectorError, match=r"detector line: unknown; did you mean 'lines'\?"):
            detector_spec("line")
        with pytest.raises(SpecError, match=r"detector lines:\n.*unknown key 'threshold'"):
            detector_spec("lines", {"threshold": 0.5})
        with pytest.raises(SpecError, match="threshold"):
            detector_spec("hed", {"threshold": 1.5})
