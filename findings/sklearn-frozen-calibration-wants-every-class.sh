#!/bin/sh
# scikit-learn 1.9.1 on Python 3.11, Linux.
#
# A fitted classifier is calibrated on pictures kept aside with CalibratedClassifierCV(FrozenEstimator(classifier)), which
# took the place of cv="prefit". On long-tailed data a rare class easily has no picture among them. One would guess that
# the class keeps its column, as with cv="prefit" once, or that one sentence says what is missing. But the wrapper takes
# the classes from the calibration labels and not from the frozen classifier. It ends in an IndexError from inside the
# cross-validation that the frozen classifier does without, whichever class is missing. With ensemble=True the sigmoid
# ends in an error that calls the classifier's own class an unseen label of y. The temperature is fitted without a word,
# and only predict_proba fails, over shapes that do not go together.
#
# Output seen:
#   every class is there: 4 classes
#   class 1 is missing, temperature, ensemble=auto: IndexError
#   class 1 is missing, temperature, ensemble=True: ValueError
#   class 1 is missing, sigmoid, ensemble=auto: IndexError
#   class 1 is missing, sigmoid, ensemble=True: ValueError
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cat >"$folder/check.py" <<'END'
import sys
import warnings

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

warnings.simplefilter("ignore")


def drawn(counts: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 8))
    return noise + 2 * np.eye(len(counts), 8)[labels], labels


def outcome(counts: list[int], method: str, ensemble: bool | str) -> str:
    try:
        wrapped = CalibratedClassifierCV(FrozenEstimator(classifier), method=method, ensemble=ensemble)
        return f"{wrapped.fit(*drawn(counts, 1)).predict_proba(drawn([5] * 4, 2)[0]).shape[1]} classes"
    except (IndexError, ValueError) as error:
        return type(error).__name__


classifier = LogisticRegression().fit(*drawn([300] * 4, 0))
whole = outcome([60] * 4, "temperature", "auto")
print("every class is there:", whole)
held = [whole == "4 classes"]
for method in ("temperature", "sigmoid"):
    for ensemble, expected in (("auto", "IndexError"), (True, "ValueError")):
        found = outcome([60, 0, 60, 60], method, ensemble)
        held.append(found == expected)
        print(f"class 1 is missing, {method}, ensemble={ensemble}: {found}")
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
