"""Runs inside the environment of eai-sparsify: makes cases with its own classes, and opens what was written here.

    python sparsify_peer.py make FOLDER     FOLDER/CASE/files/HOOKPOINT/..., FOLDER/CASE/expected.safetensors
    python sparsify_peer.py check FOLDER    FOLDER/CASE/files/... -> FOLDER/CASE/found.safetensors

A case's tensors: ``x [B, d]``, ``f [B, F]`` (spread out), ``x_hat [B, d]`` as the library computes them, and ``f64``,
``x_hat64`` in double precision with the same weights.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # triton may be there without a GPU

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, TOKENS, K = 6, 24, 4
CASES = {
    "sae": {},
    "transcoder": {"transcode": True},
    "skip-transcoder": {"transcode": True, "skip_connection": True},
    "skip-sae": {"skip_connection": True},
    "multi-topk": {"multi_topk": True, "normalize_decoder": False},
    "few-positive": {"k": 14},
    "expansion": {"num_latents": 0, "expansion_factor": 3},
}
HOOK_POINTS = ("layers.5", "layers.5.mlp", "h.3.attn", "embed_tokens")


def outputs(coder: SparseCoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for name, dtype in (("", torch.float32), ("64", torch.float64)):
        coder.to(dtype)
        with torch.no_grad():
            encoded = coder.encode(x.to(dtype))
            f = torch.zeros(len(x), coder.num_latents, dtype=dtype)
            f.scatter_(1, encoded.top_indices, encoded.top_acts)
            # where it trains with Multi-TopK, forward gives the reconstruction by 4 k features
            x_hat = (
                coder.decode(encoded.top_acts, encoded.top_indices)
                if coder.cfg.multi_topk
                else coder(x.to(dtype)).sae_out
            )
            found |= {f"f{name}": f, f"x_hat{name}": x_hat}
    coder.float()
    return {"x": x, **{key: value.contiguous() for key, value in found.items()}}


def make(root: Path) -> None:
    number = 0
    for activation in ("topk", "groupmax"):
        for name, settings in CASES.items():
            if activation == "groupmax" and name in ("few-positive", "multi-topk"):
                continue
            number += 1
            torch.manual_seed(number)
            settings = {"num_latents": 16, "k": 3 if name == "expansion" else K, "activation": activation, **settings}
            coder = SparseCoder(D, SparseCoderConfig(**settings))
            with torch.no_grad():
                for parameter in coder.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.7)
            folder = root / f"{activation}-{name}"
            coder.save_to_disk(folder / "files" / HOOK_POINTS[number % len(HOOK_POINTS)])
            save_file(outputs(coder, torch.randn(TOKENS, D)), folder / "expected.safetensors")


def check(root: Path) -> None:
    for folder in sorted(root.iterdir()):
        coder = SparseCoder.load_from_disk(folder / "files")
        x = load_file(folder / "x.safetensors")["x"]
        with torch.no_grad():
            encoded = coder.encode(x)
            f = torch.zeros(len(x), coder.num_latents, dtype=x.dtype).scatter_(1, encoded.top_indices, encoded.top_acts)
            save_file({"f": f, "x_hat": coder(x).sae_out.contiguous()}, folder / "found.safetensors")
        print(f"{folder.name}: {json.dumps(coder.cfg.to_dict())}")


if __name__ == "__main__":
    print("eai-sparsify", importlib.metadata.version("eai-sparsify"), "torch", torch.__version__)
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
