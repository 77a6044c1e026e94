"""The optimisers inside what people train with: DDP, the Trainer of transformers, Lightning, accelerate.

Nothing in these programs knows of ironstep: only the optimiser and the scheduler are ours. Every run begins with the
same weights and sees the same batches as its twin with `torch.optim`.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ironstep import schedules
from ironstep.torch import Scheduler, optim

TIMEOUT = 120.0
STEPS, HALF, BATCH, LENGTH, VOCABULARY = 12, 6, 4, 8, 32
LR = {
    "AdamW": schedules.warmup_cosine(0.01, steps=STEPS, warmup_steps=3),
    "SGD": schedules.warmup_cosine(0.3, steps=STEPS, warmup_steps=3),
}
BETA = schedules.linear(0.8, 0.9, STEPS)
SAME_CURVE = {"rel": 1e-4}
"""Losses in float32 after steps that round differently: 1e-4 of the loss. They fall by a tenth and more."""

Make = Callable[[Any], Any]
OURS: dict[str, Make] = {
    "AdamW": lambda params: optim.AdamW(params, lr=1.0, weight_decay=0.1),
    "SGD": lambda params: optim.SGD(params, lr=1.0, momentum=0.9, nesterov=True),
}
TORCHS: dict[str, Make] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1.0, weight_decay=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9, nesterov=True),
}
every_optimiser = pytest.mark.parametrize("name", list(OURS))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Two busy threads of torch and a small model wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def imported(name: str, *parts: str) -> ModuleType:
    """A package, and those parts of it that it imports when they are asked for. What it warns of is not about us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
        for part in parts:
            getattr(module, part)
        return module


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    module = imported("transformers", "Trainer", "TrainingArguments", "LlamaForCausalLM")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    module = imported("lightning")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return module


@pytest.fixture(scope="module")
def accelerate() -> ModuleType:
    return imported("accelerate")


def scheduled(opt: Any, name: str) -> Scheduler:
    return Scheduler(opt, lr=LR[name], **({"betas": (BETA, 0.99)} if name == "AdamW" else {"momentum": BETA}))


def assert_same(a: Any, b: Any) -> None:
    """The parameters of two models, to the bit."""
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


def assert_like(own: list[float], theirs: list[float]) -> None:
    """One loss curve like the other, and it goes down."""
    assert len(own) == len(theirs) == STEPS
    assert own == pytest.approx(theirs, **SAME_CURVE)
    assert min(own[-3:]) < 0.9 * own[0]


def sequences() -> list[dict[str, Any]]:
    """Counting up from somewhere, which is soon learnt."""
    first = torch.randint(VOCABULARY, (STEPS * BATCH, 1), generator=torch.Generator().manual_seed(1))
    tokens = (first + torch.arange(LENGTH)) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in tokens]


class Small(torch.nn.Module):
    """A transformer of two layers, which gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCABULARY, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Any, labels: Any) -> Any:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        logits = self.head(self.layers(self.embedding(input_ids), mask, is_causal=True))
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))


# -- transformers ------------------------------------------------------------------------------------------------------


def train_llama(hf: ModuleType, make: Make, name: str, folder: Path, **kwargs: Any) -> tuple[Any, list[float]]:
    """A Llama of two layers, trained by the `Trainer`: the model and the loss of each step."""
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.1,
            max_position_embeddings=LENGTH,
        )
    )
    losses: list[float] = []
    model.register_forward_hook(lambda module, args, out: losses.append(out.loss.item()))
    opt = make(model.parameters())
    trainer = hf.Trainer(
        model=model,
        args=hf.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            save_strategy="steps" if "save" in kwargs else "no",
            save_steps=HALF,
        ),
        train_dataset=sequences(),
        optimizers=(opt, scheduled(opt, name)),
    )
    trainer.train(resume_from_checkpoint=kwargs.get("resume"))
    return model, losses


@every_optimiser
def test_the_trainer_of_transformers_and_its_checkpoints(transformers: ModuleType, name: str, tmp_path: Path) -> None:
    model, losses = train_llama(transformers, OURS[name], name, tmp_path, save=True)
    _, theirs = train_llama(transformers, TORCHS[name], name, tmp_path)
    assert_like(losses, theirs)
    resumed, rest = train_llama(transformers, OURS[name], name, tmp_path, resume=str(tmp_path / f"checkpoint-{HALF}"))
    assert rest == losses[HALF:]
    assert_same(resumed, model)


# -- Lightning ---------------------------------------------------------------------------------------------------------


def train_lightning(
    lightning: ModuleType, make: Make, name: str, save: Path | None = None, resume: Path | None = None
) -> tuple[Any, list[float]]:
    """The small transformer as a `LightningModule`, for two epochs: the module and the loss of each step."""

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()
            self.losses: list[float] = []

        def training_step(self, batch: Any, index: int) -> Any:
            # Dropout that does not depend on what was run before, so that a resumed run can be compared.
            torch.manual_seed(self.global_step)
            loss = self.model(**batch)
            self.losses.append(loss.item())
            return loss

        def on_train_epoch_end(self) -> None:
            if save is not None and self.current_epoch == 0:
                self.trainer.save_checkpoint(save)

        def configure_optimizers(self) -> Any:
            opt = make(self.parameters())
            return {"optimizer": opt, "lr_scheduler": {"scheduler": scheduled(opt, name), "interval": "step"}}

    module = Module()
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    # The same batch again and again, since a resumed trainer does not begin with the one that would have come next.
    loader = torch.utils.data.DataLoader(sequences()[:BATCH] * HALF, batch_size=BATCH)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume)
    return module, module.losses


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@every_optimiser
def test_lightning_and_its_checkpoints(lightning: ModuleType, name: str, tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    module, losses = train_lightning(lightning, OURS[name], name, save=path)
    _, theirs = train_lightning(lightning, TORCHS[name], name)
    assert_like(losses, theirs)
    resumed, rest = train_lightning(lightning, OURS[name], name, resume=path)
    assert rest == losses[HALF:]
    assert_same(resumed, module)


# -- accelerate --------------------------------------------------------------------------------------------------------


def train_accelerate(
    accelerate: ModuleType, make: Make, name: str, save: Path | None = None, resume: Path | None = None
) -> tuple[Any, list[float]]:
    """With two batches for each step, and limited gradients, as its guide has it: the model and each batch's loss."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = Small()
    opt = make(model.parameters())
    loader = torch.utils.data.DataLoader(sequences(), batch_size=BATCH)  # type: ignore[arg-type]
    model, opt, loader, scheduler = accelerator.prepare(model, opt, loader, scheduled(opt, name))
    losses, first = [], 0
    if resume is not None:
        accelerator.load_state(str(resume))
        loader, first = accelerator.skip_first_batches(loader, HALF), HALF
    for i, batch in enumerate(loader, first):
        torch.manual_seed(i)
        with accelerator.accumulate(model):
            loss = model(**batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            scheduler.step()
            opt.zero_grad()
        losses.append(loss.item())
        if save is not None and i == HALF - 1:
            accelerator.save_state(str(save))
    return model, losses


@every_optimiser
def test_accelerate_and_its_checkpoints(accelerate: ModuleType, name: str, tmp_path: Path) -> None:
    model, losses = train_accelerate(accelerate, OURS[name], name, save=tmp_path)
    _, theirs = train_accelerate(accelerate, TORCHS[name], name)
    assert_like(losses, theirs)
    resumed, rest = train_accelerate(accelerate, OURS[name], name, resume=tmp_path)
    assert rest == losses[HALF:]
    assert_same(resumed, model)


# -- DDP ---------------------------------------------------------------------------------------------------------------

DDP = """
    import os
    import sys
    import torch
    import torch._dynamo  # which DDP imports, for longer than all the rest takes
    import torch.distributed as dist
    from ironstep.torch import optim

    torch.set_num_threads(1)
    folder = sys.argv[1]
    # A fork, while there are no threads yet, since the imports take so long.
    child = os.fork()
    rank = 0 if child else 1
    MAKE = {
        "AdamW": lambda params: optim.AdamW(params, lr=0.01, weight_decay=0.1, max_norm=0.5),
        "LAMB": lambda params: optim.LAMB(params, lr=0.01),
        "SGD": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    }

    def train(make, ranks, rank):
        torch.manual_seed(0)
        nn = torch.nn
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))
        model = model.double()
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
        opt = make(wrapped.parameters())
        x, t = torch.randn(5, 8, 6).double(), torch.randint(3, (5, 8))
        first = [param.detach().clone() for param in model.parameters()]
        for inputs, targets in zip(x, t):
            mine = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
            opt.zero_grad()
            torch.nn.functional.cross_entropy(wrapped(inputs[mine]), targets[mine]).backward()
            opt.step()
        return {"before": first, "after": [param.detach() for param in model.parameters()]}

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    together = {name: train(make, 2, rank) for name, make in MAKE.items()}
    dist.destroy_process_group()
    alone = {name: train(make, 1, 0) for name, make in MAKE.items()}
    torch.save({"together": together, "alone": alone}, f"{folder}/{rank}.pt")
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_with_ddp_train_as_one_with_the_joint_batch(tmp_path: Path) -> None:
    script = textwrap.dedent(DDP)
    # The address of gloo is that of the host's name, which may be none of this machine's in a container.
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    # A session of its own, so that both processes can be ended.
    pair = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=env, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        errors = pair.communicate(timeout=TIMEOUT)[1].decode()
    except BaseException:
        os.killpg(pair.pid, signal.SIGKILL)
        raise
    assert pair.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, out in first["together"].items():
        for i, param in enumerate(out["after"]):
            assert torch.equal(param, second["together"][name]["after"][i]), name
            torch.testing.assert_close(param, first["alone"][name]["after"][i], rtol=1e-12, atol=1e-12, msg=name)
            assert (param - out["before"][i]).abs().max() > 1e-3, name
