"""Regression tests of outputs: recorded pixels, metadata, losses and a run.

Everything goes through the command line and the HTTP interface, so these tests do not depend on internal modules. Tiny
networks with weights derived from their tensors' names are always compared. Bundled models are compared as long as
their weights are the recorded ones; otherwise their tests are skipped. A recording contains the SHA-256 of the exact
values under a fingerprint of the machine (CPU, PyTorch, Pillow, one thread), where they must be bit-identical, and a
small sample of them, which other machines must match within a tolerance. After an intended change of images or losses,
or new bundled weights, record failed or skipped tests again:

    PITI_RECORD=1 python -m pytest tests/unchanged -k street -rs

and commit the changes in `recorded/`. PNGs and the run of earlier versions are in `written/`; they are recreated only
with PITI_RECORD=written, since they are to be old.
"""
