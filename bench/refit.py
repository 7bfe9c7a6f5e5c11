"""Is it the features or their codes: FVU with a dictionary's own codes, and with codes solved for anew.

    python bench/refit.py RUN SITE DICTIONARY… [--rows 600]

For each dictionary, on held-out rows drawn at random: its L0 and FVU; with one factor for all codes; with codes of the
same active features by least squares, row by row; and of the run's PCA with as many of a row's largest codes.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from monolex import runtime
from monolex.activations.reader import Reader
from monolex.lexicon import open_run


def solved(rows: Tensor, codes: Tensor, decoder: Tensor) -> Tensor:
    """Squared error of every row with codes of its active features by least squares."""
    errors = []
    for row, code in zip(rows, codes, strict=True):
        directions = decoder[code != 0].T
        best = torch.linalg.lstsq(directions, row[:, None]).solution
        errors.append((row - (directions @ best)[:, 0]).square().sum())
    return torch.stack(errors)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("site")
    parser.add_argument("dictionaries", nargs="+")
    parser.add_argument("--rows", type=int, default=600)
    asked = parser.parse_args()
    reader = Reader(asked.run / "activations", asked.site, "held_out")
    chosen = torch.randperm(reader.n_rows, generator=runtime.generator("refit"))[: asked.rows]
    rows = reader.gather(chosen.sort().values).float()
    spread, dictionaries = (rows - rows.mean(0)).square().sum(), open_run(asked.run).site(asked.site)
    pca = dictionaries.dictionary("pca").weights
    for name in asked.dictionaries:
        dictionary = dictionaries.dictionary(name).weights
        codes = dictionary.encode(rows)
        silent = dictionary.decode(torch.zeros_like(codes[:1]))
        target, written = rows - silent, dictionary.decode(codes) - silent
        l0, factor = (codes != 0).sum(1).float().mean(), (target * written).sum() / written.square().sum()
        axes = pca.encode(rows)
        largest = torch.zeros_like(axes).scatter(1, axes.abs().topk(round(float(l0)), 1).indices, 1.0)
        fvu = [
            (target - written).square().sum(), (target - factor * written).square().sum(),
            solved(target, codes, dictionary.W_dec).sum(), (rows - pca.decode(axes * largest)).square().sum(),
        ]  # fmt: skip
        own, scaled, anew, axis = (float(error / spread) for error in fvu)
        print(
            f"{name}: L0 {l0:.1f}, FVU {own:.4f}; one factor ({factor:.3f}) {scaled:.4f}; codes solved for anew "
            f"{anew:.4f}; PCA with as many {axis:.4f}"
        )


if __name__ == "__main__":
    main()
