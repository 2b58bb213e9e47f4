"""cfg.json of SAELens before version 6, brought to the layout of 6; and the keys of all versions that play no part.

Files of 2024 hold the whole configuration of a training run at the top level, under names that changed several times.
SAELens still opens them by renaming keys and filling in what was the default then; the same is done here, and what SAELens
would drop in silence although it changes the function is refused. Tables are data; an unknown key is nobody's.

Sources: the configuration classes of SAELens 3 to 6.54.12, and the files of its first releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LLM_KEYS = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out",
)  # fmt: skip
"""What is known of the model: at the top level before version 6, under ``metadata`` since."""

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}

TRAINING_KEYS = (
    # losses and starts of version 6
    "decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "use_sparse_activations", "aux_loss_coefficient",
    "topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss", "jumprelu_init_threshold", "jumprelu_bandwidth",
    "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "l0_coefficient", "l0_warm_up_steps",
    "pre_act_loss_coefficient", "target_l0",
    # losses and starts before
    "b_dec_init_method", "expansion_factor", "normalize_sae_decoder", "noise_scale", "decoder_orthogonal_init",
    "decoder_heuristic_init", "decoder_heuristic_init_norm", "init_encoder_as_decoder_transpose", "mse_loss_normalization",
    "scale_sparsity_penalty_by_decoder_norm", "finetuning_method", "finetuning_scaling_factor", "uses_scaling_factor",
    "finetuning_tokens", "use_ghost_grads", "feature_sampling_method", "feature_reinit_scale", "resample_batches",
    "dead_feature_estimation_method",
    # the run
    "hook_eval", "hook_point_eval", "hook_layer", "hook_point_layer", "dataset_trust_remote_code", "streaming",
    "is_dataset_tokenized", "use_chat_formatting", "use_cached_activations", "cached_activations_path",
    "from_pretrained_path", "n_batches_in_buffer", "training_tokens", "total_training_tokens", "store_batch_size",
    "store_batch_size_prompts", "disable_concat_sequences", "sequence_separator_token", "activations_mixing_fraction",
    "llm_device", "act_store_device", "prefetch_llm_batches", "seed", "autocast", "autocast_lm", "compile_llm",
    "llm_compilation_mode", "compile_sae", "sae_compilation_mode", "train_batch_size", "train_batch_size_tokens",
    "adam_beta1", "adam_beta2", "lr", "lr_scheduler_name", "lr_warm_up_steps", "lr_end", "lr_decay_steps",
    "n_restart_cycles", "dead_feature_window", "feature_sampling_window", "dead_feature_threshold", "n_eval_batches",
    "eval_batch_size_prompts", "logger", "n_checkpoints", "checkpoint_path", "save_final_checkpoint", "output_path",
    "resume", "resume_from_checkpoint", "verbose", "model_kwargs", "n_batches_for_norm_estimate", "tokens_per_buffer",
    "log_to_wandb", "log_activations_store_to_wandb", "log_optimizer_state_to_wandb", "log_weights_to_wandb",
    "wandb_project", "wandb_id", "run_name", "wandb_entity", "wandb_log_frequency", "eval_every_n_wandb_logs",
)  # fmt: skip
"""Keys of training that do not change what a finished dictionary computes."""


def is_legacy(values: Mapping[str, Any]) -> bool:
    """Whether a cfg.json was written before version 6, or does not say by which."""
    metadata = values.get("metadata")
    version = values.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    major = re.match(r"\d+", str(version))
    return major is None or int(major[0]) < 6


def as_of_6(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same configuration by the names and defaults of version 6.

    Raises:
        ValueError: an activation function that SAELens has given up.
    """
    new = {_RENAMED.get(key, key): value for key, value in values.items()}
    hook_name = new.get("hook_name")
    defaults = {
        "architecture": "standard",
        "prepend_bos": True,
        "apply_b_dec_to_input": "transcoder" not in str(new.get("architecture")),
        "reshape_activations": "hook_z" if isinstance(hook_name, str) and "hook_z" in hook_name else "none",
    }
    new = defaults | {key: value for key, value in new.items() if value is not None}
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    activation, extras = new.pop("activation_fn", "relu"), new.pop("activation_fn_kwargs", {})
    extras = extras if isinstance(extras, dict) else {}
    if activation == "topk" and extras.get("k") is not None:
        new |= {"architecture": "topk", "k": extras["k"]}
    elif activation != "relu" and (activation, new["architecture"]) != ("topk", "topk"):
        raise ValueError(
            f"{where} has activation_fn = {activation!r}, which SAELens has not computed since version 6 and is not opened "
            "here; known are relu, and topk with a k under activation_fn_kwargs"
        )
    return new
