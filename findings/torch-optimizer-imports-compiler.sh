#!/bin/sh
# torch 2.15.0 on Python 3.11, Linux.
#
# One would guess that `import torch` brings all that a plain eager training loop needs, and that torch's compiler is
# imported by whoever compiles. But making any torch.optim.Optimizer imports torch._dynamo (through the guard around
# add_param_group), some 900 modules and about two seconds, after the data are read and before the first step. The
# function behind the class, torch.optim.sgd.sgd, does the same update to the bit and imports none of it.
#
# Output seen:
#   after import torch: compiler imported False
#   after the function's update: compiler imported False
#   after torch.optim.SGD was made: compiler imported True, over 300 more modules True
#   same bits True
# The script ends with 0 while this holds.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 numpy==2.4.6
cat >"$folder/check.py" <<'END'
import sys

import torch
from torch.optim.sgd import sgd


def compiler() -> bool:
    return "torch._dynamo" in sys.modules


first = compiler()
print("after import torch: compiler imported", first)
settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
gradient = torch.arange(4.0)
mine = torch.nn.Parameter(torch.ones(4))
buffers = [None]
with torch.no_grad():
    sgd([mine], [gradient], buffers, dampening=0.0, nesterov=False, maximize=False, **settings)
second = compiler()
print("after the function's update: compiler imported", second)
before = len(sys.modules)
theirs = torch.nn.Parameter(torch.ones(4))
optimizer = torch.optim.SGD([theirs], **settings)
third, many = compiler(), len(sys.modules) - before > 300
print("after torch.optim.SGD was made: compiler imported", third, end=", ")
print("over 300 more modules", many)
theirs.grad = gradient.clone()
optimizer.step()
same = torch.equal(mine, theirs)
print("same bits", same)
sys.exit(0 if not first and not second and third and many and same else 1)
END
"$folder/venv/bin/python" "$folder/check.py"
