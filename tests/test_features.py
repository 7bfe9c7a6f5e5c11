"""The evidence in a store against a naive reading of dense codes: every number of every feature, order included."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import make, noise
from texts import make_tokenizer
from tiny import tiny_hf

from monolex.activations import harvest
from monolex.config import BaselineConfig, CorpusConfig, FeaturesConfig, HarvestConfig, ModelConfig
from monolex.corpus import Rows
from monolex.dictionaries.base import load
from monolex.dictionaries.baselines import fit_folder
from monolex.errors import UserError
from monolex.features import groups
from monolex.features.coactive import sample_rows
from monolex.features.rows import ModelRows, StoredRows
from monolex.features.rows import table as row_table
from monolex.features.stage import features, gather_stores
from monolex.features.store import BINS, TOKEN_BINS, FeatureStore
from monolex.hooks import capture
from monolex.model import load as load_model
from monolex.model import wrap

D, CONTEXT = 32, 24
SMALL = FeaturesConfig(
    fragment_tokens=7, top=4, quantiles=3, per_quantile=2, near_zero=2, random=3, inactive=3, tokens=4, direct=3,
    neighbours=3, coactive_rows=60, features_device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    return wrap(tiny_hf("gpt_neox", vocab_size=len(tokenizer)), tokenizer)


def packed(lm, rows: int = 14, seed: int = 0) -> Rows:
    """Rows of a few documents each, with padding at the end and some tokens left out."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, len(lm.tokenizer), (rows, CONTEXT))
    docs = np.sort(rng.integers(0, 2 * rows, rows * CONTEXT)).reshape(rows, CONTEXT)
    docs[-1, -5:] = -1
    keep = (rng.random((rows, CONTEXT)) < 0.9) & (docs >= 0)
    return Rows(torch.from_numpy(tokens).int(), torch.from_numpy(docs).int(), torch.from_numpy(keep))


def dictionary(site: str = "resid_post.1", width: int = 40, threshold: float = 0.4, **options):
    """ReLU features of all densities: feature 0 is dead, feature 1 active everywhere."""
    bias = -threshold * noise(width, seed=5).abs()
    bias[0], bias[1] = -1e6, 1e3
    return make(noise(width, D, seed=4) / D**0.5, b_enc=bias, site=site, **options)


class Naive:
    """Dense codes and plain loops."""

    def __init__(self, rows: Rows, codes: torch.Tensor, config: FeaturesConfig, keep: torch.Tensor | None = None):
        self.config, self.codes = config, np.maximum(codes.numpy(), 0).astype(np.float64)
        tokens, docs = rows.tokens.numpy(), rows.docs.numpy()
        self.fragments, self.fragment_of = [], {}
        for r in range(len(docs)):
            for p in range(docs.shape[1]):
                if p % config.fragment_tokens == 0 or docs[r, p] != docs[r, p - 1]:
                    self.fragments.append((int(docs[r, p]), r, p, []))
                self.fragments[-1][3].append(int(tokens[r, p]))
                self.fragment_of[r, p] = len(self.fragments) - 1
        places = list(zip(*np.nonzero((rows.keep if keep is None else keep).numpy()), strict=True))
        self.places = [(int(r), int(p)) for r, p in places]
        self.fragment = [self.fragment_of[place] for place in self.places]
        self.token = [int(tokens[place]) for place in self.places]
        self.before = [
            int(tokens[r, p - 1]) if p > 0 and docs[r, p - 1] == docs[r, p] else None for r, p in self.places
        ]

    def shares(self, feature: int, tokens: list) -> list[tuple]:
        mass, count = defaultdict(float), defaultdict(int)
        for token, code in zip(tokens, self.codes[:, feature], strict=True):
            if code > 0 and token is not None:
                mass[token] += code
                count[token] += 1
        ranked = sorted(mass, key=lambda t: (-mass[t], t))
        return [(t, count[t], mass[t]) for t in ranked]

    def maxima(self, feature: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for fragment, code in zip(self.fragment, self.codes[:, feature], strict=True):
            if code > 0:
                found[fragment] = max(found.get(fragment, 0), code)
        if self.config.disjoint:
            best: dict[int, int] = {}
            for fragment in sorted(found, key=lambda f: (-found[f], f)):
                best.setdefault(self.fragments[fragment][0], fragment)
            found = {fragment: found[fragment] for fragment in best.values()}
        return found

    def check(self, store: FeatureStore, feature: int) -> None:
        """Everything that the store says of a feature."""
        found, codes = store.feature(feature), self.codes[:, feature]
        s, n = found.summary, len(codes)
        active = codes[codes > 0]
        assert (s.id, s.n_active, s.density) == (feature, len(active), len(active) / n)
        assert s.max == (active.max() if len(active) else 0)
        assert s.mean == pytest.approx(codes.mean(), rel=1e-6)
        assert s.variance == pytest.approx(codes.var(), rel=1e-6, abs=1e-12)
        for power, value in ((3, s.skew), (4, s.kurtosis)):
            if codes.var() == 0:
                assert value is None
            else:
                assert value == pytest.approx((codes**power).mean() / codes.var() ** (power / 2), rel=1e-6)
        if not len(active):
            assert s.mean_active is None and s.top_token is None and not found.tokens and not found.histogram.any()
            assert not any(found.examples[group] for group in ("top", "quantile", "near_zero", "random"))
        else:
            assert s.mean_active == pytest.approx(active.mean(), rel=1e-6)
            bins = np.minimum((active / s.max * BINS).astype(int), BINS - 1)
            assert found.histogram.tolist() == np.bincount(bins, minlength=BINS).tolist()
        self._tokens(found, feature)
        self._examples(store, found, feature)

    def _tokens(self, found, feature: int) -> None:
        codes = self.codes[:, feature]
        for listed, tokens in ((found.tokens, self.token), (found.before, self.before)):
            shares = self.shares(feature, tokens)
            assert [(t.token, t.n_active) for t in listed] == [x[:2] for x in shares[: self.config.tokens]]
            assert [t.mass for t in listed] == pytest.approx([x[2] for x in shares[: self.config.tokens]], rel=1e-6)
            assert [t.share for t in listed] == pytest.approx([t.mass / codes.sum() for t in listed], rel=1e-6)
        shares = self.shares(feature, self.token)
        assert found.summary.distinct_tokens == len(shares)
        if shares:
            assert found.summary.top_token == shares[0][0]
            assert found.summary.top_share == pytest.approx(shares[0][2] / codes.sum(), rel=1e-6)
        for one in found.tokens:
            own = codes[(codes > 0) & (np.array(self.token) == one.token)]
            bins = np.minimum((own / found.summary.max * BINS).astype(int), BINS - 1) // (BINS // TOKEN_BINS)
            assert one.histogram.tolist() == np.bincount(bins, minlength=TOKEN_BINS).tolist()

    def _examples(self, store: FeatureStore, found, feature: int) -> None:
        config, maxima = self.config, self.maxima(feature)
        ranked = sorted(maxima, key=lambda f: (-maxima[f], f))
        n, q, rising = len(ranked), config.quantiles, ranked[::-1]

        def draw(salt: int, fragments: list[int]) -> list[int]:
            bits = {f: int(groups.scrambled(config.features_seed + salt, feature, f)[0]) for f in fragments}
            return sorted(fragments, key=lambda f: (bits[f], f))

        wanted = {
            "top": [ranked[: config.top]],
            "near_zero": [rising[: config.near_zero]],
            "random": [draw(0, ranked)[: config.random]],
            "quantile": [draw(1, rising[i * n // q : (i + 1) * n // q])[: config.per_quantile] for i in range(q)],
        }
        for group, parts in wanted.items():
            stored = [[c.id for c in found.examples[group] if c.part == part] for part in range(len(parts))]
            assert stored == parts, group
        silent = [c.id for c in found.examples["inactive"]]
        everywhere = {f for f, code in zip(self.fragment, self.codes[:, feature], strict=True) if code > 0}
        free = sorted(set(self.fragment) - everywhere)
        assert len(set(silent)) == len(silent) and set(silent) <= set(free)
        if config.disjoint:
            docs = [self.fragments[c][0] for c in {*silent, *sum(wanted["top"] + wanted["random"], [])}]
            assert len(set(docs)) == len(docs)
        else:
            assert len(silent) == min(config.inactive, len(free))
        for contexts in found.examples.values():
            for one in contexts:
                assert (one.doc, one.row, one.start, list(one.tokens)) == self.fragments[one.id]
                codes = [0.0] * len(one.tokens)
                for (_, p), f, code in zip(self.places, self.fragment, self.codes[:, feature], strict=True):
                    if f == one.id:
                        codes[p - one.start] = code
                assert one.activations == pytest.approx(codes, rel=1e-6)
                assert one.texts == tuple(store.text(token) for token in one.tokens)

    def check_together(self, store: FeatureStore, features: range) -> None:
        sampled = sample_rows(len(self.codes), self.config.coactive_rows, self.config.features_seed)
        on = self.codes[sampled] > 0
        for feature in features:
            both, either = (on & on[:, [feature]]).sum(0), (on | on[:, [feature]]).sum(0)
            jaccard = np.where(both > 0, both / np.maximum(either, 1), -1)
            jaccard[feature] = -1
            order = sorted(np.flatnonzero(jaccard > 0), key=lambda f: (-jaccard[f], f))[: self.config.neighbours]
            stored = store.feature(feature).coactive
            assert [(n.feature, n.both) for n in stored] == [(f, both[f]) for f in order]
            assert [n.value for n in stored] == pytest.approx([jaccard[f] for f in order], rel=1e-6)


def gathered(folder: Path, lm, rows: Rows, dictionaries: dict, config: FeaturesConfig) -> dict[str, FeatureStore]:
    """Stores made straight from the model."""
    source = ModelRows(lm, "resid_post.1", rows, drop_bos=False, batch_rows=3)
    gather_stores(source, dictionaries, lm, config, lambda name: folder / f"{name}.sqlite", lambda _: {})
    return {name: FeatureStore(folder / f"{name}.sqlite") for name in dictionaries}


def codes_of(lm, rows: Rows, one) -> torch.Tensor:
    x = capture(lm, rows.tokens.long(), ["resid_post.1"]).activations["resid_post.1"]
    return one.encode(x[rows.keep].detach())


@pytest.mark.parametrize(
    "changed",
    [{}, {"disjoint": True}, {"fragment_tokens": 100}, {"top": 0, "inactive": 0}, {"quantiles": 1, "features_seed": 3}],
)
def test_every_number_equals_a_naive_reading_of_dense_codes(lm, tmp_path, changed):
    rows, one, config = packed(lm), dictionary(), replace(SMALL, **changed)
    store = gathered(tmp_path, lm, rows, {"one": one}, config)["one"]
    naive = Naive(rows, codes_of(lm, rows, one), config)
    assert store.meta["rows"] == len(naive.codes) and store.meta["alive"] == int((naive.codes > 0).any(0).sum())
    for feature in range(one.d_sae):
        naive.check(store, feature)
    naive.check_together(store, range(one.d_sae))


def test_signed_codes_are_read_on_their_positive_side(lm, tmp_path):
    rows = packed(lm)
    one = make(noise(6, D, seed=1), activation="linear", kind="pca", site="resid_post.1")
    store = gathered(tmp_path, lm, rows, {"pca": one}, SMALL)["pca"]
    assert store.meta["signed"]
    naive = Naive(rows, codes_of(lm, rows, one), SMALL)
    for feature in range(6):
        naive.check(store, feature)


def test_memory_and_company_do_not_matter(lm, tmp_path, monkeypatch):
    rows, one = packed(lm), dictionary()
    alone = dump(gathered(tmp_path / "alone", lm, rows, {"one": one}, SMALL)["one"])
    pair = {"one": one, "other": dictionary(width=11, threshold=0.1)}
    assert dump(gathered(tmp_path / "pair", lm, rows, pair, SMALL)["one"]) == alone
    from monolex.features import coactive, spill

    monkeypatch.setattr(spill, "SORTED_BYTES", 10**7)  # a run for every other chunk
    monkeypatch.setattr(spill, "BLOCK_BYTES", 10**7)  # few entries a block
    monkeypatch.setattr(coactive, "DENSE", 0)
    monkeypatch.setattr(groups, "DENSE", 0)
    assert dump(gathered(tmp_path / "small", lm, rows, {"one": one}, SMALL)["one"]) == alone
    assert not list(tmp_path.glob("*/.runs-*"))


def dump(store: FeatureStore) -> list:
    tables = ("context", "feature", "token", "before", "direct", "neighbour", "coactive", "example", "activation")
    return [store.rows(f"SELECT * FROM {name}") for name in (*tables, "vocabulary")]


@pytest.mark.parametrize("cells", [2**24, 100])
def test_neighbours_and_token_cosines(lm, tmp_path, monkeypatch, cells):
    from monolex.features import weights

    monkeypatch.setattr(weights, "CELLS", cells)
    one = dictionary()
    store = gathered(tmp_path, lm, packed(lm), {"one": one}, SMALL)["one"]
    rows = torch.nn.functional.normalize(one.W_dec, dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    tokens = len(lm.tokenizer)
    for feature in range(one.d_sae):
        found = store.feature(feature)
        best = cosines[feature].topk(3)
        assert [n.feature for n in found.neighbours] == best.indices.tolist()
        assert [n.value for n in found.neighbours] == pytest.approx(best.values.tolist(), rel=1e-5)
        for matrix, token, cosine in (
            (lm.embedding, found.summary.embedding_token, found.summary.embedding_cosine),
            (lm.unembedding, found.summary.unembedding_token, found.summary.unembedding_cosine),
        ):
            near = (torch.nn.functional.normalize(matrix[:tokens].detach(), dim=1) @ rows[feature]).max(0)
            assert (token, cosine) == (int(near.indices), pytest.approx(float(near.values), rel=1e-5))


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gemma3_text"])
def test_direct_logits_are_those_of_a_tiny_step_where_the_norm_does_not_turn(family, tmp_path):
    tokenizer = make_tokenizer()
    model = wrap(tiny_hf(family, vocab_size=len(tokenizer)), tokenizer)
    with torch.no_grad():
        for parameter in model.final_norm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    from monolex.features.weights import direct

    width = model.d_model
    one = make(noise(5, width, seed=3), site="resid_post.1")
    found = direct(one, model, len(tokenizer), 4)
    assert not isinstance(found, str)
    # A base orthogonal to the direction (and of mean zero) has, to first order, the same scale before and after.
    for feature in range(5):
        step = one.W_dec[feature].double()
        base = torch.randn(width, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        ones = torch.ones(width, dtype=torch.float64)
        basis = torch.linalg.qr(torch.stack([ones, step - step.mean(), step], 1))[0]
        base = base - basis @ (basis.T @ base)
        base = base / base.square().mean().sqrt()
        norm, head = model.final_norm.double(), model.unembedding.detach().double()[: len(tokenizer)]

        def logits(x: torch.Tensor, norm=norm, head=head) -> torch.Tensor:
            return norm(x[None])[0].double() @ head.T

        with torch.no_grad():
            slope = (logits(base + 1e-4 * step) - logits(base - 1e-4 * step)) / 2e-4
        slope = slope - slope.mean()
        norm.float()
        top = slope.topk(4)
        assert found.promoted.values[feature].tolist() == pytest.approx(top.values.tolist(), rel=1e-2, abs=1e-3)
        low = (-slope).topk(4)
        assert found.suppressed.values[feature].tolist() == pytest.approx((-low.values).tolist(), rel=1e-2, abs=1e-3)


def test_neurons_write_through_their_projection(lm):
    from monolex.features.weights import direct, to_residual
    from monolex.sites import Site

    width = lm.width("mlp_act.1")
    onto = to_residual(lm, Site("mlp_act", 1))
    assert not isinstance(onto, str)
    weight = lm.place("mlp_act.1").module.weight
    torch.testing.assert_close(onto(torch.eye(width)), weight.T.detach(), rtol=1e-5, atol=1e-6)
    neurons = make(torch.eye(width), site="mlp_act.1")
    moved = make(weight.T.detach().clone(), site="resid_post.1")
    a, b = (direct(one, lm, 20, 3) for one in (neurons, moved))
    assert not isinstance(a, str) and not isinstance(b, str)
    torch.testing.assert_close(a.promoted.values, b.promoted.values, rtol=1e-4, atol=1e-5)
    reason = direct(make(torch.eye(D), site="mlp_in.1"), lm, 20, 3)
    assert isinstance(reason, str) and "not added to the residual stream" in reason


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Activations of the demo model in fp32 and baselines of it."""
    home = tmp_path_factory.mktemp("demo")
    corpus = CorpusConfig(max_tokens=9000, document_tokens=700, context_length=64, held_out=0.2)
    site = ("resid_post.3",)
    harvest(home / "acts", ModelConfig(device="cpu"), corpus, HarvestConfig(sites=site, dtype="fp32"))
    fit_folder(home / "base", home / "acts", BaselineConfig(kinds=("random-topk", "neurons"), ks=(6,), ratio=1.0))
    return home


DEMO = FeaturesConfig(split="held_out", fragment_tokens=32, features_device="cpu", dictionaries=("random-topk-k6",))


def test_fifty_features_of_the_demo_model(demo, tmp_path):
    manifest = features(tmp_path / "out", demo / "acts", [demo / "base"], DEMO)
    (made,) = manifest.data["stores"]
    store = FeatureStore(tmp_path / "out" / made["path"])
    source = StoredRows(demo / "acts", "resid_post.3", DEMO)
    one = load(demo / "base" / "resid_post.3" / "random-topk-k6")
    codes = torch.cat([one.encode(x) for x in source.chunks(500)])
    context, position = source.places()
    keep = torch.zeros_like(source.packed.keep)
    keep[context, position] = True
    naive = Naive(source.packed, codes, DEMO, keep)
    for feature in range(50):
        naive.check(store, feature)
    naive.check_together(store, range(50))
    assert made["alive"] == int((codes > 0).any(0).sum()) and made["bytes"] == store.path.stat().st_size
    assert (store.path.parent / store.meta["dictionary"]).resolve() == demo / "base" / "resid_post.3" / "random-topk-k6"


def test_reading_the_model_equals_reading_what_it_stored(demo, tmp_path):
    lm = load_model(ModelConfig(device="cpu"))
    stored = StoredRows(demo / "acts", "resid_post.3", DEMO)
    one = {"d": load(demo / "base" / "resid_post.3" / "random-topk-k6")}
    found = []
    for name, source in (("disk", stored), ("model", ModelRows(lm, "resid_post.3", stored.packed))):
        gather_stores(source, one, lm, DEMO, lambda _, name=name: tmp_path / f"{name}.sqlite", lambda _: {})
        store = FeatureStore(tmp_path / f"{name}.sqlite")
        found.append([store.rows("SELECT id, n_active FROM feature"), store.rows("SELECT * FROM example")])
    same = sum(a == b for a, b in zip(found[0][0], found[1][0], strict=True))
    assert same > 0.98 * len(found[0][0])  # batches of other sizes round differently


def test_done_is_skipped_and_an_interrupted_run_goes_on(demo, tmp_path, monkeypatch):
    from monolex.features import stage

    config = replace(DEMO, dictionaries=())
    whole = features(tmp_path / "whole", demo / "acts", [demo / "base"], config)
    before = (tmp_path / "whole" / "manifest.json").stat().st_mtime_ns
    features(tmp_path / "whole", demo / "acts", [demo / "base"], config)
    assert (tmp_path / "whole" / "manifest.json").stat().st_mtime_ns == before
    real, calls = stage.gather, []

    def interrupted(path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(stage, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features(tmp_path / "cut", demo / "acts", [demo / "base"], config)
    assert not (tmp_path / "cut" / "manifest.json").exists() and not list((tmp_path / "cut").rglob(".*"))
    again = features(tmp_path / "cut", demo / "acts", [demo / "base"], config)
    for store in whole.data["stores"]:
        a, b = (FeatureStore(tmp_path / name / store["path"]) for name in ("whole", "cut"))
        assert dump(a) == dump(b)
    assert [s["alive"] for s in again.data["stores"]] == [s["alive"] for s in whole.data["stores"]]


def test_names_and_sites_that_match_nothing(demo, tmp_path):
    for changed, sentence in (
        ({"dictionaries": ("tied-*",)}, "matches none of random-topk-k6, neurons"),
        ({"sites": ("mlp_out.1",)}, "holds no site 'mlp_out.1'"),
    ):
        with pytest.raises(UserError, match=sentence):
            features(tmp_path / "out", demo / "acts", [demo / "base"], replace(DEMO, **changed))
    assert not (tmp_path / "out").exists()


def test_a_store_is_read_only_and_refuses_what_it_is_not(demo, tmp_path):
    features(tmp_path / "out", demo / "acts", [demo / "base"], DEMO)
    store = FeatureStore(tmp_path / "out" / "resid_post.3" / "random-topk-k6.sqlite")
    import sqlite3

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.rows("DELETE FROM feature")
    with pytest.raises(UserError, match="has features 0 to 191"):
        store.feature(192)
    with pytest.raises(UserError, match="does not exist"):
        FeatureStore(tmp_path / "none.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(UserError, match="is no feature store"):
        FeatureStore(tmp_path / "bad.sqlite")


def test_rows_know_their_place():
    rows = Rows(
        torch.arange(12).reshape(2, 6).int(),
        torch.tensor([[0, 0, 0, 0, 1, 1], [2, 2, 2, 3, -1, -1]]).int(),
        torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool(),
    )

    class Places:
        site, d_in, n_rows, packed = "resid_post.0", 1, 9, rows

        def places(self):
            row, position = rows.keep.nonzero(as_tuple=True)
            return row.int().numpy(), position.int().numpy()

        def chunks(self, size):
            raise NotImplementedError

    found = row_table(Places(), 3)
    assert found.fragments.doc.tolist() == [0, 0, 1, 2, 3, -1]
    assert found.fragments.start.tolist() == [0, 3, 4, 0, 3, 4]
    assert found.fragments.length.tolist() == [3, 1, 2, 3, 1, 2]
    assert found.fragment.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 4]
    assert found.position.tolist() == [0, 1, 2, 0, 0, 1, 1, 2, 0]
    assert found.before.tolist() == [-1, 0, 1, 2, -1, 4, 6, 7, -1]
    assert found.context(2).tolist() == [4, 5]
