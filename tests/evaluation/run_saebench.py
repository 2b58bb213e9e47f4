"""SAEBench's own core evaluation on dictionaries of ours, offline: ``python run_saebench.py JOB.json``.

A program for an environment that has ``sae_bench``, started by ``test_saebench_interop.py``. Nothing of SAEBench is replaced
but the download of the model: a tiny GPT-2 from a folder becomes the TransformerLens model that it asks for. The token
batches that SAEBench draws are written down, so that saescope can be given the same. Files of ours are read by
SAEBench's own types, which miss what is not there.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from sae_bench.evals.core import main as core
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoTokenizer, GPT2LMHeadModel

from saescope.dictionaries import load_dictionary, read_metadata
from saescope.evaluation.saebench.interface import as_saebench


def transformer_lens_model(folder: str) -> tuple[HookedTransformer, float]:
    """The model in TransformerLens, and how far its logits are from the original's."""
    original = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    sizes = original.config
    cfg = HookedTransformerConfig(
        n_layers=sizes.n_layer, d_model=sizes.n_embd, n_ctx=sizes.n_positions, d_head=sizes.n_embd // sizes.n_head,
        n_heads=sizes.n_head, d_mlp=4 * sizes.n_embd, d_vocab=sizes.vocab_size, act_fn="gelu_new",
        normalization_type="LN", eps=sizes.layer_norm_epsilon, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=False)
    model.load_state_dict(convert_gpt2_weights(original, cfg), strict=False)
    ids = torch.randint(sizes.vocab_size, (3, sizes.n_positions), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (model(ids) - original(ids).logits).abs().max()
    return model, float(difference)


OUTPUTS = {
    "core": ("core", "CoreEvalOutput"),
    "sparse_probing": ("sparse_probing", "SparseProbingEvalOutput"),
    "absorption_first_letter": ("absorption", "AbsorptionEvalOutput"),
    "scr": ("scr_and_tpp", "ScrEvalOutput"),
    "tpp": ("scr_and_tpp", "TppEvalOutput"),
    "meta_structure_decoder_variance": ("meta_structure", "MetaStructureEvalOutput"),
}


def read_by_saebench(path: str) -> dict[str, Any]:
    """A result file through SAEBench's own type: the metrics that it found there."""
    content = json.loads(Path(path).read_text())
    module, name = OUTPUTS[content["eval_type_id"]]
    output = getattr(import_module(f"sae_bench.evals.{module}.eval_output"), name)
    read = TypeAdapter(output).validate_python(content)
    return json.loads(read.to_json())


def main(job: dict[str, Any]) -> dict[str, Any]:
    model, difference = transformer_lens_model(job["model"])
    HookedTransformer.from_pretrained_no_processing = classmethod(lambda cls, *args, **kwargs: model)  # type: ignore
    drawn: list[list[list[int]]] = []
    draw = ActivationsStore.get_batch_tokens

    def noted(self: ActivationsStore, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch = draw(self, *args, **kwargs)
        drawn.append(batch.tolist())
        return batch

    ActivationsStore.get_batch_tokens = noted  # type: ignore
    files, batches, complaints = {}, {}, {}
    for name, folder in job["dictionaries"].items():
        drawn.clear()
        sae = as_saebench(load_dictionary(folder), read_metadata(folder))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            core.multiple_evals(
                selected_saes=[(name, sae)],
                output_folder=job["out"],
                device="cpu",
                dataset=job["text"],
                **job["settings"],
            )
        path = Path(job["out"]) / f"{name}_custom_sae_eval_results.json"
        files[name], batches[name] = (str(path) if path.exists() else None), list(drawn)
        complaints[name] = [str(w.message) for w in caught if "Decoder weights" in str(w.message)]
    return {
        "difference_of_logits": difference,
        "files": files,
        "batches": batches,
        "complaints": complaints,
        "read": [read_by_saebench(path) for path in job["ours"]],
    }


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
