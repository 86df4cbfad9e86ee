"""Foundations: errors, specs, seeds, files, images, processes."""
