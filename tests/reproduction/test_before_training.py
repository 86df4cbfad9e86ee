"""Checks before training: problems of a table, and its cost."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from piti.core.errors import UserError
from piti.diffusion.guidance import Guidance
from piti.generation.options import GenerationOptions
from piti.reproduction import checks, costs, make, rows, runs
from piti.reproduction.plans import plan_of
from piti.reproduction.rows import Plan, Row, Training
from piti.reproduction.runs import Judges, Workspace, trained
from piti.training import read_recipe
from tests.conftest import tiny_recipe
from tests.evaluation.tiny_judges import segformer
from tests.reproduction.tiny import LACKING, PLAN, QUIET, TINY


def test_judges_are_opened_before_anything_is_trained(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "train", lambda *rest, **more: pytest.fail("too early"))
    for judges, message in (
        (Judges((str(workspace.out / "nothing.safetensors"),)), "nothing.safetensors"),
        (Judges(()), "give features or segmenter"),
    ):
        with pytest.raises(UserError, match=message):
            make.reproduce(PLAN, replace(workspace, judges=judges), QUIET)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        make.reproduce(PLAN, workspace, QUIET)


def test_a_run_that_another_process_trains_is_left_alone(workspace: Workspace) -> None:
    folder = workspace.run(PLAN.rows[0].base, 0)
    folder.parent.mkdir(parents=True)
    said = f"{folder.name}: another process is writing there; wait for it, or give another out"
    with FileLock(folder.with_name(f".{folder.name}.lock")), ThreadPoolExecutor(1) as other:
        trains = other.submit(trained, PLAN, PLAN.rows[0].base, 0, workspace, QUIET)
        with pytest.raises(UserError, match=said):
            trains.result()


def test_all_judges_that_are_lacking_are_told_at_once(workspace: Workspace) -> None:
    """As lines of the run's error, and as notes of the dry run, which fails for nothing."""
    files = [
        str(workspace.out / name) for name in ("nothing.safetensors", "neither.safetensors", "judge", "esrgan.pth")
    ]
    judges = Judges(tuple(files[:2]), files[2])
    lacking = replace(workspace, judges=judges, real_esrgan=Path(files[3]))
    with pytest.raises(UserError, match="nothing was trained") as error:
        make.reproduce(PLAN, lacking, QUIET)
    found = make.judges_lacking(PLAN, lacking, QUIET)
    assert len(found) == len(files)
    assert all(file in said and file in str(error.value) for file, said in zip(files, found, strict=True))
    assert len(make.judges_lacking(PLAN, lacking, QUIET, judged=False)) == 1
    _, notes = costs.dry_run(PLAN, lacking, lacking=found)
    told = [note for note in notes if note.startswith("cannot be made: ")]
    assert all(file in said for file, said in zip(files, told, strict=True))


@pytest.mark.parametrize(
    ("features", "bootstrap", "said"),
    [
        ((0, 0), 0, "features .*is given twice; name each network once"),
        ((0, 1), 0, "are both 'squeezenet', so their results would have the same name; give only one"),
        ((0,), 1, "bootstrap 1: is not a valid number of draws"),
    ],
)
def test_what_no_evaluation_takes_is_told_before_training(
    workspace: Workspace, tmp_path: Path, features: tuple[int, ...], bootstrap: int, said: str
) -> None:
    (weights,) = workspace.judges.features
    files = (weights, shutil.copy(weights, tmp_path / "copy.safetensors"))
    judges = Judges(tuple(str(files[k]) for k in features), bootstrap=bootstrap)
    with pytest.raises(UserError, match=said):
        make.check_judges(judges, "cpu", QUIET)


def test_labels_that_fit_no_class_are_told_before_training(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the dry run too; the segmenter is opened once for it."""
    opened: list[str] = []
    original = make.open_segmenter
    monkeypatch.setattr(make, "open_segmenter", lambda name, device: opened.append(name) or original(name, device))
    segmenter, aliases = str(segformer(tmp_path / "judge", ("tree", "sea"))), tmp_path / "aliases.json"
    lacking = replace(workspace, judges=Judges((), segmenter, bootstrap=0))
    (said,) = make.judges_lacking(PLAN, lacking, QUIET)
    assert "none of its labels (tree, sea) matches a class of the masks" in said
    assert opened == [segmenter]
    with pytest.raises(UserError, match="none of its labels"):
        make.reproduce(PLAN, lacking, QUIET)
    assert opened == [segmenter] * 2
    with pytest.raises(UserError, match=r"aliases\.json: cannot be read as JSON"):
        make.check_judges(replace(lacking.judges, aliases=aliases), "cpu", QUIET)
    aliases.write_text('{"tree": "wood"}')
    with pytest.raises(UserError, match="'tree' maps to 'wood', which is not a class of the masks"):
        make.reproduce(PLAN, replace(lacking, judges=replace(lacking.judges, aliases=aliases)), QUIET)
    assert not (workspace.out / "runs").exists()


def test_table_5_needs_its_two_networks(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"distances by inception and clip, but inception and clip is not given"):
        make.check_judges(workspace.judges, "cpu", QUIET, ("inception", "clip"))


CROPS = 4
"""Crops of a training to an image that is sampled, of upsamplers at small scale."""


class TestBeforeTraining:
    """All that is known to stop a run is told together, and nothing is trained."""

    PERCEPTUAL = Training("perceptual", "baseline", "camvid")
    PRIOR = Training("prior", "tiny", "camvid", ("prior=./nowhere",))

    @pytest.fixture
    def plan(self, workspace: Workspace) -> Plan:
        recipe = tiny_recipe(workspace.data["camvid"], stages=[{"name": "joint", "trains": ["generator"], "steps": 4}])
        recipe |= {
            "model": {"image_size": 16},
            "baseline": {"kind": "pix2pixhd", "channels": 4, "blocks": 1, "discriminator_channels": 4},
            "perceptual": {"network": "squeezenet1_1"},
        }
        (rows.FOLDER / "small/baseline.yaml").write_text(yaml.safe_dump(recipe))
        others = (Row("a", "", self.PERCEPTUAL), Row("b", "", self.PRIOR), Row("c", "", LACKING))
        return replace(PLAN, rows=(*PLAN.rows, *others))

    def test_all_of_it_at_once(self, workspace: Workspace, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runs, "train", lambda *rest, **more: pytest.fail("too early"))
        workspace = replace(workspace, seeds=2, judges=Judges((str(workspace.out / "nothing.safetensors"),)))
        with pytest.raises(UserError, match="nothing was trained") as error:
            make.reproduce(plan, workspace, QUIET)
        told = str(error.value)
        assert re.search(r"perceptual-0, perceptual-1: squeezenet1_1: no hub .*give perceptual FILE", told)
        assert re.search(r"prior-0, prior-1: .*nowhere", told)
        assert re.search(r"lacking-0, lacking-1: .*lacking\.yaml", told)
        assert "nothing.safetensors" in told
        assert "tiny-0" not in told
        assert not workspace.out.exists()

    def test_the_dry_run_tells_it_too(self, workspace: Workspace, plan: Plan) -> None:
        rows, notes = costs.dry_run(plan, workspace)
        states = {row["run"]: row["state"] for row in rows}
        assert [states[name] for name in ("tiny-0", "perceptual-0", "prior-0", "lacking-0")] == [
            "new", *["cannot be made"] * 3,
        ]  # fmt: skip
        assert sum(note.startswith("cannot be made: ") for note in notes) == 3
        hours = {row["run"]: row["hours left"] for row in rows}
        assert hours["prior-0"]  # what it would take is told all the same
        assert "without lacking-0," in notes[0]
        given = replace(workspace, changes=(f"perceptual.weights={workspace.judges.features[0]}",))
        rows, _ = costs.dry_run(plan, given)
        assert {row["run"]: row["state"] for row in rows}["perceptual-0"] == "new"

    def test_data_that_does_not_pair(self, workspace: Workspace, tmp_path: Path) -> None:
        data = shutil.copytree(workspace.data["camvid"], tmp_path / "copied")
        sorted((data / "labels").iterdir())[0].unlink()
        with pytest.raises(UserError, match=r"(?s)tiny-0: .*give another folder with data"):
            make.reproduce(PLAN, replace(workspace, data={"camvid": data}), QUIET)

    def test_what_is_trained_needs_nothing(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        trained(PLAN, TINY, 0, workspace, QUIET)
        monkeypatch.setattr(checks, "beginning", lambda *rest, **more: pytest.fail("is not needed"))
        monkeypatch.setattr(checks, "count_pairs", lambda *rest: pytest.fail("is not needed"))
        assert not checks.Checker(PLAN, workspace).problem(TINY, 0)
        assert not checks.Checker(PLAN, replace(workspace, train=False)).problem(self.PRIOR, 0)


class TestDryRun:
    def test_it_tells_states_and_hours(self, workspace: Workspace) -> None:
        plan = replace(PLAN, rows=(*PLAN.rows, Row("lacking", "spade", LACKING)))
        rows, notes = costs.dry_run(plan, workspace)
        assert ", batches of 4: encoder and unet for 4 steps" in rows[0]["what"]
        assert [row["state"] for row in rows] == ["new", "cannot be made"]
        assert rows[0]["images"] == "16"
        assert "without lacking-0" in notes[0]
        assert "an assumed machine" in notes[1]
        assert not workspace.out.exists()
        trained(PLAN, TINY, 0, workspace, QUIET)
        rows, notes = costs.dry_run(PLAN, replace(workspace, seeds=2))
        assert [row["state"] for row in rows] == ["finished", "new"]
        assert "that trained" in notes[1]

    @pytest.mark.parametrize(
        ("base", "upsampler", "asked", "passes"),
        [
            ("piti", None, {"steps": 2}, 2 * 2),  # guided: w is 1 where nothing is said
            ("piti", None, {"steps": 2, "guidance": 0.0}, 2),
            ("piti", None, {"steps": 10, "guidance": Guidance(w=1.0, interval=(0.0, 0.5))}, 10 + 5),
            ("spade", None, {"steps": 2}, 1),
            ("piti", "upsampler", {"steps": 2}, 2 * 2 + CROPS * 27 / 2),
            ("piti", "upsampler", {"steps": 2, "upsampler_steps": 4}, 2 * 2 + CROPS * 4 / 2),
            ("piti", "upsampler", {"steps": 2, "upsampler_steps": 4, "upsampler_guidance": 1.0}, 2 * 2 + CROPS * 4),
            ("piti", "upsampler", {"steps": 2, "base_only": True}, 2 * 2),
            ("piti", "one-step-upsampler", {"steps": 2}, 2 * 2 + CROPS / 2),
            (
                "piti",
                "one-step-upsampler",
                {"steps": 2, "upsampler_steps": 1, "upsampler_sampler": "ddim"},
                4 + CROPS / 2,
            ),
        ],
    )
    def test_a_row_is_sampled_by_its_own_options(
        self, base: str, upsampler: str | None, asked: dict[str, Any], passes: float
    ) -> None:
        """The base trains on 10 images a second here, an upsampler on 20 crops of a quarter of the image's area."""
        small, large = (Training(name or "", name or "", "camvid") for name in (base, upsampler))
        recipes = {one: read_recipe(PLAN.recipe_file(one)) for one in (small, large) if one.recipe}
        rates = dict(zip(recipes, (10.0, 20.0), strict=False))
        row = Row("", "", small, large if upsampler else None, GenerationOptions.from_flat(num=3, **asked))
        tally = costs.CostTally(checks.Checker(PLAN, Workspace(Path())), 0.0, rates, {}, {}, [], recipes)
        assert costs._sampling(row, tally) == pytest.approx(3 * passes * costs.FORWARD / 10)

    def test_images_that_rows_share_count_once(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []
        monkeypatch.setattr(costs, "_sampling", lambda row, tally: seen.append(row.images) or 0.0)
        own = PLAN.rows[0]
        rows = [own, *(replace(own, name=name, enlarger=name) for name in ("bicubic", "real-esrgan"))]
        costs.dry_run(replace(PLAN, rows=tuple(rows)), workspace)
        assert seen == [own.images]

    def test_at_the_papers_scale_hours_are_counted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Cost:
            def hours(self, gpu: object) -> float:
                return 12.0

        monkeypatch.setattr(costs, "cost_of", lambda *rest: Cost())
        monkeypatch.setattr(checks, "load_perceptual", lambda *rest: None)
        monkeypatch.setattr(checks, "beginning", lambda *rest, **more: "")
        plan = plan_of("table3a", "paper")
        rows, notes = costs.dry_run(plan, Workspace(tmp_path, seeds=1), "h100")
        assert {row["hours left"] for row in rows} == {"12.0"}
        assert len(rows) == len(plan.trainings)
        assert notes[0].startswith("about 60.0 hours of training")
        assert "H100" in notes[1]
        with pytest.raises(UserError, match="gpu abacus: unknown"):
            costs.dry_run(plan, Workspace(tmp_path), "abacus")


def test_a_run_that_cannot_be_read_leaves_the_hours_of_others_known(workspace: Workspace) -> None:
    """Speeds are those of the runs that are there; one of them may have been copied in part."""
    (workspace.out / "runs/other-0/checkpoints/step-00000004").mkdir(parents=True)
    told, notes = costs.dry_run(PLAN, workspace)
    assert [row["hours left"] for row in told] != ["?"]
    assert "without" not in notes[0]
