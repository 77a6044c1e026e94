"""The command line: what it reads, makes and writes, what it says of mistakes, and the demo."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ironstep import cli, functional, nn, optim, schedules
from ironstep.cli import _arguments, _bench, _data, _info, _recipe, _schedule, _train
from ironstep.data import load_digits, split
from ironstep.optimize import METHODS
from ironstep.train import load_state

TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*argv: str, command: str = "train") -> argparse.Namespace:
    return _arguments.parse([command, "digits", *argv])


def run(*argv: str) -> int:
    return cli.main(["train", *argv, "--no-progress"])


def blobs(path: Path, n: int = 90, classes: int = 3, features: int = 4) -> Path:
    """A .npz of classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    np.savez(path, x=rng.normal(size=(n, features)) + 4 * np.eye(classes, features)[y], y=y)
    return path


def line(path: Path, n: int = 120) -> Path:
    """A .csv whose last column is 30 + 5 a - 3 b and a little noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-10, 10, (n, 2))
    y = 30 + x @ [5, -3] + rng.normal(scale=0.1, size=n)
    rows = ["a,b,y", *(f"{a},{b},{c}" for (a, b), c in zip(x, y, strict=True))]
    path.write_text("\n".join(rows))
    return path


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


# -- Help, usage, errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "demo", "train", "lr-find", "schedule", "bench", "info"])
def test_help_reads_well(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"example: python -m ironstep {command}" in out
    assert err == ""
    assert "None" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import ironstep

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ironstep {ironstep.__version__}\n"


USAGE = {
    "": "COMMAND",
    "walk": "invalid choice: 'walk'",
    "train": "DATA",
    "lr-find": "DATA",
    "train digits --walk": "--walk",
    "train digits --epochs 0": "--epochs: must be an integer at least 1, got '0'",
    "train digits --epochs 1.5": "--epochs: must be an integer at least 1, got '1.5'",
    "train digits --lr 0": "--lr: must be a number above 0, got '0'",
    "train digits --lr nan": "--lr: must be a number above 0, got 'nan'",
    "train digits --lr inf": "--lr: must be a number above 0, got 'inf'",
    "train digits --dropout 1": "--dropout: must be a number at least 0 and below 1, got '1'",
    "train digits --label-smoothing 1.5": "--label-smoothing: must be a number at least 0 and at most 1, got '1.5'",
    "train digits --test 1": "--test: must be a number at least 0 and below 1, got '1'",
    "train digits --seed -1": "--seed: must be an integer at least 0",
    "train digits --seed 18446744073709551616": "at least 0 and at most 18446744073709551615, got",
    "train digits --batch-size none": "--batch-size: must be an integer at least 1, got 'none'",
    "train digits --set lr": "--set: must be NAME=VALUE, got 'lr'",
    "train digits --model rnn": "--model: invalid choice: 'rnn'",
    "train digits --hidden 8 0": "--hidden: must be an integer at least 1, got '0'",
    "schedule": "TEXT",
    "bench --seconds 0": "--seconds: must be a number above 0, got '0'",
    "demo --seeds 0": "--seeds: must be an integer at least 1, got '0'",
    "info more": "unrecognized arguments: more",
}


@pytest.mark.parametrize(("argv", "text"), USAGE.items())
def test_wrong_usage_is_2(argv: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    usage, message = err.splitlines()
    assert usage.startswith("usage: python -m ironstep")
    assert message.startswith("error: ")
    assert text in message


FAILURES = {
    "train nowhere.npz": "nowhere.npz: No such file or directory",
    "train nowhere.csv": "nowhere.csv: No such file or directory",
    "train data.txt": "DATA must be 'digits', a .npz or a .csv file, got 'data.txt'",
    "train text.npz": "text.npz is no .npz file that NumPy can read",
    "train other.npz": "other.npz must have an array x or images, but has a, y",
    "train objects.npz": "objects.npz: x holds Python objects, which are not read",
    "train lengths.npz": "lengths.npz: x and y must have as many samples, got 4 and 3",
    "train nan.npz": "nan.npz: x must be finite, but 1 of its values are not",
    "train nan_y.npz": "nan_y.npz: y must be finite, but 1 of its values are not",
    "train words.npz": "words.npz: x must be numbers, got <U1",
    "train one.npz": "one.npz: at least 2 samples are needed, got 1",
    "train single.npz": "single.npz: to classify, y must have at least 2 classes, got 1",
    "train many.npz": "many.npz: y has 30 different values in 30 samples: say --task regress",
    "train rank.npz": "rank.npz: x must have shape (samples, features)",
    "train empty.csv": "empty.csv is empty",
    "train short.csv": "short.csv, line 3: 3 cells expected as in the first line, got 2",
    "train cell.csv": "cell.csv, line 3: 'b' must be a number, got 'x'",
    "train label.csv": "label.csv, line 3: 'b' must be a label, got ' '",
    "train --resume --out nowhere": "nowhere has no run, so there is nothing to go on with",
    "train column.csv": "column.csv must have at least 2 columns, separated by commas, got 1",
    "train cell.csv --label d": "cell.csv has no column 'd'; it has a, b, c, or the numbers 0 to 2",
    "train cell.csv --label 3": "cell.csv has no column '3'",
    "train digits --label a": "--label is for .csv files",
    "train good.npz --model cnn": "--model cnn is for images, but good.npz has rows of numbers",
    "train tiny.npz --model cnn": "--model cnn needs images of at least 4 x 4 pixels, got 3 x 5",
    "train good.npz --task regress --validation 0.6 --test 0.4": "must leave samples to train with, got 1 in all",
    "train good.npz --patience 3 --validation 0": "--patience needs a validation part",
    "train good.npz --schedule plateau --validation 0": "--schedule plateau needs a validation part",
    "train good.npz --schedule walk": "a schedule must be a call such as cosine(lr, steps=total), or constant, linear,",
    "train good.npz --schedule walk(lr)": "walk",
    "train good.npz --schedule cosine(lr,steps=0)": "steps must be",
    "train good.npz --optimizer walk": "--optimizer must be one of",
    "train good.npz --momentum 0.9": "AdamW has no hyperparameter 'momentum'; it has lr, betas,",
    "train good.npz --set walk=1": "AdamW has no hyperparameter 'walk'",
    "train good.npz --set betas=0.9": "betas must be a pair of numbers, got 0.9",
    "train good.npz --set betas=0.9,2": "betas[1] must be at least 0 and below 1, got 2",
    "train good.npz --set eps=small": "--set eps must be a number, true, false, a pair or a schedule, got 'small'",
    "train good.npz --lr 0.1 --set lr=0.2": "lr is given twice: by --lr and by --set",
    "train good.npz --accumulate 91": "--accumulate must be at most the 60 batches of the run",
    "train good.npz --resume --overwrite": "--resume and --overwrite exclude each other",
    "train good.npz --config nowhere.toml": "nowhere.toml: No such file or directory",
    "lr-find good.npz --min-lr 1 --max-lr 0.1": "--min-lr must be below --max-lr, got 1 and 0.1",
    "lr-find nowhere.npz": "nowhere.npz: No such file or directory",
    "schedule walk": "a schedule must be a call",
    "bench --only walk": "--only must be part of one of these names: SGD with momentum",
}


def files(folder: Path) -> None:
    """The files that the table of failures names."""
    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])
    arrays: dict[str, dict[str, Any]] = {
        "other": {"a": x, "y": y},
        "objects": {"x": np.array([None, 1]), "y": y[:2]},
        "lengths": {"x": x, "y": y[:3]},
        "nan": {"x": np.array([[1.0], [np.nan]]), "y": y[:2]},
        "nan_y": {"x": x, "y": np.array([1.0, 2.0, np.nan, 3.0])},
        "words": {"x": np.array([["a"], ["b"]]), "y": y[:2]},
        "one": {"x": x[:1], "y": y[:1]},
        "single": {"x": x, "y": np.zeros(4, int)},
        "many": {"x": np.ones((30, 2)), "y": np.arange(30)},
        "rank": {"x": np.ones((4, 2, 2, 2, 2)), "y": y},
        "tiny": {"x": np.ones((40, 3, 5)), "y": np.arange(40) % 2},
    }
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)
    blobs(folder / "good.npz")
    (folder / "text.npz").write_text("no archive")
    (folder / "empty.csv").write_text("\n\n")
    (folder / "short.csv").write_text("a,b,c\n1,2,3\n4,5\n")
    (folder / "cell.csv").write_text("a,b,c\n1,2,3\n4,x,6\n")
    (folder / "label.csv").write_text("a,b\n1,x\n2, \n3,y\n")
    (folder / "column.csv").write_text("a\n1\n2\n")


@pytest.mark.parametrize(("argv", "text"), FAILURES.items())
def test_a_run_that_fails_is_1(argv: str, text: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(here)
    assert cli.main(argv.split()) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1
    assert "written" not in out
    assert not list(here.glob("run/*"))


def test_interrupted_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(_info, "facts", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_loss_of_nan_is_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("digits", "--optimizer", "sgd", "--lr", "1e30", "--norm", "none", "--epochs", "2") == 1
    message = capsys.readouterr().err
    assert re.search(r"error: the run was stopped: loss is (nan|inf) at step \d+; a lower --lr", message)
    assert not (here / "run" / "model.safetensors").exists()


def test_as_a_module() -> None:
    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *args], capture_output=True, encoding="utf-8", timeout=60, check=False)

    done = call("-m", "ironstep", "train", "nowhere.npz")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: nowhere.npz: No such file or directory\n"
    heavy = ("ironstep.nn", "ironstep.train", "ironstep.schedules", "matplotlib", "torch", "jax", "csv", "json")
    code = f"import sys, ironstep.cli; print([name for name in {heavy} if name in sys.modules])"
    assert call("-c", code).stdout == "[]\n"


# -- Data --------------------------------------------------------------------------------------------------------------


def test_the_digits() -> None:
    data = _data.load("digits", None, None)
    assert str(data) == "digits: 1,797 images of 1 x 8 x 8, 10 classes"
    images, labels = load_digits()
    np.testing.assert_array_equal(data.x, images[:, None])
    np.testing.assert_array_equal(data.y, labels)
    assert data.classes == list("0123456789")


SHAPES = {
    (6,): (6, 1),
    (6, 5): (6, 5),
    (6, 4, 5): (6, 1, 4, 5),
    (6, 3, 4, 5): (6, 3, 4, 5),
    (6, 5, 7, 3): (6, 3, 5, 7),
    (6, 4, 5, 3): (6, 4, 5, 3),
    (6, 1, 5, 1): (6, 1, 5, 1),
    (6, 7, 8, 9): (6, 7, 8, 9),
}


@pytest.mark.parametrize(("shape", "expected"), SHAPES.items())
@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_npz(shape: tuple[int, ...], expected: tuple[int, ...], names: tuple[str, str], tmp_path: Path) -> None:
    x = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "data.npz"
    np.savez(path, **dict(zip(names, (x, np.array([5, 3, 5, 3, 3, 3])), strict=True)))
    data = _data.load(str(path), None, None)
    assert data.x.shape == expected
    assert data.x.dtype == np.float32
    wanted = x.transpose(0, 3, 1, 2) if shape[1:] == (5, 7, 3) else x.reshape(expected)
    np.testing.assert_array_equal(data.x, wanted.astype(np.float32))
    np.testing.assert_array_equal(data.y, [1, 0, 1, 0, 0, 0])
    assert data.classes == ["3", "5"]


CSV = {
    "a header, the last column": ("a,b,kind\n1,2,x\n3,4,y\n", None),
    "quotes, spaces, an empty line": ('"a", b ,kind\r\n1, 2,x\r\n\r\n3,4 ,"y"\r\n', None),
    "a byte order mark": ("\ufeffkind,a,b\nx,1,2\ny,3,4\n", "kind"),
    "a header, by name": ("kind,a,b\nx,1,2\ny,3,4\n", "kind"),
    "a header, by number": ("a,kind,b\n1,x,2\n3,y,4\n", "1"),
    "a header, from the end": ("a,kind,b\n1,x,2\n3,y,4\n", "-2"),
    "no header": ("1,2,x\n3,4,y\n", None),
    "no header, by number": ("x,1,2\ny,3,4\n", "0"),
}


@pytest.mark.parametrize(("text", "label"), CSV.values(), ids=CSV)
def test_csv(text: str, label: str | None, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8", newline="")
    data = _data.load(str(path), label, None)
    np.testing.assert_array_equal(data.x, np.array([[1, 2], [3, 4]], np.float32))
    np.testing.assert_array_equal(data.y, [0, 1])
    assert data.classes == ["x", "y"]


def test_a_header_of_numbers_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("2019,2020,2021\n1,2,0\n3,4,1\n")
    data = _data.load(str(path), "2021", None)
    np.testing.assert_array_equal(data.x, np.array([[1, 2], [3, 4]], np.float32))


TASKS: dict[str, tuple[Any, str | None, list[str]]] = {
    "integers": ([3, 1, 3, 1], None, ["1", "3"]),
    "integers to regress": ([3, 1, 3, 1], "regress", []),
    "fractions": ([0.5, 1.0, 1.5, 2.0], None, []),
    "fractions to classify": ([0.5, 1.5, 0.5, 1.5], "classify", ["0.5", "1.5"]),
    "floats without fractions": ([1.0, 0.0, 1.0, 0.0], None, ["0.0", "1.0"]),
    "text": (["no", "yes", "no", "yes"], None, ["no", "yes"]),
    "bools": ([True, False, True, False], None, ["False", "True"]),
    "a column of integers": ([[3], [1], [3], [1]], None, ["1", "3"]),
    "several outputs": ([[0.5, 1.0]] * 4, None, []),
}


@pytest.mark.parametrize(("y", "task", "classes"), TASKS.values(), ids=TASKS)
def test_the_task_is_guessed(y: Any, task: str | None, classes: list[str], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((4, 2)), y=np.array(y))
    data = _data.load(str(path), None, task)
    assert data.classes == classes
    if classes:
        expected = np.unique(np.array(y), return_inverse=True)[1].ravel()
        np.testing.assert_array_equal(data.y, expected)
        assert data.y.dtype == np.int64
    else:
        np.testing.assert_array_equal(data.y, np.array(y, float).reshape(4, -1))


def test_parts_are_standardised_by_the_training_part() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 5, (100, 3)).astype(np.float32)
    x[:, 2] = 7  # a constant feature
    y = rng.normal(-40, 9, (100, 2))
    task = _data.problem(_data.Data("data", x, y, []), options("--validation", "0.3", "--test", "0.1"))
    assert task.validation is not None
    assert task.test is not None
    assert [len(part[0]) for part in (task.train, task.validation, task.test)] == [60, 30, 10]
    np.testing.assert_allclose(task.train[0].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(task.train[0].std(0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(task.train[1].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(task.train[1].std(0), 1, atol=1e-5)
    # Back in the old units it is what it was, of each part, and no sample is in two.
    parts = (task.train, task.validation, task.test)
    back = np.concatenate([part[0] * task.scaling["std"] + task.scaling["mean"] for part in parts])
    np.testing.assert_allclose(back[np.argsort(back[:, 0])], x[np.argsort(x[:, 0])], rtol=1e-4)
    back = np.concatenate([part[1] * task.scaling["output_std"] + task.scaling["output_mean"] for part in parts])
    np.testing.assert_allclose(back[np.argsort(back[:, 0])], y[np.argsort(y[:, 0])], rtol=1e-4)


def test_classes_have_the_same_share_in_each_part() -> None:
    y = np.repeat([0, 1, 2], [50, 30, 20])
    task = _data.problem(_data.Data("data", np.zeros((100, 1), np.float32), y, ["a", "b", "c"]), options("--seed", "4"))
    assert task.validation is not None
    assert task.test is not None
    for part, n in ((task.train, 60), (task.validation, 20), (task.test, 20)):
        np.testing.assert_array_equal(np.bincount(part[1]), np.array([0.5, 0.3, 0.2]) * n)


def test_images_are_standardised_by_channel() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3, 4, 4)).astype(np.float32) * [[[[1]], [[5]], [[9]]]]
    data = _data.Data("data", x.astype(np.float32), np.arange(50) % 2, ["0", "1"])
    task = _data.problem(data, options("--validation", "0", "--test", "0"))
    assert task.validation is task.test is None
    assert task.scaling["std"].shape == (3, 1, 1)
    np.testing.assert_allclose(task.train[0].std((0, 2, 3)), 1, rtol=1e-5)


# -- Network and optimiser ---------------------------------------------------------------------------------------------


def names(*argv: str, x: tuple[int, ...] = (1, 8, 8), outputs: int = 10) -> list[str]:
    data = _data.Data("data", np.zeros((20, *x), np.float32), np.arange(20) % outputs, [""] * outputs)
    model = _train.network(_data.problem(data, options("--test", "0", "--validation", "0", *argv)), options(*argv))
    assert model.predict(np.zeros((2, *x), np.float32)).shape == (2, outputs)
    texts = [repr(layer).removesuffix(" [train]") for layer in model]
    texts = [re.sub(r",? (init|seed|eps|momentum)=[^,)]*", "", text) for text in texts]
    for long, short in (("(3, 3), padding=(1, 1)", "3"), ("(16,)", "16"), ("(2, 2), stride=(2, 2)", "2")):
        texts = [text.replace(long, short) for text in texts]
    return texts


NETWORKS: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    "mlp": (
        ["--hidden", "16", "8"],
        {},
        ["Flatten()", "Linear(64, 16)", "BatchNorm1d(16)", "ReLU()", "Linear(16, 8)", "BatchNorm1d(8)", "ReLU()",
         "Linear(8, 10)"],
    ),
    "no hidden layer": (["--hidden"], {"x": (5,), "outputs": 2}, ["Linear(5, 2)"]),
    "layer norm, dropout": (
        ["--hidden", "16", "--norm", "layer", "--dropout", "0.5"],
        {"x": (5,)},
        ["Linear(5, 16)", "LayerNorm(16)", "ReLU()", "Dropout(p=0.5)", "Linear(16, 10)"],
    ),
    "no norm": (["--hidden", "16", "--norm", "none"], {"x": (5,)}, ["Linear(5, 16)", "ReLU()", "Linear(16, 10)"]),
    "cnn": (
        ["--model", "cnn", "--hidden", "24", "--dropout", "0.5"],
        {},
        ["Conv2d(1, 16, 3)", "BatchNorm2d(16)", "ReLU()", "Conv2d(16, 32, 3)", "BatchNorm2d(32)",
         "ReLU()", "MaxPool2d(2)", "Flatten()", "Dropout(p=0.5)", "Linear(512, 24)", "BatchNorm1d(24)", "ReLU()",
         "Dropout(p=0.5)", "Linear(24, 10)"],
    ),
    "cnn of larger images": (
        ["--model", "cnn", "--hidden", "--norm", "layer"],
        {"x": (3, 28, 32)},
        ["Conv2d(3, 16, 3)", "GroupNorm(1, 16)", "ReLU()", "Conv2d(16, 32, 3)",
         "GroupNorm(1, 32)", "ReLU()", "MaxPool2d(2)", "Conv2d(32, 64, 3)", "GroupNorm(1, 64)", "ReLU()",
         "MaxPool2d(2)", "Flatten()", "Linear(3584, 10)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "kwargs", "layers"), NETWORKS.values(), ids=NETWORKS)
def test_networks(argv: list[str], kwargs: dict[str, Any], layers: list[str]) -> None:
    assert names(*argv, **kwargs) == layers


OPTIMIZERS = sorted(METHODS)


def test_all_optimizers_are_known() -> None:
    classes = {name for name in optim.__all__ if name not in ("Optimizer", "ParamGroup", "StepResult")}
    assert {cls.__name__ for cls in METHODS.values()} == classes


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_in_any_case(name: str) -> None:
    params = {"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    opt, described = _train.optimizer(params, options("--optimizer", name.upper(), "--weight-decay", "0.5"), 0.25, {})
    assert type(opt).__name__.lower() == name
    assert described == f"{type(opt).__name__}(lr=0.25, weight_decay=0.5)"
    assert opt.param_groups[0]["weight_decay"] == 0.5
    opt.step({"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(params["b"], 1)  # biases do not decay
    assert (params["w"] != 1).all()


SETTINGS = {
    "betas=0.5,0.75": ("betas", (0.5, 0.75)),
    "betas=[0.5, 0.75]": ("betas", (0.5, 0.75)),
    "amsgrad=true": ("amsgrad", True),
    "amsgrad=False": ("amsgrad", False),
    "eps=1e-3": ("eps", 1e-3),
    "bias-correction=false": ("bias_correction", False),
    "weight-decay=linear(lr, 0, total)": ("weight_decay", schedules.linear(0.1, 0, 50)),
}


@pytest.mark.parametrize(("text", "expected"), SETTINGS.items())
def test_set(text: str, expected: tuple[str, Any]) -> None:
    params = np.ones(2, np.float32)
    values = {"lr": 0.1, "total": 50, "epoch": 5}
    opt, described = _train.optimizer(params, options("--set", text), 0.1, values)
    assert opt.param_groups[0][expected[0]] == expected[1]
    assert f"{expected[0]}=" in described


def test_options_of_the_step() -> None:
    argv = ["--max-norm", "2", "--clip-value", "3", "--ema-decay", "0.5", "--set", "nonfinite=skip"]
    opt, _ = _train.optimizer(np.ones(2, np.float32), options(*argv), None, {})
    assert (opt.max_norm, opt.clip_value, opt.ema_decay, opt.nonfinite) == (2.0, 3.0, 0.5, "skip")


# -- train -------------------------------------------------------------------------------------------------------------


def test_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    argv = ["--epochs", "4", "--lr", "0.01", "--schedule", "one_cycle", "--dropout", "0.1", "--label-smoothing", "0.1"]
    assert run("digits", *argv, "--out", "a") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == ("digits: 1,797 images of 1 x 8 x 8, 10 classes; 1,078 to train, 360 to validate, 359 to test")
    assert lines[1] == "mlp of 9,226 parameters, AdamW(lr=one_cycle(0.01, 136))"
    assert lines[2].startswith("4 epochs in ")
    found = re.fullmatch(r"test: loss [\d.]+, accuracy ([\d.]+)%", lines[4])
    assert found is not None
    assert float(found[1]) > 94
    assert lines[5] == (
        "in a: history.csv, config.toml, model.safetensors, last.safetensors, best.safetensors, curves.png"
    )
    assert sorted(path.name for path in (here / "a").iterdir()) == sorted(lines[5][6:].split(", "))
    rows = history(here / "a")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0]) == ["epoch", "step", "loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    # What is saved is what was tested.
    task, model = saved("--dropout", "0.1", out="a")
    mean = load_digits()[0].mean()
    assert task.scaling["mean"].ravel() == pytest.approx(mean, rel=0.01)
    assert task.test is not None
    assert f"accuracy {_train.measured(model, task, task.test)['accuracy']:.2%}" in lines[4]


@TOML
def test_the_config_of_a_run_makes_the_same_run(here: Path) -> None:
    blobs(here / "data.npz")
    argv = ["--epochs", "3", "--hidden", "8", "--optimizer", "SGD", "--momentum", "0.9", "--set", "nesterov=true",
            "--set", "weight_decay=linear(0.01, 0, total)", "--schedule", "cosine(lr, steps=total)", "--lr", "0.05",
            "--ema-decay", "0.9", "--accumulate", "2", "--batch-size", "10", "--patience", "5", "--seed", "7",
            "--max-norm", "5", "--norm", "layer"]  # fmt: skip
    assert run("data.npz", *argv, "--out", "a") == 0
    assert run("--config", "a/config.toml", "--out", "b") == 0
    assert history(here / "a") == history(here / "b")
    assert (here / "a/model.safetensors").read_bytes() == (here / "b/model.safetensors").read_bytes()
    kept = [(here / name / "config.toml").read_text().splitlines()[1:] for name in "ab"]
    assert [pair for pair in zip(*kept, strict=True) if pair[0] != pair[1]] == [('out = "a"', 'out = "b"')]
    rows = history(here / "a")
    assert rows[0]["step"] == "6"  # of 54 samples in batches of 10
    # Two batches are a step: what the six batches of the last epoch see is the rate of the step before, then theirs.
    rates = schedules.cosine(0.05, steps=9)(np.array([5, 6, 6, 7, 7, 8]))
    assert float(rows[2]["lr"]) == pytest.approx(np.average(rates, weights=[10] * 5 + [4]))


@TOML
def test_flags_win_over_the_config(here: Path) -> None:
    (here / "c.toml").write_text(
        'data = "digits"\nepochs = 7\nhidden = [5, 6]\nbatch-size = "full"\nno-progress = true\nlr = 1\n'
        "[set]\nbetas = [0.5, 0.75]\namsgrad = true\n"
    )
    got = _arguments.parse(["train", "--config", "c.toml"])
    assert (got.data, got.epochs, got.hidden, got.batch_size) == ("digits", 7, [5, 6], "full")
    assert (got.no_progress, got.lr, got.model) == (True, 1.0, "mlp")
    assert got.set == [("betas", "[0.5, 0.75]"), ("amsgrad", "true")]
    got = _arguments.parse(["train", "x.csv", "--config", "c.toml", "--epochs", "8", "--hidden", "9", "--set", "eps=1"])
    assert (got.data, got.epochs, got.hidden, got.batch_size) == ("x.csv", 8, [9], "full")
    assert got.set == [("betas", "[0.5, 0.75]"), ("amsgrad", "true"), ("eps", "1")]


CONFIGS = {
    "epoch = 3": (2, "c.toml: unknown key 'epoch'; the keys are data, label, task"),
    "resume = true": (2, "c.toml: unknown key 'resume'"),
    "epochs = 0": (2, "c.toml: argument --epochs: must be an integer at least 1, got '0'"),
    "epochs = 1.5": (2, "c.toml: argument --epochs: must be an integer at least 1, got '1.5'"),
    "model = 'rnn'": (2, "c.toml: argument --model: invalid choice: 'rnn'"),
    "no-progress = 1": (1, "c.toml: 'no-progress' must be true or false, got 1"),
    "set = 1": (1, 'c.toml: "set" must be a table'),
    "hidden = [4, 0]": (2, "c.toml: argument --hidden: must be an integer at least 1, got '0'"),
    "epochs = ": (1, "c.toml is no valid TOML"),
}


@TOML
@pytest.mark.parametrize(("text", "expected"), CONFIGS.items())
def test_mistakes_in_a_config(
    text: str, expected: tuple[int, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "c.toml").write_text(text)
    assert cli.main(["train", "digits", "--config", "c.toml"]) == expected[0]
    assert expected[1] in capsys.readouterr().err


@TOML
def test_a_resumed_run_is_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    argv = ["--hidden", "8", "--dropout", "0.2", "--batch-size", "7", "--accumulate", "2", "--ema-decay", "0.8",
            "--lr", "0.01", "--schedule", "exponential(lr, 0.99)", "--checkpoint-every", "3"]  # fmt: skip
    assert run("data.npz", *argv, "--epochs", "5", "--out", "a") == 0
    assert run("data.npz", *argv, "--epochs", "2", "--out", "b") == 0
    assert run("data.npz", *argv, "--epochs", "2", "--out", "b") == 1
    assert "b has a run already: --resume goes on with it, --overwrite begins anew" in capsys.readouterr().err
    before = (here / "b/history.csv").read_text()
    assert run("--resume", "--epochs", "5", "--out", "b") == 0  # all else from b/config.toml
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"3 epochs in [\d.]+ s, 5 in all", lines[2])  # and no line of a schedule: it has no `total`
    assert (here / "b/history.csv").read_text().startswith(before)  # with the times that they took then
    assert history(here / "a") == history(here / "b")
    assert (here / "a/model.safetensors").read_bytes() == (here / "b/model.safetensors").read_bytes()
    assert (here / "b/best.safetensors").exists()
    assert run("data.npz", *argv, "--epochs", "1", "--validation", "0", "--out", "b", "--overwrite") == 0
    assert len(history(here / "b")) == 1
    assert not (here / "b/best.safetensors").exists()


@TOML
def test_a_longer_run_says_what_jumps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    argv = ["data.npz", "--hidden", "8", "--batch-size", "9", "--accumulate", "2", "--lr", "0.1",
            "--schedule", "linear", "--set", "eps=1e-7",
            "--set", "weight_decay=cosine(1, 0, steps=2*total)"]  # fmt: skip
    assert run(*argv, "--epochs", "4") == 0  # of 6 batches
    assert run("--resume") == 0
    assert "stretched" not in capsys.readouterr().out
    assert run("--resume", "--epochs", "6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        "with 6 epochs instead of 4, schedules are stretched: at step 12 lr from 0 to 0.03333, "
        "weight_decay from 0.5 to 0.75"
    )
    assert lines[3].startswith("2 epochs in ")
    # With a schedule that is new, nothing is stretched; the one of the decay still is.
    assert run("--resume", "--epochs", "8", "--schedule", "cosine") == 0
    assert "at step 18 weight_decay from 0.5 to " in capsys.readouterr().out
    assert run("--resume", "--epochs", "9", "--overwrite") == 1


MISFITS = {
    "--schedule cosine": "--schedule",
    "--optimizer sgd --set nesterov=false": "--optimizer, --set",
    "--batch-size 5": "--batch-size",
    "--ema-decay 0.9 --lr 0.1": "--lr, --ema-decay",
}


FLAGS_WIN = {
    "--lr 0.5": {"lr": 0.5},
    "--lr 0.5 --weight-decay 0.25": {"lr": 0.5, "weight_decay": 0.25},
    "--set betas=0.5,0.75 --set eps=1e-3": {"betas": (0.5, 0.75), "eps": 1e-3},
    "--max-norm 2 --clip-value 3 --set nonfinite=skip": {"max_norm": 2.0, "clip_value": 3.0, "nonfinite": "skip"},
    "--ema-decay 0.25": {"ema_decay": 0.25},
}


@TOML
@pytest.mark.parametrize(("flags", "values"), FLAGS_WIN.items())
def test_flags_win_over_the_checkpoint(flags: str, values: dict[str, Any], here: Path) -> None:
    from ironstep.train import read_state

    blobs(here / "data.npz")
    more = ["--ema-decay", "0.5"] if "ema" in flags else []
    assert run("data.npz", "--hidden", "8", "--epochs", "2", "--lr", "0.125", "--set", "eps=1e-6", *more) == 0
    assert run("--resume", *flags.split(), "--epochs", "4") == 0
    saved = read_state("run/last.safetensors")["opt"]
    is_now = saved["param_groups"][0] | saved["options"]
    assert {name: is_now[name] for name in values} == values
    assert is_now["eps"] == values.get("eps", 1e-6)  # by config.toml
    assert [float(row["lr"]) for row in history(here / "run")] == [0.125] * 2 + [values.get("lr", 0.125)] * 2


@TOML
def test_a_plateau_goes_on_from_another_lr(here: Path) -> None:
    blobs(here / "data.npz")
    assert run("data.npz", "--hidden", "8", "--epochs", "2", "--lr", "0.125", "--schedule", "plateau") == 0
    assert run("--resume", "--lr", "0.5", "--epochs", "3") == 0
    assert run("--resume", "--epochs", "4") == 0
    assert [float(row["lr"]) for row in history(here / "run")] == [0.125, 0.125, 0.5, 0.5]


@TOML
def test_nothing_left_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    assert run("data.npz", "--hidden", "8", "--epochs", "2") == 0
    assert "nothing was left" not in capsys.readouterr().out
    assert run("--resume") == 0
    assert "nothing was left to do after 2 epochs; a higher --epochs makes the run longer\n" in capsys.readouterr().out
    assert run("data.npz", "--hidden", "8", "--resume", "--out", "new", "--epochs", "1") == 0
    assert "new has no checkpoint to go on from: the run begins\n" in capsys.readouterr().out


def test_interrupted_runs_say_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs(here / "data.npz")
    real, left = _train.train_step, [0]

    def train_step(*args: Any) -> Callable[..., Any]:
        step = real(*args)

        def counted(*batch: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return step(*batch)

        return counted

    monkeypatch.setattr(_train, "train_step", train_step)
    argv = ["data.npz", "--hidden", "8", "--checkpoint-every", "1", "--out", "a b"]
    assert run(*argv) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    left[0] = 3
    assert run(*argv) == 130
    hint = "go on with: python -m ironstep train --resume --out 'a b'"
    assert capsys.readouterr().err == f"error: interrupted\n{hint}\n"


def test_names_of_classes_are_saved(here: Path) -> None:
    from ironstep.train import read_state

    (here / "data.csv").write_text("a,kind\n" + "1,no\n2,yes\n" * 20)
    assert run("data.csv", "--hidden", "4", "--epochs", "1") == 0
    assert read_state("run/model.safetensors")["classes"] == ["no", "yes"]
    line(here / "line.csv")
    assert run("line.csv", "--hidden", "4", "--epochs", "1", "--overwrite") == 0
    assert list(read_state("run/model.safetensors")) == ["model", "scaling"]


@TOML
def test_a_resume_that_fails_changes_no_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    assert run("data.npz", "--hidden", "8", "--epochs", "2") == 0
    before = {path.name: path.read_bytes() for path in (here / "run").iterdir()}
    assert run("--resume", "--hidden", "9", "--epochs", "3") == 1
    error = capsys.readouterr().err
    assert "last.safetensors does not fit these flags (--hidden): " in error
    assert "must have shape (9, 4), got (8, 4)" in error
    assert "; go on with those of its config.toml, or begin anew with --overwrite or another --out\n" in error
    assert error.count("\n") == 1
    for flags, what in MISFITS.items():
        assert run("--resume", *flags.split(), "--epochs", "3") == 1
        error = capsys.readouterr().err
        assert f"does not fit these flags ({what}): " in error
        assert "make the optimiser" not in error
    assert {path.name: path.read_bytes() for path in (here / "run").iterdir()} == before
    assert run("--resume", "--epochs", "3") == 0


SETS = {
    "betas=0.5,0.75": "betas = [0.5, 0.75]",
    "betas=[0.5, 0.75]": "betas = [0.5, 0.75]",
    "eps=1e-3": "eps = 0.001",
    "amsgrad=True": "amsgrad = true",
    "max_norm=1e999": 'max_norm = "1e999"',
    "max_norm=none": 'max_norm = "none"',
    "nonfinite=skip": 'nonfinite = "skip"',
    "weight_decay=linear(lr, 0, total)": 'weight_decay = "linear(lr, 0, total)"',
}


@TOML
@pytest.mark.parametrize(("text", "written"), SETS.items())
def test_hyperparameters_in_a_config(text: str, written: str, here: Path) -> None:
    """Written as TOML has them, and read as what they were."""
    given = options("--set", text)
    _arguments.write_config(given, here / "c.toml")
    assert (here / "c.toml").read_text().endswith(f"\n\n[set]\n{written}\n")
    names = {"lr": 0.1, "total": 50, "epoch": 5}
    made = [
        _train.optimizer(np.ones(2, np.float32), got, 0.1, names)[1]
        for got in (given, _arguments.parse(["train", "--config", "c.toml"]))
    ]
    assert made[0] == made[1]


def test_early_stopping_goes_back_to_the_best(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["digits", "--patience", "2", "--lr", "0.05", "--epochs", "60", "--hidden", "16", "--batch-size", "64"]
    assert run(*argv) == 0
    out = capsys.readouterr().out
    rows = history(here / "run")
    assert len(rows) < 60
    assert "stopped: val_loss did not improve" in out
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert int(best["epoch"]) == len(rows) - 2
    assert f"validation: loss {float(best['val_loss']):.4g}, accuracy" in out
    assert f"(epoch {best['epoch']})" in out
    task, model = saved("--hidden", "16")
    assert task.validation is not None
    assert _train.measured(model, task, task.validation)["loss"] == float(best["val_loss"])


def saved(*argv: str, out: str = "run") -> tuple[_data.Problem, nn.Sequential]:
    """The digits, and the model that a run on them has left."""
    task = _data.problem(_data.load("digits", None, None), options())
    model = _train.network(task, options(*argv))
    load_state(f"{out}/model.safetensors", model=model, scaling=task.scaling, partial=True)
    return task, model


def test_plateau(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    assert run("data.npz", "--schedule", "plateau", "--lr", "0.05", "--epochs", "60", "--batch-size", "full") == 0
    assert "AdamW(lr=ReduceLROnPlateau(0.05))" in capsys.readouterr().out
    rows = history(here / "run")
    best = min(range(60), key=lambda i: float(rows[i]["val_loss"]))
    rates = [float(row["lr"]) for row in rows]
    assert rates[0] == 0.05
    assert set(rates) <= {0.05, 0.05 * 0.1, 0.05 * 0.1 * 0.1, 0.05 * 0.1 * 0.1 * 0.1}
    assert rates[-1] < 0.05
    assert rates.index(0.05 * 0.1) >= 11  # ten epochs without a better loss at least
    assert best < 59


def test_averaged_weights_are_validated_and_saved(here: Path) -> None:
    blobs(here / "data.npz")
    for folder, argv in (("a", []), ("b", ["--ema-decay", "0.9"])):
        assert run("data.npz", "--epochs", "3", "--hidden", "8", "--out", folder, *argv) == 0
    for a, b in zip(history(here / "a"), history(here / "b"), strict=True):
        assert a["loss"] == b["loss"]
        assert a["val_loss"] != b["val_loss"]
    assert (here / "a/model.safetensors").read_bytes() != (here / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("classes", [3, 0])
def test_a_step(classes: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4)).astype(np.float32)
    y = np.arange(20) % 3 if classes else rng.normal(size=(20, 2))
    argv = ["--label-smoothing", "0.3", "--hidden", "--test", "0", "--validation", "0"]
    task = _data.problem(_data.Data("data", x, y, [""] * classes), options(*argv))
    model = _train.network(task, options(*argv))
    taken: list[Any] = []
    step = _train.train_step(model, task, options(*argv), lambda grads, n: taken.append((grads, n)))
    metrics = step(task.train[0], task.train[1])
    output = model.predict(task.train[0])
    if classes:
        loss, grad = functional.cross_entropy(output, y, label_smoothing=0.3, return_grad=True)
        assert metrics == {"loss": loss, "accuracy": np.mean(output.argmax(1) == y)}
    else:
        loss, grad = functional.mse_loss(output, task.train[1], return_grad=True)
        assert metrics == {"loss": loss}
    ((grads, n),) = taken
    assert n == 20
    np.testing.assert_allclose(grads["0.weight"], grad.T @ task.train[0], rtol=1e-4, atol=1e-6)


def test_regression_in_the_units_of_y(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line(here / "line.csv")
    assert run("line.csv", "--hidden", "--lr", "0.05", "--epochs", "40", "--schedule", "cosine") == 0
    out = capsys.readouterr().out
    assert out.startswith("line.csv: 120 samples of 2 features, 1 output; 72 to train, 24 to validate, 24 to test\n")
    found = re.search(r"test: loss [\d.e-]+, RMSE ([\d.]+), R\^2 ([\d.]+)", out)
    assert found is not None
    assert 0.05 < float(found[1]) < 0.2  # the noise
    assert float(found[2]) == 1.0


@pytest.mark.parametrize(
    "argv",
    [
        ["--batch-size", "full", "--validation", "0", "--test", "0"],
        ["--batch-size", "1", "--norm", "layer"],
        ["--batch-size", "1000", "--time-limit", "0.000001"],
        ["--batch-size", "53"],  # one of 54 samples is left over, which batch norm could not take
        ["--schedule", "plateau"],
        ["--ema-decay", "0.9", "--patience", "1", "--test", "0"],
        ["--max-norm", "1", "--clip-value", "0.5"],
    ],
    ids=" ".join,
)
def test_other_runs(argv: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs(here / "data.npz")
    assert run("data.npz", "--epochs", "3", "--hidden", "4", *argv) == 0
    out = capsys.readouterr().out
    assert ("test: " in out) == ("--test" not in argv)
    assert ("validation: " in out) == ("--validation" not in argv and "--time-limit" not in argv)
    assert ("stopped: " in out) == ("--time-limit" in argv)


def test_without_matplotlib(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    blobs(here / "data.npz")
    assert run("data.npz", "--epochs", "1") == 0
    assert 'no curves.png: plot needs matplotlib: pip install "ironstep[plot]"' in capsys.readouterr().out
    assert cli.main(["schedule", "cosine", "--total", "10"]) == 0
    assert 'no picture: plot needs matplotlib: pip install "ironstep[plot]"' in capsys.readouterr().out
    assert cli.main(["lr-find", "data.npz", "--num", "30"]) == 0
    assert "no picture: " in capsys.readouterr().out
    assert not list(here.glob("**/*.png"))


def test_lr_find(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["lr-find", "digits", "--num", "60", "--out", "pictures"]) == 0
    out = capsys.readouterr().out
    rates = {name: float(re.search(rf"  {name} +([\d.e-]+) ", out)[1]) for name in ("valley", "steepest", "minimum")}  # type: ignore[index]
    assert all(1e-4 < rate < 1 for rate in rates.values())
    assert is_png((here / "pictures" / "lr-find.png").read_bytes())


# -- schedule ----------------------------------------------------------------------------------------------------------


def test_every_constructor_has_a_bare_name() -> None:
    makes_others = {"chain", "join", "parse", "per_epoch", "scale", "scaled_lr", "shift", "one_cycle_momentum", "add"}
    constructors = {
        name
        for name in schedules.__all__
        if name.islower() and callable(getattr(schedules, name)) and name not in makes_others
    }
    assert set(_schedule.BARE) == constructors


@pytest.mark.parametrize("name", _schedule.BARE)
def test_bare_names_are_sensible(name: str) -> None:
    for total, epoch in ((1, 1), (2, 1), (3, 2), (7, 3), (40, 4), (1000, 100), (12345, 617)):
        values = _schedule.curve(name.upper().replace("_", "-"), lr=0.5, total=total, epoch=epoch)(np.arange(total))
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 0.5 * (1 + 1e-12)
        if total >= 40:
            assert values.max() == pytest.approx(0.5, rel=0.02)
            assert (values[-1] < 0.3 * values.max()) == (name not in ("constant", "warmup")) or name == "cyclic"


def test_sketch() -> None:
    assert _schedule.sketch(np.array([1.0, 0.75, 0.5, 0.25]), 4, 3) == [
        "  1 |█▂", "    |██▄", "  0 |███▆", "     0  4",
    ]  # fmt: skip
    assert _schedule.sketch(np.array([-1.0, 0.0, 1.0]), 3, 2) == ["   1 |  █", "  -1 | ██", "      0 3"]
    assert _schedule.sketch(np.zeros(2), 2, 1) == ["  0 |", "     02"]


def test_sketch_on_a_poor_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert _schedule.sketch(np.array([1.0, 0.5]), 2, 2) == ["  1 |#", "  0 |##", "     02"]


def test_schedule(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    text = "warmup_cosine(lr, steps=total, warmup_steps=2*epoch)"
    assert cli.main(["schedule", text, "--lr", "0.2", "--total", "50", "--out", "picture.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warmup_cosine(0.2, steps=50, warmup_steps=10): 50 steps, from 0.02 to ")
    assert len(lines) == 13
    assert lines[1].startswith("  0.2 |")
    assert lines[-1] == "picture: picture.png"
    assert is_png((here / "picture.png").read_bytes())
    assert cli.main(["schedule", "step", "--out", "none"]) == 0
    assert [path.name for path in here.iterdir()] == ["picture.png"]


# -- info and bench ----------------------------------------------------------------------------------------------------


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    from ironstep import _core, get_num_threads

    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^NumPy +{re.escape(np.__version__)}$", out, re.M)
    assert re.search(rf"^threads +{get_num_threads()}\b", out, re.M)
    assert f"(available: {', '.join(_core.instruction_sets())})" in out
    assert re.search(r"^  torch +(\d|-)", out, re.M)


def test_bench_without_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_bench, "optional", lambda name: None)
    monkeypatch.setattr(_bench, "PAUSE", 0.0)
    monkeypatch.setattr(_bench, "M", 1 << 12)
    assert cli.main(["bench", "--seconds", "0.001"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^(\w.*?)  +([\d.e+-]+) +([\d.e+-]+) +- +-   [\d.e+-]+ x NumPy$", out, re.M)
    assert [row[0] for row in rows] == list(_bench.works())
    assert "not installed: torch, optax, jax" in out


def test_the_contestants_of_the_bench_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each can be called again and again; and NumPy's naive steps are ours."""
    pytest.importorskip("torch")
    pytest.importorskip("optax")
    peers = {name: _bench.optional(name) for name in ("torch", "optax", "jax")}
    monkeypatch.setattr(_bench, "M", 1 << 10)
    for name, make in _bench.works().items():
        contestants = make(peers)
        assert list(contestants) == ["ironstep", "NumPy", "torch", "JAX"], name
        for call in contestants.values():
            call()
            call()
    for make, expected in ((_bench.sgd, 3), (_bench.adamw, 3)):
        contestants = make([64], dict.fromkeys(peers))
        held = {who: variables(call) for who, call in contestants.items()}
        for _ in range(expected):
            for call in contestants.values():
                call()
        ours = held["ironstep"]["opt"].param_groups[0]["params"][0]
        np.testing.assert_allclose(held["NumPy"]["own"][0], ours, rtol=1e-6)


def variables(function: Callable[[], Any]) -> dict[str, Any]:
    """What a closure holds."""
    cells = function.__closure__ or ()
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))


# -- The demo ----------------------------------------------------------------------------------------------------------


def is_png(content: bytes) -> bool:
    return content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 5_000


def result(seed: int, labels: list[int], read: list[int], sure: list[float]) -> _recipe.Result:
    """A made-up result: image i has the value i everywhere."""
    n = len(labels)
    probabilities = np.full((n, 10), 0.01)
    probabilities[np.arange(n), read] = sure
    images = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((8, 8), np.float32)
    rows: Any = [{"epoch": epoch, "val_accuracy": 0.9} for epoch in (1, 2, 3)]
    empty = nn.Sequential()
    return _recipe.Result(
        seed,
        empty,
        {},
        schedules.constant(1),
        1,
        rows,
        2,
        images,
        np.array(labels),
        probabilities,
        0.25,
        (1, 1, n),
        1.5,
    )


def test_what_the_report_counts() -> None:
    results = [
        result(0, [0, 1, 2, 3], [0, 1, 2, 3], [0.9] * 4),
        result(1, [4, 5, 6, 5], [4, 7, 6, 8], [0.9, 0.4, 0.9, 0.6]),
    ]
    assert _recipe.line(results[1]) == (
        "seed 1: test accuracy 50.00% (2 of 4 misread), test loss 0.250, best epoch 2 of 3, 1.5 s"
    )
    report = _recipe.Report(results, 3, 3.0, "1")
    expected = np.zeros((10, 10), int)
    for true, read in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 7), (6, 6), (5, 8)):
        expected[true, read] += 1
    np.testing.assert_array_equal(report.confusion, expected)
    found = report.misread()
    assert [(image[0, 0], *rest) for image, *rest in found] == [(3, 5, 8, 0.6), (1, 5, 7, 0.4)]
    assert report.verdict == (
        "test accuracy 75.00%, mean of 2 seeds (lowest 50.00%); goal of 98.5% with every seed: NOT met"
    )
    assert _recipe.Report(results[:1], 3, 3.0, "1").verdict == (
        "test accuracy 100.00%; goal of 98.5% with every seed: met"
    )


def test_the_demo_leaves_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert cli.main(["demo", "--seeds", "2", "--epochs", "2", "--no-progress"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    seeds = re.findall(r"^seed (\d): test accuracy ([\d.]+)% \((\d+) of 359 misread\), .* epoch \d of 2, ", out, re.M)
    assert [seed for seed, *_ in seeds] == ["0", "1"]
    assert out.endswith("in demo: report.html, report.png, history.csv, model.safetensors\n")
    folder = here / "demo"
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv",
        "model.safetensors",
        "report.html",
        "report.png",
    ]
    assert is_png((folder / "report.png").read_bytes())
    rows = history(folder)
    assert [(row["seed"], row["epoch"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]

    page = (folder / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="([^"]*)"', page)
    assert len(pictures) == 3
    for picture in pictures:  # nothing is fetched from elsewhere
        assert is_png(base64.b64decode(picture.removeprefix("data:image/png;base64,"), validate=True))
    assert all(f"{accuracy}%" in page for _, accuracy, _ in seeds)
    assert "Label smoothing" in page
    assert "warmup_cosine(0.01, steps=78, warmup_steps=39)" in page

    model = _recipe.network(5)
    scaling = {"mean": np.zeros((), np.float32), "std": np.zeros((), np.float32)}
    load_state(folder / "model.safetensors", model=model, scaling=scaling)
    images, labels = load_digits()
    read = model.predict((images[:, None] - scaling["mean"]) / scaling["std"]).argmax(1)
    assert np.mean(read == labels) > 0.9


@pytest.mark.parametrize(("goal", "argv", "code"), [(1.01, [], 1), (0.0, [], 0), (1.01, ["--epochs", "2"], 0)])
def test_a_goal_that_the_recipe_misses_is_1(
    goal: float,
    argv: list[str],
    code: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(_recipe, "GOAL", goal)
    monkeypatch.setattr(_recipe, "RECIPE", _recipe.Recipe(epochs=1, seeds=1))
    assert cli.main(["demo", "--no-progress", *argv]) == code
    out, err = capsys.readouterr()
    assert bool(re.fullmatch(r"error: test accuracy .*: NOT met\n", err)) == bool(code)
    assert out.endswith("in demo: report.html, history.csv, model.safetensors\n")


def test_the_help_knows_the_seeds_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--help"]) == 0
    assert f"N - 1 (default: {_recipe.RECIPE.seeds})" in capsys.readouterr().out


def test_the_demo_without_matplotlib(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo", "--seeds", "1", "--epochs", "1", "--no-progress"]) == 0
    assert 'they need matplotlib: pip install "ironstep[plot]"' in capsys.readouterr().out
    assert sorted(path.name for path in (here / "demo").iterdir()) == [
        "history.csv",
        "model.safetensors",
        "report.html",
    ]
    assert "<img" not in (here / "demo" / "report.html").read_text(encoding="utf-8")


def test_the_recipe_reads_digits() -> None:
    """With a third of its epochs; `make demo` has all of them, and its goal."""
    with _recipe.one_blas_thread():
        result = _recipe.train(0, 7, False)
    assert result.accuracy > 0.97
    assert result.accuracy == np.mean(result.read == result.labels)
    assert result.sizes == (1258, 180, 359)
    np.testing.assert_allclose(result.probabilities.sum(1), 1, rtol=1e-5)


def test_the_recipe_goes_back_to_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a learning rate that is much too high the loss goes up and down.
    monkeypatch.setattr(_recipe, "warmup_cosine", lambda lr, steps, warmup_steps: schedules.constant(0.2))
    with _recipe.one_blas_thread():
        result = _recipe.train(1, 6, False)
    best = result.history.best("val_loss")
    assert best["epoch"] == result.best_epoch < 6
    images, labels = load_digits()
    _, validation, test = split(images, labels, fractions=_recipe.RECIPE.parts, seed=1, stratify=labels)
    np.testing.assert_array_equal(result.images, test[0])
    np.testing.assert_array_equal(result.labels, test[1])
    for (part, digits), loss in ((validation, best["val_loss"]), (test, result.loss)):
        x = (part[:, None] - result.scaling["mean"]) / result.scaling["std"]
        assert functional.cross_entropy(result.model.predict(x), digits) == pytest.approx(loss, rel=1e-5)
