"""Settings, their keys, and the plan of products that follows from them. No torch."""

from dklfm.config.experiment import Config, Experiment, resolved
from dklfm.config.keys import canonical_json, stage_key
from dklfm.config.loading import json_schema, load_config, parse_system, read_yaml, validate
from dklfm.config.plan import Evaluation, Plan, Stage
from dklfm.config.references import (
    AlfiConfig,
    AnyReference,
    BaselineConfig,
    DeepLFMConfig,
    ExactConfig,
    MechanisticConfig,
    ReferenceConfig,
)
from dklfm.config.sections import (
    MODEL_SECTIONS,
    Counts,
    FourierConfig,
    FourierFeaturesConfig,
    FourierRegressorConfig,
    KernelConfig,
    Mesh,
    ModelConfig,
    NeuralProcessConfig,
    PeriodFeaturesConfig,
    TasksConfig,
    TrainingConfig,
    TrainSpec,
    TransformerConfig,
)

__all__ = [
    "MODEL_SECTIONS",
    "AlfiConfig",
    "AnyReference",
    "BaselineConfig",
    "Config",
    "Counts",
    "DeepLFMConfig",
    "Evaluation",
    "ExactConfig",
    "Experiment",
    "FourierConfig",
    "FourierFeaturesConfig",
    "FourierRegressorConfig",
    "KernelConfig",
    "MechanisticConfig",
    "Mesh",
    "ModelConfig",
    "NeuralProcessConfig",
    "PeriodFeaturesConfig",
    "Plan",
    "ReferenceConfig",
    "Stage",
    "TasksConfig",
    "TrainSpec",
    "TrainingConfig",
    "TransformerConfig",
    "canonical_json",
    "json_schema",
    "load_config",
    "parse_system",
    "read_yaml",
    "resolved",
    "stage_key",
    "validate",
]
