"""Runs inside the environment of dictionary-learning: makes cases with its own classes, and opens what was written here.

    python dictionary_learning_peer.py make FOLDER     FOLDER/CASE/files/..., FOLDER/CASE/expected.safetensors
    python dictionary_learning_peer.py check FOLDER    FOLDER/CASE/files/... -> FOLDER/CASE/found.safetensors

A case's tensors: ``x [B, d]``, ``f [B, F]``, ``x_hat [B, d]`` as the library computes them, and ``f64``, ``x_hat64`` in
double precision with the same weights.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from safetensors.torch import load_file, save_file

D, F, TOKENS, K = 6, 16, 24, 3
GROUPS = [4, 12]
MAKERS = {
    "AutoEncoder": lambda: AutoEncoder(D, F),
    "AutoEncoderNew": lambda: AutoEncoderNew(D, F),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, F),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, F),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, GROUPS),
}
BUFFER = {
    "d_submodule": D, "io": "out", "n_ctxs": 100, "ctx_len": 48, "refresh_batch_size": 4, "out_batch_size": 8,
    "device": "cpu",
}  # fmt: skip


def randomised(ae: torch.nn.Module) -> torch.nn.Module:
    """Everything random: biases, thresholds, rows of other norms than 1."""
    with torch.no_grad():
        for name, tensor in [*ae.named_parameters(), *ae.named_buffers()]:
            if name == "threshold":
                tensor.copy_(0.2 + torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.ndim < 2 else 0.7))
    return ae


def outputs(ae: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        f = ae.encode(x)
        single = {"x": x, "f": f, "x_hat": ae.decode(f)}
        ae.double()
        f = ae.encode(x.double())
        double = {"f64": f, "x_hat64": ae.decode(f)}
        ae.float()
    return single | double


def save(ae: torch.nn.Module, folder: Path, config: dict, name: str = "ae.pt") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: value.cpu() for key, value in ae.state_dict().items()}, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=4))


def config_of(dict_class: str) -> dict:
    trainer = {
        "dict_class": dict_class, "trainer_class": "Trainer", "activation_dim": D, "dict_size": F, "lr": 1e-3,
        "steps": 10, "seed": 0, "device": "cpu", "layer": 3, "lm_name": "toy/model", "wandb_name": "w",
        "submodule_name": "resid_post_layer_3",
    }  # fmt: skip
    if "TopK" in dict_class:
        trainer["k"] = K
    return {"trainer": trainer, "buffer": BUFFER}


class Batches(list):
    config = BUFFER


def trained(folder: Path, name: str, **how: object) -> None:
    """A short run of its own training loop, with its own saver and config; activations far from norm 1."""
    torch.manual_seed(7)
    trainers = {
        "StandardTrainer": {"trainer": StandardTrainer, "l1_penalty": 0.01, "warmup_steps": 2},
        "AprilUpdate": {"trainer": StandardTrainerAprilUpdate, "l1_penalty": 0.01, "warmup_steps": 2},
        "PAnneal": {"trainer": PAnnealTrainer, "initial_sparsity_penalty": 0.01, "warmup_steps": 2, "anneal_start": 3},
        "GatedSAETrainer": {"trainer": GatedSAETrainer, "l1_penalty": 0.01, "warmup_steps": 2},
        "JumpReluTrainer": {"trainer": JumpReluTrainer, "target_l0": 4.0, "warmup_steps": 2},
        "TopKTrainer": {"trainer": TopKTrainer, "k": K, "warmup_steps": 2, "threshold_start_step": 2},
        "BatchTopKTrainer": {"trainer": BatchTopKTrainer, "k": K, "warmup_steps": 2, "threshold_start_step": 2},
        "MatryoshkaTrainer": {
            "trainer": MatryoshkaBatchTopKTrainer, "k": K, "warmup_steps": 2, "threshold_start_step": 2,
            "group_fractions": [0.25, 0.75],
        },
    }  # fmt: skip
    settings = dict(trainers[name])
    settings |= {
        "activation_dim": D, "dict_size": F, "steps": 12, "layer": 3, "lm_name": "toy/model", "device": "cpu", "seed": 1,
        "submodule_name": "resid_post_layer_3",
    }  # fmt: skip
    if "k" not in settings:
        settings["sparsity_warmup_steps"] = 2
    batches = Batches(5 * torch.randn(TOKENS, D) + 2 for _ in range(13))
    trainSAE(
        batches, trainer_configs=[settings], steps=12, save_dir=str(folder / "run"), save_steps=[6], device="cpu",
        normalize_activations=True, **how,
    )  # fmt: skip
    (folder / "run" / "trainer_0").rename(folder / "files")
    (folder / "run").rmdir()


def make(root: Path) -> None:
    for number, (dict_class, maker) in enumerate(MAKERS.items()):
        torch.manual_seed(number)
        ae = randomised(maker())
        folder = root / dict_class
        save(ae, folder / "files", config_of(dict_class))
        x = torch.randn(TOKENS, D)
        save_file(contiguous(outputs(ae, x)), folder / "expected.safetensors")

        # in units of a run that divides activations by 3; its backup beside an optimizer, which no release writes
        torch.manual_seed(100 + number)
        ae = randomised(maker())
        optimizer = torch.optim.Adam(ae.parameters())
        ae.decode(ae.encode(x)).sum().backward()
        optimizer.step()
        folder = root / f"{dict_class}-interrupted"
        save(ae, folder / "files", config_of(dict_class))
        backup = {
            "step": 4, "ae": ae.state_dict(), "optimizer": optimizer.state_dict(),
            "config": config_of(dict_class)["trainer"], "norm_factor": 3.0,
        }  # fmt: skip
        torch.save(backup, folder / "files" / "ae.pt")
        with torch.no_grad():
            if hasattr(ae, "scale_biases"):
                ae.scale_biases(3.0)
            else:  # AutoEncoderNew, which has been left behind
                ae.encoder.bias *= 3.0
                ae.decoder.bias *= 3.0
        save_file(contiguous(outputs(ae, x)), folder / "expected.safetensors")

    # as its own loader opens it: decoder rows of norm 1
    torch.manual_seed(50)
    ae = randomised(AutoEncoder(D, F))
    folder = root / "AutoEncoder-normalised"
    save(ae, folder / "files", config_of("AutoEncoder"))
    opened, _ = load_dictionary(str(folder / "files"), "cpu")
    found = outputs(opened, torch.randn(TOKENS, D))
    del found["f64"], found["x_hat64"]  # the norms are taken in single precision
    save_file(contiguous(found), folder / "expected.safetensors")

    names = (
        "StandardTrainer", "AprilUpdate", "PAnneal", "GatedSAETrainer", "JumpReluTrainer", "TopKTrainer",
        "BatchTopKTrainer", "MatryoshkaTrainer",
    )  # fmt: skip
    for name in names:
        folder = root / f"trained-{name}"
        trained(folder, name)
        dict_class = json.loads((folder / "files" / "config.json").read_text())["trainer"]["dict_class"]
        x = 5 * torch.randn(TOKENS, D) + 2
        ae = MAKERS[dict_class]()
        ae.load_state_dict(torch.load(folder / "files" / "ae.pt"))
        save_file(contiguous(outputs(ae, x)), folder / "expected.safetensors")
        ae.load_state_dict(torch.load(folder / "files" / "checkpoints" / "ae_6.pt"))
        found = outputs(ae, x)
        del found["f64"], found["x_hat64"]
        save_file(contiguous(found), folder / "expected-checkpoint.safetensors")


def check(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        opened, config = load_dictionary(str(folder / "files"), "cpu")
        x = load_file(folder / "x.safetensors")["x"]
        if "float64" in folder.name:  # its loaders make modules of single precision: the class itself can hold more
            opened.double()
            opened.load_state_dict(torch.load(folder / "files" / "ae.pt"))
        with torch.no_grad():
            f = opened.encode(x)
            found = {"f": f, "x_hat": opened.decode(f)}
        save_file(contiguous(found), folder / "found.safetensors")
        print(f"{folder.name}: {type(opened).__name__}, {config['trainer']['dict_class']}")


def contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().contiguous() for key, value in tensors.items()}


if __name__ == "__main__":
    print("dictionary-learning", importlib.metadata.version("dictionary-learning"), "torch", torch.__version__)
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
