"""Timesteps of respaced schedules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piti.diffusion.schedule import shifted
from piti.diffusion.spacing import reshifted, space_timesteps


def test_respacing_equals_the_recorded_one(golden: Path) -> None:
    recorded = json.loads((golden / "respacing.json").read_text())
    for key, kept in recorded["timestep_maps"].items():
        assert space_timesteps(1000, key.split("|")[1]) == kept, key
    for spec in recorded["errors"]:
        with pytest.raises(ValueError, match=spec):
            space_timesteps(1000, spec)


def test_strides_are_summed_before_they_are_rounded_as_in_the_release() -> None:
    """Its sum falls short of a half here, where k times the stride does not."""
    assert space_timesteps(1000, 21)[9:12] == [450, 499, 549]
    for count in range(2, 1001):
        place, wanted = 0.0, []
        for _ in range(count):
            wanted.append(round(place))
            place += 999 / (count - 1)
        assert space_timesteps(1000, count) == wanted


def test_sections_share_the_steps_and_the_first_take_what_is_left() -> None:
    assert space_timesteps(10, "2,1,1") == [0, 3, 4, 7]  # sections of 4, 3 and 3
    assert space_timesteps(1000, "fast27")[-3:] == [799, 800, 997]  # "10,10,3,2,2" ends with 999


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("ddim300", "ddim250, ddim334"),
        ("ddim", "ddim10, ddim50"),
        ("300,400,400", "at most 333"),
        (1001, "at most 1000"),
        ("quick", "'ddim50'"),
        ("-3", "'fast27'"),
        ([], "a count"),
    ],
)
def test_an_impossible_respacing_says_what_is_possible(spec: int | str | list[int], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as caught:
        space_timesteps(1000, spec)
    assert repr(spec) in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(T=st.integers(2, 1000), data=st.data())
def test_a_count_is_kept_from_first_to_last(T: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, T))
    kept = space_timesteps(T, count)
    assert len(set(kept)) == count
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, T - 1)
    assert space_timesteps(T, str(count)) == space_timesteps(T, [count]) == kept


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1000), st.floats(0.01, 50))
def test_timesteps_of_another_shift_are_distinct_and_have_its_noise(count: int, ratio: float) -> None:
    own = sorted({round(k * 999 / count) for k in range(1, count + 1)})
    found = reshifted(own, 1000, ratio)
    assert found == sorted(set(found))
    assert len(found) == len(own)
    assert 0 <= found[0] <= found[-1] <= 999
    if count < 4 and 0.2 < ratio < 5:  # far enough apart
        shares = [torch.tensor([(t + 1) / 1000 for t in visited]) for visited in (own, found)]
        torch.testing.assert_close(shifted(shares[1], 3.0), shifted(shares[0], 3.0 * ratio), atol=2e-3, rtol=0)


def test_timesteps_of_the_same_shift_are_the_same() -> None:
    assert reshifted(range(0, 1000, 7), 1000, 1.0) == list(range(0, 1000, 7))
