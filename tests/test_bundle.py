from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from exported import bundle_of
from fuzzed import altered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.export.bundle.folder import MANIFEST, SUMS, files, read_bundle, rewritten, staged, write_sums
from zoo.export.bundle.manifest import read_manifest, to_json
from zoo.export.bundle.source import Known
from zoo.models import build
from zoo.specs import StagedSpec
from zoo.system.errors import ExportFailed, IntegrityError, UsageError


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, text: str = "new", *, then: BaseException | None = None) -> None:
    (folder / MANIFEST).write_text(text)
    if then is not None:
        raise then


# -- whole or not at all ---------------------------------------------------------------------------------------


def test_a_bundle_appears_under_its_name_only_when_it_is_complete(tmp_path):
    final = tmp_path / "deep" / "bundle"
    with staged(final) as scratch:
        write(scratch)
        assert not final.exists()
        assert scratch.parent == final.parent  # else the rename would be a copy
    assert (final / MANIFEST).read_text() == "new"
    assert left_in(final.parent) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), IntegrityError("bad")])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), staged(tmp_path / "bundle") as scratch:
        write(scratch, then=error)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("flushing", [False, True])
def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, flushing):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")
    if flushing:
        monkeypatch.setattr(os, "fsync", Mock(side_effect=full))
    with pytest.raises(ExportFailed, match="No space left on device") as caught, staged(tmp_path / "bundle") as scratch:
        write(scratch, then=None if flushing else full)
    assert caught.value.exit_code == 7
    assert left_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_export_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportFailed, match="could not be written"), staged(tmp_path / "file" / "bundle"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from zoo.export.bundle.folder import staged
with staged(Path(sys.argv[1])) as scratch:
    (scratch / "model.onnx").write_bytes(b"half")
    print(scratch.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_kill_leaves_nothing_under_the_name_and_the_next_export_clears_the_rest(tmp_path):
    final = tmp_path / "bundle[1]"  # a name that is a pattern too
    done = subprocess.run([sys.executable, "-c", KILLED, str(final)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert left_in(tmp_path) == [done.stdout.strip()]
    with staged(final) as scratch:
        write(scratch)
    assert left_in(tmp_path) == ["bundle[1]"]


def test_the_scratch_folder_of_a_living_export_is_left_alone(tmp_path):
    with staged(tmp_path / "bundle") as first:
        write(first, "first")
        with pytest.raises(UsageError, match="another export writes"), staged(tmp_path / "bundle"):
            pytest.fail("the block must not run")
        assert (first / MANIFEST).read_text() == "first"


def test_a_bundle_is_replaced_only_by_force(tmp_path):
    final = tmp_path / "bundle"
    with staged(final) as scratch:
        write(scratch, "old")
    with pytest.raises(UsageError, match="--force"), staged(final):
        pytest.fail("the block must not run")
    with staged(final, force=True) as scratch:
        write(scratch, "new")
        assert (final / MANIFEST).read_text() == "old"
    assert (final / MANIFEST).read_text() == "new"
    assert left_in(tmp_path) == ["bundle"]


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path, monkeypatch):
    final = tmp_path / "bundle"
    with staged(final) as scratch:
        write(scratch, "old")
    with pytest.raises(RuntimeError), staged(final, force=True):
        raise RuntimeError
    assert (final / MANIFEST).read_text() == "old"

    rename = os.rename

    def refuses_the_new(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuses_the_new)
    with pytest.raises(ExportFailed), staged(final, force=True) as scratch:
        write(scratch)
    assert (final / MANIFEST).read_text() == "old"
    assert left_in(tmp_path) == ["bundle"]


def test_a_kill_between_the_two_renames_is_undone_by_the_next_export(tmp_path):
    final = tmp_path / "bundle"
    with staged(final) as scratch:
        write(scratch, "old")
    os.rename(final, tmp_path / ".bundle.old")  # where such a kill leaves it
    with pytest.raises(UsageError, match="exists already"), staged(final):
        pass
    assert left_in(tmp_path) == ["bundle"]
    assert (final / MANIFEST).read_text() == "old"


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a bundle"), staged(tmp_path / "bundle", force=True):
        pass
    assert (tmp_path / "bundle" / "thesis.tex").exists()


def test_what_failed_is_kept_when_asked_for(tmp_path):
    for text in ("once", "twice"):
        with pytest.raises(RuntimeError), staged(tmp_path / "bundle", keep_failed=True) as scratch:
            write(scratch, text, then=RuntimeError())
    assert left_in(tmp_path) == ["bundle.failed"]
    assert (tmp_path / "bundle.failed" / MANIFEST).read_text() == "twice"


# -- checked byte by byte --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = build(StagedSpec(widths=((4,),), resolutions=(16,), stem=4))
    return bundle_of(model, Known("tiny", "tiny"), out=tmp_path_factory.mktemp("out"), verify="parity")


@pytest.fixture
def bundle(pristine, tmp_path) -> Path:
    for name in [*files(pristine), SUMS]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((pristine / name).read_bytes())
    return tmp_path


def test_a_bundle_has_the_files_that_it_promises(pristine):
    assert files(pristine) == [
        "README.md",
        "manifest.json",
        "model.onnx",
        "probe/adversarial.npz",
        "probe/clean.npz",
        "reports/parity.json",
        "reports/verify.json",
        "sbom.cdx.json",
        "twin.safetensors",
    ]
    assert read_bundle(pristine).name == "tiny"


@pytest.mark.skipif(not Path("/usr/bin/sha256sum").exists(), reason="needs coreutils")
def test_the_sums_are_in_the_format_of_sha256sum(pristine):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=pristine, check=True)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_byte_of_a_bundle_can_be_altered_unnoticed(pristine, data):
    path = pristine / data.draw(st.sampled_from([*files(pristine), SUMS]))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    altered = bytearray(content)
    altered[position] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(altered)
        with pytest.raises(IntegrityError):
            read_bundle(pristine)
    finally:
        path.write_bytes(content)
    read_bundle(pristine)


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_manifest_or_refused_in_a_sentence(pristine, tmp_path, data):
    path = tmp_path / MANIFEST
    path.write_bytes(data.draw(altered((pristine / MANIFEST).read_bytes())))
    with suppress(IntegrityError):
        read_manifest(path)


def test_the_altered_file_is_named(bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx' was altered") as caught:
        read_bundle(bundle)
    assert caught.value.exit_code == 5


def test_missing_extra_and_linked_files_are_refused(bundle):
    (bundle / "extra.bin").write_bytes(b"?")
    with pytest.raises(IntegrityError, match=r"unlisted extra\.bin"):
        read_bundle(bundle)
    (bundle / "extra.bin").unlink()
    readme = (bundle / "README.md").rename(bundle.parent / "elsewhere.md")
    with pytest.raises(IntegrityError, match=r"lacks README\.md"):
        read_bundle(bundle)
    (bundle / "README.md").symlink_to(readme)
    with pytest.raises(IntegrityError, match="is a link"):
        read_bundle(bundle)


def test_a_list_of_sums_cannot_point_out_of_the_bundle(bundle):
    with open(bundle / SUMS, "a") as file:
        file.write(f"{'0' * 64}  ../outside\n")
    with pytest.raises(IntegrityError, match=r"lacks \.\./outside"):
        read_bundle(bundle)


def test_processes_that_rewrite_a_bundle_at_once_lose_nothing(bundle):
    def add(name: str) -> None:
        with rewritten(bundle) as scratch:
            (scratch / "reports" / name).write_text(name)
            write_sums(scratch)

    names = [f"{k}.json" for k in range(4)]
    works = [multiprocessing.get_context("fork").Process(target=add, args=(name,)) for name in names]
    for work in works:
        work.start()
    for work in works:
        work.join(60)
    assert [work.exitcode for work in works] == [0] * 4
    read_bundle(bundle)
    assert {*names} <= {path.name for path in (bundle / "reports").iterdir()}


def test_a_list_of_sums_with_the_line_ends_of_windows_is_read(bundle):
    before = read_bundle(bundle)
    (bundle / SUMS).write_bytes((bundle / SUMS).read_bytes().replace(b"\n", b"\r\n"))
    assert read_bundle(bundle) == before


def test_what_is_no_bundle_is_a_usage_error(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="not a bundle"):
            read_bundle(place)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_manifest_is_refused_even_if_the_sums_agree(bundle, kept):
    content = (bundle / MANIFEST).read_bytes()
    (bundle / MANIFEST).write_bytes(content[: int(kept * len(content))])
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=r"manifest\.json' is wrong: Invalid JSON"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("schema_version",), 2, "schema_version"),
        (("artifact", "sha256"), "beef", "artifact.sha256"),
        (("artifact", "precision"), "fp8", "artifact.precision"),
        (("spec", "stem"), 0, "spec.staged.stem"),
        (("surprise",), 1, "surprise"),
    ],
)
def test_a_malformed_manifest_is_refused_by_the_field(bundle, where, value, named):
    manifest = json.loads((bundle / MANIFEST).read_text())
    inner = manifest
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=f"at '{named}'"):
        read_bundle(bundle)


def test_a_manifest_of_another_artifact_is_refused(bundle):
    with open(bundle / "model.onnx", "ab") as file:
        file.write(b"\0")
    write_sums(bundle)
    with pytest.raises(IntegrityError, match="not the artifact of its manifest"):
        read_bundle(bundle)


def test_parity_in_logits_is_refused_since_its_tolerance_would_be_lax(bundle):
    manifest = json.loads((bundle / MANIFEST).read_text())
    (parity,) = (rung for rung in manifest["gates"] if rung["name"] == "parity")
    del parity["measured"]["relative_difference"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    write_sums(bundle)
    with pytest.raises(IntegrityError, match=r"wrong at 'gates\.\d': .*measured in logits.*: export the model again"):
        read_bundle(bundle)


def test_a_manifest_survives_the_round_trip(bundle):
    manifest = read_bundle(bundle)
    (bundle / MANIFEST).write_text(to_json(manifest))
    write_sums(bundle)
    assert read_bundle(bundle) == manifest
