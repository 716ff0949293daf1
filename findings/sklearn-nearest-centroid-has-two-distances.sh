#!/bin/sh
# scikit-learn 1.9.1 on Python 3.11, Linux.
#
# NearestCentroid is the usual class-mean classifier over the features of a frozen backbone. It has had predict_proba
# and decision_function since 1.6. One would guess that predict gives the class of the largest probability, and that
# priors which are almost uniform give almost the predictions of uniform ones. Both are wrong. decision_function and
# predict_proba divide each feature by its standard deviation within the classes. predict does so only if the priors
# are not uniform; with uniform priors, the default, it takes plain distances. So accuracy belongs to one classifier,
# and calibration error, AUC, thresholds and top-k belong to another. Calibration by one temperature, which keeps the
# largest score, changes classes. priors="empirical" changes the distance when a balanced set loses a single example.
# Neither the class's documentation nor that of its methods speaks of two distances, and nothing is said at run time.
#
# Output seen (digits, long-tailed from 150 to 3 pictures a class, and iris; default priors where none are named):
#   digits: predict right 0.827, largest probability right 0.848, the two differ 0.102
#   digits: calibrated by a temperature, classes changed 0.102
#   iris 50, 50, 50: predict right 0.927, largest probability right 0.960, the two differ 0.073
#   iris 50, 50, 50, empirical: predict is by plain distances True
#   iris 50, 50, 49, empirical: predict is by plain distances False, predictions moved 0.074
#   iris 50, 50, 49, uniform: predictions moved 0.007
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestCentroid


def both(model: NearestCentroid, features: np.ndarray, labels: np.ndarray) -> tuple[str, float]:
    predicted, likeliest = model.predict(features), model.classes_[model.predict_proba(features).argmax(1)]
    differ = float((predicted != likeliest).mean())
    right, largest = (predicted == labels).mean(), (likeliest == labels).mean()
    return f"predict right {right:.3f}, largest probability right {largest:.3f}, the two differ {differ:.3f}", differ


def plain(model: NearestCentroid, features: np.ndarray) -> bool:
    """Whether each prediction is the class of the nearest mean."""
    nearest = model.classes_[pairwise_distances(features, model.centroids_).argmin(1)]
    return bool((model.predict(features) == nearest).all())


pictures, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
pictures, digits = pictures[order], digits[order]
rank = np.zeros(len(digits), dtype=int)
for digit in range(10):
    rank[digits == digit] = np.arange((digits == digit).sum())
train = rank < np.round(150 * (3 / 150) ** (np.arange(10) / 9))[digits]
rest = (rank >= 150) & ~train
calibration = (rank >= 150) & (rank < 160) & ~train
rest &= ~calibration
features = PCA(16, svd_solver="full").fit(pictures[train]).transform(pictures)
means = NearestCentroid().fit(features[train], digits[train])
line, digits_differ = both(means, features[rest], digits[rest])
print("digits:", line)
calibrated = CalibratedClassifierCV(FrozenEstimator(means), method="temperature")
calibrated.fit(features[calibration], digits[calibration])
changed = float((calibrated.predict(features[rest]) != means.predict(features[rest])).mean())
print(f"digits: calibrated by a temperature, classes changed {changed:.3f}")

flowers, kinds = load_iris(return_X_y=True)
less = slice(0, 149)
line, iris_differ = both(NearestCentroid().fit(flowers, kinds), flowers, kinds)
print("iris 50, 50, 50:", line)
whole = NearestCentroid(priors="empirical").fit(flowers, kinds)
fewer = NearestCentroid(priors="empirical").fit(flowers[less], kinds[less])
uniform = NearestCentroid().fit(flowers[less], kinds[less])
by_plain = plain(whole, flowers[less]), plain(fewer, flowers[less])
moved = [float((model.predict(flowers[less]) != whole.predict(flowers[less])).mean()) for model in (fewer, uniform)]
print(f"iris 50, 50, 50, empirical: predict is by plain distances {by_plain[0]}")
print(f"iris 50, 50, 49, empirical: predict is by plain distances {by_plain[1]}, predictions moved {moved[0]:.3f}")
print(f"iris 50, 50, 49, uniform: predictions moved {moved[1]:.3f}")
held = digits_differ > 0.02 and changed > 0.02 and iris_differ > 0.02
sys.exit(0 if held and by_plain == (True, False) and moved[0] > 0.02 and moved[1] < 0.02 else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
