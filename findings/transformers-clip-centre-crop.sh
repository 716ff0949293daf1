#!/bin/sh
# transformers 5.23.0 with torch 2.15.0, torchvision 0.29.2 and Pillow 13.0.0 on Python 3.11, Linux.
#
# CLIPImageProcessor is a "TorchvisionBackend", and CLIP's own preprocessing crops the centre with torchvision's
# CenterCrop. One would guess the same pixels. But the processor rounds the margin down, torchvision rounds half of it to
# the nearest even number. So the crop is one pixel further left and up whenever side - crop is 3 more than a multiple
# of four. The long side of a resized photograph leaves any rest, so a quarter of photographs are cut one pixel off.
# Logits of a model that moved between the libraries then differ by more than resizing explains.
#
# Output seen (the first column of the crop of a square picture, by how much larger than 64 its side is):
#   larger by          0 1 2 3 4 5 6 7 8 9 10 11
#   CLIPImageProcessor 0 0 1 1 2 2 3 3 4 4 5 5
#   CenterCrop         0 0 1 2 2 2 3 4 4 4 5 6
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop
from transformers import CLIPImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

assert issubclass(CLIPImageProcessor, TorchvisionBackend)
SIDE, LARGER = 64, range(12)
processor = CLIPImageProcessor(
    do_resize=False, do_rescale=False, do_normalize=False, crop_size={"height": SIDE, "width": SIDE}
)
firsts: list[list[int]] = [[], []]
for by in LARGER:
    columns = np.arange(SIDE + by, dtype=np.uint8)
    picture = Image.fromarray(np.broadcast_to(columns[None, :, None], (SIDE + by, SIDE + by, 3)).copy())
    firsts[0].append(int(processor(picture, return_tensors="np")["pixel_values"][0][0, 0, 0]))
    firsts[1].append(int(np.asarray(CenterCrop(SIDE)(picture))[0, 0, 0]))
for name, values in zip(("larger by", "CLIPImageProcessor", "CenterCrop"), (LARGER, *firsts)):
    print(f"{name:18}", *values)
END
"$folder/venv/bin/python" -W ignore "$folder/check.py" >"$folder/seen"
cat "$folder/seen"
sed -n '/^# Output seen/,/^# The script/s/^#   //p' "$0" | cmp -s - "$folder/seen" || { echo "Another behaviour than described."; exit 1; }
