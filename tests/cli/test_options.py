"""Groups of flags, and detection of given flags."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from piti.cli.app import app
from piti.cli.groups import all_given, refuse_others, with_groups
from piti.cli.measuring import JudgeFlags
from piti.cli.options import SamplingFlags, Seed, guidance_of
from piti.core.errors import UserError
from piti.editing import STEPS, UPSAMPLER_STEPS, VARIETY, EditSettings


@dataclass(frozen=True)
class ColourFlags:
    hue: Annotated[str, typer.Option(help="A colour.")]
    depth: int = 8


@dataclass(frozen=True)
class MoreFlags(ColourFlags):
    names: Annotated[list[str] | None, typer.Option("--name")] = None


def test_the_help_of_edit_states_the_defaults_of_editing() -> None:
    """None is the flags' own default, so that nothing else tells them."""
    edit = typer.main.get_command(app).commands["edit"]  # type: ignore[attr-defined]
    said = {one.name: one.help for one in edit.params if one.help}
    known = {"steps": STEPS, "upsampler_steps": UPSAMPLER_STEPS, "variety": VARIETY}
    known |= {name: getattr(EditSettings(), name) for name in ("refinements", "dilate", "feather")}
    for name, value in known.items():
        assert f"{value} by default" in said[name], name


def test_a_group_becomes_flags() -> None:
    seen: list[Any] = []
    app = typer.Typer()

    @app.command()
    @with_groups
    def paint(ctx: typer.Context, colour: MoreFlags, seed: Seed = 0) -> None:
        """Paint."""
        seen.append((colour, seed, sorted(all_given(ctx))))

    given = ["--hue", "red", "--name", "a", "--name", "b", "--seed", "3"]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert seen == [(MoreFlags("red", 8, ["a", "b"]), 3, ["hue", "names", "seed"])]
    missing = CliRunner().invoke(app, [])
    assert missing.exit_code == 2
    assert "--hue" in missing.output
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert "Paint." in help_text
    assert "A colour." in help_text


def test_a_signature_without_groups_stays_as_it_is() -> None:
    def plain(seed: Seed, out: str = "out") -> None: ...

    assert list(inspect.signature(with_groups(plain)).parameters) == ["seed", "out"]


def test_sampling_flags_become_options() -> None:
    options = SamplingFlags(steps=5, upsampler_steps="7", size=64).options(num=2, seed=3, batch=4)
    sampling = options.sampling
    assert (options.num, options.seed, options.batch, sampling.base.steps) == (2, 3, 4, 5)
    assert (sampling.upsampler.steps, sampling.size, sampling.base.guidance) == (7, 64, None)
    named = SamplingFlags(upsampler_steps="fast27").options(num=1, seed=0, batch=1)
    assert named.sampling.upsampler.steps == "fast27"


def test_what_means_nothing_is_refused() -> None:
    refuse_others(["out"], ["out"], "piti paint")
    with pytest.raises(UserError, match="--no-train, --gpu has no effect with piti paint"):
        refuse_others(["out", "no_train", "gpu"], ["out"], "piti paint")
    with pytest.raises(UserError, match="--aliases has no effect without --segmenter"):
        JudgeFlags(aliases="names.json")  # type: ignore[arg-type]


def test_a_strength_with_and_without_a_rule() -> None:
    from piti.core.spec import SpecError

    assert guidance_of(1.5, None) == 1.5  # by the model's own rule
    assert guidance_of(None, None) is None
    rule = guidance_of(1.5, "plain")
    assert (rule.kind, rule.w) == ("plain", 1.5)
    assert guidance_of(1.5, "apg", (0.0, 0.5)).interval == (0.0, 0.5)
    with pytest.raises(UserError, match="--guidance-interval without --guidance-rule"):
        guidance_of(1.5, None, (0.0, 0.5))
    with pytest.raises(SpecError, match=r"--guidance 1 --guidance-interval 0.5 0.2:\n.*is not an interval of t/T"):
        guidance_of(1.0, "plain", (0.5, 0.2))
    with pytest.raises(UserError, match="--guidance-rule without --guidance"):
        guidance_of(None, "plain")
    with pytest.raises(UserError, match=r"guidance_rule plane: is not a guidance rule; did you mean 'plain'\?"):
        guidance_of(None, "plane")
    with pytest.raises(SpecError, match=r"--guidance -2:\n.*is too small; give at least -1"):
        guidance_of(-2.0, "plain")
