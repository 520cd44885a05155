"""ASO-SE on images: warmup, search, growth, optimize.

    python main.py --config=configs/search.py --workdir=DIR             CIFAR-10 through TFDS
    python main.py --config=configs/search.py:digits --workdir=DIR      scikit-learn's digits
    python main.py --config=configs/search.py:folder --config.data.dir=PICTURES --workdir=DIR
    python main.py --config=configs/search.py:nasbench201 --workdir=DIR   NAS-Bench-201's cell
    python main.py --config=configs/search.py:nasbench201_small --workdir=DIR   in minutes on a CPU
    python main.py --config=configs/search.py:darts --workdir=DIR       the cells of DARTS
    python main.py --config=configs/search.py:seed --workdir=DIR        as ASO-SE was first written

Any field can be set on the command line: --config.search.epochs=2 --config.model.channels=16.
The cifar10 preset is made for one accelerator; on two CPU cores take 16 channels and a few epochs.
"""

import ml_collections
from ml_collections import config_dict

PRESETS = ('cifar10', 'digits', 'folder', 'nasbench201', 'nasbench201_small', 'darts', 'seed')


def get_config(preset: str = 'cifar10') -> ml_collections.ConfigDict:
    """Every knob of a run, with the preset's values."""
    if preset not in PRESETS:
        raise ValueError(f'unknown preset {preset!r}; there are {", ".join(PRESETS)}')
    config = ml_collections.ConfigDict()

    config.seed = 0  # of everything random: split, weights, alpha, draws, augmentation
    config.seeds = ()  # of several searches: each runs in WORKDIR/seed_N, see the README
    config.random_cells = 0  # trained beside what those find, both as `retrain` says
    config.plain_cells = ()  # likewise, with each seed: networks of nothing but this operation
    config.batch_size = 128  # over all devices; a multiple of their number
    config.chunk_steps = 20  # steps per compiled call, at most
    config.init_from = config_dict.placeholder(str)  # workdir (or .../checkpoints/STEP)
    config.network = config_dict.placeholder(str)  # workdir or genotype.json, whose network
    # is trained from scratch
    config.network_channels = config_dict.placeholder(int)  # of its stem; all widths follow
    config.genotype = config_dict.placeholder(str)  # workdir, genotype.json or genotype.txt, whose
    # choices the network that `model` describes shall have

    config.data = data = ml_collections.ConfigDict()
    data.name = 'cifar10'  # 'digits', 'folder', or any image classification set of TFDS
    data.dir = config_dict.placeholder(str)  # None: $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.train_split = 'train'  # TFDS split, or folder in data.dir, to learn from
    data.test_split = 'test'  # likewise; looked at once, at the end
    data.test_fraction = config_dict.placeholder(float)  # of folders without a test; None: 0.2
    data.image_size = config_dict.placeholder(int)  # side of the middle square, scaled to this
    data.valid_fraction = 0.2  # of the training split: moves alpha, decides
    data.crop_padding = 4  # random crops of the image padded by so many pixels; 0: none
    data.flip = True  # random left-right flips
    data.cutout = 0  # side of a square of zeros at a random place of images to learn from
    data.resident_megabytes = 1024  # larger sets are streamed instead of held on the device

    config.model = model = ml_collections.ConfigDict()
    model.space = 'chain'  # search space; 'nasbench201', 'darts': see asose_jax/spaces/registry.py
    model.channels = 64  # of the stem (darts: a third of it)
    model.depth = 6  # blocks (nasbench201, darts: cells, those that reduce included)
    model.reductions = (1, 3)  # those of them that halve the image and double the channels
    model.max_channels = 256  # doubling stops here
    model.primitives = (  # candidate operations
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
    )
    model.residual = True  # blocks of the space 'chain' add their input; False: they do not grow
    model.remat = False  # operations are computed again in the backward pass: slower, less memory
    model.dtype = 'float32'  # of activations; 'bfloat16' on TPU and recent GPUs

    config.weights = weights = ml_collections.ConfigDict()  # SGD
    weights.lr = 0.025  # at the start; one cosine over all weight updates of the run
    weights.lr_end = 1e-4  # at the end of the cosine
    weights.momentum = 0.9  # of SGD
    weights.weight_decay = 3e-4  # L2, added to the gradient
    weights.clip = 5.0  # largest norm of the gradient, without which warmup may fail; 0: any

    config.arch = arch = ml_collections.ConfigDict()  # alpha: its start, and Adam
    arch.init_std = 1e-3  # of the normal noise that alpha starts from
    arch.none_bias = 0.0  # alpha of none at the start
    arch.skip_bias = 0.0  # alpha of skip_connect at the start
    arch.lr = config_dict.placeholder(float)  # at the start of one cosine; None: from the travel
    arch.lr_end = 1e-5  # at the end of the cosine
    arch.travel = 4.0  # sum of the learning rates of the run: how far Adam can move a logit
    arch.b1 = 0.5  # decay of Adam's first moment
    arch.b2 = 0.999  # and of its second
    arch.weight_decay = 1e-3  # decoupled, as AdamW has it
    arch.anchor = 0.0  # drnas: weight of its regulariser; take arch.weight_decay=0 with it
    arch.samples = 1  # draws in an alpha step, whose gradients are averaged
    arch.micro_batches = 1  # parts of a batch, one after another, in alpha steps: less memory

    config.warmup = warmup = ml_collections.ConfigDict()
    warmup.epochs = 10  # weights only
    warmup.operations = 'skip'  # skip_connect or none, see search.exact_start; 'uniform': any

    config.search = search = ml_collections.ConfigDict()
    search.epochs = 30  # passes of the weights over train; alpha steps come on top
    search.freeze_epochs = config_dict.placeholder(int)  # first epochs, in which alpha rests; None:
    # a fifth of them if search begins exactly, so that all candidates open, else none
    search.turn_period = 3  # one of so many steps moves alpha, the others the weights
    search.turns = 'alternate'  # 'together': alpha's steps move the weights as well, by one batch
    search.arch_data = 'valid'  # what alpha learns on: 'valid', or 'train' as the reference does
    search.estimator = 'straight_through'  # how alpha gets its gradient; also gdas, reinmax, and
    # mixtures of operations: gumbel, softmax, drnas
    search.second_order = False  # alpha steps of mixtures look one weight step ahead: exact, slower
    search.noise = config_dict.placeholder(str)  # 'unit': draws follow softmax(alpha);
    # 'temperature', the default of estimators that have it: softmax(alpha/tau)
    search.tau_start = 0.8  # temperature of the first draw
    search.tau_rate = 0.98  # factor of one decay
    search.tau_floor = 0.1  # lowest temperature
    search.anneal_every = config_dict.placeholder(int)  # alpha updates per decay; None: spread out
    search.transition_noise = 0.05  # added to alpha when the search begins
    search.exact_start = config_dict.placeholder(bool)  # candidates begin at 0: search begins with
    # what warmup, of the residuals alone, ended with; None: in the space 'chain' where it can
    search.statistics_batches = 8  # of train, from which evaluations take BatchNorm's statistics;
    # 0: running ones, which are means over draws
    search.auxiliary_skip = False  # a skip beside every mixed operation, fading in search: DARTS-
    search.partial_channels = 1  # K: candidates see one of K channels, as in PC-DARTS; 1: all
    search.thresholds = (
        0.95,
        0.8,
        0.05,
        0.02,
        0.1,
    )  # weight steps of mixtures leave out operations by these; (1., 1., 0., 0., 0.): none
    search.early_stop = False  # end search when alpha's Hessian gets a large eigenvalue (DARTS-ES):
    search.stop_window = 5  # when the mean of the eigenvalues of so many epochs ...
    search.stop_ratio = 0.75  # ... times this is more than the mean of as many before
    search.selection = 'argmax'  # of alpha; 'perturbation': what accuracy misses most (DARTS-PT)

    config.growth = growth = ml_collections.ConfigDict()
    growth.epochs = 40  # of search in which the network may grow; it does not in fewer than
    # patience + lead_epochs + last_epochs + 1
    growth.kinds = ('depth', 'width')  # in turn, also 'branch'; 'depth+width': both together, so
    # that one network is compiled instead of two; 'auto': best gain per parameter
    growth.where = 'score'  # where the gradient promises most; 'last' block or stage; 'random'
    growth.threshold = 0.02  # validation accuracy that is better by less does not count, ...
    growth.patience = 5  # ... and after so many evaluations without better ones, the network grows
    growth.last_epochs = 5  # of the phase, for which a grown network must be left to train
    growth.lead_epochs = 1  # the old network trains on while the compiler is at the new one
    growth.none_bias = -2.0  # alpha of none in a new mixed operation
    growth.skip_bias = -2.0  # alpha of skip_connect in it
    growth.score_batches = 4  # of up to 128 validation images, for the scores
    growth.width_factor = 1.5  # channels of a wider stage, rounded to a multiple of 8
    growth.max_depth = 12  # blocks
    growth.max_channels = 512  # of a stage
    growth.max_branches = 2  # mixed operations in a block
    growth.max_params = config_dict.placeholder(int)  # of the network that trains; None: any

    config.optimize = optimize = ml_collections.ConfigDict()
    optimize.epochs = 20  # of the derived network
    optimize.drop_path = 0.0  # share of images that an operation is left out for, at the end
    optimize.second_head = 0.0  # weight of a second head's loss, in networks trained from scratch

    config.retrain = retrain = ml_collections.ConfigDict()  # what --mode=retrain puts in place
    retrain.epochs = 600  # of optimize
    retrain.batch_size = 96  # over all devices
    retrain.channels = config_dict.placeholder(int)  # of model (chain: the stem's); None: as it is
    retrain.depth = config_dict.placeholder(int)  # of model; None: as it is
    retrain.reductions = config_dict.placeholder(tuple)  # of model; None: as they are
    retrain.lr = 0.025  # of weights
    retrain.lr_end = 0.0  # of weights
    retrain.clip = 5.0  # of weights
    retrain.cutout = 16  # of data
    retrain.drop_path = 0.2  # of optimize
    retrain.second_head = 0.4  # of optimize

    config.guard = guard = ml_collections.ConfigDict()
    guard.alpha = True  # a row of alpha with NaN or Inf acts as skip_connect; False: NaN spreads
    guard.max_consecutive = 10  # steps in a row with a gradient that is not finite, then stop

    config.alarm = alarm = ml_collections.ConfigDict()
    alarm.skip_share = 0.8  # warn when more of the genotype is skip_connect or none
    alarm.fall = 0.75  # warn when search starts below this share of warmup's accuracy

    config.benchmark = benchmark = ml_collections.ConfigDict()
    benchmark.table = config_dict.placeholder(str)  # accuracies to tell the result's rank by:
    # a CSV file, or nats_bench[:DIR]

    config.cost = cost = ml_collections.ConfigDict()  # what the derived network may cost
    cost.kind = config_dict.placeholder(str)  # 'flops', 'params', 'latency'; None: no price
    cost.target = config_dict.placeholder(float)  # FLOPs of an image, parameters, or milliseconds
    cost.weight = 0.1  # in alpha's loss, of how far the expected cost is from the target
    cost.batch_size = config_dict.placeholder(int)  # images that latency is measured with; None: 1

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 60  # besides the ends of phases and growths; 0: after every call
    checkpoint.keep = 2  # newest ones to keep, besides the end of each phase

    if preset == 'digits':
        config.batch_size = 64
        config.chunk_steps = 32  # an epoch takes 17, or 26 with alpha's steps
        data.name = 'digits'
        data.crop_padding = 1
        data.flip = False  # a mirrored digit is another sign, or none
        model.channels = 16
        model.depth = 3  # and then it grows
        model.reductions = (1, 2)
        model.primitives = (  # larger kernels would see more border than image
            'none',
            'avg_pool_3x3',
            'max_pool_3x3',
            'skip_connect',
            'sep_conv_3x3',
            'dil_conv_3x3',
            'conv_7x1_1x7',
        )
        warmup.epochs = 5
        search.epochs = 30
        growth.epochs = 8
        growth.kinds = ('depth+width',)  # most of the time of such a run is the compiler's
        growth.threshold = 1.0  # nothing is that much better: it grows after epoch 2
        growth.patience = 1
        growth.last_epochs = 6  # and no more than once
        growth.lead_epochs = 0  # an epoch takes less than a second
        optimize.epochs = 20
        retrain.epochs = 40
        retrain.batch_size = 64
        retrain.cutout = 0  # it would cover a digit
        retrain.drop_path = retrain.second_head = 0.0

    if preset == 'folder':  # from hundreds of pictures to some ten thousand, 32 to 96 pixels a side
        config.batch_size = 64  # small sets need steps more than wide batches
        data.name = 'folder'
        model.channels = 32
        model.depth = 4
        model.reductions = (1, 2, 3)  # pooled from an eighth of the side
        warmup.epochs = 15  # many short epochs: a thousand pictures make 12 steps
        search.epochs = 45
        growth.epochs = 20
        growth.patience = 3
        optimize.epochs = 40
        retrain.epochs = 100
        retrain.batch_size = 64
        retrain.cutout = 0  # a good side for it depends on the pictures

    if preset in ('nasbench201', 'nasbench201_small', 'darts'):
        model.channels = 16
        search.noise = 'unit'  # as docs/chance.md has them
        growth.epochs = 0  # their cells are what they are
        growth.kinds = ()
    if preset in ('nasbench201', 'nasbench201_small'):  # five cells a stage (arXiv:2001.00326)
        model.space = 'nasbench201'
        model.depth = 17
        model.reductions = (5, 11)
        model.max_channels = 64
        model.primitives = (
            'none',
            'skip_connect',
            'nor_conv_1x1',
            'nor_conv_3x3',
            'avg_pool_3x3',
        )
        retrain.epochs = 200
        retrain.batch_size = 256
        retrain.lr = 0.1
        retrain.clip = 0.0
        retrain.cutout = 0
        retrain.drop_path = retrain.second_head = 0.0
    if preset == 'nasbench201_small':  # one cell a stage, small images, a quarter of them
        config.batch_size = 32  # small batches: weights need steps
        data.train_split = 'train[:12800]'
        data.image_size = 16
        data.crop_padding = 2
        model.channels = 8
        model.depth = 5
        model.reductions = (1, 3)
        weights.lr = 0.05
        weights.clip = 0.0  # docs/chance.md has measured it so
        config.arch.none_bias = -4.0  # beside the auxiliary skip, none is as good as a skip
        warmup.epochs = 5
        warmup.operations = 'uniform'
        search.epochs = 12
        search.auxiliary_skip = True
        optimize.epochs = 0  # what was found is trained from scratch
        retrain.epochs = 8
        retrain.batch_size = 64
        config.checkpoint.every_seconds = 600
    if preset == 'darts':  # the search network of arXiv:1806.09055
        config.batch_size = 64
        model.space = 'darts'
        model.depth = 8
        model.reductions = (2, 5)
        model.primitives = (
            'none',
            'max_pool_3x3',
            'avg_pool_3x3',
            'skip_connect',
            'sep_conv_3x3',
            'sep_conv_5x5',
            'dil_conv_3x3',
            'dil_conv_5x5',
        )
        retrain.channels = 36
        retrain.depth = 20
        retrain.reductions = (6, 13)

    if preset == 'seed':  # to the letter: what the defaults settle otherwise, as it was first said
        weights.clip = 0.0
        config.arch.init_std = 0.5
        config.arch.none_bias = growth.none_bias = -2.0
        config.arch.skip_bias = growth.skip_bias = 1.0
        config.arch.lr = 3e-4
        search.arch_data = 'train'
        search.noise = 'unit'
        search.exact_start = False
        search.statistics_batches = 0
        search.anneal_every = 1
        growth.where = 'last'
        growth.lead_epochs = 0
    return config
