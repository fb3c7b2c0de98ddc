"""Says in one sentence why a file of users' data can't be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from personalization.errors import DataError


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what reading a file raises into a `DataError`.

    Raises:
        DataError: the file is missing, can't be read, or is not UTF-8 text.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"There is no such file: {path}. Check its name.") from None
    except OSError as error:
        raise DataError(f"The file can't be read: {path} ({error.strerror}). Check who may read it.") from None
    except UnicodeDecodeError:
        raise DataError(f"The file is not UTF-8 text: {path}. Save it as UTF-8.") from None
