"""Every error of the device side, named for its cause; messages say what is wrong, where, and what to do."""

from __future__ import annotations

from typing import ClassVar


class CogenesisError(Exception):
    """Base of every error this project raises on purpose.

    The command line prints the message alone and ends with `exit_code`.
    """

    exit_code = 1


class BundleError(CogenesisError):
    """A bundle can't be used: a file is missing, damaged or not understood."""

    exit_code = 3


class ManifestError(BundleError):
    """`manifest.json` is not valid JSON, lacks a field or holds one of the wrong type."""


class UnsupportedVersionError(BundleError):
    """The bundle was written for a newer or unknown major version of the format."""


class UnsafePathError(BundleError):
    """A path in the manifest leads outside the bundle."""


class MissingFileError(BundleError):
    """A file that the manifest names is not there."""


class DamagedFileError(BundleError):
    """A file's size or SHA-256 differs from the manifest."""


class AdapterError(CogenesisError):
    """An adapter can't be used with this bundle: other base, other shapes, or a damaged file."""

    exit_code = 3


class PromptCacheError(CogenesisError):
    """A saved prompt cache is damaged, or belongs to another model or adapter."""

    exit_code = 3


class RequestError(CogenesisError):
    """A request file or an argument is incomplete or of the wrong form."""

    exit_code = 4


class ContextOverflowError(RequestError):
    """Profile and instruction don't fit into the model's context, even without any history."""


class StoreError(CogenesisError):
    """The profile store can't be opened, or was written by a newer version."""

    exit_code = 4


class PolicyError(CogenesisError):
    """The privacy policy forbids what was asked for."""

    exit_code = 4


class LedgerError(CogenesisError):
    """The egress ledger can't be written, so nothing may leave the device."""

    exit_code = 5


class CloudError(CogenesisError):
    """The cloud can't be used.

    Attributes:
        transient: trying again later may help.
        retry_after: seconds after which the cloud wants to be asked again, 0 where it did not say.
    """

    exit_code = 5
    transient: ClassVar[bool] = False
    retry_after: float = 0.0


class CloudUnavailableError(CloudError):
    """No connection: nobody listens, the network is gone, or the server went away."""

    transient = True


class CloudTimeoutError(CloudError):
    """The cloud did not answer before the deadline."""

    transient = True


class CloudRefusedError(CloudError):
    """The cloud does not accept the API key."""


class CloudOverloadedError(CloudError):
    """The cloud has no free session, took this one back for another client, or the key's quota is used up."""

    transient = True


class TokenizerMismatchError(CloudError):
    """Edge and cloud model have different vocabularies, so their tokens can't be fused."""


class CloudContextFullError(CloudError):
    """The public instruction and the answer so far fill the cloud model's context."""


class ProtocolError(CloudError):
    """The other side sent something that the wire format does not allow."""


class WriteError(CogenesisError):
    """A result can't be written: disk full, no permission, or something else is in its place."""

    exit_code = 10


class MissingExtraError(CogenesisError):
    """An optional package is not installed; the message names the extra that brings it."""

    exit_code = 10
