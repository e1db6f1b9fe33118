"""Matrix products by oneDNN, which uses the processors of all makers.

Of the products that torch and NumPy come with, MKL's is slow on AMD's processors and OpenBLAS's is slow for matrices of
few rows. oneDNN is in torch too, where float32 reaches it by a convolution alone: rows are the pixels of an image, the
matrix they are multiplied by is its filters. Where torch has no oneDNN the same call gives the same numbers.
"""

import torch
from torch import nn


def as_filters(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix (N, K) as the filters (N, K, 1, 1) of a convolution; it is not copied."""
    return matrix[:, :, None, None].contiguous(memory_format=torch.channels_last)


def products(rows: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``rows @ matrix.T + bias`` (M, N) for rows (M, K) and a matrix (N, K) that is given as filters."""
    image = rows[None, :, None, :].permute(0, 3, 1, 2)  # (1, K, M, 1), what belongs to a pixel side by side
    return nn.functional.conv2d(image, filters, bias)[0, :, :, 0].T


class Linear(nn.Module):
    """``nn.Linear`` for inference, with the same parameters."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return (..., N) for inputs (..., K)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = products(rows, as_filters(self.linear.weight), self.linear.bias)
        return outputs.reshape(*inputs.shape[:-1], -1)


def with_linear_layers(model: nn.Module) -> nn.Module:
    """Put :class:`Linear` in the place of each linear layer of ``model``, which is changed; return it."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, Linear(child))
        else:
            with_linear_layers(child)
    return model
