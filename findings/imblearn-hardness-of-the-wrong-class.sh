#!/bin/sh
# imbalanced-learn 0.14.2 with scikit-learn 1.9.1 on Python 3.11, Linux.
#
# InstanceHardnessThreshold thins out the frequent class by the probability that a classifier, fitted on the other
# folds, gives to each example's own label: hard examples, often mislabelled ones, go first. One would guess that it
# takes any labels that the classifier takes, as the other samplers do. But the labels themselves are used as columns of
# the probabilities. Labels 1 and 2, or names, end in an IndexError. Labels -1 and 1, scikit-learn's own for outliers
# and usual in older data sets, pass: -1 is Python's last column, which is the other class's. So the same data are
# thinned out the wrong way round, and nothing is said. The examples that look most like the rare class are kept and the
# clear ones dropped. RandomUnderSampler, NearMiss and EditedNearestNeighbours give the same rows for each pair of
# labels.
#
# Output seen (1,800 frequent examples, 200 of them mislabelled ones of the rare class; as many are kept as are rare):
#   labels 0 and 1:      0 of 200 mislabelled kept, accuracy of the rest 0.81
#   labels -1 and 1:     173 of 200 mislabelled kept, accuracy of the rest 0.25
#   labels 1 and 2:      IndexError
#   labels 'a' and 'b':  IndexError
#   other samplers give the same rows for each: True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet imbalanced-learn==0.14.2 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cat >"$folder/check.py" <<'END'
import sys

import numpy as np
from imblearn.under_sampling import EditedNearestNeighbours, InstanceHardnessThreshold, NearMiss, RandomUnderSampler
from sklearn.linear_model import LogisticRegression

FREQUENT, RARE, WRONG = 1800, 200, 200
numbers = np.random.default_rng(0)
true = np.repeat([0, 1, 1], [FREQUENT - WRONG, WRONG, RARE])
given = np.repeat([0, 1], [FREQUENT, RARE])
features = numbers.normal(size=(len(true), 8)) + 2.5 * np.eye(2, 8)[true]
mislabelled = true != given
fresh_true = np.repeat([0, 1], [500, 500])
fresh = numbers.normal(size=(len(fresh_true), 8)) + 2.5 * np.eye(2, 8)[fresh_true]


def thinned(names: list) -> tuple[str, int, float]:
    """What happened, how many mislabelled examples were kept, and the accuracy of what is trained on the rest."""
    labels = np.array(names)[given]
    sampler = InstanceHardnessThreshold(estimator=LogisticRegression(), random_state=0)
    try:
        kept, kept_labels = sampler.fit_resample(features, labels)
    except IndexError as error:
        return type(error).__name__, 0, 0.0
    score = LogisticRegression().fit(kept, kept_labels).score(fresh, np.array(names)[fresh_true])
    count = int(mislabelled[sampler.sample_indices_].sum())
    return f"{count} of {WRONG} mislabelled kept, accuracy of the rest {score:.2f}", count, score


found = {}
for names in ([0, 1], [-1, 1], [1, 2], ["a", "b"]):
    text, *found[str(names)] = thinned(names)
    found[str(names)].append(text)
    print(f"{f'labels {names[0]!r} and {names[1]!r}:':20} {text}")
same = True
for sampler in (RandomUnderSampler(random_state=0), NearMiss(), EditedNearestNeighbours()):
    rows = []
    for names in ([0, 1], [-1, 1], [1, 2], ["a", "b"]):
        sampler.fit_resample(features, np.array(names)[given])
        rows.append(sampler.sample_indices_.tolist())
    same &= all(one == rows[0] for one in rows)
print("other samplers give the same rows for each:", same)
held = [found["[0, 1]"][0] < 10, found["[0, 1]"][1] > 0.7, found["[-1, 1]"][0] > 100, found["[-1, 1]"][1] < 0.5]
held += [found["[1, 2]"][2] == found["['a', 'b']"][2] == "IndexError", same]
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
