"""Evaluation of models on a data split: generated and kept images, measures, errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.core.errors import UserError
from piti.core.images import save_png
from piti.evaluation.evaluate import Options, evaluate_made, evaluate_model
from piti.evaluation.generating import JudgedModel, Split, generate_split
from piti.evaluation.pairing import PairingError
from piti.generation.options import GenerationOptions
from piti.pipelines.computing import Computing
from tests.evaluation.seen import NOISELESS, OPTIONS, baseline_pipeline
from tests.generation.test_inputs import several_pipeline
from tests.pipelines.test_pipeline import tiny_pipeline

pytestmark = pytest.mark.usefixtures("colour_networks")

CPU = Computing("cpu", engine="torch")


class TestModel:
    settings = GenerationOptions.from_flat(num=2, steps=2)

    def test_a_split_is_translated_once(self, model: Path, tiny_data: Path, tmp_path: Path, aliases: Path) -> None:
        out, steps = tmp_path / "out", []
        options = Options(("colours",), segmenter="nearest", aliases=aliases, bootstrap=4, device="cpu")
        arguments = (str(model), Split(tiny_data), out, options, self.settings)
        first = evaluate_model(*arguments, on_step=lambda *told: steps.append(told))
        assert steps[-1] == (2, 2)
        assert sorted(path.name for path in out.iterdir()) == [
            *(f"scene-{k:02d}_{n}.png" for k in (9, 10, 11) for n in range(2)),
            "sheet.png",
        ]
        times = {path.name: path.stat().st_mtime_ns for path in out.glob("scene-*.png")}
        (out / "scene-10_1.png").unlink()
        second = evaluate_model(*arguments)
        assert first is not None
        assert second is not None
        assert first.measures == second.measures  # the image that was made alone says so: its file is another
        again = {path.name: path.stat().st_mtime_ns for path in out.glob("scene-*.png")}
        assert {name for name in times if again[name] != times[name]} == {"scene-10_1.png"}

        assert (first.facts["generated"]["images"], first.facts["real"]["images"]) == (6, 3)
        assert first.facts["real"]["split"] == "val"
        told = first.facts["model"]
        assert (told["condition"], told["split"], told["samples"]) == ("mask", "val", 2)
        assert told["sampling"]["steps"] == "2"
        assert len(told["weights_sha256"]) == 64
        assert {"fd", "kid", "spread", "miou", "real_miou"} <= {measure.name for measure in first.measures}

    def test_what_cannot_be_judged_is_told_before_anything_is_made(
        self, model: Path, tiny_data: Path, tmp_path: Path, aliases: Path
    ) -> None:
        """A segmenter's labels that fit no class of the masks, and held-out photographs that were trained on."""
        aliases.write_text('{"automobile": "lorry"}')
        (tmp_path / "trained").mkdir()
        for key in ("scene-00", "scene-09"):
            shutil.copy(tiny_data / f"images/{key}.png", tmp_path / "trained")
        for more, said in (
            (
                {"segmenter": "nearest", "aliases": aliases},
                "'automobile' maps to 'lorry', which is not a class of the masks",
            ),
            ({"training": tmp_path / "trained"}, "1 of 3 photographs, such as .*scene-09.png, are among the training"),
        ):
            options = replace(OPTIONS, **more)
            with pytest.raises(UserError, match=said):
                evaluate_model(str(model), Split(tiny_data), tmp_path / "out", options, self.settings)
        assert not (tmp_path / "out").exists()

    def test_one_image_is_no_set(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        one, settings = Split(tiny_data, limit=1), GenerationOptions.from_flat(num=1, steps=2)
        with pytest.raises(PairingError, match=r"out: 1 image; at least 2 generated images \(more .* num 2\)"):
            evaluate_model(str(model), one, tmp_path / "out", OPTIONS, settings)

    def test_images_made_otherwise_are_not_taken(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        generate_split(
            JudgedModel(str(model), computing=CPU), Split(tiny_data), out, GenerationOptions.from_flat(num=1, steps=2)
        )
        with pytest.raises(PairingError, match=r"scene-09_0\.png: already exists, generated with steps = 2, but 3"):
            generate_split(
                JudgedModel(str(model), computing=CPU),
                Split(tiny_data),
                out,
                GenerationOptions.from_flat(num=1, steps=3),
            )
        more = generate_split(
            JudgedModel(str(model), computing=CPU), Split(tiny_data), out, GenerationOptions.from_flat(num=2, steps=2)
        )
        assert len(more.images) == 6
        pipeline = tiny_pipeline()
        with torch.no_grad():
            next(pipeline.base.parameters()).add_(1)
        pipeline.save_pretrained(model)
        with pytest.raises(PairingError, match=r"generated with model = .*weights"):
            generate_split(
                JudgedModel(str(model), computing=CPU),
                Split(tiny_data),
                out,
                GenerationOptions.from_flat(num=1, steps=2),
            )

    def test_of_a_limited_split_other_images_in_the_folder_are_not_judged(
        self, model: Path, tiny_data: Path, tmp_path: Path
    ) -> None:
        out, settings = tmp_path / "out", GenerationOptions.from_flat(num=1, steps=1)
        generate_split(JudgedModel(str(model), computing=CPU), Split(tiny_data), out, settings)
        made = generate_split(JudgedModel(str(model), computing=CPU), Split(tiny_data, limit=2), out, settings)
        assert (len(made.images), len(made.photographs)) == (2, 3)
        found = evaluate_made(made, out, OPTIONS, tiny_data / "images")
        assert (found.facts["generated"]["images"], found.facts["real"]["images"]) == (2, 12)
        assert "split" not in found.facts["real"]

    def test_a_model_without_noise_makes_one_image_a_condition(self, tiny_data: Path, tmp_path: Path) -> None:
        baseline_pipeline(NOISELESS).save_pretrained(tmp_path / "pix")
        arguments = (
            JudgedModel(str(tmp_path / "pix"), computing=CPU),
            Split(tiny_data),
            tmp_path / "out",
            GenerationOptions.from_flat(num=4),
        )
        with pytest.raises(PairingError, match=r"num 4: this model takes no noise.*remove num, or give 1"):
            generate_split(*arguments)
        assert not (tmp_path / "out").exists()
        made = generate_split(*arguments, num_given=False)
        assert sorted(path.name for path in made.images) == [f"scene-{k:02d}_0.png" for k in (9, 10, 11)]
        assert made.facts["samples"] == 1
        found = evaluate_made(made, tmp_path / "out", OPTIONS)
        assert any("one image per condition was generated: this model takes no noise" in note for note in found.notes)

    def test_a_baseline_with_noise_makes_several(self, tiny_data: Path, tmp_path: Path) -> None:
        baseline_pipeline({"kind": "oasis", "channels": 4, "discriminator_channels": 4}).save_pretrained(
            tmp_path / "oasis"
        )
        split = Split(tiny_data, limit=1)
        made = generate_split(
            JudgedModel(str(tmp_path / "oasis"), computing=CPU),
            split,
            tmp_path / "out",
            GenerationOptions.from_flat(num=2),
        )
        first, second = (path.read_bytes() for path in made.images)
        assert first != second

    def test_several_conditions(self, tiny_data: Path, tmp_path: Path, aliases: Path) -> None:
        several_pipeline().save_pretrained(tmp_path / "several")
        for path in (tiny_data / "images").iterdir():
            lines = np.full((32, 40), 255, np.uint8)
            lines[16] = 0
            save_png(Image.fromarray(lines), tiny_data / "lines" / path.name)
        split = Split(tiny_data, conditions=("sketch=lines",))
        made = generate_split(
            JudgedModel(str(tmp_path / "several"), computing=CPU),
            split,
            tmp_path / "out",
            GenerationOptions.from_flat(num=1, steps=1),
        )
        options = Options(("colours",), segmenter="nearest", aliases=aliases, bootstrap=0, device="cpu")
        found = evaluate_made(made, tmp_path / "out", options)
        assert {"fd", "miou", "line_distance", "real_line_distance"} <= {measure.name for measure in found.measures}
        assert [judge["of"] for judge in found.facts["judges"]] == ["mask", "sketch"]

    def test_several_conditions_of_which_one_has_its_own_table(self, tiny_data: Path, tmp_path: Path) -> None:
        several_pipeline().save_pretrained(tmp_path / "several")
        (tiny_data / "lines").mkdir()
        for path in (tiny_data / "labels").glob("*.png"):
            Image.fromarray(np.eye(32, 40, dtype=np.uint8) * 255).save(tiny_data / "lines" / path.name)
        table = json.loads((tiny_data / "classes.json").read_text())
        for entry, number in zip(table["classes"], (1, 0, 2), strict=True):
            entry["id"] = number
        (tiny_data / "labels/classes.json").write_text(json.dumps(table))
        model = JudgedModel(str(tmp_path / "several"), computing=CPU)
        split, options = (
            Split(tiny_data, conditions=("sketch=lines",), limit=1),
            GenerationOptions.from_flat(num=1, steps=1),
        )
        made = generate_split(model, split, tmp_path / "out", options)
        assert any("classes are matched by name" in note for note in made.notes)
        (tiny_data / "labels/classes.json").unlink()
        plain = generate_split(model, split, tmp_path / "plain", options)
        assert made.images[0].read_bytes() != plain.images[0].read_bytes()

    def test_what_is_wrong_with_the_data(self, model: Path, tiny_data: Path, tmp_path: Path) -> None:
        settings = GenerationOptions.from_flat(num=1, steps=1)

        def mistaken(said: str, **values: Any) -> None:
            with pytest.raises(UserError, match=said):
                generate_split(
                    JudgedModel(str(model), computing=CPU), Split(tiny_data, **values), tmp_path / "out", settings
                )

        mistaken("masks: no such folder", conditions=("masks",))
        mistaken("this model reads one", conditions=("mask=labels",))
        mistaken("no split 'test'", name="test")
        (tiny_data / "labels" / "scene-10.png").unlink()
        mistaken("scene-10")
        assert not (tmp_path / "out").exists()
