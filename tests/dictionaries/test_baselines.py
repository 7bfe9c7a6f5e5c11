"""Baselines against their definitions: numpy's covariance, planted sources, scikit-learn's objective."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.memory_rows import MemoryRows, gaussian_rows, skewed_rows, skewed_sources
from helpers.site_facts import site_facts
from safetensors.torch import save_file
from scipy.optimize import nnls
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor

from monolex.activations import outliers
from monolex.activations.reader import Reader
from monolex.artifact import FileEntry, file_hash, finish, open_artifact, verify
from monolex.config import BaselineConfig
from monolex.dictionaries import axes, baselines, families, nmf
from monolex.dictionaries.base import Dictionary, DictionaryConfig, load
from monolex.errors import UserError

D_IN = 6
DATA = skewed_rows(400, D_IN)
FRESH = gaussian_rows(60, D_IN, seed=3)


def fitted(*kinds: str, rows: Tensor = DATA, **changed: Any) -> dict[str, Dictionary]:
    config = BaselineConfig(**{"kinds": kinds, "ks": (2,), "nmf_features": 4, **changed})
    return baselines.fit(MemoryRows(rows), config)


def fvu(dictionary: Dictionary, x: Tensor) -> float:
    return float((x - dictionary.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum())


def test_neurons_are_the_positive_part_and_both_signs_are_exact():
    found = fitted("neurons", "neurons-pm")
    assert torch.equal(found["neurons"].reconstruct(FRESH), FRESH.relu())
    assert torch.equal(found["neurons-pm"].reconstruct(FRESH), FRESH)


def test_streamed_moments_are_numpys():
    chunks = DATA.split([1, 3, 250, 146])
    found = axes.moments(chunks)
    assert found.rows == 400
    np.testing.assert_allclose(found.mean, DATA.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(DATA.double().numpy().T), rtol=1e-10)


def test_streamed_moments_stay_exact_far_from_zero():
    far = DATA.double() + 1e6
    np.testing.assert_allclose(axes.moments(far.split(7)).covariance, np.cov(DATA.double().numpy().T), rtol=1e-6)


def test_moments_refuse_infinity():
    with pytest.raises(UserError, match="NaN or infinity"):
        axes.moments([torch.tensor([[1.0, torch.inf], [0.0, 1.0]])])


def test_pca_is_an_exact_orthonormal_rotation_about_the_mean():
    one = fitted("pca")["pca"]
    torch.testing.assert_close(one.W_dec @ one.W_dec.T, torch.eye(D_IN), atol=1e-6, rtol=0)
    torch.testing.assert_close(one.weights["centre"], DATA.mean(0))
    torch.testing.assert_close(one.reconstruct(FRESH), FRESH, atol=1e-4, rtol=1e-4)
    codes = one.encode(DATA)
    covariance = torch.cov(codes.T)
    variances = covariance.diagonal()
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(covariance, torch.diag(variances), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["pca", "ica"])
def test_both_signs_reconstruct_what_the_signed_axes_do(family: str):
    found = fitted(family, f"{family}-pm")  # pyright: ignore[reportArgumentType]
    both, signed = found[f"{family}-pm"], found[family]
    torch.testing.assert_close(both.reconstruct(FRESH), signed.reconstruct(FRESH), atol=1e-4, rtol=1e-4)
    positive, negative = both.encode(FRESH).chunk(2, dim=1)
    torch.testing.assert_close(positive - negative, signed.encode(FRESH), atol=1e-5, rtol=1e-5)
    assert not ((positive > 0) & (negative > 0)).any()


def test_pca_topk_keeps_the_largest_projections():
    found = fitted("pca", "pca-topk", ks=(1, 2, 12))
    signed = found["pca"].encode(FRESH)
    for k in (1, 2):
        rank = signed.abs().argsort(dim=1, descending=True).argsort(dim=1)
        naive = found["pca"].decode(torch.where(rank < k, signed, 0.0))
        torch.testing.assert_close(found[f"pca-topk-k{k}"].reconstruct(FRESH), naive, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["pca-topk-k12"].reconstruct(FRESH), FRESH, atol=1e-4, rtol=1e-4)
    # an orthonormal basis loses least by keeping the largest coordinates
    others = [found["pca"].decode(signed * (torch.rand(6).argsort() < 2)) for _ in range(20)]
    best = (FRESH - found["pca-topk-k2"].reconstruct(FRESH)).square().sum()
    assert all((FRESH - other).square().sum() >= best for other in others)


@pytest.mark.parametrize("family", ["pca", "ica"])
def test_kinds_of_a_family_share_one_fit(family: str):
    kinds = (family, f"{family}-pm", f"{family}-topk")
    one, all_three = MemoryRows(DATA), MemoryRows(DATA)
    baselines.fit(one, BaselineConfig(kinds=kinds[:1]))  # pyright: ignore[reportArgumentType]
    baselines.fit(all_three, BaselineConfig(kinds=kinds, ks=(1, 2)))  # pyright: ignore[reportArgumentType]
    assert all_three.served == one.served > 0


@pytest.mark.parametrize("flip", [1.0, -1.0])
@pytest.mark.parametrize("family", ["pca", "ica"])
def test_the_heavier_tail_is_positive(family: str, flip: float):
    sources = flip * skewed_sources(2000, 4) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    codes = fitted(family, rows=(sources @ rotation).float())[family].encode((sources @ rotation).float())
    assert (codes.pow(3).mean(0) > 0).all()


def test_ica_recovers_planted_sources_with_positive_sign():
    sources = skewed_sources(4000, 5)
    mixing = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = (sources @ mixing + 3).float()
    one = fitted("ica", rows=rows)["ica"]
    assert one.d_sae == 5
    assert one.config.recipe["converged"] is True
    codes = one.encode(rows).double()
    correlation = torch.corrcoef(torch.cat([sources, codes], dim=1).T)[:5, 5:]
    assert sorted(correlation.argmax(1).tolist()) == [0, 1, 2, 3, 4]
    assert correlation.max(1).values.min() > 0.98
    directions = torch.nn.functional.normalize(mixing, dim=1)
    assert (one.W_dec.double() @ directions.T).max(1).values.min() > 0.97


def test_ica_directions_have_unit_length_and_sources_are_uncorrelated():
    one = fitted("ica")["ica"]
    torch.testing.assert_close(one.W_dec.norm(dim=1), torch.ones(D_IN))
    correlation = torch.corrcoef(one.encode(DATA).T)
    torch.testing.assert_close(correlation, torch.eye(D_IN), atol=1e-4, rtol=0)


def test_ica_of_dead_neurons_is_exact_on_the_rows():
    rows = torch.cat([DATA[:, :3], torch.full((400, 2), 1.5), DATA[:, :1] * 2], dim=1)
    one = fitted("ica", rows=rows)["ica"]
    assert one.d_sae == 3
    torch.testing.assert_close(one.reconstruct(rows), rows, atol=1e-4, rtol=1e-4)


def test_fewer_rows_than_dimensions():
    rows = gaussian_rows(4, 9)
    found = fitted("pca", "ica", "random", "neurons", rows=rows)
    assert (found["pca"].d_sae, found["ica"].d_sae) == (9, 3)
    for name in ("pca", "ica"):
        torch.testing.assert_close(found[name].reconstruct(rows), rows, atol=1e-4, rtol=1e-4)


def test_the_fit_of_ica_is_one_threads_whatever_the_cores():
    def blas() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        with axes.few_threads(axes.ICA_ALONE):
            assert blas() == {1}
        with axes.few_threads(axes.ICA_ALONE + 1):
            assert blas() == {2}


def test_an_ica_that_does_not_converge_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = skewed_sources(300, 5).float()
    config = BaselineConfig(kinds=("pca", "ica", "ica-topk"), ica_iterations=1, ks=(2,))
    assert set(baselines.fit(MemoryRows(rows), config)) == {"pca"}
    assert "had not converged after ica_iterations = 1 on 300 rows" in caplog.text
    manifest = baselines.fit_readers(tmp_path, {"resid_post.0": MemoryRows(rows)}, {}, config)
    assert [member["path"] for member in manifest.data["members"]] == ["resid_post.0/pca"]
    (gone,) = manifest.data["given_up"]
    assert (gone["site"], gone["name"]) == ("resid_post.0", "ica") and "had not converged" in gone["reason"]
    assert manifest.data["warnings"] == [f"resid_post.0/ica is left out: {gone['reason']}"]
    assert manifest.data["warnings"][0] in caplog.text


def test_ica_refuses_rows_that_do_not_vary():
    with pytest.raises(UserError, match="do not vary"):
        fitted("ica", rows=torch.ones(10, 3))


def test_random_directions_are_unit_and_their_scale_is_the_least_squares_one():
    for name, one in fitted("random", "random-topk", ratio=2.5).items():
        assert one.d_sae == 15
        torch.testing.assert_close(one.W_enc.norm(dim=1), torch.ones(15))
        torch.testing.assert_close(one.directions(), one.W_enc)
        codes = one.encode(DATA).double()
        guess = (codes @ one.W_enc.double()).flatten()[:, None].numpy()
        best = np.linalg.lstsq(guess, DATA.double().flatten().numpy(), rcond=None)[0][0]
        assert one.config.recipe["scale"] == pytest.approx(best, rel=1e-5), name
        assert 0 < fvu(one, DATA - DATA.mean(0)) < 1, name


def test_random_directions_depend_on_seed_and_site_only():
    first, again, other = (fitted("random", baseline_seed=seed)["random"].W_enc for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    elsewhere = baselines.fit(MemoryRows(DATA, "resid_post.1"), BaselineConfig(kinds=("random",)))["random"].W_enc
    assert elsewhere.shape == first.shape
    assert not torch.equal(first, elsewhere)


def test_the_scale_of_rows_that_never_fire_is_one():
    assert fitted("random", rows=torch.zeros(5, 3))["random"].config.recipe["scale"] == 1


def test_nmf_recovers_planted_parts():
    generator = torch.Generator().manual_seed(0)
    planted = torch.eye(3).repeat_interleave(2, dim=1) * torch.tensor([1.0, 0.5, -1.0, 2.0, -1.0, -1.0])
    codes = torch.rand(300, 3, generator=generator) * (torch.rand(300, 3, generator=generator) > 0.5)
    one = fitted("nmf", rows=codes @ planted, nmf_features=3)["nmf"]
    similarity = one.directions() @ torch.nn.functional.normalize(planted, dim=1).T
    assert similarity.max(0).values.min() > 0.99
    assert fvu(one, codes @ planted) < 1e-3


def test_nmf_codes_reach_the_least_squares_optimum():
    one = fitted("nmf", nmf_features=6)["nmf"]
    components, target = one.weights["H"], nmf.parts(FRESH)
    torch.testing.assert_close(components.norm(dim=1), torch.ones(6))
    assert (components >= 0).all()
    exact = np.stack([nnls(components.double().numpy().T, row.double().numpy())[0] for row in target])
    best = float((target - torch.from_numpy(exact).float() @ components).square().sum())
    ours = float((target - one.encode(FRESH) @ components).square().sum())
    assert ours == pytest.approx(best, rel=1e-4)


def test_nmf_codes_are_optimal_where_active_and_exactly_zero_elsewhere():
    components = torch.rand(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = nmf.codes(FRESH.double(), components)
    gradient = (codes @ components - nmf.parts(FRESH.double())) @ components.T
    assert (codes == 0).any()
    assert gradient[codes == 0].min() > -1e-3 * gradient.abs().max()
    torch.testing.assert_close(gradient[codes > 0], torch.zeros_like(gradient[codes > 0]), atol=1e-3, rtol=0)


def test_nmf_codes_of_a_row_do_not_depend_on_its_neighbours():
    components = torch.rand(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = nmf.codes(FRESH.double(), components)
    torch.testing.assert_close(nmf.codes(FRESH[7:8].double(), components)[0], together[7])


def test_nmf_says_when_it_did_not_converge(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nmf, "MAX_FIT_ITERATIONS", 1)
    assert fitted("nmf")["nmf"].config.recipe["converged"] is False


def test_samples_are_spread_over_the_split_without_repeats():
    reader = MemoryRows(torch.arange(1003.0)[:, None])
    drawn = axes.sample(reader, 100, seed=0)[:, 0]
    assert len(drawn.unique()) == 100
    assert (drawn.diff() > 0).all()
    starts = torch.arange(101) * 1003 // 100
    assert ((drawn >= starts[:-1]) & (drawn < starts[1:])).all()
    assert torch.equal(axes.sample(reader, 5000, seed=0), reader.rows)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"kinds": ("pca-topk",), "ks": (13,)}, r"ks holds 13 but pca-topk of resid_post.0 has 12 features; choose k"),
        ({"kinds": ("random-topk",), "ks": (25,)}, "has 24 features"),
        ({"kinds": ("ica-topk",), "ks": ()}, "ks is empty: ica-topk needs at least one"),
        ({"kinds": ("nmf",), "nmf_features": 13}, "nmf_features = 13: resid_post.0 allows at most 12"),
        ({"kinds": ("pca",), "fit_rows": 1}, "fit_rows = 1 .* at least 2 rows"),
        ({"kinds": ("ica",), "ica_rows": 1}, "ica_rows = 1 .* at least 2 rows"),
    ],
)
def test_what_a_site_cannot_have_is_refused(changed: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        baselines.fit(MemoryRows(DATA), BaselineConfig(**changed))


def test_k_above_the_rank_that_ica_found_is_refused():
    rows = torch.cat([DATA[:, :2], torch.ones(400, 4)], dim=1)
    with pytest.raises(UserError, match="k = 5 does not fit a dictionary of 4 features"):
        fitted("ica-topk", ks=(5,), rows=rows)


def test_one_row_is_too_few():
    with pytest.raises(UserError, match="stores 1 rows"):
        fitted("pca", rows=DATA[:1])


SITES = ("resid_post.0", "resid_post.1")
CONFIG = BaselineConfig(kinds=("pca", "pca-topk"), ks=(2, 3))


def write(folder: Path, config: BaselineConfig = CONFIG) -> tuple[dict[str, MemoryRows], Any]:
    readers = {site: MemoryRows(gaussian_rows(50, D_IN, seed), site) for seed, site in enumerate(SITES)}
    return readers, baselines.fit_readers(folder, readers, {"activations": "a" * 64}, config)


def test_the_artefact_lists_and_holds_every_dictionary(tmp_path: Path):
    write(tmp_path)
    manifest = verify(tmp_path)
    names = ["pca", "pca-topk-k2", "pca-topk-k3"]
    assert [m["path"] for m in manifest.data["members"]] == [f"{site}/{name}" for site in SITES for name in names]
    assert manifest.parents == {"activations": "a" * 64}
    for member in manifest.data["members"]:
        one = load(tmp_path / member["path"]).config
        assert {"path": member["path"], "site": one.site, "kind": one.kind, "k": one.k, "d_sae": one.d_sae} == member
        assert (one.model, one.model_fingerprint) == ("tiny", "f" * 64)
    stored = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert stored == {*manifest.files, "manifest.json"}


class Killed(Exception):
    """The run ends here."""


class FailingRows(MemoryRows):
    """A reader that dies when it is read."""

    def chunks(self, *_size: Any, **_limit: Any) -> Any:
        raise Killed


def interrupted(folder: Path) -> dict[str, MemoryRows]:
    """Fit the first site, die at the second; return readers for another try."""
    good = {site: MemoryRows(gaussian_rows(50, D_IN, seed), site) for seed, site in enumerate(SITES)}
    bad = {**good, SITES[1]: FailingRows(good[SITES[1]].rows, SITES[1])}
    with pytest.raises(Killed):
        baselines.fit_readers(folder, bad, {}, CONFIG)
    good[SITES[0]].served = 0
    return good


def test_a_killed_run_keeps_finished_sites(tmp_path: Path):
    readers = interrupted(tmp_path / "killed")
    killed = baselines.fit_readers(tmp_path / "killed", readers, {}, CONFIG)
    assert readers[SITES[0]].served == 0
    assert readers[SITES[1]].served > 0
    whole = baselines.fit_readers(tmp_path / "whole", readers, {}, CONFIG)
    assert killed.content == whole.content


def test_a_damaged_finished_site_is_fitted_again(tmp_path: Path):
    readers = interrupted(tmp_path)
    (left,) = tmp_path.glob(f"partial/*/files/{SITES[0]}/pca/weights.safetensors")
    left.write_bytes(b"")
    baselines.fit_readers(tmp_path, readers, {}, CONFIG)
    assert readers[SITES[0]].served > 0
    verify(tmp_path)


def test_another_request_does_not_keep_sites(tmp_path: Path):
    readers = interrupted(tmp_path)
    baselines.fit_readers(tmp_path, readers, {}, BaselineConfig(kinds=("pca",), baseline_seed=1))
    assert readers[SITES[0]].served > 0


def test_a_run_that_dies_leaves_an_older_answer_whole(tmp_path: Path):
    older = write(tmp_path, BaselineConfig(kinds=("pca",)))[1]
    interrupted(tmp_path)
    assert verify(tmp_path) == older


def activations(folder: Path) -> Path:
    """A finished activations artefact with the rows that a reader needs."""
    files = {}
    for seed, site in enumerate(SITES):
        path = folder / site / "train-00000.safetensors"
        path.parent.mkdir(parents=True)
        rows = gaussian_rows(50, D_IN, seed)
        save_file({"activations": rows, "norms": rows.norm(dim=1)}, path)
        files[f"{site}/{path.name}"] = FileEntry(path.stat().st_size, file_hash(path))
    data = {
        "model": {"name": "tiny", "fingerprint": "f" * 64},
        "sites": {site: site_facts(D_IN, "fp32") for site in SITES},
        "shards": {"train": [50], "held_out": []},
    }
    save_file({split: torch.empty(0, dtype=torch.int64) for split in ("train", "held_out")}, folder / outliers.FILE)
    finish(folder, "activations", {}, {}, files, data)
    return folder


def test_a_folder_is_fitted_once(tmp_path: Path):
    source = activations(tmp_path / "activations")
    first = baselines.fit_folder(tmp_path / "out", source, CONFIG)
    assert {m["site"] for m in first.data["members"]} == set(SITES)
    weights = tmp_path / "out" / SITES[0] / "pca" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    assert baselines.fit_folder(tmp_path / "out", source, CONFIG).content == first.content
    assert weights.stat().st_mtime_ns == written
    direct = write(tmp_path / "direct")[1]
    assert first.files == direct.files


def test_chosen_sites_must_be_stored(tmp_path: Path):
    source = activations(tmp_path / "activations")
    one = baselines.fit_folder(tmp_path / "one", source, BaselineConfig(kinds=("neurons",), sites=SITES[1:]))
    assert [m["site"] for m in one.data["members"]] == [SITES[1]]
    with pytest.raises(UserError, match="holds no site 'mlp_out.9'"):
        baselines.fit_folder(tmp_path / "none", source, BaselineConfig(sites=("mlp_out.9",)))


def test_recipes_are_plain_json():
    for one in fitted("random", "pca", "ica", "nmf").values():
        assert json.loads(json.dumps(one.config.recipe)) == one.config.recipe
        assert one.config.recipe["rows"] == 400


def test_scales_come_from_all_chunks():
    one = families.least_squares_scales(DATA.split(7), [fitted("neurons")["neurons"]])
    assert one == pytest.approx(families.least_squares_scales([DATA], [fitted("neurons")["neurons"]]))


def test_top_k_baselines_take_their_k_from_the_l0_of_a_sweep(tmp_path):
    source = activations(tmp_path / "acts")
    reader = Reader(source, SITES[0])
    stored = reader.read(0, reader.n_rows)
    content = open_artifact(source).content
    biases = (-0.3, 0.0)
    made = [dictionary_with_bias(bias) for bias in biases]
    rows = []
    for number, dictionary in enumerate(made):
        dictionary.save(tmp_path / "sweep" / SITES[0] / f"d{number}")
        rows.append({"path": f"{SITES[0]}/d{number}", "site": SITES[0]})
    finish(tmp_path / "sweep", "sweep", {}, {"activations": content}, {}, {"members": rows})
    config = BaselineConfig(kinds=("pca-topk",), sites=SITES[:1], match=(str(tmp_path / "sweep"),))
    manifest = baselines.fit_folder(tmp_path / "out", source, config)
    wanted = sorted(round(float(d.encode(stored).count_nonzero(1).double().mean())) for d in made)
    assert [member["k"] for member in manifest.data["members"]] == wanted and len(set(wanted)) == 2
    assert manifest.parents["match.0"] == open_artifact(tmp_path / "sweep").content
    finish(tmp_path / "sweep", "sweep", {}, {"activations": "another"}, {}, {"members": rows})
    with pytest.raises(UserError, match="was not trained on"):
        baselines.fit_folder(tmp_path / "out", source, config)


def dictionary_with_bias(bias: float) -> Dictionary:
    """A ReLU dictionary of the rows' width."""
    d = DATA.shape[1]
    weights = {
        "W_enc": torch.cat([torch.eye(d), -torch.eye(d)]),
        "b_enc": torch.full((2 * d,), bias),
        "centre": torch.zeros(d),
        "W_dec": torch.cat([torch.eye(d), -torch.eye(d)]),
        "b_dec": torch.zeros(d),
    }
    config = DictionaryConfig(kind="tied", activation="relu", d_in=d, d_out=d, d_sae=2 * d, site=SITES[0])
    return Dictionary(config, weights)
