"""A Linear with a low-rank adapter beside it, of the shape of peft's: ``base_layer``, ``lora_A``, ``lora_B``."""

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """``base_layer(x) + lora_B(lora_A(x))`` with weights that are not at their initial zero."""

    def __init__(self, base_layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.lora_A, self.lora_B = (
            nn.ModuleDict({"default": nn.Linear(a, b, bias=False)})
            for a, b in ((self.in_features, rank), (rank, self.out_features))
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (*self.lora_A.parameters(), *self.lora_B.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    @property
    def weight(self) -> Tensor:
        """Of the base layer alone, as peft says."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Sealed(nn.Module):
    """A projection of which nothing is known from outside, as quantised ones are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)
