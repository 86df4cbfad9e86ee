from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, MaskCondition, NoCondition
from piti.core.images import center_box, to_uint8
from piti.core.seeding import generator_for
from piti.core.spec import SpecError
from piti.data import FolderSpec, PairedFolder, crops, folders
from piti.data.pairs import split_by_hash
from piti.data.problems import DataError
from piti.data.shown import UNEQUAL

COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10))
MASK = MaskCondition(ClassTable(names=tuple("abcd"), ids=range(4), colours=COLOURS, ignore=255))


def write_pair(root, key, size=(24, 16), seed=0, ids=None):
    """A mask of blocks and a photograph painted in its classes' colours, so that both can be compared."""
    width, height = size
    if ids is None:
        blocks = np.random.default_rng(seed).integers(0, 4, (-(-height // 4), -(-width // 4)), dtype=np.uint8)
        ids = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
    for folder, image in (("images", np.array(COLOURS, np.uint8)[ids.clip(0, 3)]), ("labels", ids)):
        path = root / folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture
def root(tmp_path):
    for k in range(6):
        write_pair(tmp_path, f"drive/{k}", seed=k)
    return tmp_path


def spec(root, **changes):
    return FolderSpec(root=root, **{"size": 8, **changes})


def problems(folder) -> str:
    with pytest.raises(DataError) as error:
        folder.check()
    return str(error.value)


def test_identity_follows_names_and_not_places(root):
    def identity(**places):
        return PairedFolder(FolderSpec(size=8, **places), MASK if "root" in places else NoCondition()).identity()

    before, alone = identity(root=root), identity(photographs=(root / "images",))
    moved = root.rename(root.with_name("moved"))
    assert identity(root=moved) == before
    assert identity(photographs=((moved / "images").rename(moved / "pictures"),)) == alone
    (moved / "pictures/drive/5.png").rename(moved / "pictures/drive/6.png")
    assert identity(photographs=(moved / "pictures",)) != alone


class TestMatching:
    def test_pairs_by_path_whatever_the_suffix_and_depth(self, root):
        photo = root / "images" / "drive" / "0.png"
        Image.open(photo).save(photo.with_suffix(".webp"), lossless=True)
        photo.unlink()
        write_pair(root, "top")
        folder = PairedFolder(spec(root), MASK)
        assert [pair.key for pair in folder.pairs] == [*(f"drive/{k}" for k in range(6)), "top"]
        assert folder.pairs[0].image.name == "0.webp"
        assert folder.check().pairs == 7

    def test_a_splits_file_chooses(self, root):
        (root / "splits.json").write_text(json.dumps({"train": ["drive/4", "drive/1"], "val": ["drive/0"]}))
        assert [pair.key for pair in PairedFolder(spec(root), MASK, "train").pairs] == ["drive/1", "drive/4"]
        assert [pair.key for pair in PairedFolder(spec(root), MASK, "val").pairs] == ["drive/0"]
        assert len(PairedFolder(spec(root), MASK)) == 6

    def test_without_one_the_parts_are_disjoint_and_whole(self, root):
        parts = [PairedFolder(spec(root), MASK, split) for split in ("train", "val")]
        keys = [pair.key for part in parts for pair in part.pairs]
        assert len(parts[1]) >= 1
        assert sorted(keys) == [f"drive/{k}" for k in range(6)]

    def test_an_unknown_split_names_the_nearest(self, root):
        with pytest.raises(DataError, match=r"no split 'vall'; did you mean 'val'\? known: train, val"):
            PairedFolder(spec(root), MASK, "vall")

    @pytest.mark.parametrize("text", ["{", "[]", '{"train": "drive/0"}', '{"train": [1]}'])
    def test_a_broken_splits_file(self, root, text):
        (root / "splits.json").write_text(text)
        with pytest.raises(DataError, match=r"splits\.json: "):
            PairedFolder(spec(root), MASK, "train")

    def test_a_named_splits_file_must_exist(self, root):
        with pytest.raises(DataError, match=r"mine\.json: cannot read the splits"):
            PairedFolder(spec(root, splits="mine.json"), MASK, "train")

    def test_missing_folders(self, tmp_path):
        with pytest.raises(DataError, match="pass data"):
            PairedFolder(FolderSpec(), MASK)
        with pytest.raises(DataError, match=r"images: no such folder"):
            PairedFolder(spec(tmp_path), MASK)
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        with pytest.raises(DataError, match="contain no images"):
            PairedFolder(spec(tmp_path), MASK)


class TestSplitByHash:
    KEYS = tuple(f"scene/{k:04d}" for k in range(1000))

    def test_about_five_percent_are_held_out(self):
        parts = split_by_hash(self.KEYS)
        assert 30 <= len(parts["val"]) <= 70
        assert sorted(parts["train"] + parts["val"]) == list(self.KEYS)

    def test_a_key_keeps_its_place_when_others_come(self):
        few, all_of_them = split_by_hash(self.KEYS[:500]), split_by_hash(self.KEYS)
        assert set(few["val"]) == set(all_of_them["val"]).intersection(self.KEYS[:500])

    @pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 1), (3, 1)])
    def test_small_sets_keep_something_to_train_on(self, count, held_out):
        parts = split_by_hash(self.KEYS[:count])
        assert len(parts["val"]) == held_out
        assert len(parts["train"]) == count - held_out


class TestCheck:
    def test_all_problems_are_reported_together(self, root):
        """One of each kind; the user mends them in one go."""
        (root / "labels" / "drive" / "0.png").unlink()
        (root / "images" / "drive" / "1.png").unlink()
        (root / "images" / "drive" / "2.png").write_bytes(b"not a picture")
        Image.new("RGB", (12, 8)).save(root / "images" / "drive" / "3.png")
        write_pair(root, "drive/4", ids=np.full((16, 24), 77, np.uint8))
        write_pair(root, "drive/5", size=(24, 7))
        listed = [f"drive/{k}" for k in range(6)]
        (root / "splits.json").write_text(json.dumps({"train": [*listed, "gone"], "val": ["drive/5"]}))
        message = problems(PairedFolder(spec(root), MASK, "train"))
        for line in (
            "1 images without a condition in labels/:\n    drive/0",
            "1 conditions without an image in images/:\n    drive/1",
            "1 unreadable files (replace or remove them):",
            "drive/2.png: not a readable image",
            f"1 {UNEQUAL}:",
            "    drive/3: image 12 x 8, condition 24 x 16",
            "id 77 on 384 pixels is not in the class table",
            "1 images smaller than a sample (enlarge them, or lower data.size = 8):\n    ",
            "1 keys in splits.json without files (paths without suffix):\n    gone",
            "1 keys listed more than once in splits.json:\n    drive/5: train, val",
        ):
            assert line in message

    def test_many_of_a_kind_are_counted_and_the_first_named(self, tmp_path):
        for k in range(9):
            write_pair(tmp_path, f"{k}")
            (tmp_path / "images" / f"{k}.png").write_bytes(b"")
        message = problems(PairedFolder(spec(tmp_path), MASK))
        assert "9 unreadable files" in message
        assert message.count("not a readable image") == 5
        assert "… and 4 more" in message

    def test_nothing_but_orphans(self, tmp_path):
        write_pair(tmp_path, "a")
        (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / "b.png")
        with pytest.raises(DataError, match=r"(?s)without a condition.*without an image"):
            PairedFolder(spec(tmp_path), MASK)

    def test_two_files_of_one_key(self, root):
        Image.new("RGB", (24, 16)).save(root / "images" / "drive" / "0.jpg")
        message = problems(PairedFolder(spec(root), MASK))
        assert "keys with several files (keep one)" in message
        assert "0.jpg" in message

    def test_checking_again_says_the_same(self, root):
        (root / "images" / "drive" / "1.png").unlink()
        Image.new("RGB", (12, 8)).save(root / "images" / "drive" / "3.png")
        folder = PairedFolder(spec(root), MASK)
        said = (
            f"{root}: the data set has problems\n  1 conditions without an image in images/:\n    drive/1\n"
            f"  1 {UNEQUAL}:\n    drive/3: image 12 x 8, condition 24 x 16"
        )
        assert [problems(folder) for _ in range(2)] == [said, said]

    def test_an_empty_split_cannot_be_used(self, root):
        (root / "splits.json").write_text('{"train": []}')
        assert "splits without pairs" in problems(PairedFolder(spec(root), MASK, "train"))

    def test_progress(self, root):
        calls = []
        PairedFolder(spec(root), MASK).check(lambda done, total: calls.append((done, total)))
        assert calls == [(k, 6) for k in range(1, 7)]


class TestCache:
    def decoded(self, folder, monkeypatch) -> int:
        """How many pictures are read from disk for two rounds through the folder."""
        reads = []
        read = crops.read_rgb
        monkeypatch.setattr(crops, "read_rgb", lambda path: reads.append(path) or read(path))
        for _ in range(2):
            for k in range(len(folder)):
                folder.center(k)
        return len(reads)

    def test_after_a_check_nothing_is_decoded_again(self, root, monkeypatch):
        folder = PairedFolder(spec(root), MASK)
        report = folder.check()
        assert report.cached
        assert report.bytes == 6 * 24 * 16 * 4
        assert self.decoded(folder, monkeypatch) == 0

    def test_without_a_check_everything_is_decoded_once(self, root, monkeypatch):
        assert self.decoded(PairedFolder(spec(root), MASK), monkeypatch) == 6

    def test_switched_off(self, root, monkeypatch):
        folder = PairedFolder(spec(root, cache=False), MASK)
        assert not folder.check().cached
        assert self.decoded(folder, monkeypatch) == 12

    def test_what_does_not_fit_is_read_from_disk_and_said_once(self, root, monkeypatch, caplog):
        folder = PairedFolder(spec(root, cache_gib=1e-7), MASK)
        with caplog.at_level(logging.WARNING):
            assert not folder.check().cached
            assert self.decoded(folder, monkeypatch) == 12
        assert [record for record in caplog.messages if "data.cache_gib" in record] == caplog.messages
        assert len(caplog.messages) == 1

    def test_the_cache_does_not_change_samples(self, root):
        cached, plain = (PairedFolder(spec(root, cache=cache), MASK) for cache in (True, False))
        cached.check()
        for k in range(6):
            one, other = (folder.sample(k, generator_for(k)) for folder in (cached, plain))
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.condition, other.condition)

    def test_samples_do_not_write_into_it(self, root):
        folder = PairedFolder(spec(root, size=16, crop_scale=(1.0, 1.0)), MASK)
        before = folder.center(0)
        changed = folder.center(0)
        changed.image.zero_()
        changed.condition.zero_()
        again = folder.center(0)
        assert torch.equal(before.image, again.image)
        assert torch.equal(before.condition, again.condition)


class TestSamples:
    def test_image_and_mask_stay_aligned_under_crop_and_flip(self, root):
        """Where a crop is not resized, each pixel's colour is its class's: any shift or half flip shows."""
        size = 12
        folder = PairedFolder(spec(root, size=size, crop_scale=(size / 16, size / 16)), MASK)
        seen = set()
        for n in range(40):
            sample = folder.sample(n % 6, generator_for(n))
            painted = MASK.read(Image.fromarray(to_uint8(sample.image).permute(1, 2, 0).numpy()), "image")
            assert torch.equal(painted, sample.condition)
            seen.add(sample.image.numpy().tobytes())
        assert len(seen) > 35

    def test_crops_reach_every_place_and_half_are_mirrored(self, tmp_path):
        """A picture that counts its columns: red is x, green is y."""
        x, y = np.meshgrid(np.arange(24), np.arange(16))
        write_pair(tmp_path, "a")
        Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "images" / "a.png")
        folder = PairedFolder(spec(tmp_path, size=8, crop_scale=(0.5, 0.5)), MASK)
        corners, mirrored = set(), 0
        for n in range(3000):
            pixels = to_uint8(folder.sample(0, generator_for(n)).image)
            left, right, top = int(pixels[0, 0, 0]), int(pixels[0, 0, -1]), int(pixels[1, 0, 0])
            mirrored += left > right
            corners.add((min(left, right), top))
        assert corners == {(x, y) for x in range(24 - 8 + 1) for y in range(16 - 8 + 1)}
        assert 0.45 < mirrored / 3000 < 0.55

    @pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32)])
    def test_crops_of_long_pictures_are_undistorted_and_even(self, tmp_path, width, height):
        """Two to one: every place along the long side is as likely, and a step is a pixel in both directions."""
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        write_pair(tmp_path, "a", (width, height))
        Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)).save(tmp_path / "images" / "a.png")
        folder = PairedFolder(spec(tmp_path, size=16, crop_scale=(1.0, 1.0), flip=False), MASK)
        places = np.zeros(17)
        for n in range(1700):
            pixels = to_uint8(folder.sample(0, generator_for(n)).image)
            left, top = int(pixels[0, 0, 0]), int(pixels[1, 0, 0])
            assert torch.equal(pixels[0], torch.arange(left, left + 16).expand(16, 16).to(torch.uint8))
            assert torch.equal(pixels[1], torch.arange(top, top + 16)[:, None].expand(16, 16).to(torch.uint8))
            places[left + top] += 1
        assert ((places - 100) ** 2 / 100).sum() < 39.3  # chi-squared of 16 degrees of freedom, p = 0.001

    def test_crops_are_squares_within_the_scale(self, root):
        folder = PairedFolder(spec(root, crop_scale=(0.5, 1.0)), MASK)
        sides = set()
        for n in range(500):
            box, _ = folder.cutter.draw(24, 16, generator_for(n))
            assert box.width == box.height
            assert 0 <= box.left <= 24 - box.width
            assert 0 <= box.top <= 16 - box.height
            sides.add(box.width)
        assert sides == set(range(8, 17))

    def test_no_flip_draws_the_same_crop(self, root):
        flips, plain = (PairedFolder(spec(root, flip=flip), MASK) for flip in (True, False))
        mirrored = 0
        for n in range(20):
            one, other = (folder.sample(0, generator_for(n)) for folder in (flips, plain))
            same = torch.equal(one.image, other.image)
            mirrored += not same
            assert same or torch.equal(one.image.flip(-1), other.image)
        assert 0 < mirrored < 20

    def test_same_generator_same_sample(self, root):
        folder = PairedFolder(spec(root), MASK)
        one, other = (folder.sample(2, generator_for("a", 1)) for _ in range(2))
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.condition, other.condition)
        assert one.key == "drive/2"

    def test_center_is_the_plain_center_crop(self, camvid):
        """As whoever compares with real pictures prepares them: crop, then bicubic and nearest."""
        condition = MaskCondition(ClassTable.read(camvid / "classes.json"))
        folder = PairedFolder(FolderSpec(root=camvid, size=64), condition, "val")
        sample = folder.center(3)
        pair = folder.pairs[3]
        left, top, side, _ = center_box(480, 360)
        for path, resample, found in (
            (pair.image, Image.Resampling.BICUBIC, to_uint8(sample.image).permute(1, 2, 0)),
            (pair.condition, Image.Resampling.NEAREST, sample.condition[0]),
        ):
            with Image.open(path) as image:
                wanted = image.crop((left, top, left + side, top + side)).resize((64, 64), resample)
            assert np.array_equal(found.numpy(), np.asarray(wanted))


class TestSpec:
    @pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.8), (0.5, 1.1)])
    def test_crop_scale(self, scale):
        with pytest.raises(SpecError, match=r"crop_scale.*0 < from <= to <= 1"):
            FolderSpec.parse({"crop_scale": scale}, "data")

    def test_round_trip(self, tmp_path):
        one = FolderSpec(root=tmp_path, size=32, crop_scale=(0.5, 0.75))
        assert FolderSpec.parse(json.loads(json.dumps(one.to_dict())), "data") == one


def test_a_condition_of_another_size_shows_the_same_crop(root):
    """The finer condition, every second pixel of it, is the one of the image's size."""
    fine = PairedFolder(spec(root, condition_size=16, crop_scale=(1, 1), flip=False), MASK, "train")
    plain = PairedFolder(spec(root, condition_size=None, crop_scale=(1, 1), flip=False), MASK, "train")
    for index in range(len(fine)):
        one, other = (f.sample(index, generator_for(0, index)) for f in (fine, plain))
        assert one.condition.shape == (1, 16, 16)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.condition[:, 1::2, 1::2], other.condition)


def test_splits_are_checked_together(root):
    (root / "images/drive/0.png").write_bytes(b"")
    (root / "images/drive/5.png").write_bytes(b"")
    (root / "splits.json").write_text(json.dumps({"train": [f"drive/{k}" for k in range(4)], "val": ["drive/5"]}))
    (root / "labels/drive/4.png").unlink()
    with pytest.raises(DataError) as error:
        folders.check_together([PairedFolder(spec(root), MASK, name) for name in ("train", "val")])
    lines = str(error.value).splitlines()
    for key in ("drive/0", "drive/4", "drive/5"):
        assert sum(key in line for line in lines) == 1


class TestLimit:
    def test_a_lower_limit_takes_a_part_of_a_higher_one(self, root):
        for k in range(6, 30):
            write_pair(root, f"drive/{k}", seed=k)
        whole, some, few = (
            [pair.key for pair in PairedFolder(spec(root, limit=limit), MASK, "train").pairs] for limit in (None, 9, 3)
        )
        assert (len(some), len(few)) == (9, 3)
        assert set(few) < set(some) < set(whole)
        assert few == sorted(few)

    def test_validation_keeps_all_of_its_own(self, root):
        keys = [[pair.key for pair in PairedFolder(spec(root, limit=n), MASK, "val").pairs] for n in (None, 1)]
        assert keys[0] == keys[1]

    def test_more_than_there_are_is_an_error(self, root):
        with pytest.raises(DataError, match=r"data.limit: 99, and .* has 5 training pairs; lower it"):
            PairedFolder(spec(root, limit=99), MASK, "train")

    def test_it_is_for_folders(self, root):
        with pytest.raises(SpecError, match="'limit' is for folders"):
            FolderSpec.parse({"shards": ["a.tar"], "limit": 3}, "data")
