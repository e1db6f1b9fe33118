"""LAMB against a plain NumPy version of the formula; which parameters decay."""

from typing import Any

from drhard.lamb import Lamb
from drhard.training import group_parameters

import numpy as np
import pytest
import torch
from helpers import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

State = tuple[np.ndarray, np.ndarray, np.ndarray]  # a parameter, its m and its v


def plain_step(state: State, gradient: np.ndarray, lr: float, b1: float, b2: float, eps: float, decay: float) -> State:
    """One step of the formula in float64."""
    value, m, v = state
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * gradient**2
    u = m / (np.sqrt(v) + eps) + decay * value
    weight_norm, update_norm = min(np.sqrt((value**2).sum()), 10), np.sqrt((u**2).sum())
    ratio = weight_norm / update_norm if weight_norm and update_norm else 1.0
    return value - lr * ratio * u, m, v


STARTS = {
    "matrix": np.random.default_rng(1).normal(size=(4, 3)),
    "large": np.random.default_rng(2).normal(size=(6, 6)) * 30,  # a norm far over 10
    "zero": np.zeros(5),
    "scalar": np.array(0.3),
}


@pytest.mark.parametrize("lr, b1, b2, eps, decay", [(0.1, 0.9, 0.999, 1e-8, 0.01), (0.02, 0.5, 0.8, 1e-2, 0.0)])
def test_steps_are_the_formula(lr: float, b1: float, b2: float, eps: float, decay: float) -> None:
    assert np.sqrt((STARTS["large"] ** 2).sum()) > 10
    random = np.random.default_rng(0)
    parameters = {name: torch.nn.Parameter(torch.tensor(start)) for name, start in STARTS.items()}
    optimizer = Lamb(parameters.values(), lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
    plain = {name: (start, np.zeros_like(start), np.zeros_like(start)) for name, start in STARTS.items()}
    for _ in range(6):
        for name, parameter in parameters.items():
            gradient = random.normal(size=parameter.shape) * random.choice([1e-3, 1, 100])
            parameter.grad = torch.tensor(gradient)
            plain[name] = plain_step(plain[name], gradient, lr, b1, b2, eps, decay)
        optimizer.step()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.detach().numpy(), plain[name][0], rtol=1e-9, atol=1e-12, err_msg=name)


def test_without_gradient_and_without_weight_nothing_moves() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    untouched = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Lamb([parameter, untouched], lr=1.0, weight_decay=0.1).step()
    assert parameter.tolist() == [0, 0, 0]
    assert untouched.tolist() == [1, 1, 1]  # no gradient: not even decayed


def test_zero_gradient_still_decays() -> None:
    """u = wd p, so the step is lr |p| / |wd p| wd p = lr p."""
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.zeros(2)
    Lamb([parameter], lr=0.25, weight_decay=0.01).step()
    np.testing.assert_allclose(parameter.detach().numpy(), [2.25, 3.0], rtol=1e-5)


def test_state_can_be_saved_and_loaded() -> None:
    def trained(reload_after: int | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        parameter = torch.nn.Parameter(torch.ones(4))
        optimizer = Lamb([parameter], lr=0.1, weight_decay=0.01)
        for step in range(4):
            if step == reload_after:
                state = optimizer.state_dict()
                optimizer = Lamb([parameter], lr=9.0)
                optimizer.load_state_dict(state)
            parameter.grad = torch.randn(4, generator=generator)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(trained(reload_after=2), trained(reload_after=None))


def test_closure_gives_the_loss() -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = Lamb([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert parameter.item() < 2


def test_biases_and_layer_norms_inside_roberta_do_not_decay() -> None:
    model = tiny_model()
    model.roberta.embeddings.word_embeddings.weight.requires_grad_(False)
    groups = group_parameters(model, 0.05)
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    decays = {name: decay_of.pop(id(parameter), None) for name, parameter in model.named_parameters()}
    assert not decay_of
    assert decays["roberta.embeddings.word_embeddings.weight"] is None  # frozen: with no optimizer
    assert decays["norm.weight"] == 0.05  # published: its name has no "LayerNorm.weight"
    assert decays["norm.bias"] == 0
    assert decays["embeddingHead.weight"] == 0.05
    assert decays["roberta.embeddings.LayerNorm.weight"] == 0
    assert decays["roberta.encoder.layer.1.attention.output.LayerNorm.weight"] == 0
    assert decays["roberta.encoder.layer.1.attention.self.query.weight"] == 0.05
    assert decays["roberta.encoder.layer.1.attention.self.query.bias"] == 0
    # LayerNorm of the embeddings 2; each layer six biases and two LayerNorms of 2; biases of head and norm.
    assert sum(decay == 0 for decay in decays.values()) == 2 + 2 * (6 + 2 * 2) + 2


class CountedOperations(TorchDispatchMode):
    """Counts the operations of torch. A ``_foreach`` operation on many tensors counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def one_by_one(start: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """The published order of operations, in float32, for one tensor."""
    value, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for gradient in gradients:
        m.mul_(0.9).add_(gradient, alpha=0.1)
        v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        update = m / v.sqrt().add(1e-8)
        update.add_(value, alpha=0.01)
        weight_norm, update_norm = value.norm().clamp(0, 10), update.norm()
        ratio = 1.0 if weight_norm == 0 or update_norm == 0 else float(weight_norm / update_norm)
        value.add_(update, alpha=-1e-2 * ratio)
    return value


def test_many_tensors_step_as_each_does_alone_with_the_operations_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7,), (30, 20), (), (400, 3), (1, 1)] * 8
    starts = [torch.randn(shape, generator=generator) * 10 ** (place % 4 - 2) for place, shape in enumerate(shapes)]
    starts[3].zero_()
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4)]
    counts = {}
    for many in (1, len(shapes)):
        parameters = [torch.nn.Parameter(start.clone()) for start in starts[:many]]
        optimizer = Lamb(parameters, lr=1e-2, weight_decay=0.01)
        for of_step in gradients:
            for parameter, gradient in zip(parameters, of_step, strict=False):
                parameter.grad = gradient.clone()
            with CountedOperations() as operations:
                optimizer.step()
        counts[many] = operations.count
        for place, parameter in enumerate(parameters):
            expected = one_by_one(starts[place], [of_step[place] for of_step in gradients])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
    assert counts[len(shapes)] == counts[1] < 25
