"""Defines every error of the device side. Each is named for its cause; messages say what is wrong and what to do."""

from __future__ import annotations

from typing import ClassVar


class CogenesisError(Exception):
    """Base of every error this project raises on purpose.

    The command line prints only the message and exits with `exit_code`.
    """

    exit_code = 1


class BundleError(CogenesisError):
    """A bundle can't be used: a file is missing, damaged or of an unknown format."""

    exit_code = 3


class ManifestError(BundleError):
    """`manifest.json` is not valid JSON, lacks a field or has a field of the wrong type."""


class UnsupportedVersionError(BundleError):
    """The bundle was written for a newer or unknown major version of the format."""


class UnsafePathError(BundleError):
    """A path in the manifest leads outside the bundle."""


class MissingFileError(BundleError):
    """A file that the manifest lists is missing."""


class DamagedFileError(BundleError):
    """A file's size or SHA-256 differs from the manifest."""


class AdapterError(CogenesisError):
    """An adapter can't be used with this bundle: different base, different shapes, or a damaged file."""

    exit_code = 3


class PromptCacheError(CogenesisError):
    """A saved prompt cache is damaged, or belongs to another model or adapter."""

    exit_code = 3


class RequestError(CogenesisError):
    """A request file or an argument is incomplete or malformed."""

    exit_code = 4


class ContextOverflowError(RequestError):
    """Profile and instruction don't fit into the model's context, even without any history."""


class StoreError(CogenesisError):
    """The profile store can't be opened, or was written by a newer version."""

    exit_code = 4


class PolicyError(CogenesisError):
    """The privacy policy forbids the requested operation."""

    exit_code = 4


class LedgerError(CogenesisError):
    """The egress ledger can't be written, so nothing may be sent."""

    exit_code = 5


class CloudError(CogenesisError):
    """The cloud can't be used.

    Attributes:
        transient: whether a later retry may succeed.
        retry_after: the cloud's requested retry delay in seconds; 0 if it gave none.
    """

    exit_code = 5
    transient: ClassVar[bool] = False
    retry_after: float = 0.0


class CloudUnavailableError(CloudError):
    """No connection: no server is listening, the network is down, or the server stopped."""

    transient = True


class CloudTimeoutError(CloudError):
    """The cloud did not answer before the deadline."""

    transient = True


class CloudRefusedError(CloudError):
    """The cloud does not accept the API key."""


class CloudOverloadedError(CloudError):
    """The cloud has no free session, evicted this one for another client, or the key's quota is exhausted."""

    transient = True


class TokenizerMismatchError(CloudError):
    """Edge and cloud model have different vocabularies, so their tokens can't be fused."""


class CloudContextFullError(CloudError):
    """The public instruction and the answer so far fill the cloud model's context."""


class ProtocolError(CloudError):
    """The other side sent something that the wire format does not allow."""


class WriteError(CogenesisError):
    """A result can't be written: disk full, no permission, or the path is taken."""

    exit_code = 10


class MissingExtraError(CogenesisError):
    """An optional package is not installed; the message names the extra that installs it."""

    exit_code = 10
