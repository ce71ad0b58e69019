"""CIFAR-100 with its 100 fine classes: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"."""

from __future__ import annotations

from zoo.datasets.parquet import Parquet

CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

DATASET = CIFAR100 = Parquet(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(CLASSES.split()),
    image_size=32,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    sizes={"train": 49_000, "validation": 1_000, "test": 10_000},
    variable="ZOO_DATA_CIFAR100",
    label="fine_label",
    repo_id="uoft-cs/cifar100",
    folder="cifar100",
    revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5",
    test_sha256="bd251483addf0530bc3e831455074dfa75f7657056fc2639e6b6aced382c06a9",
    train_sha256="f062ca493c4d44a3d0921f223fbc3b1e88b46fd03322e97c635a0ac2a5f8baab",
)
