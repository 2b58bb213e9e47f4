"""Dictionaries of overcomplete, and of the copy of it in interpreto: made, saved and run by the library's own code.

    python overcomplete_peer.py make FOLDER overcomplete|interpreto

writes ``FOLDER/CASE/files/sae.pt`` with the library's state dict, ``expected.safetensors`` with x, the codes f and the
reconstruction x_hat that the library computes, and ``said.json`` with what such a file does not hold. It runs in an
environment of its own and imports nothing of saescope.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

D, C, P, K = 6, 17, 23, 4  # width, features, points, firings
NOT_INSTALLED = 3  # exit status

Case = tuple[str, Callable[[], Any], dict[str, Any]]


def library(name: str) -> Any:
    """``sae`` of overcomplete, with what it imports for pictures alone stood in for, or of interpreto's copy."""
    import matplotlib
    import matplotlib.pyplot as plt

    if name == "interpreto":
        return importlib.import_module("interpreto._vendor.overcomplete.sae")
    stub, parts = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    stub.transforms = parts  # type: ignore[attr-defined]
    sys.modules["torchvision"] = stub
    if not hasattr(plt.cm, "get_cmap"):
        plt.cm.get_cmap = lambda name=None, lut=None: matplotlib.colormaps[name or "viridis"]  # type: ignore[attr-defined]
    try:
        return importlib.import_module("overcomplete.sae")
    finally:
        del sys.modules["torchvision"]  # transformers would take it for the real one


def cases(sae: Any) -> Iterator[Case]:
    """Every class with every normalisation, linear encoder and dictionary that it has."""
    points = torch.randn(P, D)
    for mode in ("l2", "l1", "max_l2", "max_l1", "identity"):
        for multiplier in (False, True):
            how = {"normalization": mode, "use_multiplier": multiplier}
            yield (
                f"topk-{mode}-{multiplier}",
                lambda how=how: sae.TopKSAE(D, C, top_k=K, dictionary_params=how),
                {"sae_class": "TopKSAE", "k": K, "normalization": mode},
            )
    yield "plain", lambda: sae.SAE(D, C), {"sae_class": "SAE"}
    yield "plain-multiplied", lambda: sae.SAE(D, C, dictionary_params={"use_multiplier": True}), {"sae_class": "SAE"}
    yield "topk-default", lambda: sae.TopKSAE(D, 40), {"k": 4}
    yield "batchtopk", lambda: sae.BatchTopKSAE(D, C, top_k=60), {"sae_class": "BatchTopKSAE"}
    yield "jump", lambda: sae.JumpSAE(D, C), {}
    yield "jump-multiplied", lambda: sae.JumpSAE(D, C, dictionary_params={"use_multiplier": True}), {}
    for delta in (1.0, 0.3):
        yield (
            f"ra-topk-{delta}",
            lambda delta=delta: sae.RATopKSAE(D, C, points=points, top_k=K, delta=delta),
            {"sae_class": "RATopKSAE", "k": K, "delta": delta},
        )
        yield (
            f"ra-jump-{delta}",
            lambda delta=delta: sae.RAJumpSAE(D, C, points=points, delta=delta, use_multiplier=False),
            {"delta": delta},
        )
    for bias in (False, True):
        yield f"tied-{bias}", lambda bias=bias: sae.TopKSAE(D, C, top_k=K).tied(bias=bias), {"k": K}
        yield f"untied-{bias}", lambda bias=bias: sae.JumpSAE(D, C).untied(bias=bias), {}
        yield f"tied-jump-{bias}", lambda bias=bias: sae.JumpSAE(D, C).tied(bias=bias), {}
        yield (
            f"ra-tied-{bias}",
            lambda bias=bias: sae.RATopKSAE(D, C, points=points, top_k=K).tied(bias=bias),
            {"k": K},
        )
    for mode in ("l2", "max_l2", "l1"):
        yield (
            f"pursuit-{mode}",
            lambda mode=mode: sae.MpSAE(D, C, k=K, dictionary_params={"normalization": mode}),
            {"sae_class": "MpSAE", "k": K, "normalization": mode},
        )
    # as interpreto makes it: with the default encoder, which is never used
    yield "pursuit-unused", lambda: sae.MpSAE(D, C, k=K, encoder_module=None), {"sae_class": "MpSAE", "k": K}


def randomised(model: Any) -> Any:
    """Random biases, thresholds, multipliers; rows far from norm 1, as after a step of the optimizer."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last == "multiplier":
                parameter.fill_(0.35)
            elif last == "W":
                parameter.copy_(torch.rand_like(parameter) - 0.2)
            elif parameter.ndim == 1:
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.mul_(1 + 2 * torch.rand(len(parameter), 1))
    return model


def make(folder: Path, sae: Any, prefix: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for number, (name, build, said) in enumerate(cases(sae)):
            torch.manual_seed(number)
            model = randomised(build()).to(dtype)
            model.train()
            x = 2 * torch.randn(64, D, dtype=dtype)
            said = dict(said)
            with torch.no_grad():
                if name == "batchtopk":
                    model(2 * torch.randn(64, D, dtype=dtype))  # another batch sets the threshold
                    said["threshold"] = model.running_threshold.item()
                # before eval(), which brings the stored rows to their norm, as opening the file does again
                stored = {key: value.detach().clone() for key, value in model.state_dict().items()}
                model.eval()
                _, f = model.encode(x)
                x_hat = model.decode(f)
            home = folder / f"{prefix}-{name}-{str(dtype).removeprefix('torch.')}"
            (home / "files").mkdir(parents=True)
            torch.save(stored, home / "files" / "sae.pt")
            save_file({"x": x, "f": f.contiguous(), "x_hat": x_hat.contiguous()}, home / "expected.safetensors")
            (home / "said.json").write_text(json.dumps(said))


def refused(folder: Path, sae: Any, prefix: str) -> None:
    """What can not be opened: other encoders, and classes that compute something else."""
    torch.manual_seed(0)
    models = {
        "mlp": (sae.TopKSAE(D, C, top_k=K, encoder_module="mlp_bn_1"), {"k": K}),
        "mlp3": (sae.TopKSAE(D, C, top_k=K, encoder_module="mlp_ln_3"), {"k": K}),
        "quantised": (sae.QSAE(D, C), {}),
        "orthogonal": (sae.OMPSAE(D, C, k=K), {"sae_class": "OMPSAE"}),
        "long": (sae.MpSAE(D, C, k=K, dictionary_params={"normalization": "identity"}), {
            "sae_class": "MpSAE", "k": K, "normalization": "identity",
        }),
    }  # fmt: skip
    for name, (model, said) in models.items():
        home = folder / f"{prefix}-{name}"
        (home / "files").mkdir(parents=True)
        torch.save(randomised(model).state_dict(), home / "files" / "sae.pt")
        (home / "said.json").write_text(json.dumps(said))


def main() -> int:
    if len(sys.argv) != 4 or sys.argv[1] != "make" or sys.argv[3] not in ("overcomplete", "interpreto"):
        print(f"usage: {sys.argv[0]} make FOLDER overcomplete|interpreto")
        return 2
    folder, name = Path(sys.argv[2]), sys.argv[3]
    try:
        sae = library(name)
    except ImportError as error:
        print(f"{name} can not be imported here: {error}")
        return NOT_INSTALLED
    make(folder / "opened", sae, name)
    refused(folder / "refused", sae, name)
    print(f"{name} {importlib.metadata.version(name)}, torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
