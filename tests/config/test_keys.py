"""Keys name products by what determined them, and a plan moves only what a change touches."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dklfm.config import (
    Config,
    ModelConfig,
    Plan,
    Stage,
    StoredConfig,
    TrainSpec,
    canonical_json,
    resolved,
    stage_key,
    validate,
)
from dklfm.config.keys import PART_VERSIONS
from dklfm.errors import ConfigError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=4)
    ),
    max_leaves=8,
)
CONFIG: dict[str, Any] = {
    "experiments": {
        "one": {
            "system": {"name": "transcription"},
            "tasks": {"counts": {"train": 8, "validation": 4, "test": 4}},
            "seeds": [0, 1],
            "test_meshes": [0.5],
            "datasets": ["p53-mmgmos"],
        }
    }
}
KINDS = ("tasks", "model", "posterior", "scores", "figure")


def plan(changes: dict[str, Any] | None = None, config: dict[str, Any] = CONFIG) -> Plan:
    config = copy.deepcopy(config)
    config["experiments"]["one"] |= changes or {}
    return Plan.of(validate(Config, config, "test"))


def keys(planned: Plan, kind: str) -> set[str]:
    return {stage.key for stage in planned.stages(kind).values()}


def test_canonical_json_is_sorted_and_compact() -> None:
    value = {"b": [1, 2.5, None], "a": {"y": True, "x": "é"}}
    assert canonical_json(value) == '{"a":{"x":"\\u00e9","y":true},"b":[1,2.5,null]}'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_canonical_json_refuses_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


@pytest.mark.parametrize(
    ("stage", "spec", "parents", "key"),
    [
        ("tasks", {"system": {"name": "transcription"}, "tasks": {"seed": 0}}, (), "70811ceee1"),
        ("tasks", {"dataset": "p53-mmgmos"}, (), "efb5d74a9c"),
        ("model", {"seed": 3}, ("0123456789",), "a65837d497"),
        ("scores", {}, ("0123456789", "abcdef0123"), "a199b579a8"),
    ],
)
def test_keys_of_published_products_never_change(
    stage: str, spec: dict[str, Any], parents: tuple[str, ...], key: str
) -> None:
    assert stage_key(stage, spec, parents) == key


@given(st.dictionaries(st.text(max_size=4), JSON, min_size=2, max_size=5))
def test_key_does_not_depend_on_the_order_of_settings(spec: dict[str, Any]) -> None:
    turned = dict(reversed(spec.items()))
    assert stage_key("tasks", turned) == stage_key("tasks", spec)


@pytest.mark.parametrize(("part", "changed"), [("refine", 0), ("mechanistic", 1)])
def test_what_a_part_of_the_code_makes_is_made_anew_and_nothing_else(
    part: str, changed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = [{"reference": {"name": name}} for name in ("mechanistic", "alfi")]
    specs: list[dict[str, Any]] = [{"refine": {"samples": 32}}, *references, {}]
    before = [stage_key("posterior", spec) for spec in specs]
    monkeypatch.setitem(PART_VERSIONS, part, PART_VERSIONS[part] + 1)
    after = [stage_key("posterior", spec) for spec in specs]
    assert [i for i in range(len(specs)) if before[i] != after[i]] == [changed]


def test_key_depends_on_stage_settings_and_parents_in_their_order() -> None:
    found = {
        stage_key("model", {"a": 1}, ("x", "y")),
        stage_key("scores", {"a": 1}, ("x", "y")),
        stage_key("model", {"a": 2}, ("x", "y")),
        stage_key("model", {"a": 1}, ("x",)),
        stage_key("model", {"a": 1}, ("y", "x")),
    }
    assert len(found) == 5


def test_label_is_in_the_path_but_not_in_the_key() -> None:
    one, other = Stage("tasks", "one", {"a": 1}), Stage("tasks", "other", {"a": 1})
    assert one.key == other.key
    assert (one.path, other.path) == (f"tasks/one-{one.key}", f"tasks/other-{one.key}")


def test_renamed_experiment_keeps_its_tasks_models_and_posteriors() -> None:
    renamed = {"experiments": {"another": CONFIG["experiments"]["one"]}}
    named = Plan.of(validate(Config, renamed, "test"))
    for kind in ("tasks", "model", "posterior"):
        assert keys(named, kind) == keys(plan(), kind)


def test_defaults_written_out_give_the_same_keys() -> None:
    spelt = plan({"training": resolved(StoredConfig()), "model": resolved(ModelConfig())})
    for kind in KINDS:
        assert keys(spelt, kind) == keys(plan(), kind)


def test_training_option_moves_models_and_what_follows_but_no_tasks() -> None:
    before, after = plan(), plan({"training": {"epochs": 7}})
    assert keys(after, "tasks") == keys(before, "tasks")
    for kind in ("model", "posterior", "scores", "figure"):
        assert keys(after, kind).isdisjoint(keys(before, kind))


def test_system_option_moves_everything_but_measured_tasks() -> None:
    before, after = plan(), plan({"system": {"name": "transcription", "response": "sigmoid"}})
    assert keys(after, "tasks") & keys(before, "tasks") == {"efb5d74a9c"}
    for kind in ("model", "posterior", "scores", "figure"):
        assert keys(after, kind).isdisjoint(keys(before, kind))


def test_further_test_mesh_leaves_all_else_where_it_was() -> None:
    before, after = plan(), plan({"test_meshes": [0.5, 2]})
    for kind in KINDS:
        assert set(before.stages(kind)) <= set(after.stages(kind))
    assert set(after.stages("model")) == set(before.stages("model"))
    assert len(after.stages("tasks")) == len(before.stages("tasks")) + 1


def test_further_seed_leaves_scores_of_the_others_where_they_were() -> None:
    before, after = plan(), plan({"seeds": [0, 1, 2]})
    for kind in ("tasks", "model", "posterior", "scores"):
        assert set(before.stages(kind)) <= set(after.stages(kind))


def test_further_experiment_leaves_the_first_where_it_was() -> None:
    two = copy.deepcopy(CONFIG)
    two["experiments"]["two"] = {"system": {"name": "transcription", "genes": 3}}
    for kind in KINDS:
        assert set(plan().stages(kind)) <= set(plan(config=two).stages(kind))


@pytest.mark.parametrize("change", [{"results": "elsewhere"}, {"device": "auto"}])
def test_place_and_device_do_not_enter_keys(change: dict[str, Any]) -> None:
    for kind in KINDS:
        assert keys(plan(config=CONFIG | change), kind) == keys(plan(), kind)


def test_test_mesh_simulates_the_test_tasks_alone() -> None:
    specs = {e.split: e.tasks.spec for e in plan().evaluations}
    other, own = specs["test@0.5x"]["tasks"], specs["test"]["tasks"]
    assert other["counts"] == {"train": 0, "validation": 0, "test": 4}
    assert other["mesh"]["points"] == own["mesh"]["points"] // 2


def test_every_seed_is_scored_on_every_split() -> None:
    scored = {(e.seed, e.split) for e in plan().evaluations}
    assert scored == {(s, t) for s in (0, 1) for t in ("test", "test@0.5x", "p53-mmgmos")}


def test_index_names_paths_of_planned_stages_only() -> None:
    planned = plan()
    known = {stage.path for kind in KINDS for stage in planned.stages(kind).values()}
    paths = {path for entry in planned.index().values() for path in entry.values()}
    assert paths <= known


def test_names_of_stages_fit_the_workflow() -> None:
    names = [name for kind in KINDS for name in plan().stages(kind)]
    assert all(re.fullmatch(r"[A-Za-z0-9_.]+-[0-9a-f]{10}", name) for name in names)


STREAM: dict[str, Any] = {
    "tasks": {"counts": {"train": 0, "validation": 4, "test": 4}},
    "stream": {"training": {"epochs": 3}},
    "test_meshes": [0.5, {"spacing": "regular", "points": 9}],
    "test_systems": {"sigmoid": {"response": "sigmoid"}},
    "references": ["mechanistic"],
    "references_on": ["test", "test@regular9", "test@sigmoid"],
    "datasets": [],
}


def test_a_stream_alone_trains_one_model_a_seed_and_tests_it_everywhere() -> None:
    planned = plan(STREAM)
    assert len(planned.stages("model")) == 2
    assert {model.spec["method"] for model in planned.stages("model").values()} == {"dklfm_stream"}
    splits = {e.split for e in planned.evaluations if e.method == "dklfm_stream"}
    assert splits == {"test", "test@0.5x", "test@regular9", "test@sigmoid"}
    judged = {e.split for e in planned.evaluations if e.method == "mechanistic"}
    assert judged == {"test", "test@regular9", "test@sigmoid"}


def test_seeds_that_tell_no_strangers_have_models_of_their_own_and_leave_the_others() -> None:
    def models(**stream: Any) -> dict[int, Stage]:
        planned = plan({**STREAM, "stream": {**STREAM["stream"], **stream}})
        return {model.spec["seed"]: model for model in planned.stages("model").values()}

    every, first, none = models(), models(strangers=[0]), models(strangers=[])
    assert models(strangers=[0, 1]) == every
    assert first[0] == every[0]
    assert first[1] == none[1]
    assert {first[1].key, none[0].key}.isdisjoint(s.key for s in every.values())
    assert validate(TrainSpec, every[0].spec, "train").strangers
    assert not validate(TrainSpec, none[0].spec, "train").strangers


def test_refinement_follows_the_streamed_model_where_references_are() -> None:
    planned = plan(STREAM | {"refine": {"samples": 16}})
    refined = [e for e in planned.evaluations if e.method == "dklfm_refined"]
    assert {(e.seed, e.split) for e in refined} == {
        (e.seed, split)
        for e in planned.evaluations
        if e.method == "dklfm_stream"
        for split in ("test", "test@regular9", "test@sigmoid")
    }
    assert all(e.model and e.model.spec["method"] == "dklfm_stream" for e in refined)
    stored = plan({"refine": {}})
    models = [e.model for e in stored.evaluations if e.method == "dklfm_refined"]
    assert [model and model.spec["method"] for model in models] == ["dklfm", "dklfm"]


def test_a_stream_beside_stored_tasks_leaves_their_model_where_it_was() -> None:
    both = plan({"stream": {}})
    assert set(plan().stages("model")) < set(both.stages("model"))
    assert {e.method for e in both.evaluations} == {"dklfm", "dklfm_stream"}


def test_another_system_or_mesh_changes_the_test_tasks_alone() -> None:
    specs = {e.split: e.tasks.spec for e in plan(STREAM).evaluations}
    own, mesh, system = (specs[s] for s in ("test", "test@regular9", "test@sigmoid"))
    assert mesh["tasks"]["mesh"] == {"spacing": "regular", "points": 9}
    assert mesh["system"] == own["system"]
    assert (own["system"]["response"], system["system"]["response"]) == ("softplus", "sigmoid")
    assert system["tasks"]["counts"] == {"train": 0, "validation": 0, "test": 4}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"references_on": ["test@3x"]}, "no split 'test@3x'; there are test, test@0.5x"),
        ({"test_systems": {"x": {"genes": 0}}}, "greater than or equal to 1"),
        ({"curve": [8]}, "curve and baselines need stored tasks"),
        ({"baselines": ["neural_process"]}, "curve and baselines need stored tasks"),
        ({"stream": {"strangers": [4]}}, "stream.strangers names a seed that is not among seeds"),
        ({"stream": None}, "at least one train, validation and test task"),
        ({"test_meshes": [0.5, 0.5]}, "test_meshes holds a value twice"),
        ({"seeds": []}, "without seeds nothing is trained"),
        (
            {
                "refine": {},
                "system": {"name": "lotka_volterra"},
                "test_systems": {},
                "references_on": ["test"],
            },
            "refine: lotka_volterra is no ordinary",
        ),
        ({"stream": {"training": {"negate": True}}}, "no use for training.negate: leave it out"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(STREAM | change)


def test_a_baseline_on_whole_meshes_is_not_observed_anew() -> None:
    changes = {
        "tasks": {"mesh": {"spacing": "regular", "points": 8}},
        "training": {"reobserve": True},
        "baselines": ["fno", "neural_process"],
    }
    specs = {s.spec["method"]: s.spec for s in plan(changes).stages("model").values()}
    observed = {name: s["training"].get("reobserve", False) for name, s in specs.items()}
    assert observed == {"dklfm": True, "neural_process": True, "fno": False}
