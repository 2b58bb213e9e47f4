"""What SAELens did to activations before the encoder: kept where it is a rule for each token, folded where it is a map.

While training runs, weights are those of scaled or whitened activations, and the map lies beside them::

    activation_scaler.json            scaling_factor s      trained on s x
    activation_whitening.safetensors  mean, matrix          trained on (x - mean) @ matrix

``fit()`` folds it at its end; a checkpoint of before is opened here as if it had ended there. Files that were published
without it (``normalize_activations`` is ``expected_average_only_in``) work on raw activations only with the scale, which
stands in SAELens' registry (``norm_scaling_factor``) or nowhere.

d_in  width of the input, d_sae  features.
"""

from __future__ import annotations

from saescope.formats.foreign import Foreign, scaled
from saescope.formats.source import ConfigSource, Source

SCALER_FILE, WHITENING_FILE = "activation_scaler.json", "activation_whitening.safetensors"
SCALED, WHITENED = "expected_average_only_in", "covariance_whitening"
PER_TOKEN = ("layer_norm", "constant_norm_rescale")


def take_normalization(foreign: Foreign, config: ConfigSource, source: Source, *, by_norm: bool) -> float:
    """Fold what can be folded; returns the factor that features' thresholds are to be divided by.

    Args:
        by_norm: features compete by activation times decoder norm; the norms are folded here too, because SAELens does the
            one after the other: a scale changes the norms that count, whitening may not.

    Raises:
        ValueError: a map that is not known, or that is nowhere to be found.
    """
    kind = config.get("normalize_activations", str, "none")
    kind = source.override("normalize_activations", kind)  # some releases do not say it in their files
    if kind not in ("none", *PER_TOKEN, SCALED, WHITENED):
        raise ValueError(
            f"{config.where} has normalize_activations = {kind!r}; known are none, {', '.join(PER_TOKEN)}, {SCALED}, "
            f"{WHITENED}"
        )
    scale = _scale(kind, config, source)
    whitened = _has_whitening(kind, config, source)
    if kind in PER_TOKEN:
        foreign.normalization = kind
        if "W_skip" in foreign.tensors:
            raise ValueError(
                f"{config.where}: a skip transcoder with {kind} multiplies W_skip with the activation as it was before, "
                "which is not computed here"
            )
    if scale is not None:
        _fold_scale(foreign, scale)
    if by_norm:
        foreign.fold_decoder_norms()
        foreign.said.append("features compete by activation times decoder norm; the norms are folded into the encoder")
    if whitened:
        _fold_whitening(foreign, source)
    return scale if scale is not None and by_norm else 1.0


def _scale(kind: str, config: ConfigSource, source: Source) -> float | None:
    """The factor on activations in training: what the user says, else what lies beside a checkpoint."""
    said = source.override("norm_scaling_factor")
    if said is not None:
        if kind != SCALED:
            raise ValueError(
                f"norm_scaling_factor = {said} is for files with normalize_activations = {SCALED}; {config.where} has {kind}"
            )
        try:
            return float(said)
        except (TypeError, ValueError):
            raise ValueError(f"norm_scaling_factor should be a number, got {said!r}") from None
    scale: float | None = None
    if source.has(SCALER_FILE):
        scaler = source.config(SCALER_FILE)
        scale = scaler.get("scaling_factor", float)
        scaler.ignore("has_whitening")
        scaler.require_all_used()
        if scale is not None and kind != SCALED:
            raise ValueError(
                f"{scaler.where} says that activations were scaled by {scale:.6g}, but {config.where} has "
                f"normalize_activations = {kind}; if the scale is folded into the weights, take {SCALER_FILE} away"
            )
    if kind == SCALED and scale is None:
        raise ValueError(
            f"{config.where} has normalize_activations = {SCALED}: the weights are for activations scaled by sqrt(d_in) / "
            "mean norm, and the scale is not in the file. Pass it as norm_scaling_factor (SAELens' registry lists it for "
            "its releases), or 1 if it is folded into the weights already"
        )
    return scale


def _has_whitening(kind: str, config: ConfigSource, source: Source) -> bool:
    """Whether a whitening lies beside the weights and is not folded yet."""
    if kind != WHITENED:
        return False
    beside = source.has(SCALER_FILE, WHITENING_FILE) and source.config(SCALER_FILE).get("has_whitening", bool, True)
    if not beside:
        raise ValueError(
            f"{config.where} has normalize_activations = {WHITENED}, and the map is not beside it: {SCALER_FILE} and "
            f"{WHITENING_FILE} of the checkpoint are needed"
        )
    return True


def _fold_scale(foreign: Foreign, scale: float) -> None:
    if foreign.architecture != "matching_pursuit":
        foreign.fold_input_scale(scale)
        return
    # one matrix reads and writes: rows stay, and activations come out in units of the raw activation
    if not 0 < scale < float("inf"):
        raise ValueError(f"the scale of activations should be a positive number, but is {scale}")
    foreign.tensors["b_dec"] = scaled(foreign.tensors["b_dec"], 1 / scale)
    foreign.settings["residual_threshold"] /= scale
    foreign.said.append(
        f"activations were scaled by {scale:.6g} in training; b_dec and residual_threshold are divided by it"
    )


def _fold_whitening(foreign: Foreign, source: Source) -> None:
    """Weights for x of a dictionary for z = (x - mean) @ matrix, with the same feature activations."""
    if foreign.architecture == "matching_pursuit" or "d_out" in foreign.settings:
        raise ValueError(f"a whitening can not be folded into a {foreign.architecture} dictionary")
    whitening, d_in = source.tensors(WHITENING_FILE), foreign.d_in
    mean = whitening.take("mean", (d_in,)).double()
    matrix = whitening.take("matrix", (d_in, d_in)).double()
    inverse = whitening.take("inverse_matrix", (d_in, d_in)).double()
    whitening.require_all_used()
    foreign.said.append("activations were whitened in training; the map is folded into the weights")
    own, dtype = foreign.tensors, foreign.dtype
    if mean.is_meta:
        return
    rows = matrix @ own["W_enc"].double()  # [d_in, d_sae]
    if not foreign.settings["apply_b_dec_to_input"]:  # else the mean comes off with b_dec
        shift = mean @ rows  # [d_sae]
        for name, factor in (("b_enc", 1), ("b_gate", 1), ("b_mag", None)):
            if name in own:
                by = own["r_mag"].double().exp() if factor is None else factor
                own[name] = (own[name].double() - shift * by).to(dtype)
    own["W_enc"] = rows.to(dtype)
    own["W_dec"] = (own["W_dec"].double() @ inverse).to(dtype)
    own["b_dec"] = (own["b_dec"].double() @ inverse + mean).to(dtype)
