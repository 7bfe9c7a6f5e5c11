"""Stages that are killed between two pieces."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny_harvests import contents

from monolex.artifact import Manifest, verify
from monolex.pieces import Work


def kill_between_pieces(monkeypatch: pytest.MonkeyPatch, folder: Path, stage: Callable[[Path], Manifest]) -> None:
    """Kill ``stage`` after every piece; each is done once, and the end is what comes of doing all at once."""
    whole, real, done = stage(folder / "whole"), Work._keep, []
    with monkeypatch.context() as patch:

        def kept(work, place, *rest):
            done.append(place)
            real(work, place, *rest)
            raise KeyboardInterrupt

        patch.setattr(Work, "_keep", kept)
        for count in range(1, 100):
            try:
                stage(folder / "parts")
                break
            except KeyboardInterrupt:
                assert len(done) == len(set(done)) == count
                assert not (folder / "parts" / "manifest.json").exists()
    assert len(done) > 1, "nothing was interrupted"
    assert verify(folder / "parts").content == whole.content
    assert contents(folder / "parts") == contents(folder / "whole")
