from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.datasets.base import Split
from zoo.export.bundle.folder import artifact_sha256, write_sums
from zoo.export.bundle.manifest import IO, Artifact, Compute, Manifest, Port, Source, now, to_json
from zoo.export.engines import ENGINES, backend, onnxruntime
from zoo.export.ladder.climb import Terms, Trial, climb
from zoo.export.onnx.graph import save_onnx
from zoo.export.remote import engine as remote_engine
from zoo.export.remote import frame, link
from zoo.export.remote.engine import connect
from zoo.export.remote.frame import BadFrame, encode, read_frame
from zoo.export.remote.link import BOOT, TRAVELLING, Target, target_of
from zoo.models import Classifier, build
from zoo.specs import StagedSpec
from zoo.system.errors import IntegrityError, MissingDependency, Unreachable, UsageError, WrongDevice
from zoo.system.files import sha256_file

SMALL = StagedSpec(widths=((8,), (16,)), resolutions=(16, 8), stem=6)
SSHD = os.environ.get("ZOO_TEST_SSHD") or "/usr/sbin/sshd"


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> Classifier:
    torch.manual_seed(0)
    model = build(SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    model.head.weight.data.mul_(30)  # logits of the size that trained nets have
    return model.eval()


def describe_bundle(folder: Path, *, engine: str = "onnxruntime", **artifact) -> None:
    """Write the manifest and the sums of a bundle whose other files are there."""
    parts = (artifact["file"], *artifact.get("companions", ()))
    sums = {part: sha256_file(folder / part) for part in parts}
    size, digest = (folder / parts[0]).stat().st_size, artifact_sha256(sums, parts)
    manifest = Manifest(
        name="small",
        spec=SMALL,
        source=Source(name="small", tensors_sha256="0" * 64),
        cost=Compute(macs=1, params=1),
        io=IO(
            input=Port(name="images", shape=("batch", 3, 32, 32), range=(0.0, 1.0), layout="NCHW, RGB"),
            output=Port(name="logits", shape=("batch", 10), layout="NK"),
        ),
        labels=tuple("0123456789"),
        artifact=Artifact(precision="fp32", opset=20, batches=(1, 8), size=size, sha256=digest, **artifact),
        toolchain={},
        engine=engine,
        device="cpu",
        verified="none",
        robustness="not verified",
        gates=(),
        command="zoo export",
        created=now(),
    )
    (folder / "manifest.json").write_text(to_json(manifest))
    write_sums(folder)


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bundle")
    save_onnx(small, folder / "model.onnx")
    describe_bundle(folder, file="model.onnx", format="onnx")
    return folder


@pytest.fixture(scope="module")
def logits(bundle):
    return onnxruntime.load(bundle / "model.onnx", threads=1)(images(5))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The device's, when it is another process of this machine."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "remote"


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The kinds of the frames that are sent, in order."""
    names = {getattr(frame, name): name for name in ("OPEN", "FILE", "INFER", "TIME")}
    sent: list[str] = []
    ask = link.Link.ask

    def spy(self, kind, *rest):
        sent.append(names[kind])
        return ask(self, kind, *rest)

    monkeypatch.setattr(link.Link, "ask", spy)
    return sent


@pytest.fixture
def altered(monkeypatch, tmp_path):
    """Send a runner over in which ``old`` reads ``new``: a device that misbehaves."""

    def alter(old: str, new: str) -> None:
        folder = tmp_path / "altered"
        folder.mkdir()
        texts = {name: (Path(link.__file__).parent / f"{name}.py").read_text() for name in TRAVELLING}
        assert sum(text.count(old) for text in texts.values()) == 1
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text.replace(old, new))
        monkeypatch.setattr(link, "HERE", folder)

    return alter


# -- frames ----------------------------------------------------------------------------------------------------

keys = st.text(max_size=8)
heads = st.dictionaries(keys, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.lists(keys))
frames = st.tuples(st.integers(0, 255), heads, st.binary(max_size=300))


@settings(max_examples=60, deadline=None)
@given(st.lists(frames, max_size=4))
def test_frames_come_out_as_they_went_in(sent):
    stream = io.BytesIO(b"".join(encode(*one) for one in sent))
    assert [read_frame(stream) for _ in sent] == sent
    with pytest.raises(EOFError):
        read_frame(stream)


@settings(max_examples=60, deadline=None)
@given(frames, st.data())
def test_a_frame_that_is_cut_short_is_not_read(one, data):
    whole = encode(*one)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(whole[:cut]))


@settings(max_examples=60, deadline=None)
@given(frames, st.data())
def test_a_byte_that_changed_is_noticed_wherever_it_is(one, data):
    damaged = bytearray(encode(*one))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadFrame):
        read_frame(io.BytesIO(damaged + bytes(1000)))  # also where more bytes follow


@settings(max_examples=60, deadline=None)
@given(frames, st.binary(max_size=300).filter(lambda noise: frame.MAGIC not in noise + frame.MAGIC[:3]))
def test_what_is_printed_before_a_frame_is_told_apart_from_it(one, banner):
    noise = bytearray()
    assert read_frame(io.BytesIO(banner + encode(*one)), noise) == one
    assert noise == banner


def header(**changed: int) -> bytes:
    fields = {"version": frame.VERSION, "kind": 1, "head": 2, "payload": 0, "check": zlib.crc32(b"{}")} | changed
    packed = frame.HEADER.pack(frame.MAGIC, *fields.values())
    return packed + frame.CHECK.pack(zlib.crc32(packed))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (header(version=2) + b"{}", "version 2"),
        (header(head=frame.MAX_HEAD + 1), "too large"),
        (header(payload=1 << 62), "too large"),
        (header(check=zlib.crc32(b"[]")) + b"[]", "an object, not list"),
        (header(check=zlib.crc32(b"{:")) + b"{:", "malformed"),
        (b"Welcome to the board!" + bytes(20), "starts with b'Welc"),
    ],
)
def test_frames_that_are_intact_but_wrong_are_refused(data, told):
    with pytest.raises(BadFrame, match=told):
        read_frame(io.BytesIO(data))
    assert read_frame(io.BytesIO(header() + b"{}")) == (1, {}, b"")


def test_a_frame_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(frame, "MAX_PAYLOAD", 7)
    assert read_frame(io.BytesIO(encode(1, {}, bytes(7))))[2] == bytes(7)
    with pytest.raises(BadFrame, match="7 of payload at most"):
        encode(1, {}, bytes(8))


# -- targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "port", "host", "python"),
    [
        ("ssh://board", None, "board", "python3"),
        ("ssh://pi@board.local", None, "pi@board.local", "python3"),
        ("ssh://pi@Board:2222/", "2222", "pi@Board", "python3"),
        ("ssh://pi@10.0.0.7/opt/venv/bin/python", None, "pi@10.0.0.7", "/opt/venv/bin/python"),
        ("ssh://pi@[fe80::1%eth0]:22/~/venv/bin/python", "22", "pi@fe80::1%eth0", "./venv/bin/python"),
        ("ssh://pi@board/a b;$(reboot)'\"/python", None, "pi@board", "/a b;$(reboot)'\"/python"),
    ],
)
def test_a_target_names_the_host_and_the_python_there(text, port, host, python):
    command = target_of(text).command
    assert command[0] == "ssh"
    assert "-oBatchMode=yes" in command
    assert command[-3:-1] == ("--", host)
    assert (command[command.index("-p") + 1] if "-p" in command else None) == port
    assert shlex.split(command[-1]) == [python, "-c", BOOT]


@pytest.mark.parametrize(
    "text",
    [
        *("board", "ssh://", "ssh://-oProxyCommand=x", "ssh://-x@board", "ssh://b:0", "ssh://b:99999", "ssh://b:x/"),
        *(
            "ssh://pi:secret@board",
            "ssh://$(x)@board",
            "ssh://a b",
            "ssh://pi@board?x",
            "ssh://pi@board\n/x",
            "http://b",
        ),
    ],
)
def test_what_is_no_target_is_refused(text):
    with pytest.raises(UsageError, match="a device is given as ssh://user@host"):
        target_of(text)


def test_no_shell_reads_anything_into_the_first_words():
    """Between double quotes, for sh, fish, PowerShell and Windows' own."""
    assert not set(BOOT) & set("\"'`$\\%^&|!\n")


# -- what goes over ----------------------------------------------------------------------------------------------


def test_what_travels_imports_nothing_but_the_standard_library_its_runtime_and_itself():
    own = {f"zoo.export.remote.{name}" for name in TRAVELLING}
    paths = [link.HERE / f"{name}.py" for name in TRAVELLING]
    paths += [link.RUNTIMES / f"{engine.name}.py" for engine in ENGINES if engine.travels]
    for path in paths:
        allowed = {*sys.stdlib_module_names, *({"numpy", backend(path.stem).package} if path not in paths[:3] else ())}
        tree = ast.parse(path.read_text(), feature_version=(3, 9))  # and may not use what Python 3.9 does not know
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
                modules = [node.module] if node.module in own else modules[:-1]
            for module in modules:
                assert module in own or module.partition(".")[0] in allowed, (path, module)


def bare_python(folder: Path, packages: tuple[str, ...]) -> Target:
    """This Python with some packages and nothing else that is installed: neither torch nor zoo."""
    folder.mkdir()
    for name in packages:
        root = Path(next(iter(importlib.util.find_spec(name).submodule_search_locations)))
        for part in root.parent.glob(f"{name}*"):
            if part.name in (name, f"{name}.libs"):
                (folder / part.name).symlink_to(part)
    return Target("bare", ("env", f"PYTHONPATH={folder}", sys.executable, "-S", "-c", BOOT))


def test_the_device_needs_numpy_and_the_runtime_only(bundle, logits, tmp_path):
    target = bare_python(tmp_path / "site", ("numpy", "onnxruntime"))
    blind = "import importlib.util as u; print([n for n in ('torch', 'zoo', 'onnx') if u.find_spec(n)])"
    found = subprocess.run(
        [*target.command[:-1], blind], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"
    with connect(target, bundle, threads=1) as engine:
        assert torch.allclose(engine(images(5)), logits, atol=1e-5)


@pytest.mark.parametrize(
    ("packages", "told"),
    [((), "numpy cannot be imported.*-m pip install numpy"), (("numpy",), "-m pip install onnxruntime' on the device")],
)
def test_a_package_that_the_device_lacks_is_named(packages, told, bundle, tmp_path):
    with pytest.raises(MissingDependency, match=told):
        connect(bare_python(tmp_path / "site", packages), bundle)


# -- the engine --------------------------------------------------------------------------------------------------


def test_another_process_answers_as_the_engine_here(bundle, logits, asked):
    with connect("local:", bundle, threads=1) as engine:
        assert asked == ["OPEN", "FILE"]
        first, second = engine(images(5)), engine(images(5).numpy())
        for n in (1, 2, 33):
            assert engine(images(n)).shape == (n, 10)
    assert first.dtype == torch.float32
    assert torch.equal(first, logits)
    assert torch.equal(first, second)
    first.zero_()  # as some attacks do
    assert torch.equal(second, logits)


def test_it_climbs_the_ladder_with_gradients_from_here(small, bundle):
    rng = np.random.default_rng(0)
    split = Split("noise", rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 8))
    with connect("local:", bundle, threads=1) as engine:
        own = engine.differentiable(small)
        assert own is not None
        assert torch.allclose(own(images(2)), engine(images(2)), atol=1e-4)
        trial = Trial(
            artifact_sha256=engine.artifact.sha256,
            files=2,
            level="attacked",
            split=split,
            batches=(1, 8),
            terms=Terms(n=8, margin=0.99),
        )
        report = climb(small, engine, trial)
    assert report.failed is None
    assert report.reached == "attacked"
    assert report.engine["remote"]["machine"]


def test_the_device_says_what_it_is(bundle):
    with connect("local:", bundle, threads=1) as engine:
        told = engine.describe()
    assert told["engine"] == "onnxruntime"
    assert told["version"] == onnxruntime.load(bundle / "model.onnx").describe()["version"]
    assert told["device"] == "cpu"
    there = told["remote"]
    assert there["threads"] == 1
    assert there["cores"] == len(os.sched_getaffinity(0))
    assert there["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"machine", "cpu", "os", "kernel", "numpy", "providers"} <= there.keys()
    assert all(there.values())
    assert socket.gethostname() not in json.dumps(told)


def test_latency_is_measured_there(bundle, asked):
    with connect("local:", bundle, threads=1) as engine:
        ns = engine.time(4, repeats=7, warmup=2)
        assert ns.shape == (7,)
        assert ns.dtype == np.int64
        assert (ns > 0).all()
        for batch, repeats in ((4, 0), (0, 4), (4, 10_001)):
            with pytest.raises(
                UsageError, match=rf"1 to 10000 calls with 1 image or more, not 0 \+ {repeats} .*{batch}"
            ):
                engine.time(batch, repeats=repeats, warmup=0)
    assert asked.count("TIME") == 4


def test_a_batch_that_is_none_does_not_travel(bundle, asked):
    with connect("local:", bundle, threads=1) as engine:
        before = len(asked)
        for bad in (images(2) * 2, images(2).double(), images(2)[:, :1]):
            with pytest.raises(UsageError, match="an image batch"):
                engine(bad)
        assert len(asked) == before


def test_a_batch_that_is_too_large_is_told(bundle, monkeypatch):
    with connect("local:", bundle, threads=1) as engine:
        monkeypatch.setattr(frame, "MAX_PAYLOAD", 1000)
        with pytest.raises(UsageError, match="too much to send to 'local:' at once"):
            engine(images(2))


def test_a_closed_engine_leaves_no_process(bundle):
    engine = connect("local:", bundle, threads=1)
    process = engine.link.process
    engine.close()
    engine.close()
    assert process.returncode == 0
    for use in (lambda: engine(images(1)), lambda: engine.time(1, repeats=1)):
        with pytest.raises(UsageError, match="this engine is closed"):
            use()


# -- files -------------------------------------------------------------------------------------------------------


def test_files_that_are_there_are_not_sent_again(bundle, logits, cache, asked):
    with connect("local:", bundle, threads=1):
        pass
    with connect("local:", bundle, threads=1) as engine:
        assert torch.equal(engine(images(5)), logits)
    assert asked == ["OPEN", "FILE", "OPEN", "INFER"]
    assert [path.name for path in cache.iterdir()] == [sha256_file(bundle / "model.onnx")]


def test_a_damaged_file_there_is_replaced(bundle, logits, cache, asked):
    with connect("local:", bundle, threads=1):
        pass
    (held,) = cache.iterdir()
    content = bytearray(held.read_bytes())
    content[len(content) // 2] ^= 1
    held.write_bytes(content)
    with connect("local:", bundle, threads=1) as engine:
        assert torch.equal(engine(images(5)), logits)
    assert asked == ["OPEN", "FILE", "OPEN", "FILE", "INFER"]
    assert held.read_bytes() == (bundle / "model.onnx").read_bytes()


def test_an_altered_bundle_does_not_travel(bundle, tmp_path, asked):
    shutil.copytree(bundle, tmp_path / "copy")
    with open(tmp_path / "copy" / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match="altered or damaged"):
        connect("local:", tmp_path / "copy")
    assert asked == []


def test_a_device_that_runs_another_artifact_is_refused(bundle, altered):
    altered("name: hashlib.sha256(content).hexdigest()", "name: hashlib.sha256(content[1:]).hexdigest()")
    with pytest.raises(IntegrityError, match="runs something else than the artifact"):
        connect("local:", bundle)


def test_a_device_that_forgets_what_it_was_sent_is_refused(bundle, asked, altered):
    altered("os.replace(scratch, os.path.join(self.folder, digest))", "os.remove(scratch)")
    with pytest.raises(IntegrityError, match="runs something else than the artifact"):
        connect("local:", bundle)
    assert asked == ["OPEN", "FILE"]


def test_a_file_that_is_damaged_on_the_way_is_not_kept(bundle, cache, altered):
    altered('self._keep(head["sha256"], payload)', 'self._keep(head["sha256"], payload + b"x")')
    with pytest.raises(IntegrityError, match="another SHA-256 than the announced"):
        connect("local:", bundle)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_told(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written there .*set ZOO_CACHE on the device"):
        connect("local:", bundle)


# -- devices that do not fit ---------------------------------------------------------------------------------------


def test_a_plan_for_another_device_is_refused(bundle, tmp_path):
    folder = tmp_path / "bound"
    shutil.copytree(bundle, folder)
    describe_bundle(folder, file="model.onnx", format="onnx", built_for={"machine": "pdp11"})
    with pytest.raises(WrongDevice, match="built for machine 'pdp11', on 'local:' it is") as caught:
        connect("local:", folder)
    assert caught.value.exit_code == 10


def test_formats_without_a_runner_are_named(bundle, tmp_path, asked):
    folder = tmp_path / "plan"
    shutil.copytree(bundle, folder)
    describe_bundle(folder, file="model.onnx", format="tensorrt-plan")
    with pytest.raises(MissingDependency, match="onnx, openvino-ir, tflite, not 'tensorrt-plan'"):
        connect("local:", folder)
    assert asked == []


def test_an_artifact_that_the_runtime_there_refuses_is_told(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not an onnx file")
    describe_bundle(tmp_path, file="model.onnx", format="onnx")
    with pytest.raises(WrongDevice, match=r"onnxruntime [\d.]+ cannot load the artifact there: "):
        connect("local:", tmp_path)


def test_a_batch_that_the_runtime_fails_on_is_told(bundle, altered):
    altered("            return self.run(x)", "            return self.run(x[:, :1])")
    with connect("local:", bundle, threads=1) as engine, pytest.raises(WrongDevice, match=r"batch \[2, 3, 32, 32\]"):
        engine(images(2))


@pytest.mark.parametrize(("status", "told"), [(90, "older than 3.9"), (127, "no such Python"), (126, "no such Python")])
def test_a_device_without_a_python_that_serves_is_told(status, told, bundle):
    with pytest.raises(MissingDependency, match=told):
        connect(Target("board", ("sh", "-c", f"exit {status}")), bundle)


def test_a_program_that_is_not_here_is_told(bundle, tmp_path):
    with pytest.raises(MissingDependency, match="cannot be run here: No such file"):
        connect(f"local:{tmp_path}/python", bundle)
    with pytest.raises(MissingDependency, match="'no-such-ssh' cannot be run here"):
        connect("ssh://board", bundle, ssh=("no-such-ssh",))


# -- noise and silence -----------------------------------------------------------------------------------------------


def after(command: str) -> Target:
    """A device whose login script runs ``command`` before the runner starts."""
    return Target("board", ("sh", "-c", f'{command}; exec "$0" -c "{BOOT}"', sys.executable))


def test_banners_are_passed_over(bundle, logits):
    with connect(after("echo Welcome to the board; seq 1 1000; echo news >&2"), bundle, threads=1) as engine:
        assert torch.equal(engine(images(5)), logits)


def test_what_libraries_print_there_does_not_get_between_frames(bundle, logits, altered):
    spill = "            print(1); os.system('echo 2'); os.write(1, b'3'); return self.run(x)"
    altered("            return self.run(x)", spill)
    with connect("local:", bundle, threads=1) as engine:
        assert torch.equal(engine(images(5)), logits)
        assert torch.equal(engine(images(5)), logits)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo This account is not available.; exit 1", r"status 1 \(it said: This account is not available\.\)"),
        ("echo Permission denied >&2; exit 255", r"status 255 \(it said: Permission denied\)"),
        ("kill -9 $$", "status -9"),
    ],
)
def test_a_device_that_never_answers_is_given_up_at_once(command, told, bundle, asked):
    with pytest.raises(Unreachable, match=told) as caught:
        connect(after(command), bundle)
    assert caught.value.exit_code == 4
    assert asked == ["OPEN"]


def test_a_stream_of_noise_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(frame, "MAX_HEAD", 5000)
    with pytest.raises(IntegrityError, match="cannot be understood: no frame starts with b'y"):
        connect(after("yes"), bundle)


def test_a_device_that_hangs_is_given_up(bundle):
    with pytest.raises(Unreachable, match=r"'board' has not answered within 0\.2 s \(it said: Select a menu:\)"):
        connect(after("echo Select a menu:; read choice; sleep 60"), bundle, timeout=0.2)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('{"id": head["id"], "shape"', '{"id": 7, "shape"', "not with logits"),
        ("logits.tobytes()", "logits.tobytes()[:-4]", "not with logits"),
        ("frame.LOGITS, {", "frame.TIMES, {", "not with logits"),
        ("frame.encode(*answer)", "frame.encode(*answer).replace(b'shape', b'shaqe')", "content is damaged"),
        (
            "answered.write(frame",
            'answered.write(b"hello" * (answer[0] == 8)); answered.write(frame',
            "starts with b'hell",
        ),
    ],
)
def test_an_answer_that_is_not_one_is_refused(old, new, told, bundle, altered):
    altered(old, new)
    with connect("local:", bundle, threads=1) as engine, pytest.raises(IntegrityError, match=told):
        engine(images(2))


def test_the_runner_refuses_what_is_no_frame(bundle):
    with connect("local:", bundle, threads=1) as engine:
        engine.link.greeting = b"garbage" * 10
        with pytest.raises(IntegrityError, match=r"says: the runner cannot answer: BadFrame.*starts with b'garb"):
            engine(images(2))
        assert engine(images(2)).shape == (2, 10)  # by a new runner
        with pytest.raises(IntegrityError, match="nobody asks for a frame of kind 200"):
            engine.link.ask(200, {})


# -- dropped connections -------------------------------------------------------------------------------------------

RELAY = """
import os, subprocess, sys, threading
plan, command = sys.argv[1], sys.argv[2:]
drops = open(plan).read().split()
limit = int(drops.pop(0)) if drops else 1 << 60
open(plan, "w").write(" ".join(drops))
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def forward():
    while data := os.read(0, 65536):
        child.stdin.write(data)
        child.stdin.flush()
    child.stdin.close()
threading.Thread(target=forward, daemon=True).start()
while limit > 0 and (data := os.read(child.stdout.fileno(), min(limit, 65536))):
    os.write(1, data)
    limit -= len(data)
child.kill()
os._exit(255 if limit == 0 else 0)
"""


def frail(folder: Path, *drops: int) -> Target:
    """A connection that breaks after so many bytes of answers, once for each of ``drops``; then it holds."""
    (folder / "relay.py").write_text(RELAY)
    (folder / "plan").write_text(" ".join(map(str, drops)))
    return Target(
        "frail", (sys.executable, *map(str, (folder / "relay.py", folder / "plan")), sys.executable, "-c", BOOT)
    )


def test_a_dropped_connection_resumes_where_it_stopped(bundle, tmp_path, asked):
    """Each answer is of 4 kB, so both drops cut one in two: its batch is sent again, the file is not."""
    local = onnxruntime.load(bundle / "model.onnx", threads=1)
    with connect(frail(tmp_path, 12_000, 8_000), bundle, threads=1, pauses=(0, 0)) as engine:
        for seed in range(6):
            assert torch.equal(engine(images(100, seed)), local(images(100, seed)))
    assert asked.count("OPEN") == 3
    assert asked.count("FILE") == 1
    assert asked.count("INFER") == 6 + 2
    assert (tmp_path / "plan").read_text() == ""


@pytest.mark.parametrize("drop", [1, 26, 100, 200])
def test_a_connection_that_drops_at_the_first_frames_resumes_too(drop, bundle, logits, tmp_path, asked):
    target = frail(tmp_path, drop)
    need = len(encode(frame.NEED, {"missing": ["0" * 64]}))
    if drop < need:  # nobody can tell whether there is a device at all
        with pytest.raises(Unreachable, match="status 255"):
            connect(target, bundle, threads=1, pauses=(0,))
        return
    with connect(target, bundle, threads=1, pauses=(0,)) as engine:
        assert torch.equal(engine(images(5)), logits)
    assert asked.count("OPEN") == 2


def test_attempts_are_bounded_and_spaced(bundle, tmp_path, monkeypatch, asked):
    slept: list[float] = []
    monkeypatch.setattr(remote_engine, "time", SimpleNamespace(sleep=slept.append))
    with connect(frail(tmp_path, 1 << 40, 0, 0, 0), bundle, threads=1, pauses=(1, 2, 4)) as engine:
        engine.link.process.kill()  # the next ones end before they answer
        with pytest.raises(Unreachable, match="3 new connections did not help: the connection ended, with status 255"):
            engine(images(2))
    assert slept == [1, 2, 4]
    assert asked.count("INFER") == 1


def test_another_device_that_answers_after_a_drop_is_refused(bundle, tmp_path, altered):
    with connect("local:", bundle, threads=1, pauses=(0,)) as engine:
        engine.link.process.kill()
        altered('"machine": platform.machine()', '"machine": "pdp11"')
        with pytest.raises(WrongDevice, match="another device answers as 'local:' than before: machine was"):
            engine(images(2))


# -- other runtimes ----------------------------------------------------------------------------------------------


def linear_tflite(weight: np.ndarray, bias: np.ndarray, batch: int) -> bytes:
    """A LiteRT file of one layer, images [batch, 3, 32, 32] to logits [batch, K]; any batch will do where it is -1."""
    schema = pytest.importorskip(
        "ai_edge_litert.schema_py_generated", reason="needs LiteRT: pip install ai-edge-litert"
    )
    flatbuffers = pytest.importorskip("flatbuffers")
    arrays = (None, weight, bias)
    shapes = ((abs(batch), 3, 32, 32), weight.shape, bias.shape, (abs(batch), len(bias)))
    tensors = [
        schema.TensorT(name=f"t{i}", shape=list(shape), buffer=i if i in (1, 2) else 0)
        for i, shape in enumerate(shapes)
    ]
    for tensor in (tensors[0], tensors[3]):
        tensor.shapeSignature = [batch, *tensor.shape[1:]]
    layer = schema.OperatorT(
        inputs=[0, 1, 2],
        outputs=[3],
        builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
        builtinOptions=schema.FullyConnectedOptionsT(),
    )
    code = schema.BuiltinOperator.FULLY_CONNECTED
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code)],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[3], operators=[layer])],
        buffers=[schema.BufferT(data=None if a is None else np.frombuffer(a.tobytes(), np.uint8)) for a in arrays],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("batch", [-1, 1, 4])
def test_litert_answers_batches_of_any_size_from_another_process(batch, tmp_path):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(10, 3072)).astype(np.float32), rng.normal(size=10).astype(np.float32)
    (tmp_path / "model.tflite").write_bytes(linear_tflite(weight, bias, batch))
    describe_bundle(tmp_path, engine="litert", file="model.tflite", format="tflite")
    with connect("local:", tmp_path, threads=1) as engine:
        for n in (1, 2, 5, 4):
            expected = images(n).flatten(1).numpy() @ weight.T + bias
            assert np.allclose(engine(images(n)), expected, atol=1e-3)
        assert engine.describe()["engine"] == "litert"


# -- ssh -----------------------------------------------------------------------------------------------------------

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="needs an ssh client: apt install openssh-client")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A real SSH server on the loopback interface with keys of its own: its process, target, and how to get in."""
    if not os.path.exists(SSHD) or not shutil.which("ssh"):
        pytest.skip(f"needs an SSH server, and there is no '{SSHD}': apt install openssh-server, or set ZOO_TEST_SSHD")
    folder = tmp_path_factory.mktemp("board")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port, user = closed_port(), pwd.getpwuid(os.getuid()).pw_name
    (folder / "known").write_text(f"[127.0.0.1]:{port} " + (folder / "host.pub").read_text())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv ZOO_CACHE={folder}/cache\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile none\n"
    )
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        while "listening" not in (told := (folder / "log").read_text()):
            if server.poll() is not None:
                pytest.skip(f"the SSH server '{SSHD}' does not start here: {told.strip()}")
            time.sleep(0.05)
        ssh = ("ssh", "-F", str(folder / "ssh_config"))
        yield SimpleNamespace(server=server, folder=folder, target=f"ssh://{user}@127.0.0.1:{port}", ssh=ssh)
    finally:
        server.kill()
        server.wait()


def test_a_device_answers_over_ssh(board, bundle, logits, asked):
    """The connection is cut at the server's end, and had again."""
    with connect(f"{board.target}{sys.executable}", bundle, threads=1, ssh=board.ssh, pauses=(0.1, 0.2)) as engine:
        assert torch.equal(engine(images(5)), logits)
        sessions = Path(f"/proc/{board.server.pid}/task/{board.server.pid}/children").read_text().split()
        assert sessions
        for session in sessions:
            os.kill(int(session), signal.SIGKILL)
        assert torch.equal(engine(images(5)), logits)
        assert engine.time(2, repeats=3).shape == (3,)
        told = json.dumps(engine.describe())
    assert asked == ["OPEN", "FILE", "INFER", "INFER", "OPEN", "INFER", "TIME"]
    assert [path.name for path in (board.folder / "cache" / "remote").iterdir()] == [sha256_file(bundle / "model.onnx")]
    assert "127.0.0.1" not in told


def test_over_ssh_a_python_that_is_not_there_is_told(board, bundle):
    with pytest.raises(
        MissingDependency, match=r"has no such Python: name another.*it said: .*(not found|No such file)"
    ):
        connect(f"{board.target}/~/no 'such' \"python\"", bundle, ssh=board.ssh)


def test_a_server_that_lets_nobody_in_is_told(board, bundle, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    config = (board.folder / "ssh_config").read_text().replace(f"{board.folder}/user", f"{tmp_path}/other")
    (tmp_path / "ssh_config").write_text(config)
    with pytest.raises(Unreachable, match=r"status 255 \(it said: .*Permission denied"):
        connect(board.target, bundle, ssh=("ssh", "-F", str(tmp_path / "ssh_config")))


@needs_ssh
def test_a_server_that_is_not_there_is_told(bundle):
    with pytest.raises(Unreachable, match=r"status 255 \(it said: .*Connection refused"):
        connect(f"ssh://nobody@127.0.0.1:{closed_port()}", bundle, ssh=("ssh", "-F", "none"))
