from __future__ import annotations

import builtins
import io
import json
import math
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from piti.conditions import ConditionError, GeometryCondition, condition_from_config
from piti.conditions.depth_files import read_depth
from piti.conditions.geometry import HOLE, depth_colours
from piti.conditions.normals import Camera, jumps, merged, normals_of_depth, towards_camera
from piti.core.images import Box, ImageError
from piti.data.archives import list_archived

GEOMETRY = GeometryCondition()
HEIGHT, WIDTH = 24, 32
CAMERA = Camera(fx=40, fy=44, cx=14.5, cy=10, width=WIDTH, height=HEIGHT)
KITCHEN = Camera(fx=292.5, fy=292.5, cx=160, cy=120, width=306, height=240)


def metres() -> np.ndarray:
    """A floor that comes nearer towards the bottom and the right, with a block of holes; exact in millimetres."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    depth = (4000 - 40 * rows - 10 * columns).astype(np.float32)
    depth[4:8, 6:11] = 0
    return depth / np.float32(1000)


DEPTH = metres()
HOLES = DEPTH == 0


def plane(normal: tuple[float, float, float], distance: float, camera: Camera = CAMERA) -> Tensor:
    """Depth of the points with normal · point = -distance."""
    toward = (camera.rays() * torch.tensor(normal)[:, None, None]).sum(0)
    return -distance / toward


def unit(*vector: float) -> Tensor:
    return torch.tensor(vector) / math.hypot(*vector)


def same(first: Tensor, second: Tensor, atol: float = 0.0) -> bool:
    return torch.allclose(first, second, rtol=0, atol=atol, equal_nan=True)


def known(raw: Tensor) -> np.ndarray:
    return raw[0].isfinite().numpy()


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> Path:
    exr = pytest.importorskip("OpenEXR")
    exr.File({"type": exr.scanlineimage, "compression": exr.ZIP_COMPRESSION}, channels).write(str(path))
    return path


def write(folder: Path, suffix: str) -> Path:
    """DEPTH in any of the formats."""
    path = folder / f"d{suffix}"
    if suffix in {".png", ".tif"}:
        Image.fromarray((DEPTH * 1000).round().astype(np.uint16)).save(path)
    elif suffix == ".npy":
        np.save(path, DEPTH)
    elif suffix == ".npz":
        np.savez_compressed(path, depth=DEPTH)
    else:
        write_exr(path, {"Z": DEPTH})
    return path


FORMATS = (".png", ".tif", ".npy", ".npz", ".exr")


class TestFiles:
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_every_format_holds_the_same_depth(self, tmp_path, suffix: str) -> None:
        path = write(tmp_path, suffix)
        assert np.allclose(read_depth(path, 0.001).depth, DEPTH, atol=1e-6)
        raw = GEOMETRY.load(path)
        assert (raw.dtype, raw.shape) == (torch.float16, (GEOMETRY.planes, HEIGHT, WIDTH))
        assert np.array_equal(known(raw), ~HOLES)
        assert same(raw, GEOMETRY.from_depth(torch.from_numpy(DEPTH)), atol=2e-3)

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_inside_a_tar(self, tmp_path, suffix: str) -> None:
        path = write(tmp_path, suffix)
        with tarfile.open(tmp_path / "shard.tar", "w") as tar:
            tar.add(path, f"sample{suffix}")
        (member,) = list_archived(tmp_path / "shard.tar", GEOMETRY.suffixes)
        assert same(GEOMETRY.load(member), GEOMETRY.load(path))

    @pytest.mark.parametrize("suffix", FORMATS)
    @pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.8])
    def test_truncated(self, tmp_path, suffix: str, kept: float) -> None:
        path = write(tmp_path, suffix)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ImageError, match=rf"d{suffix}: (damaged|not a readable)"):
            GEOMETRY.load(path)

    @pytest.mark.parametrize("suffix", [*FORMATS, ".xyz"])
    def test_missing(self, tmp_path, suffix: str) -> None:
        if suffix == ".exr":
            pytest.importorskip("OpenEXR")
        with pytest.raises(ImageError, match="no such file"):
            GEOMETRY.load(tmp_path / f"none{suffix}")

    def test_a_text(self, tmp_path) -> None:
        with pytest.raises(ConditionError, match=r"a\.txt: is a text, and this model reads a geometry"):
            GEOMETRY.load(tmp_path / "a.txt")

    @pytest.mark.parametrize("suffix", [".png", ".npy", ".npz"])
    def test_all_holes(self, tmp_path, suffix: str) -> None:
        path = tmp_path / f"d{suffix}"
        empty = np.zeros((4, 6), np.uint16)
        if suffix == ".png":
            Image.fromarray(empty).save(path)
        else:
            (np.save if suffix == ".npy" else np.savez)(path, **{"arr" if suffix == ".npy" else "depth": empty})
        with pytest.raises(ConditionError, match=rf"d{suffix}: no pixel has a depth above 0; check .*unit"):
            GEOMETRY.load(path)

    def test_a_unit(self, tmp_path) -> None:
        write(tmp_path, ".png")
        assert np.allclose(read_depth(tmp_path / "d.png", 0.0002).depth, DEPTH / 5, atol=1e-6)
        np.save(tmp_path / "counts.npy", (DEPTH * 5000).round().astype(np.int32))
        assert np.allclose(read_depth(tmp_path / "counts.npy", 0.0002).depth, DEPTH, atol=1e-6)


class TestPictures:
    @pytest.mark.parametrize("dtype", [np.uint16, np.int32])
    def test_modes(self, dtype) -> None:
        image = Image.fromarray((DEPTH * 1000).round().astype(dtype))
        assert same(GEOMETRY.read(image, "it"), GEOMETRY.from_depth(torch.from_numpy(DEPTH)), atol=2e-3)

    def test_floats_are_metres(self) -> None:
        wanted = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        assert same(GeometryCondition(unit=7.0).read(Image.fromarray(DEPTH), "it"), wanted)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
    def test_eight_bits(self, tmp_path, mode: str) -> None:
        Image.new(mode, (6, 4), 1).save(tmp_path / "d.png")
        with pytest.raises(ConditionError, match=r"d\.png: an 8-bit picture .* no metric depth.*16-bit grey PNG"):
            GEOMETRY.load(tmp_path / "d.png")


class TestArrays:
    def test_a_last_axis_of_one_and_other_floats(self, tmp_path) -> None:
        for dtype in (np.float16, np.float64):
            np.save(tmp_path / "d.npy", DEPTH[..., None].astype(dtype))
            assert np.allclose(read_depth(tmp_path / "d.npy", 1).depth, DEPTH, rtol=1e-3)

    def test_what_is_no_depth_is_a_hole(self, tmp_path) -> None:
        np.save(tmp_path / "d.npy", np.array([[1.0, 0, -2, np.nan, np.inf, -np.inf, 3, 1e300]]))
        assert read_depth(tmp_path / "d.npy", 1).depth.tolist() == [[1, 0, 0, 0, 0, 0, 3, 0]]

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((3, 4, 5), np.float32), r"expected depth \[h, w\] or \[h, w, 1\], got \[3, 4, 5\]"),
            (np.zeros(7, np.float32), r"got \[7\]"),
            (np.ones((3, 4), np.uint8), "uint8 holds no metric depth"),
            (np.ones((3, 4), bool), "bool holds no metric depth"),
            (np.ones((3, 4), np.complex64), "complex64 are no depth"),
            (np.full((3, 4), "far"), "are no depth"),
            (np.zeros((0, 4), np.float32), r"is empty, \[0, 4\]"),
        ],
    )
    def test_other_arrays(self, tmp_path, array: np.ndarray, message: str) -> None:
        np.save(tmp_path / "d.npy", array)
        with pytest.raises(ConditionError, match=rf"d\.npy: .*{message}"):
            GEOMETRY.load(tmp_path / "d.npy")
        np.savez(tmp_path / "d.npz", depth=array)
        with pytest.raises(ConditionError, match=rf"d\.npz: depth: .*{message}"):
            GEOMETRY.load(tmp_path / "d.npz")

    def test_nothing_is_unpickled(self, tmp_path) -> None:
        class Trap:
            def __reduce__(self):
                return builtins.open, (str(tmp_path / "sprung"), "w")

        np.save(tmp_path / "d.npy", np.array([[Trap()]], object), allow_pickle=True)
        np.savez(tmp_path / "d.npz", allow_pickle=True, depth=np.array([[Trap()]], object))
        (tmp_path / "e.npy").write_bytes(pickle.dumps(Trap()))
        for name, error in (("d.npy", ConditionError), ("d.npz", ConditionError), ("e.npy", ImageError)):
            with pytest.raises(error, match=name):
                GEOMETRY.load(tmp_path / name)
        assert not (tmp_path / "sprung").exists()

    def test_a_header_that_asks_for_too_much(self, tmp_path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": (10**7, 10**7), "fortran_order": False, "descr": "<f4"})
        (tmp_path / "d.npy").write_bytes(header.getvalue())
        with pytest.raises(ImageError, match=r"d\.npy: \[10000000, 10000000\] values, at most"):
            GEOMETRY.load(tmp_path / "d.npy")

    def test_a_mask(self, tmp_path) -> None:
        mask = np.ones((HEIGHT, WIDTH), np.uint8)
        mask[:, :5] = 0
        for given in (mask, mask.astype(np.float64) * 255, mask[..., None]):
            np.savez(tmp_path / "d.npz", depth=DEPTH, mask=given)
            assert np.array_equal(known(GEOMETRY.load(tmp_path / "d.npz")), ~HOLES & (mask != 0))
        np.savez(tmp_path / "d.npz", depth=DEPTH, mask=mask.T)
        with pytest.raises(
            ConditionError, match=r"d\.npz: mask: expected a mask \[24, 32\] as the depth, got \[32, 24"
        ):
            GEOMETRY.load(tmp_path / "d.npz")

    def test_other_names(self, tmp_path) -> None:
        np.savez(tmp_path / "d.npz", distance=DEPTH, rgb=DEPTH)
        with pytest.raises(ConditionError, match=r"d\.npz: has no array 'depth', it holds distance, rgb"):
            GEOMETRY.load(tmp_path / "d.npz")


class TestExr:
    @pytest.mark.parametrize("names", [("anything",), ("A", "Z"), ("A", "Y"), ("ViewLayer.Z", "ViewLayer.A")])
    def test_channels(self, tmp_path, names: tuple[str, ...]) -> None:
        wanted = next((name for name in names if name[-1] in "ZY"), names[0])
        channels = {name: DEPTH if name == wanted else np.ones_like(DEPTH) for name in names}
        path = write_exr(tmp_path / "d.exr", channels)
        assert np.array_equal(read_depth(path, 0.5).depth, DEPTH)

    def test_half_floats_and_infinity(self, tmp_path) -> None:
        sky = np.array([[1.5, np.inf, np.nan, 65504]], np.float16)
        assert read_depth(write_exr(tmp_path / "d.exr", {"Z": sky}), 1).depth.tolist() == [[1.5, 0, 0, 65504]]

    def test_grey_saved_in_colour_but_no_photograph(self, tmp_path) -> None:
        path = write_exr(tmp_path / "d.exr", dict.fromkeys("RGB", DEPTH))
        assert np.array_equal(read_depth(path, 1).depth, DEPTH)
        write_exr(path, {"R": DEPTH, "G": DEPTH / 2, "B": DEPTH})
        with pytest.raises(ConditionError, match=r"d\.exr: none of the channels B, G, R is plainly depth"):
            read_depth(path, 1)

    def test_two_layers(self, tmp_path) -> None:
        path = write_exr(tmp_path / "d.exr", {"near.Z": DEPTH, "far.Z": DEPTH})
        with pytest.raises(ConditionError, match=r"far\.Z, near\.Z"):
            read_depth(path, 1)

    def test_without_the_package(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
        with pytest.raises(ConditionError, match=r"d\.exr: reading EXR needs another package; pip install 'piti\[exr"):
            read_depth(tmp_path / "d.exr", 1)


class TestDiode:
    """`X_depth.npy` [h, w, 1], `X_depth_mask.npy` [h, w] of floats, `X_normal.npy` [h, w, 3] with y up, z backward."""

    @pytest.fixture
    def files(self, tmp_path) -> Path:
        mask = np.ones((HEIGHT, WIDTH))
        mask[20:] = 0
        normal = np.broadcast_to(np.float32([0.6, 0.0, 0.8]), (HEIGHT, WIDTH, 3)).copy()
        normal[12, 12] = 0
        np.save(tmp_path / "00019_00183_indoors_300_010_depth.npy", DEPTH[..., None])
        np.save(tmp_path / "00019_00183_indoors_300_010_depth_mask.npy", mask)
        np.save(tmp_path / "00019_00183_indoors_300_010_normal.npy", normal)
        return tmp_path / "00019_00183_indoors_300_010_depth.npy"

    @pytest.mark.parametrize("axes", [(1, 1, 1), (1, -1, -1)])
    def test_all_three(self, files: Path, axes) -> None:
        raw = GeometryCondition(normal_axes=axes).load(files)
        wanted = ~HOLES
        wanted[20:] = False
        assert np.array_equal(known(raw), wanted)
        assert raw[1:, 12, 12].isnan().all()
        assert same(raw[1:, 12, 13].float(), torch.tensor([0.6, 0, -0.8]), atol=1e-3)

    def test_whichever_there_are(self, files: Path) -> None:
        files.with_name(files.name.replace("_depth", "_normal")).unlink()
        raw = GEOMETRY.load(str(files))
        assert raw[0, 20:].isnan().all()
        assert (raw[3][raw[3].isfinite()] < 0).all()
        files.with_name(files.name.replace("_depth", "_depth_mask")).unlink()
        assert np.array_equal(known(GEOMETRY.load(files)), ~HOLES)

    @pytest.mark.parametrize("name", ["_depth_mask", "_normal"])
    def test_the_others_are_no_conditions(self, files: Path, name: str) -> None:
        other = files.with_name(files.name.replace("_depth", name))
        with pytest.raises(ConditionError, match=rf"{name}.npy: is the .*; give 00019_00183_indoors_300_010_depth.npy"):
            GEOMETRY.load(other)
        np.save(other, np.ones((5, 5)))
        with pytest.raises(ConditionError, match=f"{name}.npy: expected"):
            GEOMETRY.load(files)


class TestNormals:
    @pytest.mark.parametrize(
        "normal", [(0, 0, -1), (0.3, 0.2, -0.9), (0.0, -0.95, -0.3), (-0.9, 0.1, -0.4), (0.02, -0.9, -0.1)]
    )
    def test_of_a_plane(self, normal) -> None:
        depth = plane(normal, 1.7)
        visible = depth > 0
        found = normals_of_depth(torch.where(visible, depth, 0), CAMERA, 0.05)
        inside = found[0].isfinite()
        assert inside.float().mean() > 0.8 * visible.float().mean() - 0.15
        wanted = unit(*normal)[:, None].expand(-1, int(inside.sum()))
        assert torch.allclose(found[:, inside], wanted, atol=2e-3)

    def test_of_a_sphere(self) -> None:
        camera = Camera.of_view(50, 160, 120)
        centre, radius = torch.tensor([0.1, -0.05, 3.0]), 1.0
        rays = camera.rays()
        a, b = (rays**2).sum(0), (rays * centre[:, None, None]).sum(0)
        root = b**2 - a * (centre @ centre - radius**2)
        depth = torch.where(root > 0, (b - root.clamp(min=0).sqrt()) / a, 0)
        wanted = (rays * depth - centre[:, None, None]) / radius
        found = normals_of_depth(depth, camera, 0.05)
        facing = found[0].isfinite() & ((wanted * rays).sum(0) < -0.3)
        assert facing.sum() > 2000
        angles = (found * wanted).sum(0)[facing].clamp(-1, 1).arccos().rad2deg()
        assert angles.max() < 1.5
        assert angles.mean() < 0.1

    def test_a_hole_reaches_its_neighbours_and_no_further(self) -> None:
        depth = plane((0.3, 0.2, -0.9), 2)
        whole = normals_of_depth(depth, CAMERA, 0.05)
        depth[10, 20] = 0
        holed = normals_of_depth(depth, CAMERA, 0.05)
        lost = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        lost[9:12, 19:22] = True
        assert torch.equal(holed[0].isnan(), lost)
        assert torch.equal(holed[:, ~lost], whole[:, ~lost])

    @pytest.mark.parametrize("axis", [0, 1])
    def test_none_across_a_jump(self, axis: int) -> None:
        """Two walls across the view, one behind the other: no normal between them, exact ones elsewhere."""
        depth = torch.full((HEIGHT, WIDTH), 2.0)
        depth.narrow(axis, 9, depth.shape[axis] - 9).fill_(2.6)
        found = normals_of_depth(depth, CAMERA, 0.05)
        lost = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        lost.narrow(axis, 8, 2).fill_(True)
        assert torch.equal(found[0].isnan(), lost)
        assert torch.allclose(found[:, ~lost], unit(0, 0, -1)[:, None], atol=1e-5)

    def test_jumps_at_the_border_corner_and_diagonal(self) -> None:
        for y, x in ((0, 0), (0, 12), (HEIGHT - 1, WIDTH - 1), (10, 10)):
            depth = torch.full((HEIGHT, WIDTH), 2.0)
            depth[y, x] = 3.0
            near = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
            near[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
            assert (jumps(depth, 0.05) | ~near).all(), (y, x)

    def test_a_steep_plane_has_no_jumps(self) -> None:
        steep = plane((0.0, -0.995, -0.1), 1.0)
        steep = steep[16:]  # below the horizon
        assert float((steep[:-1] / steep[1:]).max()) > 1.05
        assert not jumps(steep, 0.05).any()

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (2, 9)])
    def test_tiny_pictures(self, shape) -> None:
        raw = GEOMETRY.from_depth(torch.full(shape, 2.0))
        assert raw[0].isfinite().all()
        assert raw[1:].isnan().all() == (min(shape) < 2)

    def test_mirroring(self) -> None:
        depth = torch.from_numpy(DEPTH)
        mirrored = CAMERA.model_copy(update={"cx": WIDTH - 1 - CAMERA.cx})
        found = GeometryCondition(camera=CAMERA).from_depth(depth)
        other = GeometryCondition(camera=mirrored).from_depth(depth.flip(-1))
        assert same(GEOMETRY.flip(found), other, atol=1e-3)
        assert same(GEOMETRY.flip(GEOMETRY.flip(found)), found)
        batch = torch.stack([found, found.flip(-2)])
        assert same(GEOMETRY.flip(batch)[0], GEOMETRY.flip(found))


class TestGivenNormals:
    def raw(self, normal: Tensor, condition: GeometryCondition = GEOMETRY) -> Tensor:
        return condition.from_depth(torch.full(normal.shape[1:], 2.0), normal, "n.npz")

    @pytest.mark.parametrize("first", [False, True])
    def test_both_layouts(self, tmp_path, first: bool) -> None:
        normal = np.broadcast_to(unit(0.3, 0.2, -0.9).numpy(), (HEIGHT, WIDTH, 3))
        np.savez(tmp_path / "d.npz", depth=DEPTH, normal=np.moveaxis(normal, -1, 0) if first else normal)
        raw = GEOMETRY.load(tmp_path / "d.npz")
        assert np.array_equal(raw[1].isfinite().numpy(), ~HOLES)  # none beside a hole is lost, none within is kept
        assert torch.allclose(raw[1:, 0, 0].float(), unit(0.3, 0.2, -0.9), atol=1e-3)

    def test_they_are_normalised_and_zero_is_not_known(self) -> None:
        normal = unit(0.3, 0.2, -0.9)[:, None, None].repeat(1, 4, 5)
        normal[:, 0, 0] = 0
        normal[:, 0, 1] = torch.nan
        normal[:, 1] *= 1.05
        raw = self.raw(normal)
        assert raw[1].isnan().sum() == 2
        assert raw[0].isfinite().all()
        length = raw[1:, 1:].float().norm(dim=0)
        assert torch.allclose(length, torch.ones_like(length), atol=1e-3)
        assert self.raw(torch.zeros(3, 4, 5))[1:].isnan().all()

    def test_some_that_face_away_are_turned(self) -> None:
        normal = unit(0.3, 0.2, -0.9)[:, None, None].repeat(1, 4, 5)
        wanted = self.raw(normal)
        normal[:, 0] *= -1
        assert same(self.raw(normal), wanted)
        assert towards_camera(normal, Camera.of_view(60, 5, 4).rays())[1] == pytest.approx(0.25)

    def test_other_axes(self, tmp_path) -> None:
        opengl = np.broadcast_to(unit(0.3, -0.2, 0.9).numpy(), (HEIGHT, WIDTH, 3))
        np.savez(tmp_path / "d.npz", depth=DEPTH, normal=opengl)
        with pytest.raises(ConditionError, match=r"d\.npz: 100% of the normals .* set condition\.normal_axes"):
            GEOMETRY.load(tmp_path / "d.npz")
        raw = GeometryCondition(normal_axes=(1, -1, -1)).load(tmp_path / "d.npz")
        assert torch.allclose(raw[1:, 0, 0].float(), unit(0.3, 0.2, -0.9), atol=1e-3)

    @pytest.mark.parametrize("factor", [127.0, 0.7])
    def test_no_unit_vectors(self, factor: float) -> None:
        normal = unit(0.3, 0.2, -0.9)[:, None, None].repeat(1, 4, 5) * factor
        with pytest.raises(ConditionError, match=r"n\.npz: normals have a typical length of .*, not 1"):
            self.raw(normal)

    @pytest.mark.parametrize(
        "wrong", [np.zeros((HEIGHT, WIDTH, 4), np.float32), np.zeros((HEIGHT, WIDTH, 3), np.uint8)]
    )
    def test_other_shapes_and_types(self, tmp_path, wrong) -> None:
        np.savez(tmp_path / "d.npz", depth=DEPTH, normal=wrong)
        with pytest.raises(
            ConditionError, match=r"d\.npz: normal: expected float normals \[24, 32, 3\] or \[3, 24, 32\]"
        ):
            GEOMETRY.load(tmp_path / "d.npz")


class TestNormalisation:
    def test_the_unit_cancels(self) -> None:
        depth = torch.from_numpy(DEPTH)
        for scale in (0.01, 3.0, 1000.0):
            assert same(GEOMETRY.from_depth(depth * scale), GEOMETRY.from_depth(depth), atol=2e-3)

    def test_percentiles_of_log_depth(self) -> None:
        depth = torch.linspace(0, 1, 1001).mul(math.log(8)).exp()[None]
        plane = GEOMETRY.from_depth(depth)[0, 0].float()
        wanted = ((torch.linspace(0, 1, 1001) - 0.5) / 0.48).clamp(-1, 1)
        assert torch.allclose(plane, wanted, atol=1e-3)

    def test_outliers_do_not_decide(self) -> None:
        depth = torch.from_numpy(DEPTH.copy())
        wanted = GEOMETRY.from_depth(depth)[0]
        depth[0, 0] = 500.0
        found = GEOMETRY.from_depth(depth)[0]
        assert found[0, 0] == 1
        assert same(found[1:], wanted[1:], atol=0.02)

    def test_near_and_far(self) -> None:
        fixed = GeometryCondition(near=0.5, far=8.0)
        depth = torch.tensor([[0.1, 0.5, 2.0, 8.0, 8.1, 0.0]])
        found = fixed.from_depth(depth)[0, 0]
        assert same(found.float(), torch.tensor([-1, -1, 0, 1, torch.nan, torch.nan]), atol=1e-3)

    def test_far_alone_makes_holes(self) -> None:
        depth = torch.from_numpy(DEPTH)
        cut = GeometryCondition(far=3.0).from_depth(depth)
        assert np.array_equal(known(cut), ~HOLES & (DEPTH <= 3.0))
        assert same(cut[0], GEOMETRY.from_depth(torch.where(depth <= 3.0, depth, 0))[0])
        with pytest.raises(ConditionError, match=r"it: no pixel has a depth between 0 and far = 0\.5 m"):
            GeometryCondition(far=0.5).from_depth(depth, None, "it")

    def test_a_flat_wall_keeps_its_noise_small(self) -> None:
        noise = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
        found = GEOMETRY.from_depth(2 + 0.002 * noise)[0]
        assert found.abs().max() < 0.02
        assert (GEOMETRY.from_depth(torch.full((4, 4), 2.0))[0] == 0).all()

    def test_a_crop_does_not_change_it(self) -> None:
        raw = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        assert same(GEOMETRY.crop_resize(raw, Box(12, 3, 16, 16), 16), raw[:, 3:19, 12:28])


class TestResizing:
    def test_holes_neither_grow_nor_shrink(self) -> None:
        depth = torch.full((32, 32), 2.0)
        depth[8:16, 12:24] = 0
        small = GEOMETRY.crop_resize(GEOMETRY.from_depth(depth), Box(0, 0, 32, 32), 8)
        wanted = np.ones((8, 8), bool)
        wanted[2:4, 3:6] = False
        assert np.array_equal(known(small), wanted)
        assert (small[0][small[0].isfinite()] == 0).all()

    @pytest.mark.parametrize("size", [8, 11, 20, (8, 16), (16, 8)])
    def test_no_depth_between_two_surfaces(self, size) -> None:
        depth = torch.full((32, 32), 2.0)
        depth[:, 13:] = 5.0
        depth[9:13, 3:9] = 0
        raw = GEOMETRY.from_depth(depth)
        small = GEOMETRY.crop_resize(raw, Box(0, 0, 32, 32), size)
        height, width = (size, size) if isinstance(size, int) else size
        assert small.shape == (4, height, width)
        assert set(small[0][small[0].isfinite()].tolist()) == {-1, 1}
        normal = small[1:, small[1].isfinite()].float()
        assert normal.shape[1] > 0.8 * height * width
        assert torch.allclose(normal, unit(0, 0, -1)[:, None], atol=1e-3)

    def test_normals_are_of_the_surface_that_is_shown(self) -> None:
        cells = torch.zeros(4, 1, 1, 5)
        cells[0] = torch.tensor([-0.5, -0.5, -0.48, 0.9, torch.nan])
        tilted = torch.stack([unit(0.6, 0, -0.8), unit(-0.6, 0, -0.8), unit(0, 0, -1), unit(0, -1, 0), unit(1, 0, 0)])
        cells[1:, 0, 0] = tilted.T
        found = merged(cells)[:, 0, 0]
        assert torch.allclose(found, torch.tensor([-0.5, 0, 0, -1]), atol=1e-6)

    def test_normals_stay_unit_vectors(self) -> None:
        raw = GeometryCondition(camera=CAMERA).from_depth(plane((0.3, 0.2, -0.9), 2))
        small = GEOMETRY.crop_resize(raw, Box(3, 2, 20, 20), 7)
        wanted = unit(0.3, 0.2, -0.9)[:, None, None].expand(-1, 7, 7)
        assert torch.allclose(small[1:].float(), wanted, atol=3e-3)

    @pytest.mark.parametrize("size", [8, 16, 48, (12, 8)])
    def test_mirroring_before_and_after(self, size) -> None:
        raw = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        first = GEOMETRY.crop_resize(GEOMETRY.flip(raw), Box(4, 0, 24, 24), size)
        assert same(first, GEOMETRY.flip(GEOMETRY.crop_resize(raw, Box(4, 0, 24, 24), size)), atol=1e-3)

    def test_enlarging_is_nearest(self) -> None:
        raw = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        large = GEOMETRY.crop_resize(raw, Box(8, 2, 10, 10), 30)
        cut = raw[:, 2:12, 8:18]
        assert same(large, cut.repeat_interleave(3, -1).repeat_interleave(3, -2))

    def test_shrinking_by_much(self) -> None:
        raw = GEOMETRY.from_depth(torch.full((300, 300), 2.0))
        assert GEOMETRY.crop_resize(raw, Box(0, 0, 300, 300), 2).tolist() == [
            [[value] * 2] * 2 for value in (0.0, 0.0, 0.0, -1.0)
        ]


class TestTheRest:
    def test_encoded(self) -> None:
        raw = GeometryCondition(camera=CAMERA).from_depth(torch.from_numpy(DEPTH))
        encoded = GEOMETRY.encode(torch.stack([raw, GEOMETRY.flip(raw)]))
        assert (encoded.dtype, encoded.shape) == (torch.float32, (2, GEOMETRY.channels, HEIGHT, WIDTH))
        assert encoded.isfinite().all()
        assert encoded.abs().max() == 1
        holes = torch.from_numpy(HOLES)
        assert torch.equal(encoded[0, 4], torch.where(holes, -1.0, 1.0))
        assert (encoded[0, :4, holes] == 0).all()
        unknown = raw[1].isnan()
        assert unknown.sum() > holes.sum()
        assert (encoded[0, 1:4, unknown] == 0).all()
        length = encoded[0, 1:4, ~unknown].norm(dim=0)
        assert torch.allclose(length, torch.ones_like(length), atol=1e-3)
        assert torch.equal(encoded[0, :4, ~unknown], raw[:, ~unknown].float())
        assert torch.equal(encoded[1, 1], -encoded[0, 1].flip(-1))

    def test_no_picture_encodes_to_the_null(self) -> None:
        null = GEOMETRY.null(2, 3, 4)
        assert null.shape == (2, 5, 3, 4)
        assert (null == 0).all()
        for raw in (torch.full((4, 3, 4), torch.nan).half(), GEOMETRY.from_depth(torch.full((3, 4), 2.0))):
            assert (GEOMETRY.encode(raw)[4] != null[0, 4]).all()

    def test_checked(self) -> None:
        raw = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        assert GEOMETRY.checked(raw, "it") is raw
        assert same(GEOMETRY.checked(torch.from_numpy(DEPTH)[None], "it"), raw)
        for wrong in (torch.zeros(4, 5), raw.float(), torch.zeros(1, 4, 5, dtype=torch.int32), torch.zeros(3, 4, 5)):
            with pytest.raises(ConditionError, match=r"it: expected depth in metres.*got \["):
                GEOMETRY.checked(wrong, "it")
        with pytest.raises(ConditionError, match=r"it: values up to 3; the four planes lie in \[-1, 1\]"):
            GEOMETRY.checked(raw * 3 / raw.nan_to_num(0).abs().max(), "it")

    def test_it_travels(self) -> None:
        raw = GEOMETRY.from_depth(torch.from_numpy(DEPTH))
        assert same(pickle.loads(pickle.dumps(raw)), raw)
        assert raw.dtype == GEOMETRY.raw_dtype
        assert len(raw) == GEOMETRY.planes


class TestPreview:
    def test_colours_are_monotone_in_lightness(self) -> None:
        encoded = depth_colours().astype(np.float64) / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16  # CIE L*
        steps = -np.diff(lightness)
        assert (steps > 0).all()
        assert lightness[0] > 85
        assert lightness[-1] < 30
        quarters = -np.diff(lightness[::51])
        assert quarters.max() < 1.3 * quarters.min()  # evenly
        assert (encoded.max(1) - encoded.min(1) > 0.2).all()  # no colour is a hole's grey

    def test_near_is_light_and_holes_are_grey(self) -> None:
        raw = torch.full((4, HEIGHT, WIDTH), torch.nan).half()
        raw[0, :, 4:] = torch.linspace(-1, 1, WIDTH - 4).half()
        picture = GEOMETRY.preview(raw)
        assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT))
        pixels = np.asarray(picture)
        assert (pixels[:, :4] == HOLE).all()
        grey = np.asarray(picture.convert("L")).astype(int)[:, 4:]
        assert (np.diff(grey, axis=1) < 0).all()

    def test_normals_light_it(self) -> None:
        raw = torch.zeros(4, 1, 2).half()
        raw[1:, 0, 0] = unit(-0.3, -0.6, -0.7).half()
        raw[1:, 0, 1] = unit(0.6, 0.7, -0.1).half()
        light, dark = np.asarray(GEOMETRY.preview(raw))[0].astype(int).sum(-1)
        assert light > 1.5 * dark


class TestSettings:
    def test_round_trip_through_json(self) -> None:
        for condition in (
            GEOMETRY,
            GeometryCondition(0.0002, 0.3, 12.0, CAMERA, None, (1, -1, -1), 0.1, 0.5),
            GeometryCondition(field_of_view=75.0, far=10),
        ):
            config = json.loads(json.dumps(condition.to_config()))
            assert config["kind"] == "geometry"
            assert condition_from_config(config) == condition
        assert condition_from_config({"kind": "geometry"}) == GEOMETRY

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"unit": 0}, "'unit' = 0"),
            ({"unit": float("inf")}, "'unit' = inf"),
            ({"near": 1.0}, r"near = 1\.0 needs a larger far, got None"),
            ({"near": 2.0, "far": 1.0}, r"near = 2\.0 needs a larger far, got 1\.0"),
            ({"field_of_view": 180}, "'field_of_view' = 180"),
            ({"normal_axes": [1, 2, 1]}, r"'normal_axes\.1' = 2"),
            ({"camera": {"fx": 1, "fy": 1, "cx": 0, "cy": 0, "width": 4}}, "missing key 'camera.height'"),
            ({"camera": CAMERA.to_dict(), "field_of_view": 60}, "leave field_of_view out"),
            ({"camera": CAMERA.to_dict() | {"fz": 1}}, "unknown key 'camera.fz'; did you mean 'fy'"),
            ({"units": 1}, "unknown key 'units'; did you mean 'unit'"),
        ],
    )
    def test_mistakes(self, config, message: str) -> None:
        with pytest.raises(ConditionError, match=rf"r\.yaml:\n.*{message}"):
            condition_from_config({"kind": "geometry", **config}, "r.yaml")
        with pytest.raises((ConditionError, TypeError)):
            GeometryCondition(**config)

    def test_a_camera_is_scaled_to_the_picture(self) -> None:
        doubled = CAMERA.scaled(2 * WIDTH, 2 * HEIGHT, "it")
        assert (doubled.fx, doubled.fy, doubled.cx, doubled.cy) == (80, 88, 29.5, 20.5)
        corner = (torch.tensor([-0.5, -0.5]) - torch.tensor([CAMERA.cx, CAMERA.cy])) / torch.tensor([40, 44])
        scaled = (torch.tensor([-0.5, -0.5]) - torch.tensor([doubled.cx, doubled.cy])) / torch.tensor([80, 88])
        assert torch.allclose(corner, scaled)  # the same corner of the same view
        condition = GeometryCondition(camera=CAMERA)
        large = plane((0.3, 0.2, -0.9), 2, doubled)
        assert torch.allclose(condition.from_depth(large)[1:, 5, 5].float(), unit(0.3, 0.2, -0.9), atol=1e-3)
        with pytest.raises(ConditionError, match=r"it: 32 x 32 is no scaled copy of the 32 x 24 .*camera"):
            condition.from_depth(torch.ones(32, 32), None, "it")

    def test_a_field_of_view(self) -> None:
        camera = Camera.of_view(90, 100, 50)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((50, 50, 49.5, 24.5))
        depth = plane((0.3, 0.2, -0.9), 2, camera)
        raw = GeometryCondition(field_of_view=90).from_depth(depth)
        assert torch.allclose(raw[1:, 20, 20].float(), unit(0.3, 0.2, -0.9), atol=1e-3)
        assumed = GEOMETRY.from_depth(plane((0.3, 0.2, -0.9), 2, Camera.of_view(60, 100, 50)))
        assert torch.allclose(assumed[1:, 20, 20].float(), unit(0.3, 0.2, -0.9), atol=1e-3)

    def test_reads_like(self) -> None:
        assert GEOMETRY.reads_like(GeometryCondition(unit=1.0, camera=CAMERA, far=5.0))
        assert not GEOMETRY.reads_like(GeometryCondition(near=1.0, far=5.0))
        assert not GEOMETRY.reads_like(GeometryCondition(null_value=1.0))
        assert not GEOMETRY.reads_like(condition_from_config({"kind": "sketch"}))


class TestKitchen:
    """Real depth of a sensor, in millimetres, with holes and steps of its disparity."""

    def test_frames(self, kitchen) -> None:
        condition = GeometryCondition(camera=KITCHEN)
        figures = json.loads((kitchen / "intrinsics.json").read_text())
        assert {name: figures[name] for name in ("fx", "fy", "cx", "cy")} == {
            "fx": KITCHEN.fx, "fy": KITCHEN.fy, "cx": KITCHEN.cx, "cy": KITCHEN.cy,
        }  # fmt: skip
        assert figures["depth_unit_m"] == condition.unit
        for path in sorted((kitchen / "depth").glob("*.png"))[::80]:
            raw = condition.load(path)
            counts = np.asarray(Image.open(path))
            assert np.array_equal(known(raw), counts > 0)
            have = raw[1].isfinite()
            assert have.float().mean() > 0.6
            length = raw[1:, have].float().norm(dim=0)
            assert torch.allclose(length, torch.ones_like(length), atol=2e-3)
            assert ((raw[1:].float() * KITCHEN.rays()).sum(0)[have] < 0).all()
            small = condition.crop_resize(raw, Box(33, 0, 240, 240), 64)
            assert (small[0].isfinite().float().mean() - raw[0, :, 33:273].isfinite().float().mean()).abs() < 0.01
            assert GEOMETRY.encode(small).isfinite().all()

    def test_a_table_is_flat(self, kitchen) -> None:
        """However rough the sensor's single normals are, the means over parts of one table agree within 4 degrees."""
        raw = GeometryCondition(camera=KITCHEN).load(kitchen / "depth" / "frame-000280.png")
        small = GEOMETRY.crop_resize(raw, Box(0, 0, 306, 240), (48, 61)).float()
        spots = [small[1:, y : y + 6, x : x + 10].flatten(1).mean(1) for y, x in ((30, 30), (40, 45), (36, 36))]
        for spot in spots:
            assert spot.norm() > 0.97
            assert F.cosine_similarity(spot, spots[0], dim=0) > math.cos(math.radians(4))
        assert spots[0][1] < -0.8  # it looks up, and y points down
