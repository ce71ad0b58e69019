"""Random resized crops of image files (Szegedy et al. 2015, section 6)."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import numpy as np

from zoo.datasets.imagefolder import SIZE, opened

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # the crop's share of the area; its width over its height


def random_crop(path: Path, seed: int) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: a random part of the image in the file ``path``, flipped with probability 1/2.

    Args:
        seed: the only source of randomness.

    Raises:
        IntegrityError: the file is damaged or is not an image.
    """
    from PIL import Image

    image, random = opened(path), Random(seed)
    crop = image.crop(crop_box(*image.size, random))  # before the resize: resize(box=...) uses pixels around the box
    pixels = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if random.random() < 0.5 else pixels


def crop_box(width: int, height: int, random: Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, drawn like torchvision's RandomResizedCrop but by a seed."""
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))  # the largest in the centre
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
