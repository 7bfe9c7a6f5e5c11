"""What is known of a claim: what artefacts say, and no false hypothesis confirmed, whatever words say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.causal_json import artifact, patch
from helpers.explored import ROOT, SITES, strongest

from monolex.artifact import finish, open_artifact, read_json, write_json
from monolex.causal.patch.claims import FEWER, LEVELS
from monolex.errors import UserError
from monolex.explorer.agent.known import USES, known
from monolex.explorer.agent.questions import ClaimQuestion
from monolex.explorer.agent.verdicts import KnownClaim
from monolex.explorer.explorer import Explorer
from monolex.explorer.index import FILE
from monolex.explorer.views.claims import claims
from monolex.explorer.views.marks import keep
from monolex.explorer.views.overview import evaluated
from monolex.report.rivals import equally_sparse


def row(
    token: int, text: str, change: float, control: float | None, p: float | None, half: float = 0.05
) -> dict[str, Any]:
    ends = {"low": change - half, "high": change + half}
    return {"token": token, "text": text, "change": change, **ends, "direct": change / 2, "control": control, "p": p}


PLANTED = {
    "suppressed": [
        row(1, " caused", -0.2, -0.01, 0.001),
        row(2, " chance", -0.2, -0.01, 0.4),
        row(3, " control", -0.2, -0.3, 0.001),
        row(4, " wide", -0.2, -0.01, 0.001, half=0.3),
        row(5, " alone", -0.2, None, None),
        row(6, " twin", -0.2, -0.01, 0.001),
    ],
    "promoted": [row(7, " opposite", 0.2, 0.01, 0.001), row(8, " twin", 0.2, 0.01, 0.001)],
}
VERDICTS = {
    " caused": "confirmed",
    " chance": "undecided",
    " control": "undecided",
    " wide": "undecided",
    " alone": "undecided",
    " twin": "undecided",
    " opposite": "contradicted",
    " never": "undecided",
    "caused": "undecided",
}


def made_of(run: Path) -> dict[str, str]:
    """Parents of an experiment on the trained dictionaries and the baselines that lie in a run."""
    folders = {"subject.train.main": "train/main", "subject.baselines.plain": "baselines/plain"}
    return {name: open_artifact(run / folder).content for name, folder in folders.items()}


@pytest.fixture(scope="module")
def planted(explored: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Explorer, str, int]:
    """A run whose ablation is said to do something, and patches with claims of every verdict."""
    run = tmp_path_factory.mktemp("planted") / "run"
    shutil.copytree(explored, run, ignore=shutil.ignore_patterns(f"{FILE}*", "pairs"))
    sources = made_of(run)
    content = read_json(run / "ablate" / "root" / "ablate.json")
    (ablation,) = content["ablations"]
    ablation["measures"]["probability"] |= PLANTED
    ablation["kl"] |= {"p_feature": 0.001}
    ablation["kl"]["feature"] |= {"value": 0.5}
    ablation["kl"]["control_feature"] |= {"value": 0.1}
    artifact(run / "ablate" / "root", "ablate", content, sources)
    patches = patch(sites=(SITES[1],))
    statement = {"statement": FEWER, "dictionary": ROOT, "against": f"{SITES[1]}/pca"}
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "over": "prompts", "reason": ""}
    patches["claims"] = [
        {**statement, "level": level, "estimate": estimate, "verdict": verdict}
        for level, verdict in zip(LEVELS, ("confirmed", "contradicted", "undecided", "confirmed"), strict=True)
    ]
    artifact(run / "patch" / "ioi", "patch", patches, sources)
    patches["behaviour"] |= {"able": False}
    artifact(run / "patch" / "unable", "patch", patches, sources)
    explorer = Explorer([run])
    key = next(d.key for d in explorer.runs["run"].dictionaries.values() if d.title == ROOT)
    return explorer, key, int(strongest(run).rpartition(":")[2])


def verdict(explorer: Explorer, kind: Any, key: str, **more: Any) -> KnownClaim:
    return known(explorer, ClaimQuestion(kind, key, **more))


def test_a_feature_causes_what_its_ablation_says_and_nothing_else(planted):
    explorer, key, number = planted
    for token, expected in VERDICTS.items():
        claim = verdict(explorer, "causes_token", key, feature=number, token=token)
        assert claim.verdict == expected, token
        assert all(len(basis.source["content"]) == 64 and basis.beside for basis in claim.basis)
    for other in range(explorer.place(key).dictionary.d_sae):
        claim = verdict(explorer, "causes_token", key, feature=other, token=" caused")
        assert claim.verdict == ("confirmed" if other == number else "not measured")
    assert verdict(explorer, "changes_predictions", key, feature=number).verdict == "confirmed"


def test_words_do_not_make_a_false_hypothesis_true(planted):
    explorer, key, number = planted
    said = "this feature causes the token ' opposite' and ' never', confirmed"
    keep(explorer, key, number, {"text": said, "note": said, "pinned": True})
    for token in (" opposite", " never", " chance"):
        claim = verdict(explorer, "causes_token", key, feature=number, token=token)
        assert claim.verdict == VERDICTS[token] != "confirmed"


def test_no_token_of_the_true_ablation_is_confirmed_without_its_numbers(explored):
    explorer = Explorer([explored])
    (ablation,) = read_json(explored / "ablate" / "root" / "ablate.json")["ablations"]
    key = next(d.key for d in explorer.runs["run"].dictionaries.values() if d.title == ROOT)
    changes = ablation["measures"]["probability"]
    for each in (*changes["suppressed"], *changes["promoted"]):
        claim = verdict(explorer, "causes_token", key, feature=ablation["feature"], token=each["text"])
        loses = each["low"] is not None and each["high"] < 0 and each["p"] is not None and each["p"] < 0.05
        assert claim.verdict != "confirmed" or (loses and each["change"] < each["control"])
        assert claim.verdict != "contradicted" or each["change"] > 0


def test_better_one_way_is_worse_the_other_way(explored):
    explorer = Explorer([explored])
    (run,) = explorer.runs.values()
    entries = {(e.site, e.name): e for e in evaluated(run) if e.single and e.model == "subject"}
    opposite = {"confirmed": "contradicted", "contradicted": "confirmed", "undecided": "undecided"}
    seen = set()
    for first in run.dictionaries.values():
        for second in run.dictionaries.values():
            if first.key == second.key:
                continue
            there = verdict(explorer, "reconstructs_better", first.key, against=second.key).verdict
            back = verdict(explorer, "reconstructs_better", second.key, against=first.key).verdict
            assert back == opposite[there]
            a, b = entries[first.site, first.name], entries[second.site, second.name]
            if first.site != second.site or not equally_sparse(a, b):
                assert there == "undecided"
            elif there == "confirmed":
                assert a.rows["fvu"]["high"] < b.rows["fvu"]["low"]
            seen.add(there)
    assert "undecided" in seen


def test_what_comes_back_is_confirmed_beyond_chance_alone(explored, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(explored, folder, ignore=shutil.ignore_patterns(f"{FILE}*", "pairs"))
    explorer = Explorer([folder])
    (run,) = explorer.runs.values()
    key = next(d.key for d in run.dictionaries.values() if d.title == ROOT)
    planted = "UPDATE feature SET seeds = 9, reappears = 1, reappears_low = 0.7, reappears_high = 1 WHERE number = 3"
    with run.index.writing() as db:
        db.execute(planted)
    claim = verdict(explorer, "comes_back", key, feature=3)
    assert claim.verdict == "undecided" and "monolex stability" in claim.note
    assert verdict(explorer, "comes_back", key, feature=3, share=0.8).verdict == "undecided"
    site, _, name = ROOT.partition("/")
    for chance, expected in ((0.6, "confirmed"), (0.7, "undecided"), (None, "undecided")):
        stable = {"dictionaries": [{"site": site, "name": name, "chance": chance}]}
        artifact(folder / "stability" / "seeds", "stability", stable, made_of(folder))
        run.refresh(0.0)
        claim = verdict(Explorer([folder]), "comes_back", key, feature=3)
        assert claim.verdict == expected and bool(claim.note) == (chance is None)


def test_patches_say_their_verdict_where_the_model_can_do_the_task(planted):
    explorer, key, _ = planted
    for level, expected in zip(LEVELS, ("confirmed", "contradicted", "undecided", "confirmed"), strict=True):
        claim = verdict(explorer, "patches_with_fewer", key, level=level, experiment="ioi")
        assert claim.verdict == expected and len(claim.basis) == 1
        assert verdict(explorer, "patches_with_fewer", key, level=level, experiment="unable").verdict == "undecided"
    assert verdict(explorer, "patches_with_fewer", key, level=0.9).verdict == "undecided", "two tasks do not agree"


def test_explanations_are_better_as_their_difference_is(explored):
    explorer = Explorer([explored])
    (run,) = explorer.runs.values()
    differences = read_json(explored / "score" / "rules" / "score.json")["differences"]
    named = {(d.site, d.name): d.key for d in run.dictionaries.values()}
    checked = 0
    for each in differences:
        if each["metric"] != "top_and_random":
            continue
        key, against = named[each["site"], each["name"]], named[each["site"], each["against"]]
        claim = verdict(explorer, "explained_better", key, against=against)
        low, high = each["low"], each["high"]
        above = low is not None and low > 0
        assert claim.verdict == (
            "confirmed" if above else "contradicted" if high is not None and high < 0 else "undecided"
        )
        checked += 1
    assert checked == len(differences) // 2


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ({"pca": "++", "neurons": "++"}, "confirmed"),
        ({"pca": "+-", "neurons": "++"}, "undecided"),
        ({"pca": "+-", "neurons": "--"}, "contradicted"),
        ({"pca": "+0", "neurons": "-0"}, "undecided"),
        ({"pca": "--", "neurons": "++"}, "contradicted"),
    ],
)
def test_explainers_that_do_not_agree_decide_nothing_of_a_rival(explored, tmp_path, signs, expected):
    folder = tmp_path / "run"
    shutil.copytree(explored, folder, ignore=shutil.ignore_patterns(f"{FILE}*", "pairs"))
    scores = folder / "score" / "rules"
    content, before = read_json(scores / "score.json"), open_artifact(scores)
    example = next(row for row in content["differences"] if row["metric"] == "top_and_random")
    site, _, name = ROOT.partition("/")
    content["differences"] = [
        {**example, "site": site, "name": name, "against": against, "explainer": explainer, **ENDS[sign]}
        for against, each in signs.items()
        for explainer, sign in zip(("token", "ngram"), each, strict=True)
    ]
    files = {**before.files, "score.json": write_json(scores / "score.json", content)}
    finish(scores, before.kind, before.config, before.parents, files, before.data)
    explorer = Explorer([folder])
    key = next(d.key for d in explorer.runs["run"].dictionaries.values() if d.title == ROOT)
    claim = verdict(explorer, "explained_better", key)
    assert claim.verdict == expected and len(claim.basis) == 4


ENDS = {
    "+": {"value": 0.2, "low": 0.1, "high": 0.3},
    "-": {"value": -0.2, "low": -0.3, "high": -0.1},
    "0": {"value": 0.0, "low": -0.1, "high": 0.1},
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "causes_token", "token": " a"},
        {"kind": "causes_token", "feature": 0},
        {"kind": "causes_token", "feature": 0, "token": " a", "level": 0.9},
        {"kind": "causes_token", "feature": 10**30, "token": " a"},
        {"kind": "comes_back", "feature": 0, "share": 1.0},
        {"kind": "comes_back", "feature": -1},
        {"kind": "patches_with_fewer", "level": 0.6},
        {"kind": "reconstructs_better", "against": "0" * 12},
        {"kind": "reconstructs_better", "feature": 3},
        {"kind": "a feature is good"},
    ],
)
def test_a_claim_that_says_too_little_or_too_much_is_refused(planted, wrong):
    explorer, key, _ = planted
    with pytest.raises(UserError):
        verdict(explorer, wrong.pop("kind"), key, **wrong)
    with pytest.raises(UserError, match="is the dictionary itself"):
        verdict(explorer, "reconstructs_better", key, against=key)


def test_every_kind_of_claim_says_its_rule(planted):
    explorer, key, number = planted
    for kind, uses in USES.items():
        more: dict[str, Any] = {"feature": number} if "feature" in uses else {}
        claim = verdict(explorer, kind, key, **more, **({"token": " caused"} if "token" in uses else {}))
        assert claim.rule.startswith("confirmed if") or claim.rule.startswith("the verdict of the patch")
        assert claim.basis or claim.note
        json.dumps([basis._asdict() for basis in claim.basis], allow_nan=False)


def test_a_damaged_artefact_takes_no_other_claim_of_the_paper_away(planted, tmp_path):
    explorer, *_ = planted
    run = shutil.copytree(explorer.runs["run"].folder, tmp_path / "run", ignore=shutil.ignore_patterns(f"{FILE}*"))
    whole = {claim["name"]: claim for claim in claims(Explorer([run]), "run").data["claims"]}
    opened = Explorer([run])
    (run / "ablate" / "root" / "ablate.json").write_text("{", encoding="utf-8")
    page = claims(opened, "run")
    left = {claim["name"]: claim for claim in page.data["claims"]}
    assert {name for name, claim in left.items() if claim != whole[name]} == {"fig4"}
    assert left["fig4"]["verdict"] == "not measured" != whole["fig4"]["verdict"]
    assert left["fig4"]["said"][0].startswith("ablate/root/ablate.json has") and str(run) not in str(page.data)


def test_only_what_is_older_than_the_run_is_called_so(explored, tmp_path):
    run = shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns(f"{FILE}*"))
    assert {claim["stale"] for claim in claims(Explorer([run]), "run").data["claims"]} == {""}
    shutil.rmtree(run / "explain")
    stale = {claim["name"]: claim["stale"] for claim in claims(Explorer([run]), "run").data["claims"]}
    assert "explanations were made again" in stale["fig9"] and stale["biases"] == ""
