"""What both trainings share: which parameters decay, and whether a folder holds this very training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drhard.errors import InputError

from torch import nn

NO_DECAY = ("bias", "LayerNorm.weight")  # published; so the weight of the head's norm does decay


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of ``model`` in two groups for an optimizer, with and without weight decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = [parameter for name, parameter in named if any(part in name for part in NO_DECAY)]
    decayed = [parameter for name, parameter in named if not any(part in name for part in NO_DECAY)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def check_record(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any], way_out: str) -> None:
    """Raise InputError, ending with ``way_out``, unless the training in ``folder`` was begun with ``expected``.

    Args:
        found: what it was begun with, as it wrote it down.
    """
    for name, value in expected.items():
        if found.get(name) != value:
            raise InputError(
                f"{folder}: the training there was begun with {name} {found.get(name)}, not {value}; {way_out}"
            )
