"""Pretraining-based image-to-image translation (PITI, arXiv 2205.12952)."""

__version__ = "0.1.0"
