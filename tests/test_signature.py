from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from base64 import b64decode, b64encode
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from exported import bundle_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.cli.app import run
from zoo.export import read_bundle, verify_bundle
from zoo.export.bundle.folder import SIGNATURE, SUMS, files, write_sums
from zoo.export.bundle.keys import PASSPHRASE, signing_key, trusted_keys
from zoo.export.bundle.provenance import PROVENANCE, remove_signature, sign_bundle
from zoo.export.bundle.sbom import SBOM, sbom
from zoo.export.bundle.signature import check_signature, signature
from zoo.export.bundle.source import Known, public
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import IntegrityError, MissingDependency, ParityGateFailed, UsageError
from zoo.system.files import sha256_file
from zoo.system.toolchain import MACHINE

SECRET = "a phrase with spaces and ü"


def write_key(path: Path, key, *, passphrase: str | None = None, mode: int = 0o600) -> None:
    """Write the key to ``NAME.pem`` and its public key to ``NAME.pub``, as openssl does."""
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    path.with_suffix(".pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    path.with_suffix(".pem").chmod(mode)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        write_key(folder / name, ec.generate_private_key(ec.SECP256R1()))
    write_key(folder / "locked", ec.generate_private_key(ec.SECP256R1()), passphrase=SECRET)
    write_key(folder / "shown", ec.generate_private_key(ec.SECP256R1()), mode=0o644)
    write_key(folder / "hidden", ec.generate_private_key(ec.SECP256R1()))
    (folder / "hidden.pub").chmod(0o600)
    write_key(folder / "curve", ec.generate_private_key(ec.SECP384R1()))
    write_key(folder / "kind", ed25519.Ed25519PrivateKey.generate())
    for name, kind in (("text.pem", "PRIVATE"), ("text.pub", "PUBLIC")):
        (folder / name).write_text(f"-----BEGIN {kind} KEY-----\nAAAA\n-----END {kind} KEY-----\n")
        (folder / name).chmod(0o600)
    return folder


def made(keys: Path, out: Path, **options) -> Path:
    torch.manual_seed(0)
    model = build(StagedSpec(widths=((4,), (8,)), resolutions=(8, 4), stem=4, stem_resolution=16)).eval()
    return bundle_of(
        model, Known("local-dir:mine", "mine"), out=out, verify="parity", sign=keys / "mine.pem", **options
    )


@pytest.fixture(scope="module")
def signed(keys, tmp_path_factory) -> Path:
    return made(keys, tmp_path_factory.mktemp("out"))


@pytest.fixture
def bundle(signed, tmp_path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "bundle"))


def call(capsys, *arguments: str | Path) -> tuple[int, dict]:
    code = run([*map(str, arguments), "--json", "-q"])
    return code, json.loads(capsys.readouterr().out)


# -- what is signed --------------------------------------------------------------------------------------------


def test_a_signed_bundle_is_verified_by_the_public_key(bundle, keys, capsys):
    assert read_bundle(bundle, trust=keys / "mine.pub") == read_bundle(bundle)
    said: list[str] = []
    verify_bundle(bundle, trust=[keys / "other.pub", keys / "mine.pub"], notify=said.append)
    assert said == []
    assert call(capsys, "verify", bundle, "--trust", keys / "mine.pub")[0] == 0
    code, told = call(capsys, "verify", bundle, "--trust", keys / "other.pub")
    assert code == 5
    assert told["error"]["message"] == f"'{bundle}' is signed by another key than those that are trusted: do not use it"


def test_what_zoo_pick_exports_is_signed_and_a_bad_key_is_refused_first(keys, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    pick = ("pick", "--flops", "4M", "--export", "onnx", "--verify", "parity", "--offline", "--out", tmp_path)
    code, told = call(capsys, *pick, "--sign", keys / "shown.pem")
    assert (code, [*tmp_path.iterdir()]) == (2, [])
    assert "shown.pem" in told["error"]["message"]
    assert call(capsys, *pick[:3], "--sign", keys / "mine.pem")[0] == 2
    code, told = call(capsys, *pick, "--sign", keys / "mine.pem")
    assert code == 0
    assert "mine.pem" not in json.dumps(told)
    (made,) = tmp_path.iterdir()
    assert call(capsys, "verify", made, "--trust", keys / "mine.pub", "--verify", "parity")[0] == 0
    assert call(capsys, "verify", made, "--trust", keys / "other.pub")[0] == 5


def test_without_a_trusted_key_one_sentence_says_that_the_signature_was_not_checked(bundle):
    said: list[str] = []
    verify_bundle(bundle, level="none", notify=said.append)
    assert len(said) == 1
    assert "holds a signature, which was not checked" in said[0]


def test_the_statement_binds_artifact_and_manifest_to_twin_engine_and_verdict(signed):
    manifest, said = read_bundle(signed), json.loads((signed / PROVENANCE).read_bytes())
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    digests = {one["name"]: one["digest"] for one in said["subject"]}
    assert digests == {name: {"sha256": sha256_file(signed / name)} for name in ("model.onnx", "manifest.json")}
    predicate = said["predicate"]
    assert predicate["twin"]["tensors_sha256"] == manifest.source.tensors_sha256
    assert (predicate["engine"]["name"], predicate["toolchain"]) == ("onnxruntime", manifest.toolchain)
    assert predicate["verdict"]["verified"] == "parity"
    assert [gate["holds"] for gate in predicate["verdict"]["gates"]] == [True, True]


def test_what_is_signed_is_called_as_the_bundles_folder(signed):
    envelope = json.loads((signed / SIGNATURE).read_bytes())["dsseEnvelope"]
    (subject,) = json.loads(b64decode(envelope["payload"]))["subject"]
    assert subject["name"] == signed.name


def test_nothing_in_the_bundle_names_the_key_file(signed, keys):
    for name in (*files(signed), SUMS):
        content = (signed / name).read_bytes()
        assert b"mine.pem" not in content
        assert os.fsencode(keys.name) not in content
    for given_as in (["--sign", "keys/mine.pem"], ["--sign=/home/me/keys/mine.pem"]):
        assert "mine.pem" not in public("zoo", "export", "trades-s3", *given_as, "-o", "out")
        assert "keys" not in public("zoo", "export", "trades-s3", *given_as, "-o", "out")


def test_an_engine_that_fails_a_gate_is_not_signed(keys, tmp_path):
    with pytest.raises(ParityGateFailed):
        made(keys, tmp_path, tolerance=1e-12, keep_failed=True)
    (failed,) = tmp_path.iterdir()
    assert failed.name.endswith(".failed")
    assert not (failed / SIGNATURE).exists()


# -- what is found ---------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_is_found_even_if_the_sums_agree(signed, keys, data):
    path = signed / data.draw(st.sampled_from([name for name in files(signed) if name != SIGNATURE]))
    content, sums = path.read_bytes(), (signed / SUMS).read_bytes()
    altered = bytearray(content)
    altered[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(altered)
        write_sums(signed)
        with pytest.raises(IntegrityError, match=f"was changed after it was signed, at {path.relative_to(signed)}"):
            read_bundle(signed, trust=keys / "mine.pub")
    finally:
        path.write_bytes(content)
        (signed / SUMS).write_bytes(sums)


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_of_what_is_signed_or_of_the_signature_is_found(signed, keys, tmp_path, data):
    said = json.loads((signed / SIGNATURE).read_bytes())
    envelope = said["dsseEnvelope"]
    place, key = data.draw(st.sampled_from([(envelope, "payload"), (envelope["signatures"][0], "sig")]))
    content = bytearray(b64decode(place[key]))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    place[key] = b64encode(content).decode()
    forged = tmp_path / SIGNATURE
    forged.write_text(json.dumps(said))
    sums = {name: sha256_file(signed / name) for name in files(signed) if name != SIGNATURE}
    check_signature(signed / SIGNATURE, sums, trusted_keys(keys / "mine.pub"))
    with pytest.raises(IntegrityError, match="is wrong"):
        check_signature(forged, sums, trusted_keys(keys / "mine.pub"))


def added(bundle: Path, keys: Path) -> None:
    (bundle / ".gitignore").write_text("*.sig")


def removed(bundle: Path, keys: Path) -> None:
    (bundle / "reports" / "parity.json").unlink()


def unsigned(bundle: Path, keys: Path) -> None:
    (bundle / SIGNATURE).unlink()


def of_another_bundle(bundle: Path, keys: Path) -> None:
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    (other / "README.md").write_text("another")
    remove_signature(other)
    write_sums(other)
    sign_bundle(other, signing_key(keys / "mine.pem"))
    shutil.copy(other / SIGNATURE, bundle / SIGNATURE)


def of_something_else(bundle: Path, keys: Path) -> None:
    key, said = signing_key(keys / "mine.pem"), json.loads((bundle / SIGNATURE).read_bytes())
    payload = b'{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1"}'
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    said["dsseEnvelope"]["payload"] = b64encode(payload).decode()
    said["dsseEnvelope"]["signatures"][0]["sig"] = b64encode(key.sign(message)).decode()
    (bundle / SIGNATURE).write_text(json.dumps(said))


def garbage(bundle: Path, keys: Path) -> None:
    (bundle / SIGNATURE).write_bytes(b'{"dsseEnvelope": [\xff')


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (added, r"was added after it was signed, at \.gitignore: do not use it"),
        (removed, r"was removed after it was signed, at reports/parity\.json: do not use it"),
        (unsigned, "is not signed, and a signature by a trusted key is asked for"),
        (of_another_bundle, r"was changed after it was signed, at README\.md: do not use it"),
        (of_something_else, "signs something else than the files of a folder"),
        (garbage, "is not a signature"),
    ],
)
def test_a_bundle_that_is_not_the_signed_one_is_refused(change, told, bundle, keys):
    change(bundle, keys)
    write_sums(bundle)
    read_bundle(bundle)  # without the key nothing is known about it
    with pytest.raises(IntegrityError, match=told):
        verify_bundle(bundle, trust=keys / "mine.pub")


# -- signed anew -----------------------------------------------------------------------------------------------


def test_a_signed_bundle_is_written_only_by_those_who_sign_it(bundle, keys, capsys):
    before = {name: sha256_file(bundle / name) for name in (*files(bundle), SUMS)}
    for verb in (["verify", bundle], ["bench", bundle]):
        code, told = call(capsys, *verb, "--write")
        assert code == 2
        assert "is signed, and a change would break the signature" in told["error"]["message"]
    assert "add it" in call(capsys, "verify", bundle, "--sign", keys / "other.pem")[1]["error"]["message"]
    assert {name: sha256_file(bundle / name) for name in (*files(bundle), SUMS)} == before
    code, told = call(capsys, "verify", bundle, "--write", "--sign", keys / "other.pem", "--verify", "none")
    assert code == 2
    assert "nothing is verified that could be signed" in told["error"]["message"]
    assert call(capsys, "verify", bundle, "--write", "--sign", keys / "other.pem", "--verify", "parity")[0] == 0
    assert read_bundle(bundle, trust=keys / "other.pub").verified == "parity"
    with pytest.raises(IntegrityError, match="by another key"):
        read_bundle(bundle, trust=keys / "mine.pub")


def test_a_bundle_that_fails_when_it_is_verified_again_loses_its_signature(bundle, keys):
    said: list[str] = []
    report = verify_bundle(bundle, tolerance=1e-12, write=True, sign=keys / "mine.pem", notify=said.append)
    assert report.failed is not None
    assert "was not signed, because a rung does not hold" in said[-1]
    assert not {SIGNATURE, PROVENANCE} & {*files(bundle)}
    assert not read_bundle(bundle).gates[-1].holds


def test_a_file_that_no_export_writes_is_not_signed(bundle, keys):
    (bundle / "run_me.py").write_text("print()")
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=r"'run_me\.py', which no export writes"):
        verify_bundle(bundle, level="parity", write=True, sign=keys / "mine.pem")


@pytest.mark.parametrize("sums", ["as they were", "made anew"])
def test_what_changes_while_a_bundle_is_verified_is_not_signed(bundle, keys, sums):
    def change(*done: object) -> None:
        (bundle / "README.md").write_text("anything")
        if sums == "made anew":
            write_sums(bundle)

    with pytest.raises(IntegrityError, match=r"changed while it was verified|altered or damaged"):
        verify_bundle(bundle, level="parity", write=True, sign=keys / "mine.pem", progress=change)
    with pytest.raises(IntegrityError):
        read_bundle(bundle, trust=keys / "mine.pub")


# -- keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.pem", "cannot be read: No such file"),
        (".", "is a folder, not a key"),
        ("text.pem", "holds no private key in PEM"),
        ("hidden.pub", "is a public key: sign with the private one"),
        ("curve.pem", "is another kind of private key: name an EC key on the curve P-256"),
        ("kind.pem", "is another kind of private key"),
        ("locked.pem", "is encrypted: set ZOO_KEY_PASSPHRASE"),
        ("shown.pem", "can be read by others than its owner: run 'chmod 600"),
    ],
)
def test_keys_that_cannot_sign_are_refused_before_anything_else(name, told, keys, capsys, monkeypatch):
    monkeypatch.delenv(PASSPHRASE, raising=False)
    for verb in (["export", "no-such-model"], ["verify", "nowhere"]):
        code, said = call(capsys, *verb, "--sign", keys / name)
        assert code == 2
        assert told in said["error"]["message"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.pub", "cannot be read: No such file"),
        ("text.pub", "holds no public key in PEM"),
        ("mine.pem", "is a private key: trust the public one"),
        ("curve.pub", "is another kind of public key"),
        ("kind.pub", "is another kind of public key"),
    ],
)
def test_keys_that_cannot_be_trusted_are_refused_before_anything_else(name, told, keys, capsys):
    code, said = call(capsys, "verify", "nowhere", "--trust", keys / "mine.pub", "--trust", keys / name)
    assert code == 2
    assert told in said["error"]["message"]


def test_to_trust_no_key_is_not_to_trust_every_bundle(bundle):
    with pytest.raises(UsageError, match="trust names no key"):
        read_bundle(bundle, trust=[])


def test_the_passphrase_comes_from_the_environment_or_from_whoever_is_asked(keys, monkeypatch):
    asked: list[str] = []
    monkeypatch.delenv(PASSPHRASE, raising=False)
    key = signing_key(keys / "locked.pem", ask=lambda prompt: asked.append(prompt) or SECRET)
    assert asked == [f"passphrase of '{keys / 'locked.pem'}': "]
    (trusted,) = trusted_keys(keys / "locked.pub")
    assert trusted.verifies(key.sign(b"message"), b"message")
    monkeypatch.setenv(PASSPHRASE, SECRET)
    assert signing_key(keys / "locked.pem").fingerprint == key.fingerprint == trusted.fingerprint
    assert signing_key(keys / "mine.pem")  # is not encrypted, and needs none
    monkeypatch.setenv(PASSPHRASE, "wrong")
    with pytest.raises(UsageError, match="the passphrase does not open the key") as caught:
        signing_key(keys / "locked.pem")
    assert "wrong" not in str(caught.value)


def test_without_the_extra_a_signature_is_refused_with_what_to_install(keys, signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for refused in (lambda: signing_key(keys / "mine.pem"), lambda: read_bundle(signed, trust=keys / "mine.pub")):
        with pytest.raises(MissingDependency, match=r"pip install \"robust-zoo\[sign\]\""):
            refused()
    read_bundle(signed)


# -- the formats of others -------------------------------------------------------------------------------------

# openssf.sig was made by `model_signing sign key` of the package model-signing 1.1.1, over a folder "g" of these files.
OPENSSF = Path(__file__).with_name("openssf.sig")
OPENSSF_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEH83FMP02QEInSeuXi1j3ELdQQMtB
bda8P0rkL3nCFcqerEBKVz+vBCwU7Up0Lzoyyd3Oc46tQrWDve+4iq60ag==
-----END PUBLIC KEY-----
"""
CONTENT = {"README.md": b"# A page\n", "model.onnx": b"a model\n", "probe/clean.npz": b"a probe\n"}
SIGNED = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def test_signatures_are_those_of_openssf_model_signing(keys, tmp_path):
    (tmp_path / "key.pub").write_text(OPENSSF_KEY)
    theirs_trusted = trusted_keys(tmp_path / "key.pub")
    check_signature(OPENSSF, SIGNED, theirs_trusted)
    with pytest.raises(IntegrityError, match=r"was changed after it was signed, at model\.onnx"):
        check_signature(OPENSSF, SIGNED | {"model.onnx": "0" * 64}, theirs_trusted)
    ours = json.loads(signature("g", SIGNED, signing_key(keys / "mine.pem"), ignored=(SIGNATURE,)))
    theirs = json.loads(OPENSSF.read_bytes())
    assert opened(ours) == opened(theirs)


def opened(signed: dict) -> dict:
    """A signature with its statement as it reads, and without what depends on the key."""
    envelope = signed["dsseEnvelope"]
    envelope["payload"] = json.loads(b64decode(envelope["payload"]))
    del envelope["payload"]["predicate"]["serialization"]["ignore_paths"]  # where we leave out no files of git
    assert b64decode(envelope["signatures"][0].pop("sig"))
    assert len(signed["verificationMaterial"]["publicKey"].pop("hint")) == 64
    return signed


def test_the_bill_of_materials_is_cyclonedx_and_names_artifact_and_toolchain(signed):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text, manifest = (signed / SBOM).read_text(), read_bundle(signed)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    (file,) = bill["metadata"]["component"]["components"]
    assert file["hashes"] == [{"alg": "SHA-256", "content": manifest.artifact.sha256}]
    found = {one["name"]: one for one in bill["components"]}
    assert {name: one["version"] for name, one in found.items()} == {
        name: said for name, said in manifest.toolchain.items() if name not in MACHINE
    }
    for name in found.keys() - {"python"}:
        assert found[name]["version"] == version(name)
        assert found[name]["purl"].startswith("pkg:pypi/")
    assert found["robust-zoo"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert sbom(manifest, {"model.onnx": manifest.artifact.sha256}) == text
