"""The page of a preference study: blind, complete, self-contained."""

from __future__ import annotations

import base64
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.core.errors import UserError
from piti.core.files import OutputError
from piti.evaluation.preference import study as making
from piti.evaluation.preference.study import QUESTION, Compared, StudyOptions, write_study
from piti.evaluation.preference.votes import StudyError, read_key
from tests.evaluation.preference.studies import folders, page_data, picture, study


def decoded(address: str) -> Image.Image:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_page_says_nothing_of_where_pictures_are_from(tmp_path: Path) -> None:
    written, key = study(tmp_path)
    text = written.page.read_text(encoding="utf-8")
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PNG", text)
    assert bare.count("PNG") == 12
    assert not re.search(r"https?:|\w//\w|url\(|@import|<iframe|fetch\(|WebSocket|sendBeacon", bare)
    for word in ("first-model", "second-model", "scene-", "piti:model", "sha256"):
        assert word not in text
    assert written.bytes == len(text.encode()) == written.page.stat().st_size
    for pair in page_data(written.page)["pairs"]:
        assert set(pair) == {"id", "images", "condition"}
        for image in pair["images"]:
            assert set(image) == {"id", "src"}
            assert decoded(image["src"]).info.keys() <= {"interlace"}
    assert {pair.name for pair in key.pairs} == {f"scene-{k}_0" for k in range(6)}
    assert (key.a, key.b) == (str(tmp_path / "first-model"), str(tmp_path / "second-model"))


def test_the_key_tells_whose_every_picture_is(tmp_path: Path) -> None:
    written, key = study(tmp_path)
    shown = {image["id"]: image["src"] for pair in page_data(written.page)["pairs"] for image in pair["images"]}
    for pair in key.pairs:
        for side, folder in ((pair.a, "first-model"), (pair.b, "second-model")):
            given = np.asarray(Image.open(tmp_path / folder / f"{pair.name}.png"))
            assert np.array_equal(np.asarray(decoded(shown[side])), given)


def test_sides_and_order_are_even_over_seeds(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 4)
    first_is_a, order = [], set()
    for seed in range(40):
        written = write_study(Compared(a, b), tmp_path / "study.html", StudyOptions(seed), overwrite=True)
        of_a = {pair.a for pair in read_key(written.key).pairs}
        name = {pair.id: pair.name for pair in read_key(written.key).pairs}
        pairs = page_data(written.page)["pairs"]
        first_is_a += [pair["images"][0]["id"] in of_a for pair in pairs]
        order.add(tuple(name[pair["id"]] for pair in pairs))
    assert len(first_is_a) == 160
    assert 60 <= sum(first_is_a) <= 100  # three standard deviations
    assert len(order) > 12


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    one, same, other = (
        write_study(Compared(a, b), tmp_path / f"{k}.html", StudyOptions(seed)) for k, seed in enumerate((1, 1, 2))
    )
    assert one.page.read_bytes() == same.page.read_bytes()
    assert one.key.read_bytes() == same.key.read_bytes()
    assert one.id == same.id != other.id
    assert write_study(Compared(b, a), tmp_path / "turned.html", StudyOptions(1)).id != one.id


def test_limit_draws_by_seed(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 12)
    names = []
    for seed in range(6):
        written = write_study(Compared(a, b), tmp_path / f"{seed}.html", StudyOptions(seed, limit=4))
        assert (written.pairs, written.available, written.repeats) == (4, 12, 2)
        names.append(tuple(pair.name for pair in read_key(written.key).pairs))
    assert len(set(names)) > 3
    assert "4 of 12 pairs" in str(written)


def test_a_question_is_text_in_the_page(tmp_path: Path) -> None:
    question = "Which </script><b>is</b> “nicer”? STUDY_DATA"
    written, _ = study(tmp_path, question=question, ties=True, repeats=1)
    data = page_data(written.page)
    assert (data["question"], data["ties"], data["repeats"]) == (question, True, 1)
    assert "<b>is" not in written.page.read_text(encoding="utf-8")


def test_conditions_are_drawn_in_the_images_proportions(tmp_path: Path, tiny_data: Path) -> None:
    for k in range(12):
        for folder in ("a", "b"):
            picture(tmp_path / folder / f"scene-{k:02d}_0.png", (k, 90, 90), (32, 32), k + 50 * (folder == "b"))
    condition = MaskCondition(ClassTable.read(tiny_data / "classes.json"))
    labels = tiny_data / "labels"
    sets = tmp_path / "a", tmp_path / "b"
    written = write_study(Compared(*sets, labels, condition=condition), tmp_path / "drawn.html")
    pairs = page_data(written.page)["pairs"]
    name = {pair.id: pair.name for pair in read_key(written.key).pairs}
    assert len({name[pair["id"]] for pair in pairs}) == 12
    for pair in pairs:
        mask = condition.preview(condition.load(labels / f"{name[pair['id']].removesuffix('_0')}.png"))
        assert np.array_equal(np.asarray(decoded(pair["condition"])), np.asarray(mask.crop((4, 0, 36, 32))))
    assert not written.notes
    bare = write_study(Compared(*sets, labels), tmp_path / "bare.html")
    assert any("nearly black" in note for note in bare.notes)
    (labels / "scene-03.png").unlink()
    with pytest.raises(UserError, match=r"scene-03_0\.png"):
        write_study(Compared(*sets, labels), tmp_path / "missing.html")


def test_sizes_may_differ_but_not_proportions(tmp_path: Path) -> None:
    a, b = folders(tmp_path / "sizes", 3, (16, 12), (64, 48))
    assert write_study(Compared(a, b), tmp_path / "sizes.html").pairs == 3
    a, b = folders(tmp_path / "shapes", 3, (16, 16), (64, 48))
    with pytest.raises(StudyError, match=r"scene-0_0\.png is 16 x 16 and .*scene-0_0\.png 64 x 48"):
        write_study(Compared(a, b), tmp_path / "shapes.html")
    assert not (tmp_path / "shapes.html").exists()


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    out = tmp_path / "study.html"
    picture(a / "alone.png", (0, 0, 0))
    with pytest.raises(StudyError, match=r"1 images are in only one of the folders: .*alone\.png"):
        write_study(Compared(a, b), out)
    (a / "alone.png").rename(a / "scene-0_0.jpg")
    with pytest.raises(StudyError, match=r"scene-0_0\.jpg and .*scene-0_0\.png have the same stem"):
        write_study(Compared(a, b), out)
    (a / "scene-0_0.jpg").unlink()
    (b / "scene-2_0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"scene-2_0\.png"):
        write_study(Compared(a, b), out)
    with pytest.raises(StudyError, match="the same folder"):
        write_study(Compared(a, a), out)
    with pytest.raises(UserError, match="no such folder"):
        write_study(Compared(a, tmp_path / "nowhere"), out)
    with pytest.raises(StudyError, match="too few"):
        write_study(Compared(*folders(tmp_path / "one", 1)), out)
    assert not list(tmp_path.glob("*study*"))


def test_the_same_pictures_are_no_study(tmp_path: Path) -> None:
    a, b = folders(tmp_path, 3)
    (b / "scene-1_0.png").write_bytes((a / "scene-1_0.png").read_bytes())
    written = write_study(Compared(a, b), tmp_path / "study.html")
    assert "1 pairs have two identical images: scene-1_0" in written.notes[0]
    for path in a.glob("scene*"):
        (b / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StudyError, match="identical images"):
        write_study(Compared(a, b), tmp_path / "other.html")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 1}, "limit 1"),
        ({"repeats": 4}, "repeats 4: of 6 pairs, 0 to 3"),
        ({"repeats": -1}, "repeats -1"),
        ({"question": " "}, "question"),
        ({"question": "x" * 301}, "301 characters"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study(tmp_path, **options)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    written = write_study(Compared(a, b), tmp_path / "study.html", StudyOptions(1))
    before = {path: path.read_bytes() for path in (written.page, written.key)}
    with pytest.raises(OutputError, match="overwrite"):
        write_study(Compared(a, b), written.page, StudyOptions(2))
    written.page.rename(tmp_path / "sent.html")
    with pytest.raises(OutputError, match=r"study\.key\.json.*overwrite"):
        write_study(Compared(a, b), written.page, StudyOptions(2))
    (tmp_path / "sent.html").rename(written.page)
    assert before == {path: path.read_bytes() for path in before}
    assert not write_study(Compared(a, b), written.page, StudyOptions(1), overwrite=True).notes
    other = write_study(Compared(a, b), written.page, StudyOptions(2), overwrite=True)
    assert "another study" in other.notes[0]
    assert read_key(other.key).study == other.id


def test_only_studies_are_overwritten(tmp_path: Path) -> None:
    a, b = folders(tmp_path)
    page, key = tmp_path / "index.html", tmp_path / "index.key.json"
    page.write_text("my homepage")
    with pytest.raises(StudyError, match="is not a study"):
        write_study(Compared(a, b), page, overwrite=True)
    page.unlink()
    key.write_text("{}")
    with pytest.raises(StudyError, match=r"index\.key\.json"):
        write_study(Compared(a, b), page, overwrite=True)
    assert key.read_text() == "{}"
    with pytest.raises(StudyError, match=r"use a name that ends in \.html"):
        write_study(Compared(a, b), tmp_path / "study.png")


def test_a_failure_leaves_the_old_study_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = folders(tmp_path)
    written = write_study(Compared(a, b), tmp_path / "study.html", StudyOptions(1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "flush", full)
    with pytest.raises(OutputError, match="No space left"):
        write_study(Compared(a, b), written.page, StudyOptions(2), overwrite=True)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_large_pages_are_warned_of_and_then_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = folders(tmp_path, 10)
    size = write_study(Compared(a, b), tmp_path / "study.html").bytes
    monkeypatch.setattr(making, "LARGE_MB", size / 2e6)
    assert "share it as a link" in write_study(Compared(a, b), tmp_path / "large.html").notes[0]
    addresses = re.findall(r"data:image[^\"]+", (tmp_path / "study.html").read_text(encoding="utf-8"))
    monkeypatch.setattr(making, "LARGEST_MB", sum(map(len, addresses)) / 2e6)
    with pytest.raises(StudyError, match=r"the page of 10 pairs would have .* \(limit 4\)"):
        write_study(Compared(a, b), tmp_path / "largest.html")
    assert not (tmp_path / "largest.html").exists()


def test_the_template_is_packaged() -> None:
    root = Path(making.__file__).parents[3]
    given = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["piti"]
    assert any(root / "piti/evaluation/preference/study.html" in (root / "piti").glob(pattern) for pattern in given)


def test_progress_and_default_question(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    written, key = study(tmp_path, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(k, 6) for k in range(1, 7)]
    assert key.question == QUESTION
    assert json.loads(written.key.read_text(encoding="utf-8"))["format"] == "piti study key 1"
