"""Each transform with injected parameters: the bits of the specification, for every type, layout, size and machine."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest

import augment_reference as reference
import ironstep
from augment_cases import (
    BF16,
    CASES,
    CHANNELS,
    DTYPES,
    F32,
    LAYOUTS,
    SIZES,
    U8,
    Case,
    Size,
    Warp,
    apply,
    laid_out,
    pictures,
    restored,
)
from helpers import ISAS, assert_same_bits
from ironstep import _core, augment
from ironstep.augment import _base as augment_base
from layers_reference import narrowed
from test_arrays import LAYOUTS as MEMORIES
from test_arrays import place

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

N = 6


@functools.cache
def expected(name: str, n: int, size: Size, dtype: np.dtype[Any]) -> tuple[Any, np.ndarray]:
    """The parameters of a case, and its result as (n, h, w, c)."""
    case = next(case for case in CASES if case.name == name)
    params = case.params(n, size)
    return params, case.expected(pictures(n, *size, dtype), params)


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    yield
    _core.use_instruction_set(None)
    ironstep.set_num_threads(0)


@each_case
@each_dtype
def test_equals_the_specification(case: Case, dtype: np.dtype[Any]) -> None:
    turns = itertools.count(DTYPES.index(dtype))
    # Halves are widened and then go the way of float32.
    for (h, w), c in itertools.product(SIZES if dtype in (U8, F32) else SIZES[::3], CHANNELS):
        size = Size(h, w, c)
        if not case.fits(size):
            continue
        params, want = expected(case.name, N, size, dtype)
        layouts = LAYOUTS if c == 1 else LAYOUTS[:2]
        # Each layout on one instruction set, and each instruction set with one layout, by turns.
        turn = next(turns)
        for k in range(max(len(layouts), len(ISAS))):
            layout, isa = layouts[k % len(layouts)], ISAS[(k + turn) % len(ISAS)]
            _core.use_instruction_set(isa)
            x = laid_out(pictures(N, *size, dtype), layout)
            x.flags.writeable = False
            got = apply(case.make(c, dtype), params, x, layout)
            assert_same_bits(restored(got, layout), want, f"{size}, {layout}, {isa}")


@each_case
@pytest.mark.parametrize("dtype", [U8, F32], ids=str)
def test_same_bits_on_every_thread_count_and_for_every_split(case: Case, dtype: np.dtype[Any]) -> None:
    n, size = 24, Size(61, 63, 3)
    params = case.params(n, size)
    x = pictures(n, *size, dtype)
    t = case.make(3, dtype)
    whole = apply(t, params, x)
    for isa in ISAS:
        _core.use_instruction_set(isa)
        for threads in (1, 2, 3) if isa == ISAS[-1] else (2,):
            ironstep.set_num_threads(threads)
            assert_same_bits(apply(t, params, x), whole, f"{isa}, {threads} threads")
    pieces = [apply(t, {k: v[i : i + 5] for k, v in params.items()}, x[i : i + 5]) for i in range(0, n, 5)]
    assert_same_bits(np.concatenate(pieces), whole, "in pieces")
    # Samples in another order.
    assert_same_bits(apply(t, {k: v[::-1] for k, v in params.items()}, x[::-1])[::-1], whole, "backwards")


@each_case
@each_dtype
def test_any_layout_in_memory_and_any_place_for_the_result(case: Case, dtype: np.dtype[Any]) -> None:
    size = Size(9, 11, 3)
    params, want = expected(case.name, N, size, dtype)
    content = pictures(N, *size, dtype)
    t = case.make(3, dtype)
    for i, memory in enumerate(MEMORIES):
        layout = LAYOUTS[(i + DTYPES.index(dtype)) % 2]
        x = place(memory, laid_out(content, layout))
        x.array.flags.writeable = False
        # Into another array, of another kind.
        wanted = laid_out(want, layout)
        out = place(MEMORIES[(5 * i + 1) % len(MEMORIES)], np.zeros_like(wanted))
        got = apply(t, params, x.array, layout, out=out.array)
        assert got is out.array
        out.assert_only(wanted, f"{memory.name} into {out.layout.name}, {layout}")
        x.assert_untouched(memory.name)
        # In place, or else into a new one.
        if want.shape == content.shape and want.dtype == dtype:
            x = place(memory, laid_out(content, layout))
            assert apply(t, params, x.array, layout, out=x.array) is x.array
            x.assert_only(wanted, f"{memory.name} in place, {layout}")
        else:
            assert_same_bits(apply(t, params, x.array, layout), wanted, f"{memory.name}, {layout}")


@each_case
def test_no_samples(case: Case) -> None:
    for dtype in DTYPES:
        params, t = case.params(0, Size(12, 13, 3)), case.make(3, dtype)
        want = t(0, np.zeros((1, 12, 13, 3), dtype))[:0]
        assert_same_bits(apply(t, params, np.zeros((0, 12, 13, 3), dtype)), want)
        assert_same_bits(t(0, np.zeros((0, 12, 13, 3), dtype)), want)
        assert_same_bits(t.apply(t.sample(0, (0, 12, 13, 3)), np.zeros((0, 12, 13, 3), dtype), out=want), want)


# -- Numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if not case.unit], ids=lambda case: case.name)
def test_infinity_and_nan_go_where_the_specification_says(case: Case) -> None:
    """Also zeros of both signs. Pixels that are not seen do no harm."""
    size = Size(9, 19, 3)
    params = case.params(N, size)
    x = pictures(N, *size, F32).copy()
    rng = np.random.default_rng(5)
    for value in (np.nan, np.inf, -np.inf, -0.0, -0.0, -0.0):
        x[rng.random(x.shape) < 0.01] = value
    want = case.expected(x, params)
    for layout, isa in itertools.product(LAYOUTS[:2], ISAS):
        _core.use_instruction_set(isa)
        got = apply(case.make(3, F32), params, laid_out(x, layout), layout)
        assert_same_bits(restored(got, layout), want, f"{layout}, {isa}")


# -- Chains ------------------------------------------------------------------------------------------------------------


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


ANYWHERE = [
    case
    for case in CASES
    if not case.unit and not case.name.startswith(("blur", "normalize", "resize", "resized", "crop", "center"))
] + [named("crop_reflect"), named("resize_antialias_19_40"), named("resized_crop_bilinear"), named("blur_3_3")]


@pytest.mark.parametrize("seed", range(40))
def test_a_chain_is_its_transforms_one_after_the_other(seed: int) -> None:
    """In any order, for any samples, with any layout of the result; halves are rounded at the end only."""
    rng = np.random.default_rng(seed)
    c = int(rng.choice(CHANNELS))
    dtype = DTYPES[seed % 4]
    h, w = SIZES[int(rng.integers(3, len(SIZES)))]
    chosen = [ANYWHERE[i] for i in rng.integers(0, len(ANYWHERE), rng.integers(1, 6))]
    if rng.random() < 0.4:
        chosen.append(named("normalize_each"))
    if rng.random() < 0.4:
        chosen.insert(0, named("jitter_any_order"))
    x = pictures(N, h, w, c, dtype)
    y, parts, params = x if dtype == U8 else x.astype(F32), [], []
    for case in chosen:
        size = Size(*y.shape[1:])
        if not case.fits(size) or (case.name == "rotate90" and rng.random() < 0.5):
            continue
        drawn = case.params(N, size)
        if not case.always:
            drawn["apply"] = rng.random(N) < 0.7
        parts.append(case.make(c, U8 if y.dtype == U8 else dtype))
        params.append(drawn)
        y = case.expected(y, drawn)
    want = y if dtype in (U8, F32) else narrowed(y, dtype)
    layouts = LAYOUTS if c == 1 else LAYOUTS[:2]
    for layout, out_layout in itertools.product(layouts, [None, *layouts]):
        chain = augment.Compose(parts, layout=layout, out_layout=out_layout)
        source = laid_out(x, layout)
        got = chain.apply(params, source)
        where = f"{[case.name for case in chosen]}, {layout} to {out_layout}"
        assert_same_bits(restored(got, out_layout or layout), want, where)
        assert_same_bits(source, laid_out(x, layout), f"{where}: the input")
        nested = augment.Compose([augment.Compose(parts[:2]), *parts[2:]], layout=layout, out_layout=out_layout)
        out = np.full_like(got, 1)
        nested.apply([params[:2], *params[2:]], source, out=out)
        assert_same_bits(restored(out, out_layout or layout), want, f"{where}, nested, out=")
        if got.shape == source.shape and got.dtype == source.dtype and out_layout in (None, layout):
            assert chain.apply(params, source, out=source) is source
            assert_same_bits(restored(source, layout), want, f"{where}, in place")


# -- Masks and points --------------------------------------------------------------------------------------------------

MOVES = [case for case in CASES if case.moves]
each_move = pytest.mark.parametrize("case", MOVES, ids=lambda case: case.name)
MASKS = [np.dtype(t) for t in (np.uint8, np.int16, np.float32, np.int64, np.float64, bool)] + [BF16]


@each_move
def test_masks_go_with_the_pictures(case: Case) -> None:
    """With the nearest pixel, and a fill of their own; of any type."""
    for h, w in SIZES[2::2]:
        size = Size(h, w, 3)
        params, x = case.params(N, size), pictures(N, *size, U8)
        mask = pictures(N, h, w, 1, U8)[..., 0] // 2
        nearest = dataclasses.replace(case, options={**case.options, "interpolation": "nearest", "fill": 1})
        given, want = dict(params), []
        if isinstance(case, Warp):
            given["matrix"] = case.make(3, U8)._stage(params, augment_base.Shape(*size)).columns
        for i in range(N):
            mine = {k: v[i] for k, v in given.items()}
            y = case.reference(mask[i, :, :, None], mine, nearest.options) if mine["apply"] else mask[i, :, :, None]
            want.append(y[..., 0])
        for dtype in MASKS:
            chain = augment.Compose([case.make(3, U8)], targets=("image", "mask"), mask_fill=1)
            for source in (mask.astype(dtype), np.stack([mask.astype(dtype)] * 2, axis=3)[..., :1]):
                got = chain.apply([params], x, source)[1]
                wanted = np.stack(want).astype(dtype)
                assert_same_bits(got, wanted if source.ndim == 3 else wanted[..., None], f"{size}, {dtype}")


def map_of(case: Case, p: Any, size: Size) -> np.ndarray:
    """Where (x, y, 1) goes, in coordinates where pixel i covers i to i + 1: from the specification alone."""
    h, w, _ = size
    options = case.options
    if isinstance(case, Warp):
        a, b, c, d, e, f = case.matrix(p, options, h, w)
        back = np.array([[a, b, c], [d, e, f], [0, 0, 1]])
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        return (half @ np.linalg.inv(back) @ np.linalg.inv(half))[:2]
    if case.transform == "RandomHorizontalFlip":
        return np.array([[-1.0, 0, w], [0, 1, 0]])
    if case.transform == "RandomVerticalFlip":
        return np.array([[1.0, 0, 0], [0, -1, h]])
    if case.transform == "RandomRotate90":
        turn, sides = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), (w, h)
        for _ in range(int(p["k"])):
            turn = np.array([[0.0, 1, 0], [-1, 0, sides[0]], [0, 0, 1]]) @ turn
            sides = sides[::-1]
        return turn[:2]
    top, left = float(p.get("top", 0)), float(p.get("left", 0))
    if "height" not in p and case.transform != "Resize":
        return np.array([[1.0, 0, -left], [0, 1, -top]])
    by_x, by_y = options["size"][1] / p.get("width", w), options["size"][0] / p.get("height", h)
    return np.array([[by_x, 0, -left * by_x], [0, by_y, -top * by_y]])


@each_move
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_boxes_and_keypoints_go_with_the_pictures(case: Case, dtype: Any) -> None:
    size = Size(12, 17, 3)
    params, x = case.params(N, size), pictures(N, *size, U8)
    rng = np.random.default_rng(3)
    points = rng.uniform(-2, 18, (N, 40, 2)).astype(dtype)
    points[:, 7] = np.nan
    corners = np.sort(rng.uniform(-2, 18, (N, 40, 2, 2)), axis=2).reshape(N, 40, 4)[..., :].astype(dtype)
    corners[:, 3] = np.nan
    out_h, out_w = apply(case.make(3, U8), params, x).shape[1:3]
    tolerance = 1e-9 if dtype == np.float64 else 1e-4
    for outside in ("keep", "nan"):
        chain = augment.Compose([case.make(3, U8)], targets=("image", "boxes", "keypoints"), outside=outside)
        _, boxes, keypoints = chain.apply([params], x, corners, points)
        assert boxes.dtype == keypoints.dtype == dtype
        for i in range(N):
            mine = {k: v[i] for k, v in params.items()}
            m = map_of(case, mine, size) if mine["apply"] else np.eye(3)[:2]
            want = (points[i].astype(np.float64) + 0.5) @ m[:, :2].T + m[:, 2]
            four = corners[i].astype(np.float64)
            if outside == "nan":
                gone = ~((want >= 0) & (want < [out_w, out_h])).all(axis=1)
                near = (np.abs(want) < 1e-3).any(axis=1) | (np.abs(want - [out_w, out_h]) < 1e-3).any(axis=1)
                got_gone = np.isnan(keypoints[i]).any(axis=1)
                assert ((gone == got_gone) | near).all()
                want[got_gone] = np.nan
            np.testing.assert_allclose(keypoints[i], want - 0.5, rtol=0, atol=tolerance * 20)
            ends = np.stack([four[:, [a, b]] @ m[:, :2].T + m[:, 2] for a in (0, 2) for b in (1, 3)])
            box = np.concatenate([ends.min(axis=0), ends.max(axis=0)], axis=1)
            if outside == "nan":
                box = np.clip(box, 0, [out_w, out_h, out_w, out_h])
                area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
                got_gone = np.isnan(boxes[i]).any(axis=1)
                assert ((got_gone == ~(area > 0)) | (area < 1e-3)).all()
                box[got_gone] = np.nan
            np.testing.assert_allclose(boxes[i], box, rtol=0, atol=tolerance * 20)


@pytest.mark.parametrize("form", ["xywh", "cxcywh"])
def test_formats_of_boxes(form: str) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(1, 11, (2, 5, 2, 2)), axis=2).reshape(2, 5, 4)
    first, last = corners[..., :2], corners[..., 2:]
    boxes = np.concatenate([first if form == "xywh" else (first + last) / 2, last - first], axis=2)
    x = pictures(2, 12, 12, 3, U8)
    flips = [augment.RandomRotation(45), augment.RandomHorizontalFlip(1)]
    want = augment.Compose(flips, targets=("image", "boxes"))(1, x, corners)[1]
    got = augment.Compose(flips, targets=("image", "boxes"), box_format=form)(1, x, boxes)[1]
    first, last = want[..., :2], want[..., 2:]
    np.testing.assert_allclose(got, np.concatenate([first if form == "xywh" else (first + last) / 2, last - first], 2))


def test_a_keypoint_stays_on_its_pixel() -> None:
    """Whatever moves whole pixels: the value at the keypoint is the same."""
    h, w = 12, 12
    x = np.arange(N * h * w, dtype=np.float32).reshape(N, h, w, 1) + 1
    points = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=2).reshape(1, -1, 2).repeat(N, 0).astype(np.float32)
    chain = augment.Compose(
        [
            augment.RandomRotate90(),
            augment.RandomHorizontalFlip(),
            augment.RandomAffine(0, translate=(0.2, 0.2), interpolation="bilinear"),
            augment.RandomCrop((9, 11), padding=2),
            augment.RandomVerticalFlip(),
        ],
        targets=("image", "keypoints"),
    )
    y, moved = chain(3, x, points)
    seen = 0
    for i, k in itertools.product(range(N), range(h * w)):
        if not np.isnan(moved[i, k]).any():
            column, row = moved[i, k]
            assert (column, row) == (int(column), int(row))
            assert y[i, int(row), int(column), 0] == x[i, k // w, k % w, 0]
            seen += 1
    # And all pixels that are left have one.
    assert seen == (y > 0).sum()


# -- Pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 7, 3), (64, 66, 4)], ids=str)
def test_mixing_equals_the_specification(dtype: np.dtype[Any], size: tuple[int, int, int]) -> None:
    """Any partners, weights and boxes; apart and in place; labels too."""
    n, (h, w, c) = 7, size
    x = pictures(n, h, w, c, dtype)
    labels = np.random.default_rng(2).random((n, 5)).astype(np.float32)
    rng = np.random.default_rng(h)
    maps = [np.roll(np.arange(n), 1), np.arange(n)[::-1], np.zeros(n, int), rng.integers(0, n, n), rng.permutation(n)]
    for partner, layout, threads in itertools.product(maps, LAYOUTS[:2], (1, 3)):
        ironstep.set_num_threads(threads)
        apply_to = rng.random(n) < 0.8
        lam = rng.random(n)
        lam[:3] = 0, 1, 1e-30
        ends = [np.sort(rng.integers(0, length + 1, (n, 2)), axis=1) for length in (h, w)]
        boxes = np.stack([ends[0][:, 0], ends[1][:, 0], ends[0][:, 1], ends[1][:, 1]], axis=1)
        whole = np.tile([0, 0, h, w], (n, 1))
        own = partner == np.arange(n)
        kept = 1.0 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (h * w)
        for mix, params, weight, box, share in (
            (augment.MixUp(), {"lam": lam}, lam, whole, lam),
            (augment.CutMix(), {"box": boxes, "lam": kept}, np.zeros(n), boxes, kept),
        ):
            weight, share = (np.where(own | ~apply_to, 1.0, v) for v in (weight, share))
            want = reference.mix(x, partner, weight, box)
            mixed = share.astype(F32)[:, None] * labels + (1.0 - share).astype(F32)[:, None] * labels[partner]
            targets = np.where(share[:, None] == 1.0, labels, mixed)
            chain = augment.Compose([mix], layout=layout)
            given = [{"apply": apply_to, "partner": partner, **params}]
            source = laid_out(x, layout)
            where = f"{mix!r}, {partner}, {layout}, {threads}"
            got, soft = chain.apply(given, source, labels)
            assert_same_bits(restored(got, layout), want, where)
            assert_same_bits(soft, targets, where)
            if isinstance(mix, augment.CutMix):  # masks of names, which are moved as they are
                names = np.arange(n * h * w, dtype=np.int64).reshape(n, h, w)
                masked = augment.Compose([mix], layout=layout, targets=("image", "mask"))
                pieces = reference.mix(names[..., None], partner, weight, box)[..., 0]
                assert_same_bits(masked.apply(given, source, names)[1], pieces, where)
            chain.apply(given, source, labels, out=source)
            assert_same_bits(restored(source, layout), want, f"{where}, in place")
