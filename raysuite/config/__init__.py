"""A run, declared: frozen sections, checked across, read from YAML, overridable by path.

>>> config = load("scenes-ddpo", {"learn.learning_rate": "3e-5"})
>>> config.learn.learning_rate
3e-05
"""

from raysuite.config.checks import without_idle
from raysuite.config.objective import class_of, is_foreign, label_of
from raysuite.config.reading import (
    base_of,
    contents,
    document,
    load,
    load_model,
    merging,
    parse,
    put,
    read,
    recipes,
    validate,
)
from raysuite.config.run import RunConfig
from raysuite.config.sections import (
    SPLITS,
    TOYS,
    Cluster,
    Credit,
    Judge,
    Learn,
    Model,
    Noise,
    NonNegativeInt,
    Parameters,
    Preferences,
    Prompts,
    Reward,
    Sampler,
    Section,
    SoftPrompts,
    Trackers,
    Window,
)
from raysuite.config.words import nearest, one_of, sentence, with_colon

__all__ = [
    "SPLITS",
    "TOYS",
    "Cluster",
    "Credit",
    "Judge",
    "Learn",
    "Model",
    "Noise",
    "NonNegativeInt",
    "Parameters",
    "Preferences",
    "Prompts",
    "Reward",
    "RunConfig",
    "Sampler",
    "Section",
    "SoftPrompts",
    "Trackers",
    "Window",
    "base_of",
    "class_of",
    "contents",
    "document",
    "is_foreign",
    "label_of",
    "load",
    "load_model",
    "merging",
    "nearest",
    "one_of",
    "parse",
    "put",
    "read",
    "recipes",
    "sentence",
    "validate",
    "with_colon",
    "without_idle",
]
