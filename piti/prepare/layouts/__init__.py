"""The layouts of downloaded data sets."""

from piti.prepare.layouts.ade20k import Ade20k, SceneParse, ade20k
from piti.prepare.layouts.base import Entry, Examined, Fault, Layout, Listing
from piti.prepare.layouts.cityscapes import Cityscapes
from piti.prepare.layouts.coco_stuff import CocoStuff
from piti.prepare.layouts.diode import Diode
from piti.prepare.layouts.plain import PlainFolder

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
