"""Editing: an image again under a changed condition, what lies outside the change kept (PITI, appendix B)."""

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
