"""What computes a translator's network while it is sampled: torch itself, or a compiled engine."""

from piti.engine.choice import ENGINES, Engine, EngineError, TorchEngine, engine_named

__all__ = ["ENGINES", "Engine", "EngineError", "TorchEngine", "engine_named"]
