"""One step of a model's networks with torch, OpenVINO and ONNX Runtime, alternating in one process.

    python benchmarks/engines.py [--model street] [--samples 4] [--rounds 9]

The base gets the batch of a guided step, twice the samples, and the upsampler one image, as on a CPU. ONNX Runtime runs
the same graph as OpenVINO, exported by torch.onnx, in float32; OpenVINO also in bfloat16 if the processor supports it
well. Seconds are medians; decibels compare a step's output with torch's. Needs `onnxruntime`, `onnx` and `onnxscript`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from piti.engine.graph import StepGraph, inputs_of, time_embedding
from piti.engine.openvino import OpenVinoEngine, computes_bfloat16
from piti.models import Tokens, Translator
from piti.pipelines.cascade import Network
from piti.pipelines.pipeline import PITIPipeline

Step = Callable[[], Tensor]
REST = 0.5  # seconds for the previous engine's threads to become idle
BLOCK = 4  # steps of an engine per timing


def example(network: Network, rows: int) -> tuple[Tensor, Tensor, Tokens]:
    """Inputs of a step for an empty condition, at the network's training size."""
    translator, generator = network.translator, torch.Generator().manual_seed(0)
    size, small = translator.image_size, translator.low_res
    side = translator.condition_side or size
    tokens = translator.encode(network.condition.null(1, side, side)).picked([0] * rows)
    x_t = torch.randn(rows, *network.space.shape(size, size), generator=generator)
    t = torch.full((rows,), 500)
    low_res = None if small is None else x_t[..., :small, :small]
    return translator.join_low_res(x_t, low_res, t)[0], t, tokens


def by_onnx_runtime(translator: Translator, seen: Tensor, t: Tensor, tokens: Tokens, folder: Path) -> Step:
    """The step's graph, exported for these shapes."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    maps = 0 if translator.head is None else len(tokens.maps or ())
    inputs = inputs_of(translator, seen, time_embedding(translator, seen, t, tokens), tokens)
    names, file = [f"input{k}" for k in range(len(inputs))], folder / f"{translator.role}.onnx"
    graph = StepGraph(translator, len(tokens.residuals or ()), maps).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph holds a tensor that is its own input
        torch.onnx.export(graph, tuple(inputs), file, input_names=names, verbose=False)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def step() -> Tensor:
        embedding = time_embedding(translator, seen, t, tokens)
        values = [value.contiguous().numpy() for value in inputs_of(translator, seen, embedding, tokens)]
        return torch.from_numpy(session.run(None, dict(zip(names, values, strict=True)))[0])

    return step


@torch.no_grad()
def measured(network: Network, rows: int, rounds: int) -> None:
    """Print a line for each engine."""
    translator = network.translator
    seen, t, tokens = example(network, rows)
    halves = [False, True] if computes_bfloat16() else [False]
    engines: dict[str, Step] = {"torch": lambda: translator.step(seen, t, tokens)}
    for half in halves:
        step = OpenVinoEngine(half).step(translator)
        assert step is not None  # as under adapters of peft's
        engines[f"openvino, {'bf16' if half else 'float32'}"] = lambda step=step: step(seen, t, tokens)
    with tempfile.TemporaryDirectory() as folder:
        engines["onnxruntime"] = by_onnx_runtime(translator, seen, t, tokens, Path(folder))
        wanted, seconds = engines["torch"](), {name: list[float]() for name in engines}
        for _ in range(rounds):
            for name, step in engines.items():
                time.sleep(REST)
                step()
                started = time.perf_counter()
                for _ in range(BLOCK):
                    step()
                seconds[name].append((time.perf_counter() - started) / BLOCK)
    for name, step in engines.items():
        error = (step() - wanted).square().mean()
        near = float("inf") if error == 0 else 10 * torch.log10(wanted.square().mean() / error).item()
        ratio = median(seconds["torch"]) / median(seconds[name])
        print(f"{translator.role:10s} {rows} × {translator.image_size} px  {name:20s} "
              f"{median(seconds[name]):.4f} s, {ratio:.2f} times as fast as torch, {near:.0f} dB")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    pipeline = PITIPipeline.from_pretrained(options.model)
    base, upsampler = pipeline.base_network(), pipeline.upsampler_network()
    assert isinstance(base, Network)
    measured(base, 2 * options.samples, options.rounds)
    if upsampler is not None:
        measured(upsampler, 1, options.rounds)


if __name__ == "__main__":
    main()
