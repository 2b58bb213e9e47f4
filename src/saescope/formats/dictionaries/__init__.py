"""Formats of dictionaries, one file each, both ways where it can be: what a file is, what it computes, how it is written.

Each module has one or more `Format` objects; `FORMATS` lists them all.
"""

from __future__ import annotations

from saescope.formats.dictionaries.circuit_tracer import CIRCUIT_TRACER
from saescope.formats.dictionaries.dictionary_learning import DICTIONARY_LEARNING
from saescope.formats.dictionaries.gemma_scope import GEMMA_SCOPE
from saescope.formats.dictionaries.gemma_scope_2 import GEMMA_SCOPE_2
from saescope.formats.dictionaries.llama_scope import LLAMA_SCOPE, LLAMA_SCOPE_R1
from saescope.formats.dictionaries.llamascopium import LLAMASCOPIUM
from saescope.formats.dictionaries.openai import OPENAI
from saescope.formats.dictionaries.overcomplete import OVERCOMPLETE
from saescope.formats.dictionaries.own import SAESCOPE
from saescope.formats.dictionaries.qwen_scope import QWEN_SCOPE
from saescope.formats.dictionaries.saelens import SAELENS
from saescope.formats.dictionaries.single_files import CONNOR_ROB, DEEPSEEK_R1, GOODFIRE
from saescope.formats.dictionaries.sparsify import SPARSIFY
from saescope.formats.dictionaries.temporal import TEMPORAL
from saescope.formats.format import Format

FORMATS: tuple[Format, ...] = (
    SAESCOPE, SAELENS, DICTIONARY_LEARNING, SPARSIFY, OPENAI, OVERCOMPLETE, LLAMASCOPIUM, LLAMA_SCOPE, LLAMA_SCOPE_R1,
    GEMMA_SCOPE, GEMMA_SCOPE_2, QWEN_SCOPE, CIRCUIT_TRACER, DEEPSEEK_R1, GOODFIRE, CONNOR_ROB, TEMPORAL,
)  # fmt: skip
