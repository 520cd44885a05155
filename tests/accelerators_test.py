"""All programs are lowered for GPU and TPU, with nothing in them that is for a CPU."""

import jax
import jax.numpy as jnp
import pytest
from helpers import lowering, runs

from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.config.consistency import validate
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.pipeline import single_run
from asose_jax.spaces import registry
from asose_jax.train import pmap
from asose_jax.train.phases import Phase
from benchmarks import floors

_SMALLEST = {'batch_size': 16, 'growth.epochs': 0, 'model.depth': 1, 'model.reductions': ()}
_SPACES = {
    'chain': {'model.primitives': ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3')},
    'nasbench201': {'model.primitives': ('none', 'skip_connect', 'nor_conv_3x3')},
    'darts': {
        'model.primitives': ('none', 'skip_connect'),
        'model.depth': 2,
        'model.reductions': (1,),
    },
}
# Every estimator, each space twice, and fields that change what a program holds.
_CASES = {
    'straight_through': ('chain', {}),
    'gdas': ('nasbench201', {'model.dtype': 'bfloat16', 'search.auxiliary_skip': True}),
    'reinmax': ('darts', {'search.tau_start': 1.0, 'search.tau_floor': 1.0, 'data.cutout': 2}),
    'gumbel': ('chain', {'model.remat': True, 'warmup.operations': 'uniform'}),
    'softmax': ('darts', {'search.partial_channels': 2, 'optimize.drop_path': 0.2}),
    'drnas': ('nasbench201', runs.AHEAD),
}


def _config(estimator):
    space, changes = _CASES[estimator]
    named = {'model.space': space, 'search.estimator': estimator, 'search.noise': None}
    if ESTIMATORS[estimator].noisy:
        named['search.noise'] = 'unit'
    if changes.get('warmup.operations') == 'uniform':
        named['search.exact_start'] = False
    config = runs.tiny(**_SMALLEST | _SPACES[space] | named | changes)
    validate(config, jax.device_count())
    return config


def _assert_for_accelerators(estimator):
    config = _config(estimator)
    texts = lowering.programs(config, 'gpu', lowering.ACCELERATORS)
    kinds = {'train_steps', 'eval_steps'}
    wanted = {(phase, kind) for phase in set(Phase) - {Phase.GROWTH} for kind in kinds}
    assert wanted | {(Phase.SEARCH, 'recompute_batch_stats')} <= texts.keys()
    for text in texts.values():
        lowering.assert_for_accelerators(text)
    met = set().union(*map(lowering.exchanges, texts.values()))
    assert ('gradient' in met) is config.search.second_order
    assert met | {'gradient'} == lowering.EXCHANGES


def test_programs_of_a_run_are_lowered_for_gpu_and_tpu_without_forms_of_the_cpu():
    _assert_for_accelerators('straight_through')


@pytest.mark.slow
@pytest.mark.parametrize('estimator', [*_CASES][1:])
def test_programs_of_every_space_and_estimator_are_lowered_for_gpu_and_tpu(estimator):
    _assert_for_accelerators(estimator)


def test_every_space_and_estimator_is_lowered():
    assert _CASES.keys() == ESTIMATORS.keys()
    assert {space for space, _ in _CASES.values()} == _SPACES.keys() == registry.SPACES.keys()


@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_primitive_has_its_cpu_form_on_the_cpu_and_nowhere_else(name):
    norm, dtype = Norm('float32', None), jnp.bfloat16 if name.endswith('5x5') else jnp.float32
    call = operations.pure_function(name, 4, norm, 2, True, False)
    x = jax.ShapeDtypeStruct((2, 6, 6, 4), dtype)
    made = operations.make(name, 4, norm, 2, parent=None)
    variables = jax.eval_shape(lambda x: made.init(jax.random.key(0), x, False), x)
    params, stats = (variables.get(key, {}) for key in ('params', 'batch_stats'))

    def loss(params, x, stats):
        return call(params, stats, x)[0].astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(params, x, stats)
    lowering.assert_for_accelerators(lowering.lowered_text(traced, lowering.ACCELERATORS))
    assert lowering.has_cpu_forms(lowering.lowered_text(traced, ('cpu',))) is (name != 'none')


@pytest.mark.parametrize(('platform', 'for_cpu'), [('cpu', True), ('gpu', False), ('tpu', False)])
def test_a_run_takes_the_form_of_its_devices(tmp_path, monkeypatch, platform, for_cpu):
    monkeypatch.setattr(pmap, 'platform', lambda: platform)

    def form(context, origin, _):
        return context.model(origin.spec).for_cpu

    monkeypatch.setattr(single_run, '_run_phases', form)
    assert single_run.run(runs.tiny(), tmp_path) is for_cpu


def _assert_no_conditional_for_each_candidate(preset, **fields):
    """In a weight step a mixed operation has two: what is drawn, forward and backward."""
    now, branching = (floors.counts(preset, form, **fields) for form in (False, True))
    weights, alpha = (now[turn].conditionals for turn in floors.TURNS)
    assert 1 < alpha <= weights
    candidates = len(fields['model.primitives'])
    assert branching['alpha step'].conditionals - alpha == candidates * (weights - 1) // 2


def test_an_alpha_step_for_a_gpu_has_no_conditional_for_each_candidate():
    names = ('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3')
    small = {'model.channels': 8, 'model.depth': 1, 'model.reductions': ()}
    _assert_no_conditional_for_each_candidate('digits', **small, **{'model.primitives': names})


@pytest.mark.slow
def test_an_alpha_step_of_cells_for_a_gpu_has_no_conditional_for_each_candidate():
    small = _SMALLEST | _SPACES['nasbench201'] | {'model.channels': 8}
    _assert_no_conditional_for_each_candidate('nasbench201', **small)
