"""What a sparse step may be asked: which losses and dictionaries it takes, when it leaves a batch to dense products,
dead features, metrics. That 500 steps equal dense ones is in ``test_sparse_steps.py``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture, transcoder
from saescope.dictionaries.sparse_encoding import most_firings
from saescope.kernels import FlatCodes, cpu
from saescope.training import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    StepMetrics,
    TrainingBatch,
    TrainingConfig,
    loss_for,
    train,
)
from saescope.training.losses import (
    L0,
    L1,
    AuxK,
    GhostGradients,
    Loss,
    MatryoshkaLossConfig,
    NormalisedSquaredError,
    OrderedConfig,
    SquaredError,
    SumOfTerms,
    Term,
)
from saescope.training.losses.base import Batch
from saescope.training.losses.nested import NestedError, OrderedError
from saescope.training.losses.sparse_pass import has_sparse_pass, reconstruct, sparse_pass
from saescope.training.run import Run
from saescope.training.stepper import Stepper

D_IN, D_SAE, BATCH = 6, 40, 16
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "ordered": {"k": 4},
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4, "widths": (8, 20, 40)},
    "relu": {},
    "jumprelu": {"initial_threshold": 0.3, "bandwidth": 0.5},
}
DEAD = (3, 7, 20, 39)


@pytest.fixture(autouse=True)
def _all_features_may_fire(request, monkeypatch):
    """No step is given to dense products because many features fire, but in tests of just that."""
    if "dense_share" not in request.fixturenames:
        monkeypatch.setattr("saescope.dictionaries.sparse_encoding._MOST_FIRINGS", 1.0)


@pytest.fixture
def dense_share() -> float:
    return 1 / 16


def _dictionary(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Dictionary:
    """All parameters random, rows of the decoder of norm 1."""
    cls = architecture(name)
    dictionary = cls(cls.Config(d_in=D_IN, d_sae=D_SAE, **{**SETTINGS[name], **settings}), seed=1).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    dictionary.constrain()
    dictionary.normalise_decoder()
    return dictionary.to(dtype)


def _x(num_tokens: int = BATCH, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def _batch(x: Tensor, dead: tuple[int, ...] = DEAD, step: int = 2) -> Batch:
    marks = torch.zeros(D_SAE, dtype=torch.bool)
    marks[list(dead)] = True
    return Batch(x, x, marks, step, 10)


def _config(sparse_kernels: str = "always", **settings: Any) -> TrainingConfig:
    defaults = {"num_tokens": 10 * BATCH, "batch_size_tokens": BATCH, "num_threshold_tokens": 0, "max_grad_norm": None}
    return TrainingConfig(**{**defaults, **settings}, sparse_kernels=sparse_kernels)


def _gradients(dictionary: Dictionary, loss: Loss, batch: Batch, *, sparse: bool, **settings: Any) -> dict[str, Tensor]:
    """Loss, its parts, the gradient's norm and the gradients of one step that is not taken."""
    stepper = Stepper(dictionary, _config("always" if sparse else "never", **settings), loss)
    if sparse:  # what the step before has left is written over
        buffers = stepper.optimizer.gradient_buffers()
        for buffer in (buffers.encoder, buffers.decoder, buffers.bias):
            buffer.fill_(7.0)
    found = stepper._sparse(batch, 0) if sparse else stepper._dense(batch, 0)
    assert found is not None
    terms, norm = found
    results = {"loss": terms.total.detach(), "norm": norm, **terms.parts}
    for name, parameter in dictionary.named_parameters():
        assert parameter.grad is not None, name
        results[f"gradient of {name}"] = parameter.grad.clone()
    f = terms.f
    assert f is not None
    return results | {"f": f.to_dense() if isinstance(f, FlatCodes) else f}


def _assert_sparse_is_dense(dictionary: Dictionary, loss: Loss, batch: Batch, **settings: Any) -> dict[str, Tensor]:
    sparse = _gradients(dictionary, loss, batch, sparse=True, **settings)
    dense = _gradients(dictionary, loss, batch, sparse=False, **settings)
    assert set(sparse) == set(dense)
    for name, expected in dense.items():
        torch.testing.assert_close(sparse[name], expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    return sparse


# Every sum of terms


@pytest.mark.parametrize("num_tokens", [1, 2, BATCH])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_with_dead_features_equal_dense_ones(name, apply_b_dec_to_input, num_tokens):
    dictionary = _dictionary(name, apply_b_dec_to_input=apply_b_dec_to_input)
    extras = {} if name in ("topk", "batch_topk", "ordered", "matryoshka") else {"extra_terms": {"auxk": 0.5}}
    batch = _batch(_x(num_tokens))
    found = _assert_sparse_is_dense(dictionary, loss_for(dictionary, extras), batch)
    assert float(found["norm"]) > 0
    without = _gradients(dictionary, loss_for(dictionary, extras), _batch(batch.x, dead=()), sparse=True)
    if num_tokens > 1:  # of one token there is no variance
        for parameter in ("encoder_rows", "b_enc", "W_dec", "b_dec"):  # what AuxK pulls at
            name = f"gradient of {parameter}"
            if parameter != "b_dec" or apply_b_dec_to_input:
                assert not found[name].allclose(without[name], rtol=1e-6), name


@pytest.mark.parametrize("name", ["topk", "ordered", "relu"])
def test_dead_features_that_fire_in_this_very_batch_have_both_gradients(name):
    dictionary = _dictionary(name)
    x = _x()
    f = dictionary.activate_in_training(dictionary.pre_activations(x)).detach()
    busiest = tuple(f.count_nonzero(0).topk(3).indices.tolist())
    assert f[:, list(busiest)].any(0).all()
    loss = loss_for(dictionary, {"extra_terms": {"auxk" if name == "relu" else "reanimation": 0.7}})
    _assert_sparse_is_dense(dictionary, loss, _batch(x, dead=(*busiest, 5)))


@pytest.mark.parametrize("name", SETTINGS)
def test_all_features_dead_and_none(name):
    dictionary = _dictionary(name)
    for dead in ((), tuple(range(D_SAE))):
        loss = loss_for(dictionary, {"extra_terms": {"ghost_gradients": 0.3, "reanimation": 0.1}})
        _assert_sparse_is_dense(dictionary, loss, _batch(_x(), dead=dead))


SUMS: dict[str, tuple[str, dict[str, tuple[Term, float]]]] = {
    "error beside prefixes": (
        "matryoshka",
        {"mse": (SquaredError(), 0.5), "nested": (NestedError(MatryoshkaLossConfig()), 1.0)},
    ),
    "prefixes beside error": (
        "matryoshka",
        {"nested": (NestedError(MatryoshkaLossConfig()), 1.0), "nmse": (NormalisedSquaredError(), 0.5)},
    ),
    "two sets of prefixes": (
        "topk",
        {
            "a": (NestedError(MatryoshkaLossConfig(widths=(5, 17))), 1.0),
            "b": (NestedError(MatryoshkaLossConfig(widths=(17, 30))), 0.3),
            "mse": (SquaredError(), 0.2),
            "auxk": (AuxK(3), 0.4),
        },
    ),
    "error beside Ordered": (
        "ordered",
        {"ordered": (OrderedError(OrderedConfig()), 1.0), "mse": (SquaredError(), 0.5)},
    ),
    "Ordered beside error": (
        "ordered",
        {"mse": (SquaredError(), 0.5), "ordered": (OrderedError(OrderedConfig()), 1.0)},
    ),
    "Ordered with everything": (
        "ordered",
        {
            "nested": (NestedError(MatryoshkaLossConfig(widths=(9,))), 0.2),
            "ordered": (OrderedError(OrderedConfig()), 1.0),
            "l1": (L1(), 0.1),
            "auxk": (AuxK(), 0.3),
            "ghost": (GhostGradients(), 0.1),
        },
    ),
    "Ordered of no weight": ("ordered", {"o": (OrderedError(OrderedConfig()), 0.0), "mse": (SquaredError(), 1.0)}),
    "two counts": ("jumprelu", {"mse": (SquaredError(), 1.0), "a": (L0(), 0.2), "b": (L0(3.0), 0.7)}),
    "two penalties": ("relu", {"a": (L1(), 0.2), "b": (L1(decoder_norm=False), 0.3), "mse": (SquaredError(), 1.0)}),
    "penalty alone": ("relu", {"l1": (L1(), 0.2)}),
    "revival alone": ("topk", {"auxk": (AuxK(), 1.0)}),
}


@pytest.mark.parametrize(
    ("sum_name", "dead"), [(name, dead) for name in SUMS for dead in ((), DEAD) if dead or name != "revival alone"]
)
def test_terms_in_any_company_and_order(sum_name, dead):
    name, terms = SUMS[sum_name]
    loss = SumOfTerms(terms)
    assert loss.runs_sparse
    _assert_sparse_is_dense(_dictionary(name), loss, _batch(_x(), dead=dead))


def test_recipes_may_add_an_error_to_the_ordered_loss():
    dictionary = _dictionary("ordered")
    _assert_sparse_is_dense(dictionary, loss_for(dictionary, {"extra_terms": {"mse": 2.0, "nmse": 1.0}}), _batch(_x()))


def test_two_ordered_errors_are_refused_in_words():
    loss = SumOfTerms({"a": (OrderedError(OrderedConfig()), 1.0), "b": (OrderedError(OrderedConfig(exponent=2)), 1.0)})
    with pytest.raises(ValueError, match='two Ordered errors in one loss; train with sparse_kernels = "never"'):
        _gradients(_dictionary("ordered"), loss, _batch(_x()), sparse=True)


def test_terms_with_dead_features_of_their_own_are_refused_in_words():
    dictionary = _dictionary("topk")
    forward = sparse_pass(cpu, dictionary, _x(), None)
    assert forward is not None
    forward.dead_part(dictionary, torch.tensor([1, 2]))
    forward.dead_part(dictionary, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="two terms ask for different dead features"):
        forward.dead_part(dictionary, torch.tensor([1, 3]))


def test_tokens_without_any_firing():
    """They are rebuilt by the bias alone, and pull at nothing else."""
    for name in ("relu", "topk", "batch_topk", "ordered", "jumprelu"):
        dictionary = _dictionary(name)
        assert dictionary.b_enc is not None
        with torch.no_grad():
            dictionary.b_enc.fill_(-1000.0)
        found = _assert_sparse_is_dense(dictionary, loss_for(dictionary), _batch(_x(), dead=()))
        assert not found["f"].any()
        assert not found["gradient of encoder_rows"].any()
        assert not found["gradient of W_dec"].any()
        assert found["gradient of b_dec"].any()


# Which dictionaries and losses


def test_only_the_architectures_themselves_have_a_sparse_pass():
    class Mine(architecture("topk")):  # type: ignore[misc]
        """May do anything."""

    for name in SETTINGS:
        assert has_sparse_pass(_dictionary(name)), name
    assert not has_sparse_pass(Mine(Mine.Config(d_in=4, d_sae=8, k=2)))
    cls = transcoder(architecture("topk"))
    assert not has_sparse_pass(cls(cls.Config(d_in=4, d_out=4, d_sae=8, k=2)))


class Unknown(Term):
    """Reads the activations of all features."""

    def __call__(self, dictionary: Dictionary, batch: Batch, codes: Any) -> Tensor:
        return codes.f.square().mean()


def _refused(case: str) -> tuple[Dictionary, Loss | None, dict[str, Any]]:
    topk = architecture("topk")
    sizes = {"d_in": D_IN, "d_sae": D_SAE}
    if case == "derived":

        class Mine(topk):  # type: ignore[misc]
            pass

        return Mine(Mine.Config(**sizes, k=4)), None, {}
    if case == "gated":
        cls = architecture("gated")
        return cls(cls.Config(**sizes)), None, {}
    dictionary = topk(topk.Config(**sizes, k=4))
    if case == "free norms":
        return dictionary, None, {"unit_norm_decoder": False}
    if case == "term":
        return dictionary, SumOfTerms({"mse": (SquaredError(), 1.0), "mine": (Unknown(), 1.0)}), {}
    if case == "multi_topk":
        return dictionary, loss_for(dictionary, {"multi_topk_coefficient": 0.1}), {}
    return dictionary.to({"bfloat16": torch.bfloat16, "float16": torch.float16}[case]), None, {}


@pytest.mark.parametrize("case", ["derived", "gated", "free norms", "term", "multi_topk", "bfloat16", "float16"])
def test_what_the_kernels_do_not_know_is_dense_and_an_error_only_where_it_was_asked_for(case, monkeypatch):
    monkeypatch.setattr("saescope.training.stepper.WORTH_IT", 0)
    for wanted in ("auto", "never"):
        dictionary, loss, settings = _refused(case)
        stepper = Stepper(dictionary, _config(wanted, **settings), loss or loss_for(dictionary))
        assert stepper.kernels is None
        assert stepper.optimizer.kernels is None
    dictionary, loss, settings = _refused(case)
    with pytest.raises(
        ValueError, match=r'sparse_kernels = "always", but there are none for a .* leave it out'
    ) as error:
        Stepper(dictionary, _config("always", **settings), loss or loss_for(dictionary))
    assert dictionary.architecture in str(error.value)


def test_auto_is_sparse_from_a_size_on(monkeypatch):
    size = BATCH * D_IN * D_SAE
    for worth_it, expected in ((size, cpu), (size + 1, None)):
        monkeypatch.setattr("saescope.training.stepper.WORTH_IT", worth_it)
        dictionary = _dictionary("topk")
        assert Stepper(dictionary, _config("auto"), loss_for(dictionary)).kernels is expected
        assert Stepper(dictionary, _config("never"), loss_for(dictionary)).kernels is None
        assert Stepper(dictionary, _config("always"), loss_for(dictionary)).kernels is cpu


@pytest.mark.parametrize("name", ["topk", "batch_topk", "ordered"])
def test_auto_is_dense_where_many_features_fire(monkeypatch, name):
    monkeypatch.setattr("saescope.training.stepper.WORTH_IT", 0)
    for k, many in ((D_SAE // 6, False), (D_SAE // 6 + 1, True)):
        dictionary = _dictionary(name, k=k)
        found = Stepper(dictionary, _config("auto"), loss_for(dictionary)).kernels
        assert found is (None if many and name != "ordered" else cpu)  # dense Ordered is slower still
        assert Stepper(dictionary, _config("always"), loss_for(dictionary)).kernels is cpu


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="sparse_kernels is one of auto, always, never, not 'sometimes'"):
        _config("sometimes")


def test_autocast_on_a_cpu_is_dense_and_its_weights_are_moved_all_the_same():
    dictionary = _dictionary("topk", torch.float32)
    before = dictionary.W_dec.detach().clone()
    stepper = Stepper(dictionary, _config(autocast=True), loss_for(dictionary))
    step = stepper.take(_batch(_x(dtype=torch.float32)))
    assert step.was_taken
    assert step.in_bfloat16
    assert isinstance(step.terms.f, Tensor)
    assert not dictionary.W_dec.equal(before)


# Batches in which too many features fire


def _counting(stepper: Stepper) -> list[str]:
    """What kind each further step is of."""
    kinds: list[str] = []
    for kind in ("_sparse", "_dense"):
        original = getattr(stepper, kind)

        def counted(*arguments: Any, original: Any = original, kind: str = kind) -> Any:
            found = original(*arguments)
            if found is not None:
                kinds.append(kind)
            return found

        setattr(stepper, kind, counted)
    return kinds


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_crowded_batches_are_dense_whatever_was_before(name, dense_share):
    """And give what dense training gives; the kind of a step depends on its batch and weights alone."""
    quiet, crowded = 0.02 * _x(64), 5 * _x(64, seed=1)
    pattern = [quiet, crowded, quiet, quiet, crowded, crowded, quiet]
    runs = {}
    for wanted in ("always", "never"):
        dictionary = _dictionary(name)
        assert dictionary.b_enc is not None
        with torch.no_grad():
            dictionary.b_dec.zero_()
            dictionary.b_enc.fill_(-0.5)
        settings = {"num_tokens": 64 * 10, "batch_size_tokens": 64, "max_grad_norm": 1.0}
        stepper = Stepper(dictionary, _config(wanted, **settings), loss_for(dictionary))
        kinds = _counting(stepper)
        for x in pattern:
            assert stepper.take(_batch(x, dead=())).was_taken
        runs[wanted] = dictionary, stepper.optimizer.state()
        if wanted == "always":
            assert kinds == ["_sparse" if x is quiet else "_dense" for x in pattern]
        else:
            assert kinds == ["_dense"] * len(pattern)
    (found, state), (expected, expected_state) = runs["always"], runs["never"]
    for key, parameter in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(key), parameter, rtol=1e-10, atol=1e-10, msg=key)
    for key, moments in expected_state.items():
        torch.testing.assert_close(state[key], moments, rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_is_a_share_of_tokens_times_features(over, dense_share):
    dictionary = _dictionary("relu")
    assert dictionary.b_enc is not None
    num_tokens = 32
    x = torch.zeros(num_tokens, D_IN, dtype=torch.float64)
    limit = int(dense_share * D_SAE * num_tokens)
    assert limit == most_firings(dictionary, x) == 80
    with torch.no_grad():
        dictionary.b_dec.zero_()
        dictionary.b_enc.fill_(-1.0)
        dictionary.b_enc[:2] = 1.0  # 64 firings
        assert dictionary.encoder_rows is not None
        dictionary.encoder_rows[:] = 0
        dictionary.encoder_rows[5, 0] = 3.0
    x[: limit - 64 + over, 0] = 1.0  # tokens on which one more fires
    forward = sparse_pass(cpu, dictionary, x, None)
    assert (forward is None) == bool(over)


# Whole runs


def _stream(seed: int = 0, spoil: int | None = None, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> Any:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(12, D_IN, generator=generator)
    number = 0
    while True:
        codes = torch.rand(batch, 12, generator=generator) * (torch.rand(batch, 12, generator=generator) < 0.2)
        x = (codes @ atoms + 0.3 + 0.01 * torch.randn(batch, D_IN, generator=generator)).to(dtype)
        if number == spoil:
            x[3, 2] = torch.nan
        number += 1
        yield x


@pytest.mark.parametrize("name", SETTINGS)
def test_nan_in_a_batch_is_named_and_the_weights_stay(name):
    dictionary, shorter = _dictionary(name, torch.float32), _dictionary(name, torch.float32)
    with pytest.raises(NonFiniteActivationsError, match="step 5: the activations at the stream contain NaN"):
        train(dictionary, _stream(spoil=5), _config(num_tokens=20 * BATCH))
    run = Run(shorter, _config(num_tokens=20 * BATCH))
    for _, x in zip(range(5), _stream(), strict=False):
        run.take(x, {})
    run.close()
    for key, tensor in shorter.state_dict().items():
        torch.testing.assert_close(dictionary.state_dict()[key], tensor, rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("which", ["encoder_rows", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("name", ["topk", "batch_topk", "ordered", "matryoshka", "relu"])
def test_nan_in_a_weight_is_named_as_in_dense_training(name, apply_b_dec_to_input, which):
    """A feature whose pre-activations are no numbers wins against no bound: it must not just fall silent."""
    dictionary = _dictionary(name, torch.float32, apply_b_dec_to_input=apply_b_dec_to_input)
    with torch.no_grad():
        dictionary.get_parameter(which)[3] = torch.nan
    with pytest.raises(NonFiniteLossError, match="step 0: the loss or its gradient is not finite"):
        train(dictionary, _stream(), _config(normalization="none"))


def test_a_loss_that_is_not_finite_moves_nothing_and_leaves_no_gradient():
    dictionary = _dictionary("topk", torch.float32)
    stepper = Stepper(dictionary, _config(), loss_for(dictionary))
    assert stepper.take(_batch(_x(dtype=torch.float32))).was_taken
    before = {key: tensor.detach().clone() for key, tensor in dictionary.state_dict().items()}
    moments = {key: tensor.clone() for key, tensor in stepper.optimizer.state().items()}
    x = _x(dtype=torch.float32)
    x[2] = 1e30  # its square is infinite
    step = stepper.take(_batch(x))
    assert not step.was_taken
    assert all(tensor.equal(before[key]) for key, tensor in dictionary.state_dict().items())
    assert all(tensor.equal(moments[key]) for key, tensor in stepper.optimizer.state().items())
    assert not any(parameter.grad.any() for parameter in dictionary.parameters())
    after = stepper.take(_batch(_x(seed=1, dtype=torch.float32)))
    assert after.was_taken
    assert all(parameter.isfinite().all() for parameter in dictionary.parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_every_number_of_the_log_is_what_it_says(name):
    """Written out from the weights at the time, for every step of a sparse run but the first, which sets things up."""
    dictionary = _dictionary(name, torch.float64)
    settings = {"log_every_n_steps": 1, "dead_after_tokens": 2 * BATCH, "normalization": "none", "lr": 0.01}
    lines: list[StepMetrics] = []
    run = Run(dictionary, _config(num_tokens=30 * BATCH, **settings), on_metrics=lines.append)
    loss: Any = run.stepper.loss
    stream = _stream(dtype=torch.float64)
    run.take(next(stream), {})
    silent_for = run.stepper.tokens_since_fired.clone()
    seen_dead = False
    for number in range(1, 30):
        x = next(stream)
        with torch.no_grad():
            k = loss.k_at(dictionary, Batch(x, x, run.stepper.dead, number, 30))
            f = dictionary.activate_in_training(dictionary.pre_activations(x), k)
        run.take(x, {})
        line = lines[-1]
        silent_for = torch.where((f > 0).any(0), 0, silent_for + BATCH)
        assert line.l0 == pytest.approx(float((f > 0).double().sum(-1).mean()), abs=1e-12)
        assert line.dead_share == float((silent_for >= 2 * BATCH).double().mean())
        seen_dead = seen_dead or line.dead_share > 0
        with torch.no_grad():
            x_hat = dictionary(x)
        error, spread = (x - x_hat).square().sum(), (x - x.mean(0)).square().sum()
        assert line.explained_variance == pytest.approx(float(1 - error / spread), abs=1e-9)
        assert math.isfinite(line.loss)
    assert seen_dead
    run.close()


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_the_threshold_is_that_of_dense_training(name):
    found = []
    for wanted in ("always", "never"):
        for num_threshold_tokens in (0, 5 * BATCH):  # the running mean, and what is measured at the end
            dictionary = _dictionary(name, torch.float64)
            config = _config(wanted, num_tokens=40 * BATCH, num_threshold_tokens=num_threshold_tokens)
            train(dictionary, _stream(dtype=torch.float64), config)
            assert dictionary.threshold > 0
            found.append(float(dictionary.threshold))
    assert found[:2] == pytest.approx(found[2:], rel=1e-9)
    assert found[0] != found[1]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reconstructions_are_those_of_inference(name, dtype):
    dictionary = _dictionary(name, dtype)
    if hasattr(dictionary, "threshold") and not dictionary.threshold.ndim:
        dictionary.threshold.fill_(0.4)
    x = _x(dtype=dtype)
    with torch.no_grad():
        expected = dictionary(x)
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
        for kernels in (cpu, None):
            torch.testing.assert_close(reconstruct(kernels, dictionary, x), expected, **tolerance)


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_reconstructions_with_many_firings_are_dense(name, dense_share, monkeypatch):
    dictionary = _dictionary(name)
    monkeypatch.setattr(cpu, "decode", lambda *a: pytest.fail("too many fire"))
    with torch.no_grad():
        x = 5 * _x()
        assert reconstruct(cpu, dictionary, x).equal(dictionary(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["topk", "jumprelu"])
def test_activations_of_other_dtypes_are_brought_to_that_of_the_weights(name, dtype):
    runs = []
    for wanted in ("always", "never"):
        dictionary = _dictionary(name, torch.float32)
        before = dictionary.W_dec.detach().clone()
        train(dictionary, _stream(dtype=dtype), _config(wanted))
        assert dictionary.W_dec.dtype == torch.float32
        assert not dictionary.W_dec.equal(before)
        runs.append(dictionary.W_dec.detach())
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_batches_need_not_be_contiguous_and_stay_as_they_are(name):
    def turned() -> Any:
        for x in _stream():
            given.append(x.T.contiguous().T)
            copies.append(x.clone())
            yield given[-1] if len(given) % 2 else TrainingBatch(given[-1])

    given: list[Tensor] = []
    copies: list[Tensor] = []
    found, expected = _dictionary(name, torch.float32), _dictionary(name, torch.float32)
    train(found, turned(), _config())
    train(expected, _stream(), _config())
    assert not given[0].is_contiguous()
    assert all(x.equal(copy) for x, copy in zip(given, copies, strict=True))
    for key, tensor in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(key), tensor, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", SETTINGS)
def test_batches_of_one_token(name):
    runs = []
    for wanted in ("always", "never"):
        dictionary = _dictionary(name, torch.float64)
        config = _config(wanted, num_tokens=20, batch_size_tokens=1, num_normalization_tokens=4)
        settings = {"reconstruction": "mse"}  # of one token there is no variance
        train(dictionary, _stream(batch=1, dtype=torch.float64), config, loss=loss_for(dictionary, settings))
        runs.append(dictionary.state_dict())
    for key, tensor in runs[1].items():
        torch.testing.assert_close(runs[0][key], tensor, rtol=1e-7, atol=1e-8, msg=key)
