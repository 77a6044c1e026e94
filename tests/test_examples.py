"""The examples run, and what they print and draw is there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ironstep import nn

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, args: str, out: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *args.split(), "--out", out],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout
    return done


def check_picture(path: Path, stdout: str, size: tuple[int, int], least: int = 20_000) -> None:
    assert any(line.endswith(str(path)) for line in stdout.splitlines()[-2:])
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == size
    assert least < len(png) < 1_000_000


def example(name: str) -> ModuleType:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    return load(name)


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    return example("digits")


@pytest.fixture(scope="module")
def network() -> ModuleType:
    return example("network")


@pytest.fixture(scope="module")
def bridge() -> ModuleType:
    return load("bridge")


def test_bridge_runs() -> None:
    command = [sys.executable, EXAMPLES / "bridge.py", "--epochs", "2", "--seeds", "1"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True, env=env)
    rows = re.findall(r"^(\S.*|  and \w+) +([\d.]+)% .* ([\d.]+) x$", done.stdout, re.M)
    assert len(rows) == 4, done.stdout
    assert all(80 < float(accuracy) <= 100 for _, accuracy, _ in rows)


@pytest.mark.usefixtures("digits")
def test_digits_runs(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = run("digits", "--epochs 3 --optimizers adam Momentum", out)
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
    check_picture(out / "digits.png", done.stdout, (1600, 900))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("digits", "--epochs 0"),
        ("digits", "--seed -1"),
        ("digits", "--optimizers adan"),
        ("network", "--epochs 0"),
        ("network", "--seeds 0"),
        ("network", "--wrong-labels 1.5"),
        ("network", "--wrong-labels nan"),
        ("finetune", "--images 1"),
        ("finetune", "--seeds 0"),
        ("bridge", "--epochs 0"),
        ("bridge", "--seeds 0"),
        ("augment", "--epochs 0"),
        ("augment", "--seeds 0"),
        ("augment", "--size 7"),
    ],
)
def test_refuses(name: str, args: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    module = request.getfixturevalue(name)
    with pytest.raises(SystemExit):
        module.parse(args.split())
    assert args.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("digits", "matplotlib", "demo"),
        ("digits", "sklearn", "demo"),
        ("network", "matplotlib", "demo"),
        ("network", "sklearn", "demo"),
        ("finetune", "matplotlib", "plot"),
        ("bridge", "torch", "torch"),
        ("augment", "matplotlib", "plot"),
        ("augment", "PIL", "plot"),
    ],
)
def test_says_what_is_missing(name: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing != "torch":  # Its parts must stay: others refer to them.
        for module in [module for module in sys.modules if module.startswith(f"{missing}.")]:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf'pip install "ironstep\[{extra}\]"'):
        load(name)


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


def test_network_runs(network: ModuleType, tmp_path: Path) -> None:
    done = run("network", "--epochs 5 --seeds 2", tmp_path)
    for name in network.RECIPES:
        row = re.search(
            rf"^{name} +([\d.]+)% +([\d.]+)% to ([\d.]+)% .* ([\d.]+)% +([\d.]+) +([\d.]+)$", done.stdout, re.M
        )
        assert row, done.stdout
        accuracy, low, high, confidence, test_loss, train_loss = map(float, row.groups())
        assert 40 < low <= accuracy <= high <= 100
        assert 10 <= confidence <= 100
        assert 0 < test_loss < 2.5
        assert 0 < train_loss < 2.5
    assert re.search(r"^no dropout .* \d of 2 seeds ", done.stdout, re.M)
    check_picture(tmp_path / "network.png", done.stdout, (1600, 1200))


def test_network_recipes(network: ModuleType) -> None:
    """All begin with the same weights, and lack what they should lack."""
    models = {name: network.network(recipe, 3) for name, recipe in network.RECIPES.items()}
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    first = [layer.params["weight"] for layer in models["all three"] if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(first) == 4
    for name, recipe in network.RECIPES.items():
        weights = [layer.params["weight"] for layer in models[name] if isinstance(layer, (nn.Conv2d, nn.Linear))]
        assert all(np.array_equal(a, b) for a, b in zip(weights, first, strict=True))
        assert any(isinstance(layer, norms) for layer in models[name]) == recipe.batch_norm
        assert any(isinstance(layer, nn.Dropout) for layer in models[name]) == recipe.dropout
    assert sum(map(all, network.RECIPES.values())) == 1
    assert sorted(map(sum, network.RECIPES.values())) == [0, 2, 2, 2, 3]


def test_network_data(network: ModuleType) -> None:
    """The same images with and without wrong labels; those of the test are right."""
    right, wrong = network.load(4, 0.0), network.load(4, 0.2)
    for a, b in zip(right[:2], wrong[:2], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(right.y_test, wrong.y_test)
    assert (right.y_train != wrong.y_train).sum() == 60
    assert set(wrong.y_train.tolist()) <= set(range(10))
    images = {image.tobytes() for image in right.x_train}
    assert sum(image.tobytes() in images for image in right.x_test) == 0


def test_network_floor(network: ModuleType) -> None:
    assert network.floor(0.0) == 0
    np.testing.assert_allclose([network.floor(0.9), network.floor(1.0)], np.log([10, 9]))


def test_network_is_reproducible(network: ModuleType) -> None:
    data = network.load(0, 0.2)
    recipe = network.RECIPES["all three"]
    assert network.train(recipe, data, 2, 0) == network.train(recipe, data, 2, 0)


@pytest.fixture(scope="module")
def finetune() -> ModuleType:
    return example("finetune")


def test_finetune_runs(finetune: ModuleType, tmp_path: Path) -> None:
    done = run("finetune", "--images 2 6 --seeds 1", tmp_path)
    for name in finetune.WAYS:
        row = re.search(rf"^{name} +([\d.]+)% \(.*\) +([\d.]+)% \(.*\)$", done.stdout, re.M)
        assert row, done.stdout
        # One of five digits would be guessed right.
        assert all(25 < float(accuracy) <= 100 for accuracy in row.groups())
    check_picture(tmp_path / "finetune.png", done.stdout, (1100, 700))


def test_finetune_loads_and_freezes(finetune: ModuleType) -> None:
    """Frozen layers keep their weights; those that are not loaded begin with others."""
    _, few, _ = finetune.load(0)
    before = finetune.network(0)
    old = before.state_dict()
    model = finetune.finetune(finetune.WAYS["frozen convolutions"], before, finetune.choose(few, 2), 0)
    for name, array in model.params.items():
        same = np.array_equal(array, old[name])
        assert same == (int(name.split(".")[0]) < finetune.DENSE), name
    later = finetune.finetune(finetune.WAYS["unfrozen later"], before, finetune.choose(few, 2), 0)
    assert not any(np.array_equal(array, old[name]) for name, array in later.params.items() if name.endswith("weight"))


@pytest.fixture(scope="module")
def augment() -> ModuleType:
    return example("augment")


def test_augment_runs(augment: ModuleType, tmp_path: Path) -> None:
    done = run("augment", "--epochs 3 --seeds 2", tmp_path)
    for way in augment.WAYS:
        row = re.search(
            rf"^{way} +([\d.]+)% +([\d.]+)% to ([\d.]+)% +([\d.]+) +([\d.]+) +([\d.]+) s$", done.stdout, re.M
        )
        assert row, done.stdout
        accuracy, low, high, test_loss, train_loss, _ = map(float, row.groups())
        assert 30 < low <= accuracy <= high <= 100
        assert 0 < train_loss < test_loss + 0.5 < 3
    check_picture(tmp_path / "augment.png", done.stdout, (1600, 560))
    check_picture(tmp_path / "augment-preview.png", done.stdout, (1050, 630), least=10_000)  # 28 digits of 8 x 8


def test_augment_takes_a_folder_of_images(augment: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(120 * k, 120 * k + 130, (20 + i, 30 - i, 3), dtype=np.uint8)
            augment.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    images, labels, classes = augment.read(tmp_path / "photos", 16)
    assert images.shape == (20, 16, 16, 3)
    assert images.dtype == np.uint8
    assert classes == ["dark", "light"]
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert images[:10].mean() < 100 < images[10:].mean()
    done = run("augment", f"--epochs 4 --seeds 1 --size 16 --data {tmp_path / 'photos'}", tmp_path / "out")
    assert "2 classes" in done.stdout
    check_picture(tmp_path / "out" / "augment.png", done.stdout, (1600, 560))
    with pytest.raises(SystemExit, match="there is no folder"):
        augment.read(tmp_path / "nothing", 16)
    with pytest.raises(SystemExit, match="at least 2 classes and 10 images"):
        augment.read(tmp_path / "photos" / "dark", 16)


def test_augment_ways_differ_in_augmentation_alone(augment: ModuleType) -> None:
    options = augment.parse([])
    data = augment.load(options, 1)
    assert data.x_train.shape == (100, 8, 8, 1)
    chains = augment.chains(data)
    assert list(chains) == list(augment.WAYS)
    for way, chain in chains.items():
        x, y = chain(0, data.x_train, data.y_train)
        assert x.shape == (100, 1, 8, 8)
        assert (y.ndim == 2) == ("Mixup" in way)
    first = augment.train("as they are", data, 1, 1)._replace(seconds=0.0)
    assert augment.train("as they are", data, 1, 1)._replace(seconds=0.0) == first
