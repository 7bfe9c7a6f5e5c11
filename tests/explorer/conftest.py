"""A run and its server, made once a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.explored import Served, explored_run, served


@pytest.fixture(scope="session")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explored_run(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="module")
def server(explored: Path) -> Iterator[Served]:
    with served(explored) as running:
        yield running
