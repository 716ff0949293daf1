#!/bin/sh
# Learning rates of the small group's methods, with a seed that no test run uses, on the validation split. From the
# project's root; every sweep goes on where it stopped, and a second process started beside it shares the work:
#     OMP_NUM_THREADS=1 sh scripts/evidence_search.sh [FOLDER OF ARCHIVES]
#     python scripts/evidence.py search runs/search/* --out benchmarks/results/evidence/search.json
# The best rates go into src/liftplus/reproduce/catalogue/small.toml and studies.toml by hand.
set -e
sweep="liftplus sweep --data openmoji_lt --backbone mini_clip_v1"
all="image_size=48 seed=1000 tte=false"
$sweep --out runs/search/lift+ $all lr=0.05,0.15,0.4
$sweep --out runs/search/full_sai_mda --method full $all head_init=semantic augment=mda lr=0.03,0.1
$sweep --out runs/search/full --method full $all lr=0.03,0.1,0.3
$sweep --out runs/search/adaptformer $all head_init=random augment=lift lr=0.05,0.15,0.4
$sweep --out runs/search/linear_probe --method linear_probe $all lr=1.0,3.0
$sweep --out runs/search/sai $all augment=lift lr=0.05,0.15
$sweep --out runs/search/cross_entropy $all loss=cross_entropy lr=0.05,0.15
# Again at the size of small.toml and studies.toml, for the two that most comparisons rest on.
at32="image_size=32 seed=1000 tte=false"
$sweep --out runs/search/lift+_32px $at32 lr=0.05,0.15,0.3
$sweep --out runs/search/full_sai_mda_32px --method full $at32 head_init=semantic augment=mda lr=0.03,0.1,0.2
# The control of studies.toml.
none="image_size=32 imbalance_ratio=200 pretrained=false seed=1000 tte=false"
$sweep --out runs/search/control_full --method full $none lr=0.03,0.1,0.3
$sweep --out runs/search/control_light $none head_init=random augment=lift lr=0.05,0.15,0.4
# The share of the weights: LIFT+'s rate is the best for the rule's share and for a tenth.
aft="image_size=32 imbalance_ratio=200 seed=1000 tte=false tuner=aft"
$sweep --out runs/search/share_rule $aft lr=0.05,0.15,0.4
$sweep --out runs/search/share_0.1 $aft tuner.aft.ratio=0.1 lr=0.05,0.15,0.4
# Photographs, from archives in the folder $1 if one is given; a tenth of the training images is set aside.
[ -n "$1" ] || exit 0
photos="liftplus sweep --data $1/tinyimagenet200_lt100.zip --backbone mini_clip_v1"
at32="image_size=32 epochs=2 val_share=0.1 seed=1000 tte=false"
$photos --out runs/search/photographs_light $at32 lr=0.05,0.15,0.4
$photos --out runs/search/photographs_full_sai_mda --method full $at32 head_init=semantic augment=mda lr=0.03,0.1,0.2
$photos --out runs/search/photographs_full --method full $at32 lr=0.03,0.1,0.2
$photos --out runs/search/photographs_linear_probe --method linear_probe $at32 lr=1.0,3.0,10.0
# The best of three was at an end.
$photos --out runs/search/photographs_light_edge $at32 lr=0.8,1.6
$photos --out runs/search/photographs_full_sai_mda_edge --method full $at32 head_init=semantic augment=mda lr=0.003,0.01
$photos --out runs/search/photographs_full_edge --method full $at32 lr=0.003,0.01
$photos --out runs/search/photographs_linear_probe_edge --method linear_probe $at32 lr=0.1,0.3
$photos --out runs/search/photographs_linear_probe_edge2 --method linear_probe $at32 lr=0.01,0.03
cifar="liftplus sweep --data $1/cifar10_lt100.zip --backbone efficientnet_lite0"
at64="image_size=64 epochs=2 val_share=0.1 seed=1000 tte=false"
$cifar --out runs/search/cifar_none $at64 tuner=none lr=0.03,0.1,0.3
$cifar --out runs/search/cifar_norm $at64 tuner=norm lr=0.01,0.03,0.1
$cifar --out runs/search/cifar_full $at64 tuner=full lr=0.003,0.01,0.03
$cifar --out runs/search/cifar_full_edge $at64 tuner=full lr=0.0003,0.001
