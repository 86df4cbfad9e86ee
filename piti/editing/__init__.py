"""Image editing: regenerate an image under a changed condition, and keep what lies outside the change (PITI, appendix
B)."""

from piti.editing.edit import EditInput, edit, edit_prepared, prepare_edit
from piti.editing.options import STEPS, UPSAMPLER_STEPS, VARIETY, Edited, EditSettings, check_edits
from piti.editing.regions import EditError

__all__ = [
    "STEPS",
    "UPSAMPLER_STEPS",
    "VARIETY",
    "EditError",
    "EditInput",
    "EditSettings",
    "Edited",
    "check_edits",
    "edit",
    "edit_prepared",
    "prepare_edit",
]
