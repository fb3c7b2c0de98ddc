"""What the training libraries need before they are loaded, and what keeps their chatter from the user."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings

from edge_runtime.errors import MissingExtraError

_EXTRA = ("accelerate", "matplotlib", "peft", "torch", "transformers")


def require_training_libraries() -> None:
    """Check that the libraries are there.

    Raises:
        MissingExtraError: one is not.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Training needs packages that are not installed: {', '.join(missing)}. "
            "Run `pip install 'cogenesis-edge[train]'`."
        )


def prepare_libraries() -> None:
    """Set this process up for torch and transformers; call it before they are imported."""
    # Read when torch loads: threads that spin while they wait take the processor from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def prepare_command() -> None:
    """As `prepare_libraries`, for a process that is a command that needs them: it logs nothing, and no library does.

    Raises:
        MissingExtraError: one is not there.
    """
    require_training_libraries()
    prepare_libraries()
    # What libraries have to say about their own inner workings is no news to a user.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
