"""Every field of the config: its default, what it may hold, what it means, where it comes from.

One row drives the presets (`presets`), the checks (`consistency`), the page docs/config.md, and the
wrong values that the tests try. The module imports no JAX: a config can be read without it.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

_REQUIRED = object()  # stands for a field that every run has had
SAME_FLOPS = 'same_flops'  # the word for `retrain.epochs`


class Rule(NamedTuple):
    """Describes and checks the values of a field.

    Attributes:
      describe: returns the allowed values in words.
      holds: returns whether a value is allowed.
      wrong: values just outside of what is allowed, for tests.
    """

    describe: Callable[[], str]
    holds: Callable[[Any], bool]
    wrong: tuple[Any, ...]

    @property
    def allowed(self) -> str:
        """The allowed values in words, to be put behind 'must be'."""
        return self.describe()


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: its value in the preset `cifar10`.
      rule: the values that it may have.
      help: its meaning, for docs/config.md.
      source: where the default or the method comes from, as a Markdown link; empty for this
        program's own.
      before: the value that describes runs begun before the field existed; `_REQUIRED` if all runs
        have had it.
      changeable: whether a run may go on with another value. Such a field changes when something is
        saved, shown or sent, and nothing that is learned.
    """

    default: Any
    rule: Rule
    help: str
    source: str = ''
    before: Any = _REQUIRED
    changeable: bool = False

    @property
    def has_several_types(self) -> bool:
        """Whether its values are of more types than that of the default: None, or a word."""
        if self.rule.holds(None) or isinstance(self.default, str):  # names are rules that need JAX
            return self.rule.holds(None)
        return self.rule.holds(SAME_FLOPS)


_MAX_SIDE = 8192  # of an image in pixels; it has 192 MiB then


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _rule(allowed: str, holds: Callable[[Any], bool], *wrong: Any) -> Rule:
    return Rule(lambda: allowed, holds, wrong)


def _integer(low: int) -> Rule:
    return _rule(
        f'an integer of at least {low}',
        lambda v: _is_integer(v) and v >= low,
        *(low - 1, low + 0.5, True, None),
    )


def _number(allowed: str, holds: Callable[[float], bool], *wrong: Any) -> Rule:
    return _rule(
        allowed, lambda v: _is_number(v) and holds(v), *wrong, float('nan'), float('inf'), '1'
    )


def _optional(rule: Rule) -> Rule:
    return Rule(
        lambda: f'{rule.allowed}, or None',
        lambda v: v is None or rule.holds(v),
        tuple(value for value in rule.wrong if value is not None),
    )


def _one_of(*values: str) -> Rule:
    allowed = ' or '.join(repr(v) for v in values)
    return _rule(allowed, lambda v: v in values, 'something else', '', None, 1)


def _one_name_in(module: str, table: str) -> Rule:
    """Allows a key of a table in another module, which is imported when a config is checked."""

    def names() -> tuple[str, ...]:
        return tuple(_table(module, table))

    return Rule(
        lambda: ' or '.join(repr(name) for name in names()),
        lambda v: isinstance(v, str) and v in names(),
        ('something else', '', None, 1),
    )


def _table(module: str, name: str) -> Collection[str]:
    return getattr(importlib.import_module(f'asose_jax.{module}'), name)


def _are_distinct_primitives(value: Any) -> bool:
    if not _is_sequence(value) or len(set(value)) != len(value):
        return False
    return set(value) <= set(_table('nn.operations', 'PRIMITIVES'))


def _are_candidates(value: Any) -> bool:
    return _are_distinct_primitives(value) and len(value) >= 2 and 'skip_connect' in value


def _are_block_numbers(value: Any) -> bool:
    if not _is_sequence(value) or not all(_is_integer(i) and i >= 0 for i in value):
        return False
    return len(set(value)) == len(value)


def _is_seed(value: Any) -> bool:
    return _is_integer(value) and 0 <= value < 2**32


def _are_seeds(value: Any) -> bool:
    return _is_sequence(value) and all(map(_is_seed, value)) and len(set(value)) == len(value)


def _are_targets(value: Any) -> bool:
    if not _is_sequence(value) or not all(_is_number(v) and v > 0 for v in value):
        return False
    return len(value) != 1 and len(set(value)) == len(value)


def _are_thresholds(value: Any) -> bool:
    return (
        _is_sequence(value)
        and len(value) == 5
        and all(_is_number(t) and 0 <= t <= 1 for t in value)
    )


def _are_growths(value: Any) -> bool:
    return _is_sequence(value) and all(map(_is_growth, value))


def _is_growth(value: Any) -> bool:
    """Returns whether a value is one kind, 'auto', or different kinds joined by `+`."""
    if not isinstance(value, str):
        return False
    kinds = value.split('+')
    known = set(_table('spaces.chain', 'KINDS_OF_GROWTH'))
    return value == 'auto' or (len(set(kinds)) == len(kinds) and set(kinds) <= known)


_BOOL = _rule('True or False', lambda v: isinstance(v, bool), 1, 'yes', None)
_TEXT = _rule('a non-empty string', lambda v: isinstance(v, str) and bool(v), '', 3, None)
_POSITIVE = _number('a finite number above 0', lambda v: v > 0, 0, -0.1)
_NOT_NEGATIVE = _number('a finite number of at least 0', lambda v: v >= 0, -1e-4, None)
_FINITE = _number('a finite number', lambda v: True)
_SHARE = _number('a number in [0, 1)', lambda v: 0 <= v < 1, 1.0, -0.1)
_INSIDE = _number('a number in (0, 1)', lambda v: 0 < v < 1, 0, 1, -0.1)
_RATIO = _number('a number in (0, 1]', lambda v: 0 < v <= 1, 0, 1.1)
_MAGNITUDE = _number('a number in (0, 10]', lambda v: 0 < v <= 10, 0, 10.5)
_BLOCKS = _rule(
    'a tuple of distinct block numbers, from 0', _are_block_numbers, (1, 1), (-1,), (1.0,), 2
)
_CANDIDATES = Rule(
    lambda: (
        'distinct names, at least two, with skip_connect, out of '
        f'{", ".join(_table("nn.operations", "PRIMITIVES"))}'
    ),
    _are_candidates,
    (
        ('skip_connect',),
        ('none', 'sep_conv_3x3'),
        ('skip_connect', 'conv_9x9'),
        ('skip_connect', 'skip_connect'),
    ),
)

_DARTS = '[DARTS](https://arxiv.org/abs/1806.09055)'
_R_DARTS = '[R-DARTS](https://arxiv.org/abs/1909.09656)'
_GUMBEL = '[Gumbel-Softmax](https://arxiv.org/abs/1611.01144)'
_SGDR = '[SGDR](https://arxiv.org/abs/1608.03983)'
_MIXUP = '[mixup](https://arxiv.org/abs/1710.09412)'
_CUTMIX = '[CutMix](https://arxiv.org/abs/1905.04899)'
_RANDAUGMENT = '[RandAugment](https://arxiv.org/abs/1909.13719)'
_TUNAS = '[TuNAS](https://arxiv.org/abs/2008.06120)'

# Groups of fields, with a line for docs/config.md.
GROUPS: dict[str, str] = {
    'data': 'the images, their split and augmentation',
    'model': 'the network that is searched',
    'weights': 'SGD, which trains the weights',
    'arch': 'the architecture parameters alpha: their start, and AdamW, which trains them',
    'warmup': 'the first phase: weights only',
    'search': 'the second phase: weights and alpha in turn',
    'growth': 'the third phase: search goes on, and the network gets deeper and wider',
    'optimize': 'the last phase: the derived network',
    'retrain': 'the settings of --mode=retrain; each takes the place of the field that it names',
    'guard': 'against numbers that are not finite',
    'alarm': 'when to warn',
    'benchmark': 'true accuracies to compare the result with',
    'cost': 'a price on what the derived network costs',
    'cost.limit': 'what the derived network may cost; None: no limit',
    'checkpoint': 'when to save, and how many checkpoints to keep',
}

FIELDS: dict[str, Field] = {
    'seed': Field(
        0,
        _rule('an integer in [0, 2**32)', _is_seed, -1, 2**32, 1.5),
        'seed of the split, initial weights and alpha, draws and augmentation',
    ),
    'seeds': Field(
        (),
        _rule('a tuple of distinct integers in [0, 2**32)', _are_seeds, (0, 0), (-1,), 3),
        'several searches in one command, each in WORKDIR/seed_N; (): one',
    ),
    'random_cells': Field(
        0,
        _integer(0),
        'random networks of the space that are trained from scratch beside those that `seeds` find',
    ),
    'plain_cells': Field(
        (),
        _rule(
            'a tuple of distinct names of primitives',
            _are_distinct_primitives,
            *(('conv_9x9',), ('none', 'none'), 'none'),
        ),
        'networks of nothing but this primitive, trained likewise, with each seed',
    ),
    'batch_size': Field(128, _integer(1), 'images in a batch over all devices; a multiple of them'),
    'chunk_steps': Field(20, _integer(1), 'most steps in one compiled call', changeable=True),
    'track': Field(
        None,
        _optional(_one_of('mlflow', 'wandb')),
        'tracker that a run is sent to while it trains, see [trackers](trackers.md); None: none',
        before=None,
        changeable=True,
    ),
    'init_from': Field(
        None,
        _optional(_TEXT),
        'workdir (or WORKDIR/checkpoints/STEP) whose weights, alpha and optimizer state a run '
        'begins with; the head is fresh if the classes differ',
    ),
    'network': Field(
        None,
        _optional(_TEXT),
        'workdir or genotype.json with a network that is trained from scratch',
    ),
    'network_channels': Field(
        None,
        _optional(
            _rule(
                'a multiple of 8, from 8',
                lambda v: _is_integer(v) and v >= 8 and not v % 8,
                *(12, 0, 8.0),
            )
        ),
        "channels of that network's stem, which all widths follow; None: as described",
    ),
    'genotype': Field(
        None,
        _optional(_TEXT),
        'operations of a network whose size `model` describes: a workdir, genotype.json, '
        'genotype.txt, a Python file or log (FILE:NAME where it has several), or the text itself',
    ),
    'data.name': Field(
        'cifar10', _TEXT, "'digits', 'folder', or any image classification set of TFDS"
    ),
    'data.dir': Field(
        None,
        _optional(_TEXT),
        'folder of the pictures, or of TFDS; None: $TFDS_DATA_DIR or ~/tensorflow_datasets',
    ),
    'data.train_split': Field('train', _TEXT, 'TFDS split, or folder in data.dir, to learn from'),
    'data.test_split': Field(
        'test', _TEXT, 'TFDS split, or folder in data.dir, that is evaluated once, at the end'
    ),
    'data.test_fraction': Field(
        None,
        _optional(_INSIDE),
        'test share of a folder of pictures that has no test folder; None: 0.2',
    ),
    'data.image_size': Field(
        None,
        _optional(
            _rule(
                f'an integer in [1, {_MAX_SIDE}]',
                lambda v: _is_integer(v) and 1 <= v <= _MAX_SIDE,
                *(0, 1.5, True, _MAX_SIDE + 1),
            )
        ),
        'side in pixels that the middle square of each image is scaled to; None: as it is',
    ),
    'data.valid_fraction': Field(
        0.2,
        _SHARE,
        'share of the training split held out to train alpha and to decide; 0, where nothing is '
        'searched: none, and all images are trained on',
    ),
    'data.crop_padding': Field(
        4, _integer(0), 'pixels of padding that random crops are taken from; 0: no crops'
    ),
    'data.flip': Field(True, _BOOL, 'random left-right flips'),
    'data.cutout': Field(
        0,
        _integer(0),
        'side in pixels of a square of zeros at a random place of training images; 0: none',
        '[cutout](https://arxiv.org/abs/1708.04552)',
    ),
    'data.class_weights': Field(
        None,
        _optional(_one_of('balanced')),
        "weights of the images in the training loss of weights and alpha; 'balanced': n / (classes "
        '* n_c) for class c with n_c of the n training images, so that rare classes count as much '
        'as frequent ones; None: all alike',
        '[scikit-learn](https://scikit-learn.org/stable/modules/generated/'
        'sklearn.utils.class_weight.compute_class_weight.html)',
        before=None,
    ),
    'data.resident_megabytes': Field(
        1024, _integer(0), 'larger data sets are streamed instead of held on the device'
    ),
    'model.space': Field(
        'chain', _one_name_in('spaces.registry', 'SPACES'), 'search space, see asose_jax/spaces'
    ),
    'model.channels': Field(64, _integer(1), 'channels of the stem (darts: a third of them)'),
    'model.depth': Field(6, _integer(1), 'blocks (nasbench201, darts: cells, reductions included)'),
    'model.reductions': Field(
        (1, 3), _BLOCKS, 'numbers of the blocks that halve the image and double the channels'
    ),
    'model.max_channels': Field(256, _integer(1), 'channels at which doubling stops'),
    'model.primitives': Field(
        (
            'none',
            'avg_pool_3x3',
            'max_pool_3x3',
            'skip_connect',
            'sep_conv_3x3',
            'sep_conv_5x5',
            'sep_conv_7x7',
            'dil_conv_3x3',
            'dil_conv_5x5',
            'conv_7x1_1x7',
        ),
        _CANDIDATES,
        'candidate operations',
    ),
    'model.residual': Field(
        True, _BOOL, "whether blocks of the space 'chain' add their input; without, they never grow"
    ),
    'model.remat': Field(
        False, _BOOL, 'compute operations again in the backward pass: slower, less memory'
    ),
    'model.dtype': Field(
        'float32',
        _one_of('float32', 'bfloat16'),
        "type of activations; 'bfloat16' on TPU and recent GPUs",
    ),
    'weights.lr': Field(
        0.025,
        _POSITIVE,
        'learning rate at the start of one cosine over all weight updates of the run',
        _DARTS,
    ),
    'weights.lr_end': Field(1e-4, _NOT_NEGATIVE, 'learning rate at the end of the cosine'),
    'weights.lr_warmup_steps': Field(
        0,
        _integer(0),
        'weight updates over which the learning rate rises to its peak, where a run begins and '
        'where optimize.lr starts anew',
        '[Goyal et al.](https://arxiv.org/abs/1706.02677)',
        before=0,
    ),
    'weights.momentum': Field(0.9, _SHARE, 'momentum of SGD', _DARTS),
    'weights.nesterov': Field(
        False,
        _BOOL,
        'Nesterov momentum instead of plain momentum',
        '[Sutskever et al.](https://proceedings.mlr.press/v28/sutskever13.html)',
        before=False,
    ),
    'weights.weight_decay': Field(3e-4, _NOT_NEGATIVE, 'L2, added to the gradient', _DARTS),
    'weights.clip': Field(
        5.0,
        _NOT_NEGATIVE,
        "largest norm of the weights' gradient; 0: no limit",
    ),
    'arch.init_std': Field(
        1e-3, _NOT_NEGATIVE, 'standard deviation of the normal noise that alpha starts from'
    ),
    'arch.none_bias': Field(0.0, _FINITE, 'alpha of none at the start'),
    'arch.skip_bias': Field(0.0, _FINITE, 'alpha of skip_connect at the start'),
    'arch.lr': Field(
        None, _optional(_POSITIVE), 'learning rate at the start of one cosine; None: from travel'
    ),
    'arch.lr_end': Field(1e-5, _NOT_NEGATIVE, 'learning rate at the end of the cosine'),
    'arch.travel': Field(
        4.0, _POSITIVE, 'sum of the learning rates of the run: the farthest Adam can move a logit'
    ),
    'arch.b1': Field(0.5, _SHARE, "decay of Adam's first moment", _DARTS),
    'arch.b2': Field(0.999, _SHARE, "decay of Adam's second moment", _DARTS),
    'arch.weight_decay': Field(1e-3, _NOT_NEGATIVE, 'decoupled weight decay (AdamW)', _DARTS),
    'arch.anchor': Field(
        0.0,
        _NOT_NEGATIVE,
        "weight of DrNAS's regulariser; use it with arch.weight_decay=0",
        '[DrNAS](https://arxiv.org/abs/2006.10355)',
    ),
    'arch.samples': Field(1, _integer(1), 'draws in an alpha step, whose gradients are averaged'),
    'arch.micro_batches': Field(
        1, _integer(1), 'parts of a batch that alpha steps compute one after another: less memory'
    ),
    'warmup.epochs': Field(10, _integer(0), 'passes of the weights over the training images'),
    'warmup.operations': Field(
        'skip',
        _one_of('skip', 'uniform'),
        "operation in use: 'skip': skip_connect, or none with an exact start; 'uniform': a draw in "
        'which all are equally likely',
        '[SPOS](https://arxiv.org/abs/1904.00420)',
    ),
    'search.epochs': Field(
        30, _integer(0), 'passes of the weights over the training images; alpha steps come on top'
    ),
    'search.freeze_epochs': Field(
        None,
        _optional(_integer(0)),
        'first epochs, in which alpha does not move; None: a fifth of them with an exact start, so '
        'that all candidates open, else none',
        before=0,
    ),
    'search.turn_period': Field(
        5, _integer(2), 'one of so many steps moves alpha, the others the weights'
    ),
    'search.turns': Field(
        'alternate',
        _one_of('alternate', 'together'),
        "'together': steps of alpha move the weights as well, by one batch",
    ),
    'search.arch_data': Field(
        'valid', _one_of('valid', 'train'), 'images that alpha is trained on'
    ),
    'search.estimator': Field(
        'straight_through',
        _one_name_in('arch.estimators', 'ESTIMATORS'),
        "estimator of alpha's gradient",
        '[estimators.md](estimators.md)',
    ),
    'search.second_order': Field(
        False,
        _BOOL,
        'alpha steps of mixtures look one weight step ahead: exact, slower',
        _DARTS,
    ),
    'search.noise': Field(
        None,
        _optional(_one_of('unit', 'temperature')),
        "'unit': draws follow softmax(alpha); 'temperature': softmax(alpha/tau); None: "
        "'temperature' where the estimator has it",
        _GUMBEL,
    ),
    'search.tau_start': Field(0.8, _POSITIVE, 'temperature of the first draw', _GUMBEL),
    'search.tau_rate': Field(
        0.98,
        _number('a number in (0, 0.9999]', lambda v: 0 < v <= 0.9999, 0, 1.0),
        'factor of one decay of the temperature',
        _GUMBEL,
    ),
    'search.tau_floor': Field(0.1, _POSITIVE, 'lowest temperature'),
    'search.anneal_every': Field(
        None,
        _optional(_integer(1)),
        'alpha updates per decay of the temperature; None: spread over search, or over growth '
        'if there is no search',
    ),
    'search.transition_noise': Field(
        0.05, _NOT_NEGATIVE, 'standard deviation of noise added to alpha when the search begins'
    ),
    'search.exact_start': Field(
        None,
        _optional(_BOOL),
        'candidates begin with a factor of 0, so that search begins with the function that warmup '
        "ended with; None: in the space 'chain', where it is possible",
        before=False,
    ),
    'search.statistics_batches': Field(
        8,
        _integer(0),
        "training batches from which evaluations of a supernet take BatchNorm's statistics, and "
        'those of averaged weights (optimize.ema); 0: running ones, which are means over draws',
        before=0,
    ),
    'search.auxiliary_skip': Field(
        False,
        _BOOL,
        'a skip beside every mixed operation, which fades in search',
        '[DARTS-](https://arxiv.org/abs/2009.01027)',
    ),
    'search.partial_channels': Field(
        1,
        _integer(1),
        'K: candidates see one of K channels; 1: all',
        '[PC-DARTS](https://arxiv.org/abs/1907.05737)',
    ),
    'search.thresholds': Field(
        (0.95, 0.8, 0.05, 0.02, 0.1),
        _rule(
            'five numbers in [0, 1]: alone, dominant, beside_dominant, minor, least_sum',
            _are_thresholds,
            *((0.95, 0.8), (0.95, 0.8, 0.05, 0.02, 2.0)),
        ),
        'weights by which weight steps of mixtures leave operations out; (1, 1, 0, 0, 0): none',
    ),
    'search.early_stop': Field(
        False,
        _BOOL,
        "end search when the largest eigenvalue of alpha's Hessian rises",
        _R_DARTS,
    ),
    'search.stop_window': Field(
        5,
        _integer(1),
        'evaluations in each of the two means of the eigenvalue that are compared',
        _R_DARTS,
    ),
    'search.stop_ratio': Field(
        0.75,
        _INSIDE,
        'search ends when the older mean is less than this share of the newer',
        _R_DARTS,
    ),
    'search.settle_epochs': Field(
        None,
        _optional(_integer(2)),
        'search ends once its network has been the same, every choice ahead by 0.1 in alpha, in so '
        'many epochs in a row; optimize gets the epochs that are left; None: it never does',
        before=None,
    ),
    'search.selection': Field(
        'argmax',
        _one_of('argmax', 'perturbation'),
        "'argmax' of alpha; 'perturbation': the operations that accuracy misses most",
        '[DARTS-PT](https://arxiv.org/abs/2108.04392)',
    ),
    'growth.epochs': Field(
        40,
        _integer(0),
        'epochs in which the network may grow; it does not in fewer than patience + lead_epochs + '
        'last_epochs + 1',
    ),
    'growth.kinds': Field(
        ('depth', 'width'),
        _rule(
            "a tuple of 'depth', 'width', 'branch', 'auto', or several joined by + that take place "
            "together ('depth+width'), taken in turn; () does not grow",
            _are_growths,
            *(('length',), 'depth', ('depth+depth',)),
        ),
        "kinds of growth, in turn; 'depth+width': both at once, so that one network is compiled "
        "instead of two; 'auto': the best gain per parameter",
    ),
    'growth.where': Field(
        'score',
        _one_of('score', 'last', 'random'),
        "'score': where the gradient promises most; 'last': the last block or stage; 'random'",
    ),
    'growth.threshold': Field(
        0.02, _NOT_NEGATIVE, 'smallest gain of validation accuracy that counts as one'
    ),
    'growth.patience': Field(
        5, _integer(1), 'evaluations without such a gain after which the network grows'
    ),
    'growth.last_epochs': Field(
        5, _integer(1), 'epochs at the end of the phase that are left to train a grown network'
    ),
    'growth.lead_epochs': Field(
        1, _integer(0), 'epochs for which the old network trains on while the new one is compiled'
    ),
    'growth.none_bias': Field(-2.0, _FINITE, 'alpha of none in a new mixed operation'),
    'growth.skip_bias': Field(-2.0, _FINITE, 'alpha of skip_connect in a new mixed operation'),
    'growth.score_batches': Field(
        4, _integer(1), 'batches of up to 128 validation images that scores are computed from'
    ),
    'growth.width_factor': Field(
        1.5,
        _number('a finite number above 1', lambda v: v > 1, 1.0),
        'factor by which a stage gets wider, rounded to a multiple of 8 channels',
        '[Net2Net](https://arxiv.org/abs/1511.05641)',
    ),
    'growth.max_depth': Field(12, _integer(1), 'most blocks'),
    'growth.max_channels': Field(512, _integer(1), 'most channels of a stage'),
    'growth.max_branches': Field(2, _integer(1), 'most mixed operations in a block'),
    'growth.max_params': Field(
        None, _optional(_integer(1)), 'most parameters of the supernet; None: no limit'
    ),
    'optimize.epochs': Field(20, _integer(0), 'passes of the derived network over the images'),
    'optimize.drop_path': Field(
        0.0,
        _SHARE,
        'share of images for which an operation is left out, at the end of optimize',
        '[FractalNet](https://arxiv.org/abs/1605.07648)',
    ),
    'optimize.second_head': Field(
        0.0,
        _NOT_NEGATIVE,
        "weight of a second head's loss, in networks trained from scratch; 0: no second head",
        _DARTS,
    ),
    'optimize.lr': Field(
        None,
        _optional(_POSITIVE),
        'learning rate of a new cosine that begins with optimize; the one before it then ends '
        'there; None: one cosine over the run',
        _SGDR,
        before=None,
    ),
    'optimize.label_smoothing': Field(
        0.0,
        _SHARE,
        'share of each label that is spread evenly over all classes',
        '[Szegedy et al.](https://arxiv.org/abs/1512.00567)',
        before=0.0,
    ),
    'optimize.mixup': Field(
        0.0,
        _NOT_NEGATIVE,
        'a of Beta(a, a), which the share of the first of two mixed images is drawn from; 0: none',
        _MIXUP,
        before=0.0,
    ),
    'optimize.cutmix': Field(
        0.0,
        _NOT_NEGATIVE,
        'a of Beta(a, a) for the share that the first image keeps where a rectangle of it comes '
        'from a second one; with mixup, each step draws one of the two; 0: none',
        _CUTMIX,
        before=0.0,
    ),
    'optimize.randaugment': Field(
        0,
        _integer(0),
        'random changes of shape or colour that each training image gets; 0: none',
        _RANDAUGMENT,
        before=0,
    ),
    'optimize.randaugment_magnitude': Field(
        5.0,
        _MAGNITUDE,
        'how strong these changes are; 10: strongest',
        _RANDAUGMENT,
        before=5.0,
    ),
    'optimize.ema': Field(
        0.0,
        _SHARE,
        'decay of a moving average of the weights, which is evaluated and kept at the end; 0: none',
        '[Polyak and Juditsky](https://doi.org/10.1137/0330046)',
        before=0.0,
    ),
    'optimize.frozen': Field(
        False,
        _BOOL,
        'train the head only: other weights, their momentum and BatchNorm statistics stay those of '
        'init_from, to the bit',
        before=False,
    ),
    'retrain.epochs': Field(
        600,
        _rule(
            f'an integer of at least 1, or {SAME_FLOPS!r}',
            lambda v: v == SAME_FLOPS or (_is_integer(v) and v >= 1),
            *(0, 1.5, True, 'other', None),
        ),
        f'optimize.epochs; {SAME_FLOPS!r}: as many as take the FLOPs of the run that found the '
        'network',
        _DARTS,
    ),
    'retrain.batch_size': Field(96, _integer(1), 'batch_size', _DARTS),
    'retrain.channels': Field(
        None, _optional(_integer(1)), "model.channels (chain: the stem's); None: as found", _DARTS
    ),
    'retrain.depth': Field(None, _optional(_integer(1)), 'model.depth; None: as found', _DARTS),
    'retrain.reductions': Field(
        None, _optional(_BLOCKS), 'model.reductions; None: as found', _DARTS
    ),
    'retrain.lr': Field(0.025, _POSITIVE, 'weights.lr', _DARTS),
    'retrain.lr_end': Field(0.0, _NOT_NEGATIVE, 'weights.lr_end', _DARTS),
    'retrain.lr_warmup_steps': Field(0, _integer(0), 'weights.lr_warmup_steps', before=0),
    'retrain.nesterov': Field(False, _BOOL, 'weights.nesterov', before=False),
    'retrain.clip': Field(5.0, _NOT_NEGATIVE, 'weights.clip', _DARTS),
    'retrain.cutout': Field(16, _integer(0), 'data.cutout', _DARTS),
    'retrain.drop_path': Field(0.2, _SHARE, 'optimize.drop_path; not with optimize.frozen', _DARTS),
    'retrain.second_head': Field(
        0.4, _NOT_NEGATIVE, 'optimize.second_head; not with init_from', _DARTS
    ),
    'retrain.label_smoothing': Field(0.0, _SHARE, 'optimize.label_smoothing', before=0.0),
    'retrain.mixup': Field(0.0, _NOT_NEGATIVE, 'optimize.mixup', before=0.0),
    'retrain.cutmix': Field(0.0, _NOT_NEGATIVE, 'optimize.cutmix', before=0.0),
    'retrain.randaugment': Field(0, _integer(0), 'optimize.randaugment', before=0),
    'retrain.randaugment_magnitude': Field(
        5.0, _MAGNITUDE, 'optimize.randaugment_magnitude', before=5.0
    ),
    'retrain.ema': Field(0.0, _SHARE, 'optimize.ema', before=0.0),
    'guard.alpha': Field(
        True, _BOOL, 'a row of alpha with NaN or Inf acts as skip_connect; False: NaN spreads'
    ),
    'guard.max_consecutive': Field(
        10,
        _integer(0),
        'most steps in a row with a gradient that is not finite; one more stops the run',
    ),
    'alarm.skip_share': Field(
        0.8,
        _RATIO,
        'share of skip_connect and none in the genotype above which to warn',
        changeable=True,
    ),
    'alarm.fall': Field(
        0.75,
        _RATIO,
        "share of warmup's accuracy below which to warn when the search begins",
        changeable=True,
    ),
    'benchmark.table': Field(
        None,
        _optional(_TEXT),
        'accuracies to look up the result in: a CSV file, or nats_bench[:DIRECTORY]',
        changeable=True,
    ),
    'cost.kind': Field(
        None,
        _optional(_one_name_in('costs.expected_cost', 'UNITS')),
        'what has a price: FLOPs (a multiply-add counts as two), parameters, multiply-adds or '
        'latency; None: nothing',
        _TUNAS,
    ),
    'cost.target': Field(
        None,
        _optional(_POSITIVE),
        'FLOPs or multiply-adds of an image, parameters, or milliseconds',
        _TUNAS,
    ),
    'cost.targets': Field(
        (),
        _rule(
            'a tuple of distinct finite numbers above 0, at least two, or ()',
            _are_targets,
            *((1e5,), (1e5, 1e5), (0, 1e5), (1e5, '2e5'), 1e5),
        ),
        'several networks in one command: a search for each number, in WORKDIR/KIND_NUMBER, which '
        'is its cost.target and its cost.limit of that kind; (): one network',
        before=(),
    ),
    'cost.weight': Field(
        0.1,
        _POSITIVE,
        "weight, in alpha's loss, of the distance of the expected cost from the target",
        _TUNAS,
    ),
    'cost.batch_size': Field(
        None, _optional(_integer(1)), 'images that latency is measured with; None: 1', _TUNAS
    ),
    'cost.table': Field(
        None,
        _optional(_TEXT),
        'latencies of another machine, which `measure.py` of `--mode=latency` wrote; None: this '
        'machine is measured',
        before=None,
    ),
    'cost.limit.params': Field(
        None, _optional(_POSITIVE), 'largest number of parameters', before=None
    ),
    'cost.limit.flops': Field(
        None,
        _optional(_POSITIVE),
        'largest number of FLOPs of an image, as `flops_per_image` in summary.json; a multiply-add '
        'counts as two',
        before=None,
    ),
    'cost.limit.multiply_adds': Field(
        None,
        _optional(_POSITIVE),
        'largest number of multiply-adds of an image, as `multiply_adds` in summary.json; what '
        'papers call FLOPs',
        before=None,
    ),
    'cost.limit.latency': Field(
        None,
        _optional(_POSITIVE),
        'most milliseconds of a batch of `cost.batch_size` images, summed over measured parts',
        before=None,
    ),
    'checkpoint.every_seconds': Field(
        60,
        _NOT_NEGATIVE,
        'seconds between checkpoints, besides those at the ends of phases and growths; 0: one '
        'after every call',
        changeable=True,
    ),
    'checkpoint.keep': Field(
        2,
        _integer(1),
        'newest checkpoints to keep, besides those at the ends of phases',
        changeable=True,
    ),
}

# Values that describe runs begun before these fields existed.
BEFORE = {name: field.before for name, field in FIELDS.items() if field.before is not _REQUIRED}
