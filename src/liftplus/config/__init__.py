"""One frozen configuration a run: its schema, the presets that fill it, and the user's key=value over both."""

from liftplus.config.overrides import after_training, changed, full_key, locate, placed
from liftplus.config.presets import AUTOMATIC, published, replaced, resolve
from liftplus.config.schema import PARTS, EvaluationConfig, RunConfig, TrainConfig, flat, from_dict, saved

__all__ = [
    "AUTOMATIC",
    "PARTS",
    "EvaluationConfig",
    "RunConfig",
    "TrainConfig",
    "after_training",
    "changed",
    "flat",
    "from_dict",
    "full_key",
    "locate",
    "placed",
    "published",
    "replaced",
    "resolve",
    "saved",
]
