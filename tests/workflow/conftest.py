"""The small pipeline, run once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workflow.small import snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; its products are only for reading."""
    folder = tmp_path_factory.mktemp("workflow")
    snakemake(folder)
    return folder
