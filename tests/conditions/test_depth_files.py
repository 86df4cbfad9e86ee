"""Depth in files: PNG, TIFF, NumPy arrays, EXR, DIODE's three files; damaged, missing or of another kind."""

from __future__ import annotations

import builtins
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ConditionError, GeometryCondition
from piti.conditions.depth_files import read_depth
from piti.core.images import ImageError
from piti.data.archives import list_archived
from tests.conditions.depths import DEPTH, GEOMETRY, HEIGHT, HOLES, WIDTH, known, same


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
        with pytest.raises(ConditionError, match=r"a\.txt: is a text, but this model reads a geometry"):
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
        with pytest.raises(ConditionError, match=r"d\.png: an 8-bit picture .* metric depth.*16-bit grey PNG"):
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
            (np.ones((3, 4), np.uint8), "uint8 cannot hold metric depth"),
            (np.ones((3, 4), bool), "bool cannot hold metric depth"),
            (np.ones((3, 4), np.complex64), "complex64 cannot be depth"),
            (np.full((3, 4), "far"), "cannot be depth"),
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
