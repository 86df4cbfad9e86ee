"""The flags that several commands share, each declared once, and those of computing and sampling in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

if TYPE_CHECKING:
    from piti.generation.options import GenerationOptions
    from piti.pipelines.computing import Computing

MODEL_HELP = "A bundled model, a folder, a training run, or a hub id."
_SAMPLING = "Sampling"

Model = Annotated[str, Option(help=MODEL_HELP)]
Upsampler = Annotated[str | None, Option(help="Use the upsampler of this model, folder or run.")]
Num = Annotated[int, Option("--num", "-n", min=1, help="Images to make.")]
Seed = Annotated[int, Option(min=0, help="Seed of all random numbers.")]
Device = Annotated[str | None, Option(help="cpu, cuda, mps …; the fastest available by default.")]
Engine = Annotated[
    str,
    Option(
        envvar="PITI_ENGINE",
        help="What computes the networks: torch; openvino, 1.4 to 2 times as fast on CPUs with AMX; auto takes it "
        "where it is installed and faster.",
    ),
]
DType = Annotated[
    str,
    Option(help="Numbers to compute in: fp32, bf16, fp16; auto is bf16 where that is known to be faster, else fp32."),
]
Compile = Annotated[
    bool, Option("--compile", help="Compile the networks' blocks (torch.compile): slow at first, faster afterwards.")
]
Results = Annotated[Path, Option(help="A .png file for one image, or a folder for STEM_0.png … and sheet.png.")]
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
    steps: Annotated[
        int | None,
        Option(min=1, help="Denoising steps of the base; the model's own by default.", rich_help_panel=_SAMPLING),
    ] = None
    sampler: Annotated[
        str | None,
        Option(help="ddpm, ddim, dpm++, dpm++sde or unipc; the model's own by default.", rich_help_panel=_SAMPLING),
    ] = None
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
