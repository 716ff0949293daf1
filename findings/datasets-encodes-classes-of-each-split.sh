#!/bin/sh
# datasets 5.2.0 on Python 3.11, Linux.
#
# class_encode_column turns names of classes into numbers. One would guess that a DatasetDict, the train and test splits
# of one data set, gets one mapping. But every split is encoded alone, by its own sorted names. On long-tailed data a
# rare class easily has no test picture. Then all classes after it have another number in the test split than in the
# training split, and nothing is said. A classifier that is always right scores as if it hardly knew a class. Only the
# features of each split show it, and concatenate_datasets, which refuses. Numbers fare no better: they are sorted as
# text, so that class 2 of 12 becomes class 4, and the labels no longer fit an older checkpoint. Dataset
# .train_test_split(stratify_by_column=...) wants the encoding first, so both happen on the usual way.
#
# Output seen (species ant, bee, cat, dog, elk; no bee in the test split):
#   train: {'ant': 0, 'bee': 1, 'cat': 2, 'dog': 3, 'elk': 4}
#   test:  {'ant': 0, 'cat': 1, 'dog': 2, 'elk': 3}
#   a classifier that is always right: accuracy 0.25
#   concatenate_datasets: ValueError
#   labels 0 to 11 become: [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 fsspec==2026.9.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6 \
    huggingface_hub==2.4.0
cat >"$folder/check.py" <<'END'
import sys

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets

datasets.disable_progress_bars()
train = ["ant"] * 9 + ["bee"] + ["cat"] * 5 + ["dog"] * 3 + ["elk"] * 2
test = ["ant", "cat", "dog", "elk"] * 5
encoded = DatasetDict(train=Dataset.from_dict({"species": train}), test=Dataset.from_dict({"species": test}))
encoded = encoded.class_encode_column("species")
mappings = {
    split: {name: number for number, name in enumerate(encoded[split].features["species"].names)} for split in encoded
}
for split, mapping in mappings.items():
    print(f"{split + ':':6}", mapping)
guesses = [mappings["train"][name] for name in test]  # what a perfect classifier says, trained on the train split
accuracy = sum(guess == label for guess, label in zip(guesses, encoded["test"]["species"], strict=True)) / len(test)
print(f"a classifier that is always right: accuracy {accuracy:.2f}")
try:
    concatenate_datasets([encoded["train"], encoded["test"]])
    said = "no error"
except ValueError as error:
    said = type(error).__name__
print("concatenate_datasets:", said)
numbers = list(Dataset.from_dict({"label": list(range(12))}).class_encode_column("label")["label"])
print("labels 0 to 11 become:", numbers)
held = [mappings["train"] == {"ant": 0, "bee": 1, "cat": 2, "dog": 3, "elk": 4}]
held += [mappings["test"] == {"ant": 0, "cat": 1, "dog": 2, "elk": 3}, accuracy == 0.25, said == "ValueError"]
held.append(numbers == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3])
sys.exit(0 if all(held) else 1)
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py"
