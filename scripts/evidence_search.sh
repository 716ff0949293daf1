#!/bin/sh
# Learning rates of the small group's methods, with a seed that no test run uses, on the validation split. From the
# project's root; every sweep goes on where it stopped, and a second process started beside it shares the work:
#     OMP_NUM_THREADS=1 sh scripts/evidence_search.sh [FOLDER OF ARCHIVES]
#     python scripts/evidence.py search runs/search/* --out benchmarks/results/evidence/search_64px.json
# The best rates go into src/liftplus/reproduce/catalogue/small.toml and studies.toml by hand. The demo's methods (lift+,
# full, full+ and the linear probes) have theirs from benchmarks/demo_study.py: benchmarks/results/demo_search.json.
set -e
sweep="liftplus sweep --data openmoji_lt --backbone mini_clip"
all="seed=1000 tte=false"
$sweep --out runs/search/adaptformer $all head_init=random augment=lift lr=0.05,0.15,0.4
$sweep --out runs/search/sai $all augment=lift lr=0.05,0.15,0.4
$sweep --out runs/search/cross_entropy $all loss=cross_entropy lr=0.15,0.4,1.0
$sweep --out runs/search/width_2 $all tuner.adaptformer.width=2 lr=0.15,0.4,1.0
$sweep --out runs/search/width_32 $all tuner.adaptformer.width=32 lr=0.15,0.4,1.0
# The best of three was at an end.
$sweep --out runs/search/adaptformer_edge $all head_init=random augment=lift lr=1.0,2.0
$sweep --out runs/search/width_2_edge $all tuner.adaptformer.width=2 lr=0.02,0.05
$sweep --out runs/search/width_32_edge $all tuner.adaptformer.width=32 lr=0.02,0.05
# Full fine-tuning with layer-wise rates.
$sweep --out runs/search/layer_decay --method full+ $all layer_decay=0.5,0.35,0.7 lr=0.1,0.05,0.2
$sweep --out runs/search/layer_decay_edge --method full+ $all layer_decay=0.5,0.35 lr=0.4
$sweep --out runs/search/layer_decay_edge2 --method full+ $all layer_decay=0.5,0.35 lr=0.8
# Shorter and longer tails, and the share of the weights.
ir4="imbalance_ratio=4 epochs=2 seed=1000 tte=false"
ir200="imbalance_ratio=200 seed=1000 tte=false"
$sweep --out runs/search/ir4_light $ir4 lr=0.15,0.4,1.0
$sweep --out runs/search/ir4_full+ --method full+ $ir4 lr=0.03,0.1
$sweep --out runs/search/ir200_light $ir200 lr=0.15,0.4,1.0
$sweep --out runs/search/ir200_full+ --method full+ $ir200 lr=0.01,0.03
# One more rate at both ratios, so that each has the same four.
$sweep --out runs/search/ir4_full+_edge --method full+ $ir4 lr=0.01,0.06
$sweep --out runs/search/ir200_full+_edge --method full+ $ir200 lr=0.06,0.1
$sweep --out runs/search/ir4_layer_decay --method full+ $ir4 layer_decay=0.5 lr=0.4,0.2,0.1
$sweep --out runs/search/ir200_layer_decay --method full+ $ir200 layer_decay=0.5 lr=0.4,0.2,0.1
for share in 0.0001 0.0086 0.1; do
    rates=0.05,0.15,0.4
    [ $share = 0.0001 ] && rates=0.15,0.4,1.0
    $sweep --out runs/search/ir4_share_$share $ir4 tuner=aft tuner.aft.ratio=$share lr=$rates
    $sweep --out runs/search/ir200_share_$share $ir200 tuner=aft tuner.aft.ratio=$share lr=$rates
done
# The control of studies.toml.
none="$ir200 pretrained=false"
$sweep --out runs/search/control_full --method full $none lr=0.03,0.1,0.3
$sweep --out runs/search/control_light $none head_init=random augment=lift lr=0.05,0.15,0.4
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
