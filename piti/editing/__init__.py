"""Image editing: regenerate an image under a changed condition, and keep what lies outside the change (PITI, appendix
B)."""

from piti.editing.edit import edit, edit_prepared, prepare_edit
from piti.editing.options import STEPS, UPSAMPLER_STEPS, VARIETY, Edited, EditSettings, check_edits
from piti.editing.regions import EditError
from piti.editing.run import BATCH, EditInput, EditRun

__all__ = [
    "BATCH",
    "STEPS",
    "UPSAMPLER_STEPS",
    "VARIETY",
    "EditError",
    "EditInput",
    "EditRun",
    "EditSettings",
    "Edited",
    "check_edits",
    "edit",
    "edit_prepared",
    "prepare_edit",
]
