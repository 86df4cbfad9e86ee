"""Reading weights without running code, and writing them one at a time."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel
from torch.serialization import get_crc32_options, set_crc32_options

from piti.checkpoints.weights import (
    WeightsError,
    check_finite,
    check_sums,
    read_checkpoint,
    read_weights,
    write_weights,
)

WEIGHTS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5], dtype=torch.float16)}


def saved(path: Path, value: Any = WEIGHTS, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_read(path: Path) -> None:
    read = read_weights(path)
    assert list(read) == list(WEIGHTS)
    assert all(torch.equal(read[name], WEIGHTS[name]) and read[name].dtype == WEIGHTS[name].dtype for name in read)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_state_dicts_are_read_whatever_is_around_them(tmp_path: Path, zipped: bool, wrapper: str) -> None:
    value = {"step": 3, wrapper: WEIGHTS} if wrapper else WEIGHTS
    assert_read(saved(tmp_path / "a.pt", value, zipped))


def test_what_data_parallel_puts_before_the_keys_is_taken_off(tmp_path: Path) -> None:
    assert_read(saved(tmp_path / "a.pt", {f"module.{name}": value for name, value in WEIGHTS.items()}))


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.module.model."]
)
def test_what_wrappers_put_before_the_keys_is_taken_off_however_often(tmp_path: Path, prefix: str) -> None:
    assert_read(saved(tmp_path / "a.pt", {"state_dict": {prefix + name: value for name, value in WEIGHTS.items()}}))


def test_a_compiled_part_inside_and_a_key_that_only_some_share_stay_what_they_are(tmp_path: Path) -> None:
    held = {"model.unet._orig_mod.a": torch.ones(2), "head.b": torch.ones(2)}
    assert list(read_weights(saved(tmp_path / "a.pt", held))) == ["model.unet.a", "head.b"]


RAW = {name: value + 1 for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    ("plain", "average", "around"),
    [
        ("model", "ema", None),
        ("state_dict", "state_dict_ema", None),
        ("model", "model_ema", "module"),
        ("params", "params_ema", None),
        ("model_state_dict", "ema_state_dict", "state_dict"),
        ("model", "averaged", None),
    ],
)
def test_averaged_weights_are_taken_and_it_is_said(tmp_path: Path, plain: str, average: str, around: Any) -> None:
    averaged = WEIGHTS if around is None else {around: WEIGHTS, "decay": 0.999}
    path = saved(tmp_path / "a.pt", {plain: RAW, average: averaged, "ema_decay": 0.9, "optimizer": {"state": {}}})
    assert_read(path)
    assert f"the averaged weights were taken, '{average}', not the raw ones, '{plain}'" in read_checkpoint(path).note
    trained = read_checkpoint(path, raw=True)
    assert all(torch.equal(trained.weights[name], RAW[name]) for name in RAW)
    assert f"were taken, '{plain}', not the averaged ones, '{average}'" in trained.note


def test_what_torchs_average_counts_is_no_weight(tmp_path: Path) -> None:
    average = AveragedModel(torch.nn.Linear(3, 2))
    held = average.state_dict()
    assert "n_averaged" in held
    for value in (held, {"model": RAW, "ema": held}):
        read = read_weights(saved(tmp_path / "a.pt", value))
        assert list(read) == ["weight", "bias"]
        assert torch.equal(read["weight"], held["module.weight"])


def test_nothing_is_said_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    assert read_checkpoint(saved(tmp_path / "a.pt", {"model": WEIGHTS, "ema_decay": torch.tensor(0.9)})).note == ""
    assert read_checkpoint(saved(tmp_path / "b.pt")).note == ""


@pytest.mark.parametrize(
    ("value", "raw", "why"),
    [
        ({"model": WEIGHTS, "ema": WEIGHTS, "ema_slow": WEIGHTS}, False, "several averages: 'ema' and 'ema_slow'"),
        ({"model": WEIGHTS, "ema": [*WEIGHTS.values()]}, False, "a list without names; save them .* weights raw"),
        ({"model": WEIGHTS, "ema": {"shadow_params": [*WEIGHTS.values()]}}, False, "a list without names"),
        ({"ema": WEIGHTS}, True, "contains only averaged weights"),
    ],
)
def test_averages_that_cannot_be_told_apart_are_refused(tmp_path: Path, value: Any, raw: bool, why: str) -> None:
    with pytest.raises(WeightsError, match=why):
        read_weights(saved(tmp_path / "a.pt", value), raw)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    read = read_weights(tmp_path / "a.safetensors")
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "a.pt", {**WEIGHTS, "x": Evil(tmp_path / "pwned")}, zipped)
    with pytest.raises(
        WeightsError, match=r"a\.pt: contains more than weights \(it refers to \w+\.mkdir\), and no code was run"
    ):
        read_weights(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil(tmp_path / "pwned"), protocol))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match=r"a\.pt: .* run;") as raised:
            read_weights(tmp_path / "a.pt")
    assert "\n" not in str(raised.value)
    assert protocol < 4 or "or contains code, which was not run" in str(raised.value)
    assert not (tmp_path / "pwned").exists()


def test_sums_tell_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.randn(1000), "v": torch.randn(1000)})
    check_sums(path)
    data = bytearray(path.read_bytes())
    start = data.index(torch.load(path)["v"].numpy().tobytes())
    data[start + 70 : start + 90] = bytes(20)
    path.write_bytes(data)
    assert read_weights(path).keys() == {"w", "v"}  # it does not notice
    with pytest.raises(WeightsError, match=r"a\.pt: is damaged, 'a/data/1' has changed since it was saved"):
        check_sums(path)
    path.write_bytes(data[: start + 100])
    with pytest.raises(WeightsError, match=r"a\.pt: is damaged, its list of records"):
        check_sums(path)


def test_files_without_sums_pass(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    check_sums(tmp_path / "a.safetensors")
    check_sums(saved(tmp_path / "a.pt", zipped=False))
    was = get_crc32_options()
    set_crc32_options(False)
    try:
        check_sums(saved(tmp_path / "b.pt"))
    finally:
        set_crc32_options(was)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_files_that_are_cut_short_say_so(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    big = {"w": torch.randn(1000), "v": torch.randn(1000)}
    save_file(big, path) if kind == "safetensors" else saved(path, big, kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(WeightsError, match=rf"{path.name}: .*download it again"):
        read_weights(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(2)], "expected a state dict.*type list"),
        ({}, "an empty dictionary"),
        ({"w": torch.zeros(2), "epoch": 3}, "'epoch' is a value of type int, not a tensor"),
        ({3: torch.zeros(2)}, "the key 3"),
        ({"w": torch.zeros(2, dtype=torch.int64)}, "'w' is int64; weights are dense tensors of float16"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "'w' is complex64"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'w' is float32 .torch.sparse_coo"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=f"a.pt: .*{message}"):
        read_weights(saved(tmp_path / "a.pt", value))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("Not found. Please log in to download this file.")
    with pytest.raises(WeightsError, match=r"not a checkpoint of torch.save"):
        read_weights(tmp_path / "text.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named(value: float) -> None:
    check_finite(Path("a.pt"), "w", torch.ones(4))
    with pytest.raises(WeightsError, match=r"a.pt: 'w' has 1 of 4 values"):
        check_finite(Path("a.pt"), "w", torch.tensor([0, value, 1, 2]))


KINDS = {
    "half": torch.randn(3, 4).half(),
    "brain": torch.randn(5).bfloat16(),
    "single": torch.randn(2, 1, 3),
    "double": torch.randn(1).double(),
    "scalar": torch.tensor(2.5),
    "turned": torch.randn(4, 3).T,
    "none": torch.empty(0, 3),
}


def test_written_files_open_with_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    kinds = {name: tensor.to("meta") for name, tensor in KINDS.items()}
    write_weights(path, kinds, iter(KINDS.values()))
    read = load_file(path)
    assert {name: tensor.dtype for name, tensor in read.items()} == {name: t.dtype for name, t in KINDS.items()}
    assert all(torch.equal(read[name], KINDS[name]) and read[name].shape == KINDS[name].shape for name in KINDS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}  # diffusers asks for it
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """What has been taken from the iterator is in the file before the next is asked for."""
    path, tensor = tmp_path / "a.safetensors", torch.randn(1 << 20)

    def tensors() -> Any:
        for k in range(3):
            assert k == 0 or path.stat().st_size > k * tensor.nbytes
            yield tensor + k

    write_weights(path, {str(k): tensor.to("meta") for k in range(3)}, tensors())
    assert torch.equal(load_file(path)["2"], tensor + 2)
