"""The text encoder."""

from __future__ import annotations

import pytest
import torch

from piti.core.errors import UserError
from piti.models import TextEncoder, TextEncoderSpec, Translator
from tests.conftest import TINY_MODEL

SPEC = TextEncoderSpec(vocabulary=10, context=6, width=16, layers=2, heads=2)
UNET = TINY_MODEL["unet"]


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor([*tokens] + [-1] * (6 - len(tokens)), dtype=torch.int32)[None, None, None]


def test_tokens_have_the_texts_places() -> None:
    tokens = TextEncoder(SPEC)(torch.cat([ids(1, 2), ids()]))
    assert tokens.pooled.shape == (2, 16)
    assert tokens.sequence.shape == (2, 6, 16)
    assert torch.equal(tokens.pooled, tokens.sequence[:, -1])
    assert tokens.residuals is None


def test_what_follows_the_text_is_its_own_embedding_not_a_token() -> None:
    encoder = TextEncoder(SPEC).eval()
    before = encoder(ids(1, 2)).sequence
    with torch.no_grad():
        encoder.embedding.weight[0] += 1  # the row that -1 is clamped to
    assert torch.equal(encoder(ids(1, 2)).sequence, before)
    with torch.no_grad():
        encoder.padding[4] += 1
    assert not torch.equal(encoder(ids(1, 2)).sequence, before)


def test_every_token_and_its_place_counts() -> None:
    encoder = TextEncoder(SPEC).eval()
    pooled = [encoder(ids(*tokens)).pooled for tokens in [(1, 2), (2, 1), (1, 3), (1,)]]
    for k, one in enumerate(pooled):
        for other in pooled[k + 1 :]:
            assert (one - other).abs().max() > 1e-4


def test_a_translator_of_text() -> None:
    translator = Translator(text_spec=SPEC.to_dict(), unet_spec=UNET, image_size=16, patch_size=2)
    out = translator(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), torch.cat([ids(1), ids()]))
    assert out.output.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextEncoder(SPEC)(ids(1)[..., :4]), r"expects token ids \[B, 1, 1, 6\], got \[1, 1, 1, 4\]"),
        (lambda: TextEncoderSpec.parse({"width": 10, "heads": 3}, "it"), "'width' 10 is not a multiple of 'heads' 3"),
        (lambda: Translator(text_spec={"width": 32}, unet_spec=UNET), "'width' 32 is not the UNet's 'token_width' 16"),
        (
            lambda: Translator(encoder_spec={"width": 16, "heads": 2}, text_spec=SPEC.to_dict(), unet_spec=UNET),
            "a translator has one encoder",
        ),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
