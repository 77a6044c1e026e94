"""`info`: what a bug report should say."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import __version__, _core, get_num_threads

EXTRAS = {
    "matplotlib": "pictures",
    "tqdm": "progress bars",
    "scipy": "optimize.minimize",
    "threadpoolctl": "BLAS threads of the demo",
    "ml_dtypes": "bfloat16",
    "safetensors": "reading checkpoints elsewhere",
    "torch": "peer",
    "jax": "peer",
    "optax": "peer",
}
"""Packages that something here works with, and what for."""


def facts() -> dict[str, str]:
    """What a bug report should say of the machine."""
    import platform

    sets = _core.instruction_sets()
    return {
        "ironstep": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()}"
        f"{'' if getattr(sys, '_is_gil_enabled', lambda: True)() else ', without GIL'})",
        "NumPy": np.__version__,
        "platform": f"{platform.platform()}, {platform.machine()}",
        "processor": _processor(),
        "cores": f"{_cores()} that this process may use",
        "threads": f"{get_num_threads()}"
        + (f" (IRONSTEP_NUM_THREADS={n})" if (n := os.environ.get("IRONSTEP_NUM_THREADS")) else ""),
        "instruction set": f"{sets[-1]} (available: {', '.join(sets)})",
    }


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _processor() -> str:
    import platform

    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """Of installed packages, without importing them."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def info(options: argparse.Namespace) -> None:
    """The command."""
    print("\n".join(f"{name:<16} {value}" for name, value in facts().items()))
    print("\noptional packages")
    for name, version in versions(list(EXTRAS)).items():
        print(f"  {name:<14} {version or '-':<12} {EXTRAS[name]}")
