"""Augmentation of torch tensors, and of the samples of a torch data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .. import _core
from ..augment import Compose, Transform
from ..augment._base import PairTransform, leaves
from ..data import MAX_SEED, BatchKey
from ..functional._arrays import integer


def on_arrays(apply: Callable[..., Any], arrays: tuple[Any, ...], out: Any, inplace: bool) -> Any:
    """Calls a function of arrays with tensors: they go in without a copy, and tensors come out."""
    images = [_array(arrays[0], "images", written=inplace and out is None)]
    given = images + [_array(x, f"arrays[{i}]") for i, x in enumerate(arrays) if i]
    results = apply(*given, out=None if out is None else _array(out, "out", written=True))
    one = not isinstance(results, tuple)
    back: list[Any] = []
    for i, result in enumerate((results,) if one else results):
        if i == 0 and out is not None:
            back.append(out)
        else:
            # What was passed through is the caller's own.
            back.append(arrays[i] if result is given[i] else _tensor(result))
    return back[0] if one else tuple(back)


def _array(x: Any, name: str, written: bool = False) -> Any:
    """A NumPy array over the memory of a tensor; anything else as it is."""
    if isinstance(x, (list, tuple)):
        return [_array(item, f"{name}[{i}]") for i, item in enumerate(x)]
    if not isinstance(x, Tensor):
        return x
    if x.device.type != "cpu":
        raise TypeError(f"{name} must be on the CPU, got {x.device}; augment before the batch goes to the device")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.requires_grad:
        raise TypeError(f"{name} must not require a gradient: augmentation has no backward pass; use .detach()")
    if written and x.is_neg():
        raise TypeError(f"{name} must not be a negated view, because it is written; use .resolve_neg()")
    if x.dtype == torch.bfloat16:
        return _core.tensor_view(x, name, written=written)
    return x.resolve_neg().numpy()


def _tensor(x: Any) -> Any:
    if isinstance(x, list):
        return [_tensor(item) for item in x]
    if not isinstance(x, np.ndarray):  # one number of an array
        return torch.as_tensor(x)
    if x.dtype.name == "bfloat16" or x.dtype.metadata is not None:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


class Augmented(Dataset[Any]):
    """A data set whose samples come out augmented, for a `DataLoader` with any number of workers.

    A sample depends on the seed, its index and the epoch: not on the number of workers, the batch size or the order. A
    batch is augmented in one call (`__getitems__`), so Mixup and CutMix work too. Pictures of different sizes go
    through the chain one by one, and cannot be mixed.

    It should be the outermost data set: `Augmented(ConcatDataset([a, b]), ...)`. A data set around it that asks for
    samples one by one, as `ConcatDataset` does, leaves Mixup and CutMix no partner, and nothing is mixed.

    Boxes differ in number from image to image, so they need `collate_fn=lambda samples: tuple(zip(*samples))`.

    Args:
        dataset: With `len()` and indexing. A sample is an image (NumPy, tensor, or PIL), or a tuple of one and what
            `targets` of the chain says.
        transform: A transform of `ironstep.augment`.
        seed: 0 to 2**64 - 1.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value.

    Example:
        >>> import numpy as np
        >>> from torch.utils.data import DataLoader
        >>> from ironstep.augment import Compose, Normalize, RandomHorizontalFlip
        >>> from ironstep.torch import Augmented
        >>> samples = [(np.zeros((8, 8, 3), np.uint8), label) for label in range(10)]
        >>> chain = Compose([RandomHorizontalFlip(), Normalize(0.5, 0.25)], out_layout="NCHW")
        >>> train = Augmented(samples, chain, seed=0)
        >>> loader = DataLoader(train, batch_size=4, shuffle=True)
        >>> for epoch in range(2):
        ...     train.set_epoch(epoch)
        ...     for x, y in loader:
        ...         pass
        >>> x.shape, y.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, dataset: Any, transform: Transform, seed: int) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"dataset must have len() and indexing, got {type(dataset).__name__}")
        if not isinstance(transform, Transform):
            raise TypeError(f"transform must be a transform of ironstep.augment, got {transform!r}")
        self.dataset = dataset
        self.transform = transform if isinstance(transform, Compose) else Compose([transform])
        self.seed = integer("seed", seed, 0, MAX_SEED)
        # In shared memory, so that workers that live for several epochs see it.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next, from 0: to be called before each loop, or each epoch is like the first."""
        self._epoch.fill_(integer("epoch", epoch, 0, 2**32 - 1))

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """One sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of a batch."""
        if not indices:
            return []
        count = len(self.dataset)
        numbers = np.array([int(i) + count if int(i) < 0 else int(i) for i in indices], np.int64)
        samples = [self.dataset[int(i)] for i in indices]
        alone = [not isinstance(sample, (tuple, list)) for sample in samples]
        columns = [[self._item(x) for x in items] for items in zip(*[_row(s) for s in samples], strict=True)]
        for image in columns[0]:
            # Pillow's palettes and inks are no colours.
            if getattr(image, "mode", "RGB") not in ("L", "RGB", "RGBA"):
                raise TypeError(f'images must be of the mode L, RGB or RGBA, got {image.mode}; use .convert("RGB")')
        key = BatchKey(self.seed, int(self._epoch), 0, numbers)
        columns[0] = [np.asarray(image) for image in columns[0]]
        if len({(image.shape, image.dtype) for image in columns[0]}) > 1:
            if any(isinstance(leaf, PairTransform) for leaf in leaves(self.transform)):
                raise ValueError(
                    "images of a batch must have one size and type for MixUp and CutMix; bring them to one in the "
                    "data set"
                )
            rows = []
            for k in range(len(samples)):
                one = BatchKey(self.seed, key.epoch, 0, numbers[k : k + 1])
                rows += self._augment(one, [column[k : k + 1] for column in columns])
        else:
            rows = self._augment(key, columns)
        return [row[0] if single else row for row, single in zip(rows, alone, strict=True)]

    @staticmethod
    def _item(x: Any) -> Any:
        return _array(x, "a sample") if isinstance(x, Tensor) else x

    def _augment(self, key: BatchKey, columns: list[list[Any]]) -> list[tuple[Any, ...]]:
        """The samples of a batch, given its images, labels and so on."""
        kinds = [*self.transform.targets, *[None] * len(columns)]
        arrays: list[Any] = []
        for kind, column in zip(kinds, columns, strict=False):
            if kind in ("image", "mask"):
                arrays.append(np.stack([np.asarray(x) for x in column]))
            elif kind == "label" and len({np.shape(x) for x in column}) == 1 and not isinstance(column[0], dict):
                arrays.append(np.array(column))
            else:
                arrays.append(column)
        results = self.transform(key, *arrays)
        results = results if isinstance(results, tuple) else (results,)
        return list(zip(*[_split(r, k, c) for r, k, c in zip(results, kinds, columns, strict=False)], strict=True))


def _row(sample: Any) -> Sequence[Any]:
    return sample if isinstance(sample, (tuple, list)) else (sample,)


def _split(result: Any, kind: str | None, column: list[Any]) -> list[Any]:
    """What each sample has of a result."""
    if kind is None or (kind == "label" and not isinstance(result, np.ndarray)):
        return column  # as they came
    if kind == "label" and result.ndim == 1 and result.dtype.kind not in "f":
        return column  # as they came
    return [_tensor(x) for x in result]
