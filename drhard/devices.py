"""Where the model runs."""

from drhard.errors import InputError

import torch


def model_device(no_cuda: bool = False, gpu: int = 0) -> torch.device:
    """The GPU if there is one and it is not declined, the CPU otherwise. Raises InputError if it is not there."""
    if no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    if not 0 <= gpu < torch.cuda.device_count():
        raise InputError(f"there is no GPU {gpu} for the model; {torch.cuda.device_count()} are seen")
    return torch.device("cuda", gpu)
