"""Threads, processes, copies and the interpreter: the same bits in all of them, and nothing that hangs."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import ironstep
from cases import CASES, Case
from helpers import BF16, assert_all_same_bits, assert_same_bits
from ironstep import functional, optim
from ironstep.optim import Optimizer

F32 = np.float32
LARGE = 300_000
"""Elements that several threads share."""
TIMEOUT = 60.0
"""Seconds after which something hangs. Nothing here takes more than a few."""

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def four_threads() -> Iterator[None]:
    """More threads than the machine may have, so that there is always a pool."""
    ironstep.set_num_threads(4)
    yield
    ironstep.set_num_threads(0)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def run(script: str, *arguments: str, env: dict[str, str] | None = None, flags: tuple[str, ...] = ()) -> str:
    """What the script prints, run by a fresh interpreter, which must end well and in time."""
    command = [sys.executable, *flags, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(
        command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What the scripts have in common: large steps, and the bits of all that came out.
TRAIN = """
    import hashlib
    import numpy as np
    import ironstep

    def make(seed=0):
        param = np.random.default_rng(seed).standard_normal(300_000).astype(np.float32)
        return param, ironstep.optim.AdamW(param, lr=0.1, max_norm=1.0)

    def train(param, opt, steps):
        grad = np.random.default_rng(1).standard_normal(300_000).astype(np.float32)
        for _ in range(steps):
            opt.step(grad)
        state = [array.tobytes() for array in opt.state_dict()["state"][""].values()]
        return hashlib.sha256(param.tobytes() + b"".join(state)).hexdigest()
"""


def train_here(steps: int) -> str:
    """The same in this process."""
    scope: dict[str, Any] = {}
    exec(textwrap.dedent(TRAIN), scope)
    return scope["train"](*scope["make"](), steps)


# -- Fork --------------------------------------------------------------------------------------------------------------
#
# In interpreters of their own, because the libraries that other tests import do not like to be forked.

NO_WARNING = ("-W", "ignore::DeprecationWarning")
"""Newer Pythons warn of a fork with threads, which is the point here."""


def test_a_forked_child_takes_large_steps_with_a_pool_of_its_own() -> None:
    script = (
        TRAIN
        + """
    import multiprocessing, os

    def child(pipe, param, opt):
        bits = train(param, opt, 2)
        # Where the system lists threads. A pool that is only its parent's memory has none.
        has_pool = not os.path.exists("/proc/self/task") or len(os.listdir("/proc/self/task")) > 1
        pipe.send((bits, has_pool))

    ironstep.set_num_threads(4)
    param, opt = make()
    train(param, opt, 2)
    context = multiprocessing.get_context("fork")
    pipe, end = context.Pipe()
    process = context.Process(target=child, args=(end, param, opt))
    process.start()
    assert pipe.poll(30), "the child hangs"
    theirs, has_pool = pipe.recv()
    assert has_pool, "the child has no threads of its own"
    process.join(30)
    assert process.exitcode == 0
    print(theirs, train(param, opt, 2))
    """
    )
    theirs, ours = run(script, flags=NO_WARNING).split()
    assert theirs == ours == train_here(4)


def test_children_of_children_and_siblings_take_large_steps() -> None:
    script = (
        TRAIN
        + """
    import os

    def descend(generations):
        # The bits of this process and of all after it, on its standard output.
        param, opt = make()
        print(train(param, opt, 3), flush=True)
        if generations:
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    descend(generations - 1)
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0

    ironstep.set_num_threads(3)
    descend(2)
    param, opt = make()
    print(train(param, opt, 3))
    """
    )
    printed = run(script, flags=NO_WARNING).split()
    assert len(printed) == 8
    assert set(printed) == {train_here(3)}


def test_a_child_forked_in_the_middle_of_a_step_takes_large_steps() -> None:
    """Looking the pool up takes no lock, so the fork cannot inherit one that somebody holds."""
    script = (
        TRAIN
        + """
    import os, threading

    ironstep.set_num_threads(4)
    busy_param, busy = make(5)
    grad = np.ones_like(busy_param)
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            busy.step(grad)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    children = []
    for _ in range(8):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            param, opt = make()
            os.write(write, train(param, opt, 2).encode())
            os._exit(0)
        os.close(write)
        children.append((child, read))
    printed = set()
    for child, read in children:
        with os.fdopen(read) as pipe:
            printed.add(pipe.read())
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    thread.join()
    print(*printed)
    """
    )
    assert run(script, flags=NO_WARNING) == train_here(2)


def test_spawned_processes_give_the_same_bits(tmp_path: Any) -> None:
    script = tmp_path / "spawn.py"
    main = """
    import multiprocessing, pickle

    def child(steps):
        return train(*make(), steps)

    def resumed(pickled):
        opt = pickle.loads(pickled)
        return train(opt.param_groups[0]["params"], opt, 1)

    if __name__ == "__main__":
        param, opt = make()
        train(param, opt, 2)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            first = pool.apply_async(child, (3,))
            second = pool.apply_async(resumed, (pickle.dumps(opt),))
            print(first.get(30), second.get(30))
    """
    script.write_text(textwrap.dedent(TRAIN) + textwrap.dedent(main))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {train_here(3)}


# -- Threads -----------------------------------------------------------------------------------------------------------


def test_many_threads_each_with_an_optimiser_give_the_bits_of_one_after_the_other(four_threads: None) -> None:
    grads = [draw(seed, n) for seed, n in enumerate([100, LARGE, 17, 70_000, 5, LARGE])]

    def train(i: int, start: threading.Barrier | None) -> list[np.ndarray]:
        param = draw(10 + i, grads[i].size)
        opt = CASES[7 * i % len(CASES)].cls(param, **CASES[7 * i % len(CASES)].kwargs)
        if start:
            start.wait(TIMEOUT)
        for _ in range(5):
            opt.step(grads[i], grad_norm=True)
        return [param, *opt.state_dict()["state"][""].values()]

    want = [train(i, None) for i in range(len(grads))]
    barrier = threading.Barrier(len(grads))
    with ThreadPoolExecutor(len(grads)) as pool:
        got = list(pool.map(lambda i: train(i, barrier), range(len(grads))))
    for i, arrays in enumerate(got):
        assert_all_same_bits(arrays, want[i], f"thread {i}")


class Waiting:
    """A gradient that is not ready before somebody says so. A step that has begun waits for it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.begun, self.ready = threading.Event(), threading.Event()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.begun.set()
        assert self.ready.wait(TIMEOUT)
        return self.array


def test_all_that_another_thread_does_with_an_optimiser_in_a_step_raises_and_changes_nothing(tmp_path: Any) -> None:
    param, want, grad = np.ones(3, F32), np.ones(3, F32), np.ones(3, F32)
    opt, twin = optim.AdamW(param, ema_decay=0.5), optim.AdamW(want, ema_decay=0.5)
    opt.step(grad)
    twin.step(grad)
    opt.save(tmp_path / "before")
    saved, waiting = opt.state_dict(), Waiting(grad)
    forbidden = {
        "step": lambda: opt.step(grad),
        "state_dict": opt.state_dict,
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "save": lambda: opt.save(tmp_path / "during"),
        "load": lambda: opt.load(tmp_path / "before"),
        "add_param_group": lambda: opt.add_param_group({"params": np.ones(2)}),
    }
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(opt.step, waiting)
        assert waiting.begun.wait(TIMEOUT)
        try:
            for name, call in forbidden.items():
                with pytest.raises(RuntimeError, match="one optimiser takes one step at a time"):
                    call()
                assert opt.steps == 1, name
        finally:
            waiting.ready.set()
        assert step.result(TIMEOUT).step == 2
    assert not (tmp_path / "during").exists()
    for each in (twin, opt, twin):
        each.step(grad)
    assert opt.steps == twin.steps == 3
    assert_same_bits(param, want)
    assert_all_same_bits(opt.state_dict()["state"][""].values(), twin.state_dict()["state"][""].values())


def test_a_step_inside_a_step_of_the_same_optimiser_raises() -> None:
    param = np.ones(3, F32)
    opt = optim.SGD(param, lr=0.5)

    class Stepping(Waiting):
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            opt.step(self.array)
            return self.array

    with pytest.raises(RuntimeError, match="one optimiser takes one step at a time"):
        opt.step(Stepping(np.ones(3, F32)))
    assert_same_bits(param, np.ones(3, F32))
    opt.step(np.ones(3, F32))
    assert_same_bits(param, np.ones(3, F32) / 2)


def test_steps_from_many_threads_count_if_and_only_if_they_return(four_threads: None) -> None:
    param, want, grad = draw(0, LARGE), draw(0, LARGE), draw(1, LARGE)
    opt, twin = optim.AdamW(param), optim.AdamW(want)
    barrier = threading.Barrier(4)

    def keep_stepping() -> list[int]:
        taken = []
        barrier.wait(TIMEOUT)
        for _ in range(40):
            with suppress(RuntimeError):
                taken.append(opt.step(grad).step)
        return taken

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(keep_stepping) for _ in range(4)]
        taken = [step for future in futures for step in future.result(TIMEOUT)]
    assert sorted(taken) == list(range(1, opt.steps + 1))
    for _ in taken:
        twin.step(grad)
    assert_same_bits(param, want)
    assert_all_same_bits(opt.state_dict()["state"][""].values(), twin.state_dict()["state"][""].values())


def test_another_python_thread_runs_during_a_step(four_threads: None) -> None:
    """With so long a switch interval no thread gets the interpreter unless the one that has it lets go."""
    param, grad = draw(0, LARGE), draw(1, LARGE)
    opt = optim.AdamW(param)
    opt.step(grad)
    begin, seen = threading.Event(), []

    def watch() -> None:
        begin.wait(TIMEOUT)
        seen.append("here")

    before = sys.getswitchinterval()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        sys.setswitchinterval(1000.0)
        begin.set()
        # Many steps, because the other thread may need a while to wake up.
        for _ in range(2000):
            if seen:
                break
            opt.step(grad)
        assert seen, "the interpreter was never let go"
    finally:
        sys.setswitchinterval(before)
        thread.join(TIMEOUT)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    def train(n: int) -> list[np.ndarray]:
        ironstep.set_num_threads(n)
        params = [draw(i, size) for i, size in enumerate([LARGE, 3, 40_000])]
        opt = optim.LAMB(params, max_norm=1.0)
        for _ in range(2):
            opt.step([draw(9 + i, param.size) for i, param in enumerate(params)])
        return params + [array for own in opt.state_dict()["state"].values() for array in own.values()]

    try:
        assert_all_same_bits(train(threads), train(5))
    finally:
        ironstep.set_num_threads(0)


def test_the_number_of_threads_is_checked_by_name_and_kept_if_it_is_bad() -> None:
    try:
        for n in (1, 7, 1024, np.int64(3)):
            ironstep.set_num_threads(n)
            assert ironstep.get_num_threads() == n
        for bad, error in [
            (-1, ValueError),
            (1025, ValueError),
            (1 << 70, OverflowError),
            (2.0, TypeError),
            ("2", TypeError),
            (None, TypeError),
            ([2], TypeError),
        ]:
            with pytest.raises(error, match="n must be from 0" if error is ValueError else None):
                ironstep.set_num_threads(bad)
            assert ironstep.get_num_threads() == 3
    finally:
        ironstep.set_num_threads(0)
    assert 1 <= ironstep.get_num_threads() <= (os.cpu_count() or 1)


def test_the_environment_gives_the_number_of_threads_if_it_is_one() -> None:
    script = """
    import ironstep
    print(ironstep.get_num_threads())
    ironstep.set_num_threads(2)
    print(ironstep.get_num_threads())
    ironstep.set_num_threads(0)
    print(ironstep.get_num_threads())
    """
    default = run(script, env={"IRONSTEP_NUM_THREADS": ""})
    assert run(script, env={"IRONSTEP_NUM_THREADS": " 5 "}) == "5\n2\n5"
    for none in ("0", "-2", "many"):
        assert run(script, env={"IRONSTEP_NUM_THREADS": none}) == default


# -- Copies ------------------------------------------------------------------------------------------------------------


def nest(seed: int) -> dict[str, Any]:
    """Arrays of several types and layouts."""
    return {
        "a": draw(seed, 4, 6),
        "b": [draw(seed + 1, 5).astype(np.float64), draw(seed + 2, 3).astype(BF16)],
        "fortran": np.asfortranarray(draw(seed + 3, 4, 3)),
        "strided": draw(seed + 4, 6, 6)[::2, ::-2],
        "swapped": draw(seed + 5, 7).astype(">f4"),
    }


def flat(tree: dict[str, Any]) -> list[np.ndarray]:
    arrays = [tree["a"], *tree["b"], tree["fortran"], tree["strided"], tree["swapped"]]
    return [np.array(array, array.dtype.newbyteorder("="), order="C") for array in arrays]


def state_arrays(opt: Optimizer) -> list[np.ndarray]:
    return [array for own in opt.state_dict()["state"].values() for array in own.values()]


CLONES = {"deepcopy": copy.deepcopy, "pickle": lambda opt: pickle.loads(pickle.dumps(opt))}


@every_case
def test_a_copy_goes_on_to_the_bit_and_shares_nothing(case: Case) -> None:
    options = {"ema_decay": 0.9, "max_norm": 2.0, "master_weights": True}
    for name, clone in CLONES.items():
        params, grads = nest(0), nest(50)
        opt = case.cls(params, **(options | case.kwargs))
        opt.step(grads)
        other = clone(opt)
        theirs = other.param_groups[0]["params"]
        kept, kept_state = flat(theirs), state_arrays(other)
        assert_all_same_bits(kept, flat(params), name)
        for _ in range(2):
            opt.step(grads)
        assert_all_same_bits(flat(theirs), kept, f"{name} shares parameters")
        assert_all_same_bits(state_arrays(other), kept_state, f"{name} shares state")
        assert other.steps == 1
        for _ in range(2):
            other.step(grads)
        assert_all_same_bits(flat(theirs), flat(params), name)
        assert_all_same_bits(state_arrays(other), state_arrays(opt), name)
        assert repr(other) == repr(opt)


def test_a_copy_keeps_groups_masks_and_functions_of_the_step() -> None:
    def make() -> tuple[list[Any], Optimizer]:
        w, b = np.ones(3), np.ones(2)
        groups = [{"params": w, "lr": halving}, {"params": {"b": b}}]
        return [w, b], optim.AdamW(groups, weight_decay=0.5, weight_decay_mask=[False, {"b": True}])

    grads = [np.ones(3), {"b": np.ones(2)}]
    (want, twin), (_, opt) = make(), make()
    twin.step(grads)
    opt.step(grads)
    twin.step(grads)
    for clone in CLONES.values():
        other = clone(opt)
        other.step(grads)
        first, second = other.param_groups
        assert_all_same_bits([first["params"], second["params"]["b"]], want)
        assert first["lr"] is halving
        other.add_param_group({"params": np.ones(1)})
        other.step([*grads, np.ones(1)])


def halving(step: int) -> float:
    """Found by name when it is unpickled."""
    return 0.5 ** (step + 1)


def test_parameters_and_optimiser_copied_together_still_belong_together() -> None:
    params = {"w": np.ones(3, F32)}
    both = {"params": params, "opt": optim.SGD(params, lr=0.5)}
    for other in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        other["opt"].step({"w": np.ones(3, F32)})
        assert_same_bits(other["params"]["w"], np.ones(3, F32) / 2)
    assert_same_bits(params["w"], np.ones(3, F32))


def test_a_copy_can_be_copied_stepped_by_threads_and_saved(tmp_path: Any) -> None:
    opt = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(optim.AdamW({"w": np.ones(3)})))))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(opt.step, {"w": np.ones(3)}).result(TIMEOUT).step == 1
    opt.save(tmp_path / "copy")
    opt.load(tmp_path / "copy")
    assert opt.state["exp_avg"]["w"].shape == (3,)


# -- Garbage -----------------------------------------------------------------------------------------------------------


class Params(dict):
    """A dict that can hold more, as a model that is a dict of its parameters does."""

    owner: Any = None


class Weights(np.ndarray):
    """An array that can hold more."""

    owner: Any = None


def cycle_through_dict() -> Any:
    params = Params(w=np.ones(3, F32))
    params.owner = optim.AdamW(params)
    params.owner.step({"w": np.ones(3, F32)})
    return params


def cycle_through_array() -> Any:
    param = np.ones(3, F32).view(Weights)
    param.owner = optim.AdamW({"w": param})
    param.owner.step({"w": np.ones(3, F32)})
    return param


def cycle_through_base() -> Any:
    base = np.ones(3, F32).view(Weights)
    base.owner = optim.AdamW({"w": np.asarray(base)[1:]})
    return base


def cycle_through_function() -> Any:
    class Model:
        def rate(self, step: int) -> float:
            return 0.5

    model = Model()
    model.opt = optim.AdamW(np.ones(3, F32), lr=model.rate)  # type: ignore[attr-defined]
    return model


@pytest.mark.parametrize("make", [cycle_through_dict, cycle_through_array, cycle_through_base, cycle_through_function])
def test_an_optimiser_in_a_cycle_is_collected(make: Any) -> None:
    gone = weakref.ref(make())
    gc.collect()
    assert gone() is None


def test_an_optimiser_that_nobody_has_is_freed_at_once_with_its_state() -> None:
    gc.disable()
    try:
        param = np.ones(3, F32).view(Weights)
        opt = optim.AdamW({"w": param})
        opt.step({"w": np.ones(3, F32)})
        gone, state = weakref.ref(param), weakref.ref(opt.state["exp_avg"]["w"])
        del param, opt
        assert gone() is None
        assert state() is None
    finally:
        gc.enable()


def test_gradients_are_let_go_when_the_step_returns_or_raises() -> None:
    opt = optim.SGD(np.ones(3, F32))
    for shape, error in [((3,), None), ((4,), ValueError)]:
        grad = np.ones(shape, F32).view(Weights)
        gone = weakref.ref(grad)
        if error:
            with pytest.raises(error):
                opt.step(grad)
        else:
            opt.step(grad)
        del grad
        gc.collect()
        assert gone() is None


def test_the_arrays_outlive_everybody_else_who_had_them() -> None:
    """The plan keeps what it has addresses of."""
    params = {"w": np.ones(LARGE, F32)[::2]}
    opt = optim.AdamW(params)
    inner = opt.param_groups[0]["params"]
    del params
    gc.collect()
    opt.step({"w": np.ones(LARGE // 2, F32)})
    assert (inner["w"] < 1).all()


# -- Import ------------------------------------------------------------------------------------------------------------


def test_import_brings_in_no_library_but_numpy() -> None:
    script = """
    import sys
    import numpy
    before = set(sys.modules)
    import ironstep, ironstep.functional, ironstep.optim
    opt = ironstep.optim.AdamW(numpy.ones(3))
    opt.step(numpy.ones(3))
    opt.load_state_dict(opt.state_dict())
    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    print(*sorted(tops - set(sys.stdlib_module_names) - {"ironstep", "numpy"}))
    """
    assert run(script) == ""


def test_import_and_steps_give_no_warning() -> None:
    script = """
    import numpy as np
    import ironstep
    w = np.ones((2, 3), np.float16)
    opt = ironstep.optim.AdamW({"w": w}, ema_decay=0.9, master_weights=True)
    opt.step({"w": np.full((2, 3), np.inf)})
    ironstep.functional.sgd_(w, w.copy(), step=1)
    """
    assert run(script, flags=("-W", "error", "-X", "dev")) == ""


def test_warnings_as_errors_reach_the_flags_of_a_fresh_interpreter() -> None:
    """Or the test above could not fail."""
    with pytest.raises(AssertionError, match="DeprecationWarning"):
        run("import warnings; warnings.warn('old', DeprecationWarning)", flags=("-W", "error", "-X", "dev"))


@pytest.mark.parametrize("face", ["class", "function"])
def test_errstate_and_its_flags_are_left_alone(face: str) -> None:
    """Overflow and invalid operations in the core raise nothing in NumPy, then or later."""
    with np.errstate(all="raise"):
        w = np.array([1.0, 1e38], F32)
        grad = np.array([np.inf, -1e38], F32)
        if face == "class":
            optim.SGD(w, lr=1e30).step(grad)
        else:
            functional.sgd_(w, grad, step=1, lr=1e30)
        assert np.isinf(w).all()
        assert np.add(F32(1.0), F32(1.0)) == 2


def test_a_senseless_number_of_threads_in_the_environment_is_ignored() -> None:
    code = (
        "import numpy as np, ironstep; w = np.ones(1 << 20); ironstep.optim.SGD(w, lr=0.5).step(w.copy()); "
        "assert (w == 0.5).all(); print(ironstep.get_num_threads())"
    )
    for text in ("1152921504606846976", "0", "-3", "many", ""):
        env = os.environ | {"IRONSTEP_NUM_THREADS": text}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert 1 <= int(out.stdout) <= 1024
