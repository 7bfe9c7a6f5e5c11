"""The report and `show` on experiments: behaviour first, equal to the artefacts, escaped, every n/a with its reason."""

import re
import shutil

import pytest
from helpers import causal_json
from helpers.causal_json import HOSTILE, LOST, NO_CONTROL, SITES, artifact, without_values
from helpers.fake_run import fake_run
from helpers.page_parser import Page
from markupsafe import escape

from monolex.artifact import open_artifact
from monolex.pages import tokens
from monolex.pages.html import interval, number
from monolex.pages.tree_diagram import spans
from monolex.report.ablate_section import NO_DIRECT, NO_TEST, verdict
from monolex.report.page import report
from monolex.report.patch_section import NOT_ASKED, SIZES, nearest
from monolex.report.section import chapters, notice
from monolex.show.path import show

KINDS = {"patch": causal_json.patch, "ablate": causal_json.ablate, "tree": causal_json.tree}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = fake_run(tmp_path_factory.mktemp("run"))
    for kind, make in KINDS.items():
        artifact(folder / kind / "one", kind, make())
    report(folder)
    return folder


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def shown(row) -> str:
    return f"{number(row['value'])} {interval(row['low'], row['high'])}"


def section(text: str) -> str:
    return text[text.index('<section id="causes"') : text.index('<section id="made">')]


def test_page_stays_self_contained(text, page):
    assert "://" not in text and "@import" not in text and "url(" not in text
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "action", "data")]
    assert len(page.ids) == len(set(page.ids)) and {link[1:] for link in page.links} <= set(page.ids)
    assert "#causes" in page.links


def test_tokens_and_prompts_are_escaped(text, page):
    assert HOSTILE not in text and text.count("<script") == 1 and "&lt;script&gt;" in section(text)
    assert "\u202e" not in text and "\x00" not in text
    assert {"␣self", "↵␣×4", "∅"} <= set(page.rows["ablate-1-1-down"])


def test_experiments_are_among_the_stages(text):
    for kind in KINDS:
        assert f'<tr><th scope="row">{kind}/one</th><td>{kind}</td>' in text


def test_without_experiments_there_is_no_section(tmp_path):
    content = report(fake_run(tmp_path)).read_text(encoding="utf-8")
    assert "#causes" not in content and "What features cause" not in content


def test_what_the_run_does_not_list_is_left_out(run, text, tmp_path):
    artefacts = {path.parent.relative_to(run).as_posix() for path in run.rglob("manifest.json")}
    copy = shutil.copytree(run, tmp_path / "run")
    content = report(copy, artefacts - {"tree/one"}).read_text(encoding="utf-8")
    assert 'id="patch-1"' in content and 'id="tree-1"' not in content and "tree/one" not in content
    assert 'id="tree-1"' in text


@pytest.mark.parametrize("able", [True, False])
def test_behaviour_comes_first_and_warns(able, tmp_path):
    folder = fake_run(tmp_path)
    artifact(folder / "patch" / "p", "patch", causal_json.patch(able=able))
    content = section(report(folder).read_text(encoding="utf-8"))
    warning = content.find("This experiment says nothing about the task.")
    assert (warning >= 0) != able
    first = content.find("the model does this task") if able else warning
    assert 0 <= first < content.index('id="patch-1-behaviour"') < content.index("<svg")


def test_behaviour_of_practised_and_held_out_prompts(page):
    rows = page.rows["patch-1-behaviour"]
    patch = causal_json.patch()
    assert rows["all"][:2] == [shown(patch["behaviour"][name]) for name in ("accuracy", "logit_difference")]
    assert {f"IOI in {name} wordings" for name in ("practised", "held-out", "standard")} <= set(rows)
    assert rows["practised names"][0] == shown(patch["table"][0]["accuracy"])


@pytest.mark.parametrize("site", range(len(SITES)))
def test_floors_equal_the_artefact(page, site):
    rows = page.rows[f"patch-1-site-{site + 1}-floors"]
    for dictionary in (
        dictionary
        for dictionary in causal_json.patch()["curves"]
        if dictionary["site"] == SITES[site] and dictionary["model"] == "subject"
    ):
        candidates, kl, share, metric, edit = rows[dictionary["name"]]
        floor = dictionary["floors"]["all"]
        assert (candidates, kl) == (str(dictionary["candidates"]), shown(floor["kl"]))
        assert (metric, edit) == (shown(floor["metric"]), shown(floor["edit"]))
        compared = dictionary["name"] in ("pca", "tied-a3e-3-r4-s0")
        assert share == ("0.200 [0.180, 0.220] ✓ confirmed" if compared else "n/a")


def test_claims_have_words_beside_numbers(page, text):
    rows = page.rows["patch-1-site-1-claims"]
    assert rows["tied-a0-r4-s0"] == ["1.40 [1.33, 1.47] ✗ contradicted"] * 3
    assert rows["tied-a3e-3-r4-s0"] == ["0.600 [0.570, 0.630] ✓ confirmed"] * 3
    assert rows["batchtopk-k32-r4-s0"][:2] == ["1.02 [0.969, 1.07] ? undecided"] * 2
    assert rows["batchtopk-k32-r4-s0"][2].split() == ["n/a", "?", "undecided"]
    assert f">{SITES[0]}/batchtopk-k32-r4-s0 {LOST}</li>" in text and f">{escape(NOT_ASKED)}</li>" in text


def test_claims_are_counted(page):
    claims = causal_json.patch()["claims"]
    for statement, counts in page.rows["patch-1-summary"].items():
        if statement == "Statement":
            continue
        verdicts = [claim["verdict"] for claim in claims if claim["statement"] == statement]
        assert counts == [str(verdicts.count(v)) for v in ("confirmed", "contradicted", "undecided")]


def test_nearest_sizes():
    points = [{"size": n} for n in (0, 1, 5, 90)]
    assert [point and point["size"] for point in (nearest(points, n) for n in SIZES)] == [1, 5, None, 90, None]
    assert nearest([], 4) is None


def test_sizes_that_were_not_measured_say_which_were(page):
    row = page.rows["patch-1-site-1-sizes"]["tied-a0-r4-s0"]
    wanted = {p["size"]: p["kl"] for p in causal_json.patch()["curves"][0]["curves"]["ranking"]}
    assert row == [shown(wanted[size]) for size in SIZES]


def test_every_missing_cell_has_its_reason(text, page):
    cells = re.findall(r"<td([^>]*)>n/a(.{0,80})", section(text))
    assert len(cells) > 10
    for attributes, rest in cells:
        assert 'title="' in attributes
        target = re.match(r'<a class="note" href="#([^"]+)"', rest)
        assert target and target[1] in page.ids


def test_verdict_is_computed_from_the_numbers():
    ablation = causal_json.ablate()["ablations"][0]
    said = str(verdict(ablation))
    assert "changes predictions 5.10 times as much" in said and "p = 3.00e-06)" in said
    assert f"loses most probability is {tokens.token(' self')} (−3.50 [−3.70, −3.30];" in said
    assert "61 tokens change otherwise than under the control, 22 of them lose." in said
    ablation["kl"]["p_feature"] = 0.3
    assert "p = 0.300, which chance alone can do" in verdict(ablation)
    ablation["measures"]["logprob"]["suppressed"][0]["text"] = HOSTILE
    assert HOSTILE not in verdict(ablation)


def test_verdict_without_a_control_says_so():
    ablation = causal_json.ablate(control=False)["ablations"][0]
    assert f"no control to compare with ({NO_CONTROL})" in verdict(ablation) and f"p n/a ({NO_TEST})" in verdict(
        ablation
    )
    ablation["measures"]["probability"] |= {"suppressed": [], "significant": None, "significant_down": None}
    assert "loses most" not in verdict(ablation) and "tokens change" not in verdict(ablation)


def test_ablation_tables_equal_the_artefact(page, text):
    ablation = causal_json.ablate()["ablations"][0]
    rows = page.rows["ablate-1-1-kl"]
    assert rows["this feature"][0] == shown(ablation["kl"]["feature"])
    assert rows["another active feature of that size"] == [shown(ablation["kl"]["control_feature"]), "3.00e-06"]
    first = ablation["measures"]["logprob"]["suppressed"][0]
    span = interval(first["low"], first["high"])
    wanted = [f"{number(first['change'])} {span}", *(number(first[key]) for key in ("direct", "control", "p"))]
    assert page.rows["ablate-1-1-down"]["␣self"] == wanted
    assert page.rows["ablate-1-1-rescue"]["resid_post.2"] == [shown(ablation["rescue"][1]["own"]), "n/a"]
    assert "Adding it back, at 1 of the 3 later layers" in text
    assert page.rows["ablate-1-1-pairs"]["with feature 40"][2:] == [
        shown(ablation["interactions"][0]["interaction"]),
        "0.0200",
    ]


def test_blocks_between_the_sites_of_a_tree_are_said(tmp_path):
    content, folder = causal_json.tree(), fake_run(tmp_path)
    assert spans(content["trees"][0]) == ""
    far = {"resid_post.2": "resid_post.20", "resid_post.1": "resid_post.12", "resid_post.0": "resid_pre.12"}
    for node in content["trees"][0]["nodes"]:
        node["site"] = far[node["site"]]
    said = "8 blocks lie between resid_post.12 and resid_post.20"
    assert spans(content["trees"][0]) == said
    artifact(folder / "tree" / "a", "tree", content)
    assert said in report(folder).read_text(encoding="utf-8") and said in show(folder / "tree" / "a")


def test_ablation_without_controls(tmp_path):
    folder = fake_run(tmp_path)
    artifact(folder / "ablate" / "a", "ablate", causal_json.ablate(control=False))
    content = report(folder).read_text(encoding="utf-8")
    page = Page(content)
    assert "ablate-1-1-rescue" not in page.rows and f">{NO_DIRECT}</li>" in content
    assert page.rows["ablate-1-1-kl"]["another active feature of that size"] == ["n/a", "n/a"]
    assert "(which changes nothing on 3 of them)" in content


def test_nothing_is_said_of_occurrences_that_all_changed(text):
    assert "changes nothing on" not in text


def test_contexts_mark_their_last_token(text):
    assert '<mark class="a10 peak" title="5.50"> self</mark>' in section(text)
    assert section(text).count(" peak") == 3


def test_tree_table_follows_the_tree(page):
    rows = page.rows["tree-1-1-nodes"]
    names = [name.split(" '")[0] for name in rows if name != "Node"]
    assert names == ["2.5", "· 1.344", "· · 0.7", "· 1.12", "· · 0.7", "· reconstruction error", "· all features"]
    nodes = causal_json.tree()["trees"][0]["nodes"]
    cells = next(cells for name, cells in rows.items() if name.startswith("· 1.344"))
    assert cells[0] == shown(nodes[1]["effect"]) and cells[2] == number(nodes[1]["share"])
    assert any(name.endswith(", repeated") for name in rows)
    leaf = causal_json.tree()["trees"][0]["logits"][0]
    assert page.rows["tree-1-1-tokens"]["␣self"][0] == shown(leaf["effect"])


def test_a_tree_of_a_root_alone(tmp_path):
    folder = fake_run(tmp_path)
    artifact(folder / "tree" / "t", "tree", causal_json.tree(deep=False))
    content = report(folder).read_text(encoding="utf-8")
    assert "No feature of the site before moves it for certain." in content
    Page(content)


def test_stale_experiments_say_so(tmp_path):
    folder = fake_run(tmp_path)
    contents = {name: open_artifact(folder / name).content for name in ("activations", "train/residual")}
    parents = {
        "activations": contents["activations"],
        "subject.train.residual": contents["train/residual"],
        "task": "x",
    }
    artifact(folder / "tree" / "t", "tree", causal_json.tree(), parents)
    assert 'class="notice"' not in report(folder).read_text(encoding="utf-8")
    parents |= {"subject.train.residual": "other", "random.train.small": "other", "subject.baselines.gone": "x"}
    artifact(folder / "tree" / "t", "tree", causal_json.tree(), parents)
    content = report(folder).read_text(encoding="utf-8")
    assert "controls/random/train/small and train/residual were made again since" in content
    assert "baselines/gone was taken out of this run" in content and "damaged" not in content
    manifests = {name: open_artifact(folder / name) for name in ("activations", "tree/t")}
    said = notice(folder, manifests["tree/t"], manifests)
    assert "train/residual were damaged or written by another version" in said


@pytest.mark.parametrize("kind", KINDS)
def test_null_estimates_break_neither_page_nor_text(kind, tmp_path):
    folder = fake_run(tmp_path)
    manifest = artifact(folder / kind / "x", kind, without_values(KINDS[kind]()))
    assert chapters(folder, {f"{kind}/x": manifest}, None)
    content = report(folder).read_text(encoding="utf-8")
    assert "lost" in section(content) and "nan" not in section(content).lower().split()
    Page(content)
    assert "n/a: lost" in show(folder / kind / "x") or kind == "tree"


@pytest.mark.parametrize(
    ("kind", "content", "lines"),
    [
        (
            "patch",
            causal_json.patch(able=False, table=False),
            ["NOT ABLE: this model cannot do the task: accuracy 0.45"],
        ),
        (
            "patch",
            causal_json.patch(),
            [
                "able: the model does this task on 96 % of prompts",
                "held-out   held-out   0.35 [0.332, 0.367]",
                "resid_post.1/tied-a3e-3-r4-s0     resid_post.1/pca  0.25  0.6 [0.57, 0.63]",
            ],
        ),
        ("ablate", causal_json.ablate(), ["a matched feature   0.1 [0.09, 0.11]", '" self"', "-3.5 [-3.7, -3.3]"]),
        ("ablate", causal_json.ablate(), ["added back at 1 of 3 later layers", "resid_post.2   0.7 [0.63, 0.77]"]),
        ("ablate", causal_json.ablate(control=False), [f"n/a: {NO_CONTROL}"]),
        ("tree", causal_json.tree(), ["\n  1.344 '.' ').' '?'  2.40 ± 0.100 (60 %)\n    0.7 ", '" self" 2 [1.8, 2.2]']),
        ("tree", causal_json.tree(deep=False), ["mean activation 4.00\n"]),
    ],
)
def test_show_says_the_same_as_text(kind, content, lines, tmp_path):
    artifact(tmp_path / "x", kind, content)
    said = show(tmp_path / "x")
    assert said.startswith(f"{tmp_path / 'x'}: {kind}, 1 files")
    assert [line for line in lines if line not in said] == []


def test_a_phone_scrolls_nothing_but_boxes(run, browser_page):
    browser_page.open(run / "report.html", width=390)
    assert browser_page.scroll_width() == 390
