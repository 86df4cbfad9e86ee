"""What users get is what they got before: recorded pixels, metadata, losses and a run, and the same code paths again.

Everything goes through the command line and the HTTP interface, so these tests hold whatever becomes of the modules
behind them. Tiny networks whose weights follow from their tensors' names are always compared. Bundled models are
compared while their weights are those that were recorded; otherwise their tests skip, and say so.

A recording holds the SHA-256 of the exact values under a fingerprint of the machine (CPU, PyTorch, Pillow, one thread),
where they must be equal to the bit, and a small sample of them, which any other machine must meet within a tolerance.

After a change that is meant to change images or losses, or new bundled weights, record again what failed or skipped:

    PITI_RECORD=1 python -m pytest tests/unchanged -k street -rs

and commit what changed in `recorded/`. PNGs and the run that stand for "written before" are in `written/`; they are
made anew only with PITI_RECORD=written, since their age is their use.
"""
