"""Does the score find the place where a new block helps most?

    python -m benchmarks.growth_position RUN/checkpoints/STEP [another ...] [--epochs=2]

Each argument is a checkpoint from the end of a search. Its network is derived; then a block of
sep_conv_3x3 is inserted at every position in turn, and each of the grown networks is trained for a
few epochs on the same images. Printed: the score of each position, what training made of it, and
how the position with the best score compares with the mean over positions, which is what a random
choice gets.
"""

import argparse
import itertools
import json
import pathlib

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.data import batches
from asose_jax.nn import factors
from asose_jax.pipeline import (
    builders,
    compilation,
    evaluation,
    initialization,
    run_context,
    training_loop,
)
from asose_jax.pipeline.growth import controller, scoring, transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.train import optimizer, pmap
from asose_jax.train import state as states
from asose_jax.train.phases import Phase
from configs.search import get_config

NEW = ('sep_conv_3x3',)


def _config(run: pathlib.Path, epochs: int):
    fields = json.loads((run / 'config.json').read_text(encoding='utf-8'))
    config = get_config()
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    config.network = config.genotype = None
    for phase in Phase:
        config[phase].epochs = 0
    config.search.epochs, config.optimize.epochs = 1, epochs  # the search is not run, only named
    return config


def positions(checkpoint: pathlib.Path, epochs: int) -> list[tuple[float, float, float]]:
    """(score, validation loss, validation accuracy) of every position."""
    config = _config(checkpoint.parent.parent, epochs)
    images = builders.load_data(config)
    schedule = builders.make_schedule(config, len(images.train))
    tx = optimizer.make_optimizer(config, schedule)
    shared = pmap.shared_arrays(images, run_context.key_for(config.seed, run_context.STEPS))
    context = run_context.RunContext(
        config=config,
        workdir=checkpoint,
        console=None,
        data=images,
        schedule=schedule,
        tx=tx,
        shared=shared,
        checkpoints=None,
        interrupt=None,
        table=None,
        is_primary_host=False,
        platform=pmap.platform(),
    )
    config.init_from = str(checkpoint)
    found = initialization.start(context, initialization.find_origin(config, images, schedule))
    spec, held = found.spec, found.state
    chosen = genotype.most_likely(spec, held.arch)
    held = states.derive_state(held, spec, chosen, tx)
    spec = factors.folded_spec(spec, chosen)
    key = context.key(run_context.GROWTH)
    places = [
        scoring.Candidate(Growth('depth', place, candidates=NEW), 1)
        for place in range(len(spec.blocks) + 1)
    ]
    pixels, chosen = controller.score_batches(context, 0), genotype.most_likely(spec, held.arch)
    scored = scoring.score_candidates(places, spec, held, pixels, key, chosen, None)
    span = schedule.spans[-1]
    held = held.replace(step=np.int32(span.start))
    result = []
    for each in scored:
        grown_spec, grown = transforms.grow(
            spec,
            held,
            each.growth,
            fresh=lambda wanted: states.init_state(context.model(wanted), tx, key),
            key=key,
        )
        packed = pmap.replicated(states.Packed.of(jax.device_get(grown)))
        current = run_context.RunState(grown_spec, packed, Phase.OPTIMIZE)
        current.history.phases.append({'compile_seconds': 0.0})
        stream = batches.batch_stream(
            images.images,
            lambda s: training_loop.indices_at(context, span, s),
            span.start,
            span.stop,
        )
        while taken := list(itertools.islice(stream, context.slots())):
            batch = batches.stack_batches(taken, context.slots(), jax.device_count())
            compilation.compile_programs(context, current, Phase.OPTIMIZE, batch)
            current.packed, _ = current.programs.train.call(current.packed, batch, shared)
        loss, accuracy = evaluation.mean_loss_and_accuracy(
            evaluation.evaluate(context, current, images.valid)
        )
        result.append((each.score, loss, accuracy))
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('checkpoints', nargs='+', type=pathlib.Path)
    parser.add_argument('--epochs', type=int, default=2)
    arguments = parser.parse_args()
    gains = []
    for checkpoint in arguments.checkpoints:
        rows = positions(checkpoint, arguments.epochs)
        print(checkpoint)
        for place, (score, loss, accuracy) in enumerate(rows):
            print(f'  block at {place}: score {score:.2e}, loss {loss:.4f}, {accuracy:.2%}')
        losses = [loss for _, loss, _ in rows]
        best = losses[int(np.argmax([score for score, _, _ in rows]))]
        gains.append(np.mean(losses) - best)
        print(f'  loss of the scored position: {best:.4f}, of a random one: {np.mean(losses):.4f}')
    print(f'mean advantage over {len(gains)} networks: {np.mean(gains):+.4f}', flush=True)


if __name__ == '__main__':
    main()
