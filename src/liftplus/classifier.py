"""`api` as a scikit-learn classifier, for pipelines, cross-validation and grid search."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data
from torch import Tensor

from liftplus import api, fitted
from liftplus.data import labels as labelling
from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import listing
from liftplus.data.labelled import is_column, pictures_of, store_of
from liftplus.errors import UserError
from liftplus.runs import inputs
from liftplus.runs.inputs import Inputs


class LiftPlusClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a vision foundation model on images; some classes may be rare.

    `X` is one of

    * images [N, H, W, 3], or grey ones [N, H, W];
    * rows [N, F], each the pixels of an image (see `image_shape`);
    * N file paths, Pillow images, or arrays [H, W, 3]; paths may also be a column [N, 1]. Each is one image: a folder
      is refused.

    uint8 values are pixels. Other values are scaled so that the training data's range becomes 0 to 255.

    Args:
        backbone: a name from `liftplus info`.
        method: lift+, lift, linear_probe, linear_probe+, full, full+, closed_form or zeroshot.
        epochs: number of epochs. For this and the next two, None leaves the choice to the recipe.
        lr: initial learning rate.
        batch_size: images per optimiser step.
        class_names: a name for each label, for the text encoder. By default, labels that are text are the names.
        image_shape: (H, W) of grey or (H, W, 3) of colour images in rows. By default rows are square images, in colour
            if F = 3 * side * side. "fill" also allows other lengths: the row fills a grey square, and the rest is dark.
        device: auto, cpu, cuda, cuda:N or mps.
        random_state: seed of weights, order and crops.
        settings: any other key=value of the command line, such as {"tuner.adaptformer.width": 4}.

    Attributes:
        classes_: the labels, sorted.
        model_: the trained `liftplus.Model`; its `save` writes it for `liftplus.load` and the commands.
        n_features_in_: number of values in each image, if X was an array.
        pixel_range_: the values that became 0 and 255; None if X was uint8.

    >>> model = liftplus.LiftPlusClassifier(epochs=1, random_state=0).fit(images, labels)
    >>> model.classes_, model.n_features_in_
    (array([0, 1, 2]), 12288)
    >>> model.predict_proba(images).shape
    (12, 3)
    """

    def __init__(
        self,
        backbone: str = "mini_clip",
        method: str = "lift+",
        *,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        class_names: Mapping[Any, str] | None = None,
        image_shape: tuple[int, ...] | str | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.class_names = class_names
        self.image_shape = image_shape
        self.device = device
        self.random_state = random_state
        self.settings = settings

    def fit(self, X: Any, y: Any) -> LiftPlusClassifier:  # noqa: N803 (scikit-learn's name)
        """Fit to images and their labels [N]; returns itself.

        Raises:
            ValueError: X or y cannot be used, or y has only one class.
            liftplus.UserError: a setting is not allowed. The error for a path that is not a file, a missing label or
                labels of several types is both a ValueError and a UserError.
        """
        images, labels = self._training(X, _as_array(y))
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        _refuse_spellings(self.classes_)
        if len(self.classes_) < 2:
            raise ValueError(f"A classifier needs at least two classes, but y has 1 class: {self.classes_.tolist()}.")
        data = api.from_images(images, labels, class_names=self.class_names)
        own = {"epochs": self.epochs, "lr": self.lr, "train.batch_size": self.batch_size}
        settings = {
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "device": self.device,
            **(self.settings or {}),
            **{key: value for key, value in own.items() if value is not None},  # a grid search sets these
        }
        self.model_ = api.fit(data, self.backbone, self.method, **settings)
        # Copies and pickles of a fitted classifier must not contain the training images.
        self.model_.dataset = replace(data, store=ArrayStore(np.empty((0, 1, 1, 3), np.uint8)))
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The most probable label of each image [N]."""
        best = self.predict_proba(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Accuracy: the share of the images [N] whose most probable label is the given one, 0 to 1."""
        return float(super().score(X, _as_array(y), sample_weight))

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Probabilities [N, C] of the classes, in the order of `classes_`."""
        check_is_fitted(self, "model_")
        images = _listed(X)
        if images is None:
            pixels = _pixels(X) if _is_deep(X) else validate_data(self, X, reset=False)
            images = self._coloured(pixels)
        return fitted.probabilities(self.model_, _rows(images))

    def _training(self, given: Any, y: Any) -> tuple[list[Any], NDArray[Any]]:
        """Images for `api`, and their labels."""
        for name in ("n_features_in_", "feature_names_in_", "pixel_range_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        images = _listed(given)
        if images is not None:
            if isinstance(images[0], str | os.PathLike):
                _rows(images)
            return images, _checked_labels(images, y)
        if _is_deep(given):
            pixels = _pixels(given)
            labels = _checked_labels(pixels, y)
            self.n_features_in_ = math.prod(pixels.shape[1:])
        else:
            pixels, labels = validate_data(self, given, y)
        self.pixel_range_ = None if pixels.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
        return self._coloured(pixels), labels

    def _coloured(self, pixels: NDArray[Any]) -> list[Any]:
        """Convert arrays [N, F], [N, H, W] or [N, H, W, 3] to N pictures, uint8 [H, W, 3]."""
        low, high = getattr(self, "pixel_range_", None) or (0.0, 255.0)
        if pixels.dtype != np.uint8 or high - low != 255:
            scaled = (pixels.astype(np.float64) - low) * (255 / ((high - low) or 1.0))
            pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        if pixels.ndim == 2:
            pixels = self._laid_out(pixels)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        return list(np.broadcast_to(pixels, (*pixels.shape[:3], 3)) if pixels.shape[3] == 1 else pixels)

    def _laid_out(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Reshape rows [N, F] to images [N, H, W] or [N, H, W, 3]."""
        count, length = rows.shape
        shape = self.image_shape
        if shape is None:
            grey, colour = math.isqrt(length), math.isqrt(length // 3)
            shape = (grey, grey) if grey**2 == length else (colour, colour, 3)
        elif shape == "fill":
            side = math.isqrt(length - 1) + 1
            rows = np.pad(rows, ((0, 0), (0, side**2 - length)))
            return rows.reshape(count, side, side)
        if isinstance(shape, str) or math.prod(shape) != length:
            raise ValueError(
                f"X has rows of {length} values, which do not fit image_shape={self.image_shape!r}. Give "
                "image_shape=(H, W) or (H, W, 3) with that many values, or images [N, H, W, 3]."
            )
        return rows.reshape(count, *shape)


class InputError(UserError, ValueError):
    """X or y cannot be used. It is a `ValueError`, as scikit-learn expects, and a `UserError`."""


def _rows(images: list[Any]) -> Inputs:
    """One row for each image. Raises InputError for a path that is not a file."""
    pictures = pictures_of(images)
    if not isinstance(pictures[0], str):
        return Inputs(*store_of(pictures))
    try:
        return inputs.each(pictures)
    except UserError as error:
        raise InputError(str(error)) from error


def _listed(given: Any) -> list[Any] | None:
    """Paths and single pictures as a list; None for arrays of numbers."""
    if is_column(given):
        given = np.asarray(given).ravel()
    _refuse_several(given)
    if getattr(given, "ndim", 1) != 1 or not (
        isinstance(given, list | tuple | np.ndarray) or hasattr(given, "to_list")
    ):
        return None
    found = [one[0] if isinstance(one, list | tuple) and len(one) == 1 else one for one in given]
    return (
        found
        if found and all(isinstance(one, str | os.PathLike | Image.Image) or np.ndim(one) == 3 for one in found)
        else None
    )


def _refuse_several(given: Any) -> None:
    """Refuse rows of several paths, [N, K]."""
    first = given[0] if isinstance(given, list | tuple | np.ndarray) and len(given) else None
    if not isinstance(first, list | tuple | np.ndarray) or len(first) < 2:
        return
    if all(isinstance(one, str | os.PathLike) for one in first):
        raise InputError(
            f"Row 0 of X has {len(first)} paths, but a row is one picture. Give the path of one image file for each "
            "row, as [N] or [N, 1]."
        )


def _is_deep(given: Any) -> bool:
    return np.ndim(given) in (3, 4) if isinstance(given, list | tuple | np.ndarray) else getattr(given, "ndim", 2) > 2


def _pixels(given: Any) -> NDArray[Any]:
    """The images as a checked array."""
    pixels: NDArray[Any] = check_array(given, allow_nd=True)
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        raise ValueError(f"X has the shape {list(pixels.shape)}. Give images as [N, H, W] or [N, H, W, 3].")
    return pixels


def _checked_labels(images: Any, y: Any) -> NDArray[Any]:
    labels: NDArray[Any] = check_X_y(np.zeros((len(images), 1)), y)[1]
    return labels


def _as_array(y: Any) -> Any:
    """Convert tensors and byte strings to arrays of plain labels; return all other labels unchanged.

    Raises:
        InputError: a label is missing, or two labels differ only in their type.
    """
    if isinstance(y, Tensor):
        y = y.detach().cpu()
        y = (y.double() if y.dtype == torch.bfloat16 else y).numpy()
    if isinstance(y, np.ndarray) and y.dtype.kind == "S":
        return np.char.decode(y, "utf-8")
    if isinstance(y, list | tuple) or (getattr(y, "dtype", None) == np.dtype(object) and np.ndim(y) == 1):
        try:
            labelling.read(y, len(y))
        except UserError as error:
            raise InputError(str(error)) from error
    return y


def _refuse_spellings(classes: NDArray[Any]) -> None:
    """Refuse labels that differ only in their Unicode form, since their images would become one class."""
    forms, _ = labelling.spellings(one for one in classes.tolist() if isinstance(one, str))
    if forms:
        raise InputError(
            f"y has one label in several Unicode forms (NFC and NFD): {listing(sorted(set(forms.values())))}. Bring "
            "each label into one form with unicodedata.normalize."
        )
