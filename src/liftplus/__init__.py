"""Fine-tune vision foundation models on long-tailed image data: LIFT and LIFT+.

From Python, call `load_data` or `from_images`, then `fit`, then `Model.evaluate`, `Model.predict` or `Model.save`.
`load` loads a saved model, and `merge` merges several. `LiftPlusClassifier` works with scikit-learn. Importing liftplus
imports nothing heavy until one of these is used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liftplus.api import fit, from_images, load, load_data, merge
    from liftplus.classifier import LiftPlusClassifier
    from liftplus.errors import UserError
    from liftplus.fitted import Model, Predictions

__all__ = [
    "LiftPlusClassifier",
    "Model",
    "Predictions",
    "UserError",
    "fit",
    "from_images",
    "load",
    "load_data",
    "merge",
]

_HOMES = {
    "LiftPlusClassifier": "liftplus.classifier",
    "Model": "liftplus.fitted",
    "Predictions": "liftplus.fitted",
    "UserError": "liftplus.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        if not name.startswith("_") and find_spec(f"liftplus.{name}") is not None:
            return import_module(f"liftplus.{name}")  # lets users write liftplus.report.write after `import liftplus`
        raise AttributeError(f"module 'liftplus' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "liftplus.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
