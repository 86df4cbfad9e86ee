"""Data sets in the layouts in which they are downloaded."""

from piti.data.layouts.ade20k import Ade20k, SceneParse, ade20k
from piti.data.layouts.base import Entry, Examined, Fault, Layout, Listing
from piti.data.layouts.cityscapes import Cityscapes
from piti.data.layouts.coco_stuff import CocoStuff
from piti.data.layouts.diode import Diode
from piti.data.layouts.plain import PlainFolder

__all__ = [
    "Ade20k",
    "Cityscapes",
    "CocoStuff",
    "Diode",
    "Entry",
    "Examined",
    "Fault",
    "Layout",
    "Listing",
    "PlainFolder",
    "SceneParse",
    "ade20k",
]
