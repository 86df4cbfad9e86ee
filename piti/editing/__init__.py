"""Editing: an image again under a changed condition, what lies outside the change kept (PITI, appendix B)."""

from piti.editing.regions import EditError
from piti.editing.resynthesis import edit
from piti.editing.settings import UPSAMPLER_STEPS, VARIETY, Edited, EditSettings

__all__ = ["UPSAMPLER_STEPS", "VARIETY", "EditError", "EditSettings", "Edited", "edit"]
