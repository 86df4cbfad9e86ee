"""Depth and normals as a condition: normalised, resized, encoded, previewed; its settings, and real frames."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from piti.conditions import ConditionError, GeometryCondition, condition_from_config
from piti.conditions.geometry import HOLE, depth_colours
from piti.conditions.normals import Camera, merged
from piti.core.images import Box
from tests.conditions.depths import CAMERA, DEPTH, GEOMETRY, HEIGHT, HOLES, WIDTH, known, plane, same, unit

KITCHEN = Camera(fx=292.5, fy=292.5, cx=160, cy=120, width=306, height=240)


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
            ({"camera": CAMERA.to_dict(), "field_of_view": 60}, "remove field_of_view"),
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
        with pytest.raises(ConditionError, match=r"it: 32 x 32 is not a scaled copy of the 32 x 24 .*camera"):
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
