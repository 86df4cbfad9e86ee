"""Models on disk: folders, weight files, adapters, and import and export of released checkpoints."""
