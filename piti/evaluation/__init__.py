"""Metrics of generated images: distances to real ones, diversity, agreement with their conditions."""
