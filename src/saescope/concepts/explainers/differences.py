"""What is otherwise here than in interpreto 0.4.11 to 0.4.16, whose class and argument names these are.

``number`` counts the known defects of the original as they are listed for this package, where a difference mends one.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """One of them."""

    subject: str
    there: str
    here: str
    number: int | None = None  # of the defect that it mends


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "evaluation mode after fit",
        "one attribute of the outer module is set; its parts stay in training mode, so codes of a row depend on its "
        "batch-mates with a batch-norm encoder, and atoms are normalised in place when read",
        "the whole concept model is in evaluation mode; a row has the same codes alone and in any batch",
        1,
    ),
    Difference(
        "dropout of MpSAE",
        "drawn at inference too, and lost for good by eval()",
        "drawn in training passes alone; train() and eval() leave the setting as it is",
        2,
    ),
    Difference(
        "sparsity of Vanilla and JumpReLU",
        "no penalty: both are dense autoencoders by default",
        "L1 and L0 penalties belong to the architectures (l1_coefficient, l0_coefficient or target_l0); they stay "
        "beside the criteria of SAELossClasses, and a criterion of your own is all there is",
        3,
    ),
    Difference(
        "top_k of BatchTopK",
        "codes per batch: with batch_size 1024 a value of 10 means an L0 of 0.01",
        "codes per row, on average; give top_k where the original got top_k * batch_size",
        4,
    ),
    Difference(
        "threshold of BatchTopK",
        "a Python attribute that is not saved, drifts, and is biased by a short last batch",
        "part of the state; measured once more after the last step, on up to 65,536 rows, so that k codes per row pass",
        5,
    ),
    Difference(
        "gradient of JumpReLU thresholds",
        "divided by the bandwidth twice",
        "-(theta / bandwidth) K((pre - theta) / bandwidth), once, with a rectangle as kernel; theta itself is learned, "
        "not its logarithm, and a code fires above its threshold, not at it",
        6,
    ),
    Difference(
        "use_amp and batches that are not finite",
        "fails unless device is a string; float16; after max_nan_fallbacks the rest of the epoch is dropped",
        "bfloat16 on any device; a step that is not finite is made again in float32 and, if it is not finite there, "
        "passed over alone; all other batches are seen, and both are counted in the logs. After max_nan_fallbacks "
        "steps the rest runs in float32; None never gives up bfloat16",
        7,
    ),
    Difference(
        "logs",
        "empty unless monitoring is set",
        "always returned; monitoring only prints (1) and adds norms (2). r2 has the mean of each dimension, and so is "
        "0, not near 1, for a reconstruction that is the mean activation",
        8,
    ),
    Difference(
        "optimizer_kwargs",
        "the caller's dict is changed, and its lr is overridden silently",
        "copied; another lr in it than lr is an error",
        9,
    ),
    Difference(
        "scheduler",
        "stepped per batch, which is not said",
        "stepped per optimizer step, or per epoch with scheduler_unit='epoch'",
        10,
    ),
    Difference(
        "overwrite=True",
        "keeps the weights and trains on",
        "begins anew, as a fresh explainer would with the same seed; warm_start=True goes on from the weights that "
        "there are",
        11,
    ),
    Difference(
        "device in fit",
        "batches go there, the model does not",
        "the concept model moves there and stays; encode and decode bring their input to it",
        12,
    ),
    Difference(
        "encoder of MpSAE",
        "a linear encoder that nothing uses is made, optimised and saved; 'pre_codes' are the residual",
        "none: the atoms are the only parameters; pre_codes are None, and residual_energies(x) gives the residuals' "
        "energies. k can be chosen in encode_activations; a step never has a negative value",
        21,
    ),
    Difference(
        "DeadNeuronsReanimation",
        "fails on MpSAE; dead are all concepts silent in the batch; the push on each fades as more are alive",
        "works for all five; dead are those silent for an epoch (400,000 rows at most); the push is the mean over dead "
        "concepts",
        22,
    ),
    Difference(
        "save and load",
        "there is none",
        "explainer.save(folder) and SAEExplainer.load(folder, model): safetensors and JSON, with thresholds and k",
        24,
    ),
    Difference(
        "default arguments",
        "dicts that all calls share",
        "None",
        25,
    ),
    Difference(
        "default loss and units",
        "criterion=MSELoss on activations as they are",
        "criterion=None, the architecture's own loss; rows are scaled to mean norm sqrt(d) while they are fitted, and "
        "the scale is folded away, so that lr and penalties mean the same for every model. A criterion sees raw units",
    ),
    Difference(
        "default top_k of TopK and BatchTopK",
        "nb_concepts // 10, which is 1,600 of 16,000",
        "the same, and at most 32",
    ),
    Difference(
        "decoder",
        "z @ D",
        "the same by default; decoder_bias=True, and dictionaries that have a bias, add b_dec: zero concepts are "
        "decoded to b_dec, and decode_concepts(encode_activations(x)) is the reconstruction in every case",
    ),
    Difference(
        "rows of the dictionary",
        "divided by their norm whenever they are read",
        "with l2 brought to norm 1 after every step instead, with the gradient along them taken out; l1, max_l2, "
        "max_l1 and a function are part of the computation, as there",
    ),
    Difference(
        "encoder_module",
        "resnet_*, attention_* for images and sequences; attention mixes rows of a batch",
        "refused: rows have no neighbours. The encoder begins at the rows of the dictionary",
    ),
    Difference(
        "activations in fit",
        "a tensor or a dict",
        "also an iterable of batches; ValueError, not an assertion, for the rest",
    ),
)
