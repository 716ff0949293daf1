"""The scikit-learn classifier: scikit-learn's own checks, and images in every form."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from liftplus import LiftPlusClassifier, UserError

from .conftest import COLOURS, picture

TINY = "timm/test_vit.r160_in1k"
QUICK: dict[str, Any] = {"image_size": 32, "precision": "fp32", "tte": False, "augment": "none"}


@pytest.fixture(autouse=True, scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights of a tiny ViT, random, where the hub's would be put by hand."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    # Away from timm's start, where all images have nearly the same features.
    state = {
        name: value + 0.1 * torch.randn_like(value)
        for name, value in timm.create_model("test_vit").state_dict().items()
    }
    save_file(state, folder / f"{TINY.replace('/', '__')}.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFTPLUS_WEIGHTS", str(folder))
        yield


def tiny(**options: Any) -> LiftPlusClassifier:
    return LiftPlusClassifier(TINY, **{"random_state": 0, "epochs": 2, "batch_size": 32, "settings": QUICK} | options)


@parametrize_with_checks([tiny(image_shape="fill", lr=0.1)])
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
