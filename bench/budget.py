"""The paper's sweep: 16 tied L1 dictionaries, one a value of alpha, d_in 512, ratio 2, over ten million rows.

    python bench/budget.py [--steps 300] [--rows 10000000] [--batch 2048]

Synthetic rows from memory; ``steps`` steps are timed after as many of warming up and scaled to all rows. Beside ours
an ensemble as the paper's code has it: the 16 stacked, their losses under one ``vmap``, in float32 and under autocast.
Peers train the 16 one after the other, where they can be imported; nobody else has tied weights, theirs are not tied.
"""

import argparse
import time
import warnings

import torch
from torch import Tensor
from train import Step, batches, dictionary_learning, saelens

from monolex.train_config import TrainConfig
from monolex.training.members import members
from monolex.training.sweep import Trainer

D_IN, RATIO, MEMBERS = 512, 2, 16
ALPHAS = tuple(10 ** (-4 + 2 * number / (MEMBERS - 1)) for number in range(MEMBERS))
"""The paper's 16 values, evenly from 1e-4 to 1e-2 in the logarithm."""


def ensemble(data: list[Tensor], *, autocast: bool) -> Step:
    """Tied autoencoders of all alphas, stacked: a vmapped loss, and one Adam over the stacked weights."""
    d_sae = D_IN * RATIO
    weights = torch.nn.init.xavier_uniform_(torch.empty(d_sae, D_IN)).repeat(MEMBERS, 1, 1).requires_grad_()
    bias, alphas = torch.zeros(MEMBERS, d_sae, requires_grad=True), torch.tensor(ALPHAS)
    adam = torch.optim.Adam([weights, bias], lr=1e-3, fused=True)

    def loss(rows: Tensor, shift: Tensor, alpha: Tensor, x: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(rows, dim=1)
        codes = (x @ unit.T + shift).relu()
        return (x - codes @ unit).square().mean() + alpha * codes.sum(1).mean()

    of_all = torch.func.vmap(loss, in_dims=(0, 0, 0, None))

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            of_all(weights, bias, alphas, data[number % 4]).sum().backward()
        adam.step()
        adam.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=2048)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    total, data = options.rows // options.batch, batches(D_IN, D_IN * RATIO, options.batch)
    config = TrainConfig(
        kinds=("tied",), alphas=ALPHAS, ratios=(RATIO,), batch_size=options.batch, steps=total, preprocess="scale"
    )
    trainer = Trainer(members(config, {"site": D_IN}), config, total)
    for number in range(options.steps):
        trainer.step({"site": data[number % 4]})
    trainer.metrics()
    began = time.perf_counter()
    for number in range(options.steps):
        trainer.step({"site": data[number % 4]})
    spent = (time.perf_counter() - began) / options.steps
    l0 = [row["l0"] for row in trainer.metrics()]
    print(f"monolex: {1000 * spent:.0f} ms a step of {MEMBERS} members, {spent * total / 60:.1f} minutes in all")
    print(f"L0 of the members by then: {', '.join(f'{value:.0f}' for value in l0)}")
    for autocast in (True, False):
        step = ensemble(data, autocast=autocast)
        step(0)
        began = time.perf_counter()
        for number in range(max(options.steps // 6, 2)):
            step(number)
        each = (time.perf_counter() - began) / max(options.steps // 6, 2)
        said = "autocast" if autocast else "float32"
        print(
            f"vmapped, {said}: {1000 * each:.0f} ms a step, {each * total / 60:.0f} minutes, {each / spent:.1f} times"
        )
    peers = {
        "SAELens, autocast": lambda: saelens("untied", data, D_IN * RATIO, 1, autocast=True),
        "SAELens, defaults": lambda: saelens("untied", data, D_IN * RATIO, 1, autocast=False),
        "dictionary_learning, defaults": lambda: dictionary_learning("untied", data, D_IN * RATIO, 1),
    }
    for name, make in peers.items():
        try:
            step = make()
        except ImportError as error:
            print(f"{name}: not timed ({error})")
            continue
        step(0)
        began = time.perf_counter()
        for number in range(options.steps // 3):
            step(number)
        alone = (time.perf_counter() - began) / (options.steps // 3)
        ratio = alone * MEMBERS / spent
        print(
            f"{name}: {1000 * alone:.0f} ms a step of one, "
            f"{alone * total * MEMBERS / 60:.0f} minutes, {ratio:.1f} times"
        )


if __name__ == "__main__":
    main()
