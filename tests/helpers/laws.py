"""The laws that the program promises, and the tests that hold them: docs/tests.md is made of this.

`python -m pytest -n 0 -m "" --collect-only -q --laws` writes it; seconds are those of the last run
of each test on the machine that writes, with a warm compilation cache if it had one.
"""

import collections
import pathlib

import pytest

from helpers import costs

# Law: tests, each as FILE::FUNCTION or FILE alone.
LAWS = {
    'Draws: rows of Gumbel-Softmax sum to 1, hard rows are one-hot with the soft gradient, and '
    'follow softmax(α) (unit) or softmax(α/τ) (temperature)': ['gumbel_test'],
    'A weight step leaves α and its moments as they are, to the bit; a step of α leaves weights, '
    'momentum and BatchNorm statistics': [
        'steps_test::test_alpha_step_leaves_weights_momentum_and_statistics_bit_identical',
        'steps_test::test_weight_step_leaves_alpha_and_its_moments_bit_identical',
    ],
    "α's gradient is not zero for any primitive, and agrees with central differences": [
        'supernet_test::test_alpha_step_gives_every_primitive_the_gradient_of_the_dense_definition',
        'supernet_test::test_soft_alpha_gradient_agrees_with_central_differences',
        'supernet_test::test_soft_alpha_gradient_of_all_primitives_agrees_with_central_differences',
    ],
    'Computing only what is drawn changes no logit and no gradient': [
        'supernet_test::test_alpha_and_weights_learn_as_the_dense_definition_says',
        'supernet_test::test_alpha_and_weights_learn_whichever_of_all_primitives_is_drawn',
        'registry_test::test_steps_take_the_gradients_of_the_dense_form_and_give_one_to_every_primitive',
    ],
    'An α step for a GPU or TPU computes what its form for CPUs does, with no conditional for '
    'each candidate': [
        'mixed_op_test::test_form_for_accelerators_computes_what_the_form_for_cpus_does',
        'supernet_test::test_form_for_accelerators_computes_what_the_form_for_cpus_does',
        'accelerators_test::test_an_alpha_step_for_a_gpu_has_no_conditional_for_each_candidate',
        'accelerators_test::'
        'test_an_alpha_step_of_cells_for_a_gpu_has_no_conditional_for_each_candidate',
    ],
    'A row of α with NaN acts as skip_connect, is counted, and touches no other': [
        'supernet_test::test_nan_row_behaves_as_skip_connect_and_others_are_unchanged',
        'steps_test::test_guarded_row_is_counted_and_training_goes_on',
    ],
    'τ falls from 0.8 to 0.1, only after steps of α, through growth and restarts': ['phases_test'],
    'Each growth keeps the function, in training and evaluation, for every primitive': [
        'transforms_test'
    ],
    'Search begins with the function that warmup ended with, whatever is drawn': [
        'factors_test::test_whatever_is_drawn_search_begins_with_the_function_that_warmup_ended_with',
        'factors_test::test_warmup_trains_nothing_of_a_mixed_operation_and_search_opens_what_is_drawn',
    ],
    'The derived network is the supernet under argmax': [
        'factors_test::test_what_is_kept_computes_the_same_and_moves_as_before',
        'supernet_test::test_derived_network_is_the_supernet_under_argmax',
        'registry_test::test_derived_network_is_the_supernet_under_argmax',
    ],
    'Under a limit on the cost, the derived network is the most likely one that keeps it': [
        'constrained_test',
        'limit_test',
    ],
    'The searches of a front begin with the bits of one warmup, and networks keep their targets': [
        'front_test',
        'limit_test::test_random_genotypes_keep_all_limits_and_without_a_tight_one_are_those_of_the_space',
    ],
    'A frozen network stays the same to the bit, and other classes get a fresh head': [
        'initialization_test'
    ],
    'N devices do what one does, and all replicas are equal': [
        'steps_test::test_many_devices_are_one_device_and_all_replicas_are_equal',
        'steps_test::test_laws_of_the_steps_hold_on_eight_devices',
    ],
    'A run that is stopped, anywhere, ends bit for bit as a whole one': [
        'kill_test',
        'single_run_test::test_run_stopped_in_each_phase_and_resumed_ends_bit_for_bit_as_the_whole_one',
        'controller_test::test_run_stopped_around_its_growths_and_resumed_ends_bit_for_bit_as_the_whole_one',
    ],
    'An evaluation has BatchNorm statistics of the network that α makes most likely': [
        'factors_test::test_statistics_of_their_own_are_those_of_the_most_likely_network',
        'single_run_test::test_supernet_is_evaluated_with_the_statistics_of_its_most_likely_network',
    ],
    'Programs for GPU and TPU hold nothing that is for a CPU, and exchange no more than is named': [
        'accelerators_test'
    ],
    'One compilation for each network and phase': [
        'steps_test::test_each_program_is_traced_once_and_refuses_to_be_retraced',
        'controller_test::test_each_grown_network_is_compiled_once',
    ],
    'Every wrong field is named, with what is allowed, before anything is written': [
        'consistency_test'
    ],
    'The report is one page that loads nothing and is safe with every name': ['page_test'],
    'Parameters and multiply-adds of published cells are the published ones': [
        'darts_test',
        'nasbench201_test',
    ],
    'What is exported says the same without this package': ['inference_test'],
    'A network in ONNX and in PyTorch has the logits of the network, for every primitive and in '
    'every space': ['torch_module_test', 'translation_test'],
    'Latencies of another device are those of its table, for all of a search or not at all': [
        'latency_pieces_test',
        'latency_test',
    ],
    'Class names come through as they are, whatever they are': ['own_pictures_test'],
    'A compiled program on disk is whole or not there, and never fails a run': [
        'compilation_cache_test'
    ],
    'Every documented command runs': ['commands_test'],
}
PAGE = 'tests.md'
RINGS = ('default', 'slow', 'soak')


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--laws', action='store_true', help=f'write docs/{PAGE}; see helpers/laws.py')


def ring(item: pytest.Item) -> str:
    """The outermost ring that a test is marked with."""
    return next((name for name in ('soak', 'slow') if item.get_closest_marker(name)), 'default')


def held_by(items: list[pytest.Item]) -> dict[str, dict[tuple[str, str], list[pytest.Item]]]:
    """The tests of each law, by function and ring."""
    found = {law: collections.defaultdict(list) for law in LAWS}
    for item in items:
        file, function = item.path.stem, item.originalname
        for law, names in LAWS.items():
            if file in names or f'{file}::{function}' in names:
                found[law][f'{file}::{function}', ring(item)].append(item)
    return found


def page(items: list[pytest.Item], known: dict[str, float]) -> str:
    """The table, in Markdown."""
    totals = collections.defaultdict(float)
    for item in items:
        totals[ring(item)] += known.get(item.nodeid, 0.0)
    lines = [
        '# Which test holds which law',
        '',
        'Made of `tests/helpers/laws.py` by `python -m pytest -n 0 -m "" --collect-only -q --laws`',
        'and the seconds that each test took when it last ran on the machine that made it. Rings:',
        '',
        *(
            f'* **{name}**: {sum(ring(item) == name for item in items)} tests, '
            f'{totals[name]:.0f} s on one core'
            for name in RINGS
        ),
        '',
        '| law | test | ring | cases | seconds |',
        '|---|---|---|---|---|',
    ]
    for law, tests in held_by(items).items():
        rows = sorted(tests.items(), key=lambda row: (RINGS.index(row[0][1]), row[0][0]))
        for number, ((name, of), cases) in enumerate(rows):
            seconds = sum(known.get(case.nodeid, 0.0) for case in cases)
            text = name.replace('::test_', ': ').replace('_', ' ')
            row = ('' if number else law, text, of, len(cases), f'{seconds:.1f}')
            lines.append('| ' + ' | '.join(map(str, row)) + ' |')
    return '\n'.join(lines) + '\n'


def write(root: pathlib.Path, items: list[pytest.Item]) -> None:
    """Writes docs/tests.md."""
    known = costs.seconds(root / '.cache' / 'seconds.json')
    (root / 'docs' / PAGE).write_text(page(items, known), encoding='utf-8')
