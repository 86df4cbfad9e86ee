"""Flags shared by several commands, and the groups of compute and sampling flags."""

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
Upsampler = Annotated[
    str | None, Option(help="Use the upsampler of this model, folder or run instead of the model's own.")
]
Num = Annotated[int, Option("--num", "-n", min=1, help="Number of images.")]
Batch = Annotated[int, Option(min=1, help="Images sampled at once; fewer need less memory.")]
Seed = Annotated[int, Option(min=0, help="Random seed.")]
Device = Annotated[str | None, Option(help="Device: cpu, cuda, mps …; the fastest available by default.")]
Engine = Annotated[
    str,
    Option(
        envvar="PITI_ENGINE",
        help="Inference engine: torch; openvino, 1.4 to 2 times as fast on CPUs with AMX; auto uses openvino where it "
        "is installed and faster.",
    ),
]
DType = Annotated[
    str,
    Option(help="Precision: fp32, bf16 or fp16; auto is bf16 where that is known to be faster, else fp32."),
]
Compile = Annotated[
    bool, Option("--compile", help="Compile the networks' blocks (torch.compile): slow first call, faster afterwards.")
]
Results = Annotated[Path, Option(help="A .png file for a single image, or a folder for STEM_0.png … and sheet.png.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace existing output.")]
Gpu = Annotated[
    str | None,
    Option(help="With --dry-run: the GPU to estimate hours and memory for: a100 (the default), h100 or rtx4090."),
]
DryRun = Annotated[bool, Option("--dry-run", help="Check everything, print the plan and exit.")]
MaxBad = Annotated[float, Option(min=0, max=1, help="Largest tolerated share of unusable samples.")]
Link = Annotated[bool, Option("--link/--copy", help="Hard-link files where possible, or copy them.")]

Guidance = Annotated[
    float | None,
    Option(help="Guidance strength w; 0 is off. By default the model's.", rich_help_panel=_SAMPLING),
]
GuidanceRule = Annotated[
    str | None,
    Option(
        help="With --guidance: replace the model's guidance rule by normalized (eq. 8), plain (eq. 7), rescaled or "
        "apg.",
        rich_help_panel=_SAMPLING,
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    Option(
        metavar="LOW HIGH",
        help="With --guidance and --guidance-rule: guide only where t/T lies between the two (1 is pure noise). Other "
        "steps need one network evaluation instead of two.",
        rich_help_panel=_SAMPLING,
    ),
]
BaseOnly = Annotated[
    bool,
    Option(
        "--base-only/--no-base-only",
        help="Write the base's small images, without the upsampler.",
        rich_help_panel=_SAMPLING,
    ),
]


@dataclass(frozen=True)
class ComputeFlags:
    """Engine, precision and compilation of the networks."""

    engine: Engine = "auto"
    dtype: DType = "auto"
    compile: Compile = False

    def on(self, device: str | None) -> Computing:
        """The flags as `Computing`. device: None is the fastest available."""
        from piti.pipelines.computing import Computing

        return Computing(device, self.dtype, self.engine, self.compile)


@dataclass(frozen=True)
class SamplingFlags:
    """Sampling options; None is the model's own value."""

    guidance: Guidance = None
    guidance_rule: GuidanceRule = None
    guidance_interval: GuidanceInterval = None
    steps: Annotated[
        int | None,
        Option(min=1, help="Denoising steps of the base; by default the model's.", rich_help_panel=_SAMPLING),
    ] = None
    sampler: Annotated[
        str | None,
        Option(
            help="Sampler of the base: ddpm, ddim, dpm++, dpm++sde or unipc; by default the model's.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None
    base_only: BaseOnly = False
    upsampler_steps: Annotated[
        str | None,
        Option(help="Steps of the upsampler: a number, or fast27 (the released 27 steps).", rich_help_panel=_SAMPLING),
    ] = None
    upsampler_sampler: Annotated[
        str | None, Option(help="Sampler of the upsampler; values as for --sampler.", rich_help_panel=_SAMPLING)
    ] = None
    square: Annotated[
        bool,
        Option("--square", help="Translate only the centre square of each condition.", rich_help_panel=_SAMPLING),
    ] = False
    size: Annotated[
        int | None,
        Option(
            help="Short side of the images in pixels, from 16 to 4 times the model's size, which is the default.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None

    def options(self, num: int, seed: int, batch: int, skip_bad: bool = False) -> GenerationOptions:
        """The flags as `GenerationOptions`. Raises UserError for invalid values."""
        from piti.generation.options import GenerationOptions

        values = {key: value for key, value in vars(self).items() if not key.startswith("guidance_")}
        values["guidance"] = guidance_of(self.guidance, self.guidance_rule, self.guidance_interval)
        return GenerationOptions.from_flat(num=num, seed=seed, batch=batch, skip_bad=skip_bad, **values)


def guidance_of(strength: float | None, rule: str | None, interval: tuple[float, float] | None = None) -> Any:
    """--guidance, --guidance-rule and --guidance-interval combined, as the `guidance` of `NetworkOptions`.

    Raises UserError for an unknown rule, and for a rule or an interval without the flags it needs.
    """
    from piti.core.errors import UserError
    from piti.core.spec import choices
    from piti.diffusion.guidance import RULES
    from piti.diffusion.guidance import Guidance as Rule

    if rule is None and interval is not None:
        raise UserError("--guidance-interval without --guidance-rule: give the rule too, such as normalized (eq. 8)")
    if rule is None:
        return strength
    if rule not in RULES:
        raise UserError(f"is not a guidance rule; {choices(rule, RULES)}", option="guidance_rule", value=rule)
    if strength is None:
        raise UserError("--guidance-rule without --guidance: give the strength too, such as --guidance 1")
    within = {} if interval is None else {"interval": list(interval)}
    named = "" if interval is None else f" --guidance-interval {interval[0]:g} {interval[1]:g}"
    return Rule.parse({"kind": rule, "w": strength, **within}, f"--guidance {strength:g}{named}")
