"""What pages show: the list against the stores, search, matches and comparisons against the weights."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.explored import NAME, SITES, strongest

from monolex.answers import as_json
from monolex.artifact import read_json
from monolex.dictionaries.base import DictionaryConfig
from monolex.errors import UserError
from monolex.explorer.app import drawn
from monolex.explorer.directions import space
from monolex.explorer.explorer import Explorer
from monolex.explorer.links import Links
from monolex.explorer.run import NotThere
from monolex.explorer.views import effects, listing
from monolex.explorer.views.causes import causes, experiment
from monolex.explorer.views.compare import compare
from monolex.explorer.views.feature import feature
from monolex.explorer.views.listing import COLUMNS, ListQuery, parsed
from monolex.explorer.views.marks import keep, lines, marks
from monolex.explorer.views.matches import matches
from monolex.explorer.views.overview import overview
from monolex.explorer.views.search import search
from monolex.features.seeds import nearest_in
from monolex.pages import tokens
from monolex.pages.html import number as shown
from monolex.report.ablate_section import verdict


@pytest.fixture(scope="module")
def explorer(explored: Path) -> Explorer:
    return Explorer([explored])


@pytest.fixture(scope="module")
def key(explorer: Explorer) -> str:
    return next(
        d.key for run in explorer.runs.values() for d in run.dictionaries.values() if d.title == f"{SITES[1]}/{NAME}"
    )


def numbers(page) -> list[int]:
    return [row.number for row in page.data["features"]]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("up", ["", "1"])
def test_a_list_is_sorted_by_every_column(explorer, key, column, up):
    page = listing.listing(explorer, {"dictionary": key, "sort": column.key, "up": up, "state": "all"})
    values = [row.numbers[column.key] for row in page.data["features"]]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=column.down != bool(up))
    assert values[len(known) :] == [None] * (len(values) - len(known))


def test_filters_keep_what_the_store_says(explorer, key):
    run, dictionary = explorer.place(key)
    summaries = run.store(dictionary.key).summaries()
    page = listing.listing(explorer, {"dictionary": key, "low": "0.05", "high": "0.3", "sort": "number"})
    assert numbers(page) == [s.id for s in summaries if 0.05 <= s.density <= 0.3 and s.n_active]
    assert page.data["total"] == len(numbers(page))
    token = run.index.rows("SELECT text FROM token WHERE dictionary = ? LIMIT 1", (dictionary.id,))[0][0]
    page = listing.listing(explorer, {"dictionary": key, "token": token, "sort": "number"})
    store = run.store(dictionary.key)
    having = "SELECT DISTINCT feature FROM token JOIN vocabulary USING (token) WHERE text = ? AND rank < 10 ORDER BY 1"
    assert numbers(page) == [n for (n,) in store.rows(having, (token,))]
    dead = listing.listing(explorer, {"dictionary": key, "state": "dead"})
    assert len(numbers(dead)) == sum(not s.n_active for s in summaries)


def test_pages_of_a_list_follow_each_other(explorer, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 7)
    everything = listing.features(explorer.runs["run"], ListQuery(sort="density"), 10_000)
    pages = -(-len(everything) // 7)
    shown = [
        row
        for i in range(1, pages + 1)
        for row in listing.listing(explorer, {"sort": "density", "page": str(i)}).data["features"]
    ]
    assert shown == everything


def test_two_runs_are_one_list(explored, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(explored)
    with pytest.raises(UserError, match="is given twice"):
        Explorer([explored, other])


def test_an_address_says_only_what_differs():
    query = parsed({"sort": "density", "page": "3", "columns": "max,score", "up": "1", "token": ""})
    assert query.choice == {"sort": "density", "page": 3, "columns": "max,score", "up": 1}
    assert parsed({name: str(value) for name, value in query.choice.items()}) == query
    for wrong in ({"sort": "zzz"}, {"kind": "odd"}, {"low": "x"}, {"high": "nan"}, {"page": "0"}, {"colour": "red"}):
        with pytest.raises(UserError):
            parsed(wrong)


def test_a_feature_has_everything_of_its_store_and_experiments(explorer, key):
    run, dictionary = explorer.place(key)
    number = next(n for (n,) in run.index.rows("SELECT number FROM feature WHERE effect IS NOT NULL"))
    page = feature(explorer, key, number)
    twin = as_json(page.data)
    assert twin["evidence"]["summary"]["id"] == number and twin["evidence"]["examples"]["top"]
    assert twin["explanations"] == sorted(twin["explanations"], key=lambda e: -e["score"])
    assert {m["experiment"] for m in twin["memberships"]} >= {"ablate/root", "tree/root"}
    with pytest.raises(NotThere):
        feature(explorer, key, dictionary.d_sae)
    with pytest.raises(NotThere):
        feature(explorer, "0" * 12, 0)


def test_total_and_direct_effects_of_an_ablation_stand_beside_the_direct_logits(explorer, explored, key):
    site, _, number = strongest(explored).rpartition(":")
    run, dictionary = explorer.place(key)
    assert dictionary.title == site
    (ablation,) = read_json(explored / "ablate" / "root" / "ablate.json")["ablations"]
    page = feature(explorer, key, int(number))
    (measured,) = as_json(page.data)["ablations"]
    changes, evidence = ablation["measures"]["probability"], run.store(key).feature(int(number))
    assert (measured["experiment"], measured["kl"]) == ("ablate/root", ablation["kl"])
    weights = {each.token: each.weight for each in (*evidence.promoted, *evidence.suppressed)}
    wanted = [(side, token) for side in ("suppressed", "promoted") for token in changes[side][: effects.SHOWN]]
    assert len(wanted) > 4 and weights
    assert measured["tokens"] == [
        {**token, "side": side, "weight": weights.get(token["token"])} for side, token in wanted
    ]
    ((_, sentence, table, address),) = page.draw(Links())["effects"]
    assert address == "/causes/run/ablate/root#part-1" and sentence == verdict(ablation)
    assert [line.label for line in table.lines] == [tokens.token(token["text"]) for _, token in wanted]
    for line, (_, token) in zip(table.lines, wanted, strict=True):
        weight = weights.get(token["token"])
        values = [token[name] for name in ("change", "direct", "control", "p")]
        assert [cell.text for cell in line.cells] == [shown(value) for value in (*values, weight)]
        assert weight is not None or "not among the tokens whose logit" in line.cells[-1].title
    text = drawn(explorer, page, "/")
    assert "Direct beside total effects" in text and "<script>alert" not in text
    other = feature(explorer, key, (int(number) + 1) % dictionary.d_sae)
    assert other.data["ablations"] == [] and "Direct beside total" not in drawn(explorer, other, "/")


def test_an_axis_has_its_negative_side(explorer):
    run = explorer.runs["run"]
    axis = next(d.key for d in run.dictionaries.values() if d.title == f"{SITES[1]}/pca")
    page = feature(explorer, axis, 0)
    twin = as_json(page.data)["evidence"]
    below = twin["examples"]["negative"]
    assert min(below[0]["activations"]) == twin["summary"]["min"] < 0 and len(below) > 5
    assert drawn(explorer, page, "/").count("<summary>Most negative") == 1


def test_matches_are_the_nearest_directions(explorer, key):
    run, dictionary = explorer.place(key)
    rows = matches(explorer, key, 3).data["matches"]
    direction = torch.nn.functional.normalize(run.record(key).weights().W_dec[3], dim=0)
    assert {row["dictionary"].title for row in rows} >= {f"{SITES[1]}/topk-k4-r2-s1", f"{SITES[0]}/{NAME}"}
    for row in rows:
        other = torch.nn.functional.normalize(run.record(row["dictionary"].key).weights().W_dec, dim=1)
        assert row["largest"] == pytest.approx(float((other @ direction).max()), abs=1e-5)
        assert all(
            f["cosine"] == pytest.approx(float(other[f["number"]] @ direction), abs=1e-5) for f in row["features"]
        )


def test_two_seeds_are_compared_by_their_nearest_features(explorer, key):
    run, dictionary = explorer.place(key)
    other = next(d.key for d in run.dictionaries.values() if d.title == f"{SITES[1]}/topk-k4-r2-s1")
    data = compare(explorer, {"a": key, "b": other}).data
    nearest = nearest_in(run.record(key).weights(), run.record(other).weights())
    assert data["counts"]["both"] == int(nearest.alike.sum())
    assert data["counts"]["both"] + data["counts"]["only_first"] == dictionary.d_sae
    back = compare(explorer, {"a": other, "b": key}).data
    assert back["counts"]["both"] == data["counts"]["both"] and back["mmcs"] == data["mmcs_back"]
    assert data["mmcs_random"].value < data["mmcs"].value
    with pytest.raises(UserError, match="same dictionary"):
        compare(explorer, {"a": key, "b": key})


def test_search_ranks_the_token_it_is_asked_for_first(explorer):
    run = explorer.runs["run"]
    text, dictionary, number = run.index.rows(
        "SELECT text, token.dictionary, token.number FROM token JOIN feature USING (dictionary, number) "
        "WHERE feature.n_active > 30 AND trim(text) != '' ORDER BY token.share DESC LIMIT 1"
    )[0]
    hits = search(explorer, {"q": text}).data["hits"]
    places = [(hit.feature.dictionary, hit.feature.number) for hit in hits]
    key = next(d.key for d in run.dictionaries.values() if d.id == dictionary)
    assert (key, number) in places[:3] and "of its activation is on" in hits[0].reasons[0]
    assert search(explorer, {"q": ""}).data["hits"] == [] == search(explorer, {"q": "zzzzqqqq"}).data["hits"]


@pytest.mark.parametrize("text", ['"', "'", "a OR", "NEAR(", "*", "%", "\\", "x\0y", "␣×4", "<script>", "漢字", "- ^:"])
def test_nothing_that_is_searched_is_syntax(explorer, text):
    search(explorer, {"q": text})


def test_a_label_is_kept_searched_listed_and_taken_away(explorer, key):
    label = keep(explorer, key, 5, {"text": " <b>dots</b> ", "note": "seen 5%qq", "pinned": True})
    assert label is not None and label.text == "<b>dots</b>"
    (hit,) = [h for h in search(explorer, {"q": "dots"}).data["hits"] if "you call it" in h.reasons[0]]
    assert (hit.feature.dictionary, hit.feature.number) == (key, 5)
    assert [h.feature.number for h in search(explorer, {"q": "5%qq"}).data["hits"]] == [5]
    assert numbers(listing.listing(explorer, {"marked": "pinned"})) == [5]
    assert [row["number"] for row in marks(explorer).data["labels"]] == [5] and '"text": "<b>dots</b>"' in "".join(
        lines(explorer)
    )
    assert keep(explorer, key, 5, {}) is None and marks(explorer).data["labels"] == []
    for wrong in ({"text": 3}, {"pinned": "yes"}, {"colour": ""}, {"text": "x" * 201}):
        with pytest.raises(UserError):
            keep(explorer, key, 5, wrong)


def test_the_front_page_draws_features_of_different_tokens(explorer):
    data = overview(explorer, "run").data
    assert 0 < len(data["features"]) <= 12 and len({(f["dictionary"], f["number"]) for f in data["features"]}) == len(
        data["features"]
    )
    assert data["model"] and data["lead"]


def test_an_experiment_names_its_features(explorer):
    listed = causes(explorer, "run").data["experiments"]
    assert {each["path"] for each in listed} == {"ablate/root", "tree/root", "patch/pairs", "score/rules"}
    assert experiment(explorer, "run", "tree/root").data["features"][0]["part"] == "root of a tree"
    for wrong in ("tree/none", "eval", "tree/../eval", "activations"):
        with pytest.raises(NotThere):
            experiment(explorer, "run", wrong)


def test_one_at_random_is_one_that_is_kept(explorer, key):
    query = parsed({"dictionary": key, "kind": "mixed"})
    kept = {row.number for row in listing.features(explorer.runs["run"], query, 10_000)}
    drawn = {listing.drawn_at_random(explorer.runs["run"], query) for _ in range(20)}
    assert {place[1] for place in drawn if place} <= kept and len(drawn) > 1


def test_a_zero_is_said_in_an_address():
    assert Links().features(score=0, low=0.0, run="", up=False) == "/features?score=0&low=0.0"
    assert parsed({"score": "0"}).choice == {"score": 0.0}


def test_a_transcoder_is_compared_where_it_writes():
    made = {"kind": "topk", "activation": "topk", "d_in": 4, "d_out": 4, "d_sae": 8, "k": 2}
    assert space(DictionaryConfig(**made, site="mlp_in.0", target="mlp_out.0")) == "mlp_out.0"
    residual = [
        DictionaryConfig(**made, site="resid_post.1"),
        DictionaryConfig(**made, site="mlp_in.0", target="resid_mid.3"),
    ]
    assert {space(config) for config in residual} == {"the residual stream"}


def test_a_copy_of_a_run_is_refused_beside_it(explored, tmp_path):
    copied = shutil.copytree(explored, tmp_path / "copy", ignore=shutil.ignore_patterns("explorer.sqlite*"))
    with pytest.raises(UserError, match="is a copy of .* open one of them at a time"):
        Explorer([explored, copied])


def test_a_word_that_only_begins_so_is_found_after_all_others(explorer):
    run = explorer.runs["run"]
    words = {text.strip() for (text,) in run.index.rows("SELECT DISTINCT text FROM token")}
    # a word and the beginning of one, which is no word itself
    asked = {text for word in words if word.isalpha() for text in (word, word[:-1]) if text}
    answers = [search(explorer, {"q": text}).data["hits"] for text in sorted(asked)]
    for hits in answers:
        near = [hit.near for hit in hits]
        assert near == sorted(near)
        assert all(("of its activation is on" in hit.reasons[0]) <= (not hit.near) for hit in hits)
    assert any(hit.near and hit.reasons[0].startswith("begins a word") for hits in answers for hit in hits)
    assert any(not hit.near for hits in answers for hit in hits)


def test_only_dictionaries_of_one_space_are_offered_to_be_compared(explorer):
    offered = compare(explorer, {}).data["offered"]
    keys = [key for of_space in offered.values() for key in of_space]
    assert sorted(keys) == sorted(explorer.titles) and len(offered) == 1
    a, b, *_ = keys
    assert compare(explorer, {"a": a, "b": b}).data["counts"]


def test_what_is_damaged_is_named_and_takes_nothing_else_away(explored, tmp_path):
    run = Path(shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns("explorer.sqlite*")))
    whole = Explorer([run]).runs["run"]
    ablation, deleted, older = (
        run / "ablate" / "root" / "ablate.json",
        *sorted((run / "features").rglob("*.sqlite"))[:2],
    )
    kept = {path: path.read_bytes() for path in (ablation, deleted, run / "score" / "rules" / "scores.jsonl")}
    ablation.write_bytes(b"[" * len(kept[ablation]))
    deleted.unlink()
    (run / "score" / "rules" / "scores.jsonl").unlink()
    with closing(sqlite3.connect(older)) as store:
        schema = store.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        store.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        store.commit()
    for _ in range(2):  # built anew, then from the index that is there
        explorer = Explorer([run])
        broken = explorer.runs["run"]
        stores = {path.relative_to(run).as_posix() for path in (deleted, older)}
        assert set(broken.damaged) == {"ablate/root", "score/rules", *stores}
        assert all(why.count("\n") == 0 and str(tmp_path) not in why for why in broken.damaged.values())
        front = overview(explorer, "run").data
        assert front["damaged"] == broken.damaged and front["features"]
        listed = causes(explorer, "run").data
        assert set(listed["damaged"]) == {"ablate/root", "score/rules"} and listed["experiments"]
        with pytest.raises(UserError, match="ablate.json is damaged"):
            experiment(explorer, "run", "ablate/root")
        lost = [d for d in broken.dictionaries.values() if d.key in whole.dictionaries and not d.gathered]
        for dictionary in lost:
            if whole.dictionaries[dictionary.key].gathered:
                with pytest.raises(UserError, match="does not exist|has schema"):
                    listing.listing(explorer, {"dictionary": dictionary.key})
        assert 0 < listing.listing(explorer, {}).data["total"] < listing.listing(Explorer([explored]), {}).data["total"]
    for path, content in kept.items():
        path.write_bytes(content)
    with closing(sqlite3.connect(older)) as store:
        store.execute("UPDATE meta SET value = ? WHERE key = 'schema'", schema)
        store.commit()
    again = Explorer([run])
    assert not again.runs["run"].damaged
    assert listing.listing(again, {}).data == listing.listing(Explorer([explored]), {}).data


def test_a_damaged_sweep_leaves_the_pages_of_before(explored, tmp_path):
    run = shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns("explorer.sqlite*"))
    explorer = Explorer([run])
    manifest = run / "train" / "main" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:100])
    explorer.runs["run"].refresh(0.0)
    assert "is shown as it was before" in explorer.runs["run"].problem and explorer.titles
    manifest.write_text(text)
    explorer.runs["run"].refresh(0.0)
    assert explorer.runs["run"].problem == ""
