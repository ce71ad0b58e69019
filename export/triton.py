"""A bundle as a model in a repository of Triton Inference Server."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from zoo.export.bundle.folder import Bundle, read_bundle, staged
from zoo.export.bundle.manifest import Manifest
from zoo.export.engines import ENGINES, Backend, backend
from zoo.system.errors import UsageError
from zoo.system.files import check_folder

TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"

# What Triton decides for itself, and otherwise than the engine that the bundle's reports are about.
BF16 = (
    "Triton's OpenVINO backend computes in bfloat16 where the processor can, and nothing in its configuration forbids "
    "it: there the served model is not the one that was verified"
)
TF32 = "Triton lets CUDA round to TF32, which the verified engine did not: start it with NVIDIA_TF32_OVERRIDE=0"
SESSION = (
    "the engine was verified with session options of its own ('options' in its manifest), which config.pbtxt does not "
    "have: add them in the words of Triton's ONNX Runtime backend"
)
HOST_CODE = "this plan carries code for the CPU: start Triton with --backend-config=tensorrt,version-compatible=true"


def check_served(engine: Backend) -> None:
    """Raise UsageError unless Triton has a backend for such engines."""
    if engine.triton is None:
        served = " or ".join(one.name for one in ENGINES if one.triton)
        raise UsageError(f"Triton has no backend for {engine.name} engines: export with --format {served}")


def write_triton(
    bundle: Bundle | Path | str,
    out: Path | str,
    *,
    max_batch: int = 64,
    name: str | None = None,
    notify: Callable[[str], None] = warnings.warn,
) -> Path:
    """Add the engine in ``bundle`` to the model repository ``out``, whole or not at all.

    ``<out>/<name>/`` gets ``config.pbtxt``, ``labels.txt`` if the classes have names, and the engine's files as version
    1. Triton joins requests into batches of the sizes that the bundle was made for. Its OpenVINO backend would
    compute every batch padded to the largest, so there batches are as large as the clients make them.

    Args:
        max_batch: the largest batch that Triton may form; of a TensorRT plan no larger than it was built for.
        name: of the model; by default the bundle's, with "-" for what Triton or a URL would not take.
        notify: takes one sentence if Triton would not compute what was verified.

    Returns:
        The model's folder.

    Raises:
        UsageError: Triton has no backend for such an engine, refuses the name, or the repository has a model of it.
        IntegrityError: the bundle is damaged.
        ExportFailed: the operating system refused a write.
    """
    manifest = bundle.manifest if isinstance(bundle, Bundle) else read_bundle(bundle)
    bundle, out = Path(bundle), Path(out)
    artifact = manifest.artifact
    check_served(backend(manifest.engine))
    if max_batch < 1:
        raise UsageError(f"Triton's largest batch is 1 or more, not {max_batch}")
    if bundle.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"'{out}' lies in the bundle, which is sealed: put the model repository elsewhere")
    place = free_place(out, manifest.name, name)
    with staged(place) as scratch:
        (scratch / VERSION).mkdir()
        for part in (artifact.file, *artifact.companions):
            shutil.copyfile(bundle / part, scratch / VERSION / part)
        if manifest.labels:
            (scratch / LABELS).write_text(
                "".join(f"{label}\n" for label in manifest.labels), encoding="utf-8", newline="\n"
            )
        (scratch / CONFIG).write_text(config(manifest, place.name, max_batch=max_batch), encoding="utf-8", newline="\n")
    for applies, message in (
        (artifact.format == "openvino-ir", BF16),
        (artifact.format == "onnx" and manifest.device == "cuda", TF32),
        (artifact.format == "onnx" and artifact.options.keys() - {"provider"}, SESSION),
        (artifact.options.get("version_compatible"), HOST_CODE),
    ):
        if applies:
            notify(message)
    return place


def free_place(out: Path, title: str, name: str | None = None) -> Path:
    """The folder of the model ``title`` in the repository ``out``, by default with this name.

    Raises:
        UsageError: it exists, ``out`` is a file, or Triton does not take the name.
    """
    name = _name(title, name)
    check_folder(out)
    if (out / name).exists():
        raise UsageError(
            f"the model repository '{out}' has a '{name}' already: remove it, or give '{title}' another name"
        )
    return out / name


def _name(title: str, asked: str | None) -> str:
    """What the model is called in the repository: a folder, a field of the configuration, a part of URLs."""
    name = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "-", asked or title)).lstrip(".-")
    if not name or name != (asked or name):
        raise UsageError(f"Triton cannot call a model '{asked or title}': use letters, digits, '_', '-' and single '.'")
    return name


def config(manifest: Manifest, name: str, *, max_batch: int = 64) -> str:
    """The ``config.pbtxt`` of a model called ``name``: Triton's ModelConfig as protobuf text."""
    artifact, images, logits = manifest.artifact, manifest.io.input, manifest.io.output
    if artifact.format == "tensorrt-plan":
        max_batch = min(max_batch, max(artifact.batches))
    batched = artifact.format != "openvino-ir"  # else the batch is a dimension like the others, of any length
    leading = [] if batched else [-1]
    layout = images.layout.partition(",")[0]
    sizes = [size for size in artifact.batches if 1 < size <= max_batch]  # for a batch of 1 nobody need wait
    facts = {
        "tensors_sha256": manifest.source.tensors_sha256,
        "artifact_sha256": artifact.sha256,
        "precision": artifact.precision,
        "verified": manifest.verified,
        **{f"built_for_{fact}": value for fact, value in artifact.built_for.items()},
    }
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            f'backend: "{backend(manifest.engine).triton}"',
            f"default_model_filename: {json.dumps(artifact.file)}",
            f"max_batch_size: {max_batch if batched else 0}",
            "input {",
            f"  name: {json.dumps(images.name)}",
            f"  data_type: {TYPES[images.dtype]}",
            *([f"  format: FORMAT_{layout}"] if batched else []),  # which is of 3 dimensions
            f"  dims: {[*leading, *images.shape[1:]]}",
            "}",
            "output {",
            f"  name: {json.dumps(logits.name)}",
            f"  data_type: {TYPES[logits.dtype]}",
            f"  dims: {[*leading, *logits.shape[1:]]}",
            *([f'  label_filename: "{LABELS}"'] if manifest.labels else []),
            "}",
            *([f"dynamic_batching {{ {f'preferred_batch_size: {sizes}' if sizes else ''} }}"] if batched else []),
            f"instance_group {{ count: 1, kind: KIND_{'GPU' if manifest.device == 'cuda' else 'CPU'} }}",
            *(
                f"parameters {{ key: {json.dumps(key)}, value {{ string_value: {json.dumps(value)} }} }}"
                for key, value in facts.items()
            ),
            "",
        ]
    )
