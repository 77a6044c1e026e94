"""The examples run, and what they print and draw is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DIGITS = Path(__file__).parents[1] / "examples" / "digits.py"


def load_digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", DIGITS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    return load_digits()


@pytest.mark.usefixtures("digits")
def test_digits_runs(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = subprocess.run(
        [sys.executable, DIGITS, *["--epochs", "3", "--optimizers", "adam", "Momentum", "--out"], out],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("Adam", "Momentum"):
        row = re.search(
            rf"^{name} +[\d.]+ +([\d.]+)% +([\d.]+) +([\d.]+) us +([\d.]+) us +[\d.]+ x  \S", done.stdout, re.M
        )
        assert row, done.stdout
        accuracy, loss, ironstep_us, numpy_us = map(float, row.groups())
        assert 80 < accuracy <= 100
        assert 0 < loss < 1
        assert ironstep_us > 0
        assert numpy_us > 0
    assert "SGD " not in done.stdout
    picture = out / "digits.png"
    assert done.stdout.splitlines()[-1].endswith(str(picture))
    assert "\r" not in done.stdout
    png = picture.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1600, 900)
    assert 20_000 < len(png) < 1_000_000


@pytest.mark.parametrize("args", ["--epochs 0", "--seed -1", "--optimizers adan"])
def test_digits_refuses(digits: ModuleType, args: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        digits.parse(args.split())
    assert args.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["matplotlib", "sklearn"])
def test_digits_says_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=r'pip install "ironstep\[demo\]"'):
        load_digits()


def test_numpy_agrees(digits: ModuleType) -> None:
    """Element by element after each of 5 steps, to the last bit where no norm is taken."""
    for name, row in digits.OPTIMIZERS.items():
        rng = np.random.default_rng(7)
        layers = digits.new_layers(rng)
        for bias in (layer["b"] for layer in layers):
            bias += rng.standard_normal(bias.shape, np.float32)
        opt = row.make(layers, **row.args)
        copies = [p.copy() for p in digits.leaves(layers)]
        states = [[np.zeros_like(p) for _ in range(row.states)] for p in copies]
        begin = [p.copy() for p in copies]
        for t in range(1, 6):
            grads = [{key: rng.standard_normal(p.shape, np.float32) for key, p in layer.items()} for layer in layers]
            grads[0]["w"][0] = 0  # as of a pixel that is always black
            opt.step(grads)
            for p, g, state in zip(copies, digits.leaves(grads), states, strict=True):
                row.numpy_update(t, p, g, *state, **row.args)
            tolerance = {"rtol": 2e-6, "atol": 1e-7} if name in ("LAMB", "LARS") else {"rtol": 0, "atol": 0}
            for p, q in zip(digits.leaves(layers), copies, strict=True):
                np.testing.assert_allclose(p, q, err_msg=f"{name}, step {t}", **tolerance)
        assert all((p != q).mean() > 0.9 for p, q in zip(copies, begin, strict=True)), name
