"""The folder that an export leaves: written whole or not at all, and checked byte by byte when it is read."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from zoo.export.bundle.keys import trusted_keys
from zoo.export.bundle.manifest import Manifest, Report, read_manifest
from zoo.export.bundle.signature import check_signature
from zoo.system.arguments import typed
from zoo.system.errors import ExportFailed, IntegrityError, UsageError, ZooError
from zoo.system.files import check_folder, kind_of, lock_of, locked, sha256_file
from zoo.weights.address import has_scheme

MANIFEST, SUMS, SIGNATURE = "manifest.json", "SHA256SUMS", "model.sig"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was just written: its folder, and what its manifest and ``reports/verify.json`` say.

    ``Path(bundle)`` is its folder, and functions that take a path take the bundle.
    """

    folder: Path
    manifest: Manifest
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class Kind:
    """What is written to a folder: its ``noun``, whether a folder that is there ``is_one`` and may be replaced, and
    what it is ``otherwise``."""

    noun: str
    is_one: Callable[[Path], bool]
    otherwise: str


BUNDLE = Kind("bundle", lambda folder: (folder / MANIFEST).is_file(), "not a bundle")


@contextmanager
def staged(final: Path, *, force: bool = False, keep_failed: bool = False, kind: Kind = BUNDLE) -> Iterator[Path]:
    """A scratch folder beside ``final`` that becomes ``final`` when the block ends without an error.

    Everything in it is flushed to disk before it is renamed, so a kill, a crash or a full disk leaves nothing
    under the final name. Scratch folders of killed writers of the same bundle are removed first.

    Args:
        force: replace an existing ``final``; the old one stays until the new one is complete.
        keep_failed: after an error, leave what there is under ``<final>.failed``.

    Raises:
        UsageError: ``final`` exists and ``force`` is not set, or another export writes it.
        ExportFailed: the operating system refused a write.
    """
    final = Path(os.path.realpath(final))  # of a link, the target is replaced
    old = final.with_name(f".{final.name}.old")
    scratch = lock = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _recover(final, old)
        check_free(final, force=force, kind=kind)
        scratch = final.with_name(f".{final.name}.tmp-{secrets.token_hex(8)}")
        scratch.mkdir()
        lock = lock_of(scratch)  # released by the system however this process ends
        yield scratch
        _flush(scratch)
        if final.exists():
            os.rename(final, old)
        os.rename(scratch, final)
        _flush_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not final.exists():
            os.rename(old, final)
        if keep_failed and scratch is not None and scratch.exists():
            failed = final.with_name(f"{final.name}.failed")
            shutil.rmtree(failed, ignore_errors=True)
            with suppress(OSError):
                os.rename(scratch, failed)
        if isinstance(error, OSError) and not isinstance(error, ZooError):
            reason = error.strerror or type(error).__name__
            raise ExportFailed(f"the {kind.noun} '{final}' could not be written: {reason}") from error
        raise
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def rewritten(folder: Path, *, resigned: bool = False) -> Iterator[Path]:
    """A copy of the bundle ``folder`` to change, which then replaces it; one process at a time. Errors as of
    :func:`staged`, and of :func:`check_unsigned` unless the signature is changed too (``resigned``)."""
    if not resigned:
        check_unsigned(folder)
    with locked(folder.absolute().parent), staged(folder, force=True) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        yield scratch


def check_unsigned(folder: Path) -> None:
    """Raise UsageError if the bundle ``folder`` is signed: a change would break its signature."""
    if (folder / SIGNATURE).exists():
        raise UsageError(
            f"'{folder}' is signed, and a change would break the signature: leave --write (write=True) out, or sign it "
            "anew with 'zoo verify BUNDLE --write --sign KEY'"
        )


def check_free(final: Path, *, force: bool, kind: Kind = BUNDLE) -> None:
    """Raise UsageError if ``final`` exists, except for one of its ``kind`` that ``force`` may replace, if it lies in a
    file, or if another export writes it."""
    check_folder(final.parent)
    if os.name != "nt" and any(_written(scratch) for scratch in _scratches(final)):
        raise UsageError(f"another export writes '{final}' at this moment: wait for it, or choose another folder")
    if final.exists() and not force:
        raise UsageError(f"'{final}' exists already: pass --force (force=True) to replace it, or another folder")
    if final.exists() and not kind.is_one(final):
        raise UsageError(f"'{final}' is {kind.otherwise}, and will not be replaced by one: move it away first")


def _recover(final: Path, old: Path) -> None:
    """Undo what a killed writer of ``final`` left behind."""
    if old.exists():  # it was killed between the two renames, or just after them
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, final)
    for scratch in _scratches(final):
        lock = lock_of(scratch)
        if lock is not None:  # always None on Windows: whether the writer is alive cannot be known, so its folder stays
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


def _scratches(final: Path) -> list[Path]:
    return list(final.parent.glob(f".{_escaped(final.name)}.tmp-*"))


def _written(scratch: Path) -> bool:
    """Whether a living process holds the lock on ``scratch``."""
    try:
        lock = lock_of(scratch)
    except FileNotFoundError:  # done since it was found
        return False
    if lock is not None:
        os.close(lock)
    return lock is None


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _flush_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def artifact_sha256(sums: Mapping[str, str], parts: Sequence[str]) -> str:
    """What binds a result to the files ``parts`` that an engine runs, as ``Artifact`` in the manifest has it.

    Args:
        sums: the SHA-256 of each file.
    """
    if len(parts) == 1:
        return sums[parts[0]]
    return hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in parts).encode()).hexdigest()


def files(folder: Path) -> list[str]:
    """Every file but the list of sums, as sorted POSIX paths; a link counts as a file."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths if path != folder / SUMS)


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """List every file with its SHA-256, in the format of ``sha256sum -c``, and return the list; ``known`` files are not
    read."""
    sums = {name: (known or {}).get(name) or sha256_file(folder / name) for name in files(folder)}
    (folder / SUMS).write_text(
        "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()), encoding="utf-8", newline="\n"
    )
    return sums


def as_bundle(subject: Path | str) -> Path | None:
    """The folder that ``subject`` means, None where it is a model's name. Whether it is a bundle shows when it is read.

    A folder that merely has the name of a model is not meant.
    """
    folder = Path(subject)
    holds = (folder / MANIFEST).is_file() or (folder / SUMS).is_file()
    path = any(one in str(subject) for one in (os.sep, os.altsep) if one)  # Windows has two separators
    meant = isinstance(subject, Path) or holds or (path and not has_scheme(str(subject)))
    return folder if meant else None


def read_bundle(folder: Path | str, *, trust: Sequence[Path | str] | Path | str | None = None) -> Manifest:
    """Check a bundle byte by byte and return its manifest.

    Args:
        trust: files with public keys; the bundle must be signed by one of them.

    Raises:
        UsageError: there is no bundle at ``folder``, or a key is not one (:func:`zoo.export.bundle.keys.trusted_keys`).
        MissingDependency: keys are given, and the extra ``sign`` is not installed.
        IntegrityError: a file is altered, missing, extra or no plain file, the manifest is malformed, or the signature
            is missing, wrong, or by another key.
    """
    typed(folder=(folder, str | PathLike))
    folder, keys = Path(folder), None if trust is None else trusted_keys(trust)
    if not (folder / MANIFEST).is_file() and not (folder / SUMS).is_file():
        raise UsageError(f"'{folder}' is not a bundle: it holds neither {MANIFEST} nor {SUMS}")
    found = set(files(folder))
    for name in (SUMS, *sorted(found)):  # before any is opened: a pipe would be waited for
        if kind := kind_of(folder / name, follow=False):
            raise IntegrityError(f"'{folder / name}' is {kind}: a bundle holds plain files only")
    sums = _read_sums(folder / SUMS)
    for trouble, names in (("lacks", sums.keys() - found), ("holds unlisted", found - sums.keys())):
        if names:
            raise IntegrityError(f"the bundle '{folder}' {trouble} {', '.join(sorted(names))}: do not use it")
    for name, expected in sums.items():
        if sha256_file(folder / name) != expected:
            raise IntegrityError(f"'{folder / name}' was altered or damaged: its SHA-256 is not the one in {SUMS}")
    if keys is not None:
        check_signature(folder / SIGNATURE, {name: sums[name] for name in sums if name != SIGNATURE}, keys)
    if MANIFEST not in sums:
        raise IntegrityError(f"the bundle '{folder}' lacks {MANIFEST}: do not use it")
    manifest = read_manifest(folder / MANIFEST)
    parts, twin = (manifest.artifact.file, *manifest.artifact.companions), manifest.source.twin
    for part in (*parts, twin or MANIFEST):
        if part not in sums:
            raise IntegrityError(f"the bundle '{folder}' lacks {part}, which its manifest names: do not use it")
    if artifact_sha256(sums, parts) != manifest.artifact.sha256:
        raise IntegrityError(
            f"'{folder / manifest.artifact.file}' is not the artifact of its manifest: their SHA-256 differ"
        )
    return manifest


def _read_sums(path: Path) -> dict[str, str]:
    """File name to SHA-256."""
    try:
        text = path.read_bytes().decode("utf-8")
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")  # no other line ends in use
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"'{path}' cannot be read ({type(error).__name__}): do not use this bundle") from None
    sums: dict[str, str] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or name in sums:
            raise IntegrityError(f"'{path}' is damaged at the line '{line[:80]}'")
        sums[name] = digest
    return sums
