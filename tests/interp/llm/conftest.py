"""An endpoint for the tests of its clients: a real process, started once a file."""

from collections.abc import Iterator

import pytest
from helpers.llm_server import KEY, VARIABLE, Server


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), KEY) as server:
        yield server


@pytest.fixture
def server(process: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server without faults and with an empty log; the key is in the environment."""
    monkeypatch.setenv(VARIABLE, KEY)
    process.script()
    (process.folder / "log.jsonl").unlink(missing_ok=True)
    return process
