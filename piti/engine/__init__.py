"""Engines that compute a translator's network in sampling: torch, or a compiled engine."""

from piti.engine.choice import ENGINES, Engine, EngineError, TorchEngine, engine_named

__all__ = ["ENGINES", "Engine", "EngineError", "TorchEngine", "engine_named"]
