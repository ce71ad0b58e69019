"""CIFAR-10: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"."""

from __future__ import annotations

from zoo.datasets.parquet import Parquet
from zoo.specs.base import CIFAR10_MEAN, CIFAR10_STD

DATASET = CIFAR10 = Parquet(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    image_size=32,
    mean=CIFAR10_MEAN,
    std=CIFAR10_STD,
    sizes={"train": 49_000, "validation": 1_000, "test": 10_000},
    variable="ZOO_DATA",
    label="label",
    repo_id="uoft-cs/cifar10",
    folder="plain_text",
    revision="0b2714987fa478483af9968de7c934580d0bb9a2",
    test_sha256="e81c1046abd54f51999ecfbed92dcd77f3d74aa7886e2f85ac2296d431e675b0",
    train_sha256="658a487509eaafd053817459c11d44249a1796266be4a79ae643ca7675768e7d",
)
