"""Normals from depth, and given normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from piti.conditions import ConditionError, GeometryCondition
from piti.conditions.normals import Camera, jumps, normals_of_depth, towards_camera
from tests.conditions.depths import CAMERA, DEPTH, GEOMETRY, HEIGHT, HOLES, WIDTH, plane, same, unit


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
