"""Model cards: their code loads and calls the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti.checkpoints.hub import model_card
from piti.pipelines.pipeline import PITIPipeline
from tests.generation.test_inputs import several_pipeline
from tests.generation.test_translate import text_pipeline
from tests.pipelines.test_pipeline import mask, tiny_pipeline

KINDS = [(tiny_pipeline, None), (tiny_pipeline, "fp16"), (several_pipeline, None), (text_pipeline, None)]


@pytest.mark.parametrize(("tiny", "variant"), KINDS, ids=["mask", "variant", "several", "text"])
def test_the_code_of_a_card_runs(
    tiny: Any, variant: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("model", variant=variant)
    for name in ("CONDITION.png", "MASK.png"):
        mask(1).save(name)
    mask(1).convert("L").point(lambda value: 255 * (value == 0)).save("SKETCH.png")
    code = model_card(Path("model"), "model").split("```python")[1].split("```")[0]
    made: dict[str, Any] = {"PITIPipeline": PITIPipeline}
    exec(code.replace("num_images_per_prompt=4", "num_images_per_prompt=2, num_inference_steps=1"), made)
    assert len(made["images"]) == 2


def test_a_card_counts_parameters_once_where_variants_lie_beside_each_other(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    (alone,) = (line for line in model_card(tmp_path, "model").splitlines() if line.startswith("| `base`"))
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert alone in model_card(tmp_path, "model").splitlines()
