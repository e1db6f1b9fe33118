"""The LAMB optimizer of the published training."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Lamb(Optimizer):
    r"""Layer-wise adaptive moments (You et al., 2020, arXiv 1904.00962), without bias correction.

    With gradient g, for each parameter tensor p:

    .. math::
        m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) g^2, \quad
        u = m / (\sqrt v + \epsilon) + \lambda p

        p = p - lr \cdot \min(\lVert p \rVert, 10) / \lVert u \rVert \cdot u

    where the ratio is 1 if either norm is 0. The published code has the same bound and no bias correction.

    Args:
        params: parameters or groups of them.
        lr, betas, eps: as in the formula.
        weight_decay: :math:`\lambda`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; ``closure``, if given, computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(parameter.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = mean / square.sqrt().add_(group["eps"])
                update.add_(parameter, alpha=group["weight_decay"])
                weight_norm, update_norm = parameter.norm().clamp(max=10), update.norm()
                ratio = torch.where(
                    (weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, torch.ones_like(weight_norm)
                )
                parameter.sub_(update * (group["lr"] * ratio))
        return loss
