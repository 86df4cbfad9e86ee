"""What the user hands in: each condition knows its channels, its files, its null and its picture."""

from piti.conditions.base import CONDITIONS, Condition, ConditionError, condition_from_config
from piti.conditions.mask import ClassTable, MaskCondition
from piti.conditions.nothing import NoCondition

__all__ = [
    "CONDITIONS",
    "ClassTable",
    "Condition",
    "ConditionError",
    "MaskCondition",
    "NoCondition",
    "condition_from_config",
]
