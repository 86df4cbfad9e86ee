from __future__ import annotations

import multiprocessing
import pickle
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from piti.conditions import ClassTable, MaskCondition
from piti.core.images import to_pil, to_tensor
from piti.core.system import ending_signals
from piti.data import FolderSpec, PairedFolder
from piti.data import batches as batching
from piti.data.batches import BatchStream, LowRes, TrainingBatch, loader
from piti.data.degrade import DegradationSpec, downsample
from piti.data.problems import DataError

COUNT = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    draw = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir()
    for k in range(COUNT):
        Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / f"images/{k}.png")
        Image.fromarray(draw.integers(0, 2, (12, 16), dtype=np.uint8)).save(root / f"labels/{k}.png")
    table = ClassTable(names=("a", "b"), ids=(0, 1), colours=((1, 1, 1), (2, 2, 2)), reading="ids")
    return PairedFolder(FolderSpec(root=root, size=8), MaskCondition(table))


def assert_equal(one: TrainingBatch, other: TrainingBatch) -> None:
    assert one.keys == other.keys
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.condition, other.condition)


def test_shapes(folder):
    batch = BatchStream(folder, 3, seed=0)[0]
    assert batch.image.shape == (3, 3, 8, 8)
    assert batch.condition.shape == (3, 1, 8, 8)
    assert batch.condition.dtype == torch.uint8
    assert len(batch.keys) == 3


@pytest.mark.parametrize(("batch_size", "world"), [(3, 1), (4, 2), (1, 3), (16, 2)])
def test_every_epoch_has_each_pair_once_over_all_ranks(folder, batch_size, world):
    """Also where the batches of a step straddle epochs, or hold more than one."""
    epochs = 4
    steps = -(-epochs * COUNT // (batch_size * world))
    streams = [BatchStream(folder, batch_size, 5, rank, world) for rank in range(world)]
    keys = [key for step in range(steps) for stream in streams for key in stream[step].keys]
    for epoch in range(epochs):
        part = keys[epoch * COUNT : (epoch + 1) * COUNT]
        assert Counter(part) == {str(k): 1 for k in range(COUNT)}
    assert keys[:COUNT] != keys[COUNT : 2 * COUNT]


def test_a_batch_depends_on_seed_step_and_rank_alone(folder):
    """Whatever was asked for before, in whatever order: so a resumed run is the uninterrupted one."""
    uninterrupted = BatchStream(folder, 4, seed=1)
    batches = [uninterrupted[step] for step in range(12)]
    for step in (11, 2, 7, 2):
        assert_equal(BatchStream(folder, 4, seed=1)[step], batches[step])
        assert_equal(uninterrupted[step], batches[step])


def test_the_sequence_of_samples_does_not_depend_on_the_number_of_ranks(folder):
    one = BatchStream(folder, 6, seed=2)[1]
    parts = [BatchStream(folder, 3, 2, rank, 2)[1] for rank in range(2)]
    assert one.keys == parts[0].keys + parts[1].keys
    assert torch.equal(one.image, torch.cat([part.image for part in parts]))


def test_seeds_differ_in_order_and_in_crops(folder):
    one, other = (BatchStream(folder, COUNT, seed)[0] for seed in (0, 1))
    assert one.keys != other.keys
    by_key = [dict(zip(batch.keys, batch.image, strict=True)) for batch in (one, other)]
    assert not all(torch.equal(by_key[0][key], by_key[1][key]) for key in one.keys)


def test_the_same_picture_is_cropped_anew_every_epoch(folder):
    stream = BatchStream(folder, COUNT, seed=0)
    crops = set()
    for epoch in range(40):
        batch = stream[epoch]
        crops.add(batch.image[batch.keys.index("0")].numpy().tobytes())
    assert len(crops) > 25


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_streams_batches_in_order(folder, workers):
    stream = BatchStream(folder, 4, seed=3)
    batches = list(loader(stream, 5, 9, workers))
    assert len(batches) == 4
    for step, batch in enumerate(batches, start=5):
        assert isinstance(batch, TrainingBatch)
        assert_equal(batch, stream[step])


def test_a_loaders_workers_need_not_be_forked(folder, monkeypatch):
    """macOS and Windows begin them afresh: with a copy of the stream, and without the owner's answer to Ctrl-C."""
    stream = BatchStream(folder, 4, seed=3)
    assert_equal(pickle.loads(pickle.dumps(batching._ErrorsReturned(stream)))[0], stream[0])
    answers: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", answers.__setitem__)
    monkeypatch.delattr(signal, "sigwaitinfo", raising=False)  # this process stays as it is
    deaf = dict.fromkeys({signal.SIGINT, *ending_signals()} - {signal.SIGTERM}, signal.SIG_IGN)
    for method, expected in (("fork", {}), ("spawn", deaf)):
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda method=method: method)
        batching._begin_worker(0)
        assert answers == expected


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent a signal")
def test_a_loaders_worker_ends_by_its_owners_word_alone(folder):
    batches = loader(BatchStream(folder, 4, seed=3), 0, 50, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(signal.SIGTERM)})"], check=True)
    assert len(list(batches)) == 49
    batches = loader(BatchStream(folder, 4, seed=3), 0, 50, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "batch size = 0"), ((1, 0, 2, 2), "rank = 2 of 2"), ((1, 0, -1, 2), "rank = -1")],
)
def test_impossible_settings(folder, arguments, message):
    with pytest.raises(DataError, match=message):
        BatchStream(folder, *arguments)


@pytest.mark.parametrize("degradation", [None, DegradationSpec()])
def test_small_images_for_an_upsampler(folder, degradation):
    stream = BatchStream(folder, 3, seed=0, low_res=LowRes(2, degradation))
    batch, again = stream[4], stream[4]
    assert batch.low_res is not None
    assert again.low_res is not None
    assert batch.low_res.shape == (3, 3, 4, 4)
    assert torch.equal(batch.low_res, again.low_res)
    assert torch.equal(batch.image, BatchStream(folder, 3, seed=0)[4].image)
    assert torch.equal(to_tensor(to_pil(batch.low_res[0])), batch.low_res[0])  # 8 bits
    clean = downsample(batch.image, 2)
    assert torch.equal(batch.low_res, clean) == (degradation is None)
    assert (batch.low_res - clean).abs().mean() < 0.5
    assert batch.to("cpu").low_res is not None
