"""Packages that only some exports and trackers need; nothing else of this package needs them."""

import importlib

from asose_jax.runtime.errors import UserError


def is_installed(name: str) -> bool:
    """Returns whether a package can be imported.

    A folder of the same name in the current directory is none: W&B, for one, leaves `wandb/`.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, but broken
            raise
        return False
    return getattr(module, '__file__', None) is not None


def require(what: str, *names: str) -> None:
    """Fails unless packages are installed.

    Args:
      what: needs them, for the message.
      *names: of the packages.

    Raises:
      UserError: some are missing; it says how to install them.
    """
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise UserError(
            f'{what} needs packages that are not installed: pip install {" ".join(missing)}'
        )
