"""Errors as people without a terminal read them."""

from __future__ import annotations

import pytest

from piti.studio.http.errors import in_plain_words, reworded
from piti.studio.service.schema import LimitError


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("size 5 (--size): this model was", "size 5: this model was"),
        ("64 px, its base alone (because of --base-only, or because it has none); give", "64 px, its base alone; give"),
        ("a, b (--upsampler-sampler, --upsampler-steps): no", "a, b: no"),
        ("cut it into pieces, or take the square at its centre (square=True, --square)", "cut it into pieces"),
        (
            "id 77; add the class to classes.json, or relabel these pixels (or so)",
            "id 77; relabel these pixels (or so)",
        ),
        ("add the colour to classes.json, or save the mask as PNG", "save the mask as PNG"),
        ("this model reads text; give --text, or a .txt file", "this model reads text; write what is to be seen"),
        (
            "give another one to show, or a region (--region) to repaint",
            "give another one to show, or a region to repaint",
        ),
        ("choose another --model, or", "choose another model, or"),
        ("my--photo.png: is damaged (at 5); copy it", "my--photo.png: is damaged (at 5); copy it"),
    ],
)
def test_no_flag_is_told_to_people_without_a_terminal(said: str, told: str) -> None:
    assert reworded(said) == told
    with pytest.raises(LimitError) as caught, in_plain_words():
        raise LimitError(said)
    assert str(caught.value) == told
