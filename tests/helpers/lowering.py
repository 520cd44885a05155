"""Programs of a run, lowered for machines that are not here: their text, without a compiler."""

import re

import jax
import ml_collections
import numpy as np
import pytest

from asose_jax.arch import genotype
from asose_jax.data import batches
from asose_jax.nn import factors
from asose_jax.pipeline import builders, compilation, initialization, run_context
from asose_jax.train import optimizer, pmap
from asose_jax.train.phases import Phase
from helpers import networks, search_steps

ACCELERATORS = ('cuda', 'tpu')
# The functions that ask for an exchange between devices: statistics of BatchNorm and their
# gradients, loss and gradient, also in second order, the number of images classified right, and
# the evaluation.
EXCHANGES = {'_means', 'BatchNorm.__call__', '_mean_gradient', 'gradient', '_turn_of_weights'}
EXCHANGES |= {'eval_steps'}
# Operations of StableHLO in which devices exchange numbers, and those that reach the host.
# Callbacks are custom calls; so are the random numbers of CUDA, where its plugin is installed.
_COLLECTIVES = {'all_gather', 'all_reduce', 'all_to_all', 'reduce_scatter', 'send', 'recv'}
_COLLECTIVES |= {'collective_broadcast', 'collective_permute', 'cross-replica-sum'}
_HOST = {'infeed', 'outfeed', 'send', 'recv'}
_SUM = re.compile(r'stablehlo\.all_reduce".*?\n *\}\)[^\n]* loc\((#loc\d+)\)', re.DOTALL)
# Forms for CPUs that are merged with what is around them; all others have the attribute
# `inlineable`.
_MERGED_CPU_FORMS = {'sum_together', '_max_of_shifts'}


def lowered_text(traced: jax.stages.Traced, platforms: tuple[str, ...]) -> str:
    """StableHLO in which each operation names the function of the source that it comes from."""
    return traced.lower(lowering_platforms=platforms).as_text(debug_info=True)


def has_cpu_forms(text: str) -> bool:
    """Whether any form that only the CPU is to run is in a program."""
    return 'inlineable' in text or bool(_MERGED_CPU_FORMS & _functions(text))


def _functions(text: str) -> set[str]:
    return set(re.findall(r'loc\("([\w.<>]+)"\(#loc', text))


def exchanges(text: str) -> set[str]:
    """Names of the functions whose values devices add up."""
    places = dict(re.findall(r'^(#loc\d+) = loc\((.*)\)$', text, re.MULTILINE))
    found = set()
    for below in _SUM.findall(text):
        place = below
        while not re.match(r'".*":\d', places[below]):  # until it is a line of a file
            place, below = below, re.search(r'#loc\d+', places[below])[0]  # noqa: PLW2901
        found.add(places[place].split('"')[1])
    return found


def assert_for_accelerators(text: str) -> None:
    """No form for CPUs, no float64, nothing of the host, no exchange but those that have a name."""
    operations = set(re.findall(r'stablehlo\.([\w-]+)', text))
    assert operations
    assert not has_cpu_forms(text)
    assert not re.search(r'tensor<(\d+x)*(f64|complex)', text)
    assert not operations & _HOST
    assert all('threefry' in name for name in re.findall(r'custom_call @([\w.]+)', text))
    assert operations & _COLLECTIVES <= {'all_reduce'}
    assert exchanges(text) <= EXCHANGES


def programs(
    config: ml_collections.ConfigDict, platform: str, lowered_for: tuple[str, ...]
) -> dict[tuple[Phase, str], str]:
    """The texts of all programs of a run on devices of this platform, by phase and kind.

    They are those that the run itself would compile; the images are those of `search_steps`.
    """
    texts, data = {}, search_steps.data()
    schedule = builders.make_schedule(config, len(data.train))
    context = run_context.RunContext(
        config=config,
        workdir=None,
        console=None,
        data=data,
        schedule=schedule,
        tx=optimizer.make_optimizer(config, schedule),
        shared=search_steps.SHARED,
        checkpoints=None,
        interrupt=None,
        table=None,
        is_primary_host=True,
        platform=platform,
    )
    spec = initialization._configured_supernet(config, data)
    arch = networks.variables(networks.supernet(spec))['arch']
    derived = factors.folded_spec(spec, genotype.most_likely(spec, arch))
    row = {'index': np.zeros(config.batch_size, np.int32)}
    ahead = int(config.search.second_order)
    chunk = batches.stack_batches([row] * (1 + ahead), 2 + ahead, jax.device_count(), ahead)

    def lower(phase, function, example, **options):
        kind = function.func.__name__
        traced = jax.jit(pmap.mapped(function, **options)).trace(*example)
        texts[phase, kind] = lowered_text(traced, lowered_for)
        return pmap.Program(None, 0.0, 0)

    with pytest.MonkeyPatch.context() as patch:
        for phase in (Phase.WARMUP, Phase.SEARCH, Phase.OPTIMIZE):
            patch.setattr(pmap, '_compile', lambda *args, p=phase, **kw: lower(p, *args, **kw))
            network = derived if phase is Phase.OPTIMIZE else spec
            compilation.compile_network(context, network, phase, chunk)
    return texts
