"""Galleries and the report's features: complete, in order, safe, quiet in a browser, and filtered as asked."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.fake_run import fake_run
from helpers.fake_scores import line, plan, scored
from helpers.fake_store import fake_codes, fake_features, fake_store
from helpers.page_parser import Page

from monolex.artifact import open_artifact
from monolex.cli import main
from monolex.errors import UserError
from monolex.features.evidence import Summary
from monolex.features.store import FeatureStore
from monolex.pages.interest import judge, ranked, varied
from monolex.report import features_section as features
from monolex.report.gallery import SORTS, chosen, gallery, tokens_of
from monolex.report.page import report

STORES = {
    "resid_post.1/tied-a1": "tied",
    "resid_post.1/neurons": "neurons",
    "resid_post.2/pca": "pca",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FeatureStore:
    return fake_store(tmp_path_factory.mktemp("s") / "resid_post.1" / "tied-a1.sqlite")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = fake_run(tmp_path_factory.mktemp("run"))
    fake_features(folder, STORES)
    assert report(folder) == folder / "report.html"
    return folder


def order(text: str) -> list[int]:
    """Features in sight, in the order of the page."""
    cards = re.findall(r'<article class="feature"([^>]*)>', text)
    return [int(re.findall(r'data-id="(\d+)"', attributes)[0]) for attributes in cards if "hidden" not in attributes]


def summary(n_active=100, density=0.005, mean_active=1.0, largest=10.0, share=0.5) -> Summary:
    moments = (0.0, 0.0, 1.0, 1.0, 1.0, mean_active)
    return Summary(
        0, n_active, 5, density, largest, *moments, 3, 0, share, None, None, None, None, 0, None, None, None, None
    )


def test_interest_rises_with_what_it_says():
    base = judge(summary(), 0.0).interest
    assert 0 < base < judge(summary(share=0.9), 0.0).interest <= 1
    assert base < judge(summary(), 0.9).interest
    assert base > judge(summary(density=0.05), 0.0).interest > judge(summary(density=0.1), 0.0).interest == 0
    assert base == judge(summary(density=1e-5), 0.0).interest
    assert base > judge(summary(mean_active=5.0), 0.0).interest
    assert judge(summary(n_active=15), 0.0).interest == pytest.approx(base / 2)
    assert judge(summary(n_active=0), 0.0)[1:] == (0.0, 0.0, "dead")


@pytest.mark.parametrize(
    ("share", "before", "kind"),
    [(0.8, 0.0, "single-token"), (0.9, 0.9, "single-token"), (0.7, 0.8, "preceding-token"), (0.79, 0.79, "mixed")],
)
def test_kind_is_that_of_one_token(share, before, kind):
    assert judge(summary(share=share), before).kind == kind


def test_every_feature_is_ranked_once_and_by_its_kind(store):
    features = ranked(store)
    assert sorted(feature.id for feature in features) == list(range(8))
    assert [feature.interest for feature in features] == sorted(
        (feature.interest for feature in features), reverse=True
    )
    kinds = {feature.id: feature.kind for feature in features}
    assert (kinds[0], kinds[1], kinds[2], kinds[3]) == ("single-token", "preceding-token", "mixed", "dead")


def test_a_few_are_of_every_kind(store):
    kinds = {feature.kind for feature in varied(ranked(store), 3)}
    assert kinds == {"single-token", "preceding-token", "mixed"}
    assert len(varied(ranked(store), 6)) == 6 and 3 not in {feature.id for feature in varied(ranked(store), 8)}


def test_page_holds_every_card_in_order_of_interest(store):
    text = gallery(store)
    page = Page(text)
    assert order(text) == [feature.id for feature in ranked(store) if feature.kind != "dead"]
    assert {f"feature-{i}" for i in range(8)} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "7 of 8 features were active in 960 activations" in text and "most interesting of" not in text


def test_attributes_are_the_numbers_of_the_store(store):
    text = gallery(store)
    for feature in ranked(store):
        known = re.findall(rf'id="feature-{feature.id}"([^>]*)>', text)[0]
        values = dict(re.findall(r'data-(\w+)="([^"]*)"', known))
        assert float(values["density"]) == pytest.approx(feature.summary.density, rel=1e-5)
        assert float(values["max"]) == pytest.approx(feature.summary.max, rel=1e-5)
        assert values["kind"] == feature.kind and ("hidden" in known) == (feature.kind == "dead")


def test_few_cards_of_many_is_said_and_nothing_links_beyond_them(store):
    text = gallery(store, cards=3)
    page = Page(text)
    assert "The 3 most interesting of 8 are on this page" in text
    assert order(text) == [feature.id for feature in ranked(store)[:3]]
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_cards_of_the_report_link_to_what_the_gallery_holds(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    manifest = open_artifact(folder / "features")
    features.write_galleries(folder, manifest, cards=2)
    links = []
    for site in features.section(folder, manifest, cards=2).values():
        cards = [card for shown in site["shown"] for card in shown.cards] + list((site["contrast"] or ("",))[1:])
        links += Page("".join(cards)).links
    assert links
    for path, _, anchor in (link.partition("#") for link in links):
        assert f'id="{anchor}"' in (folder / path).read_text(encoding="utf-8")


def test_a_link_of_a_card_leads_to_the_number_it_says(store):
    """And there is one for every feature that a card names and the page holds."""
    for text, on_page in ((gallery(store), 8), (gallery(store, cards=3), 3)):
        ids = {int(number) for number in re.findall(r'id="feature-(\d+)"', text)}
        links = re.findall(r'<a href="#feature-(\d+)">(\d+)</a>', text)
        assert len(ids) == on_page and len({said for _, said in links}) > 1
        assert [(where, said) for where, said in links if where != said] == []
        unlinked = {int(number) for number in re.findall(r"<em>(\d+)</em>", text)}
        assert {int(said) for _, said in links} <= ids and not unlinked & ids
    assert unlinked, "the short page names features that it does not hold"


def explained(features) -> dict:
    entry, level = plan(("resid_post.1",))[0]
    (scores,) = scored([line(entry, i, "token", "rules", level) for i in features]).values()
    return scores


def test_explained_features_are_on_the_page_before_any_other(store):
    features, least = ranked(store), ranked(store)[-2:]
    text = gallery(store, cards=3, scored=explained(feature.id for feature in least))
    on_page = {int(i) for i in re.findall(r'id="feature-(\d+)"', text)}
    assert on_page == {features[0].id, *(feature.id for feature in least)}
    assert "3 of 8 are on this page: 2 of the 2 with explanations, then the most interesting." in text
    assert [feature.id for feature in chosen(features, 3, {})] == [feature.id for feature in features[:3]]
    assert "1 of the 2 with explanations" in gallery(store, cards=1, scored=explained(feature.id for feature in least))
    assert "2 have explanations." in gallery(store, scored=explained((0, 1)))
    assert chosen(features, 8, explained(range(8))) == features


def test_scored_features_can_be_sorted_by_their_score(store, tmp_path, browser_page):
    scored = explained((0, 1, 2, 5))
    text = gallery(store, scored=scored)
    assert '<option value="score">score (token, rules)</option>' in text and "data-score" not in gallery(store)
    values = {i: scores[0].row["scores"]["top_and_random"]["value"] for i, scores in scored.items()}
    assert values[5] is None and text.count("data-score=") == 3
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    shown = browser_page.open(f"{(tmp_path / 'page.html').as_uri()}#sort=score")
    rest = [i for i in (1, 2, 4, 5, 6, 7, 0) if values.get(i) is None]
    best = sorted((0, 1, 2), key=lambda i: -values[i])
    assert browser_page.said == [] and order(shown) == [*best, *sorted(rest)]


def test_one_feature(tmp_path):
    codes, ids = fake_codes()
    text = gallery(fake_store(tmp_path / "s" / "one.sqlite", codes[:, :1], ids))
    assert order(text) == [0] and "1 of 1 features" in text
    Page(text)


def test_all_dead(tmp_path):
    codes, ids = fake_codes()
    text = gallery(fake_store(tmp_path / "s" / "dead.sqlite", codes[:, 3:4], ids))
    assert order(text) == [] and "0 of 1 features" in text
    Page(text)


def test_hostile_tokens_stay_text(store):
    text = gallery(store)
    assert "<img" not in text and text.count("<script") == text.count("</script>") == 1
    assert "&lt;/script&gt;&lt;img src=x" in text


def test_report_writes_a_gallery_for_every_store(run):
    pages = sorted(p.relative_to(run / "gallery").with_suffix("").as_posix() for p in (run / "gallery").rglob("*.html"))
    assert pages == sorted(STORES)
    for name in STORES:
        text = (run / "gallery" / f"{name}.html").read_text(encoding="utf-8")
        links = [link for link in Page(text).links if not link.startswith("#")]
        assert links == ["../../report.html"] and ((run / "gallery" / name).parent / links[0]).resolve().exists()


def test_report_shows_features_and_their_galleries(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.count('<article class="feature compact"') == 3 * 6 + 2 + 6
    assert {"site-1-features", "site-2-features"} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    for link in (link for link in page.links if not link.startswith("#")):
        path, _, anchor = link.partition("#")
        target = (run / path).read_text(encoding="utf-8")
        assert not anchor or f'id="{anchor}"' in target
    assert "://" not in text and "url(" not in text
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")]


def test_contrast_is_with_the_axis_that_the_feature_reads(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    (told,) = re.findall(r"Feature (\d+) of tied-a1 beside axis (\d+) of resid_post.1.*?weight \(([\d.]+)", text)
    first = ranked(FeatureStore(run / "features" / "resid_post.1" / "tied-a1.sqlite"))[0].id
    assert told == (str(first), str(7 - first), "1.00")


def test_no_contrast_without_the_dictionary(tmp_path):
    run = fake_run(tmp_path)
    fake_features(run, STORES)
    shutil.rmtree(run / "train")
    assert "A feature and an axis" not in report(run).read_text(encoding="utf-8")


def test_nothing_changes_without_features(tmp_path):
    text = report(fake_run(tmp_path)).read_text(encoding="utf-8")
    assert "<article" not in text and not (tmp_path / "gallery").exists()


def test_damaged_store(tmp_path):
    run = fake_run(tmp_path)
    fake_features(run, STORES)
    path = run / "features" / "resid_post.2" / "pca.sqlite"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match="is no feature store"):
        report(run)


def test_same_store_gives_the_same_page(store):
    assert gallery(store) == gallery(store)


def test_browser_opens_report_and_gallery_quietly(run, tmp_path, browser_page):
    for page in ("report.html", "gallery/resid_post.1/tied-a1.html"):
        assert "</html>" in browser_page.open(run / page)
    assert browser_page.said == [] and browser_page.requests == []
    broken = tmp_path / "broken.html"
    broken.write_text('<img src="http://monolex.invalid/x.png"><script>none.such</script>', encoding="utf-8")
    browser_page.open(broken)
    assert "none is not defined" in browser_page.said and browser_page.requests == ["http://monolex.invalid/x.png"]


CHOICES = {
    "": lambda feature: -feature.interest,
    "sort=density": lambda feature: feature.summary.density,
    "sort=-density": lambda feature: -feature.summary.density,
    "sort=max": lambda feature: -feature.summary.max,
    "sort=kurtosis": lambda feature: -feature.summary.kurtosis,
    "sort=share": lambda feature: -feature.summary.top_share,
    "sort=reappears": lambda feature: -feature.summary.reappears,
    "sort=id": lambda feature: feature.id,
}


@pytest.mark.parametrize("chosen", CHOICES)
def test_sorting_in_a_browser(run, store, chosen, browser_page):
    assert {f"sort={key}" for key, _ in SORTS} == {*CHOICES, "sort=interest"} - {""}
    alive = [feature for feature in ranked(store) if feature.kind != "dead"]
    page = (run / "gallery" / "resid_post.1" / "tied-a1.html").as_uri()
    shown = browser_page.open(f"{page}#{chosen}")
    assert browser_page.said == []
    assert order(shown) == [
        feature.id for feature in sorted(alive, key=lambda feature: (CHOICES[chosen](feature), feature.id))
    ]


def has(text):
    """Whether a feature is most active on a token that holds ``text``."""
    return lambda _one, tokens: any(text in token for token in tokens)


FILTERS = {
    "token=%20SELF": has(" self"),
    "token=%5Cn%20%20": has("\n  "),
    "token=%3C%2FScript": has("</script"),
    "token=nowhere": has("nowhere"),
    "token=.&kind=mixed": lambda feature, tokens: feature.kind == "mixed" and "." in tokens,
    "kind=preceding-token": lambda feature, _: feature.kind == "preceding-token",
    "min=10": lambda feature, _: feature.summary.density >= 0.1,
    "max=1": lambda feature, _: 0 < feature.summary.density <= 0.01,
    "min=1&max=8": lambda feature, _: 0.01 <= feature.summary.density <= 0.08,
    "back=50": lambda feature, _: feature.kind != "dead" and feature.summary.reappears >= 0.5,
    "dead=1&max=1": lambda feature, _: feature.summary.density <= 0.01,
    "sort=nonsense&kind=nonsense&min=10": lambda feature, _: feature.summary.density >= 0.1,
    "feature-3": lambda _feature, _tokens: True,
}


@pytest.mark.parametrize("chosen", FILTERS)
def test_filters_in_a_browser(run, store, chosen, browser_page):
    kept = {feature.id for feature in ranked(store) if FILTERS[chosen](feature, tokens_of(store, feature.id))}
    page = (run / "gallery" / "resid_post.1" / "tied-a1.html").as_uri()
    shown = browser_page.open(f"{page}#{chosen}")
    assert browser_page.said == []
    assert set(order(shown)) == kept and (chosen == "token=nowhere") == (not kept)
    count = re.findall(r"<output[^>]*>(.*?)</output>", shown)[0]
    assert count.startswith(f"{len(kept) - (chosen == 'feature-3')} shown" if kept else "none")


DEMO = """
[model]
model = "demo"
[corpus]
max_tokens = 16_000
document_tokens = 512
held_out = 0.3
[harvest]
sites = ["resid_post.3"]
[train.small]
kinds = ["batchtopk"]
ks = [8]
ratios = [1.0]
preprocess = "scale"
steps = 30
batch_size = 256
[baselines.plain]
kinds = ["neurons"]
[features]
[eval]
rows = 1000
contexts = 2
"""


@pytest.mark.slow
def test_the_demo_models_report_opens_quietly(tmp_path, browser_page):
    (tmp_path / "run.toml").write_text(DEMO)
    assert main(["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run"), "--cards", "3"]) == 0
    pages = [tmp_path / "run" / "report.html", *(tmp_path / "run" / "gallery").rglob("*.html")]
    assert len(pages) == 3
    assert all(browser_page.open(page).count("<article") >= 3 for page in pages)
    assert browser_page.said == [] and browser_page.requests == []


def test_a_table_is_sorted_by_its_heads(run, browser_page):
    browser_page.open(run / "report.html")
    browser_page.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    table = browser_page.page.locator("#site-1 table:not(.shares)").first
    column = "tbody:last-of-type tr:not(.group) td:nth-of-type(1)"

    def shown() -> list[str]:
        return [text.split("\n")[0] for text in table.locator(column).all_inner_texts()]

    before = shown()
    head = table.locator("thead th").nth(1)
    head.click()
    numbers = [float(text.replace(",", "").replace("−", "-")) for text in shown() if text[:1] in "−0123456789"]
    assert numbers == sorted(numbers, reverse=True) and head.get_attribute("aria-sort") == "descending"
    head.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    head.click()
    assert shown() == before and browser_page.said == []
