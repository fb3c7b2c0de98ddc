"""Trained adapters become adapters of a bundle: the right users', on the right base, and one bad one stops no other."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from edge_runtime.adapters.adapter import read_adapter_header
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.manifest import write_manifest
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.errors import AdapterError, BundleError
from export.adapters.export import export_adapter, export_adapters
from export.errors import AdapterExportError
from export.executorch.export import export_executorch
from export.model.hf_source import hf_provenance, weight_files
from export.model.lineage import write_lineage
from export.model.weights import Provenance
from export.onnx.export import export_onnx
from tests.support.commands import cogenesis, run_cogenesis
from tests.support.tiny_models import decoder_of, make_model, random_ids

IDS = random_ids(40, seed=5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base") / "model", model_type="llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("other") / "model", model_type="llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "bundle"
    export_onnx(base, out, "fp32")
    return out


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def store_of(bundle):
    return AdapterStore(bundle / "adapters", open_bundle(bundle, verify=False).base)


def train(directory, base, seed=0, note=None, rank=4):
    """A PEFT directory with random matrices; `note` is what our own training adds."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(directory)
    if note is not None:
        (directory / "cogenesis.json").write_text(json.dumps(note))
    return directory


def note(user, base, **fields):
    identity = {"sha256": hf_provenance(base).sha256, "name": "tiny"}
    return {"format": "cogenesis-training/1", "user": user, "base": identity, "task": "LaMP-3", "examples": 9} | fields


def peft_rows(base, directory):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), directory)
    with torch.inference_mode():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def test_an_exported_adapter_gives_the_logits_of_peft(base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", base))
    done = export_adapter(peft, bundle, "anna", "fp32")
    assert done.path == bundle / "adapters" / "anna" / "adapter.safetensors"
    assert done.size == done.path.stat().st_size
    decoder = decoder_of(bundle)
    bare = decoder.extend(IDS, rows=len(IDS))
    decoder.use_adapter(store_of(bundle).load("anna"))
    rows = decoder.extend(IDS, rows=len(IDS))
    np.testing.assert_allclose(rows, peft_rows(base, peft), atol=5e-4)
    assert np.abs(rows - bare).max() > 0.5


@pytest.mark.parametrize("weights", ["fp16", "int8", "fp32"])
def test_the_header_says_what_was_exported(weights, base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", base))
    header = read_adapter_header(export_adapter(peft, bundle, weights=weights).path)
    assert (header.user, header.name, header.base_name) == ("anna", "anna, LaMP-3", "tiny")
    assert (header.base, header.weights) == (hf_provenance(base).sha256, weights)
    assert header.ranks == dict.fromkeys(("q_proj", "v_proj", "down_proj"), (4, 4))


def test_the_named_user_counts_and_one_must_be_known(base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", base))
    assert export_adapter(peft, bundle, "Ben").user == "Ben"
    (peft / "cogenesis.json").write_text(json.dumps(note("", base)))
    with pytest.raises(AdapterExportError, match="--user"):
        export_adapter(peft, bundle)


def test_an_adapter_of_another_base_is_refused(base, other_base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", other_base))
    with pytest.raises(AdapterExportError, match=r"another base model.*tiny.*Train it on"):
        export_adapter(peft, bundle, "anna")
    assert not (bundle / "adapters").exists()


def test_an_adapter_from_elsewhere_needs_its_base_named(base, other_base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base)
    with pytest.raises(AdapterExportError, match="--base"):
        export_adapter(peft, bundle, "anna")
    with pytest.raises(AdapterExportError, match="another base model"):
        export_adapter(peft, bundle, "anna", base=other_base)
    export_adapter(peft, bundle, "anna", base=base)
    assert store_of(bundle).load("anna").user == "anna"


def test_what_is_trained_on_a_directory_written_from_a_model_fits_that_models_bundle(base, tmp_path):
    origin = Provenance("gguf", "tiny.gguf", "d" * 64, "tiny", "", "Apache-2.0", 1)
    written = shutil.copytree(base, tmp_path / "written")
    write_lineage(written, origin, weight_files(written))
    export_onnx(written, tmp_path / "bundle", "int8")
    assert open_bundle(tmp_path / "bundle").base == origin.sha256
    peft = train(tmp_path / "peft", written)
    export_adapter(peft, tmp_path / "bundle", "anna", base=written)
    with pytest.raises(AdapterExportError, match="another base model"):
        export_adapter(peft, tmp_path / "bundle", "ben", base=base)


def test_a_present_adapter_is_replaced_only_if_told_so_and_the_same_one_is_no_news(base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", base))
    assert not export_adapter(peft, bundle).unchanged
    assert export_adapter(peft, bundle).unchanged
    train(peft, base, seed=1)
    with pytest.raises(AdapterError, match="--force"):
        export_adapter(peft, bundle)
    old = store_of(bundle).load("anna").fingerprint
    assert not export_adapter(peft, bundle, force=True).unchanged
    assert store_of(bundle).load("anna").fingerprint != old
    damaged = bytearray(store_of(bundle).path("anna").read_bytes())
    damaged[-1] ^= 1
    store_of(bundle).path("anna").write_bytes(damaged)
    assert not export_adapter(peft, bundle, force=True).unchanged


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"format": "cogenesis-training/1", "user": 7}']
)
def test_a_damaged_note_of_the_training_is_refused(content, base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base)
    (peft / "cogenesis.json").write_bytes(content)
    with pytest.raises(AdapterExportError, match=r"cogenesis\.json"):
        export_adapter(peft, bundle, "anna", base=base)


def test_a_bundle_whose_graph_takes_no_adapters_is_named(base, bundle, tmp_path):
    manifest = open_bundle(bundle).manifest
    portable = replace(manifest.decoder, kind="portable", lora=())
    (bundle / "manifest.json").write_text(write_manifest(replace(manifest, decoders=(portable,))))
    with pytest.raises(AdapterExportError, match="takes no adapters"):
        export_adapter(train(tmp_path / "peft", base, note=note("anna", base)), bundle)


def test_a_bundle_must_be_there(base, tmp_path):
    with pytest.raises(BundleError, match="no bundle here"):
        export_adapter(train(tmp_path / "peft", base), tmp_path / "nowhere", "anna", base=base)


def test_an_adapter_must_fit_every_runtime_of_its_bundle(base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("anna", base))
    export_executorch(base, bundle, "fp32")
    with pytest.raises(AdapterExportError, match=r"down_proj\. Its executorch decoder has .*--adapter-sites all"):
        export_adapter(peft, bundle)
    export_executorch(base, bundle, "fp32", adapter_sites="all", force=True)
    assert export_adapter(peft, bundle).path.is_file()


def test_many_users_are_exported_at_once_and_bad_ones_named(base, other_base, bundle, tmp_path):
    root = tmp_path / "trained"
    for seed, user in enumerate(("anna", "Ben", "chloé")):
        train(root / f"user-{seed}", base, seed, note(user, base))
    train(root / "foreign", base, 7, note("foreign", other_base))
    train(root / "twice", base, 8, note("anna", base))
    poisoned = train(root / "nan", base, 9, note("nan", base)) / "adapter_model.safetensors"
    poisoned.write_bytes(poisoned.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    (root / "half").mkdir()
    (root / "half" / "adapter_config.json").write_text("{")
    (root / "notes.txt").write_text("not an adapter")
    told = []
    done, failed = export_adapters(root, bundle, progress=lambda *step: told.append(step))
    # Of the two trainings of one user the first by name counts.
    assert {one.user for one in done} == {"anna", "Ben", "chloé"}
    problems = {one.directory.name: one.error for one in failed}
    assert problems.keys() == {"foreign", "half", "nan", "user-0"}
    assert "another base" in problems["foreign"]
    assert "not finite" in problems["nan"]
    assert "two trainings" in problems["user-0"]
    assert told[-1] == ("Exporting adapters", 7, 7)
    assert sorted(entry.header.user for entry in store_of(bundle).entries()) == ["Ben", "anna", "chloé"]
    again, _ = export_adapters(root, bundle)
    assert all(one.unchanged for one in again)
    with pytest.raises(AdapterExportError, match="no PEFT adapters here"):
        export_adapters(tmp_path / "nowhere", bundle)


def test_the_commands_export_list_and_remove(base, other_base, bundle, tmp_path):
    root = tmp_path / "trained"
    for seed, user in enumerate(("anna", "Ben")):
        train(root / user.lower(), base, seed, note(user, base))
    train(root / "foreign", base, 7, note("foreign", other_base))

    one = json.loads(cogenesis("export", "adapter", "--peft", root / "anna", "--bundle", bundle, "--json"))
    assert (one["user"], one["unchanged"]) == ("anna", False)
    done = run_cogenesis("export", "adapter", "--peft", root, "--bundle", bundle, "--weights", "fp16", "--json")
    assert done.returncode == 7
    found = json.loads(done.stdout)
    assert [(one["user"], one["unchanged"]) for one in found["exported"]] == [("anna", True), ("Ben", False)]
    assert found["failed"][0]["directory"] == str(root / "foreign")
    assert done.stderr.startswith("error: 1 of 3 adapters were not exported")
    assert done.stderr.count("\n") == 1

    (bundle / "adapters" / "damaged").mkdir()
    (bundle / "adapters" / "damaged" / "adapter.safetensors").write_bytes(b"garbage")
    listed = json.loads(cogenesis("export", "adapters", bundle, "--json"))
    assert listed["base"] == hf_provenance(base).sha256
    rows = {row["directory"]: row for row in listed["adapters"]}
    assert rows["anna"]["ranks"]["q_proj"] == [4, 4]
    assert (rows["anna"]["weights"], rows["anna"]["base_matches"], rows["anna"]["problem"]) == ("fp16", True, None)
    assert rows["damaged"]["user"] is None
    assert "can't be read" in rows["damaged"]["problem"]
    text = cogenesis("export", "adapters", bundle)
    assert "Ben" in text
    assert "3 adapters in" in text
    assert "1 of them unusable" in text

    cogenesis("export", "adapters", bundle, "--remove", "Ben", "--remove", "damaged", "--json")
    assert [path.name for path in (bundle / "adapters").iterdir()] == ["anna"]


def test_a_user_id_can_not_write_to_the_terminal(base, bundle, tmp_path):
    peft = train(tmp_path / "peft", base, note=note("\x1b[2Janna\n", base))
    export_adapter(peft, bundle)
    text = cogenesis("export", "adapters", bundle)
    assert "\x1b" not in text
    assert "x1b[2Janna" in text
