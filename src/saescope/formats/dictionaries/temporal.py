"""Temporal SAEs (``conf.yaml`` and ``latest_ckpt.safetensors``), which are recognised and not opened.

Such a dictionary predicts the codes of a token from those before it, by attention over whole sequences, and encodes what
the prediction leaves over::

    x_hat = (novel + predicted) @ W_dec + b_dec

Every dictionary here turns one token into its features by itself. Without the predicted codes the rest is another
function: half of the reconstruction would be missing, and nothing would say so.

Source: arXiv 2511.01836, and the reader of SAELens 6.54.12.

d  width of activations, d_sae  features.
"""

from __future__ import annotations

import re

from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import tensor_shapes

CONFIG_FILE, WEIGHTS_FILE = "conf.yaml", "latest_ckpt.safetensors"


def _recognise(source: Source) -> bool:
    return source.has(CONFIG_FILE, WEIGHTS_FILE) and source.only in ("", WEIGHTS_FILE)


def _read(source: Source) -> Foreign:
    shapes = tensor_shapes(source.path(WEIGHTS_FILE))
    size = f" of {shapes['D'][0]:,} features of width {shapes['D'][1]}" if len(shapes.get("D", ())) == 2 else ""
    layers = len({name.split(".")[1] for name in shapes if re.fullmatch(r"attn_layers\.\d+\..+", name)})
    raise ValueError(
        f"{source.label} is a temporal dictionary{size} with {layers} attention layers over its codes. It is not opened: it "
        "needs whole sequences [batch, tokens, d] to predict codes from earlier tokens, while a dictionary here encodes "
        "each token by itself. To use it, run its authors' code or SAELens (architecture 'temporal') on whole sequences, "
        "both codes together: encode() there leaves out the predicted ones, and its features do not rebuild the activation"
    )


TEMPORAL = Format(
    name="temporal",
    title="temporal SAEs",
    layout=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
    recognise=_recognise,
    read=_read,
    reads="none: it needs whole sequences, and says so",
)
