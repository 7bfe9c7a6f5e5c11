"""What `monolex init` writes parses, fits, and runs to its report; what it cannot do it says in a sentence."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from helpers.model_folder import tiny_folder

from monolex.cli import main
from monolex.cost import Shape
from monolex.errors import UserError
from monolex.new_run import fit, template, write
from monolex.new_run.fit import TOKENS
from monolex.new_run.sizes import LADDER, Sizes, Spent, Subject, Text
from monolex.new_run.template import learning_rate
from monolex.run_toml import read_run
from monolex.speed import Speed

SPEED = Speed(measured=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("init")
    tiny_folder(home / "model")
    lines = [{"text": f"document {n} says that {n * 37 % 11} cats sat on {n % 5} mats . " * 6} for n in range(60)]
    (home / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return home


@pytest.fixture
def written(home, tmp_path, monkeypatch, capsys):
    """The file of a tiny model, written at the lowest rung, and what was printed."""
    for module in (fit, write):
        monkeypatch.setattr(module, "LADDER", LADDER[-1:])
    monkeypatch.setattr(write, "measure", lambda *_: SPEED)
    path = tmp_path / "my-run" / "run.toml"  # in a folder that is not there yet
    assert main(["init", str(home / "model"), str(home / "text.jsonl"), "--out", str(path)]) == 0
    return path, capsys.readouterr().out


def test_the_file_fits_the_model_and_says_what_every_line_does(written, home):
    path, printed = written
    run = read_run(path)
    assert run.model.model == str(home / "model")
    assert run.harvest.sites == ("resid_post.0", "resid_post.1", "mlp_out.1")
    assert run.corpus.context_length <= 64, "what the model can read"
    assert run.controls and run.controls.models
    assert all(run.tables[verb] for verb in ("train", "baselines", "features", "explain", "score"))
    assert not run.tables["patch"], "this tokenizer spells no names"
    assert "# [patch.ioi]" in path.read_text()
    lines = path.read_text().splitlines()
    for before, line in pairwise(lines):
        assert " = " not in line or "#" in line or before.startswith("# "), f"no comment: {line}"
    assert f"monolex run {path} --dry-run" in printed and f"which fills {path.parent};" in printed
    assert re.search(r"in all: about \d+ minutes here, .* of disk, .* of memory", printed)
    assert "all that there are" in printed


@pytest.mark.slow
def test_the_file_runs_to_its_report(written, tmp_path, capsys):
    path, _ = written
    assert main(["run", str(path), "--dry-run"]) == 0
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_file_is_never_overwritten(written, home, capsys):
    path, _ = written
    before = path.read_bytes()
    assert main(["init", str(home / "model"), str(home / "text.jsonl"), "--out", str(path)]) == 2
    assert re.fullmatch(rf"monolex: {path} exists; give another --out, or delete it first\n", capsys.readouterr().err)
    assert path.read_bytes() == before


def refusal(tmp_path, capsys, *arguments: str) -> str:
    """The sentence with which a call is refused, after which there is no file."""
    assert main(["init", *arguments, "--out", str(tmp_path / "new.toml")]) == 2
    assert not (tmp_path / "new.toml").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_read_is_refused(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(write, "measure", lambda *_: SPEED)
    model, text = str(home / "model"), str(home / "text.jsonl")
    assert "there is no folder" in refusal(tmp_path, capsys, str(tmp_path / "nothing"), text)
    assert "no such file or folder" in refusal(tmp_path, capsys, model, str(tmp_path / "nothing.jsonl"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "mamba", "num_hidden_layers": 2}')
    (broken / "tokenizer.json").write_text("{}")
    (broken / "model.safetensors").write_text("")
    assert re.match(f"monolex: model = '{broken}' cannot be read: .+", refusal(tmp_path, capsys, str(broken), text))
    (tmp_path / "book.txt").write_text("one single document " * 500)
    assert "is a single document" in refusal(tmp_path, capsys, model, str(tmp_path / "book.txt"))
    assert "the fields there are text" in refusal(tmp_path, capsys, model, text, "--text-field", "body")
    assert "give a positive number" in refusal(tmp_path, capsys, model, text, "--minutes", "0")
    assert re.search(
        r"minutes = 1e-05: the smallest run of .* takes \d+ minutes or so, .*give more --minutes, or a smaller model",
        refusal(tmp_path, capsys, model, text, "--minutes", "0.00001"),
    )


def shaped(width: int, layers: int, block: int) -> Subject:
    widths = {f"{kind}.{n}": width for kind in ("resid_post", "mlp_out") for n in range(layers)}
    return Subject("m", Shape(2 * block, block, 50_000, widths, layers), 1024, "fp32")


def chosen(subject: Subject, minutes: float, tokens: int = TOKENS[-1]) -> Sizes:
    most = Spent(minutes, 10**12, 10**11)
    return fit.choose(subject, Text("t", "text", tokens, 512), most, SPEED)


@pytest.mark.slow
def test_more_minutes_give_richer_runs_and_a_small_text_is_read_again():
    subject = shaped(192, 6, 2_600_000)
    few, many = chosen(subject, 5), chosen(subject, 600)
    assert LADDER.index(few.rung) > LADDER.index(many.rung)
    assert few.tokens < many.tokens
    assert chosen(subject, 600, 200_000).epochs == 4


@pytest.mark.parametrize(("layers", "sites"), [(1, [0]), (2, [0, 1]), (3, [0, 1]), (6, [1, 2, 4]), (30, [7, 14, 22])])
def test_sites_are_at_a_quarter_half_and_three_quarters(layers, sites):
    subject = shaped(64, layers, 10**6)
    assert [site for site in subject.sites if "resid" in site] == [f"resid_post.{n}" for n in sites]
    assert subject.middle in subject.sites


@pytest.mark.parametrize(("context", "mean", "fragment"), [(1024, 800, 64), (64, 800, 32), (1024, 20, 10), (4, 2, 2)])
def test_fragments_fit_into_rows_and_documents(context, mean, fragment):
    subject = shaped(64, 2, 10**6)
    text = Text("t", "text", TOKENS[-1], 512, mean=mean)
    sizes = chosen(subject, 60)
    assert f"fragment_tokens = {fragment} " in template.written(replace(subject, positions=context), text, sizes)


def test_rates_are_near_those_that_were_found_by_hand():
    # the demo's and bench/fig2.toml's
    assert learning_rate(384, 365) == pytest.approx(0.006, rel=0.3)
    assert learning_rate(384, 1299) == pytest.approx(0.004, rel=0.3)


def test_the_bundled_model_gets_the_prompts_that_it_practised(home, tmp_path):
    write.new_run(tmp_path / "run.toml", "demo", str(home / "text.jsonl"), minutes=3)
    run = read_run(tmp_path / "run.toml")
    patch = run.tables["patch"]["ioi"]
    assert (patch.wordings, patch.names) == ("practised", "practised")
    with pytest.raises(UserError, match="exists"):
        write.new_run(tmp_path / "run.toml", "demo", str(home / "text.jsonl"))
