#!/bin/sh
# datasets 5.2.0 (fsspec 2026.9.0) with Pillow 13.0.0 on Python 3.11, Linux.
#
# load_dataset("imagefolder", data_dir=...) reads folders SPLIT/CLASS/picture, the form that its guide shows. One would
# guess that the first folder says the split and the second one the class. But each split takes every file that has one
# of its words in the name of any folder above it, also of the class: "train", "training", "dev", "valid", "test",
# "eval" and others, alone or beside a blank, a digit, "-", "_" or ".". CIFAR-100, VOC and COCO have a class "train",
# ImageNet has "bullet train", Places has "train_interior". Their test pictures are in the test split and in the
# training split, and nothing is said. Accuracy on such a class is measured on pictures that were trained on. Training
# pictures of a "test tube" are in the test split for the same reason. A file that matches two patterns of one split is
# in it twice. Without folders of splits, folders of classes are read as splits: of three classes only the pictures of
# trains are left, without labels. With data_files={"train": "FOLDER/train/**", ...} the folders are taken for what they
# are.
#
# Output seen (4 training and 2 test pictures of each class):
#   train: bullet_train 10, bus 4, test tube 4, train 6
#   test:  bullet_train 2, bus 2, test tube 8, train 2
#   pictures in both splits: 8 of 24
#   with data_files, train: bullet_train 4, bus 4, test tube 4, train 4
#   with data_files, test:  bullet_train 2, bus 2, test tube 2, train 2
#   folders bus, train and tram of 4 pictures: 4 pictures in the split train, columns ['image']
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$(command -v python3.11 || command -v python3)" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 fsspec==2026.9.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6 \
    huggingface_hub==2.4.0 pillow==13.0.0
cat >"$folder/check.py" <<'END'
import sys
from collections import Counter
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
folder = Path(sys.argv[1])
COUNTS = {"train": 4, "test": 2}
CLASSES = ["bullet_train", "bus", "test tube", "train"]


def written(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number, 0, 0)).save(path)


def read(name: str, **where: object) -> datasets.DatasetDict:
    return datasets.load_dataset("imagefolder", cache_dir=str(folder / "cache" / name), **where)


def counts(split: datasets.Dataset) -> dict[str, int]:
    names = split.features["label"].names
    return dict(sorted(Counter(names[label] for label in split["label"]).items()))


number = 0
for split, pictures in COUNTS.items():
    for label in CLASSES:
        for _ in range(pictures):
            written(folder / "split" / split / label / f"{number}.png", number)
            number += 1
for label in ("bus", "train", "tram"):
    for picture in range(4):
        written(folder / "whole" / label / f"{picture}.png", picture)

held = []
loaded = read("split", data_dir=str(folder / "split"))
for split, more in (("train", {"bullet_train": 6, "train": 2}), ("test", {"test tube": 6})):
    found = counts(loaded[split])
    held.append(found == {label: COUNTS[split] + more.get(label, 0) for label in CLASSES})
    print(f"{split + ':':6}", ", ".join(f"{label} {pictures}" for label, pictures in found.items()))
numbers = [{picture.getpixel((0, 0))[0] for picture in loaded[split]["image"]} for split in COUNTS]
both = len(numbers[0] & numbers[1])
print(f"pictures in both splits: {both} of {number}")
told = read("told", data_files={split: str(folder / "split" / split / "**") for split in COUNTS})
for split, pictures in COUNTS.items():
    found = counts(told[split])
    held.append(found == dict.fromkeys(CLASSES, pictures))
    print(f"with data_files, {split + ':':6}", ", ".join(f"{label} {pictures}" for label, pictures in found.items()))
whole = read("whole", data_dir=str(folder / "whole"))
rows = {name: split.num_rows for name, split in whole.items()}
columns = whole["train"].column_names
print(f"folders bus, train and tram of 4 pictures: {rows['train']} pictures in the split train, columns {columns}")
held += [both == 8, rows == {"train": 4}, columns == ["image"]]
sys.exit(0 if all(held) else 1)
END
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py" "$folder"
