"""SAELens' side of the interoperability test; runs in the environment of the other libraries and imports nothing of ours.

    python saelens.py make FOLDER     FOLDER/<case>/files as SAELens saves them, and what it computes from them
    python saelens.py check FOLDER    open FOLDER/<case>/files with SAELens, and write what it computes from the inputs there

A case holds ``expected.safetensors`` (x, f, x_hat), and ``case.json`` with what the reader is to be told (``overrides``).
B  tokens, d_in  width, d_out  width of a transcoder's output, d_sae  features.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAETrainer, TrainingSAE, __version__
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file
from torch import Tensor

B, D_IN, D_OUT, D_SAE, HEADS = 30, 6, 5, 10, 2
SCALE = 0.4
DTYPES = ("float32", "float64")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
INFERENCE = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", *TRANSCODERS)
TRAINING = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", "batchtopk", "matryoshka_batchtopk")


def random_weights(sae: Any, generator: torch.Generator) -> None:
    """Everything random: no bias and no threshold is 0, rows are of unequal norms where they may be."""
    rows_of_norm_1 = sae.cfg.architecture() == "matching_pursuit"
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name == "threshold":
            drawn = 0.8 * drawn.abs() - 0.1  # some below 0
        elif name == "topk_threshold":
            drawn = 0.3 + drawn.abs()
        elif name in ("b_enc", "b_gate", "b_mag", "r_mag"):
            drawn = 0.4 * drawn
        elif name == "W_dec":
            drawn = torch.nn.functional.normalize(drawn, dim=-1)
            if not rows_of_norm_1:
                drawn *= torch.linspace(0.3, 2, D_SAE, dtype=torch.float64)[:, None]
        tensor.data = drawn.to(tensor.dtype)


def inputs(seed: int, dtype: torch.dtype, *, sequences: bool = False) -> Tensor:
    """Tokens ``[B, d_in]``, or the same as sequences."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = (2 * torch.randn(B, D_IN, generator=generator, dtype=torch.float64)).to(dtype)
    return x.unflatten(0, (3, -1)) if sequences else x


@torch.no_grad()
def computed(sae: Any, x: Tensor) -> dict[str, Tensor]:
    """Codes and output; at hook_z SAELens wants the heads one by one."""
    given = x.reshape(len(x), HEADS, -1) if sae.cfg.reshape_activations == "hook_z" else x
    f = sae.encode(given)
    return {"x": x, "f": f.contiguous(), "x_hat": sae(given).reshape(*x.shape[:-1], -1).contiguous()}


def config(kind: str, dtype: str, training: bool = False, **more: Any) -> Any:
    """SAELens' own configuration."""
    needed: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "dtype": dtype}
    if "transcoder" in kind:
        needed |= {"d_out": D_OUT, "apply_b_dec_to_input": False}
    if "topk" in kind:
        needed |= {"k": 2.5 if "batchtopk" in kind else 3}
    if kind == "matryoshka_batchtopk":
        needed |= {"matryoshka_widths": [3, 6, D_SAE]}
    if kind == "matching_pursuit":
        needed |= {"residual_threshold": 0.8, "max_iterations": 4}
        if training:
            needed |= {"decoder_init_norm": 1.0}
    cls = (get_sae_training_class if training else get_sae_class)(kind)[1]
    made = cls(**(needed | more))
    made.metadata.model_name, made.metadata.hook_name = "tiny", made.metadata.hook_name or "blocks.0.hook_resid_pre"
    made.metadata.context_size, made.metadata.prepend_bos = 16, False
    return made


def made_sae(kind: str, seed: int, dtype: str, training: bool = False, **more: Any) -> Any:
    sae = (get_sae_training_class if training else get_sae_class)(kind)[0](config(kind, dtype, training, **more))
    random_weights(sae, torch.Generator().manual_seed(seed))
    return sae


def whitening(seed: int) -> ActivationWhitening:
    generator = torch.Generator().manual_seed(seed)
    scaler = ActivationScaler()
    mixing = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    sample = torch.randn(400, D_IN, generator=generator, dtype=torch.float64) @ mixing + 2
    scaler.estimate_whitening(D_IN, iter([sample, sample]), n_batches_for_norm_estimate=2)
    assert scaler.whitening is not None
    return scaler.whitening


def exported(sae: Any, folder: Path) -> Any:
    """The finished dictionary as SAELens opens it again."""
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


class Cases:
    """Writes cases into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seed = folder, 0

    def add(
        self, name: str, save: Callable[[Path], Any], dtype: str, /, overrides: dict[str, Any] | None = None
    ) -> None:
        """``save`` writes the files and gives the SAELens object that computes what is expected."""
        case = self.folder / name
        (case / "files").mkdir(parents=True)
        sae = save(case / "files")
        x = inputs(self.seed, getattr(torch, dtype), sequences=sae.cfg.architecture() == "temporal")
        save_file(computed(sae, x), case / "expected.safetensors")
        (case / "case.json").write_text(json.dumps({"overrides": overrides or {}}))


def finished(cases: Cases) -> None:
    """Inference classes, in every way of centring and normalising."""
    for kind, dtype in itertools.product(INFERENCE, DTYPES):
        for norm, centred in itertools.product(("none", "layer_norm", "constant_norm_rescale"), (True, False)):
            if ("transcoder" in kind and centred) or ("skip" in kind and norm != "none"):
                continue
            for by_norm in (True, False) if kind in ("topk", "abstopk") else (None,):
                more = {} if by_norm is None else {"rescale_acts_by_decoder_norm": by_norm}
                cases.seed += 1
                sae = made_sae(
                    kind, cases.seed, dtype, apply_b_dec_to_input=centred, normalize_activations=norm, **more
                )

                def save(folder: Path, sae: Any = sae) -> Any:
                    sae.save_model(folder)
                    return SAE.load_from_disk(folder)

                how = (
                    f"{norm}-{'centred' if centred else 'raw'}" + {None: "", True: "-bynorm", False: "-plain"}[by_norm]
                )
                cases.add(f"{kind}-{dtype}-{how}", save, dtype)


def temporal(cases: Cases) -> None:
    """Weights tied or not, both kinds of novel codes, one layer of attention or two, with and without a factor."""
    for dtype, tied, kind, centred in itertools.product(DTYPES, (True, False), ("topk", "relu"), (True, False)):
        cases.seed += 1
        scaled = kind == "topk"
        sae = made_sae(
            "temporal", cases.seed, dtype, n_heads=2, n_attn_layers=2 if tied else 1, bottleneck_factor=5,
            sae_diff_type=kind, kval_topk=3 if scaled else None, tied_weights=tied, apply_b_dec_to_input=centred,
            normalize_activations="constant_scalar_rescale" if scaled else "none",
            activation_normalization_factor=SCALE if scaled else 1.0,
        )  # fmt: skip

        def save(folder: Path, sae: Any = sae) -> Any:
            sae.save_model(folder)
            return SAE.load_from_disk(folder)

        name = f"temporal-{dtype}-{'tied' if tied else 'untied'}-{kind}-{'centred' if centred else 'raw'}"
        cases.add(name, save, dtype)


def published(cases: Cases) -> None:
    """Scale outside of the file; heads; matching pursuit without its limits."""
    for kind, dtype in itertools.product(("standard", "topk", "gated", "matching_pursuit", "skip_transcoder"), DTYPES):
        cases.seed += 1
        more = {"rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
        sae = made_sae(kind, cases.seed, dtype, normalize_activations="expected_average_only_in", **more)

        def save(folder: Path, sae: Any = sae) -> Any:
            sae.save_model(folder)
            opened = SAE.load_from_disk(folder)
            opened.fold_activation_norm_scaling_factor(SCALE)  # as SAE.from_pretrained does
            return opened

        cases.add(f"{kind}-{dtype}-scale-outside", save, dtype, {"norm_scaling_factor": SCALE})
    for kind in ("standard", "jumprelu"):
        cases.seed += 1
        settings = config(kind, "float32", reshape_activations="hook_z")
        settings.metadata.hook_name = "blocks.1.attn.hook_z"
        sae = get_sae_class(kind)[0](settings)
        random_weights(sae, torch.Generator().manual_seed(cases.seed))
        cases.add(
            f"{kind}-hook_z", lambda folder, sae=sae: (sae.save_model(folder), SAE.load_from_disk(folder))[1], "float32"
        )
    for name, more in (
        ("endless", {"max_iterations": None, "residual_threshold": 0.0}),
        ("repeats", {"max_iterations": 12, "residual_threshold": -1.0, "stop_on_duplicate_support": False}),
    ):
        cases.seed += 1
        sae = made_sae("matching_pursuit", cases.seed, "float64", **more)
        cases.add(
            f"matching_pursuit-{name}",
            lambda folder, sae=sae: (sae.save_model(folder), SAE.load_from_disk(folder))[1],
            "float64",
        )


def checkpoints(cases: Cases) -> None:
    """Training classes: saved as they are with the map beside, and exported."""
    for kind, dtype in itertools.product(TRAINING, DTYPES):
        by_norms: tuple[bool | None, ...] = (True, False) if "topk" in kind else (None,)
        for by_norm, norm in itertools.product(by_norms, ("none", "expected_average_only_in", "covariance_whitening")):
            if norm == "covariance_whitening" and kind == "matching_pursuit":
                continue
            for centred in (True, False) if norm == "covariance_whitening" else (True,):
                cases.seed += 1
                more = {} if by_norm is None else {"rescale_acts_by_decoder_norm": by_norm}
                sae = made_sae(
                    kind,
                    cases.seed,
                    dtype,
                    training=True,
                    normalize_activations=norm,
                    apply_b_dec_to_input=centred,
                    **more,
                )
                scaler = ActivationScaler()
                if norm == "expected_average_only_in":
                    scaler.scaling_factor = SCALE
                elif norm == "covariance_whitening":
                    scaler.whitening = whitening(cases.seed)
                tail = "" if centred else "-raw"
                name = f"training-{kind}-{dtype}-{norm}{'' if by_norm is None else '-bynorm' if by_norm else '-plain'}{tail}"
                cases.add(name, lambda folder, sae=sae, scaler=scaler: as_checkpoint(sae, scaler, folder), dtype)
        cases.seed += 1
        sae = made_sae(kind, cases.seed, dtype, training=True)
        cases.add(f"exported-{kind}-{dtype}", lambda folder, sae=sae: exported(sae, folder), dtype)


def as_checkpoint(sae: Any, scaler: ActivationScaler, folder: Path) -> Any:
    """Save what a run has in the middle; gives what it would have exported had it ended there."""
    sae.save_model(folder)
    scaler.save(str(folder / "activation_scaler.json"))
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    ended = copy.deepcopy(sae)
    if scaler.scaling_factor is not None:
        ended.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        w = scaler.whitening
        ended.fold_activation_whitening(mean=w.mean, whitening_matrix=w.matrix, unwhitening_matrix=w.inverse_matrix)
    with tempfile.TemporaryDirectory() as beside:
        return exported(ended, Path(beside))


def runs(cases: Cases) -> None:
    """Checkpoints that SAELens' trainer wrote itself, with its optimizer's state beside."""
    for kind, norm in (
        ("batchtopk", "expected_average_only_in"), ("standard", "covariance_whitening"), ("jumprelu", "none"),
    ):  # fmt: skip
        cases.seed += 1
        sae = made_sae(kind, cases.seed, "float32", training=True, normalize_activations=norm)
        generator = torch.Generator().manual_seed(cases.seed)

        def batches(generator: torch.Generator = generator) -> Iterator[Tensor]:
            while True:
                yield 2 * torch.randn(32, D_IN, generator=generator) + 1

        def save(folder: Path, sae: Any = sae, norm: str = norm, data: Any = batches) -> Any:
            settings = SAETrainerConfig(
                total_training_samples=32 * 6, train_batch_size_samples=32, lr_end=1e-4, n_batches_for_norm_estimate=4,
                n_checkpoints=1, checkpoint_path=str(folder / "run"), feature_sampling_window=1000,
            )  # fmt: skip
            trainer: Any = SAETrainer(settings, sae, data())
            trainer.fit()
            (written,) = (folder / "run").iterdir()
            for path in written.iterdir():
                path.rename(folder / path.name)
            shutil.rmtree(folder / "run")
            middle: Any = TrainingSAE.load_from_disk(folder)
            scaler = ActivationScaler()
            scaler.load(folder / "activation_scaler.json")
            assert (scaler.scaling_factor is not None) == (norm == "expected_average_only_in")
            with tempfile.TemporaryDirectory() as beside:
                return as_checkpoint(middle, scaler, Path(beside))

        cases.add(f"run-{kind}", save, "float32")


def legacy(cases: Cases) -> None:
    """Files as versions before 6 left them, opened by SAELens' own mapping."""
    long = {
        "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
        "hook_point_head_index": None, "dataset_path": "text", "is_dataset_tokenized": False, "context_size": 128,
        "use_cached_activations": False, "cached_activations_path": "a/b", "n_batches_in_buffer": 128,
        "total_training_tokens": 300, "store_batch_size": 32, "device": "cpu", "seed": 42, "dtype": "torch.float32",
        "b_dec_init_method": "geometric_median", "expansion_factor": 32, "from_pretrained_path": None,
        "l1_coefficient": 8e-05, "lr": 0.0004, "lr_scheduler_name": None, "lr_warm_up_steps": 5000, "train_batch_size": 4096,
        "use_ghost_grads": False, "feature_sampling_window": 1000, "feature_sampling_method": None, "resample_batches": 1028,
        "feature_reinit_scale": 0.2, "dead_feature_window": 5000, "dead_feature_estimation_method": "no_fire",
        "dead_feature_threshold": 1e-08, "log_to_wandb": True, "wandb_project": "p", "wandb_entity": None,
        "wandb_log_frequency": 100, "n_checkpoints": 10, "checkpoint_path": "c", "tokens_per_buffer": 67108864,
        "run_name": "r",
    }  # fmt: skip
    short = {
        "model_name": "tiny", "hook_name": "blocks.1.hook_mlp_out", "hook_layer": 1, "hook_head_index": None,
        "device": "cpu", "activation_fn_str": "relu", "activation_fn_kwargs": {}, "apply_b_dec_to_input": False,
        "dtype": "float32", "finetuning_scaling_factor": False, "sae_lens_training_version": "4.1.0",
        "sae_lens_version": "5.9.1",
        "prepend_bos": False, "dataset_path": "text", "context_size": 64, "dataset_trust_remote_code": True,
        "model_from_pretrained_kwargs": {}, "neuronpedia_id": "tiny/1-x", "normalize_activations": "none",
    }  # fmt: skip
    for name, kind, keys in (
        ("first", "standard", long),
        ("ones", "standard", long),
        ("standard", "standard", {**short, "architecture": "standard", "normalize_activations": False}),
        ("null", "standard", {**short, "architecture": "standard", "normalize_activations": None}),
        (
            "topk",
            "topk",
            {**short, "architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        ),
        ("gated", "gated", {**short, "architecture": "gated", "normalize_activations": "layer_norm"}),
        ("jumprelu", "jumprelu", {**short, "architecture": "jumprelu", "apply_b_dec_to_input": True}),
        ("heads", "standard", {**short, "hook_name": "blocks.1.attn.hook_z"}),
    ):
        cases.seed += 1
        sae = made_sae(kind, cases.seed, "float32")

        def save(folder: Path, sae: Any = sae, keys: dict[str, Any] = keys, name: str = name) -> Any:
            sae.save_model(folder)
            (folder / "cfg.json").write_text(json.dumps({"d_in": D_IN, "d_sae": D_SAE, **keys}))
            if name == "ones":
                tensors = load_file(folder / "sae_weights.safetensors")
                save_file(tensors | {"scaling_factor": torch.ones(D_SAE)}, folder / "sae_weights.safetensors")
            return SAE.load_from_disk(folder)

        cases.add(f"legacy-{name}", save, "float32")


def log_thresholds(cases: Cases) -> None:
    """JumpReLU checkpoints of versions that trained the logarithm."""
    cases.seed += 1
    sae = made_sae("jumprelu", cases.seed, "float32", training=True)

    def save(folder: Path) -> Any:
        sae.threshold.data.abs_()
        sae.save_model(folder)
        tensors = load_file(folder / "sae_weights.safetensors")
        tensors["log_threshold"] = tensors.pop("threshold").log()
        save_file(tensors, folder / "sae_weights.safetensors")
        with tempfile.TemporaryDirectory() as beside:
            return exported(TrainingSAE.load_from_disk(folder), Path(beside))

    cases.add("training-log_threshold", save, "float32")


def check(folder: Path) -> None:
    """Open each case and compute from its inputs; what SAELens can not open is said in found.json."""
    for case in sorted(folder.iterdir()):
        x = load_file(case / "expected.safetensors")["x"]
        try:
            sae = SAE.load_from_disk(case / "files")
        except (KeyError, ValueError, RuntimeError) as error:
            (case / "found.json").write_text(json.dumps({"error": f"{type(error).__name__}: {error}"}))
            continue
        save_file(computed(sae, x), case / "found.safetensors")
        about = {"architecture": sae.cfg.architecture(), "hook_name": sae.cfg.metadata.hook_name}
        (case / "found.json").write_text(json.dumps(about))


def main(what: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"sae-lens {__version__}")
    if what == "check":
        return check(folder)
    cases = Cases(folder)
    for part in (finished, temporal, published, checkpoints, runs, legacy, log_thresholds):
        part(cases)
    print(f"{len(list(folder.iterdir()))} cases")
    return None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
