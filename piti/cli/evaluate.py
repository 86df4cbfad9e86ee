"""`piti evaluate`: what generated images are worth, and which of two folders people prefer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piti.cli.options import all_said, is_said, refuse_others

if TYPE_CHECKING:
    from piti.conditions import Condition, MaskCondition
    from piti.evaluation.result import Evaluation

_FILES, _MODEL, _STUDY, _VOTES = "GENERATED", "--model", "--study", "--votes"
_TOLD = {"real", "split", "features", "resize", "segmenter", "aliases", "depth", "perceptual", "perceptual_weights"}
_TOLD |= {"cache", "bootstrap", "batch", "seed", "device", "json", "overwrite"}
_KINDS = {"labels", "classes", "sketches", "geometry"}
_SAMPLED = {"num", "guidance", "steps", "sampler", "base_only", "upsampler", "upsampler_steps", "upsampler_sampler"}
_MEANT = {
    _FILES: _TOLD | _KINDS | {"generated"},
    _MODEL: _TOLD | _SAMPLED | {"model", "data", "conditions", "limit", "square", "size", "out"},
    _STUDY: _KINDS | {"study", "question", "ties", "repeats", "limit", "out", "seed", "overwrite"},
    _VOTES: {"votes", "generated", "key", "seed", "json", "overwrite"},
}
"""Which parameters mean something in each of the four uses."""
_NUM = 4
"""Images a condition, of a model whose images of one condition differ."""
_MODELS, _STUDIES, _CONDITIONS = "With --model", "Preference studies", "With GENERATED: its conditions"


def evaluate(
    ctx: typer.Context,
    generated: Annotated[
        list[Path] | None, typer.Argument(help="A folder of generated PNGs; after --votes, more votes files.")
    ] = None,
    real: Annotated[Path | None, typer.Option(help="Photographs: a folder, or a data root with images/.")] = None,
    split: Annotated[str, typer.Option(help="Of a data root: which split.")] = "val",
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="inception, clip, dinov2, clip-l (for CMMD), squeezenet; a hub id, or a folder, of CLIP or DINOv2; a "
            "file of Inception's or SqueezeNet's weights. Repeatable; inception and clip by default."
        ),
    ] = None,
    resize: Annotated[
        int | None, typer.Option(help="Bring the centre squares of both sides to this side first.")
    ] = None,
    segmenter: Annotated[str | None, typer.Option(help="Judges agreement with masks: a hub id, or a folder.")] = None,
    aliases: Annotated[Path | None, typer.Option(help="JSON: classes that the segmenter calls otherwise.")] = None,
    depth: Annotated[str | None, typer.Option(help="Judges depth: a hub id, or a folder.")] = None,
    perceptual: Annotated[str | None, typer.Option(help="Measures diversity: vgg19 or squeezenet1_1.")] = None,
    perceptual_weights: Annotated[str | None, typer.Option(help="Its weights' file, or a hub id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep features in this folder, for the next time.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Draws for the intervals of small samples; 0 is none.")] = 200,
    batch: Annotated[int | None, typer.Option(min=1, help="Images made at once (8), and judged at once (32).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, subsets, intervals and studies.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps …; the fastest there is by default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result, and all that it takes to repeat it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --json, or a study.")] = False,
    labels: Annotated[Path | None, typer.Option(help="A folder of masks.", rich_help_panel=_CONDITIONS)] = None,
    classes: Annotated[
        Path | None, typer.Option(help="classes.json, if not in LABELS or beside it.", rich_help_panel=_CONDITIONS)
    ] = None,
    sketches: Annotated[Path | None, typer.Option(help="A folder of sketches.", rich_help_panel=_CONDITIONS)] = None,
    geometry: Annotated[Path | None, typer.Option(help="A folder of depth.", rich_help_panel=_CONDITIONS)] = None,
    model: Annotated[
        str | None, typer.Option(help="Translate a split first: a bundled model, …", rich_help_panel=_MODELS)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data's root.", rich_help_panel=_MODELS)] = None,
    conditions: Annotated[
        list[str] | None, typer.Option(help="Their folder in it, or PART=FOLDER.", rich_help_panel=_MODELS)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many conditions, or pairs of a study.")] = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", min=1, help="Images a condition (4).", rich_help_panel=_MODELS)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance w.", rich_help_panel=_MODELS)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", rich_help_panel=_MODELS)] = None,
    sampler: Annotated[str | None, typer.Option(help="As in piti translate.", rich_help_panel=_MODELS)] = None,
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Judge the base's small images.", rich_help_panel=_MODELS)
    ] = False,
    upsampler: Annotated[str | None, typer.Option(help="Take that of this model.", rich_help_panel=_MODELS)] = None,
    upsampler_steps: Annotated[str | None, typer.Option(help="A number, or fast27.", rich_help_panel=_MODELS)] = None,
    upsampler_sampler: Annotated[str | None, typer.Option(help="As --sampler.", rich_help_panel=_MODELS)] = None,
    square: Annotated[
        bool, typer.Option("--square", help="Translate the squares at the centres.", rich_help_panel=_MODELS)
    ] = False,
    size: Annotated[int | None, typer.Option(help="Short side of the images.", rich_help_panel=_MODELS)] = None,
    out: Annotated[
        Path | None, typer.Option(help="The images (evaluated/MODEL-SPLIT), or the study's page (study.html).")
    ] = None,
    study: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Write a page that compares two folders.", rich_help_panel=_STUDIES)
    ] = None,
    question: Annotated[str | None, typer.Option(help="What raters are asked.", rich_help_panel=_STUDIES)] = None,
    ties: Annotated[
        bool, typer.Option("--ties", help="Raters may have no preference.", rich_help_panel=_STUDIES)
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(min=0, help="Pairs shown twice; a tenth.", rich_help_panel=_STUDIES)
    ] = None,
    votes: Annotated[list[Path] | None, typer.Option(help="Count these files.", rich_help_panel=_STUDIES)] = None,
    key: Annotated[
        Path | None, typer.Option(help="The study's, if not beside the votes.", rich_help_panel=_STUDIES)
    ] = None,
) -> None:
    """Measure generated images against photographs and against their conditions, or let people compare them.

    GENERATED: judge a folder of PNGs. --model with --data: translate a split, going on where that was interrupted,
    then judge. --study A B: write a page for raters. --votes FILES: count what they sent back.
    """
    use = _use(ctx)
    kinds = {"labels": labels, "sketches": sketches, "geometry": geometry}
    if use == _VOTES:
        _count_votes([*(votes or []), *(generated or [])], key, seed, json, overwrite)
        return
    if use == _STUDY:
        assert study is not None
        pictured = _one_kind(kinds, classes)
        _write_study(
            study,
            out or Path("study.html"),
            pictured,
            {"seed": seed, "limit": limit, "ties": ties, "repeats": repeats, "overwrite": overwrite}
            | ({"question": question} if question else {}),
        )
        return
    _check_json(json, overwrite)
    options = _options(
        features, perceptual, perceptual_weights,
        resize=resize, batch=batch or 32, device=device, segmenter=segmenter, aliases=aliases, depth=depth,
        cache=cache, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    if use == _FILES:
        said_split = split if is_said(ctx, "split") else None
        found = _judge_files(generated or [], options, real, said_split, kinds, classes)
    else:
        assert model is not None
        count = int(upsampler_steps) if upsampler_steps and upsampler_steps.isdecimal() else upsampler_steps
        settings: dict[str, Any] = {
            "num": num, "seed": seed, "guidance": guidance, "steps": steps, "sampler": sampler, "batch": batch or 8,
            "base_only": base_only, "upsampler_steps": count, "upsampler_sampler": upsampler_sampler,
            "square": square, "size": size,
        }  # fmt: skip
        folder = out or Path("evaluated") / f"{Path(model).name}-{split}"
        found = _judge_model(
            model, upsampler, data, (split, tuple(conditions or ()), limit), folder, settings, options, real
        )
    if found is not None:
        _tell(found, json, overwrite)


def _use(ctx: typer.Context) -> str:
    """Which of the four uses is meant. Raises UserError for none, and for options that mean nothing in it."""
    from piti.core.errors import UserError

    said = all_said(ctx)
    uses = [use for use in (_STUDY, _VOTES, _MODEL) if use.removeprefix("--") in said]
    if len(uses) > 1:
        raise UserError(f"{uses[0]} and {uses[1]} are two things; give one of them")
    use = uses[0] if uses else _FILES
    if use == _FILES and "generated" not in said:
        raise UserError(
            "nothing to evaluate: give a folder of generated PNGs, --model with --data, --study with two folders, or "
            "--votes with files"
        )
    refuse_others(said, _MEANT[use], use, arguments=("generated",))
    return use


def _check_json(json: Path | None, overwrite: bool) -> None:
    """Before hours of work: raises OutputError if the result could not be written."""
    from piti.core.files import check_file

    if json is not None:
        check_file(json, overwrite, "--json")


def _options(features: list[str] | None, perceptual: str | None, perceptual_weights: str | None, **others: Any) -> Any:
    from piti.core.errors import UserError
    from piti.evaluation.options import Options
    from piti.models.perceptual import PerceptualSpec

    if perceptual_weights and not perceptual:
        raise UserError("--perceptual-weights without --perceptual: say which network they are of")
    if others["aliases"] and not others["segmenter"]:
        raise UserError("--aliases without --segmenter: name the model whose labels they are")
    values = {"network": perceptual, "weights": perceptual_weights}
    spec = PerceptualSpec.parse(values, "--perceptual") if perceptual else None
    return Options(perceptual=spec, **({"features": tuple(features)} if features else {}), **others)


def _judge_files(
    generated: list[Path],
    options: Any,
    real: Path | None,
    split: str | None,
    kinds: dict[str, Path | None],
    classes: Path | None,
) -> Evaluation:
    from piti.cli.app import log
    from piti.conditions import SeveralCondition
    from piti.core.errors import UserError
    from piti.core.progress import steps_bar
    from piti.evaluation.evaluate import evaluate_files

    if len(generated) > 1:
        raise UserError(f"{', '.join(map(str, generated))}: one folder is judged at a time; give one")
    readers = _readers(kinds, classes)
    folders = {name: kinds[name] for name in readers}
    condition = SeveralCondition(readers) if len(readers) > 1 else next(iter(readers.values()), None)
    given: Any = folders if len(readers) > 1 else next(iter(folders.values()), None)
    with steps_bar(log, "judging") as on_step:
        return evaluate_files(generated[0], options, real, given, condition, on_step, split)


def _judge_model(
    model: str,
    upsampler: str | None,
    data: Path | None,
    of_data: tuple[str, tuple[str, ...], int | None],
    out: Path,
    settings: dict[str, Any],
    options: Any,
    real: Path | None,
) -> Evaluation | None:
    """In the first process, what was found. settings: of `Settings`, `num` None where it was not said."""
    from rich.console import Console

    from piti.cli.app import log
    from piti.core.distributed import joined
    from piti.core.errors import UserError
    from piti.core.progress import steps_bar
    from piti.evaluation.evaluate import evaluate_made
    from piti.evaluation.generating import Split, generate_split
    from piti.generation.translate import Settings

    if data is None:
        raise UserError("--model needs --data, the root of the data whose conditions are translated")
    ranks = joined()
    with steps_bar(log if ranks.main else Console(quiet=True), "translating") as on_step:
        num_given = settings["num"] is not None
        sampled = Settings(**(settings if num_given else {**settings, "num": _NUM}))
        chosen, device = Split(data, *of_data), options.device
        made = generate_split(model, chosen, out, sampled, device, upsampler, ranks, on_step, num_given)
    if not ranks.main:
        return None
    typer.echo(f"{len(made.images)} images of {model} are in {out}", err=True)
    with steps_bar(log, "judging") as on_step:
        return evaluate_made(made, out, options, real, on_step)


def _tell(found: Evaluation, json: Path | None, overwrite: bool) -> None:
    """Print a result, and write it."""
    from rich.markup import escape

    from piti.cli.app import print_rows

    print_rows([{name: escape(text) for name, text in row.items()} for row in found.rows()])
    _note(found.notes)
    if json is not None:
        found.write(json, overwrite)
        typer.echo(f"written to {json}")


def _note(notes: Any) -> None:
    from rich.text import Text

    from piti.cli.app import log

    for note in notes:
        log.print(Text.assemble(("note: ", "bold yellow"), note), soft_wrap=True)


# Conditions


def _readers(kinds: dict[str, Path | None], classes: Path | None) -> dict[str, Condition]:
    """What reads each folder that is given."""
    from piti.conditions import GeometryCondition, SketchCondition
    from piti.core.errors import UserError

    readers: dict[str, Callable[[Path], Condition]] = {
        "labels": lambda folder: _masks(folder, classes),
        "sketches": lambda _: SketchCondition(),
        "geometry": lambda _: GeometryCondition(),
    }
    if classes is not None and kinds["labels"] is None:
        raise UserError("--classes without --labels: give the folder of masks too")
    return {name: readers[name](folder) for name, folder in kinds.items() if folder is not None}


def _masks(labels: Path, classes: Path | None) -> MaskCondition:
    """With the table given, or that of the masks' folder or its parent. Raises UserError."""
    from piti.conditions import ClassTable, MaskCondition
    from piti.core.errors import UserError

    places = [classes] if classes else [labels / "classes.json", labels.resolve().parent / "classes.json"]
    found = [place for place in places if place.is_file()]
    if not found:
        raise UserError(f"{places[0]}: no such file; name the masks' classes with --classes FILE (a classes.json)")
    return MaskCondition(ClassTable.read(found[0]))


# Preference studies


def _one_kind(kinds: dict[str, Path | None], classes: Path | None) -> tuple[Path, Condition] | None:
    """The folder of conditions that a study shows, and what draws them. Raises UserError for several."""
    from piti.core.errors import UserError

    readers = _readers(kinds, classes)
    if len(readers) > 1:
        raise UserError(f"--{' and --'.join(readers)}: a study shows one kind of condition; give one")
    for name, condition in readers.items():
        folder = kinds[name]
        assert folder is not None
        return folder, condition
    return None


def _write_study(
    folders: tuple[Path, Path], out: Path, pictured: tuple[Path, Condition] | None, settings: dict[str, Any]
) -> None:
    from piti.cli.app import log
    from piti.core.progress import steps_bar
    from piti.evaluation.preference.study import write_study

    conditions, condition = pictured or (None, None)
    with steps_bar(log, "reading") as on_step:
        written = write_study(*folders, out, conditions=conditions, condition=condition, on_step=on_step, **settings)
    _note(written.notes)
    typer.echo(str(written))


def _count_votes(files: list[Path], key: Path | None, seed: int, json: Path | None, overwrite: bool) -> None:
    import json as text

    from piti.cli.app import print_rows
    from piti.core.files import whole_file
    from piti.evaluation.preference.statistics import count_votes

    _check_json(json, overwrite)
    found = count_votes(files, key, seed=seed)
    print_rows(found.rows())
    print_rows(found.rater_rows())
    _note(found.notes)
    if json is not None:
        with whole_file(json, overwrite, "--json") as partial:
            partial.write_text(text.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"written to {json}")
