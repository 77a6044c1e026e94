"""Random changes of whole batches of images, each sample with parameters of its own, on all cores.

A transform is called with a key and the images, and gives the same pictures for the same key: whatever the batch size,
the order of the samples, the number of threads, or the machine. `Compose` chains transforms; it is a `transform` of
`ironstep.data.Batches`.

Example:
    >>> import numpy as np
    >>> from ironstep.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip
    >>> augment = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), Normalize(mean=0.5, std=0.25)])
    >>> images = np.zeros((8, 32, 32, 3), np.uint8)
    >>> augment(0, images).dtype
    dtype('float32')
"""

from ._base import Params, Transform
from ._color import ColorJitter, GaussianBlur, GaussianNoise, Normalize, RandomGrayscale
from ._compose import Compose, OneOf
from ._erase import Cutout, RandomErasing
from ._geometry import (
    CenterCrop,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotate90,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
)
from ._mix import CutMix, MixUp

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "CutMix",
    "Cutout",
    "GaussianBlur",
    "GaussianNoise",
    "MixUp",
    "Normalize",
    "OneOf",
    "Params",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotate90",
    "RandomRotation",
    "RandomVerticalFlip",
    "Resize",
    "Transform",
]
