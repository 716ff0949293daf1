#!/bin/sh
# hiclass 5.0.8 with scikit-learn 1.9.1 on Python 3.11, Linux.
#
# hiclass classifies along a hierarchy, such as order and species, and scores with hierarchical precision, recall and
# F1. Its classifiers take whole numbers as labels, counted from 0 at each level, and tell the levels apart: order 1 is
# not species 1. One would guess that its scores do too. But they put each row into one set of bare labels and count
# what two sets share. A predicted order 1 then is right where the species is 1. An answer that is wrong at both levels
# can score 1, and a random one scores almost twice what it should. A row such as (2, 2) counts as one label. With names
# that are the same at two levels ("other") it is as with numbers. And predict gives numbers back as text, so that
# precision and recall of a perfect classifier are 0 as long as its answers are not turned into numbers again. Neither
# is said: no warning in all of this.
#
# Output seen:
#   true (0, 1), answer (1, 0): precision 1.0, recall 1.0, F1 1.0; with names of their own 0.0
#   true (0, 1), answer (0, 2): precision 0.5, recall 0.5, F1 0.5; with names of their own 0.5
#   random answers, 4 orders with 4 species each: F1 0.44; with names of their own 0.25
#   a fitted classifier's answers are right at both levels: True
#   as predict gives them: precision 0.0, recall 0.0
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hiclass==5.0.8 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 networkx==3.6.1
cat >"$folder/check.py" <<'END'
import sys
import warnings

import numpy as np
from hiclass import LocalClassifierPerParentNode
from hiclass.metrics import f1, precision, recall
from sklearn.linear_model import LogisticRegression

warnings.simplefilter("error")  # a warning would end the script


def named(rows: np.ndarray) -> np.ndarray:
    """The same labels as names, each level with its own."""
    return np.array([[f"order {order}", f"species {species}"] for order, species in rows])


held = []
for row, answer, seen, expected in (((0, 1), (1, 0), 1.0, 0.0), ((0, 1), (0, 2), 0.5, 0.5)):
    true, guess = np.array([row] * 10), np.array([answer] * 10)
    scores = precision(true, guess), recall(true, guess), f1(true, guess)
    own = precision(named(true), named(guess))
    print(f"true {row}, answer {answer}: precision {scores[0]}, recall {scores[1]}, F1 {scores[2]};", end=" ")
    print("with names of their own", own)
    held.append(scores == (seen, seen, seen) and own == expected)
rng = np.random.default_rng(0)
true, guess = rng.integers(0, 4, (2, 20000, 2))
score, own = f1(true, guess), f1(named(true), named(guess))
print(f"random answers, 4 orders with 4 species each: F1 {score:.2f}; with names of their own {own:.2f}")
held.append(score > 0.4 and abs(own - 0.25) < 0.01)
labels = true[:400]
features = np.concatenate([np.eye(4)[labels[:, 0]], np.eye(4)[labels[:, 1]]], axis=1)
answers = LocalClassifierPerParentNode(LogisticRegression()).fit(features, labels).predict(features)
right = bool((answers.astype(int) == labels).all())
print("a fitted classifier's answers are right at both levels:", right)
print(f"as predict gives them: precision {precision(labels, answers)}, recall {recall(labels, answers)}")
held += [right, precision(labels, answers) == 0 and recall(labels, answers) == 0]
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
