"""Defines the bundle's manifest, reads it strictly, and writes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_runtime.bundle.json_fields import JsonFields
from edge_runtime.errors import ManifestError, UnsupportedVersionError

FORMAT = "cogenesis-bundle"
SCHEMA_MAJOR = 2
SCHEMA_MINOR = 1
MANIFEST_NAME = "manifest.json"

# Roles of files; a bundle needs the first three to load.
ROLE_GRAPH = "graph"
ROLE_WEIGHTS = "weights"
ROLE_TOKENIZER = "tokenizer"
ROLE_GOLDEN = "golden"
ROLE_COMBINER = "combiner"

GRAPH_SHARED_KV = "shared_kv"
GRAPH_PORTABLE = "portable"
GRAPH_EXECUTORCH = "executorch"

BACKEND_ONNX = "onnx"
BACKEND_EXECUTORCH = "executorch"
_BACKENDS: Mapping[str, str] = {
    GRAPH_SHARED_KV: BACKEND_ONNX,
    GRAPH_PORTABLE: BACKEND_ONNX,
    GRAPH_EXECUTORCH: BACKEND_EXECUTORCH,
}

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: `path` (POSIX, relative), `role`, `size` in bytes, `sha256` in lower-case hex."""

    path: str
    role: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Describes the bundle's model; `license` is an SPDX identifier or "unknown"."""

    id: str
    revision: str
    architecture: str
    license: str
    parameters: int


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """The tokenizer: `path` of `tokenizer.json`, `fingerprint` (see `edge_runtime.text.tokenizer`), special tokens.

    The chat template receives `bos_token`, `eos_token` and `special_tokens`, its other special tokens by name, such as
    `pad_token`; any of `stop_token_ids` ends an answer.
    """

    path: str
    fingerprint: str
    bos_token: str
    eos_token: str
    stop_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    @property
    def template_tokens(self) -> dict[str, str | list[str]]:
        """The special tokens that the chat template gets; those that the model lacks are undefined in it."""
        pairs = {"bos_token": self.bos_token, "eos_token": self.eos_token, **self.special_tokens}
        return {name: one if isinstance(one, str) else list(one) for name, one in pairs.items() if one}


@dataclass(frozen=True, slots=True)
class LoraSite:
    """One place in every layer that takes LoRA matrices.

    Attributes:
        name: the graph's inputs are `layers.{i}.{name}.lora_A` (in_features, r) and `.lora_B` (r, sum of out_features).
        in_features: width of the input.
        projections: the model's projections packed side by side here, with their out_features, in order.
    """

    name: str
    in_features: int
    projections: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights are stored: `scheme` (keep, fp32, int8, mixed, int4), and a description for people."""

    scheme: str
    description: str


@dataclass(frozen=True, slots=True)
class SourceCheck:
    """How the exporter compared a decoder with its source model.

    Attributes:
        reference: the program that computed the source, as in "transformers 5.1.0".
        tokens: length of the text.
        difference: root mean square of the logits' difference, in standard deviations of the logits.
        tolerance: the largest difference that was allowed.
    """

    reference: str
    tokens: int
    difference: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """One decoder: the model in the format of one runtime. All decoders of a bundle hold the same model.

    Attributes:
        graph: path of the ONNX file or ExecuTorch program; all files in its directory belong to it.
        kind: "shared_kv" (our ONNX graph, docs/bundle.md), "portable" (optimum's graph with growing caches, which
            returns all rows) or "executorch".
        layers, kv_heads, head_dim: shape of the KV cache.
        lora: sites that accept adapter matrices; empty if the graph accepts no adapter.
        quantization: how the decoder's weights are stored.
        golden: path of the decoder's conformance vectors.
        checked: how it was compared with its source; None if it was not.
    """

    graph: str
    kind: str
    layers: int
    kv_heads: int
    head_dim: int
    lora: tuple[LoraSite, ...]
    quantization: Quantization
    golden: str
    checked: SourceCheck | None = None

    @property
    def backend(self) -> str:
        """The decoder's runtime: "onnx" or "executorch"."""
        return _BACKENDS[self.kind]

    @property
    def directory(self) -> str:
        """Directory of the decoder's files, relative to the bundle, with a trailing slash."""
        return self.graph.rpartition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Origin of the weights: `kind` ("gguf" or "huggingface"), `name`, `sha256` of the weights."""

    kind: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All facts that a device needs before it opens a graph.

    Attributes:
        decoders: at least one, at most one per backend; the first is the default.
        template_variables: values of the chat template's variables, JSON by name.
    """

    created_by: str
    model: ModelCard
    tokenizer: TokenizerSpec
    chat_template: str
    context_length: int
    vocab_size: int
    decoders: tuple[DecoderSpec, ...]
    source: WeightSource
    files: tuple[FileEntry, ...]
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoder(self) -> DecoderSpec:
        """The default decoder."""
        return self.decoders[0]

    def decoder_for(self, backend: str) -> DecoderSpec | None:
        """Return the decoder of a backend, or None if the bundle has none."""
        return next((spec for spec in self.decoders if spec.backend == backend), None)

    def file(self, role: str) -> FileEntry | None:
        """Return the first file with this role, or None."""
        return next((entry for entry in self.files if entry.role == role), None)


def write_manifest(manifest: Manifest) -> str:
    """Render the manifest as JSON with a checksum, which reveals damage."""
    body: dict[str, Any] = {"format": FORMAT, "schema": {"major": SCHEMA_MAJOR, "minor": SCHEMA_MINOR}}
    body |= asdict(manifest)
    body["checksum"] = _checksum(body)
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def read_manifest(text: str | bytes, where: str = MANIFEST_NAME) -> Manifest:
    """Parse and check a manifest.

    Args:
        text: the file's content.
        where: its path, for messages.

    Raises:
        ManifestError: the text is not JSON, not a bundle's manifest or damaged, or a field is missing or has the wrong
            type.
        UnsupportedVersionError: the manifest was written for another major version.
        UnsafePathError: a path leads outside the bundle.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"The manifest is not valid JSON: {where} ({error}). Export the bundle again.") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ManifestError(f"This is not a bundle's manifest: {where} (field 'format' is not '{FORMAT}').")
    root = JsonFields(body, where, "")
    major = root.child("schema").integer("major")
    if major != SCHEMA_MAJOR:
        raise UnsupportedVersionError(
            f"The bundle has format version {major}, this runtime reads version {SCHEMA_MAJOR}: {where}. "
            + ("Update cogenesis-edge." if major > SCHEMA_MAJOR else "Export the bundle again.")
        )
    try:
        actual = _checksum({key: value for key, value in body.items() if key != "checksum"})
    except (ValueError, RecursionError):
        actual = ""
    if root.text("checksum") != actual:
        raise ManifestError(f"The manifest was damaged or edited: {where} (its checksum differs). Export it again.")
    return _manifest(root)


def _manifest(root: JsonFields) -> Manifest:
    model, tokenizer, source = root.child("model"), root.child("tokenizer"), root.child("source")
    manifest = Manifest(
        created_by=root.text("created_by"),
        model=ModelCard(
            model.text("id"),
            model.text("revision"),
            model.text("architecture"),
            model.text("license"),
            model.integer("parameters"),
        ),
        tokenizer=TokenizerSpec(
            tokenizer.path("path"),
            tokenizer.text("fingerprint"),
            tokenizer.text("bos_token"),
            tokenizer.text("eos_token"),
            tuple(tokenizer.integers("stop_token_ids")),
            _special_tokens(tokenizer),
        ),
        chat_template=root.text("chat_template"),
        context_length=root.integer("context_length", minimum=1),
        vocab_size=root.integer("vocab_size", minimum=1),
        decoders=tuple(_decoder(spec) for spec in root.children("decoders")),
        source=WeightSource(source.text("kind"), source.text("name"), source.text("sha256")),
        files=tuple(_file_entry(entry) for entry in root.children("files")),
        template_variables=root.optional_object("template_variables"),
    )
    backends = [spec.backend for spec in manifest.decoders]
    if not backends or len(set(backends)) != len(backends):
        raise root.error("decoders", "must have one decoder a backend, and at least one")
    named = {entry.path for entry in manifest.files}
    if len(named) != len(manifest.files):
        raise root.error("files", "names a file twice")
    wanted = [("tokenizer.path", manifest.tokenizer.path)]
    for index, spec in enumerate(manifest.decoders):
        wanted += [(f"decoders[{index}].graph", spec.graph), (f"decoders[{index}].golden", spec.golden)]
    for name, path in wanted:
        if path not in named:
            raise root.error(name, f"names '{path}', which 'files' does not list")
    return manifest


def _special_tokens(tokenizer: JsonFields) -> dict[str, str | tuple[str, ...]]:
    found: dict[str, str | tuple[str, ...]] = {}
    for name, value in tokenizer.optional_object("special_tokens").items():
        if isinstance(value, list) and all(isinstance(token, str) for token in value):
            found[name] = tuple(value)
        elif isinstance(value, str):
            found[name] = value
        else:
            raise tokenizer.error(f"special_tokens.{name}", "must be a string or a list of strings")
    return found


def _decoder(decoder: JsonFields) -> DecoderSpec:
    kind, quantization = decoder.text("kind"), decoder.child("quantization")
    if kind not in _BACKENDS:
        raise decoder.error("kind", f"is '{kind}', which this runtime doesn't know")
    graph = decoder.path("graph")
    if "/" not in graph:
        raise decoder.error("graph", "must be in a directory of its own")
    return DecoderSpec(
        graph,
        kind,
        decoder.integer("layers", minimum=1),
        decoder.integer("kv_heads", minimum=1),
        decoder.integer("head_dim", minimum=1),
        tuple(_lora_site(site) for site in decoder.children("lora")),
        Quantization(quantization.text("scheme"), quantization.text("description")),
        decoder.path("golden"),
        _source_check(decoder),
    )


def _source_check(decoder: JsonFields) -> SourceCheck | None:
    if not decoder.has("checked"):  # bundles of schema 2.0 lack it
        return None
    check = decoder.child("checked")
    return SourceCheck(
        check.text("reference"), check.integer("tokens"), check.number("difference"), check.number("tolerance")
    )


def _lora_site(site: JsonFields) -> LoraSite:
    projections = []
    for pair in site.sequence("projections"):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not isinstance(pair[0], str)
            or type(pair[1]) is not int
            or pair[1] < 1
        ):
            raise site.error("projections", "must be pairs of a name and a size")
        projections.append((pair[0], pair[1]))
    return LoraSite(site.text("name"), site.integer("in_features", minimum=1), tuple(projections))


def _file_entry(entry: JsonFields) -> FileEntry:
    sha256 = entry.text("sha256")
    if not _SHA256.match(sha256):
        raise entry.error("sha256", "is not 64 lower-case hex digits")
    return FileEntry(entry.path("path"), entry.text("role"), entry.integer("size", minimum=0), sha256)


def _checksum(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=list)
    return hashlib.sha256(canonical.encode()).hexdigest()
