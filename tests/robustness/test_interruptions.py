"""A few kills of every stage; ``interruptions`` as a script makes as many as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness import interruptions


def test_killed_stages_end_in_what_undisturbed_ones_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interruptions.main(kills=2, seed=0, folder=tmp_path)
    assert f"{2 * len(interruptions.STAGES)} kills survived" in capsys.readouterr().out
