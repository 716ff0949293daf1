#!/bin/sh
# transformers 5.23.0 and open_clip 3.3.0 (ftfy 6.3.1) with torch 2.15.0 on Python 3.11, Linux.
#
# CLIP has one vocabulary, and both libraries have a tokenizer for it. One would guess that both give the same tokens for
# any class name. They do for nearly all, in any script. But common names of species and dishes are often written with a
# typographic apostrophe or quotes: "Anna’s hummingbird". open_clip repairs text as CLIP's authors did, which makes them
# straight, so the name has CLIP's own token for 's. transformers' tokenizer has no such repair: the apostrophe becomes two
# rare byte tokens, and the text features of the class are others. Ligatures fall to the same. In Greek capitals the last
# letter differs too: Python writes the sigma at the end of a word in another way than inside it, and transformers does
# not.
#
# Output seen:
#   São Paulo, Straße, кошка, 三毛猫, हिन्दी: the same tokens
#   Anna's hummingbird: the same tokens
#   Anna’s hummingbird: open_clip 3 tokens, transformers 5
#   “king” crab: open_clip 4 tokens, transformers 6
#   ΣΑΣ: other tokens
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 open_clip_torch==3.3.0 ftfy==6.3.1 torch==2.15.0 \
    torchvision==0.29.2 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import gzip
import json
import sys
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe
from transformers import CLIPTokenizer

theirs = SimpleTokenizer()
# transformers reads the same vocabulary from two files; open_clip carries it.
folder = Path(sys.argv[1])
merges = gzip.open(default_bpe()).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
(folder / "vocab.json").write_text(json.dumps(theirs.encoder))
(folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
ours = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def tokens(name: str) -> tuple[list[int], list[int]]:
    return theirs.encode(name), ours(name, add_special_tokens=False)["input_ids"]


held = []
many = ("São Paulo", "Straße", "кошка", "三毛猫", "हिन्दी")
held.append(all(one == other for one, other in map(tokens, many)))
print(f"{', '.join(many)}: {'the same' if held[-1] else 'other'} tokens")
one, other = tokens("Anna's hummingbird")
held.append(one == other)
print(f"Anna's hummingbird: {'the same' if one == other else 'other'} tokens")
for name in ("Anna\u2019s hummingbird", "\u201cking\u201d crab"):
    one, other = tokens(name)
    held.append(len(one) < len(other))
    print(f"{name}: open_clip {len(one)} tokens, transformers {len(other)}")
one, other = tokens("ΣΑΣ")
held.append(one != other)
print(f"ΣΑΣ: {'the same' if one == other else 'other'} tokens")
sys.exit(0 if all(held) else 1)
END
"$folder/venv/bin/python" "$folder/check.py" "$folder" 2>/dev/null
