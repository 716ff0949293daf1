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
    return LiftPlusClassifier(TINY, **{"random_state": 0, "epochs": 1, "batch_size": 32, "settings": QUICK} | options)


@pytest.mark.slow
@parametrize_with_checks([tiny(image_shape="fill", lr=0.1)])
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def coloured(count: int, size: tuple[int, int] = (12, 10)) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    names = np.array(list(COLOURS))
    labels = np.arange(count) % 3
    return np.stack([np.asarray(picture(COLOURS[names[k]], n, size)) for n, k in enumerate(labels)]), names[labels]


def test_images_in_every_form(tmp_path: Path) -> None:
    """Arrays, rows, files, Pillow images and single arrays are the same pictures."""
    images, y = coloured(12)
    fitted = tiny().fit(images, y)
    assert fitted.n_features_in_ == images[0].size and fitted.pixel_range_ is None
    expected = fitted.predict_proba(images)
    assert expected.shape == (12, 3) and fitted.score(images, y) > 0.9
    paths = [tmp_path / f"{n}.png" for n in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    forms: list[Any] = [paths, np.array(list(map(str, paths))), list(images), [Image.fromarray(one) for one in images]]
    for form in forms:
        np.testing.assert_array_equal(fitted.predict_proba(form), expected)
    np.testing.assert_array_equal(tiny().fit(paths, y).predict_proba(images), expected)
    rows = images.reshape(len(images), -1)
    np.testing.assert_array_equal(tiny(image_shape=(10, 12, 3)).fit(rows, y).predict_proba(rows), expected)


def test_values_are_scaled_to_the_range_of_training() -> None:
    images, y = coloured(12, (8, 8))
    images[0, 0, 0], images[1, 0, 0] = 0, 255
    expected = tiny().fit(images, y).predict_proba(images)
    scaled = tiny().fit(images / 51 - 1, y)
    assert scaled.pixel_range_ == (-1.0, 4.0)
    np.testing.assert_array_equal(scaled.predict_proba(images / 51 - 1), expected)
    grey = images[..., :1]
    found = tiny().fit(grey, y).predict_proba(grey)
    square = grey.reshape(len(images), 64)
    np.testing.assert_array_equal(tiny().fit(square, y).predict_proba(square), found)
    np.testing.assert_array_equal(tiny().fit(grey[..., 0], y).predict_proba(grey[..., 0]), found)


def test_rows_that_are_no_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows of 7 values.* image_shape=\(H, W\)"):
        tiny().fit(np.zeros((4, 7)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"rows of 12 values.* image_shape=\(5, 5\)"):
        tiny(image_shape=(5, 5)).fit(np.zeros((4, 12)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"Give images as \[N, H, W\]"):
        tiny().fit(np.zeros((4, 5, 5, 2)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="1 class"):
        tiny().fit(np.zeros((4, 4)), [1, 1, 1, 1])
    with pytest.raises(UserError, match="Unknown backbone"):
        LiftPlusClassifier("clip_vit_b61").fit(np.zeros((4, 4)), [0, 1, 0, 1])


def test_search_pickle_and_what_is_left_behind() -> None:
    images, y = coloured(12)
    search = GridSearchCV(tiny(), {"lr": [0.05, 1e-6], "method": ["linear_probe"]}, cv=2).fit(images, y)
    best = search.best_estimator_
    assert best.get_params()["lr"] == best.model_.config.train.lr
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.predict_proba(images), best.predict_proba(images))
    assert len(best.model_.dataset.store.images) == 0
    fresh = clone(best)
    assert not hasattr(fresh, "model_") and fresh.get_params() == best.get_params()


def test_seeds() -> None:
    """From a random classifier, as one that the pictures solved leaves nothing to learn."""
    images, y = coloured(12)
    given = QUICK | {"augment": "mda", "head_init": "random"}
    first, same, other = (tiny(random_state=seed, settings=given).fit(images, y) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.predict_proba(images), same.predict_proba(images))
    assert (first.predict_proba(images) != other.predict_proba(images)).any()


@pytest.mark.slow
def test_paths_are_one_row_each(tmp_path: Path) -> None:
    images, y = coloured(6)
    paths = np.array([str(tmp_path / f"{n}.png") for n in range(len(images))])
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    expected = tiny().fit(paths, y).predict_proba(paths)
    for column in (paths[:, None], paths[:, None].astype(object), [[path] for path in paths]):
        np.testing.assert_array_equal(tiny().fit(column, y).predict_proba(column), expected)
    fitted = tiny().fit(paths, y)
    for several in (paths.reshape(-1, 2), paths.reshape(-1, 2).tolist()):
        with pytest.raises(UserError, match="Row 0 of X has 2 paths"):
            fitted.predict(several)
    twice = fitted.predict_proba(paths[[0, 0, 3]])
    np.testing.assert_allclose(twice, expected[[0, 0, 3]], rtol=1e-5)
    for wrong, said in ((str(tmp_path), "is a folder"), (str(tmp_path / "gone.png"), "does not exist")):
        for call in (lambda x: fitted.predict(x), lambda x: tiny().fit(x, y[:2])):
            with pytest.raises(UserError, match=f"Path 1, .* {said}") as told:
                call([paths[0], wrong])
            assert isinstance(told.value, ValueError)


def test_labels_that_numpy_would_not_take_or_would_make_alike() -> None:
    """Of texts that differ in their Unicode form alone, images of both would be one class and all others shift."""
    images, _ = coloured(6)
    y = np.array([0, 1, 2] * 2)
    for given in (torch.tensor(y).bfloat16(), torch.tensor(y).float().requires_grad_(), torch.tensor(y)):
        fitted = tiny(epochs=0, method="linear_probe").fit(images, given)
        assert fitted.classes_.tolist() == [0, 1, 2] and fitted.score(images, given) == fitted.score(images, y)
    assert tiny(epochs=0).fit(images, np.array([b"a", b"b", b"c"] * 2)).classes_.tolist() == ["a", "b", "c"]
    for wrong, said in (
        (["caf\u00e9", "cafe\u0301", "cafz"] * 2, "one label in several Unicode forms"),
        ([True, 1, 2] * 2, "True and 1 are of different types"),
        (["1", 1, "2"] * 2, "'1' and 1 are of different types"),
        (np.array(["a", "b", None] * 2, dtype=object), "2 labels are missing: the first is that of picture 2"),
        (np.array(["2020", "2021", "NaT"] * 2, dtype="datetime64[ns]"), "labels are missing"),
    ):
        with pytest.raises(UserError, match=said):
            tiny().fit(images, wrong)
