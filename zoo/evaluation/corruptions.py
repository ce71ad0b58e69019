"""Common corruptions: 15 kinds of noise, blur, weather and digital damage at 5 severities (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, section 4.1).

Nobody looks for the worst image here: a corruption does not know the model. There are two sources of images:

- ``imagecorruptions-imaug`` computes them, with the parameters of **ImageNet-C**. Its noise, weather and contrast are
  stronger than those of CIFAR-10-C, and its blurs have radii in pixels whatever the size of the image, so that on
  images of 32 pixels they are far stronger. Accuracies on these images cannot be compared with those on CIFAR-10-C.
- the user's files of **CIFAR-10-C**.

Torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from zoo.datasets import cifar10_c
from zoo.evaluation.protocols import CIFAR10_C, Protocol
from zoo.system.errors import MissingDependency, UsageError, first_line, nearest
from zoo.system.silence import silence

if TYPE_CHECKING:
    import numpy as np

    from zoo.datasets.base import Split

KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = range(1, cifar10_c.SEVERITIES + 1)
CELLS = tuple((kind, severity) for kind in KINDS for severity in SEVERITIES)
SEEDED = ("impulse_noise", "glass_blur")  # these do not draw from numpy's global generator, and take a seed
SMALLEST = 32  # pixels, of the library
PACKAGE = "imagecorruptions-imaug"
TOOLS = (PACKAGE, "opencv-python", "opencv-python-headless", "scikit-image", "scipy", "numba", "pillow")


def kinds_called(text: str) -> tuple[str, ...]:
    """The kinds in ``all``, ``none`` or a list with commas, each once, in the order of ``KINDS``.

    Raises:
        UsageError: there is no such kind; the message suggests the nearest.
    """
    if text in ("all", "none"):
        return KINDS if text == "all" else ()
    names = [name.strip().replace("-", "_") for name in text.split(",")]
    check_kinds(names)
    return tuple(kind for kind in KINDS if kind in names)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError if one of ``kinds`` is not a corruption; the message suggests the nearest."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(
                f"no corruption is called '{kind}'{nearest(str(kind), KINDS)} (corruptions: {', '.join(KINDS)})"
            )


def require(size: int) -> None:
    """Do nothing if images of ``size`` pixels can be corrupted here.

    Raises:
        MissingDependency: the library is not installed, or does not load.
        UsageError: the images are too small for it.
    """
    try:
        version(PACKAGE)
        import imagecorruptions  # noqa: F401
    except (PackageNotFoundError, ImportError, OSError) as error:
        why = "not installed" if isinstance(error, PackageNotFoundError) else f"broken ({first_line(error)})"
        raise MissingDependency(
            f"corruptions are computed by {PACKAGE}, which is {why}: run 'pip install \"robust-zoo[corruptions]\"'"
        ) from None
    if size < SMALLEST:
        raise UsageError(f"corruptions need images of at least {SMALLEST} pixels, not {size}")


def corrupted(
    images: np.ndarray, kind: str, severity: int, *, seed: int = 0, index: np.ndarray | None = None
) -> np.ndarray:
    """Corrupt images uint8 [N, H, W, 3], each with randomness of its own; the result has the same shape and type.

    Args:
        severity: from 1 to 5.
        index: the numbers of the images in their split, int [N]; by default 0 to N - 1. What becomes of an image does
            not depend on the others.

    Raises:
        MissingDependency, UsageError: see :func:`require`; or there is no such kind.
    """
    import numpy as np

    check_kinds([kind])
    require(min(images.shape[1:3]))
    from imagecorruptions import corrupt

    result = np.empty_like(images)
    with silence(), _as_before():  # the library prints on images that are not square
        for i, number in enumerate(range(len(images)) if index is None else index):
            key = (seed, KINDS.index(kind), severity, int(number))
            drawn = int(np.random.SeedSequence(key).generate_state(1)[0])
            np.random.seed(drawn)
            given = {"seed": drawn} if kind in SEEDED else {}
            result[i] = corrupt(np.ascontiguousarray(images[i]), severity, kind, **given)
    return result


@contextmanager
def _as_before() -> Iterator[None]:
    """numpy's global generator, from which the library draws, is as it was before."""
    import numpy as np

    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def one_each(n: int, kinds: Sequence[str], seed: int) -> list[tuple[str, int]]:
    """A kind and a severity for each of ``n`` images, at random; every cell is met as often, or once more, and so is
    every kind.

    With one corruption an image, the images stay independent, and what is right of them is a proportion.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    order = {kind: rng.permutation(SEVERITIES).tolist() for kind in KINDS if kind in kinds}
    cells = [(kind, severities[turn]) for turn in range(len(SEVERITIES)) for kind, severities in order.items()]
    return [cells[i] for i in rng.permutation(np.arange(n) % len(cells))]


@dataclass(frozen=True)
class Source:
    """Where the corrupted images of a protocol are from.

    Attributes:
        images: the first n test images in a kind and a severity, uint8 [n, H, W, 3].
        facts: what they depend on besides the test images: versions of packages, or the hash of the files.
    """

    images: Callable[[str, int, int], np.ndarray]
    facts: Callable[[], dict[str, str]]


def source_of(protocol: Protocol, split: Split) -> Source:
    """The source of the images of ``protocol``: the library, or the files of CIFAR-10-C.

    Raises:
        MissingDependency, UsageError: the library cannot corrupt these images; see :func:`require`.
        DataNotFound, IntegrityError: the files are not there, or wrong; see :mod:`zoo.datasets.cifar10_c`.
    """
    if protocol.attack == CIFAR10_C:
        files = cifar10_c.load(KINDS, split)
        return Source(
            lambda kind, severity, n: files.images(kind, severity)[:n], lambda: {CIFAR10_C: files.fingerprint}
        )
    require(min(split.images.shape[1:3]))
    return Source(lambda kind, severity, n: corrupted(split.images[:n], kind, severity, seed=protocol.seed), versions)


def versions() -> dict[str, str]:
    """The versions of what computes the images."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
