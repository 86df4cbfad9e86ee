"""The studio's inputs, results and storage: images as from `piti translate`, masks in approximate colours, limits."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFile
from threadpoolctl import ThreadpoolController

from piti.conditions import ClassTable, ConditionError, MaskCondition
from piti.conditions.mask_files import UndecidedMask
from piti.core.errors import UserError
from piti.core.images import ImageError
from piti.editing import EditInput, prepare_edit
from piti.generation.edits import Names
from piti.generation.generate import make_images
from piti.generation.options import GenerationOptions
from piti.generation.sources import TranslationFiles
from piti.generation.translate import translate_files
from piti.pipelines.computing import Computing
from piti.pipelines.pipeline import PITIPipeline
from piti.studio.service import service
from piti.studio.service.edits import Edit
from piti.studio.service.inputs import Upload, photograph, read_painted, read_picture
from piti.studio.service.jobs import State
from piti.studio.service.schema import EditRequest, LimitError, Limits, TooLarge, TranslateRequest
from piti.studio.service.service import Result, Studio, UnknownModel
from piti.studio.service.storage import NotKept, Picture, Store, held_image, held_tensor
from tests.generation.test_inputs import several_pipeline
from tests.studio.tiny import COLOURS, file_of, ids, painted, tiny_model


def made(studio: Studio, raw: torch.Tensor, **settings: object) -> Result:
    request = TranslateRequest.parse({"model": "mask", **settings}, "test")
    return asyncio.run(studio.translate(request, raw, "street.png").result())


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.5, "steps": 2, "sampler": "ddim", "size": 24, "seed": 7}])
def test_images_and_metadata_are_those_of_piti_translate(
    studio: Studio, tmp_path: Path, settings: dict[str, object]
) -> None:
    Image.fromarray(ids()).save(tmp_path / "street.png")
    pipeline = studio.model("mask").pipeline
    translate_files(
        pipeline,
        TranslationFiles([tmp_path / "street.png"], tmp_path / "out"),
        GenerationOptions.from_flat(num=3, **settings),
        "mask",
    )  # type: ignore[arg-type]
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    result = made(studio, raw, num=3, **settings)
    assert [picture.number for picture in result.pictures] == [0, 1, 2]
    for number, picture in enumerate(result.pictures):
        with Image.open(tmp_path / f"out/street_{number}.png") as file, Image.open(BytesIO(picture.png)) as ours:
            assert np.array_equal(np.asarray(file), np.asarray(ours))
            assert file.info == ours.info
        assert studio.kept(picture.id) is picture
    assert result.seconds > 0


def test_the_queues_thread_loads_and_no_other_computes_on_every_core(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where: list[str] = []
    counted: list[int] = []
    load, check = service.load, service.check_proportions
    monkeypatch.setattr(service, "load", lambda *a: where.append(threading.current_thread().name) or load(*a))
    monkeypatch.setattr(service, "check_proportions", lambda *a: counted.append(torch.get_num_threads()) or check(*a))
    tiny_model(tmp_path / "mask")
    Studio((str(tmp_path / "mask"),), computing=Computing("cpu", engine="torch")).close()
    assert where == ["piti-studio"]
    with ThreadpoolController().limit(limits=2, user_api="openmp"):
        studio.read_condition("mask", painted(ids()), "the drawing")
    assert counted == [1]


def test_a_picture_that_was_made_here_carries_its_condition(studio: Studio) -> None:
    raw = studio.read_condition("mask", file_of(Image.fromarray(ids())), "street.png")
    picture = made(studio, raw, num=1).pictures[0]
    image, carried, upload = studio.read_photograph("mask", picture.png)
    assert image.size == (picture.width, picture.height) == (21, 16)
    assert torch.equal(carried, raw)
    assert upload.data == picture.png
    assert studio.read_photograph("lines", picture.png)[1] is None
    assert studio.read_photograph("mask", file_of(image))[1] is None


def test_previews_have_the_pictures_proportions(studio: Studio) -> None:
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    request = TranslateRequest.parse({"model": "mask", "num": 2, "steps": 200}, "test")

    async def emerging() -> list[bytes]:
        job = studio.translate(request, raw)
        async for snapshot in job.changes(0.005):
            if snapshot.preview and snapshot.state is State.RUNNING:
                job.cancel()
                return list(snapshot.preview)
        raise AssertionError("no preview")

    previews = [Image.open(BytesIO(data)) for data in asyncio.run(emerging())]
    assert [(image.format, image.size) for image in previews] == [("JPEG", (21, 16))] * 2


# Masks


def test_ids_palettes_and_colours_are_one(studio: Studio) -> None:
    labels = ids()
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(COLOURS.flatten().tolist())
    expected = torch.from_numpy(labels)[None]
    for image in (Image.fromarray(labels), palette, painted(labels), painted(labels).convert("RGBA")):
        assert torch.equal(studio.read_condition("mask", file_of(image), "m.png"), expected)


def test_anti_aliased_strokes_snap_to_the_classes_on_their_sides(studio: Studio) -> None:
    big = Image.new("RGB", (320, 240), tuple(COLOURS[0].tolist()))
    draw = ImageDraw.Draw(big)
    draw.polygon([(0, 240), (320, 100), (320, 240)], fill=tuple(COLOURS[1].tolist()))
    draw.ellipse((60, 40, 140, 120), fill=tuple(COLOURS[2].tolist()))
    small = big.resize((80, 60), Image.Resampling.BOX)
    raw = studio.read_condition("mask", file_of(small), "m.png")[0].numpy()
    nearest = np.abs(np.asarray(big.resize((80, 60), Image.Resampling.NEAREST), int)[:, :, None] - COLOURS).sum(-1)
    assert (raw == nearest.argmin(-1)).mean() > 0.98
    disc = raw[8:32, 13:37]
    assert 1 not in np.unique(disc[:, :8])  # no road between sky and car, though their mixture may look like it


def test_a_jpeg_of_a_mask_is_read(studio: Studio) -> None:
    labels = np.kron(ids(), np.ones((8, 8), np.uint8))
    raw = studio.read_condition("mask", file_of(painted(labels), "JPEG", quality=80), "m.jpg")[0].numpy()
    assert (raw == labels).mean() > 0.995


def test_a_photograph_or_another_table_is_no_mask(studio: Studio) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    with pytest.raises(ConditionError, match=r"far from the colour of every class.*photograph cannot be a mask"):
        studio.read_condition("mask", file_of(Image.fromarray(noise)), "p.png")
    other = painted(ids())
    other.paste((255, 0, 200), (2, 2, 12, 12))
    with pytest.raises(ConditionError, match=r"m\.png: \d+% .*such as \(255, 0, 200\) at column 4, row 4"):
        studio.read_condition("mask", file_of(other), "m.png")
    with pytest.raises(ConditionError, match="id 77"):
        studio.read_condition("mask", file_of(Image.new("L", (8, 8), 77)), "m.png")


def test_greys_of_a_file_that_fit_both_ways_are_refused_and_painted_ones_are_colours() -> None:
    table = ClassTable(names=("background", "lesion"), ids=(0, 1), colours=((0, 0, 0), (255, 255, 255)), ignore=255)
    shape = np.array([[0, 0, 1], [0, 1, 0]], np.uint8)
    for mode in ("RGB", "P", "L"):
        with pytest.raises(UndecidedMask, match="reading"):
            read_picture(MaskCondition(table), Image.fromarray(shape * 255).convert(mode), "m.png")
    drawn = Image.fromarray(shape * 255).convert("RGB")
    assert read_painted(MaskCondition(table), drawn, "the drawing")[0].tolist() == shape.tolist()


def test_a_sketch_is_no_mask_and_the_model_that_reads_it_is_named(studio: Studio) -> None:
    page = Image.new("RGB", (80, 60), (250, 248, 240))
    ImageDraw.Draw(page).line([(5, 5), (70, 50)], "black", 2)
    for kind in ("PNG", "JPEG"):
        with pytest.raises(ConditionError, match=r"far from the colour .*if it is a drawing.*model sketch"):
            studio.read_condition("mask", file_of(page, kind), "s.png")
    whole = file_of(page.convert("1", dither=Image.Dither.NONE).convert("L"))  # 0, the id of a class, and 255
    [_, note] = made(studio, studio.read_condition("mask", whole, "s.png"), num=1, steps=2).notes
    assert "for drawings use a sketch model (model sketch)" in note


def test_what_is_transparent_is_unlabelled(studio: Studio) -> None:
    image = painted(ids()).convert("RGBA")
    image.paste((130, 126, 128, 255), (0, 0, 10, 10))
    image.paste((10, 200, 10, 20), (30, 20, 40, 30))
    raw = studio.read_condition("mask", file_of(image), "m.png")[0].numpy()
    assert (raw[20:, 30:] == 255).all()
    assert np.array_equal(raw[:20], ids()[:20])


# Sketches


def test_painted_lines_are_dark_however_dense_and_files_may_be_either(studio: Studio) -> None:
    lines = np.zeros((30, 40), bool)
    lines[:, 4:36] = True  # most of the page
    page = Image.fromarray(np.where(lines, 0, 255).astype(np.uint8)).convert("RGB")
    assert np.array_equal(studio.read_condition("lines", page, "the drawing")[0].numpy() != 0, lines)
    thin = np.zeros((30, 40), bool)
    thin[10] = thin[:, 20] = True
    for ink, paper in ((0, 255), (255, 0)):
        file = file_of(Image.fromarray(np.where(thin, ink, paper).astype(np.uint8)))
        raw = studio.read_condition("lines", file, "s.png")
        assert np.array_equal(raw[0].numpy() != 0, thin)
    shown = studio.drawn("lines", raw)
    assert sorted(shown.getcolors()) == sorted([(69, (0, 0, 0)), (30 * 40 - 69, (255, 255, 255))])
    assert torch.equal(studio.read_condition("lines", shown, "the drawing"), raw)


def test_a_photograph_is_no_drawing(studio: Studio) -> None:
    pixels = np.linspace(0, 255, 200)[None].repeat(150, 0) * np.linspace(0.3, 1, 150)[:, None]
    file = file_of(Image.fromarray(pixels.astype(np.uint8)).convert("RGB"), "JPEG")
    with pytest.raises(ConditionError, match=r"p\.jpg: \d\d% of it would be lines, as in a photograph"):
        studio.read_condition("lines", file, "p.jpg")


def test_lines_of_a_photograph(studio: Studio) -> None:
    picture = Image.new("RGB", (64, 48), "white")
    picture.paste((20, 60, 200), (16, 12, 48, 36))
    lines = studio.lines_of_photograph(file_of(picture, "JPEG"))
    assert lines.size == (64, 48)
    assert {colour for _, colour in lines.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert 60 < sum(count for count, colour in lines.getcolors() if colour == (0, 0, 0)) < 300


# Uploads


def bomb(side: int = 30000) -> bytes:
    """A PNG of very many pixels in a few bytes: its header alone."""
    data = bytearray(file_of(Image.new("L", (1, 1))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_large_pictures_are_refused_before_decoding(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    files = bomb(), bomb(4096), file_of(Image.new("L", (500, 401)))
    for kind in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(kind, "load", lambda self: pytest.fail("was decoded"))
    for data in files:
        with pytest.raises(TooLarge, match="pixels"):
            studio.read_condition("mask", data, "bomb.png")
        with pytest.raises(TooLarge):
            studio.read_photograph("mask", data)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "svg", "eps"])
def test_what_is_no_picture_is_told_so(studio: Studio, kind: str) -> None:
    data = {
        "empty": b"",
        "text": b"hello",
        "truncated": file_of(painted(ids(200, 200)))[:200],
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    }[kind]
    with pytest.raises(ImageError, match=r"^u\.png: (is|not|damaged)"):
        studio.read_condition("mask", data, "u.png")


# Bounds


@pytest.mark.parametrize(
    "values",
    [
        {"num": 5},
        {"steps": 501},
        {"upsampler_steps": 501},
        {"size": 65},
    ],
)
def test_more_than_the_limits_is_refused(studio: Studio, values: dict[str, int]) -> None:
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    key, value = next(iter(values.items()))
    with pytest.raises(LimitError, match=f"{key} = {value}: this studio allows at most {value - 1}"):
        made(studio, raw, **values)
    assert len(studio.queue) == 0


def test_settings_and_shapes_that_cannot_be_are_refused_at_once(studio: Studio) -> None:
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    with pytest.raises(UserError, match="no upsampler"):
        made(studio, raw, upsampler_steps=3)
    with pytest.raises(ConditionError, match="at most 4:1"):
        studio.read_condition("mask", painted(ids(90, 20)), "wide")
    with pytest.raises(ConditionError, match="1024 x 1 pixels") as caught:
        studio.read_condition("mask", file_of(Image.new("L", (1024, 1))), "m.png")
    assert "--" not in str(caught.value)
    with pytest.raises(ConditionError, match=r"^m\.png: id 77 ") as caught:
        studio.read_condition("mask", file_of(Image.new("L", (30, 30), 77)), "m.png")
    assert "; relabel these pixels" in caught.value.text(local=False)
    with pytest.raises(UnknownModel, match="did you mean 'mask'"):
        studio.read_condition("masks", painted(ids()), "m.png")
    with pytest.raises(ConditionError, match="reads a mask"):
        studio.read_text("mask", "a street")
    with pytest.raises(LimitError, match="samples = 0"):
        Limits(samples=0)


def test_a_model_of_no_kind_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PITIPipeline, "from_pretrained", lambda name: several_pipeline())
    with pytest.raises(UserError, match=r"model both: reads several.*piti translate"):
        Studio(("both",))


def test_the_store_forgets_the_oldest() -> None:
    store = Store(most=3, most_bytes=1000)
    pictures = [Picture(bytes(100), k, 1, 1, "m") for k in range(5)]
    for picture in pictures:
        store.add([picture])
    assert len(store) == 3
    with pytest.raises(NotKept, match="upload the saved file"):
        store.get(pictures[1].id)
    assert store.get(pictures[2].id).number == 2
    large = Picture(bytes(990), 9, 1, 1, "m", torch.zeros(100, dtype=torch.uint8))
    store.add([large])
    assert len(store) == 1
    assert store.get(large.id) is large
    assert len({picture.id for picture in pictures}) == 5


def test_the_store_keeps_all_pictures_of_one_job() -> None:
    store = Store(most=2, most_bytes=1000)
    store.add([Picture(bytes(100), 7, 1, 1, "m")])
    pictures = [Picture(bytes(100), k, 1, 1, "m") for k in range(4)]
    store.add(pictures)
    assert [store.get(picture.id).number for picture in pictures] == [0, 1, 2, 3]
    assert len(store) == 4


# Edits


def edited(
    studio: Studio, image: Image.Image, to: torch.Tensor, from_: torch.Tensor | None, **settings: object
) -> Result:
    request = EditRequest.parse({"model": "mask", "steps": 4, **settings}, "test")
    return asyncio.run(studio.edit(request, image, to, from_).result())


def test_an_edit_changes_what_its_mask_changes_and_keeps_the_rest(studio: Studio) -> None:
    before = torch.from_numpy(ids(64, 48))[None]
    after = before.clone()
    after[:, 30:44, 40:60] = 2
    photograph = made(studio, before, num=1).pictures[0].image()
    result = edited(studio, photograph, after, before, keep_exact=True, num=2, variety=1.0)
    assert [picture.number for picture in result.pictures] == [0, 1]
    one, two = (np.asarray(picture.image(), int) for picture in result.pictures)
    original = np.asarray(photograph, int)
    assert one.shape == original.shape
    assert np.array_equal(one[:4], original[:4])  # far from what is changed
    assert not np.array_equal(one, original)
    assert not np.array_equal(one, two)
    assert any("was repainted" in note for note in result.notes)
    again = edited(studio, photograph, after, before, keep_exact=True, num=2, variety=1.0)
    assert [picture.png for picture in again.pictures] == [picture.png for picture in result.pictures]
    assert studio.kept(result.pictures[0].id).raw is not None


@pytest.mark.parametrize("keep_exact", [False, True])
def test_waiting_jobs_hold_little_and_make_the_same(studio: Studio, keep_exact: bool) -> None:
    """Large pictures are put away until their turn, and come out as they were."""
    before = torch.from_numpy(np.kron(ids(40, 30), np.ones((20, 20), np.uint8)))[None]
    after = before.clone()
    after[:, 350:500, 450:700] = 2
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3)).astype(np.uint8))
    region = Image.new("L", noise.size)
    region.paste(255, (450, 350, 700, 500))
    upload = Upload(file_of(noise, "JPEG"), "noise.jpg")
    image = photograph(upload, "noise.jpg", 10**7)
    request = EditRequest.parse({"model": "mask", "steps": 2, "keep_exact": keep_exact}, "test")
    loaded, settings = studio.models["mask"], request.settings()
    given = EditInput(image, prepare_edit(loaded.pipeline, image, after, settings), before, region)
    names = Names("mask", "noise.jpg", "after.png", "before.png")
    expected = Edit(loaded, request, settings, given, names).made(lambda *_: None)
    del given
    go, jobs = threading.Event(), []
    studio.queue.submit(lambda job: go.wait())
    for _ in range(3):
        parts = [image.copy(), after.clone(), before.clone(), region.copy()]
        jobs.append(studio.edit(request, *parts, upload=upload, names=names))
        translation = TranslateRequest.parse({"model": "mask", "num": 1}, "test")
        jobs.append(studio.translate(translation, parts[1], "street.png"))
        jobs.append(studio.live("mask", parts[1], 0))
        alive = [weakref.ref(part) for part in parts]
        del parts
        gc.collect()
        assert not [part for part in alive if part() is not None]
    whole = 3 * 7 * 600 * 800
    assert 0 < studio.queue.held < whole / (4 if keep_exact else 100)
    go.set()
    results = [asyncio.run(job.result()) for job in jobs]
    assert studio.queue.held == 0
    assert results[0].pictures[0].png == expected[0][0].png
    pipeline = loaded.pipeline
    alone = make_images(pipeline, pipeline.prepare(after), GenerationOptions(), "mask", "street.png")
    assert np.array_equal(np.asarray(results[1].pictures[0].image()), np.asarray(alone[0].image))


def test_a_region_is_white_where_its_file_is(studio: Studio) -> None:
    """Put away without its palette, a region was black all over, or white where another palette is."""
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    inside = np.zeros((30, 40), np.uint8)
    inside[:, :20] = 1
    palette = Image.fromarray(inside, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    grey = Image.fromarray(inside * 255)
    hidden = file_of(Image.fromarray(np.where(inside, 255, 254).astype(np.uint8)), transparency=254)
    request = EditRequest.parse({"model": "mask", "steps": 2}, "test")
    found = []
    for file in (file_of(grey), file_of(palette), hidden):
        job = studio.edit(request, painted(ids()), raw, raw, studio.read_region(file, "region.png"))
        found.append(asyncio.run(job.result()).pictures[0].image().tobytes())
    assert found[0] == found[1] == found[2]


def test_conditions_are_put_away_to_the_bit() -> None:
    for raw in (torch.rand(1, 30, 40), torch.randint(-1, 9, (2, 3, 4), dtype=torch.int16), torch.rand(1, 4, 6).mT):
        held = held_tensor(raw)
        assert torch.equal(held.out(), raw)
        assert held.out().dtype == raw.dtype
    image = Image.fromarray(ids())
    assert np.array_equal(np.asarray(held_image(image).out()), ids())


def test_edits_that_cannot_be_are_told_in_words(studio: Studio) -> None:
    raw = studio.read_condition("mask", painted(ids()), "the drawing")
    photograph = made(studio, raw, num=1).pictures[0].image()
    with pytest.raises(UserError):
        edited(studio, photograph, raw, raw)  # nothing differs
    with pytest.raises(LimitError, match="steps = 501"):
        edited(studio, photograph, raw, None, steps=501)
    with pytest.raises(UserError):
        edited(studio, photograph.resize((16, 60)), raw, None)
