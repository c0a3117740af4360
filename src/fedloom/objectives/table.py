"""Every objective: its settings' class, and how it is made from them."""

from fedloom.objectives.base import Objective
from fedloom.objectives.classify import Classify
from fedloom.objectives.config import ClassifyConfig, DpoConfig, KtoConfig, ObjectiveConfig, SftConfig
from fedloom.objectives.kto import Kto
from fedloom.objectives.preference import Preference
from fedloom.objectives.sft import Sft


def build(config: ObjectiveConfig, max_length: int | None = None) -> Objective:
    """The objective the recipe names; no text it makes of several is longer than `max_length` tokens."""
    match config:
        case SftConfig():
            return Sft()
        case ClassifyConfig():
            return Classify()
        case DpoConfig():
            return Preference(config)
        case KtoConfig():
            return Kto(config, max_length)
