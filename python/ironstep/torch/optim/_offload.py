"""Steps in the memory of the CPU for parameters that are elsewhere, or that must not change yet."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _core
from ._cpu import CpuPart, Groups, named


def pinned(tensor: Tensor, p: Tensor) -> Tensor:
    """The CPU tensor itself, or if it goes to or comes from a CUDA tensor a copy in memory that the GPU can reach."""
    return tensor if p.device.type != "cuda" or tensor.is_pinned() else tensor.pin_memory()


class OffloadPart:
    """Leaves whose state, masters and averages lie in the memory of the CPU; the methods are those of every part.

    `look` copies the gradients, `step` computes new values, none of them seen outside, and `land` copies these to the
    parameters. So whatever is between `look` and `land` may happen on another thread.
    """

    def __init__(
        self,
        rule: str,
        params: list[Tensor],
        states: list[list[Tensor]],
        groups: list[int],
        names: list[str],
        master: list[Tensor | None],
        ema: list[Tensor] | None,
    ) -> None:
        """See `CpuPart`. There is a master of every leaf."""
        self.params = params
        self.names = names
        self._known = [(p.shape, p.dtype, p.device) for p in params]
        self._images: list[Tensor] = []
        """What the core takes for the parameters: those in float32 and float64 are their own masters."""
        for p, own in zip(params, master, strict=True):
            low = own is None or p.dtype is not own.dtype
            self._images.append(pinned(torch.empty_like(p, device="cpu"), p) if low or own is None else own)
        copies = [own if own is not image else None for own, image in zip(master, self._images, strict=True)]
        self._buffers: list[Tensor] = []
        """The gradients."""
        self.device = params[0].device
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._arrived: torch.cuda.Event | None = None
        """When the gradients are in the buffers."""
        self._left: torch.cuda.Event | None = None
        """When the new values are with the parameters, so that the images may change again."""
        self._inner = CpuPart(rule, self._images, states, groups, names, copies, ema)

    def look(self, grads: list[Tensor]) -> None:
        """Checks everything as it is now, and copies the gradients."""
        for p, grad, name, known in zip(self.params, grads, self.names, self._known, strict=True):
            if (p.shape, p.dtype, p.device) != known:
                raise ValueError(
                    f"{name} must stay {known[1]} of shape {tuple(known[0])} on {known[2]}, got {p.dtype} of shape "
                    f"{tuple(p.shape)} on {p.device}"
                )
            if grad.layout is not torch.strided or not grad.is_floating_point():
                raise TypeError(
                    f"the gradient of {name} must be a dense tensor of floats, got {grad.dtype}, {grad.layout}"
                )
            if grad.shape != p.shape:
                raise ValueError(
                    f"the gradient of {name} must have shape {tuple(p.shape)} like the parameter, got "
                    f"{tuple(grad.shape)}"
                )
        self._fetch(grads)
        self._inner.look(self._buffers)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fetch(self, grads: list[Tensor]) -> None:
        """Copies the gradients, which may have a graph behind them, into buffers of any later step, in any mode."""
        if [(b.shape, b.dtype) for b in self._buffers] != [(grad.shape, grad.dtype) for grad in grads]:
            self._buffers = [pinned(torch.empty_like(grad, device="cpu"), grad) for grad in grads]
        if self._stream is None:
            for buffer, grad in zip(self._buffers, grads, strict=True):
                buffer.copy_(grad)
            return
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for buffer, grad in zip(self._buffers, grads, strict=True):
                buffer.copy_(grad, non_blocking=True)
            self._arrived = self._stream.record_event()
        # What comes next may free the gradients or write over them.
        current.wait_event(self._arrived)

    def _ready(self) -> None:
        for event in (self._arrived, self._left):
            if event is not None:
                event.synchronize()

    def inspect(self, grad_scale: float, clip_value: float, unit: float) -> tuple[list[float], int | None]:
        """As `CpuPart.inspect`."""
        self._ready()
        return self._inner.inspect(grad_scale, clip_value, unit)

    def step(
        self,
        groups: Groups,
        grad_scale: float,
        clip_value: float,
        max_norm: float,
        joint_norm: float | None,
        ema_decay: float,
    ) -> list[list[float]]:
        """Updates everything but the parameters themselves. Returns the new scalar state of each rule number."""
        self._ready()
        return self._inner.step(groups, grad_scale, clip_value, max_norm, joint_norm, ema_decay)

    def land(self) -> None:
        """Writes the parameters."""
        for p, image, name in zip(self.params, self._images, self.names, strict=True):
            if p.shape != image.shape:
                raise ValueError(
                    f"{name} must keep shape {tuple(image.shape)} while a step is under way, got {tuple(p.shape)}; "
                    "call synchronize() before it is changed"
                )
        for p, image in zip(self.params, self._images, strict=True):
            p.detach().copy_(image, non_blocking=self._stream is not None)
        if self._stream is not None:
            self._left = torch.cuda.current_stream(self.device).record_event()


def check_apart(parts: list[OffloadPart]) -> None:
    """Refuses parameters on the CPU that overlap, also of different parts: the core does not see them otherwise."""
    here = [part for part in parts if part.device.type == "cpu"]
    names = [name for part in here for name in part.names]
    if names:
        views, _ = _core.TensorViews(names, written=True).look([p for part in here for p in part.params])
        try:
            _core.Plan("sgd", _core.Tree(views, "params"), [], [0] * len(views))
        except ValueError as error:
            raise named(error, names) from None


class Flight:
    """A computation on a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        """Begins at once."""
        self._result: Any = None
        self._error: BaseException | None = None
        # Not `Thread.join`: before Python 3.13, one that Ctrl-C has interrupted takes the thread for finished.
        self._done = False
        self._busy = threading.Lock()
        self._busy.acquire()
        with STARTING:
            threading.Thread(target=self._run, args=(work,), name="ironstep offload").start()
            FLIGHTS.add(self)

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._result = work()
        except BaseException as error:
            self._error = error
        finally:
            self._done = True
            self._busy.release()

    def wait(self) -> None:
        """Until it is over, whether well or not."""
        # Whoever is interrupted while it holds the lock may leave it held, but then there is nothing to wait for.
        if not self._done:
            with self._busy:
                pass

    def result(self) -> Any:
        """What it gave, or its error."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result


FLIGHTS: weakref.WeakSet[Flight] = weakref.WeakSet()
STARTING = threading.RLock()
"""Held while a computation begins, and during a fork."""


def _wait_for_all() -> None:
    STARTING.acquire()
    for flight in list(FLIGHTS):
        flight.wait()


# A forked child has no threads: it gets the computation when it is over.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_all, after_in_parent=lambda: STARTING.release(), after_in_child=lambda: STARTING.release()
    )
