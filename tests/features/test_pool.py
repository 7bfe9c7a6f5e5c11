"""Pooling seeds: groups of like features, means, and a dictionary that training takes up."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.document_rows import make
from helpers.tiny_harvests import corpus_of, make_lm, store
from torch import Tensor
from torch.nn.functional import normalize

from monolex.cli import main
from monolex.dictionaries.base import Dictionary, load
from monolex.errors import UserError
from monolex.features.pool import grouped, pool
from monolex.train_config import TrainConfig
from monolex.training.trainer import train


def rows(count: int, d: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def seeds(shared: int = 6, own: int = 4, noise: float = 0.02, count: int = 3) -> list[Dictionary]:
    """Dictionaries that share ``shared`` features, shuffled and blurred, and have ``own`` ones of their own."""
    common, made = rows(shared, 40, 0), []
    for seed in range(1, count + 1):
        directions = torch.cat([common + noise * rows(shared, 40, 10 * seed), rows(own, 40, 10 * seed + 1)])
        order = torch.randperm(shared + own, generator=torch.Generator().manual_seed(seed))
        directions = normalize(directions, dim=1)[order]
        made.append(make(0.5 * directions, directions, b_enc=torch.linspace(-1, 0, shared + own)[order]))
    return made


def test_what_all_share_comes_first_and_is_their_mean():
    dictionaries = seeds()
    pooled = pool(dictionaries)
    assert pooled.seeds == [3] * 6 + [1] * 4
    assert pooled.dictionary.d_sae == 10
    common = rows(6, 40, 0)
    cosines = pooled.dictionary.W_dec[:6] @ common.T
    assert sorted(cosines.argmax(1).tolist()) == list(range(6))
    assert float(cosines.amax(1).min()) > 0.999
    torch.testing.assert_close(pooled.dictionary.W_dec.norm(dim=1), torch.ones(10))
    for group, encoder, bias in zip(
        grouped(dictionaries), pooled.dictionary.W_enc, pooled.dictionary.weights["b_enc"], strict=False
    ):
        members = [(dictionaries[d], i) for d, i in group.members.items()]
        torch.testing.assert_close(encoder, torch.stack([m.W_enc[i] for m, i in members]).mean(0))
        torch.testing.assert_close(bias, torch.stack([m.weights["b_enc"][i] for m, i in members]).mean(0))


def test_every_feature_is_in_one_group_and_no_group_has_two_of_a_seed():
    dictionaries = seeds(shared=8, own=5, noise=0.5, count=4)
    groups = grouped(dictionaries)
    members = [member for group in groups for member in group.members.items()]
    assert sorted(members) == [(d, i) for d in range(4) for i in range(13)]
    sizes = [len(group.members) for group in groups]
    assert sizes == sorted(sizes, reverse=True) and 1 in sizes and max(sizes) > 1


def test_a_chain_of_like_features_is_cut_where_a_seed_would_come_twice():
    """a ~ b ~ c ~ another of a: neighbours in a plane 40 degrees apart, of which no two of one dictionary are one."""

    def at(*degrees: float) -> Dictionary:
        angles = torch.tensor(degrees).deg2rad()
        directions = torch.stack([angles.cos(), angles.sin()], 1)
        return make(directions, directions)

    groups = grouped([at(0, 120), at(40.0, 200), at(80, 250)])
    members = sorted(member for group in groups for member in group.members.items())
    assert members == [(d, i) for d in range(3) for i in range(2)]
    assert {(0, 0), (0, 1)} <= set(members) and len(groups) >= 3


def test_order_of_seeds_and_features_says_nothing():
    dictionaries = seeds(noise=0.3)
    forward, backward = pool(dictionaries), pool(dictionaries[::-1])
    assert forward.seeds == backward.seeds
    stable = sum(seeds > 1 for seeds in forward.seeds)
    cosines = forward.dictionary.W_dec[:stable] @ backward.dictionary.W_dec[:stable].T
    torch.testing.assert_close(cosines.amax(1), torch.ones(stable))


def test_a_dictionary_and_its_shuffled_copy_pool_into_itself():
    (first, *_) = seeds(count=1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(5))
    copy = make(first.W_enc[order], first.W_dec[order], b_enc=first.weights["b_enc"][order])
    pooled = pool([first, copy])
    assert pooled.seeds == [2] * 10
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(pooled.dictionary.reconstruct(x), first.reconstruct(x))


def test_what_does_not_go_together_is_refused():
    first, second, _ = seeds()
    with pytest.raises(UserError, match="1 dictionaries: give two or more"):
        pool([first])
    with pytest.raises(UserError, match=r"differ in d_sae \(10 and 9\)"):
        pool([first, make(second.W_enc[:9], second.W_dec[:9])])
    other = make(second.W_enc, second.W_dec)
    for change in ({"recipe": {"alpha": 0.5}}, {"model_fingerprint": "b"}):
        changed = Dictionary(dataclasses.replace(other.config, **change), other.weights)
        with pytest.raises(UserError, match="pool seeds of one recipe"):
            pool([first, changed])
    same = [Dictionary(dataclasses.replace(d.config, recipe={"seed": 3}), d.weights) for d in (first, second)]
    with pytest.raises(UserError, match=r"seeds are \[3, 3\]"):
        pool(same)
    with pytest.raises(UserError, match="no such order"):
        pool([make(d.W_enc, d.W_dec, kind="matryoshka") for d in (first, second)])
    with pytest.raises(UserError, match="has no seed"):
        pool([make(first.W_enc, kind="pca"), make(second.W_enc, kind="pca")])


@pytest.mark.parametrize("kind", ["batchtopk", "tied", "jumprelu", "gated"])
def test_training_takes_up_what_was_pooled(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store(tmp_path / "acts", make_lm(), corpus_of(tmp_path), sites=("resid_post.0",))
    config = TrainConfig(
        kinds=(kind,), ks=(4,), alphas=(1e-3,), ratios=(1.5,), seeds=(0, 1), steps=12, batch_size=32, preset="modern"
    )  # pyright: ignore[reportArgumentType]
    train(tmp_path / "sweep", tmp_path / "acts", config)
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("resid_post.0/*/config.json"))
    assert main(["pool", str(tmp_path / "pooled"), *map(str, folders)]) == 0
    assert "48 features" in capsys.readouterr().out
    pooled = load(tmp_path / "pooled")
    assert pooled.config.recipe["pooled"] == [0, 1] and pooled.config.site == "resid_post.0"
    if kind == "tied":
        assert torch.equal(pooled.W_enc, pooled.W_dec)
    more = TrainConfig(**{**vars(config), "seeds": (0,), "init": str(tmp_path / "pooled"), "steps": 3})
    train(tmp_path / "more", tmp_path / "acts", more)
    assert main(["pool", str(tmp_path / "pooled"), *map(str, folders)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["pool", str(tmp_path / "other"), str(folders[0]), str(folders[0])]) == 2
    assert "given twice" in capsys.readouterr().err
