"""Small scale: masks of streets at 64 px, what a CPU trains in minutes a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from piti.diffusion.guidance import Guidance
from piti.reproduction.rows import Generated, Plan, Row, Training, sampled_by, upsampler_rows

_W = 1.0
_GUIDED = sampled_by(steps=50, sampler="ddpm", guidance=Guidance(w=_W))
_ONE_STEP = sampled_by(steps=50, sampler="ddpm", guidance=Guidance(w=_W), upsampler_sampler="ddim", upsampler_steps=1)
_NOTES = (
    "Every row saw 16,384 training images at 64 px with networks narrow enough for a CPU; nothing was tuned on the "
    "validation masks. It shows how methods compare when little is trained, not what they reach.",
    "One image a condition, so that every row has as many, also of methods that know one image alone.",
)
_ABOUT_PATHS = (
    "*As in the paper*: what the encoder knows reaches the UNet as tokens alone (`residuals: false`). *With the "
    "aligned path*, which the paper does not have, its feature maps enter the UNet's skip connections too (`residuals: "
    "true`). "
    "Both depart from the paper in `patch_size: 2` and in predicting v, as all diffusion rows of this scale do."
)
_ABOUT_OASIS = (
    "OASIS has its adversary alone to learn from, without a perceptual loss; 16,384 images are far too few for that. "
    "Its learning rate falls over the second half of the run here, which its paper's does not."
)
_ABOUT_ALONE = (
    "Without its perceptual loss: the same recipe with that loss's weight at 0, so that nothing which judges took part "
    "in training."
)
_ABOUT_3A = (
    "Encoder alone: the prior's UNet, which is the decoder, stays frozen. Both at once: encoder and UNet learn from "
    "the first step. Two stages: the encoder first, then both."
)
_ABOUT_3B = (
    "The base is that of PITI with the aligned path in table 1, 64 px; rows of the same guidance enlarge the very same "
    "small images to 256 px. An upsampler saw 16,384 crops of 128 px, without a prior; those of the paper's parts need "
    "no condition.",
    "*Italic*: not ours. Real-ESRGAN x4plus has 16.7M parameters and was trained by its authors on photographs of all "
    "kinds.",
    "Beyond the paper: sampled in one step; sees the mask; eq. 5 also on a frozen SqueezeNet's features; half of its "
    "training crops are what the base makes of training masks, for which no photograph exists; no degradation.",
)
_ALONE = ("baseline.perceptual=0",)
_TOKENS = ("model.encoder.residuals=false",)


def _small(name: str, recipe: str = "", *changes: str) -> Training:
    return Training(name, recipe or name, "camvid", changes)


def _plan(table: str, title: str, rows: tuple[Row, ...], side: int = 64, notes: tuple[str, ...] = _NOTES) -> Plan:
    """Judged by the distance to the training photographs, since few are held out."""
    return Plan(table, title, "small", rows, side, "train", notes, own_data=True, own_speed=True)


def _both_paths(method: str, name: str, limit: int | None = None, share: str = "") -> tuple[Row, ...]:
    """A method as in the paper, and with the aligned path. name: of the recipe; limit: of the training pairs; share:
    what tells their published numbers from those of all pairs."""
    end, limited = ("", ()) if limit is None else (f"-{limit}", (f"data.limit={limit}",))
    paper = _small(f"{name}-tokens{end}", name, *_TOKENS, *limited)
    aligned = _small(f"{name}{end}", name, *limited)
    return (
        Row(f"{method} as in the paper", f"{name}{share}", paper, options=_GUIDED),
        Row(f"{method} with the aligned path", "", aligned, options=_GUIDED),
    )


_BASELINES = (("Pix2PixHD", "pix2pixhd"), ("SPADE", "spade"), ("OASIS", "oasis"))


def _compared() -> tuple[Row, ...]:
    """The methods of table 1."""
    baselines = tuple(Row(method, key, _small(key)) for method, key in _BASELINES)
    return (*baselines, *_both_paths("from scratch", "scratch"), *_both_paths("PITI", "piti"))


def _table1() -> Plan:
    rows = list(_compared())
    for place, (method, key) in ((1, _BASELINES[0]), (3, _BASELINES[1])):
        rows.insert(place, Row(f"{method} without its perceptual loss", "", _small(f"{key}-alone", key, *_ALONE)))
    notes = (*_NOTES, _ABOUT_PATHS, _ABOUT_OASIS, _ABOUT_ALONE)
    return _plan("table1", "Table 1: comparison of methods", tuple(rows), notes=notes)


def _table2() -> Plan:
    rows = tuple(row for row in _compared() if row.key in ("piti", "spade", "oasis", "scratch"))
    return _plan("table2", "Table 2: which images raters prefer", rows, notes=(*_NOTES, _ABOUT_PATHS, _ABOUT_OASIS))


def _table3a() -> Plan:
    rows = (
        *_both_paths("from scratch", "scratch"),
        *_both_paths("encoder alone", "encoder-only"),
        *_both_paths("both at once", "one-stage"),
        *_both_paths("two stages (PITI)", "piti"),
    )
    return _plan("table3a", "Table 3a: pretraining and finetuning", rows, notes=(*_NOTES, _ABOUT_PATHS, _ABOUT_3A))


def _figure5() -> Plan:
    return replace(_table3a(), table="figure5", title="Figure 5: ways to finetune, side by side")


def _table3b() -> Plan:
    piti = _small("piti")
    rows = upsampler_rows(
        lambda name, *changes: Training(f"up-{name}", "upsampler", "camvid", changes), piti, _GUIDED, _W
    )
    one_step = Training("up-one-step", "one-step-upsampler", "camvid", generated=Generated(piti, _GUIDED))
    beyond = Row("beyond the paper: one step, sees the mask", "", piti, one_step, _ONE_STEP, f"{piti.name}-up-one-step")
    return _plan("table3b", "Table 3b: the upsampler", (*rows, beyond), 256, _ABOUT_3B)


def _table4() -> Plan:
    rows: list[Row] = []
    for limit, share in ((125, "-25"), (250, "-50"), (None, "")):
        end, changes = ("", ()) if limit is None else (f"-{limit}", (f"data.limit={limit}",))
        for method, key in _BASELINES:
            rows.append(Row(method, f"{key}{share}", _small(f"{key}{end}", key, *changes), pairs=limit or 0))
        for method, key in (("from scratch", "scratch"), ("PITI", "piti")):
            both = _both_paths(method, key, limit=limit, share=share)
            rows += [replace(row, pairs=limit or 0) for row in both]
    shares = "125 and 250 pairs are 25 and 50% of CamVid's 499. Every row saw as many images, so fewer more often."
    return _plan(
        "table4", "Table 4: small training data", tuple(rows), notes=(*_NOTES, _ABOUT_PATHS, _ABOUT_OASIS, shares)
    )


def _table5() -> Plan:
    plan = _plan("table5", "Table 5: FID-I and FID-C", _compared(), notes=(*_NOTES, _ABOUT_PATHS, _ABOUT_OASIS))
    return replace(plan, networks=("inception", "clip"))


SMALL: dict[str, Callable[[], Plan]] = {
    "table1": _table1,
    "table2": _table2,
    "table3a": _table3a,
    "table3b": _table3b,
    "table4": _table4,
    "table5": _table5,
    "figure5": _figure5,
}
"""Every plan of this scale, by its table."""
