"""Prepares the process for the training libraries before they are loaded, and silences their messages."""

from __future__ import annotations

import logging
import os
import warnings

from edge_runtime.extras import require_packages

_EXTRA = ("accelerate", "matplotlib", "peft", "torch", "transformers")


def require_training_libraries() -> None:
    """Check that the training libraries are installed.

    Raises:
        MissingExtraError: a library is missing.
    """
    require_packages("Training", *_EXTRA, extra="train")


def prepare_libraries() -> None:
    """Set environment variables for torch and transformers; call this before importing them."""
    # Read when torch loads: threads that spin while waiting would take CPU time from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def prepare_command() -> None:
    """Call `prepare_libraries` for a command that requires the libraries, and disable logging and warnings.

    Raises:
        MissingExtraError: a library is missing.
    """
    require_training_libraries()
    prepare_libraries()
    # Messages about the libraries' internals don't help a user.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
