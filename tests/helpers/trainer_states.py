"""States of trainers, written and read back."""

from pathlib import Path

from torch import Tensor

from monolex.training import state
from monolex.training.sweep import Trainer


def saved(trainer: Trainer, folder: Path) -> state.SavedState:
    state.write(folder, "request", trainer.done, trainer.state())
    found = state.read(folder)
    assert found is not None and found.step == trainer.done
    return found


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: part.tensor for name, part in trainer.state().items()}
