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

    where the ratio is 1 if either norm is 0. The published code has the same bound and no bias correction. A step needs
    memory for two more tensors as large as each parameter.

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
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        """Step all tensors of a group together: a GPU updates a bias in less time than it takes to launch a kernel."""
        weights = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not weights:
            return
        gradients = [parameter.grad for parameter in weights]
        states = [self._state_of(parameter) for parameter in weights]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, group["eps"])
        updates = torch._foreach_mul(weights, group["weight_decay"])
        torch._foreach_addcdiv_(updates, means, divisors)
        weight_norms = torch.stack(torch._foreach_norm(weights)).clamp(max=10)
        update_norms = torch.stack(torch._foreach_norm(updates))
        both = (weight_norms > 0) & (update_norms > 0)
        ratios = torch.where(both, weight_norms / update_norms, torch.ones_like(weight_norms))
        torch._foreach_addcmul_(weights, updates, (ratios * group["lr"]).unbind(), value=-1)

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
