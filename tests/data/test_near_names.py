"""Nearly equal names."""

from __future__ import annotations

from piti.data import near_names
from piti.data.near_names import near_keys, near_misses


def test_what_a_key_was_probably_meant_to_match() -> None:
    others = {"a/S1", "a/s2_mask", "b/s2_mask", "s3 (1)", "s4_mask", "s4_labels", "s5"}
    assert near_misses(["a/s1", "a/s2", "s3", "s4", "s6"], others) == {
        "a/s1": "a/S1",
        "a/s2": "a/s2_mask",
        "s3": "s3 (1)",
    }
    assert near_keys(["s3", "s6"], others) == {"s3": "s3 (almost the same: s3 (1), rename one)", "s6": "s6"}


def test_every_name_is_looked_at_once(monkeypatch) -> None:
    looked, plain = [], near_names._loose
    monkeypatch.setattr(near_names, "_loose", lambda key: looked.append(key) or plain(key))
    assert near_misses([f"{k}_mask" for k in range(50)], [f"{k}" for k in range(60)])["7_mask"] == "7"
    assert len(looked) == 110
