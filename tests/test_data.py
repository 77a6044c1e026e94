"""Batches: order, exact position, arrays of all kinds, transforms, the prefetch thread; split and the digits."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import sklearn.datasets
import torch

from helpers import assert_same
from ironstep import _core, data
from ironstep.data import Batches, BatchKey, load_digits, split

F32, I64 = np.float32, np.int64
TIMEOUT = 30.0
"""Seconds after which something hangs. Nothing here takes more than a few."""

posix = pytest.mark.skipif(os.name != "posix", reason="signals to a thread are POSIX")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F32)


def threads() -> list[threading.Thread]:
    """The prefetch threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "ironstep-prefetch" and thread.is_alive()]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []
    assert not data._RUNNING


def interrupt() -> None:
    """Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter did with the script, in time."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


# -- The order ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Options of `Batches`, for n samples."""

    name: str
    n: int
    options: dict[str, Any]


CASES = [
    Case("one", 1, {"batch_size": 1, "seed": 0}),
    Case("default_size", 100, {"seed": 3}),
    Case("even", 12, {"batch_size": 4, "seed": 1}),
    Case("rest", 13, {"batch_size": 4, "seed": 1}),
    Case("rest_dropped", 13, {"batch_size": 4, "seed": 1, "drop_last": True}),
    Case("even_none_dropped", 12, {"batch_size": 4, "seed": 1, "drop_last": True}),
    Case("larger_than_all", 5, {"batch_size": 9, "seed": 2**64 - 1}),
    Case("as_large_as_all", 9, {"batch_size": 9, "seed": 7, "drop_last": True}),
    Case("ordered", 13, {"batch_size": 4, "shuffle": False}),
    Case("ordered_dropped", 13, {"batch_size": 4, "shuffle": False, "drop_last": True}),
    Case("numpy_options", 13, {"batch_size": np.int32(4), "seed": np.uint64(1), "shuffle": np.True_}),
    Case("full", 13, {"batch_size": None}),
    Case("full_no_shuffle_without_seed", 13, {"batch_size": None, "shuffle": True, "drop_last": True}),
    Case("growing", 13, {"batch_size": lambda epoch: 2 + epoch, "seed": 5}),
    Case("growing_float", 13, {"batch_size": lambda epoch: np.float64(1.6 * 2**epoch), "seed": 5}),
    Case("growing_ordered", 13, {"batch_size": lambda epoch: 2 + epoch, "shuffle": False, "drop_last": True}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_prefetch = pytest.mark.parametrize("prefetch", [0, 1, 3, 100])


def reference(case: Case, epoch: int) -> list[np.ndarray]:
    """The numbers of the samples in each batch of an epoch, one by one."""
    options = {"batch_size": 32, "shuffle": True, "drop_last": False} | case.options
    size = options["batch_size"]
    if callable(size):
        size = int(np.rint(size(epoch)))
    order = list(range(case.n))
    if options["shuffle"] and size is not None:
        order = [int(i) for i in _core.permutation(case.n, int(options["seed"]), epoch)]
    batches: list[list[int]] = []
    for sample in order:
        if not batches or len(batches[-1]) == size:
            batches.append([])
        batches[-1].append(sample)
    if options["drop_last"] and size is not None and len(batches[-1]) < size:
        batches.pop()
    return [np.array(batch) for batch in batches]


@every_case
@every_prefetch
def test_batches_of_every_epoch(case: Case, prefetch: int) -> None:
    x, y = draw(case.n, 3), np.arange(case.n)
    batches = Batches(x, y, prefetch=prefetch, **case.options)
    for epoch in range(3):
        assert batches.epoch == epoch
        want = reference(case, epoch)
        assert len(batches) == len(want)
        got = list(batches)
        assert_same(got, [(x[indices], y[indices]) for indices in want])
        assert all(type(batch) is tuple for batch in got)
    assert batches.epoch == 3


def test_one_array_gives_tuples_of_one() -> None:
    assert_same(list(Batches(np.arange(3), batch_size=2, shuffle=False)), [(np.array([0, 1]),), (np.array([2]),)])


def test_orders_are_permutations_and_depend_on_seed_and_epoch_only() -> None:
    n = 50
    orders = {}
    for seed, epoch in itertools.product((0, 1, 2**64 - 1), (0, 1, 2**40)):
        batches = Batches(np.arange(n), batch_size=7, seed=seed)
        batches.epoch = epoch
        orders[seed, epoch] = tuple(int(i) for (batch,) in batches for i in batch)
        assert sorted(orders[seed, epoch]) == list(range(n))
    assert len(set(orders.values())) == len(orders)
    assert tuple(range(n)) not in orders.values()


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    orders = [np.concatenate([b for (b,) in Batches(np.arange(20), batch_size=k, seed=4)]) for k in (1, 6, 20, 99)]
    for order in orders[1:]:
        assert_same(order, orders[0])


def test_full_batch_is_the_arrays_themselves() -> None:
    x, y = draw(5, 2), np.arange(5)
    for _ in range(2):
        ((got_x, got_y),) = Batches(x, y, batch_size=None)
        assert got_x is x
        assert got_y is y


def test_without_shuffle_batches_are_views_and_with_it_copies() -> None:
    x = draw(10, 2)
    for (batch,) in Batches(x, batch_size=3, shuffle=False):
        assert np.shares_memory(batch, x)
    for (batch,) in Batches(x, batch_size=3, seed=0):
        assert not np.shares_memory(batch, x)


def test_batch_size_functions_get_the_epoch() -> None:
    asked = []
    batches = Batches(np.zeros(10), batch_size=lambda epoch: asked.append(epoch) or (5, 2.4, 2.6, 10)[epoch], seed=0)
    assert asked == []
    sizes = [[len(batch) for (batch,) in batches] for _ in range(4)]
    assert sizes == [[5, 5], [2] * 5, [3, 3, 3, 1], [10]]
    assert asked == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        len(batches)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "batch_size(0) must be at least 1, got 0"),
        (0.4, ValueError, "batch_size(0) must be at least 1, got 0.4"),
        (-3, ValueError, "batch_size(0) must be at least 1, got -3"),
        (float("nan"), ValueError, "batch_size(0) must be finite, got nan"),
        (float("inf"), ValueError, "batch_size(0) must be finite, got inf"),
        ("8", TypeError, "batch_size(0) must be a number, finite, got '8'"),
        (True, TypeError, "batch_size(0) must be a number, finite, got True"),
        (11, ValueError, "batch_size must be at most 10, the number of samples, with drop_last=True, got 11"),
    ],
)
def test_bad_values_of_batch_size_functions(value: Any, error: type[Exception], message: str) -> None:
    batches = Batches(np.zeros(10), batch_size=lambda epoch: value, seed=0, drop_last=True)
    for call in (len, iter):
        with pytest.raises(error, match=re.escape(message)):
            call(batches)


# -- Epochs and several loops ------------------------------------------------------------------------------------------


@every_prefetch
def test_after_a_break_the_epoch_begins_anew(prefetch: int) -> None:
    x = np.arange(12)
    batches = Batches(x, batch_size=3, seed=0, prefetch=prefetch)
    first = [list(batches), list(batches)]
    batches.epoch = 0
    for wanted in first:
        for n in range(1, 4):
            assert_same(list(itertools.islice(batches, n)), wanted[:n])
        assert_same(list(batches), wanted)
    assert batches.epoch == 2


@every_prefetch
def test_several_loops_at_once(prefetch: int) -> None:
    batches = Batches(np.arange(12), batch_size=3, seed=0, prefetch=prefetch)
    epochs = [list(batches), list(batches)]
    batches.epoch = 0
    # Side by side.
    one, two = iter(batches), iter(batches)
    got = [batch for pair in zip(one, two, strict=True) for batch in pair]
    assert_same(got, [batch for batch in epochs[0] for _ in range(2)])
    assert batches.epoch == 1
    # One in the other.
    inner = []
    outer = []
    for batch in batches:
        outer.append(batch)
        inner.append(next(iter(batches)))
    assert_same(outer, epochs[1])
    assert_same(inner, [epochs[1][0]] * 4)
    assert batches.epoch == 2


@every_prefetch
def test_a_look_at_a_batch_does_not_move_the_state_of_a_loop(prefetch: int) -> None:
    batches = Batches(np.arange(12), batch_size=2, seed=0, prefetch=prefetch)
    kept = []
    for i, _ in enumerate(batches):
        next(iter(batches))
        assert (batches.state_dict()["epoch"], batches.state_dict()["index"]) == (0, i + 1)
        kept.append(iter(batches))
        next(kept[-1])  # also by one that stays alive
        assert (batches.state_dict()["epoch"], batches.state_dict()["index"]) == (0, i + 1)
    for loop in kept:
        loop.close()  # type: ignore[attr-defined]
    assert (batches.epoch, batches.state_dict()["index"]) == (1, 0)
    # Nor does a loop that was left open long ago lead one that is further.
    old = iter(batches)
    next(old)
    assert [batches.state_dict()["index"] for _ in batches] == [1, 2, 3, 4, 5, 6]
    assert batches.epoch == 2
    old.close()  # type: ignore[attr-defined]


def test_the_state_is_that_of_the_loop_that_is_furthest() -> None:
    batches = Batches(np.arange(12), batch_size=3, seed=0)
    outer = iter(batches)
    next(outer), next(outer)
    inner = iter(batches)
    next(inner)
    assert batches.state_dict()["index"] == 2
    next(inner), next(inner)
    assert batches.state_dict()["index"] == 3
    list(inner)
    assert (batches.epoch, batches.state_dict()["index"]) == (1, 0)
    # That epoch is over, whatever the other does.
    assert len(list(outer)) == 2
    assert (batches.epoch, batches.state_dict()["index"]) == (1, 0)
    # One that is closed leads no more.
    first = iter(batches)
    next(first), next(first)
    first.close()  # type: ignore[attr-defined]
    assert batches.state_dict()["index"] == 2
    second = iter(batches)
    next(second)
    assert batches.state_dict()["index"] == 1
    assert list(first) == []
    assert batches.state_dict()["index"] == 1


def test_a_loop_that_has_taken_nothing_changes_nothing() -> None:
    batches = Batches(np.arange(12), batch_size=3, seed=0)
    for _ in batches:
        break
    state = batches.state_dict()
    waiting = iter(batches)
    assert batches.state_dict() == state
    next(waiting)
    assert batches.state_dict() == state  # it has done one, too
    batches.epoch = 0
    next(iter(batches))
    assert batches.state_dict()["index"] == 1


def test_a_loop_has_a_state_of_its_own() -> None:
    x = np.arange(12)
    batches = Batches(x, batch_size=3, seed=0)
    want = list(batches), list(batches)
    batches.epoch = 0
    loop: Any = iter(batches)
    for index in range(4):
        state = loop.state_dict()
        assert (state["epoch"], state["index"]) == (0, index)
        again = Batches(x, batch_size=3, seed=0)
        again.load_state_dict(state)
        assert_same(list(again), want[0][index:])
        next(loop)
        list(itertools.islice(batches, 3))
    list(batches), list(batches)  # whole ones
    assert (loop.state_dict()["epoch"], loop.state_dict()["index"]) == (0, 4)
    assert list(loop) == []
    assert (loop.state_dict()["epoch"], loop.state_dict()["index"]) == (1, 0)
    assert batches.epoch == 2
    # Set by hand: that counts.
    batches.epoch = 7
    assert (loop.state_dict()["epoch"], loop.state_dict()["index"]) == (7, 0)


def test_a_loop_from_before_the_position_was_set_has_no_say() -> None:
    batches = Batches(np.arange(12), batch_size=3, seed=0)
    loop = iter(batches)
    next(loop), next(loop)
    batches.epoch = 0
    next(loop)
    assert batches.state_dict()["index"] == 0
    list(loop)
    assert batches.epoch == 0


def test_a_loop_keeps_its_epoch() -> None:
    # It is decided by iter(), not by the first next().
    batches = Batches(np.arange(12), batch_size=3, seed=0)
    waiting = iter(batches)
    first, second = list(batches), list(batches)
    assert_same(list(waiting), first)
    assert batches.epoch == 2
    # Set within a loop: the next one takes it.
    batches.epoch = 0
    for i, batch in enumerate(batches):
        assert_same(batch, first[i])
        batches.epoch = 1
    assert batches.epoch == 1
    assert_same(list(batches), second)


def test_a_copy_goes_its_own_way() -> None:
    batches = Batches(x := np.arange(12), batch_size=3, seed=0, transform=scale)
    all_of_it = list(batches)
    batches.epoch = 0
    for other in (copy.copy(batches), copy.deepcopy(batches), pickle.loads(pickle.dumps(batches))):
        loop = iter(batches)
        next(loop)
        assert_same(list(other), all_of_it)
        assert (other.epoch, batches.epoch, batches.state_dict()["index"]) == (1, 0, 1)
    assert copy.copy(batches)._arrays[0] is x


def scale(key: BatchKey, x: np.ndarray) -> np.ndarray:
    return x * 2


# -- The position ------------------------------------------------------------------------------------------------------


def jittered(key: BatchKey, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.asarray(x) + key.generator().normal(size=x.shape), y, key.indices


@every_case
@every_prefetch
def test_resumed_at_every_batch(case: Case, prefetch: int) -> None:
    x, y = draw(case.n, 3), np.arange(case.n)

    def make(**options: Any) -> Batches:
        return Batches(x, y, transform=jittered, **({"seed": 2} | case.options | options))

    straight = make()
    want = [list(straight) for _ in range(3)]
    batches = make(prefetch=prefetch)
    for epoch in range(2):
        states = [batches.state_dict()]
        for i, _ in enumerate(batches):
            if prefetch:
                # It really is ahead.
                left = len(want[epoch]) - i - 1
                until(lambda left=left: frame_of(batches) >= min(prefetch, left))
            states.append(batches.state_dict())
        states.append(batches.state_dict())
        assert [state["index"] for state in states] == [*range(len(want[epoch]) + 1), 0]
        for index, state in enumerate(states[:-1]):
            assert (state["seed"], state["epoch"], state["samples"]) == (straight._seed, epoch, case.n)
            for ahead in (0, 2):
                again = make(prefetch=ahead)
                again.load_state_dict(copy.deepcopy(state))
                assert again.epoch == epoch
                assert len(again) == len(want[epoch])
                assert again.state_dict() == state
                assert_same(list(again), want[epoch][index:])
                assert_same(list(again), want[epoch + 1])
        again = make()
        again.load_state_dict(states[-1])
        assert_same(list(again), want[epoch + 1])


def frame_of(batches: Batches) -> int:
    """How many batches lie ready, of the only loop that runs."""
    (prefetch,) = data._RUNNING or [None]
    return prefetch._made.qsize() if prefetch else 10**9


@every_prefetch
def test_state_after_a_break_is_where_the_loop_was_left(prefetch: int) -> None:
    x = np.arange(20)
    batches = Batches(x, batch_size=2, seed=0, prefetch=prefetch)
    whole = list(batches)
    batches.epoch = 0
    for i, _ in enumerate(batches):
        if i == 3:
            break
    state = batches.state_dict()
    assert (state["epoch"], state["index"]) == (0, 4)
    again = Batches(x, batch_size=2, seed=0)
    again.load_state_dict(state)
    # A look at a batch loses nothing here either: the loop begins where it would have.
    assert_same(next(iter(again)), whole[4])
    assert again.state_dict()["index"] == 5
    iter(again)
    assert again.state_dict()["index"] == 5
    assert_same(list(again), whole[4:])
    assert len(list(again)) == 10
    # The same after an exception in the body.
    with contextlib.suppress(ZeroDivisionError):
        for i, _ in enumerate(batches):
            1 / (6 - i)
    assert batches.state_dict()["index"] == 7
    assert_same(list(batches), whole)


def test_state_of_a_finished_epoch_that_was_not_seen_to_end() -> None:
    batches = Batches(np.arange(4), batch_size=2, seed=0, prefetch=1)
    loop = iter(batches)
    next(loop), next(loop)
    state = batches.state_dict()
    assert (state["epoch"], state["index"]) == (0, 2)
    again = Batches(np.arange(4), batch_size=2, seed=0, prefetch=1)
    again.load_state_dict(state)
    assert list(again) == []
    assert (again.epoch, again.state_dict()["index"]) == (1, 0)
    loop.close()


def test_the_seed_is_taken_over() -> None:
    saved, other = (Batches(np.arange(30), batch_size=4, seed=seed) for seed in (1, 2))
    next(iter(saved))
    other.load_state_dict(saved.state_dict())
    assert_same(list(other), list(saved)[1:])


STATE = Batches(np.zeros(10), batch_size=4, seed=1).state_dict()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, TypeError, "state_dict must be a dict that `state_dict` gave, got NoneType"),
        ({}, ValueError, "state_dict must have the keys seed, epoch, index, samples, batch_size, shuffle, drop_last"),
        (STATE | {"more": 1}, ValueError, "got seed, epoch, index, samples, batch_size, shuffle, drop_last, more"),
        (STATE | {"seed": None}, TypeError, "state_dict['seed'] must be an integer, got None"),
        (STATE | {"seed": -1}, ValueError, "state_dict['seed'] must be from 0 to 18446744073709551615, got -1"),
        (STATE | {"epoch": -1}, ValueError, "state_dict['epoch'] must be from 0 to 18446744073709551615, got -1"),
        (STATE | {"epoch": 1.0}, TypeError, "state_dict['epoch'] must be an integer, got 1.0"),
        (STATE | {"epoch": True}, TypeError, "state_dict['epoch'] must be an integer, got True"),
        (STATE | {"index": -1}, ValueError, "state_dict['index'] must be an integer at least 0, got -1"),
        (STATE | {"index": 4}, ValueError, "state_dict['index'] must be from 0 to 3, got 4"),
        (STATE | {"index": "1"}, TypeError, "state_dict['index'] must be an integer at least 0, got '1'"),
        (STATE | {"samples": 11}, ValueError, "samples was 11 when the state was saved, and is 10 here"),
        (STATE | {"batch_size": 5}, ValueError, "batch_size was 5 when the state was saved, and is 4 here"),
        (STATE | {"batch_size": None}, ValueError, "batch_size was None when the state was saved, and is 4 here"),
        (STATE | {"shuffle": False}, ValueError, "shuffle was False when the state was saved, and is True here"),
        (STATE | {"shuffle": 1}, ValueError, "shuffle was 1 when the state was saved, and is True here"),
        (STATE | {"drop_last": True}, ValueError, "drop_last was True when the state was saved, and is False here"),
    ],
)
def test_bad_states(state: Any, error: type[Exception], message: str) -> None:
    batches = Batches(np.zeros(10), batch_size=4, seed=8)
    batches.epoch = 3
    next(iter(batches))
    before, epoch = batches.state_dict(), batches.epoch
    with pytest.raises(error, match=re.escape(message)):
        batches.load_state_dict(state)
    assert (batches.state_dict(), batches.epoch) == (before, epoch)


def test_states_with_a_batch_size_that_changes() -> None:
    def growing(epoch: int) -> float:
        if epoch > 2:
            raise ValueError("after the end")
        return 2.0 ** (epoch + 1)

    batches = Batches(np.arange(16), batch_size=growing, seed=0)
    seen = []
    for _ in range(3):
        seen += [batches.state_dict()["batch_size"] for _ in batches]
    assert seen == [2] * 8 + [4] * 4 + [8] * 2
    # There is no batch size any more, but a state: the last checkpoint of a run.
    state = batches.state_dict()
    assert (state["epoch"], state["index"], state["batch_size"]) == (3, 0, "function")
    batches.load_state_dict(state)
    with pytest.raises(ValueError, match="after the end"):
        iter(batches)
    for bad, error, message in [
        ({"batch_size": 0}, ValueError, "state_dict['batch_size'] must be an integer at least 1, got 0"),
        ({"batch_size": None}, TypeError, "state_dict['batch_size'] must be an integer at least 1, got None"),
        ({"batch_size": 4, "index": 5}, ValueError, "state_dict['index'] must be from 0 to 4, got 5"),
        ({"index": 0, "batch_size": 4}, ValueError, "batch_size was 4 when the state was saved, and is 'function'"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            batches.load_state_dict(state | {"epoch": 1, "index": 1} | bad)


def test_an_epoch_keeps_its_batch_size_while_the_function_changes() -> None:
    size = 2

    def plateau(epoch: int) -> int:
        return size

    def make() -> Batches:
        return Batches(np.arange(12), batch_size=plateau, seed=0)

    batches, states, seen = make(), [], []
    for batch in batches:
        seen.append(batch)
        states.append(batches.state_dict())
        assert len(batches) == 6
        if len(seen) == 2:
            size = 4
    assert [(state["index"], state["batch_size"]) for state in states] == [(i + 1, 2) for i in range(6)]
    assert len(batches) == 3
    for i, state in enumerate(states):
        again = make()
        again.load_state_dict(state)
        assert len(again) == 6
        assert again.state_dict() == state
        # A look changes nothing here, too.
        next(iter(again), None)
        again.load_state_dict(state)
        assert_same(list(again), seen[i + 1 :])
        assert [len(batch) for (batch,) in again] == [4, 4, 4]
    # After a break the epoch begins anew, with the size of then.
    size = 2
    again = make()
    next(iter(again))
    size = 6
    assert len(again) == 2
    assert [len(batch) for (batch,) in again] == [6, 6]


def test_the_epoch_can_be_set() -> None:
    batches = Batches(np.arange(12), batch_size=3, seed=0)
    epochs = [list(batches) for _ in range(3)]
    loop = iter(batches)
    next(loop)
    batches.epoch = 1
    assert batches.state_dict() | {"samples": 12} == batches.state_dict()
    assert (batches.epoch, batches.state_dict()["epoch"], batches.state_dict()["index"]) == (1, 1, 0)
    assert_same(list(batches), epochs[1])
    for value, error in [(-1, ValueError), (1.5, TypeError), (True, TypeError), (2**64, ValueError), (None, TypeError)]:
        with pytest.raises(error, match="epoch must be"):
            batches.epoch = value  # type: ignore[assignment]
        assert batches.epoch == 2


# -- Arguments ---------------------------------------------------------------------------------------------------------

X = np.zeros((6, 2))


class Frame:
    """What is indexed by column, as a data frame of pandas."""

    shape = (6, 2)
    iloc: Any = None

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ((), {}, TypeError, "arrays must be one array or more, got none"),
        (
            ([1, 2],),
            {},
            TypeError,
            "arrays[0] must be a NumPy array or an object with .shape that can be sliced, got list",
        ),
        ((X, (1, 2)), {}, TypeError, "arrays[1] must be a NumPy array or an object with .shape"),
        ((X, None), {}, TypeError, "arrays[1] must be a NumPy array or an object with .shape"),
        ((X, Frame()), {}, TypeError, "arrays[1] must be an array, got Frame; pass its .to_numpy()"),
        ((np.ma.masked_array(X),), {}, TypeError, "arrays[0] is a masked array"),
        ((np.float32(3),), {}, ValueError, "arrays[0] must have at least 1 sample (on its first axis), got shape ()"),
        ((np.zeros((0, 3)),), {}, ValueError, "arrays[0] must have at least 1 sample"),
        (
            (X, X[:5]),
            {},
            ValueError,
            "arrays[1] must have 6 samples like arrays[0] (on its first axis), got shape (5, 2)",
        ),
        ((X,), {"seed": None}, ValueError, "seed must be an integer from 0 to 2**64 - 1 to shuffle with, got None"),
        ((X,), {"seed": None, "batch_size": lambda epoch: 2}, ValueError, "seed must be an integer"),
        ((X,), {"seed": -1}, ValueError, "seed must be from 0 to 18446744073709551615, got -1"),
        ((X,), {"seed": 2**64}, ValueError, "seed must be from 0 to"),
        ((X,), {"seed": 1.0}, TypeError, "seed must be an integer, got 1.0"),
        ((X,), {"seed": True}, TypeError, "seed must be an integer, got True"),
        ((X,), {"batch_size": 0}, ValueError, "batch_size must be an integer at least 1, got 0"),
        ((X,), {"batch_size": 2.0}, TypeError, "batch_size must be an integer at least 1, a function of the epoch"),
        ((X,), {"batch_size": True}, TypeError, "batch_size must be an integer at least 1, a function of the epoch"),
        ((X,), {"batch_size": "full"}, TypeError, "or None for one batch of everything, got 'full'"),
        ((X,), {"batch_size": 7, "drop_last": True}, ValueError, "batch_size must be at most 6, the number of samples"),
        ((X,), {"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
        ((X,), {"drop_last": None}, TypeError, "drop_last must be True or False, got None"),
        ((X,), {"transform": 3}, TypeError, "transform must be a function of a key and the arrays, or None, got 3"),
        ((X,), {"prefetch": -1}, ValueError, "prefetch must be an integer at least 0, got -1"),
        ((X,), {"prefetch": True}, TypeError, "prefetch must be an integer at least 0, got True"),
        ((X,), {"prefetch": 1.5}, TypeError, "prefetch must be an integer at least 0, got 1.5"),
    ],
)
def test_bad_arguments(arrays: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Batches(*arrays, **({"seed": 0} | options))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": 0}, "Batches(6 samples, batch_size=32, shuffle=True, seed=0, epoch=0)"),
        ({"shuffle": False, "batch_size": 2}, "Batches(6 samples, batch_size=2, shuffle=False, epoch=0)"),
        ({"batch_size": None}, "Batches(6 samples, batch_size=None, shuffle=False, epoch=0)"),
        (
            {"seed": 0, "batch_size": 2, "drop_last": True, "prefetch": 4},
            "Batches(6 samples, batch_size=2, shuffle=True, seed=0, drop_last=True, prefetch=4, epoch=0)",
        ),
    ],
)
def test_repr(options: dict[str, Any], text: str) -> None:
    assert repr(Batches(X, **options)) == text


# -- Arrays of all kinds -----------------------------------------------------------------------------------------------


class Rows:
    """Has rows but is no array; keeps account of what was read of it, and wants ascending numbers, as h5py does."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            assert key.step is None
            assert 0 <= key.start < key.stop <= len(self._array)
        else:
            assert (np.diff(key) > 0).all()
        rows = self._array[key].copy()
        self.read.append(len(rows))
        return rows


def as_memmap(array: np.ndarray, folder: Path) -> np.ndarray:
    file = np.memmap(folder / "array", array.dtype, "w+", shape=array.shape)
    file[...] = array
    file.flush()
    return np.memmap(folder / "array", array.dtype, "r", shape=array.shape)


def as_h5py(array: np.ndarray, folder: Path) -> Any:
    with h5py.File(folder / "array.h5", "w") as file:
        file["x"] = array
    return h5py.File(folder / "array.h5")["x"]


def as_read_only(array: np.ndarray, folder: Path) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


KINDS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "memmap": as_memmap,
    "h5py": as_h5py,
    "rows": lambda array, folder: Rows(array),
    "torch": lambda array, folder: torch.from_numpy(array.copy()),
    "read_only": as_read_only,
    "strided": lambda array, folder: np.repeat(array, 2, axis=0)[::2],
    "reversed": lambda array, folder: array[::-1].copy()[::-1],
    "fortran": lambda array, folder: np.asfortranarray(array),
    "big_endian": lambda array, folder: array.astype(array.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [None, jittered], ids=["", "transform"])
@pytest.mark.parametrize(
    "options",
    [{"batch_size": 4, "seed": 0}, {"batch_size": 4, "shuffle": False, "seed": 0}, {"batch_size": None, "seed": 0}],
    ids=["shuffled", "ordered", "full"],
)
def test_kinds_of_arrays(kind: str, options: dict[str, Any], transform: Any, tmp_path: Path) -> None:
    x, y = draw(11, 3), np.arange(11)
    other = KINDS[kind](x, tmp_path)

    def numpy_of(batches: Batches) -> list[tuple[np.ndarray, ...]]:
        return [tuple(np.asarray(array) for array in batch) for batch in batches]

    for prefetch in (0, 2):
        want = list(Batches(x, y, transform=transform, **options))
        got = numpy_of(Batches(other, y, transform=transform, prefetch=prefetch, **options))
        assert_same(got, want)
    if kind == "rows":
        assert sum(other.read) == 22
        assert max(other.read) == (options["batch_size"] or 11)


def test_structured_arrays_and_objects() -> None:
    x = np.zeros(5, [("a", "f4"), ("b", "i8", (2,))])
    x["a"] = np.arange(5)
    words = np.array(["a", "bc", None, 4, ()], object)
    for batch, text in Batches(x, words, batch_size=2, seed=0):
        assert batch.dtype == x.dtype
        for row, word in zip(batch, text, strict=True):
            assert words[int(row["a"])] is word


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_the_rows_of_a_batch_are_read_of_a_file_larger_than_memory(tmp_path: Path) -> None:
    # A file with a hole: it takes no space on the disk, but would in memory.
    done = run(
        """
        import sys
        import numpy as np
        from ironstep.data import Batches

        def peak():
            return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024

        samples, features = 1 << 20, 1 << 14
        x = np.memmap(sys.argv[1], np.float32, "w+", shape=(samples, features))
        before = peak()
        for options in ({"seed": 0}, {"seed": 0, "prefetch": 2}, {"shuffle": False}):
            for i, (batch,) in enumerate(Batches(x, batch_size=4, **options)):
                assert batch.shape == (4, features)
                if i == 7:
                    break
        print(x.nbytes / 2**20, peak() - before)
        """,
        str(tmp_path / "large"),
    )
    assert done.returncode == 0, done.stderr
    size, grown = map(float, done.stdout.split())
    assert size == 65536
    assert grown < 100


# -- Transforms --------------------------------------------------------------------------------------------------------


@every_case
@every_prefetch
def test_transforms_get_the_key_and_the_batch(case: Case, prefetch: int) -> None:
    x, y = draw(case.n, 3), np.arange(case.n)
    keys = []

    def transform(key: BatchKey, x_batch: np.ndarray, y_batch: np.ndarray) -> tuple[np.ndarray, ...]:
        keys.append(key)
        assert_same(x_batch, x[key.indices])
        assert_same(y_batch, y[key.indices])
        return x_batch, y_batch

    batches = Batches(x, y, transform=transform, prefetch=prefetch, **case.options)
    for epoch in range(2):
        keys.clear()
        list(batches)
        want = reference(case, epoch)
        assert [(key.seed, key.epoch, key.index) for key in keys] == [
            (case.options.get("seed"), epoch, index) for index in range(len(want))
        ]
        assert_same([key.indices for key in keys], want)
        assert all(key.indices.dtype == I64 for key in keys)


def test_transforms_may_change_their_arrays_but_not_the_data(tmp_path: Path) -> None:
    x = draw(7, 2)
    x.flags.writeable = False
    file = as_memmap(x, tmp_path)

    def transform(key: BatchKey, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        for array in arrays:
            array *= 0
        return arrays

    for options in ({"seed": 0}, {"shuffle": False}, {"batch_size": None}):
        writable = x.copy()
        for batch in Batches(writable, x, file, **({"batch_size": 3, "transform": transform} | options)):
            assert all((array == 0).all() for array in batch)
        assert_same(writable, x)


class View:
    """An array of another library: its slices are views, and no NumPy arrays."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, key: Any) -> View:
        return View(self.array[key])


@pytest.mark.parametrize("options", [{"shuffle": False, "batch_size": 3}, {"batch_size": None}, {"seed": 0}])
def test_transforms_do_not_get_views_of_other_arrays(options: dict[str, Any]) -> None:
    x = np.arange(8.0)

    def transform(key: BatchKey, part: View) -> np.ndarray:
        part.array *= -1
        return part.array

    whole = np.concatenate([batch for (batch,) in Batches(View(x), transform=transform, **options)])
    assert_same(np.sort(-whole), np.arange(8.0))
    assert_same(x, np.arange(8.0))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_transforms_return(prefetch: int) -> None:
    def batches(result: Any) -> Batches:
        return Batches(X, batch_size=4, seed=0, transform=lambda key, x: result, prefetch=prefetch)

    one = np.arange(3)
    assert [batch[0] is one and len(batch) == 1 for batch in batches(one)] == [True, True]
    pair = (one, one)
    assert [batch is pair for batch in batches(pair)] == [True, True]
    for bad, kind in ((None, "NoneType"), ([one], "list")):
        with pytest.raises(TypeError, match=f"transform must return a tuple of arrays or one array, got {kind}"):
            next(iter(batches(bad)))


def test_random_numbers_are_a_function_of_seed_epoch_and_index() -> None:
    none = np.array([], I64)
    numbers = {
        (seed, epoch, index): tuple(BatchKey(seed, epoch, index, none).generator().integers(0, 2**63, 1000).tolist())
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1, 2**64 - 1)
        for index in (0, 1, 2**63)
    }
    for key, drawn in numbers.items():
        assert tuple(BatchKey(*key, np.arange(3)).generator().integers(0, 2**63, 1000).tolist()) == drawn
    # No two have a number in common, so none is another one shifted.
    assert len({number for drawn in numbers.values() for number in drawn}) == 27 * 1000
    plain = np.random.Generator(np.random.Philox(key=0)).integers(0, 2**63, 1000)
    assert not set(plain.tolist()) & set(numbers[0, 0, 0])
    # Philox of NumPy has given the same numbers since 1.17: these are part of what a resumed run relies on.
    assert BatchKey(1, 2, 3, none).generator().bit_generator.random_raw() == GOLDEN
    with pytest.raises(ValueError, match="seed must be given to Batches whose transform draws random numbers"):
        BatchKey(None, 0, 0, none).generator()


GOLDEN = 0x860C866047D36718


# -- The prefetch thread -----------------------------------------------------------------------------------------------


class Gate:
    """A transform that can be stopped and watched."""

    def __init__(self, *, held: bool = False, fails_at: int = -1, error: BaseException | None = None) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self.open = threading.Event()
        if not held:
            self.open.set()
        self.fails_at, self.error = fails_at, error
        self.threads: set[int] = set()

    def __call__(self, key: BatchKey, x: np.ndarray) -> np.ndarray:
        self.begun.append(key.index)
        self.threads.add(threading.get_ident())
        assert self.open.wait(TIMEOUT)
        if key.index == self.fails_at:
            assert self.error is not None
            raise self.error
        self.done.append(key.index)
        return x


def gated(gate: Callable[..., Any], prefetch: int = 1, n: int = 10) -> Batches:
    return Batches(np.arange(n), batch_size=1, shuffle=False, transform=gate, prefetch=prefetch)


@pytest.mark.parametrize("prefetch", [1, 2, 3, 9, 10, 50])
def test_so_many_batches_are_made_ahead_and_no_more(prefetch: int) -> None:
    gate = Gate()
    for i, (batch,) in enumerate(gated(gate, prefetch)):
        assert batch == [i]
        ahead = list(range(min(i + 1 + prefetch, 10)))
        until(lambda ahead=ahead: gate.done == ahead)
        if i in (0, 5):
            time.sleep(0.02)
            assert gate.begun == ahead
    assert threading.get_ident() not in gate.threads
    assert len(gate.threads) == 1


def test_no_thread_without_need() -> None:
    gate = Gate()
    loop = iter(gated(gate))
    assert threads() == []  # it was not asked for anything yet
    del loop
    list(gated(gate, prefetch=0))
    assert gate.threads == {threading.get_ident()}
    batches = gated(gate)
    batches.load_state_dict(batches.state_dict() | {"index": 10})
    started = threading.active_count()
    assert next(iter(batches), None) is None
    assert threading.active_count() == started


def leave_by_break(batches: Batches) -> None:
    for _ in batches:
        break


def leave_by_exception(batches: Batches) -> None:
    with contextlib.suppress(KeyError):
        for _ in batches:
            raise KeyError


def leave_by_close(batches: Batches) -> None:
    loop = iter(batches)
    next(loop)
    loop.close()  # type: ignore[attr-defined]


def leave_by_forgetting(batches: Batches) -> None:
    loop = iter(batches)
    next(loop)
    del loop


def leave_by_cycle(batches: Batches) -> None:
    loop = iter(batches)
    next(loop)
    circle = [loop]
    circle.append(circle)  # type: ignore[arg-type]
    del loop, circle
    gc.collect(1)


def leave_by_end(batches: Batches) -> None:
    assert len(list(batches)) == 10


@pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_exception, leave_by_close, leave_by_forgetting, leave_by_cycle, leave_by_end],
)
@pytest.mark.parametrize("prefetch", [1, 4, 50])
def test_no_thread_is_left_after_the_loop(leave: Callable[[Batches], None], prefetch: int) -> None:
    batches = gated(lambda key, x: x, prefetch)
    for _ in range(20):
        batches.epoch = 0
        leave(batches)
        assert threads() == []
        assert not data._RUNNING


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError(), OSError(2, "no")])
@pytest.mark.parametrize("prefetch", [0, 1, 4, 50])
@pytest.mark.parametrize("at", [0, 1, 9])
def test_exceptions_come_at_their_batch(error: BaseException, prefetch: int, at: int) -> None:
    gate = Gate(fails_at=at, error=error)
    batches = gated(gate, prefetch)
    seen = []

    def loop() -> None:
        for (batch,) in batches:
            if prefetch > 10:
                until(lambda: gate.begun[-1] == at)
            seen.append(int(batch[0]))

    with pytest.raises(type(error)) as caught:
        loop()
    assert caught.value is error
    # The traceback says where.
    assert isinstance(caught.traceback[-1].frame.f_locals["self"], Gate)
    assert seen == list(range(at))
    assert batches.state_dict()["index"] == at
    assert threads() == []
    # It can be tried again.
    gate.fails_at = -1
    assert len(list(batches)) == 10


def test_stop_iteration_of_a_transform_does_not_end_the_epoch_in_silence() -> None:
    for prefetch in (0, 1):
        with pytest.raises(RuntimeError, match="generator raised StopIteration"):
            list(gated(Gate(fails_at=3, error=StopIteration()), prefetch))


def test_errors_in_indexing_come_too() -> None:
    class Broken(Rows):
        def __getitem__(self, key: Any) -> np.ndarray:
            raise OSError("disk")

    for prefetch in (0, 2):
        with pytest.raises(OSError, match="disk"):
            next(iter(Batches(Broken(X), batch_size=2, seed=0, prefetch=prefetch)))


def test_batches_that_were_given_out_are_not_kept() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def transform(key: BatchKey, x: np.ndarray) -> np.ndarray:
        alive.append(weakref.ref(x))
        return x

    loop = iter(gated(transform, prefetch=2))
    for i in range(8):
        next(loop)
        until(lambda i=i: len(alive) == i + 3)
        # The last one that was taken, which the loop still has, and those ahead.
        until(lambda: sum(ref() is not None for ref in alive) <= 3)
    loop.close()  # type: ignore[attr-defined]
    del loop
    until(lambda: not any(ref() is not None for ref in alive))


def test_exceptions_do_not_keep_the_loop_alive() -> None:
    class Data(np.ndarray):
        pass

    gc.collect()
    gc.disable()
    try:
        x = np.arange(10).view(Data)
        there = weakref.ref(x)
        with contextlib.suppress(ZeroDivisionError):
            list(Batches(x, batch_size=1, seed=0, transform=lambda key, x: 1 // (key.index - 2), prefetch=2))
        del x
        until(lambda: there() is None)
    finally:
        gc.enable()


def test_the_context_is_that_of_the_loop() -> None:
    def transform(key: BatchKey, x: np.ndarray) -> np.ndarray:
        return x / np.zeros(1)

    for prefetch in (0, 1):
        with np.errstate(divide="raise", invalid="raise"), pytest.raises(FloatingPointError):
            list(gated(transform, prefetch))
        with np.errstate(all="ignore"):
            assert len(list(gated(transform, prefetch))) == 10


def test_a_transform_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PATIENCE", 0.05)
    gate = Gate()
    loop = iter(gated(gate))
    next(loop)
    until(lambda: gate.done == [0, 1])
    gate.open.clear()
    next(loop)
    until(lambda: gate.begun == [0, 1, 2])
    start = time.monotonic()
    loop.close()  # type: ignore[attr-defined]
    assert 0.04 < time.monotonic() - start < 5.0
    assert len(threads()) == 1
    gate.open.set()
    until(lambda: threads() == [])
    assert gate.begun == [0, 1, 2]


@posix
def test_ctrl_c_while_the_loop_waits() -> None:
    gate = Gate(held=True)
    batches = gated(gate)

    def work() -> None:
        until(lambda: gate.begun == [0])
        time.sleep(0.05)
        interrupt()
        # The loop waits for the transform before it goes.
        time.sleep(0.05)
        gate.open.set()

    helper = threading.Thread(target=work)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        next(iter(batches))
    helper.join()
    assert threads() == []
    assert batches.state_dict()["index"] == 0
    assert len(list(batches)) == 10


@posix
def test_ctrl_c_in_the_body() -> None:
    batches = gated(Gate(), 3)

    def loop() -> None:
        for i, _ in enumerate(batches):
            if i == 4:
                interrupt()
                until(lambda: False)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert threads() == []
    assert batches.state_dict()["index"] == 5


@posix
def test_ctrl_c_at_any_moment() -> None:
    # 60 interrupts wherever the loop happens to be: it always ends, and the next one is whole.
    batches = Batches(np.arange(200), batch_size=1, seed=0, prefetch=2)
    for i in range(60):
        batches.epoch = 0
        timer = threading.Timer(0.0002 * (i % 20), interrupt)

        def loop(timer: threading.Timer = timer) -> None:
            timer.start()
            for _ in batches:
                pass
            until(lambda: False)  # in short sleeps: a signal just before a long one would wait for its end

        with pytest.raises(KeyboardInterrupt):
            loop()
        timer.join()
        until(lambda: threads() == [])
    batches.epoch = 0
    assert sum(1 for _ in batches) == 200


def test_a_loop_collected_in_its_own_thread() -> None:
    # The garbage collector may run in the thread, and find there the very loop that the thread works for.
    collected = threading.Event()
    go = threading.Event()

    def transform(key: BatchKey, x: np.ndarray) -> np.ndarray:
        if key.index == 1:
            assert go.wait(TIMEOUT)
            gc.collect()
            collected.set()
        return x

    loop = iter(gated(transform))
    there = weakref.ref(loop)
    gc.disable()
    try:
        next(loop)
        circle = [loop]
        circle.append(circle)  # type: ignore[arg-type]
        del loop, circle
        go.set()
        assert collected.wait(TIMEOUT)
    finally:
        gc.enable()
    assert there() is None
    until(lambda: threads() == [])


def test_loops_in_many_threads() -> None:
    n = 60
    batches = Batches(np.arange(n), batch_size=4, seed=0, transform=scale, prefetch=2)
    want = list(batches)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                mine = copy.copy(batches)
                mine.epoch = 0
                assert_same(list(mine), want)
                next(iter(batches))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(TIMEOUT)
        assert not worker.is_alive()
    assert failures == []


def test_a_loop_that_moves_from_thread_to_thread() -> None:
    loop = iter(gated(Gate(), 2))
    got: list[Any] = [next(loop)]
    other = threading.Thread(target=lambda: got.extend(itertools.islice(loop, 4)))
    other.start()
    other.join(TIMEOUT)
    got += loop
    assert_same(got, [(np.array([i]),) for i in range(10)])


@pytest.mark.parametrize(
    "end",
    [
        "loop = iter(batches); next(loop)",
        "loop = iter(batches); next(loop); circle = [loop]; circle.append(circle); del loop, circle; gc.disable()",
        "loop = iter(batches); next(loop); builtins.loop = loop",
        "loop = iter(batches); next(loop); loops.append(loop)",
        "loop = iter(batches); next(loop); atexit.register(lambda: print(len(list(loop)), end=' '))",
        "threading.Thread(target=lambda: [time.sleep(0.01) for _ in batches], daemon=True).start(); time.sleep(0.05)",
        "threading.Thread(target=lambda: [time.sleep(0.001) for _ in batches]).start()",
        "loop = iter(batches); next(loop); print('over'); raise SystemExit(0)",
    ],
)
def test_the_interpreter_ends_in_the_middle_of_a_loop(end: str) -> None:
    start = time.monotonic()
    done = run(
        f"""
        import atexit, builtins, gc, sys, threading, time
        import numpy as np
        from ironstep import functional
        from ironstep.data import Batches

        loops = []
        def transform(key, x):  # in native code most of the time
            return functional.dropout(x, 0.5, seed=key.index)[0]

        batches = Batches(np.ones((100, 40000), np.float32), batch_size=1, seed=0, transform=transform, prefetch=3)
        {end}
        print("over")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split()[0] == "over"
    assert time.monotonic() - start < 10


def test_the_interpreter_ends_while_a_transform_hangs() -> None:
    done = run(
        """
        import threading
        import numpy as np
        from ironstep import data

        data.PATIENCE = 0.1
        begun = threading.Event()
        def transform(key, x):
            if key.index:
                begun.set()
                threading.Event().wait()
            return x

        loop = iter(data.Batches(np.ones(9), batch_size=1, seed=0, transform=transform, prefetch=3))
        next(loop)
        begun.wait()
        print("over")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


@needs_fork
def test_a_fork_in_the_middle_of_a_loop() -> None:
    done = run(
        """
        import os, sys, threading, warnings
        import numpy as np
        from ironstep.data import Batches

        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

        def transform(key, x):
            return x + key.generator().normal(size=x.shape)

        def make():
            return Batches(np.arange(40.0), batch_size=2, seed=0, transform=transform, prefetch=3)

        want = [list(make()), None]
        batches = make()
        loop = iter(batches)
        got = [next(loop), next(loop)]
        abandoned = iter(make())
        next(abandoned)
        child = os.fork()
        got += loop
        # A new loop too, and one that is left early.
        next(iter(batches))
        fresh = list(make())
        same = [np.array_equal(a, b) for (a,), (b,) in zip(got + fresh, want[0] + want[0], strict=True)]
        assert all(same), same
        assert (batches.epoch, len(same)) == (1, 40)
        del abandoned
        assert threading.active_count() == 1, threading.enumerate()
        if child == 0:
            sys.exit(0)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


# -- split -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(
    ("n", "fractions", "sizes"),
    [
        (10, (0.5, 0.5), [5, 5]),
        (10, (0.6, 0.2, 0.2), [6, 2, 2]),
        (1797, [0.7, 0.15, 0.15], [1258, 269, 270]),
        (1000, (0.8, 0.1, 0.1), [800, 100, 100]),
        (7, np.array([0.9, 0.1]), [6, 1]),
        (11, (1 / 3, 1 / 3, 1 / 3), [4, 3, 4]),
        (100, (0.1,) * 10, [10] * 10),
        (3, (1 / 3, 1 / 3, 1 / 3), [1, 1, 1]),
        (5000, (0.001, 0.999), [5, 4995]),
    ],
)
def test_split_parts(n: int, fractions: Any, sizes: list[int], stratified: bool) -> None:
    x, y = draw(n, 2), np.arange(n)
    labels = np.minimum(np.random.default_rng(n).geometric(0.3, n), 6) if stratified else None
    parts = split(x, y, fractions=fractions, seed=3, stratify=labels)
    assert [len(part[1]) for part in parts] == sizes
    assert all(type(part) is tuple for part in parts)
    # Each sample is in one part, rows of both arrays belong together, and the order is that of the data.
    assert sorted(np.concatenate([part[1] for part in parts]).tolist()) == list(range(n))
    for x_part, y_part in parts:
        assert_same(x_part, x[y_part])
        assert (np.diff(y_part) > 0).all()
        assert not np.shares_memory(x_part, x)
    # A function of the seed.
    assert_same(split(x, y, fractions=fractions, seed=3, stratify=labels), parts)
    if n > 5:
        others = [split(y, fractions=fractions, seed=seed, stratify=labels)[0][0] for seed in range(4, 12)]
        assert any(other.tolist() != parts[0][1].tolist() for other in others)
    if labels is not None:
        for value in np.unique(labels):
            members = int((labels == value).sum())
            for (_, y_part), fraction in zip(parts, fractions, strict=True):
                # Rounded once more with each part that was cut off.
                assert abs((labels[y_part] == value).sum() - members * fraction) < 2


def test_split_of_digits_is_as_even_as_scikit_learns() -> None:
    images, labels = load_digits()
    train, test = split(images, labels, fractions=(0.8, 0.2), seed=0, stratify=labels)
    share = np.bincount(labels) * 0.2
    assert (abs(np.bincount(test[1]) - share) < 1).all()
    assert (len(train[1]), len(test[1])) == (1438, 359)


def test_split_takes_every_sample_equally_often() -> None:
    count = np.zeros(20)
    labels = np.repeat([0, 1, 1, 1], 5)
    for seed in range(2000):
        count[split(np.arange(20), fractions=(0.25, 0.75), seed=seed, stratify=labels)[0][0]] += 1
    # Binomial: 500 expected, a standard deviation of 19. (A class of 5 has 1.25 in 5 places: 1 each time here.)
    assert (abs(count[:5] - 400) < 90).all()
    assert (abs(count[5:] - 533) < 90).all()


@pytest.mark.parametrize("labels", [["b", "a"] * 5, np.array([0.5, -1.0] * 5), np.array([True, False] * 5)])
def test_split_by_labels_of_any_type(labels: Any) -> None:
    parts = split(np.asarray(labels), fractions=(0.6, 0.4), seed=0, stratify=labels)
    assert [sorted(np.unique(part[0], return_counts=True)[1].tolist()) for part in parts] == [[3, 3], [2, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_split_of_kinds_of_arrays(kind: str, tmp_path: Path) -> None:
    x = draw(11, 3)
    got = split(KINDS[kind](x, tmp_path), fractions=(0.5, 0.5), seed=0)
    assert_same([tuple(map(np.asarray, part)) for part in got], split(x, fractions=(0.5, 0.5), seed=0))


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ((), {}, TypeError, "arrays must be one array or more"),
        ((X, X[:3]), {}, ValueError, "arrays[1] must have 6 samples like arrays[0]"),
        ((X,), {"seed": -1}, ValueError, "seed must be from 0 to"),
        ((X,), {"seed": None}, TypeError, "seed must be an integer, got None"),
        ((X,), {"fractions": 0.5}, TypeError, "fractions must be a sequence of numbers such as (0.8, 0.2), got 0.5"),
        ((X,), {"fractions": "ab"}, TypeError, "fractions must be a sequence of numbers"),
        ((X,), {"fractions": ()}, ValueError, "fractions must add up to 1"),
        (
            (X,),
            {"fractions": (0.5, 0.4)},
            ValueError,
            "fractions must add up to 1, got (0.5, 0.4), which add up to 0.9",
        ),
        ((X,), {"fractions": (1.0,)}, ValueError, "fractions[0] must be above 0 and below 1, got 1.0"),
        ((X,), {"fractions": (0.5, 0.7, -0.2)}, ValueError, "fractions[2] must be above 0 and below 1, got -0.2"),
        ((X,), {"fractions": (0.5, "x")}, TypeError, "fractions[1] must be a number, above 0 and below 1, got 'x'"),
        ((X,), {"fractions": (0.99, 0.01)}, ValueError, "fractions[1] must give its part at least 1 of 6 samples"),
        ((X,), {"stratify": [0, 1]}, ValueError, "stratify must be labels of shape (6,), got shape (2,)"),
        (
            (X,),
            {"stratify": np.ma.masked_equal(range(6), 2)},
            TypeError,
            "stratify is a masked array, whose mask would",
        ),
        ((X,), {"stratify": X}, ValueError, "stratify must be labels of shape (6,), got shape (6, 2)"),
    ],
)
def test_split_errors(arrays: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        split(*arrays, **({"fractions": (0.5, 0.5), "seed": 0} | options))


# -- The digits --------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    images, labels = load_digits()
    theirs = sklearn.datasets.load_digits()
    assert_same(images, (theirs.images / 16).astype(F32))
    assert_same(labels, theirs.target.astype(I64))
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert os.path.getsize(Path(data.__file__).with_name("digits.npz")) < 60_000
    again = load_digits()
    assert images.flags.writeable
    assert not np.shares_memory(images, again[0])
    for text in ("Alpaydin", "10.24432/C50P49", "CC BY 4.0"):
        assert text in (load_digits.__doc__ or "")


def test_import_is_cheap() -> None:
    done = run(
        """
        import sys
        import ironstep.data
        print([m for m in ("json", "csv", "zipfile", "scipy", "matplotlib", "concurrent.futures") if m in sys.modules])
        """
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
