"""Keys: short digests that name every product by everything that determined it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

STAGE_VERSIONS = {"fit": 2, "tasks": 1, "model": 2, "posterior": 3, "scores": 2, "figure": 1}
"""Bumped by hand when a stage's code changes what the same settings produce."""
PART_VERSIONS = {"refine": 2, "mechanistic": 2, "mechanistic_known": 2}
"""Added for an entry of a spec, or a reference, whose own code changed: others stay as they are."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def stage_key(stage: str, spec: Mapping[str, Any], parents: Sequence[str] = ()) -> str:
    """The first ten hex digits of sha256 over stage, version, settings and parent keys."""
    parts = [*spec, spec.get("reference", {}).get("name")]
    identity = {
        "stage": stage,
        "stage_version": STAGE_VERSIONS[stage] + sum(PART_VERSIONS.get(part, 0) for part in parts),
        "spec": spec,
        "parents": list(parents),
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:10]
