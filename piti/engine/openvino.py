"""OpenVINO: steps converted once, stored in the user's cache, and compiled for all shapes.

The engine uses bfloat16 if the processor is faster with it, unless exact results are needed; else float32.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from piti.core.compiled import unwrapped
from piti.core.errors import option
from piti.core.files import OutputError, file_hash, whole_folder
from piti.engine.choice import EngineError
from piti.engine.graph import StepGraph, dynamic_shapes, inputs_of, time_embedding
from piti.models import Tokens
from piti.models.casting import state_of, under_adapters
from piti.models.translator import NetworkStep, Translator

log = logging.getLogger(__name__)

_GRAPH = "1"
"""Version of `StepGraph`; a new one invalidates cached graphs."""
_MODEL, _WEIGHTS, _ABOUT = "step.xml", "step.bin", "about.json"


def cache_folder() -> Path:
    """Cache folder of converted networks: `piti/openvino` in `$XDG_CACHE_HOME`, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "piti" / "openvino"


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def computes_bfloat16() -> bool:
    """Whether this processor supports bfloat16."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """Steps of translators, compiled at their first use. half: use bfloat16, else float32."""

    name = "openvino"

    def __init__(self, half: bool) -> None:
        self.half = half
        self._steps: WeakKeyDictionary[Translator, tuple[tuple[int, bytes], CompiledStep]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenVinoEngine, (self.half,)  # a copy belongs to other networks, here or in another process

    def step(self, translator: Translator) -> NetworkStep | None:
        """The step compiled with the translator's current weights, ignoring `torch.compile`. None, for torch, with peft
        adapters, which are switched without changing weights."""
        translator = unwrapped(translator)
        if under_adapters(translator):
            return None
        state = state_of(translator)
        known = self._steps.get(translator)
        if known is None or known[0] != state:
            known = (state, CompiledStep(translator, self.half))
            self._steps[translator] = known
        return known[1]

    def ready(self, translator: Translator) -> bool:
        """Whether the translator is already converted."""
        translator = unwrapped(translator)
        known = self._steps.get(translator)
        return (known is not None and known[1].compiled) or _is_whole(cache_folder() / _key(translator))

    def described(self) -> str:
        """Such as "openvino 2026.4 bf16"."""
        import openvino

        version = openvino.get_version().split("-")[0]
        return f"openvino {version} {'bf16' if self.half else 'f32'}"


class CompiledStep:
    """A `NetworkStep` of a translator, for every batch and size. One call runs at a time."""

    def __init__(self, translator: Translator, half: bool) -> None:
        self._half = half
        self._alive = ref(translator)  # held by the caller; else the engine would keep every network
        self._request: Any = None
        self._lock = threading.Lock()

    @property
    def compiled(self) -> bool:
        """Whether it was already called."""
        return self._request is not None

    def __call__(self, seen: Tensor, t: Tensor, tokens: Tokens) -> Tensor:
        """As `Translator.step`. Raises EngineError for tensors that are not on the CPU."""
        translator = self._alive()
        assert translator is not None
        if seen.device.type != "cpu":
            raise EngineError(
                f"openvino runs only on CPUs, but the model is on {seen.device}",
                remedy=f"move it to the CPU, or give {option('engine')} torch",
            )
        embedding = time_embedding(translator, seen, t, tokens)
        inputs = [value.detach().float().contiguous() for value in inputs_of(translator, seen, embedding, tokens)]
        with self._lock:
            if self._request is None:
                self._request = self._compiled(translator, inputs, tokens)
            made = self._request.infer([value.numpy() for value in inputs], share_inputs=True)[0]
            return torch.from_numpy(made.copy()).to(seen.dtype)

    def _compiled(self, translator: Translator, inputs: list[Tensor], tokens: Tokens) -> Any:
        key = _key(translator)
        model = _from_cache(key) or _converted(translator, key, inputs, tokens)
        model.reshape(dict(enumerate(dynamic_shapes(inputs))))
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._half else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "SNIPPETS_MODE": "DISABLE",  # its fused subgraphs crash at some shapes
        }
        return _core().compile_model(model, "CPU", properties).create_infer_request()


def _key(translator: Translator) -> str:
    """Cache key of a converted step."""
    import openvino

    digest = hashlib.sha256(f"{_GRAPH} {openvino.get_version()} {torch.__version__}".encode())
    config = {key: value for key, value in translator.config.items() if not key.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(translator.state_dict().items()):
        if not name.startswith("encoder."):
            digest.update(name.encode())
            digest.update(value.detach().float().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:32]


def _converted(translator: Translator, key: str, inputs: list[Tensor], tokens: Tokens) -> Any:
    """Convert the step to an OpenVINO model, and store it in the cache if that is writable."""
    import openvino

    log.info("converting the %s for openvino, once", translator.role)
    maps = 0 if translator.head is None else len(tokens.maps or ())
    graph = StepGraph(translator, len(tokens.residuals or ()), maps)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns about shapes that do not occur
        model = openvino.convert_model(graph, example_input=tuple(inputs))
    try:
        with whole_folder(cache_folder() / key, overwrite=True, ours=lambda _: True) as folder:
            openvino.save_model(model, folder / _MODEL, compress_to_fp16=False)
            about = {name: file_hash(folder / name) for name in (_MODEL, _WEIGHTS)}
            (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    except OutputError as error:
        log.warning("the converted network cannot be cached: %s; %s", error.problem, _elsewhere())
    except RuntimeError as error:  # raised by OpenVINO for a full disk
        log.warning("the converted network cannot be cached: writing failed (%s); %s", error, _elsewhere())
    return model


def _elsewhere() -> str:
    return f"check {cache_folder()} and its free space, or set XDG_CACHE_HOME to another folder"


def _from_cache(key: str) -> Any:
    """A cached model; None if it is missing or damaged."""
    folder = cache_folder() / key
    return _core().read_model(folder / _MODEL) if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a cache folder is complete and unchanged."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return all(about[name] == file_hash(folder / name) for name in (_MODEL, _WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError):
        return False
