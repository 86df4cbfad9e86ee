"""Plans: recipes are valid, rows share trainings and images, and errors about data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from piti.diffusion.guidance import Guidance
from piti.reproduction import costs, published
from piti.reproduction.checks import Checker, minimised
from piti.reproduction.plans import SCALES, TABLES, PlanError, data_folders, described, plan_of
from piti.reproduction.rows import SETS, Training
from piti.reproduction.runs import Workspace, recipe_of
from piti.training import read_recipe
from piti.training.recipe_io import flat
from tests.conftest import SHARED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES)
def test_every_recipe_of_every_table_reads(table: str, scale: str) -> None:
    plan = plan_of(table, scale)
    assert plan.rows
    seen: dict[str, tuple[str, ...]] = {}
    for training in plan.trainings:
        recipe = read_recipe(plan.recipe_file(training), [*training.changes, "seed=3"])
        assert recipe.seed == 3
        assert training.data in SETS
        kinds = {"coco-sketch": "sketch", "flickr-sketch": "sketch", "diode": "geometry"}
        assert recipe.condition["kind"] in (kinds.get(training.data, "mask"), "none")
        assert seen.setdefault(training.name, training.changes) == training.changes  # a name is one run
    assert len({(row.images, row.data) for row in plan.rows}) == len(plan.rows)


@pytest.mark.parametrize("scale", SCALES)
def test_images_of_one_name_are_the_same_in_every_table(scale: str) -> None:
    """Tables are made in one folder, where images of a name that were made otherwise are removed."""
    seen: dict[str, object] = {}
    for row in (row for table in TABLES for row in plan_of(table, scale).rows):
        for one in (row, row.sampled):
            made_of = one.trainings, one.options, one.enlarger
            assert seen.setdefault(one.images, made_of) == made_of, one.images


SIZES = {"channels", "width", "layers", "heads", "norm_groups", "token_width", "attention", "head_dim"} | {
    "encoder", "unet"}  # fmt: skip
"""Keys of a smaller network; what it does is the same."""
METHOD = ("model", "schedule", "stages", "batch", "condition_dropout", "ema", "optimizer", "loss", "degradation")
"""Keys of a recipe that say what it does."""


@pytest.mark.parametrize(
    ("small", "paper"), [("piti", "piti"), ("upsampler", "upsampler"), ("one-step-upsampler", "upsampler")]
)
def test_what_departs_at_small_scale_is_named(small: str, paper: str) -> None:
    """Every key in which a small recipe differs from its counterpart at the paper's scale stands in departures.md."""
    folder, text = ROOT / "piti/reproduction", (ROOT / "docs/evidence/departures.md").read_text(encoding="utf-8")
    ours, theirs = (
        yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in (f"small/{small}", f"paper/{paper}")
    )
    keys = set[str]()
    for top in METHOD:
        a, b = ours.get(top), theirs.get(top)
        pairs = list(zip(a, b, strict=False)) if top == "stages" else [(a, b)]
        for mine, other in pairs:
            if not isinstance(mine, dict) or not isinstance(other, dict):
                keys |= {top} if mine != other else set()
                continue
            keys |= {key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key)}
    lacking = {key for key in keys - SIZES - {"name", "trains"} if not re.search(rf"`[\w.]*\b{key}\b", text)}
    assert not lacking - {"steps", "diffusion", "pixel", "consistency", "perceptual", "adversarial"}  # told in words


def test_who_adapts_a_prior_without_the_aligned_path_is_named() -> None:
    row = next(
        line
        for line in (ROOT / "docs/evidence/departures.md").read_text(encoding="utf-8").splitlines()
        if "`model.encoder.residuals`" in line
    )
    recipes = {file.stem: yaml.safe_load(file.read_text()) for file in (ROOT / "piti/recipes").glob("*.yaml")}
    adapts = {name: one for name, one in recipes.items() if one.get("prior")}
    tokens = {name for name, one in adapts.items() if not one["model"].get("encoder", {}).get("residuals")}
    named = set(re.findall(r"`([\w*-]+)`", row.partition("adapts a prior but")[2]))
    assert {re.sub("^released-.*", "released-*", name) for name in tokens} == named


def test_at_small_scale_all_rows_see_as_many_images() -> None:
    for table in TABLES:
        plan = plan_of(table, "small")
        recipes = [read_recipe(plan.recipe_file(training), training.changes) for training in plan.trainings]
        assert {recipe.steps * recipe.batch * recipe.accumulation for recipe in recipes} == {16_384}


def test_the_tables_share_runs() -> None:
    names = {table: {training.name for training in plan_of(table, "small").trainings} for table in TABLES}
    assert {"piti", "scratch", "piti-tokens", "scratch-tokens"} <= names["table1"] & names["table3a"] & names["table4"]
    assert {"piti-125", "scratch-tokens-125", "piti-tokens-250", "oasis-250", "spade-125"} <= names["table4"]
    assert names["figure5"] == names["table3a"]
    assert names["table2"] | names["table5"] <= names["table1"]


@pytest.mark.parametrize("table", ["table1", "table3a", "table4", "figure5"])
def test_both_paths_differ_in_nothing_but_the_residuals(table: str) -> None:
    plan = plan_of(table, "small")
    by_name = {row.base.name: row.base for row in plan.rows}
    paper = [name for name in by_name if "-tokens" in name]
    assert len(paper) == {"table1": 2, "table3a": 4, "figure5": 4, "table4": 6}[table]
    for name in paper:
        tokens, aligned = by_name[name], by_name[name.replace("-tokens", "")]
        one, other = (flat(read_recipe(plan.recipe_file(t), t.changes).to_dict()) for t in (tokens, aligned))
        assert {key for key in one if one[key] != other[key]} == {"model.encoder.residuals"}
        assert (one["model.encoder.residuals"], other["model.encoder.residuals"]) == (False, True)
    rows = {row.base.name: row for row in plan.rows}
    assert all(rows[name].key and "as in the paper" in rows[name].method for name in paper)  # its number stands there
    assert any("`residuals: true`" in note for note in plan.notes)


def test_the_papers_scale_covers_the_papers_columns() -> None:
    plan = plan_of("table1", "paper")
    assert set(plan.sets) == {"ade20k", "coco-stuff", "flickr", "coco-sketch", "flickr-sketch", "diode"}
    for table in ("table1", "table2", "table4", "table5"):
        plan = plan_of(table, "paper")
        for row in plan.rows:
            ours = row.key == "piti" and table == "table2"  # with which the others are compared
            assert ours or published.quotes(table, row.key, plan.published_on(row)), (table, row.key)


def test_a_baseline_without_its_perceptual_loss_differs_in_nothing_else() -> None:
    plan = plan_of("table1", "small")
    by_name = {row.base.name: row for row in plan.rows}
    for name in ("spade", "pix2pixhd"):
        row = by_name[f"{name}-alone"]
        whole = read_recipe(plan.recipe_file(by_name[name].base)).to_dict()
        alone = read_recipe(plan.recipe_file(row.base), row.base.changes).to_dict()
        assert {key for key in whole if whole[key] != alone[key]} == {"baseline"}
        assert alone["baseline"] == {**whole["baseline"], "perceptual": 0}
        workspace = Workspace(ROOT)
        assert minimised(plan, by_name[name], workspace) == {"squeezenet"}
        assert not minimised(plan, row, workspace)
    assert not minimised(plan, by_name["piti-tokens"], Workspace(ROOT))


def test_the_upsamplers_perceptual_loss_marks_its_rows() -> None:
    plan = plan_of("table3b", "small")
    assert [bool(minimised(plan, row, Workspace(ROOT))) for row in plan.rows] == [False] * 4 + [True] * 4
    whole = plan_of("table1", "paper")  # VGG-19, which judges nothing
    assert not any(minimised(whole, row, Workspace(ROOT)) for row in whole.rows)


def test_oasis_is_told_to_be_at_a_disadvantage() -> None:
    notes = " ".join(plan_of("table1", "small").notes)
    assert "far too few" in notes
    assert "unlike in its paper" in notes
    oasis = read_recipe(ROOT / "piti/reproduction/small/oasis.yaml").stages[0]
    assert oasis.decay == 0.5  # "over the second half"
    assert read_recipe(ROOT / "piti/reproduction/paper/oasis.yaml").stages[0].decay == 0


def test_data_sets_are_called_by_their_folders(tmp_path: Path) -> None:
    assert described("camvid", tmp_path / "CamVid") == "CamVid"
    assert described("camvid", tmp_path / "streets") == "`streets` (instead of CamVid)"


def test_of_the_ablations_one_thing_changes_at_a_time() -> None:
    for scale in SCALES:
        plan = plan_of("table3b", scale)
        found = []
        for row in plan.rows:
            if row.upsampler is None or not row.key:  # what is not the paper's
                continue
            rule = row.options.sampling.base.guidance
            assert isinstance(rule, Guidance)
            recipe = read_recipe(plan.recipe_file(row.upsampler), row.upsampler.changes)
            last = recipe.stages[-1]
            parts = (recipe.degradation, last.perceptual, last.adversarial)
            found.append([*(part is not None for part in parts), rule.kind == "normalized"])
        assert found == [[k > n for n in range(4)] for k in range(5)]
        assert len({row.base for row in plan.rows}) == 1


def test_the_upsampler_is_compared_with_what_is_not_ours_and_what_is_not_the_papers() -> None:
    for scale in SCALES:
        assert [row.enlarger for row in plan_of("table3b", scale).rows[:3]] == ["bicubic", "real-esrgan", ""]
    plan = plan_of("table3b", "small")
    beyond = plan.rows[-1]
    assert beyond.upsampler is not None
    assert beyond.upsampler.generated is not None
    assert beyond.upsampler.generated.base == beyond.base
    workspace = Workspace(ROOT / "out", changes=("perceptual.weights=W.pth",))
    recipe = recipe_of(plan, beyond.upsampler, 1, workspace)
    assert recipe.generated is not None
    assert recipe.generated.root == workspace.generated(beyond.base, 1)
    assert recipe.discriminator is not None
    assert recipe.discriminator.features is not None
    assert recipe.discriminator.features.weights == recipe.perceptual.weights == "W.pth"
    shipped = read_recipe(ROOT / "piti/recipes/street-upsampler.yaml").to_dict()
    ours = recipe.to_dict()
    assert {key for key in ("model", "schedule", "loss", "optimizer", "batch") if ours[key] != shipped[key]} == set()


def test_the_baselines_of_the_papers_scale_are_those_of_the_recipes() -> None:
    for name in ("pix2pixhd", "spade", "oasis"):
        link = ROOT / f"recipes/baselines/{name}.yaml"
        assert link.is_symlink()
        assert not link.readlink().is_absolute()  # as git keeps it
        assert link.resolve() == (ROOT / f"piti/reproduction/paper/{name}.yaml").resolve()
        assert read_recipe(link).baseline


def test_the_papers_base_is_that_of_the_full_recipe() -> None:
    mine = read_recipe(ROOT / "piti/reproduction/paper/piti.yaml").to_dict()
    full = read_recipe(ROOT / "recipes/full.yaml").to_dict()
    assert {key for key in full if mine[key] != full[key]} == {"name"}
    assert [(stage["lr"], stage["steps"]) for stage in mine["stages"]] == [(3.5e-5, 200_000), (3e-5, 200_000)]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(PlanError, match=r"table7: no such table; .*known: table1, table2, table3a"):
        plan_of("table7", "small")
    with pytest.raises(PlanError, match=r"scale large: unknown; .*small, paper"):
        plan_of("table1", "large")


def test_data_is_one_folder_or_one_for_each_name(tmp_path: Path) -> None:
    for name in ("ade20k", "diode"):
        (tmp_path / name).mkdir()
    sets = ("ade20k", "diode")
    both = {"ade20k": tmp_path / "ade20k", "diode": tmp_path / "diode"}
    assert data_folders(sets, [str(tmp_path)]) == both
    assert data_folders(sets, [f"{name}={folder}" for name, folder in both.items()]) == both
    assert data_folders(("camvid",), [str(tmp_path)]) == {"camvid": tmp_path}
    for given, message in (
        ([], "data: is missing for ade20k, diode"),
        ([f"ade20k={tmp_path}"], "data: is missing for diode; give data FOLDER"),
        ([f"ade={tmp_path}"], "data ade=…: this table uses ade20k, diode"),
        ([str(tmp_path), str(tmp_path)], "2 folders are given without a name"),
        ([str(tmp_path), f"diode={tmp_path}"], "others are named"),
        ([str(tmp_path / "nowhere")], "no such folder: .*nowhere/ade20k"),
    ):
        with pytest.raises(PlanError, match=message):
            data_folders(sets, given)


def test_published_numbers_have_a_cell_and_a_row() -> None:
    for quote in published.all_quotes():
        assert "arXiv 2205.12952, table " in quote.source
        assert "row '" in quote.source
        assert quote.data in SETS
        assert quote.method in {row.key for row in plan_of(quote.table, "paper").rows}
    assert set(published.ABOUT) == {*TABLES, "figure6"}
    assert [q.value for q in published.quotes("table1", "piti", ["ade20k"])] == [8.9]
    assert [q.value for q in published.quotes("table5", "scratch", ["diode"])] == [70.2, 13.9]
    assert not published.quotes("table1", "", ["ade20k"])


def test_published_numbers_are_the_papers() -> None:
    """Every number of the recorded tables is there, as often."""
    place = SHARED / "paper/tables.json"
    if not place.exists():
        pytest.skip(f"{place.name}: not present at {place} (set PITI_SHARED)")
    recorded = json.loads(place.read_text())
    for table in ("table1", "table2", "table3a", "table4", "table5"):
        numbers = _numbers(recorded[table]["rows"])
        assert sorted(q.value for q in published.all_quotes() if q.table == table) == sorted(numbers)
    fids = [row["fid"] for row in recorded["table3b"]["rows"]]
    assert [q.value for q in published.all_quotes() if q.table == "table3b"] == fids


def _numbers(values: object) -> list[float]:
    if isinstance(values, dict | list):
        inside = values.values() if isinstance(values, dict) else values
        return [number for one in inside for number in _numbers(one)]
    return [values] if isinstance(values, int | float) else []


def test_rows_of_few_pairs_are_told_apart_above_their_samples() -> None:
    headings = [row.heading for row in plan_of("table4", "small").rows]
    assert headings[:4] == ["Pix2PixHD, 125", "SPADE, 125", "OASIS, 125", "from scratch as in the paper, 125"]
    assert headings[-1] == "PITI with the aligned path, all"
    assert len(set(headings)) == len(headings) == 21
    assert [row.pairs for row in plan_of("table4", "paper").rows] == [5000] * 5 + [10_000] * 5 + [0] * 5


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES)
def test_a_dry_run_of_every_table(table: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data: a row a run, and what is lacking; nothing is written."""
    monkeypatch.setattr(costs, "_counted", lambda *rest: costs.SpeedEstimate(100.0, "one fast GPU"))
    monkeypatch.setattr(costs, "Checker", NoChecks)
    plan = plan_of(table, scale)
    rows, notes = costs.dry_run(plan, Workspace(tmp_path / "out", seeds=1))
    assert [row["run"] for row in rows] == [f"{training.name}-0" for training in plan.trainings]
    assert all(row["hours left"] not in ("", "?") for row in rows)
    assert "hours of training left" in notes[0]
    assert not (tmp_path / "out").exists()


class NoChecks(Checker):
    """Looks at no prior, data or weights."""

    def problem(self, training: Training, seed: int) -> str:
        return ""
