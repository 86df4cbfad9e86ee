"""Masks with another class table than the model's, and consistent reading of sets."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, MaskCondition, SeveralCondition, SketchCondition
from piti.conditions.coverage import unlabelled_note
from piti.data.archives import list_archived
from piti.generation.options import GenerationOptions
from piti.generation.readers import mapped_note, readers_of
from piti.generation.sources import TranslationError, TranslationFiles
from piti.generation.translate import translate_files
from tests.pipelines.test_pipeline import mask, tiny_pipeline

MODEL = MaskCondition(
    ClassTable(names=("sky", "road", "car"), ids=(0, 1, 2), colours=((1, 9, 9), (2, 9, 9), (3, 9, 9)), ignore=255)
)
ONE = GenerationOptions.from_flat(num=1, steps=1)


def labelled(folder: Path, *names: str, **more) -> Path:
    """A mask of ids 0, 1, 2, 255 in `labels/b/`, numbered by a classes.json above."""
    (folder / "labels/b").mkdir(parents=True)
    classes = [{"id": k, "name": name, "color": [k + 1, 9, 9]} for k, name in enumerate(names)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255, **more}))
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(folder / "labels/b/m.png")
    return folder / "labels/b/m.png"


class TestTablesBeside:
    def test_classes_are_matched_by_name(self, tmp_path):
        path = labelled(tmp_path, "Car", "road", "sky")
        readers, notes = readers_of(MODEL, [path])
        assert readers[path].load(path)[0].tolist() == [[2, 1, 0, 255]]
        assert "matched by name" in notes[0]
        assert MODEL.beside(str(path)).load(path)[0].tolist() == [[2, 1, 0, 255]]

    def test_in_deep_folders_too(self, tmp_path):
        flat = labelled(tmp_path, "car", "road", "sky")
        deep = flat.parent / "ADE/training/urban/street/m.png"
        deep.parent.mkdir(parents=True)
        deep.write_bytes(flat.read_bytes())
        assert MODEL.beside(deep) == MODEL.beside(flat) != MODEL

    def test_behind_a_link_to_their_folder_too(self, tmp_path):
        path = labelled(tmp_path / "set", "car", "road", "sky")
        (tmp_path / "masks").symlink_to(tmp_path / "set/labels")
        assert MODEL.beside(tmp_path / "masks/b/m.png") == MODEL.beside(path) != MODEL

    def test_the_models_own_table_changes_nothing(self, tmp_path):
        path = labelled(tmp_path, "sky", "road", "car")
        assert readers_of(MODEL, [path]) == ({}, [])
        assert MODEL.beside(path) is MODEL

    def test_names_that_do_not_fit_are_refused_where_they_occur(self, tmp_path):
        path = labelled(tmp_path, "car", "tram", "sky", "moon")
        with pytest.raises(ValueError, match=r"classes that the model lacks \('tram', 'moon'\), and masks use them"):
            MODEL.beside(path).load(path)
        Image.fromarray(np.array([[0, 2]], np.uint8)).save(path)
        assert MODEL.beside(path).load(path)[0].tolist() == [[2, 0]]

    def test_shards_too(self, tmp_path):
        path = labelled(tmp_path, "car", "road", "sky")
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            tar.add(path, "m.labels.png")
        (file,) = list_archived(tmp_path / "s.tar", extension="labels")
        readers, _ = readers_of(MODEL, [file])
        assert readers[file].load(file)[0].tolist() == [[2, 1, 0, 255]]

    def test_what_is_said_of_one_condition_alone(self, tmp_path):
        path = labelled(tmp_path, "car", "road", "sky")
        assert "matched by name" in mapped_note(MODEL, path)[0]
        assert mapped_note(MODEL, "a text") == []
        some = torch.tensor([[[0, 255]]], dtype=torch.uint8)
        assert "50% unlabelled" in unlabelled_note(MODEL, some)[0]
        assert unlabelled_note(MODEL, some[..., :1]) == []

    def test_parts_by_themselves(self, tmp_path):
        path = labelled(tmp_path, "car", "road", "sky")
        several = SeveralCondition({"mask": MODEL, "sketch": SketchCondition()})
        raw = several.beside({"mask": path}).load({"mask": path})
        assert several.given_parts(raw)["mask"][1][0].tolist() == [[2, 1, 0, 255]]

    def test_the_case(self, cases):
        from piti.checkpoints.folder import ModelFolder
        from piti.pipelines.pipeline import find_model

        root = cases / "06-other-class-table/21-street-reordered"
        street = ModelFolder.open(find_model("street")).condition
        path = root / "labels/s0.png"
        own = MaskCondition(ClassTable.read(root / "classes.json"))
        assert isinstance(street, MaskCondition)
        by_own, by_model = own.load(path), street.beside(path).load(path)
        names = [street.classes.names.index(name) for name in own.classes.names]
        known = by_own != own.ignore_index
        assert torch.equal(torch.tensor(names)[by_own[known].long()], by_model[known].long())


class TestTranslating:
    @pytest.fixture
    def nested(self, tmp_path) -> Path:
        (tmp_path / "labels/b").mkdir(parents=True)
        for name in ("s0", "b/s2"):
            mask(0).save(tmp_path / f"labels/{name}.png")
        return tmp_path / "labels"

    def test_subfolders_are_translated_under_names_that_do_not_collide(self, nested, tmp_path):
        report = translate_files(tiny_pipeline(), TranslationFiles([nested], tmp_path / "out"), ONE, "m")
        assert sorted(path.name for path in report.made) == ["b-s2_0.png", "s0_0.png"]

    def test_results_inside_the_folder_are_no_inputs(self, nested):
        translate_files(tiny_pipeline(), TranslationFiles([nested], nested / "out"), ONE, "m")
        report = translate_files(tiny_pipeline(), TranslationFiles([nested], nested / "out"), ONE, "m")
        assert len(report.kept) == 2

    def test_links_that_lead_nowhere_and_unread_pictures_are_errors(self, nested, tmp_path):
        (nested / "s9.png").symlink_to("nowhere")
        with pytest.raises(ValueError, match="broken links"):
            translate_files(tiny_pipeline(), TranslationFiles([nested], tmp_path / "out"), ONE, "m")
        (nested / "s9.png").unlink()
        (nested / "s9.heic").touch()
        with pytest.raises(ValueError, match="unsupported format"):
            translate_files(tiny_pipeline(), TranslationFiles([nested], tmp_path / "out"), ONE, "m")

    def test_a_table_beside_the_masks_is_heeded_and_coverage_told(self, nested, tmp_path):
        pipe = tiny_pipeline()
        assert isinstance(pipe.condition, MaskCondition)
        table = pipe.condition.classes
        plain = translate_files(pipe, TranslationFiles([nested / "s0.png"], tmp_path / "plain"), ONE, "m")
        ids = dict(zip(table.names, table.ids, strict=True))
        moved = {name: ids[table.names[k - 1]] for k, name in enumerate(table.names)}  # each with the id of another
        classes = [
            {"id": moved[name], "name": name, "color": list(colour)}
            for name, colour in zip(table.names, table.colours, strict=True)
        ]
        (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignore": table.ignore}))
        raw = pipe.condition.load(nested / "s0.png")[0].numpy()
        again = np.full(raw.shape, table.ignore or 0, np.uint8)
        for k, name in enumerate(table.names):
            again[raw == k] = moved[name]
        Image.fromarray(again).save(nested / "s0.png")
        report = translate_files(pipe, TranslationFiles([nested / "s0.png"], tmp_path / "again"), ONE, "m")
        one, other = (np.asarray(Image.open(found.made[0])) for found in (plain, report))
        assert np.array_equal(one, other)
        assert "matched by name" in report.notes[0]

    def test_what_is_unlabelled_throughout_is_told(self, tmp_path):
        pipe = tiny_pipeline()
        assert isinstance(pipe.condition, MaskCondition)
        assert pipe.condition.classes.ignore is not None
        Image.new("L", (16, 16), pipe.condition.classes.ignore).save(tmp_path / "m.png")
        report = translate_files(pipe, TranslationFiles([tmp_path / "m.png"], tmp_path / "out"), ONE, "m")
        assert any("occur in no mask; 100% unlabelled" in note for note in report.notes)
        assert "warning: the mask is unlabelled throughout, so no class guides the image" in report.notes

    def test_many_inputs_that_cannot_be_used_are_counted(self, tmp_path):
        for k in range(8):
            (tmp_path / f"{k}.png").write_bytes(b"none")
        with pytest.raises(TranslationError, match=r"(?s)^8 of 8 inputs cannot be used.*4\.png.*… and 3 more") as error:
            translate_files(tiny_pipeline(), TranslationFiles([tmp_path], tmp_path / "out"), ONE, "m")
        assert "5.png" not in str(error.value)

    def test_lossy_masks_are_refused(self, tmp_path):
        mask(0).convert("RGB").save(tmp_path / "m.jpg")
        with pytest.raises(TranslationError, match="is a JPEG, a lossy format, which changes"):
            translate_files(tiny_pipeline(), TranslationFiles([tmp_path / "m.jpg"], tmp_path / "out"), ONE, "m")
