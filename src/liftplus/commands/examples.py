"""The examples at the end of each command's help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("liftplus demo", "liftplus demo --seeds 3 --out runs/demo3"),
    "info": (
        "liftplus info",
        "liftplus info --find dinov3",
        "liftplus info --backbone clip_vit_b16 tuner=lora num_classes=1000",
    ),
    "data inspect": (
        "liftplus data inspect --data photos.zip",
        "liftplus data inspect --data photos --no-files --json",
        "liftplus data inspect --data photos --read 3000",
        "liftplus data inspect --data photos.zip --backbone mini_clip",
    ),
    "data check": (
        "liftplus data check --data photos.zip",
        "liftplus data check --data photos --backbone clip_vit_b16 --clean clean.csv",
    ),
    "prepare": ("liftplus prepare --data photos.zip --out small --size 256",),
    "train": (
        "liftplus train --data photos.zip --out runs/photos",
        "liftplus train --data photos --backbone clip_vit_b16 epochs=10 lr=0.01 seed=1",
        "liftplus train --data photos --method full lr=0.0003 track=tensorboard",
        "liftplus train --resume runs/photos",
    ),
    "zeroshot": ("liftplus zeroshot --data photos --backbone clip_vit_b16",),
    "sweep": ("liftplus sweep --data photos --out runs/sweep lr=0.001..0.1:log epochs=5,10 --trials 12",),
    "compare": (
        "liftplus compare --data photos --seeds 3",
        "liftplus compare --data photos --methods lift+,full:lr=0.0003",
    ),
    "reproduce list": (
        "liftplus reproduce list",
        "liftplus reproduce list imagenet_lt/clip_vit_b16/lift+",
        "liftplus reproduce list losses --json",
    ),
    "reproduce run": (
        "liftplus reproduce run small",
        "liftplus reproduce run imagenet_lt/clip_vit_b16/lift+ --data-root /data --seeds 1",
        "liftplus reproduce run papers/ablation --data-root /data device=cuda:1",
    ),
    "reproduce status": ("liftplus reproduce status", "liftplus reproduce status small --json"),
    "eval": ("liftplus eval runs/photos tte=false", "liftplus eval runs/photos --data other_photos --json"),
    "calibrate": (
        "liftplus calibrate runs/photos",
        "liftplus calibrate runs/photos --split test --share 0.5",
        "liftplus calibrate runs/photos --data labelled prior=training",
    ),
    "predict": (
        "liftplus predict runs/photos new_pictures --out predictions.csv",
        "liftplus predict runs/photos 'new/*.jpg' --top-k 1 --json",
        "liftplus predict runs/photos new_pictures --sets 0.9 --unknown 0.05",
    ),
    "serve": (
        "liftplus serve runs/photos",
        "liftplus serve runs/photos --port 0 --one-crop --max-pixels 12",
    ),
    "report": ("liftplus report runs/photos", "liftplus report runs/photos runs/full --features"),
    "merge": (
        "liftplus merge runs/one runs/two runs/three --out runs/mean",
        "liftplus merge runs/photos --start 0.5 --out runs/between",
    ),
    "classes add": ("liftplus classes add runs/photos 'rare moth' --out runs/more",),
    "classes rename": ("liftplus classes rename runs/photos 'moth=emperor moth' --out runs/renamed",),
    "export": (
        "liftplus export runs/photos --out photos.onnx",
        "liftplus export runs/photos --out photos.pt2",
        "liftplus export runs/photos --page --out photos-page",
    ),
    "push": ("liftplus push runs/photos me/photos",),
    "pull": ("liftplus pull me/photos --out runs/pulled",),
}


def epilog(command: str) -> str:
    """The examples of a command for its help, one per line."""
    return "\n\n".join(["Examples:", *(line.replace("[", r"\[") for line in EXAMPLES[command])])
