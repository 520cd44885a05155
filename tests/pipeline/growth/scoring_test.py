"""Where to grow: scores are the gradients they say they are, limits are kept."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode
from asose_jax.pipeline.growth import scoring, transforms
from asose_jax.pipeline.growth.scoring import Limits
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.spaces import chain
from asose_jax.train import state
from asose_jax.train.phases import Phase

NAMES = ('none', 'max_pool_3x3', 'skip_connect', 'nor_conv_1x1', 'dil_conv_3x3')
SPEC = chain.build(
    (6, 6, 2), 3, channels=8, depth=2, reductions=(1,), max_channels=12, primitives=NAMES
)
TX = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))
ANY = Limits(99, 999, 99, None)
KEY = jax.random.key(5)
RANDOM = np.random.default_rng(0)
BATCHES = [
    (RANDOM.normal(size=(4, 6, 6, 2)).astype('f'), RANDOM.integers(0, 3, 4)) for _ in range(2)
]


def _fresh(spec):
    return networks.fresh_state(networks.supernet(spec), TX)


@functools.cache
def start():
    """A state whose alpha is surest of operations that are quickly compiled."""
    made = _fresh(SPEC)
    for block, name in enumerate(('dil_conv_3x3', 'max_pool_3x3')):
        made.arch[f'block_{block}']['choice_0']['alpha'] = np.float32([n == name for n in NAMES])
    return made


def scores(found, class_weights=None):
    """Scores growths of the most likely network."""
    chosen = genotype.most_likely(SPEC, start().arch)
    return scoring.score_candidates(found, SPEC, start(), BATCHES, KEY, chosen, class_weights)


@functools.cache
def scored():
    found, refused = scoring.list_candidates(SPEC, start().params, chain.KINDS_OF_GROWTH, 1.5, ANY)
    assert not refused
    return {c.growth: c for c in scores(found)}


def _loss(spec, params, batch_stats):
    """Mean over both batches, in training mode."""

    def of(batch):
        images, labels = batch
        logits, _ = networks.supernet(spec).apply(
            {'params': params, 'batch_stats': batch_stats},
            images,
            mode=Mode.ARGMAX,
            train=True,
            mutable=['batch_stats'],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.lax.map(of, tuple(map(np.stack, zip(*BATCHES, strict=True)))).mean()


def test_every_place_and_kind_is_a_candidate():
    places = [(g.kind, g.where, g.channels) for g in scored()]
    assert places == [
        *(('depth', position, 0) for position in range(3)),
        *(('width', 0, 16), ('width', 1, 16)),
        *(('branch', block, 0) for block in range(2)),
    ]


def test_scores_are_of_the_loss_with_class_weights():
    wider = [c for growth, c in scored().items() if growth.kind == 'width']
    weights = np.full(3, 2, np.float32)
    twice = scores(wider, weights)
    expected = [2 * candidate.score for candidate in wider]
    np.testing.assert_allclose([c.score for c in twice], expected, rtol=1e-4)


def _derived():
    chosen = genotype.most_likely(SPEC, start().arch)
    return factors.folded_spec(SPEC, chosen), state.derive_state(start(), SPEC, chosen, TX)


@pytest.mark.parametrize(
    'place', [('depth', 2), ('branch', 1), pytest.param(('depth', 0), marks=pytest.mark.slow)]
)
def test_score_of_a_factor_is_its_gradient_in_the_network_that_was_grown(place):
    """One block with one factor for each operation, really inserted, and differentiated."""
    spec, derived = _derived()
    names = ('nor_conv_1x1', 'dil_conv_3x3')  # those with weights
    gradients = []
    for number, name in enumerate(names):
        step = Growth(*place, candidates=(name,))

        grown_spec, grown = transforms.grow(spec, derived, step, fresh=_fresh, key=KEY)
        block = f'block_{step.where}'
        row = 'branch_0' if step.kind == 'depth' else 'branch_1'
        # The operation with the weights that the score gave it.
        width = grown_spec.blocks[step.where].channels
        operation = scoring.operations.make(name, width, scoring.nn.BatchNorm)
        x = np.zeros((1, 6, 6, width), np.float32)
        made = jax.jit(operation.init, static_argnums=2)(jax.random.fold_in(KEY, number), x, True)
        assert grown.params[block][row][name]['factor'] == 0
        own = made['params']

        @jax.jit
        @jax.grad
        def slope(factor, spec=grown_spec, held=grown, block=block, row=row, name=name, own=own):
            added = {name: {**own, 'factor': factor}}
            params = {**held.params, block: {**held.params[block], row: added}}
            return _loss(spec, params, held.batch_stats)

        gradients.append(float(slope(np.float32(0))))
    expected = np.sqrt(np.mean(np.square(gradients)))
    score = scored()[Growth(*place, candidates=NAMES)].score
    assert score == pytest.approx(expected, rel=1e-3)
    assert score > 0


def test_score_of_a_width_is_the_gradient_of_the_copies_outgoing_weights():
    """Of the network really widened, where every channel is copied once."""
    spec, derived = _derived()
    grown_spec, grown = transforms.widen(spec, derived, 0, 16, key=KEY)
    gradient = jax.jit(jax.grad(functools.partial(_loss, grown_spec)))(
        grown.params, grown.batch_stats
    )
    source, _ = transforms.channel_map(8, 16, KEY)
    squares = 0.0
    for kernel in transforms.reading_kernels(grown_spec, gradient, 0):
        copies = np.asarray(kernel)[..., 8:, :]
        if kernel.shape[-1] == 16:  # inside the stage, outputs have copies too, and share
            copies = sum(copies[..., source == old].sum(-1) ** 2 for old in range(8))
            squares += copies.sum()
        else:
            squares += np.square(copies).sum()
    assert scored()[Growth('width', 0, channels=16)].score == pytest.approx(np.sqrt(squares), 1e-3)


def test_added_parameters_are_those_of_the_grown_supernet():
    for step in (
        Growth('depth', 2, candidates=NAMES),
        Growth('branch', 0, candidates=NAMES),
        Growth('width', 1, channels=16),
    ):
        _, grown = transforms.grow(SPEC, start(), step, fresh=_fresh, key=KEY)
        before, after = (factors.count_parameters(held.params) for held in (start(), grown))
        assert scored()[step].added == after - before


@pytest.mark.parametrize(
    ('limits', 'kind', 'reason'),
    [
        (Limits(2, 999, 9, None), 'depth', 'would make 3, over growth.max_depth=2'),
        (
            Limits(9, 15, 9, None),
            'width',
            'widening stage 1 would make 16, over growth.max_channels=15',
        ),
        (Limits(9, 999, 1, None), 'branch', 'would make 2, over growth.max_branches=1'),
        (Limits(9, 999, 9, 100), 'depth', 'over growth.max_params=100'),
    ],
)
def test_growth_over_a_limit_is_left_out_and_told(limits, kind, reason):
    found, refused = scoring.list_candidates(SPEC, start().params, [kind], 1.5, limits)
    everything, _ = scoring.list_candidates(SPEC, start().params, [kind], 1.5, ANY)
    assert len(found) + len(refused) == len(everything)
    assert any(reason in line for line in refused)


def test_widths_are_multiples_of_eight_and_always_more():
    assert [scoring.wider(c, 1.5) for c in (4, 8, 16, 24, 40, 64)] == [8, 16, 24, 40, 64, 96]
    assert scoring.wider(64, 1.0) == 72
