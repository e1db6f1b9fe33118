"""Trainings that several processes share, for tests/test_processes.py: many in one start, which takes long.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/sharing.py runs.json
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drhard import processes

Step = dict[str, Any]


def break_off(whole: Path, folder: Path, step: int) -> None:
    """Make ``folder`` what a training would have left that was killed after ``step``."""
    shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(whole / "training.json", folder)


def train(arguments: Sequence[object], trace: Path) -> None:
    """Run star/train.py in this process. Write the loss of each batch and the gradient of each update to ``trace``."""
    from drhard.trainer import StaticTrainer

    import pytest
    import torch
    from helpers import given

    losses, gradients = [], []
    compute_loss, sum_gradients = StaticTrainer.compute_loss, processes.sum_gradients

    def noted_loss(self: StaticTrainer, *arguments: Any, **options: Any) -> Any:
        loss = compute_loss(self, *arguments, **options)
        losses.append(loss.item())
        return loss

    def noted_gradients(parameters: Any) -> None:
        parameters = list(parameters)
        sum_gradients(parameters)
        gradients.append(torch.cat([parameter.grad.reshape(-1) for parameter in parameters]))

    with given("star/train.py", *arguments) as script, pytest.MonkeyPatch.context() as patch:
        patch.setattr(StaticTrainer, "compute_loss", noted_loss)
        patch.setattr(processes, "sum_gradients", noted_gradients)
        script.main.__wrapped__()
    if processes.is_first():
        torch.save({"losses": losses, "gradients": gradients}, trace)


def run(step: Step) -> None:
    if "broken" in step:
        whole, folder, at = step["broken"]
        if processes.is_first():
            break_off(Path(whole), Path(folder), at)
        processes.wait_for_all()
    train(step["arguments"], Path(step["trace"]))
    processes.wait_for_all()


if __name__ == "__main__":
    processes.start()
    with processes.one_log():
        for one in json.loads(Path(sys.argv[1]).read_text()):
            run(one)
        processes.leave()
