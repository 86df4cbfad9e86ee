"""The paper's scale: its settings on its data sets, 64 px upsampled to 256 px."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from piti.diffusion.guidance import Guidance
from piti.reproduction.rows import SETS, Plan, Row, Training, sampled_by, upsampler_rows

_W = 1.0
_SAMPLING = sampled_by(num=1, steps=250, sampler="ddpm", guidance=Guidance(w=_W), upsampler_steps="fast27")
_NOTES = (
    "Learning rates, batch size, EMA and the iterations of the first stage are the paper's (section 4, appendix A); "
    "what it does not state, such as dropout and the length of the joint stage, is named in each recipe. The baselines "
    "have their papers' settings.",
)
_ABOUT_3A = (
    "Encoder alone: the prior's UNet, which is the decoder, stays frozen. Both at once: encoder and UNet are trained "
    "from the first step. Two stages: the encoder first, then both."
)


def _on(data: str, method: str, recipe: str, *changes: str) -> Training:
    return Training(f"{method}-{data}", recipe, data, (*SETS[data].changes, *changes))


def _cascade(method: str, key: str, data: str, base: str, upsampler: str, *changes: str, end: str = "") -> Row:
    """A method with two networks; end: suffix of its runs for partial data."""
    small = _on(data, f"{base}{end}", base, *changes)
    large = _on(data, f"{upsampler}{end}", upsampler, *changes)
    return Row(method, key, small, large, _SAMPLING)


_SEEN = {
    "ade20k": 200 * 20_210,
    "coco-stuff": 100 * 118_287,
    "coco-sketch": 100 * 118_287,
    "flickr": 100 * 50_000,
    "flickr-sketch": 100 * 50_000,
    "diode": 200 * 25_458,
}
"""Images that a baseline sees: epochs times pairs, for ADE20K and COCO as in SPADE and OASIS."""
_BATCHES = {"pix2pixhd": 16, "spade": 32, "oasis": 32}
_TITLES = {"pix2pixhd": "Pix2PixHD", "spade": "SPADE", "oasis": "OASIS"}
_DIFFUSION = (("from scratch", "scratch", "scratch-upsampler"), ("PITI", "piti", "upsampler"))


def _epochs(data: str, baseline: str) -> tuple[str, ...]:
    """Changes of a baseline's recipe, which is for ADE20K, for another data set."""
    return () if data == "ade20k" else (f"stages.0.steps={_SEEN[data] // _BATCHES[baseline]}",)


def _compared(data: str) -> list[Row]:
    """The methods of table 1 on a data set."""
    baselines = [key for key in _BATCHES if key != "oasis" or SETS[data].classes]
    rows = [Row(_TITLES[key], key, _on(data, key, key, *_epochs(data, key))) for key in baselines]
    return rows + [_cascade(method, key, data, key, upsampler) for method, key, upsampler in _DIFFUSION]


def _table1() -> Plan:
    rows = tuple(row for data in _SEEN for row in _compared(data))
    notes = (*_NOTES, "OASIS needs masks, since its discriminator classifies pixels.")
    return Plan("table1", "Table 1: comparison of methods", "paper", rows, 256, "val", notes)


def _table2() -> Plan:
    rows = tuple(row for row in _compared("coco-stuff") if row.key != "pix2pixhd")
    return Plan("table2", "Table 2: which images raters prefer", "paper", rows, 256, "val", _NOTES)


def _table5() -> Plan:
    return replace(_table1(), table="table5", title="Table 5: FID-I and FID-C", networks=("inception", "clip"))


def _table3a() -> Plan:
    rows = (
        _cascade("from scratch", "scratch", "ade20k", "scratch", "upsampler"),
        _cascade("encoder alone", "encoder-only", "ade20k", "encoder-only", "upsampler"),
        _cascade("both at once", "one-stage", "ade20k", "one-stage", "upsampler"),
        _cascade("two stages (PITI)", "piti", "ade20k", "piti", "upsampler"),
    )
    rows = tuple(replace(row, name=f"{row.base.name}-same-upsampler") for row in rows)
    notes = (*_NOTES, _ABOUT_3A, "All rows use PITI's upsampler, so that only the base differs.")
    return Plan("table3a", "Table 3a: pretraining and finetuning", "paper", rows, 256, "val", notes)


def _table3b() -> Plan:
    piti = _on("ade20k", "piti", "piti")

    def upsampler(name: str, *changes: str) -> Training:
        return _on("ade20k", f"upsampler-{name}", "upsampler", *changes)

    rows = upsampler_rows(upsampler, piti, _SAMPLING, _W, _on("ade20k", "upsampler", "upsampler"))
    return Plan("table3b", "Table 3b: the upsampler", "paper", rows, 256, "val", _NOTES)


def _table4() -> Plan:
    rows: list[Row] = []
    for limit, share in ((5_000, "-25"), (10_000, "-50"), (None, "")):
        end, changes = ("", ()) if limit is None else (f"-{limit}", (f"data.limit={limit}",))
        for key, title in _TITLES.items():
            training = _on("ade20k", f"{key}{end}", key, *changes)
            rows.append(Row(title, f"{key}{share}", training, pairs=limit or 0))
        for method, key, upsampler in _DIFFUSION:
            row = _cascade(method, f"{key}{share}", "ade20k", key, upsampler, *changes, end=end)
            rows.append(replace(row, pairs=limit or 0))
    notes = (*_NOTES, "Every row sees as many images as with all pairs, so fewer pairs are repeated more often.")
    return Plan("table4", "Table 4: small training data", "paper", tuple(rows), 256, "val", notes)


def _figure5() -> Plan:
    return replace(_table3a(), table="figure5", title="Figure 5: ways to finetune, side by side")


PAPER: dict[str, Callable[[], Plan]] = {
    "table1": _table1,
    "table2": _table2,
    "table3a": _table3a,
    "table3b": _table3b,
    "table4": _table4,
    "table5": _table5,
    "figure5": _figure5,
}
"""Every plan of this scale, by its table."""
