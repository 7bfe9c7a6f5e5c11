"""Every source of text, and what becomes of what cannot be read."""

import importlib.util
import json
import logging
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from helpers.tiny_texts import (
    config,
    kept_text,
    make_tokenizer,
    refuse,
    sentence,
    texts_of,
    write_chats,
    write_jsonl,
)
from transformers import PreTrainedTokenizerFast

from monolex.text import corpus, documents


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def test_folder_is_read_whole_and_faults_are_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("cat", encoding="utf-8")
    (tmp_path / "deep" / "b.MD").write_text("dog", encoding="utf-8")
    (tmp_path / "deep" / "picture.png").write_text("no text file", encoding="utf-8")
    (tmp_path / "deep" / ".hidden" / "c.txt").write_text("hidden", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n\t", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("na\xefve".encode("latin-1"))
    deep = "[" * 100_000
    lines = [
        '{"text": "mat"}',
        "",
        "{broken",
        '["a list"]',
        '{"text": 3}',
        '{"other": "x"}',
        '{"text": "\\ud800"}',
        deep,
    ]
    (tmp_path / "lines.jsonl").write_bytes("\r\n".join(lines).encode() + b'\n{"text": ""}\n{"text": "\xff"}')
    write_chats(tmp_path / "chat.jsonl", [("user", "red"), ("assistant", "house")])
    with caplog.at_level(logging.INFO, logger="monolex"):
        built = corpus.build(config(tmp_path, context_length=64), tokenizer)
    text = tokenizer.decode(built.train.tokens[built.train.docs >= 0].tolist())
    for part in ("<s>cat", "<s>dog", "<s>mat", "<|im_start|>user\nred<|im_end|>"):
        assert part in text
    report = built.report
    assert (report.documents, report.empty, report.bad_lines, report.undecodable) == (4, 2, 7, 1)
    assert sorted(problem.split(": ")[0] for problem in report.problems) == sorted(
        ["empty.txt", "latin.txt", *(f"lines.jsonl:{n}" for n in (3, 4, 5, 6, 7, 8, 9, 10))]
    )
    assert "lines.jsonl:3: not a JSON object" in report.problems and "latin.txt: not UTF-8 at byte 2" in report.problems
    assert report.fields == {"other": 1}
    assert json.loads(json.dumps(report.to_json()))["bad_lines"] == 7
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(told) == 1 and "4 documents" in told[0] and "7 bad lines" in told[0]


def test_problems_are_counted_beyond_those_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.jsonl").write_text("oops\n" * 50 + '{"text": "cat"}', encoding="utf-8")
    report = corpus.build(config(tmp_path / "a.jsonl"), tokenizer).report
    assert report.bad_lines == 50 and len(report.problems) == 20


def test_format_overrides_the_ending(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / "a.txt", ["cat"])
    as_text = corpus.build(config(path, context_length=64), tokenizer).train
    as_lines = corpus.build(config(path, context_length=64, corpus_format="jsonl"), tokenizer).train
    assert kept_text(as_text, tokenizer) == '<s>{"text": "cat"}\n' and kept_text(as_lines, tokenizer) == "<s>cat"


def test_byte_order_mark_is_not_text(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("cat", encoding="utf-8-sig")
    built = corpus.build(config(tmp_path / "a.txt", context_length=64), tokenizer)
    assert kept_text(built.train, tokenizer) == "<s>cat"


def test_stdlib(tokenizer: PreTrainedTokenizerFast) -> None:
    stdlib = config("stdlib", max_tokens=3000)
    names = {document.where for document in documents.documents(stdlib, tokenizer, documents.Report())}
    assert {f"topics/{name}" for name in topics} <= names
    assert {"json/decoder.py", "argparse.py", "unittest/case.py"} <= names
    parts = {part for name in names for part in name.split("/")[:-1]}
    excluded = "test tests idlelib encodings lib2to3 turtledemo ensurepip site-packages __pycache__ pydoc_data"
    assert not parts & set(excluded.split())
    root = Path(sysconfig.get_paths()["stdlib"])
    assert (root / "encodings" / "__init__.py").exists(), "or nothing was there to leave out"
    built = corpus.build(stdlib, tokenizer)
    assert built.report.tokens == 3000
    assert built.digest == corpus.build(stdlib, tokenizer).digest


def test_data_sets_need_the_extra(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuse(tokenizer, r"pip install 'monolex\[data\]'", "hf:some/name")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra `data`")
def test_data_sets_are_streamed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [sentence(i) for i in range(30)])
    name = f"hf:{folder}"
    built = corpus.build(config(name), tokenizer)
    assert built.digest == corpus.build(config(name), tokenizer).digest
    assert built.digest != corpus.build(config(name, corpus_seed=1), tokenizer).digest
    assert len(texts_of(built.train, tokenizer) & {sentence(i) for i in range(30)}) >= 29
    assert corpus.build(config(name, max_tokens=50), tokenizer).report.tokens == 50
    refuse(tokenizer, "text_field = 'body': .* its fields are text", name, text_field="body")
    refuse(tokenizer, "corpus_format = 'chat': .* no field 'messages'; its fields are text", name, corpus_format="chat")
    refuse(tokenizer, "cannot be opened; .* Bad split: nope", name, dataset_split="nope")
    write_chats(folder / "a.jsonl", [("user", "the cat"), ("assistant", "sat")])
    assert kept_text(corpus.build(config(name, context_length=64), tokenizer).train, tokenizer) == "sat"


def test_linked_folders_are_read_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    for path, text in (
        (folder / "a.txt", "cat"),
        (folder / "sub" / "b.txt", "dog"),
        (elsewhere / "deep" / "c.txt", "mat"),
    ):
        path.write_text(text, encoding="utf-8")
    (folder / "far").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere / "deep")
    (folder / "alias").symlink_to(folder / "sub")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "missing")
    report = documents.Report()
    names = [document.where for document in documents.documents(config(folder), tokenizer, report)]
    assert sorted(names) == ["a.txt", "again/c.txt", "sub/b.txt"]
    assert report.problems == [f"{folder / 'gone'}: a link to nothing"] and report.undecodable == 1


@pytest.mark.parametrize("name", ["a.json", "a.CSV", "a.tsv", "lines", "a.data"])
def test_json_lines_are_known_under_any_name(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_jsonl(tmp_path / name, ["cat", "dog"])
    path.write_bytes(b"\n" + path.read_bytes())
    read = documents.documents(config(path), tokenizer, documents.Report())
    assert sorted(document.text for document in read) == ["cat", "dog"]
    write_chats(path, [("user", "the cat"), ("assistant", "sat")])
    assert kept_text(corpus.build(config(path, context_length=64), tokenizer).train, tokenizer) == "sat"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '[{"text": "cat"}, {"text": "dog"}]', "is a JSON array, neither prose nor JSON lines: write a JSON"),
        ("a.json", '\n [\n{"text": "cat"},\n{"text": "dog"}\n]', "is a JSON array"),
        ("a.json", '{\n"data": [\n{"text": "cat"}\n]}', "is JSON over several lines"),
        ("a.csv", "id,text\n1,cat\n", "is a table, .* a field 'text' a line, or .* corpus_format = 'text'"),
        ("a.tsv", "", "is a table"),
    ],
)
def test_data_that_is_no_prose_is_refused(
    name: str, content: str, said: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    refuse(tokenizer, said, path)
    if content:
        as_text = corpus.build(config(path, context_length=99, corpus_format="text"), tokenizer)
        assert kept_text(as_text.train, tokenizer) == f"<s>{content}"


def test_a_folder_names_the_data_that_it_leaves_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "package.json").write_text('{\n"text": "no"\n}', encoding="utf-8")
    (folder / "table.csv").write_text("text\nno\n", encoding="utf-8")
    refuse(tokenizer, "holds no file to read .* others are JSON lines", folder)
    write_jsonl(folder / "lines.json", ["cat"])
    for wanted in ("auto", "jsonl"):
        caplog.clear()
        report = corpus.build(config(folder, context_length=64, corpus_format=wanted, max_tokens=2), tokenizer).report
        (said,) = report.warnings
        assert "2 files that end in .json, .csv or .tsv are left out" in said and "(first: package.json)" in said
        assert said in caplog.text and report.documents == 1
    (folder / "a.txt").write_text("dog", encoding="utf-8")
    as_text = corpus.build(config(folder, context_length=64, corpus_format="text", max_tokens=2), tokenizer)
    assert as_text.report.documents == 1 and as_text.report.warnings == []


def test_a_corpus_that_ends_early_says_so(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [sentence(i) for i in range(30)])
    tokens = corpus.build(config(path), tokenizer).report.tokens
    enough = int(tokens / corpus.SHORT)
    caplog.clear()
    assert corpus.build(config(path, max_tokens=enough), tokenizer).report.warnings == []
    assert "ends at" not in caplog.text
    (said,) = corpus.build(config(path, max_tokens=enough + 2), tokenizer).report.warnings
    assert said.endswith(f" ends at {tokens} of max_tokens = {enough + 2}: whatever is made of it saw no more text")
    assert said in caplog.text
    (said,) = corpus.build(config(path, max_tokens=10**6, document_tokens=3), tokenizer).report.warnings
    assert "ends at 90 of max_tokens = 1,000,000 (the first 3 of every document)" in said
