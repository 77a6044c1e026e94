"""Augmentation of torch tensors, and inside a DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ironstep.augment import (
    ColorJitter,
    Compose,
    CutMix,
    GaussianNoise,
    MixUp,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
)
from ironstep.torch import Augmented

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 3, 12, 10), dtype=np.uint8)
CHAIN = [RandomResizedCrop(8), RandomHorizontalFlip(), ColorJitter(0.3, 0.3, 0.3, 0.1), GaussianNoise()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_tensors_give_what_arrays_give(dtype: torch.dtype, memory: torch.memory_format) -> None:
    chain = Compose(CHAIN, layout="NCHW")
    images = torch.from_numpy(BYTES)
    images = images if dtype == torch.uint8 else (images / 255).to(dtype)
    images = images.contiguous(memory_format=memory)
    before = images.clone()
    got = chain(0, images)
    assert isinstance(got, torch.Tensor)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=memory)
    array = images.numpy() if dtype == torch.uint8 else images.float().numpy()
    want = torch.from_numpy(np.ascontiguousarray(chain(0, array))).to(dtype)
    assert torch.equal(got, want)
    assert torch.equal(images, before)
    out = torch.zeros_like(got)
    assert chain(0, images, out=out) is out
    assert torch.equal(out, want)
    # In place, without a copy.
    flip = Compose([RandomHorizontalFlip(p=1.0)], layout="NCHW")
    address = images.data_ptr()
    assert flip(0, images, out=images) is images
    assert images.data_ptr() == address
    assert torch.equal(images, before.flip(3))


def test_labels_masks_and_boxes_as_tensors() -> None:
    images, mask = torch.from_numpy(BYTES), torch.from_numpy(BYTES[:, 0].astype(np.int64))
    boxes = [torch.tensor([[1.0, 1.0, 4.0, 5.0]])] * 6
    labels = torch.arange(6) % 2
    chain = Compose([RandomHorizontalFlip(p=1.0)], layout="NCHW", targets=("image", "mask", "boxes", "label"))
    got, masks, moved, same = chain(0, images, mask, boxes, labels)
    assert torch.equal(got, images.flip(3))
    assert torch.equal(masks, mask.flip(2))
    assert all(torch.equal(box, torch.tensor([[6.0, 1.0, 9.0, 5.0]])) for box in moved)
    assert same is labels
    _, soft = Compose([MixUp(num_classes=2)], layout="NCHW")(0, images, labels)
    assert soft.dtype == torch.float32
    assert soft.shape == (6, 2)
    loss = torch.nn.functional.cross_entropy(torch.zeros(6, 2), soft)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.zeros(1, 3, 4, 4, requires_grad=True), "must not require a gradient"),
        (torch.zeros(1, 3, 4, 4, device="meta"), "must be on the CPU, got meta"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), "must be uint8 .* got float64"),
        (torch.zeros(1, 3, 4, 4).to_sparse(), "must be a dense tensor"),
    ],
    ids=["grad", "meta", "double", "sparse"],
)
def test_tensors_that_are_refused(images: torch.Tensor, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Compose(CHAIN, layout="NCHW")(0, images)


class Samples(Dataset[Any]):
    """Images (H, W, C) with a label each."""

    def __init__(self, sizes: bool = False) -> None:
        images = RNG.integers(0, 256, (20, 12, 10, 3), dtype=np.uint8)
        self.images = [image[: 12 - (i % 3 if sizes else 0)] for i, image in enumerate(images)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.images[i], i


def gather(loader: Any, data: Augmented, epochs: int = 2) -> dict[tuple[int, int], bytes]:
    seen = {}
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for x, y in loader:
            assert x.dtype == torch.float32
            assert x.shape[1:] == (3, 8, 8)
            for picture, label in zip(x, y, strict=True):
                seen[epoch, int(label)] = picture.numpy().tobytes()
    return seen


FORKS = pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning",  # JAX's, where another test has loaded it
    "ignore:This process .* is multi-threaded:DeprecationWarning",
)


@FORKS
@pytest.mark.parametrize("sizes", [False, True], ids=["one size", "sizes"])
def test_a_data_loader_gives_the_same_pictures_with_any_workers(sizes: bool) -> None:
    samples = Samples(sizes)
    data = Augmented(samples, Compose([*CHAIN, Normalize(0.5, 0.25)], out_layout="NCHW"), seed=3)
    want = gather(DataLoader(data, batch_size=20), data)
    assert len(want) == 40
    assert sum(want[0, i] != want[1, i] for i in range(20)) == 20
    assert gather(DataLoader(data, batch_size=3, shuffle=True), data) == want
    assert gather(DataLoader(data, batch_size=4, num_workers=2), data) == want
    # These see `set_epoch` through shared memory.
    assert gather(DataLoader(data, batch_size=5, num_workers=1, persistent_workers=True), data) == want
    alone, label = data[7]
    assert label == 7
    assert alone.numpy().tobytes() == want[1, 7]
    assert data[-13][0].numpy().tobytes() == want[1, 7]


def test_spawned_workers() -> None:
    data = Augmented(torch.arange(4.0).reshape(4, 1, 1, 1) / 4, GaussianNoise(), seed=1)
    data.set_epoch(2)
    want = torch.stack([data[i] for i in range(4)])
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), want)


def test_pairs_in_a_data_loader() -> None:
    chain = Compose([RandomCrop(8), CutMix(num_classes=20, mode="sample"), Normalize(0.5, 0.25)], out_layout="NCHW")
    data = Augmented(Samples(), chain, seed=0)
    for x, y in DataLoader(data, batch_size=10):
        assert x.shape == (10, 3, 8, 8)
        assert y.shape == (10, 20)
        torch.testing.assert_close(y.sum(1), torch.ones(10))


def test_pil_images_and_masks() -> None:
    from PIL import Image

    samples = [(Image.fromarray(image), (image[..., 0] > 99).astype(np.uint8)) for image in Samples().images[:4]]
    data = Augmented(samples, Compose([RandomRotation(20)], targets=("image", "mask")), seed=0)
    image, mask = data[1]
    assert image.shape == (12, 10, 3)
    assert mask.shape == (12, 10)
    x, m = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(x[1], image)
    assert torch.equal(m[1], mask)


def test_augmented_refuses() -> None:
    with pytest.raises(TypeError, match="dataset must have len"):
        Augmented(iter([]), GaussianNoise(), seed=0)
    with pytest.raises(TypeError, match="transform must be a transform"):
        Augmented([], lambda x: x, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be from 0"):
        Augmented([], GaussianNoise(), seed=-1)
    with pytest.raises(ValueError, match="epoch must be from 0"):
        Augmented([], GaussianNoise(), seed=0).set_epoch(-1)


def test_bfloat16_in_place_and_expanded() -> None:
    images = torch.arange(6.0).bfloat16().reshape(1, 1, 2, 3) / 6
    want = images.flip(3)
    chain = Compose([RandomHorizontalFlip(1.0)], layout="NCHW", inplace=True)
    chain(0, images)
    assert torch.equal(images, want)
    expanded = torch.rand(1, 1, 2, 3).expand(4, 1, 2, 3)
    assert torch.equal(chain(0, expanded), expanded.flip(3))
    negated = torch.view_as_complex(torch.zeros(1, 1, 2, 3, 2)).conj().imag
    assert negated.is_neg()
    with pytest.raises(TypeError, match="out must not be a negated view"):
        chain(0, torch.zeros(1, 1, 2, 3), out=negated)


def test_subclasses_of_tensors() -> None:
    from torchvision.tv_tensors import Image

    images = Image(torch.from_numpy(BYTES))
    got = Compose([RandomHorizontalFlip(1.0)], layout="NCHW")(0, images)
    assert torch.equal(got, torch.from_numpy(BYTES).flip(3))


def test_samples_of_several_types() -> None:
    data = [(np.full((4, 5, 3), 200, np.uint8), 0), (np.full((4, 5, 3), 0.5, np.float32), 1)]
    augmented = Augmented(data, Normalize(0, 1), seed=0)
    both = augmented.__getitems__([0, 1])
    assert torch.equal(both[0][0], augmented[0][0])
    assert torch.equal(both[1][0], augmented[1][0])
    half = Augmented([torch.rand(1, 4, 4).bfloat16()], Compose([], layout="NCHW"), seed=0)
    assert half[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="must have one size and type for MixUp and CutMix"):
        Augmented(data, MixUp(num_classes=2), seed=0).__getitems__([0, 1])


def test_detection_samples() -> None:
    data = [(np.zeros((8, 8, 3), np.uint8), np.ones((k, 4), np.float32).cumsum(1), np.arange(k)) for k in range(4)]
    chain = Compose([RandomHorizontalFlip(1.0)], targets=("image", "boxes", "label"))
    loader = DataLoader(
        Augmented(data, chain, seed=0), batch_size=4, collate_fn=lambda samples: tuple(zip(*samples, strict=True))
    )
    images, boxes, labels = next(iter(loader))
    assert [tuple(b.shape) for b in boxes] == [(k, 4) for k in range(4)]
    assert torch.equal(boxes[1], torch.tensor([[5.0, 2.0, 7.0, 4.0]]))
    assert [len(label) for label in labels] == [0, 1, 2, 3]
    assert len(images) == 4


def test_palettes_are_refused() -> None:
    from PIL import Image

    image = Image.fromarray(BYTES[0].transpose(1, 2, 0)).convert("P")
    with pytest.raises(TypeError, match=r'use .convert\("RGB"\)'):
        _ = Augmented([image], Compose([], layout="NHW"), seed=0)[0]
