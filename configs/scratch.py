"""Says the command that took the place of this config; for one release."""


def get_config(workdir: str = 'WORKDIR') -> None:
    """Raises the message."""
    raise ValueError(
        'configs/scratch.py is gone: use --mode=retrain --config=PRESET --config.genotype='
        f'{workdir} --config.retrain.epochs=same_flops, with the fields of that run '
        '(docs/growth.md)'
    )
