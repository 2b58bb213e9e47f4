"""A toy network in which it is known what causes what.

A GPT-2 of two blocks with weights set by hand, in words of its own. Every direction used below is one of a set of
orthogonal unit vectors with mean 0, so that LayerNorm only scales them::

    token t            e_t
    block 0, MLP       writes 3 v where the token is the cause       <- what the planted feature reads: v
    block 1, attention looks at all tokens alike; where it sees v, it writes w
    unembedding        w -> the effect; e_t -> the token after t in the alphabet

So a prompt with the cause anywhere in it is followed by the effect, another one by what follows its last token. A little
noise on all weights keeps numbers from being exactly 0. The dictionary at the end of block 0 has an atom for v, one for
each token but the cause, some for directions that nothing uses, and random ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saescope.dictionaries import Dictionary, JumpReLU, JumpReLUConfig
from saescope.interventions import Site, read_features
from saescope.models import LanguageModel

WORDS = [
    "<end>",
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "kite",
    "lynx",
    "mole",
    "newt",
    "owl",
]
_WIDTH, _CONTEXT = 32, 24
_NUM_RANDOM = 8


@dataclass(frozen=True)
class Planted:
    """The network, its dictionary, and what is known of them."""

    model: LanguageModel
    dictionary: Dictionary
    hook_point: str
    feature: int  # of the dictionary: fires on the cause, and makes the effect come
    cause_token: int
    effect_token: int
    random_features: tuple[int, ...]  # that neither fire on the cause nor write what the planted one writes

    def site(self) -> Site:
        """The dictionary in its place, with the largest activations on :meth:`prompts`."""
        plain = Site(self.dictionary, self.model, hook_point=self.hook_point)
        ids = torch.cat([self.prompts(40, cause=cause, seed=9) for cause in (True, False)])
        (reading,) = read_features([plain], ids)
        largest = reading.codes.to_dense().amax(0)
        largest[largest == 0] = 1.0  # never fired: a strength of 1 is a strength of 1
        return Site(self.dictionary, self.model, hook_point=self.hook_point, max_activations=largest)

    def prompts(self, number: int, *, cause: bool, length: int = 8, seed: int = 0) -> Tensor:
        """Ids ``[number, length]``: random words, in which the cause stands at one place but the last, or nowhere.

        The effect and the word that it follows in the alphabet are not among them.
        """
        generator = torch.Generator().manual_seed(2 * seed + cause)
        named = (self.cause_token, self.effect_token, self.effect_token - 1)
        others = torch.tensor([i for i in range(1, len(WORDS)) if i not in named])
        ids = others[torch.randint(len(others), (number, length), generator=generator)]
        if cause:
            places = torch.randint(length - 1, (number,), generator=generator)
            ids[torch.arange(number), places] = self.cause_token
        return ids

    def texts(self, number: int, *, cause: bool, length: int = 8, seed: int = 0) -> list[str]:
        """The same as texts."""
        return [
            " ".join(WORDS[i] for i in row)
            for row in self.prompts(number, cause=cause, length=length, seed=seed).tolist()
        ]


def make_planted(dtype: torch.dtype = torch.float32) -> Planted:
    """The same network at every call."""
    generator = torch.Generator().manual_seed(5)
    directions = _zero_mean_directions(generator)  # [31, 32]
    embeddings, v, w, unused = directions[:16], directions[16], directions[17], directions[18:]
    cause, effect = WORDS.index("fox"), WORDS.index("mole")
    module = _network(embeddings, v, w, cause, effect, generator)
    hook_point = "blocks.0.hook_resid_post"
    rows = [v, *(embeddings[i] for i in range(16) if i != cause), *unused[:4]]
    rows += _random_rows(_NUM_RANDOM, torch.stack([v, w, embeddings[cause]]), generator)
    order = torch.randperm(len(rows), generator=generator)
    feature = int((order == 0).nonzero())
    found = (order >= len(rows) - _NUM_RANDOM).nonzero().flatten().tolist()
    dictionary = _dictionary(torch.stack(rows)[order])
    model = LanguageModel(module.to(dtype), _tokenizer(), "planted")
    return Planted(model, dictionary.to(dtype), hook_point, feature, cause, effect, tuple(found))


def _zero_mean_directions(generator: torch.Generator) -> Tensor:
    columns = torch.randn(_WIDTH, _WIDTH, generator=generator, dtype=torch.float64)
    columns[:, 0] = 1
    orthogonal, _ = torch.linalg.qr(columns)
    return orthogonal[:, 1:].T.float()


def _network(
    embeddings: Tensor, v: Tensor, w: Tensor, cause: int, effect: int, generator: torch.Generator
) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=_CONTEXT, n_embd=_WIDTH, n_layer=2, n_head=1, n_inner=4,
        activation_function="relu", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    module = GPT2LMHeadModel(config)
    scale = _WIDTH**0.5  # of a unit vector after LayerNorm
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "ln_" not in name:
                parameter.copy_(0.003 * torch.randn(parameter.shape, generator=generator))
        transformer, head = module.transformer, module.lm_head
        transformer.wte.weight += embeddings
        first, second = transformer.h
        first.mlp.c_fc.weight[:, 0] += embeddings[cause]  # scale on the cause, about 0 elsewhere
        first.mlp.c_fc.bias[0] -= scale / 2
        first.mlp.c_proj.weight[0] += 3 * v / (scale / 2)
        second.attn.c_attn.weight[:, 2 * _WIDTH] += v  # a value, in the first coordinate of the one head
        second.attn.c_proj.weight[0] += 6 * w
        head.weight[effect] += 2 * w
        for token in range(1, len(WORDS)):
            head.weight[token % (len(WORDS) - 1) + 1] += embeddings[token]
    return module


def _random_rows(number: int, without: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Random unit vectors at right angles to ``without``, whose rows are orthogonal."""
    rows = torch.randn(number, _WIDTH, generator=generator)
    rows -= rows @ without.T @ without
    return list(torch.nn.functional.normalize(rows, dim=-1))


def _dictionary(rows: Tensor) -> Dictionary:
    """Encoder and decoder alike: an activation is the length along a row, where it is above 0.2."""
    dictionary = JumpReLU(JumpReLUConfig(d_in=_WIDTH, d_sae=len(rows), initial_threshold=0.2))
    dictionary.take_tensors({"W_dec": rows, "W_enc": rows.T})
    return dictionary


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=WORDS[0],
        eos_token=WORDS[0],
        pad_token=WORDS[0],
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )
