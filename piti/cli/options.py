"""The flags that several commands share, each declared once, and groups of them.

A group is a frozen dataclass whose fields are flags. A command under `@with_groups` takes the group as one parameter;
its flags stand on the command line as if the command had declared them itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer import Option

from piti.cli.console import flag

if TYPE_CHECKING:
    from piti.conditions import Condition
    from piti.evaluation.options import Options
    from piti.evaluation.perceptual import LpipsSpec
    from piti.generation.options import GenerationOptions
    from piti.models.perceptual import PerceptualSpec
    from piti.pipelines.computing import Computing
    from piti.reproduction.runs import Judges

MODEL_HELP = "A bundled model, a folder, a training run, or a hub id."
_SAMPLING, _JUDGING, _CONDITIONS, _RESULT = "Sampling", "Judging", "Conditions the images were made from", "Result"

Model = Annotated[str, Option(help=MODEL_HELP)]
Upsampler = Annotated[str | None, Option(help="Use the upsampler of this model, folder or run.")]
Num = Annotated[int, Option("--num", "-n", min=1, help="Images to make.")]
Seed = Annotated[int, Option(min=0, help="Seed of all random numbers.")]
Device = Annotated[str | None, Option(help="cpu, cuda, mps …; the fastest available by default.")]
Engine = Annotated[
    str,
    Option(
        envvar="PITI_ENGINE",
        help="What computes the networks: torch; openvino, about twice as fast on CPUs that are fast in bfloat16; auto "
        "takes it where it is installed and faster.",
    ),
]
DType = Annotated[
    str,
    Option(help="Numbers to compute in: fp32, bf16, fp16; auto is bf16 where a GPU or an engine knows it, else fp32."),
]
Compile = Annotated[
    bool, Option("--compile", help="Compile the networks' blocks (torch.compile): slow at first, faster afterwards.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace what an earlier run wrote.")]
Gpu = Annotated[str, Option(help="For --dry-run: estimate hours and memory on a100, h100 or rtx4090.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, print the plan, and stop.")]
MaxBad = Annotated[float, Option(min=0, max=1, help="Share of unusable samples that is tolerated.")]
Link = Annotated[bool, Option("--link/--copy", help="Hard links to the files where possible, or copies.")]

Guidance = Annotated[
    float | None,
    Option(
        help="Guidance w, by the model's own rule; 0 is off. The model's own by default.", rich_help_panel=_SAMPLING
    ),
]
GuidanceRule = Annotated[
    str | None,
    Option(
        help="Another rule than the model's own, with --guidance: normalized (eq. 8), plain (eq. 7), rescaled or apg.",
        rich_help_panel=_SAMPLING,
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    Option(
        metavar="LOW HIGH",
        help="Guide only where t/T lies between the two, 1 being pure noise; with --guidance and --guidance-rule. "
        "Elsewhere a step takes one pass instead of two.",
        rich_help_panel=_SAMPLING,
    ),
]
BaseOnly = Annotated[
    bool, Option("--base-only/--no-base-only", help="Stop at the base's small images.", rich_help_panel=_SAMPLING)
]


@dataclass(frozen=True)
class ComputeFlags:
    """What computes the networks, beside the device."""

    engine: Engine = "auto"
    dtype: DType = "auto"
    compile: Compile = False

    def on(self, device: str | None) -> Computing:
        """Where and how a pipeline's networks are computed."""
        from piti.pipelines.computing import Computing

        return Computing(device, self.dtype, self.engine, self.compile)


@dataclass(frozen=True)
class SamplingFlags:
    """How images are sampled; None takes the model's own value."""

    guidance: Guidance = None
    guidance_rule: GuidanceRule = None
    guidance_interval: GuidanceInterval = None
    steps: Annotated[int | None, Option(min=1, help="Denoising steps of the base.", rich_help_panel=_SAMPLING)] = None
    sampler: Annotated[str | None, Option(help="ddpm, ddim, dpm++, dpm++sde or unipc.", rich_help_panel=_SAMPLING)] = (
        None
    )
    base_only: BaseOnly = False
    upsampler_steps: Annotated[
        str | None,
        Option(help="Steps of the upsampler: a number, or fast27 as released.", rich_help_panel=_SAMPLING),
    ] = None
    upsampler_sampler: Annotated[
        str | None, Option(help="Sampler of the upsampler, as --sampler.", rich_help_panel=_SAMPLING)
    ] = None
    square: Annotated[
        bool,
        Option(
            "--square", help="Translate the centre square of a condition, not all of it.", rich_help_panel=_SAMPLING
        ),
    ] = False
    size: Annotated[
        int | None,
        Option(
            help="Short side of the images: 16 px to 4 times the model's, which is the default.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None

    def options(self, num: int, seed: int, batch: int, skip_bad: bool = False) -> GenerationOptions:
        """What `translate_files` takes. Raises UserError for impossible values."""
        from piti.generation.options import GenerationOptions

        values = {key: value for key, value in vars(self).items() if not key.startswith("guidance_")}
        values["guidance"] = guidance_of(self.guidance, self.guidance_rule, self.guidance_interval)
        return GenerationOptions.from_flat(num=num, seed=seed, batch=batch, skip_bad=skip_bad, **values)


def guidance_of(strength: float | None, rule: str | None, interval: tuple[float, float] | None = None) -> Any:
    """What --guidance, --guidance-rule and --guidance-interval say together, as `NetworkOptions` takes it. Raises
    UserError."""
    from piti.core.errors import UserError
    from piti.core.spec import choices
    from piti.diffusion.guidance import RULES
    from piti.diffusion.guidance import Guidance as Rule

    if rule is None and interval is not None:
        raise UserError("--guidance-interval without --guidance-rule: name the rule too, such as normalized (eq. 8)")
    if rule is None:
        return strength
    if rule not in RULES:
        raise UserError(f"is no rule of guidance; {choices(rule, RULES)}", option="guidance_rule", value=rule)
    if strength is None:
        raise UserError("--guidance-rule without --guidance: say how strong, such as --guidance 1")
    within = {} if interval is None else {"interval": list(interval)}
    named = "" if interval is None else f" --guidance-interval {interval[0]:g} {interval[1]:g}"
    return Rule.parse({"kind": rule, "w": strength, **within}, f"--guidance {strength:g}{named}")


@dataclass(frozen=True)
class JudgeFlags:
    """The networks that judge images."""

    features: Annotated[
        list[str] | None,
        Option(
            help="inception, clip, dinov2, clip-l (for CMMD), alexnet, squeezenet; a hub id, or a folder, of CLIP or "
            "DINOv2; a file of Inception's, AlexNet's or SqueezeNet's weights. Repeatable; by default inception, clip.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    segmenter: Annotated[
        str | None,
        Option(help="Model that measures agreement with masks: a hub id, or a folder.", rich_help_panel=_JUDGING),
    ] = None
    aliases: Annotated[
        Path | None,
        Option(help="JSON: labels of the segmenter that differ from the classes' names.", rich_help_panel=_JUDGING),
    ] = None
    bootstrap: Annotated[
        int, Option(min=0, help="Draws for the confidence intervals; 0 is none.", rich_help_panel=_JUDGING)
    ] = 200

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.aliases and not self.segmenter:
            raise UserError("--aliases without --segmenter: name the model whose labels they are")

    def judges(self) -> Judges:
        """What `piti reproduce` takes."""
        from piti.reproduction.runs import Judges

        return Judges(tuple(self.features or Judges.features), self.segmenter, self.aliases, self.bootstrap)


@dataclass(frozen=True)
class MeasureFlags(JudgeFlags):
    """All that decides how images are measured."""

    resize: Annotated[
        int | None,
        Option(help="Scale the centre squares of both sides to this side first.", rich_help_panel=_JUDGING),
    ] = None
    depth: Annotated[
        str | None, Option(help="Model that measures depth: a hub id, or a folder.", rich_help_panel=_JUDGING)
    ] = None
    perceptual: Annotated[
        str | None,
        Option(
            help="Distances between samples, and to their photographs: lpips-alex or lpips-vgg; or the features of "
            "alexnet, vgg16, vgg19 or squeezenet1_1, all channels alike.",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    perceptual_weights: Annotated[
        str | None, Option(help="File of its weights, or a hub id.", rich_help_panel=_JUDGING)
    ] = None
    perceptual_heads: Annotated[
        str | None,
        Option(help="LPIPS: file of its learned weights, if not beside the network's.", rich_help_panel=_JUDGING),
    ] = None
    objects: Annotated[
        bool,
        Option(
            "--objects",
            help="By the masks: do objects of one class within an image look more alike than in different samples?",
            rich_help_panel=_JUDGING,
        ),
    ] = False
    training: Annotated[
        Path | None,
        Option(
            help="Photographs trained on (a folder, or a data root): are images nearer to them than --real are?",
            rich_help_panel=_JUDGING,
        ),
    ] = None
    nearest: Annotated[
        Path | None,
        Option(help="With --training: a picture of the images nearest to them.", rich_help_panel=_JUDGING),
    ] = None
    cache: Annotated[
        Path | None, Option(help="Folder that keeps features for the next evaluation.", rich_help_panel=_JUDGING)
    ] = None
    batch: Annotated[int | None, Option(min=1, help="Images sampled at once (8), and judged at once (32).")] = None
    seed: Seed = 0
    device: Device = None

    def options(self) -> Options:
        """What `evaluate_files` takes. Raises UserError for values that are impossible together."""
        from piti.evaluation.options import Options

        return Options(
            tuple(self.features or Options.features),
            self.resize,
            self.batch or Options.batch,
            self.device,
            self.segmenter,
            self.aliases,
            self.depth,
            self._perceptual(),
            self.objects,
            self.training,
            self.nearest,
            self.cache,
            self.bootstrap,
            self.seed,
        )

    def _perceptual(self) -> PerceptualSpec | LpipsSpec | None:
        from piti.core.errors import UserError
        from piti.evaluation.perceptual import LPIPS, LpipsSpec
        from piti.models.perceptual import PerceptualSpec

        for name in ("perceptual_weights", "perceptual_heads"):
            if getattr(self, name) and not self.perceptual:
                raise UserError(f"{flag(name)} without --perceptual: say which network they are of")
        if self.perceptual is None:
            return None
        values = {"network": self.perceptual, "weights": self.perceptual_weights}
        if self.perceptual in LPIPS:
            return LpipsSpec.parse(values | {"heads": self.perceptual_heads}, "--perceptual")
        if self.perceptual_heads:
            raise UserError(
                "--perceptual-heads are of LPIPS: give --perceptual lpips-alex or lpips-vgg, or leave it out"
            )
        return PerceptualSpec.parse(values, "--perceptual")


@dataclass(frozen=True)
class ConditionFlags:
    """Folders of conditions, one for each kind."""

    labels: Annotated[Path | None, Option(help="A folder of masks.", rich_help_panel=_CONDITIONS)] = None
    classes: Annotated[
        Path | None, Option(help="classes.json, if not in LABELS or beside it.", rich_help_panel=_CONDITIONS)
    ] = None
    sketches: Annotated[Path | None, Option(help="A folder of sketches.", rich_help_panel=_CONDITIONS)] = None
    geometry: Annotated[Path | None, Option(help="A folder of depth.", rich_help_panel=_CONDITIONS)] = None

    def __post_init__(self) -> None:
        from piti.core.errors import UserError

        if self.classes and not self.labels:
            raise UserError("--classes without --labels: give the folder of masks too")

    def notes(self, options: Options) -> list[str]:
        """What a person should know of masks that nothing is compared with."""
        used = options.segmenter or options.objects or options.perceptual
        if self.labels is None or used:
            return []
        return ["--labels without --segmenter measures nothing of the masks; give the segmenter that sees the images"]

    def read(self) -> dict[str, tuple[Path, Condition]]:
        """Each folder that is given with its kind of condition, by the flag's name. Raises UserError."""
        from piti.evaluation.condition_folders import condition_folders

        return condition_folders(**vars(self))


@dataclass(frozen=True)
class ResultFlags:
    """Where a result is written."""

    json: Annotated[
        Path | None, Option(help="Write the result, and all that it takes to repeat it.", rich_help_panel=_RESULT)
    ] = None
    overwrite: Annotated[bool, Option("--overwrite", help="Replace --json.", rich_help_panel=_RESULT)] = False

    def check(self) -> None:
        """Before hours of work: raises OutputError if the result could not be written."""
        from piti.core.files import check_file

        if self.json is not None:
            check_file(self.json, self.overwrite, "--json")

    def write(self, result: Any) -> None:
        """Write a result with the method `write(path, overwrite)`, if that was asked for."""
        if self.json is not None:
            result.write(self.json, self.overwrite)
            typer.echo(f"written to {self.json}")


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command for Typer in place of one that takes groups of flags: each group's fields become parameters."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {flag.name: flag.annotation for flag in own if is_dataclass(flag.annotation)}
    flat = [parameter for parameter in own if parameter.name not in groups]
    for group in groups.values():
        flat += _parameters(group)

    @wraps(command)
    def ungrouped(**given: Any) -> None:
        filled = {}
        for name, group in groups.items():
            filled[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given, **filled)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in flat]
    ungrouped.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    vars(ungrouped)["__signature__"] = inspect.Signature(keyword)
    return ungrouped


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """The fields of a group as parameters of a function."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and ctx.params[name] not in (None, (), [])


def all_given(ctx: typer.Context) -> list[str]:
    """The parameters that were given."""
    return [name for name in ctx.params if is_given(ctx, name)]


def refuse_others(given: Sequence[str], meant: Collection[str], use: str) -> None:
    """Raises UserError for parameters that mean nothing in a use of a command. use: in words."""
    from piti.core.errors import UserError

    odd = [flag(name) for name in given if name not in meant]
    if odd:
        raise UserError(f"{', '.join(odd)} means nothing with {use}; leave it out")
