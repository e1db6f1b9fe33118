"""What both trainings do with parameters: which ones decay."""

from typing import Any

from torch import nn

NO_DECAY = ("bias", "LayerNorm.weight")  # published; so the weight of the head's norm does decay


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of ``model`` in two groups for an optimizer, with and without weight decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = [parameter for name, parameter in named if any(part in name for part in NO_DECAY)]
    decayed = [parameter for name, parameter in named if not any(part in name for part in NO_DECAY)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
