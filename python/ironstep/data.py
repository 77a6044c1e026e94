r"""Mini-batches in an order that is a function of the seed and the epoch, so that a run can be resumed in its middle.

`Batches` goes over arrays, also ones that are larger than memory; all its state is three integers. `split` cuts a data
set into parts, and `load_digits` is a small one to try things on.

Example:
    >>> from ironstep.data import Batches, load_digits, split
    >>> images, labels = load_digits()
    >>> train, test = split(images, labels, fractions=(0.8, 0.2), seed=0, stratify=labels)
    >>> batches = Batches(*train, batch_size=64, seed=1)
    >>> batches
    Batches(1438 samples, batch_size=64, shuffle=True, seed=1, epoch=0)
    >>> for x, y in batches:
    ...     pass  # forward, backward, opt.step(grads)
    >>> len(batches), x.shape, y.shape, batches.epoch
    (23, (30, 8, 8), (30,), 1)
"""

from __future__ import annotations

import atexit
import contextvars
import math
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from .functional._arrays import FINITE, Array, count, flag, integer, number
from .optim._hyper import Limit

__all__ = ["BatchKey", "Batches", "load_digits", "split"]

MAX_SEED = 2**64 - 1

SPLIT_STREAM = 2**64 - 1
"""The stream of random numbers that `split` takes; `Batches` takes those from 0 on, one per epoch."""

TRANSFORM_STREAM = int.from_bytes(b"batches", "big")
"""Second half of the key of a transform's random numbers, so that they are not those of `Philox(key=seed)`."""

PATIENCE = 5.0
"""Seconds that the end of a loop waits for a transform which is under way in the prefetch thread."""

FRACTION = Limit(5e-324, 1.0, "above 0 and below 1", closed=False)


# -- Arguments ---------------------------------------------------------------------------------------------------------


def _samples(arrays: Sequence[Any]) -> int:
    """The length that the first axes of all arrays have."""
    if not arrays:
        raise TypeError("arrays must be one array or more, got none")
    for i, array in enumerate(arrays):
        kind = type(array).__name__
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"arrays[{i}] is a masked array, whose mask could get lost; pass its .data, or fill it")
        if hasattr(array, "iloc"):
            raise TypeError(f"arrays[{i}] must be an array, got {kind}; pass its .to_numpy()")
        if not hasattr(array, "shape") or not hasattr(array, "__getitem__"):
            raise TypeError(
                f"arrays[{i}] must be a NumPy array or an object with .shape that can be sliced, got {kind}; use "
                "np.asarray"
            )
        if len(array.shape) == 0 or array.shape[0] < 1:
            raise ValueError(f"arrays[{i}] must have at least 1 sample (on its first axis), got shape {array.shape}")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"arrays[{i}] must have {arrays[0].shape[0]} samples like arrays[0] (on its first axis), got shape "
                f"{tuple(array.shape)}"
            )
    return int(arrays[0].shape[0])


def _rows(array: Any, indices: NDArray[np.int64]) -> Any:
    """A copy of some rows; no others are read."""
    if isinstance(array, np.ndarray):
        return array[indices]
    # h5py takes ascending indices only.
    order = np.argsort(indices)
    return array[indices[order]][np.argsort(order)]


# -- Batches -----------------------------------------------------------------------------------------------------------


class BatchKey(NamedTuple):
    """Which batch it is: what a transform may depend on, besides the arrays.

    Example:
        >>> import numpy as np
        >>> from ironstep.data import BatchKey
        >>> key = BatchKey(seed=0, epoch=2, index=5, indices=np.array([3, 1]))
        >>> bool(key.generator().random() == key.generator().random())
        True
    """

    seed: int | None
    """Of the `Batches`."""
    epoch: int
    """Number of the epoch, from 0."""
    index: int  # type: ignore[assignment]  # tuples have a method of that name
    """Number of the batch in its epoch, from 0."""
    indices: NDArray[np.int64]
    """Numbers of the samples in the data set, of shape (batch,)."""

    def generator(self) -> np.random.Generator:
        """A new generator of random numbers, which are a function of (seed, epoch, index) and of nothing else.

        A transform that takes its random numbers from here does the same after a resume and in any thread.

        Raises:
            ValueError: The `Batches` were made without a seed.

        References:
            Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (Philox).
        """
        if self.seed is None:
            raise ValueError("seed must be given to Batches whose transform draws random numbers, got None")
        key = np.array([self.seed, TRANSFORM_STREAM], np.uint64)
        # A generator counts up in the first word; 2**128 blocks of numbers lie between two batches.
        counter = np.array([0, 0, self.index, self.epoch], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Batches:
    r"""Goes over arrays in mini-batches, in another order each epoch, and knows its exact position.

    $$\text{batch } i \text{ of epoch } e = a[\pi_e(i b), \dots, \pi_e(\min((i + 1) b, n) - 1)]$$

    for each array $a$ of $n$ samples, with $b$ = `batch_size` and $\pi_e$ a permutation of 0 to $n - 1$ that is a
    function of `seed` and the epoch $e$ (the identity without `shuffle`). There are $\lceil n / b \rceil$ batches, or
    $\lfloor n / b \rfloor$ with `drop_last`; that is `len(batches)`.

    One `for` loop is one epoch, and one that comes to its end moves `epoch` on by one. After a `break` the next loop
    begins the same epoch anew, so that a look at a batch loses no data. Several loops may run at once, over the same
    epoch, which the first to end moves on; `epoch` is then shared, and so is the state, which is that of the loop that
    is furthest. `copy.copy(batches)`, which copies no data, has its own.

    Without `shuffle` batches are views of the arrays, with it copies. Only the rows of a batch are read, so a
    `np.memmap` or a zarr or h5py data set may be larger than memory; the order takes 4 bytes per sample.

    Args:
        *arrays: Each of shape (samples, ...), with the same number of samples, at least 1: NumPy arrays, or objects
            with `.shape` and indexing by slice and (for `shuffle`, or a `transform` of what is no NumPy array) by an
            integer array. They are never written.
        batch_size: Samples per batch; the last one may be smaller. A function of the epoch, from 0 (a schedule will
            do; it is rounded): the batch size of that epoch, asked for when a loop begins, so what a function gives
            in the midst of an epoch counts from the next one on. `None`: one batch of everything in the given order,
            which is gradient descent without the "stochastic"; it is the arrays themselves.
        shuffle: A new order for each epoch, drawn without replacement.
        seed: 0 to 2**64 - 1. Must be given to shuffle, and for a transform that draws random numbers.
        drop_last: Leave out the last batch if it is smaller than `batch_size`.
        transform: Called as `transform(key, *batch)` with a `BatchKey`; returns a tuple of arrays or one array,
            which is the batch. The arrays are its own, also without `shuffle`: it may change them in place. With
            random numbers from `key.generator()` a resumed run sees the same ones.
        prefetch: How many batches a thread makes ahead, transform included; 0: none, and no thread. The batches are
            the same. The transform then runs beside the body of the loop, so it must not change what that uses. It
            pays where making a batch takes longer than the 30 us or so of handing it over.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The arrays have no samples or differ in how many, there is no seed to shuffle with, or
            `drop_last` would leave no batch.

    Example:
        >>> import numpy as np
        >>> from ironstep.data import Batches
        >>> x, y = np.arange(10.0), np.arange(10)
        >>> batches = Batches(x, y, batch_size=4, seed=0)
        >>> sorted(int(label) for _, labels in batches for label in labels)
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        >>> batches.epoch
        1

        The state that is taken in a loop says that its batch is done:

        >>> for x_batch, y_batch in batches:
        ...     state = batches.state_dict()
        ...     break
        >>> state["epoch"], state["index"]
        (1, 1)
        >>> again = Batches(x, y, batch_size=4, seed=0)
        >>> again.load_state_dict(state)
        >>> sum(1 for _ in again), again.epoch
        (2, 2)

        Noise that is the same in every run:

        >>> def noisy(key, x, y):
        ...     x += key.generator().normal(0.0, 0.1, x.shape)
        ...     return x, y
        >>> noisy_batches = Batches(x, y, batch_size=4, seed=0, transform=noisy, prefetch=2)
        >>> [len(x_batch) for x_batch, _ in noisy_batches]
        [4, 4, 2]

    References:
        Bottou, Curiously fast convergence of some stochastic gradient descent algorithms, 2009 (a new order for each
        epoch). Smith et al., Don't decay the learning rate, increase the batch size, arXiv 1711.00489.
    """

    def __init__(
        self,
        *arrays: Any,
        batch_size: int | Callable[[int], float] | None = 32,
        shuffle: bool = True,
        seed: int | None = None,
        drop_last: bool = False,
        transform: Callable[..., Any] | None = None,
        prefetch: int = 0,
    ) -> None:
        self._arrays = arrays
        self._samples = _samples(arrays)
        self._batch_size: Any = batch_size
        if self._batch_size is not None and not callable(self._batch_size):
            if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool):
                raise TypeError(
                    "batch_size must be an integer at least 1, a function of the epoch, or None for one batch of "
                    f"everything, got {batch_size!r}"
                )
            self._batch_size = count("batch_size", batch_size, 1)
        self._shuffle = flag("shuffle", shuffle) and batch_size is not None
        self._seed = None if seed is None else integer("seed", seed, 0, MAX_SEED)
        if self._shuffle and seed is None:
            raise ValueError(
                "seed must be an integer from 0 to 2**64 - 1 to shuffle with, got None; give one, or shuffle=False"
            )
        self._drop_last = flag("drop_last", drop_last)
        self._transform: Any = transform
        if self._transform is not None and not callable(self._transform):
            raise TypeError(f"transform must be a function of a key and the arrays, or None, got {transform!r}")
        self._prefetch = count("prefetch", prefetch, 0)
        self._next = _Position(0, 0)
        """Where the next loop begins."""
        self._at = self._next
        """Where the leading loop stands, or stood."""
        self._leader: Callable[[], Loop | None] = _nobody
        """A weak reference to the leading loop: of those alive the one that is furthest in the epoch."""
        self._moves = 0
        """How often the position was set by hand. Loops that are older have no say any more."""
        if not callable(batch_size):
            len(self)  # there must be one

    # -- Sizes ---------------------------------------------------------------------------------------------------------

    def _size(self, epoch: int) -> int:
        """The samples in a batch of that epoch."""
        if self._batch_size is None:
            return self._samples
        if not callable(self._batch_size):
            return int(self._batch_size)
        value = self._batch_size(epoch)
        size = round(number(f"batch_size({epoch})", value, FINITE))
        if size < 1:
            raise ValueError(f"batch_size({epoch}) must be at least 1, got {value!r}")
        return size

    def _length(self, size: int) -> int:
        """The number of batches of that size."""
        if not self._drop_last or self._batch_size is None:
            return -(-self._samples // size)
        if size > self._samples:
            raise ValueError(
                f"batch_size must be at most {self._samples}, the number of samples, with drop_last=True, got {size}: "
                "no batch would be left"
            )
        return self._samples // size

    def __len__(self) -> int:
        """The number of batches in an epoch: the one under way, else the one that comes next, also if resumed."""
        loop = self._leader()
        size = loop.size if loop is not None and loop.has_say() else self._next.size
        return self._length(size or self._size(self.epoch))

    @property
    def samples(self) -> int:
        """The number of samples in the data set."""
        return self._samples

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0, that the next loop goes over. Can be set; that loop then begins at its start."""
        return self._next.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._move(_Position(integer("epoch", value, 0, MAX_SEED), 0))

    def _move(self, position: _Position) -> None:
        """Sets the position by hand."""
        self._next = self._at = position
        self._leader = _nobody
        self._moves += 1

    # -- The loop ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """A loop over the epoch. It changes nothing before it has taken a batch."""
        return Loop(self)

    # -- Checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position: `{"seed", "epoch", "index", "samples", "batch_size", "shuffle", "drop_last"}`.

        `index` is the number of batches done in the epoch. In the body of a loop the batch in hand is done, whatever a
        prefetch thread has made ahead. After a `break` or an exception it is still the position where the loop was
        left, until the next one takes a batch, so that an interrupted run can be saved and resumed. A look at a batch
        in the body of a loop does not change it.

        Example:
            >>> import numpy as np
            >>> from ironstep.data import Batches
            >>> batches = Batches(np.zeros(10), batch_size=4, seed=0)
            >>> [batches.state_dict()["index"] for _ in batches]
            [1, 2, 3]
            >>> batches.state_dict()["epoch"]
            1
        """
        return self._state(self._at, self._seed)

    def _state(self, position: _Position, seed: int | None) -> dict[str, Any]:
        """`state_dict` for a position."""
        epoch, index, size = position
        # The size of an epoch that has not begun does not matter, and its function may not be defined there.
        own = self._batch_size if not callable(self._batch_size) else size if index else "function"
        return {
            "seed": seed,
            "epoch": epoch,
            "index": index,
            "samples": self._samples,
            "batch_size": own,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
        }

    def _coming_state(self) -> dict[str, Any]:
        """The state of a loop that would begin now."""
        return self._state(self._next, self._seed)

    # For `ironstep.train`, which must be able to put all back: a state does not say where the next loop would begin.

    def _snapshot(self) -> Any:
        return self._next, self._at, self._seed, self._leader, self._moves

    def _restore(self, snapshot: Any) -> None:
        self._next, self._at, self._seed, self._leader, self._moves = snapshot

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_leader": _nobody}  # a copy leads its own loops

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave: the next loop goes on in the middle of that epoch, those after it are whole.

        If all batches of that epoch were done, the next loop gives none and moves `epoch` on. The seed is taken over,
        and the batch size of an epoch under way where `batch_size` is a function, whatever that gives now.

        Args:
            state_dict: What `state_dict` gave.

        Raises:
            TypeError: It is no dict, or a value has the wrong type.
            ValueError: It has other keys, a value is out of range, or it was saved with another number of samples,
                `batch_size`, `shuffle` or `drop_last`. Nothing was changed.

        Example:
            >>> import numpy as np
            >>> from ironstep.data import Batches
            >>> x = np.arange(6)
            >>> batches = Batches(x, batch_size=2, shuffle=False)
            >>> batches.load_state_dict(batches.state_dict() | {"index": 1})
            >>> list(batches)
            [(array([2, 3]),), (array([4, 5]),)]
            >>> list(batches)
            [(array([0, 1]),), (array([2, 3]),), (array([4, 5]),)]
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict that `state_dict` gave, got {type(state_dict).__name__}")
        names = ["seed", "epoch", "index", "samples", "batch_size", "shuffle", "drop_last"]
        if set(state_dict) != set(names):
            raise ValueError(f"state_dict must have the keys {', '.join(names)}, got {', '.join(map(str, state_dict))}")
        seed = state_dict["seed"]
        if seed is not None or self._shuffle:
            seed = integer("state_dict['seed']", seed, 0, MAX_SEED)
        epoch = integer("state_dict['epoch']", state_dict["epoch"], 0, MAX_SEED)
        index = count("state_dict['index']", state_dict["index"], 0)
        size: int | None = None
        if index:
            size = self._size(epoch) if not callable(self._batch_size) else None
            if size is None:
                size = count("state_dict['batch_size']", state_dict["batch_size"], 1)
        here = self._state(_Position(epoch, index, size), seed)
        for name in ("samples", "batch_size", "shuffle", "drop_last"):
            saved, own = state_dict[name], here[name]
            if isinstance(saved, bool) != isinstance(own, bool) or saved != own:
                raise ValueError(
                    f"{name} was {saved!r} when the state was saved, and is {own!r} here; make the Batches as they "
                    "were, or set `epoch` to begin an epoch with others"
                )
        if size is not None:
            integer("state_dict['index']", index, 0, self._length(size))
        self._seed = seed
        self._move(_Position(epoch, index, size))

    def __repr__(self) -> str:
        options = {
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "drop_last": self._drop_last or None,
            "transform": self._transform,
            "prefetch": self._prefetch or None,
            "epoch": self.epoch,
        }
        shown = [f"{name}={value!r}" for name, value in options.items() if value is not None or name == "batch_size"]
        return f"Batches({', '.join([f'{self._samples} samples', *shown])})"


class _Position(NamedTuple):
    """A place in the order. One object, so that another thread sees all of it change or nothing."""

    epoch: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name
    """Batches done."""
    size: int | None = None
    """Samples in a batch of that epoch, if it is known already."""


def _nobody() -> None:
    """Stands for a weak reference to nothing; can be pickled."""
    return


class Loop(Iterator[tuple[Any, ...]]):
    """One loop over an epoch, with a position of its own."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._moves = batches, batches._moves
        epoch, index, size = batches._next
        make = _Epoch(batches, epoch, size)
        self._epoch, self._index, self.size, self._seed = epoch, index, make.size, make.seed
        self._end = batches._length(make.size)
        self._begun = self._finished = self._closed = False
        # It does not refer to this object, so one that nobody refers to any more is gone at once, and its thread too.
        self._made = _made(make, range(index, self._end), batches._prefetch)

    def __next__(self) -> tuple[Any, ...]:
        if not self._begun:
            self._begun = True
            self._lead()
        try:
            batch = next(self._made)
        except StopIteration:
            if self._index >= self._end and not self._closed and not self._finished:
                self._finish()
            raise
        # Before the batch is given out: in the body of the loop it counts as done, and however far the thread is ahead
        # does not.
        self._index += 1
        self._lead()
        return batch

    def _lead(self) -> None:
        """Tells the batches where it is, unless another loop is as far, or further."""
        batches = self._batches
        if self.has_say():
            leader = batches._leader()
            if leader is None or leader is self or self._index > leader._index or not leader.has_say():
                if leader is not self:
                    batches._leader = weakref.ref(self)
                batches._at = self._position()

    def has_say(self) -> bool:
        """Whether it is under way, in the epoch that is the current one."""
        batches = self._batches
        over = self._finished or self._closed
        return not over and self._moves == batches._moves and self._epoch == batches._next.epoch

    def _finish(self) -> None:
        batches, said = self._batches, self.has_say()
        self._finished = True
        if said:
            batches._next = batches._at = self._position()
            batches._leader = _nobody

    def _position(self) -> _Position:
        if self._finished:
            return _Position(self._epoch + 1, 0)
        return _Position(self._epoch, self._index, self.size)

    def close(self) -> None:
        """Ends it where it is, and its thread."""
        self._closed = True
        self._made.close()

    def state_dict(self) -> dict[str, Any]:
        """As that of the `Batches`, for this loop; when it is over, that of the loop that comes next."""
        if self._finished and self._moves != self._batches._moves:
            return self._batches._coming_state()  # somebody has set it
        return self._batches._state(self._position(), self._seed)


def _made(make: _Epoch, indices: range, ahead: int) -> Generator[tuple[Any, ...], None, None]:
    """The batches of those numbers."""
    worker = _Prefetch(make, indices, ahead) if ahead else None
    take = worker.take if worker else make
    try:
        if worker:
            worker.start()
        for index in indices:
            yield take(index)
    finally:
        if worker:
            worker.stop()


class _Epoch:
    """Makes the batches of one epoch, by their number. What happens to the `Batches` meanwhile does not matter here."""

    def __init__(self, batches: Batches, epoch: int, size: int | None) -> None:
        self.arrays, self.samples, self.transform = batches._arrays, batches._samples, batches._transform
        self.seed, self.epoch, self.shuffle = batches._seed, epoch, batches._shuffle
        self.size = size or batches._size(epoch)
        self.whole = batches._batch_size is None
        self.order: Array | None = None

    def __call__(self, index: int) -> tuple[Any, ...]:
        start = index * self.size
        stop = min(start + self.size, self.samples)
        batch: tuple[Any, ...]
        if self.shuffle:
            if self.order is None:
                assert self.seed is not None
                self.order = _core.permutation(self.samples, self.seed, self.epoch)
            indices = self.order[start:stop].astype(np.int64)
            batch = tuple([_rows(array, indices) for array in self.arrays])
        elif self.whole:
            batch = tuple([array if isinstance(array, np.ndarray) else array[start:stop] for array in self.arrays])
        else:
            batch = tuple([array[start:stop] for array in self.arrays])
        if self.transform is None:
            return batch
        if not self.shuffle:
            indices = np.arange(start, stop, dtype=np.int64)
            # So that a transform in place does not write the data set. Slices of other arrays may be views too, as
            # torch's are; what an array of numbers takes is a copy.
            parts = zip(batch, self.arrays, strict=True)
            batch = tuple([np.array(p) if isinstance(p, np.ndarray) else array[indices] for p, array in parts])
        result = self.transform(BatchKey(self.seed, self.epoch, index, indices), *batch)
        if result is None or isinstance(result, list):
            raise TypeError(f"transform must return a tuple of arrays or one array, got {type(result).__name__}")
        return result if isinstance(result, tuple) else (result,)


# -- The prefetch thread -----------------------------------------------------------------------------------------------


class _Prefetch:
    """A thread that makes batches ahead, in order, for one loop.

    The thread refers to this object and to what makes the batches, but not to the loop, so a loop that nobody refers to
    any more is finalised, and stops the thread. Both queues are `SimpleQueue`, whose `put` may be called at any moment:
    a loop can be finalised by the garbage collector anywhere, even in the thread itself.
    """

    def __init__(self, make: _Epoch, indices: range, ahead: int) -> None:
        self._make, self._indices, self._ahead = make, indices, min(ahead, len(indices))
        self._stopped = False
        self._prepare()

    def _prepare(self) -> None:
        self._pid = os.getpid()
        self._made: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._ahead):
            self._room.put(None)
        # In the context of the loop, so that its np.errstate holds in transforms.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="ironstep-prefetch", daemon=True)

    def start(self) -> None:
        """Starts the thread, if there is anything to do."""
        if self._indices:
            _RUNNING.add(self)
            self._thread.start()

    def _run(self) -> None:
        try:
            for index in self._indices:
                self._room.get()
                if self._stopped:
                    break
                self._made.put((self._make(index), None))
        except BaseException as error:
            self._made.put((None, error))
        finally:
            _RUNNING.discard(self)

    def take(self, index: int) -> tuple[Any, ...]:
        """The next batch, which is the one of that number, or the exception that came instead."""
        if self._pid != os.getpid():
            # A fork took the loop along, but no thread. Nor can its queues be trusted.
            self._indices = self._indices[self._indices.index(index) :]
            self._prepare()
            self.start()
        while True:
            try:
                # With a timeout, or Windows would not see Ctrl-C.
                batch, error = self._made.get(timeout=1.0)
                break
            except Empty:
                if not self._thread.is_alive() and self._made.empty() and not self._stopped:
                    raise RuntimeError("the prefetch thread has ended before its time") from None
        self._room.put(None)
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame
        return batch  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Tells the thread to end, and waits for that, but not for ever: its transform may wait for the caller."""
        # At interpreter exit a daemon thread can no longer run and the names of this module may be gone; `_stop_all`
        # was here before, and nothing must be done.
        if self._stopped:
            return
        self._stopped = True
        if self._pid != os.getpid():
            return  # in a forked child the thread is not there, and a free-threaded queue may be locked for ever
        self._room.put(None)
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(PATIENCE)
        if not self._thread.is_alive():
            _RUNNING.discard(self)


_RUNNING: set[_Prefetch] = set()
"""Those whose thread may be alive."""


@atexit.register
def _stop_all() -> None:
    # Daemon threads are killed at interpreter exit where they stand, which a thread in native code may not survive.
    for prefetch in list(_RUNNING):
        prefetch.stop()


# -- Data sets ---------------------------------------------------------------------------------------------------------


def split(*arrays: Any, fractions: Sequence[float], seed: int, stratify: Any = None) -> list[tuple[Any, ...]]:
    """Cuts a data set at random into parts, such as for training, validation and test.

    Part k gets the samples between round(n F(k-1)) and round(n F(k)) of a permutation that is a function of n and
    `seed`, with n the number of samples and F the running sum of `fractions`. Each part has its samples in the order
    in which they were.

    Args:
        *arrays: Each of shape (samples, ...), as for `Batches`.
        fractions: The share of each part, above 0; together 1.
        seed: 0 to 2**64 - 1.
        stratify: Labels, of shape (samples,): each part then gets the same share of each label, as nearly as whole
            numbers allow. The sizes of the parts are the same as without.

    Returns:
        A list of parts, each a tuple with a copy of its samples of each array.

    Raises:
        TypeError: An argument has the wrong type, such as a masked array.
        ValueError: The arrays differ in their number of samples, the fractions are not above 0 or do not add up to 1,
            or a part would be empty.

    Example:
        >>> import numpy as np
        >>> from ironstep.data import split
        >>> x, y = np.arange(10), np.array([0, 1] * 5)
        >>> train, validation, test = split(x, y, fractions=(0.6, 0.2, 0.2), seed=0, stratify=y)
        >>> [np.bincount(labels).tolist() for _, labels in (train, validation, test)]
        [[3, 3], [1, 1], [1, 1]]
    """
    samples = _samples(arrays)
    seed = integer("seed", seed, 0, MAX_SEED)
    sizes = _sizes(samples, fractions)
    if stratify is None:
        codes = np.zeros(samples, np.int64)
    else:
        if isinstance(stratify, np.ma.MaskedArray):
            raise TypeError("stratify is a masked array, whose mask would get lost; pass its .data, or fill it")
        labels = np.asarray(stratify)
        if labels.shape != (samples,):
            raise ValueError(f"stratify must be labels of shape ({samples},), got shape {labels.shape}")
        codes = np.unique(labels, return_inverse=True)[1]
    shuffled = _core.permutation(samples, seed, SPLIT_STREAM).astype(np.int64)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    left = np.bincount(codes).astype(np.int64)
    begin = np.cumsum(left) - left
    parts = []
    for size in sizes:
        # The shares of the classes, rounded down, and one more for those with the largest remainders.
        count, remainder = np.divmod(left * size, left.sum())
        count[np.argsort(-remainder, kind="stable")[: size - count.sum()]] += 1
        members = [by_class[i : i + n] for i, n in zip(begin.tolist(), count.tolist(), strict=True)]
        indices = np.sort(np.concatenate(members))
        parts.append(tuple([_rows(array, indices) for array in arrays]))
        begin += count
        left -= count
    return parts


def _sizes(samples: int, fractions: Any) -> list[int]:
    """How many samples each part gets."""
    if isinstance(fractions, (str, Mapping)) or not isinstance(fractions, (Sequence, np.ndarray)):
        raise TypeError(f"fractions must be a sequence of numbers such as (0.8, 0.2), got {fractions!r}")
    shares = [number(f"fractions[{i}]", value, FRACTION) for i, value in enumerate(fractions)]
    total = math.fsum(shares)
    if not math.isclose(total, 1.0, rel_tol=0.0, abs_tol=1e-9):
        raise ValueError(f"fractions must add up to 1, got {fractions!r}, which add up to {total:.12g}")
    ends = [round(samples * math.fsum(shares[: i + 1])) for i in range(len(shares) - 1)] + [samples]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    for i, size in enumerate(sizes):
        if size < 1:
            raise ValueError(f"fractions[{i}] must give its part at least 1 of {samples} samples, got {shares[i]!r}")
    return sizes


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Small images of handwritten digits, which come with the package.

    1797 images of 8 x 8 pixels by 13 people, about 180 of each digit: the test set of the "Optical Recognition of
    Handwritten Digits" of the UCI repository, whose training set, by 30 other people, is not here. The same images as
    scikit-learn's `load_digits`, with 0 to 1 for its 0 to 16.

    Returns:
        `images`, float32 of shape (1797, 8, 8), from 0 (paper) to 1 (ink), and `labels`, int64 of shape (1797,), the
        digits. New arrays with each call.

    Example:
        >>> from ironstep.data import load_digits
        >>> images, labels = load_digits()
        >>> images.shape, images.dtype, labels[:5]
        ((1797, 8, 8), dtype('float32'), array([0, 1, 2, 3, 4]))

    References:
        E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
        doi 10.24432/C50P49. Licence: Creative Commons Attribution 4.0 International (CC BY 4.0).
    """
    with np.load(os.path.join(os.path.dirname(__file__), "digits.npz")) as file:
        return file["images"].astype(np.float32) / np.float32(16.0), file["labels"].astype(np.int64)
