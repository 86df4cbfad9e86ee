"""Models on disk: folders, weight files, adapters, and released checkpoints both ways."""
