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
from exported import bundle_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import images

from zoo.export.bundle.folder import read_bundle, write_sums
from zoo.export.bundle.source import Known
from zoo.export.engines import ENGINES, onnxruntime
from zoo.export.remote import frame, link
from zoo.export.remote.engine import Remote, connect
from zoo.export.remote.frame import BadFrame, encode, read_frame
from zoo.export.remote.link import BOOT, TRAVELLING, Target, target_of
from zoo.system.errors import IntegrityError, MissingDependency, Unreachable, UsageError, WrongDevice
from zoo.system.files import sha256_file

SSHD = os.environ.get("ZOO_TEST_SSHD") or "/usr/sbin/sshd"


@pytest.fixture(scope="module")
def bundle(small, tmp_path_factory) -> Path:
    return bundle_of(small, Known("small", "small"), out=tmp_path_factory.mktemp("out"), verify="none")


def changed(bundle: Path, folder: Path, content: bytes | None = None, **artifact) -> Path:
    """A copy of the bundle with another artifact, or with other facts about it in the manifest."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    if content is not None:
        (folder / "model.onnx").write_bytes(content)
        artifact |= {"size": len(content), "sha256": sha256_file(folder / "model.onnx")}
    manifest["artifact"] |= artifact
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write_sums(folder)
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


@settings(max_examples=60)
@given(st.lists(frames, max_size=4))
def test_frames_come_out_as_they_went_in(sent):
    stream = io.BytesIO(b"".join(encode(*one) for one in sent))
    assert [read_frame(stream) for _ in sent] == sent
    with pytest.raises(EOFError):
        read_frame(stream)


@settings(max_examples=60)
@given(frames, st.data())
def test_a_frame_that_is_cut_short_is_not_read(one, data):
    whole = encode(*one)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(whole[:cut]))


@settings(max_examples=60)
@given(frames, st.data())
def test_a_changed_byte_is_noticed_wherever_it_is(one, data):
    damaged = bytearray(encode(*one))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadFrame):
        read_frame(io.BytesIO(damaged + bytes(1000)))  # also where more bytes follow


@settings(max_examples=60)
@given(frames, st.binary(max_size=300).filter(lambda noise: frame.MAGIC not in noise + frame.MAGIC[:3]))
def test_text_before_a_frame_is_passed_over(one, banner):
    noise = bytearray()
    assert read_frame(io.BytesIO(banner + encode(*one)), noise) == one
    assert noise == banner


def header(**changed: int) -> bytes:
    fields = {"version": frame.VERSION, "kind": 1, "head": 2, "payload": 0, "check": zlib.crc32(b"{}")} | changed
    packed = frame.HEADER.pack(frame.MAGIC, *fields.values())
    return packed + frame.CHECK.pack(zlib.crc32(packed))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(version=2) + b"{}", "version 2"),
        (header(head=frame.MAX_HEAD + 1), "too large"),
        (header(payload=1 << 62), "too large"),
        (header(check=zlib.crc32(b"[]")) + b"[]", "an object, not list"),
        (header(check=zlib.crc32(b"{:")) + b"{:", "malformed"),
        (b"Welcome to the board!" + bytes(20), "starts with b'Welc"),
    ],
)
def test_frames_that_are_intact_but_wrong_are_refused(data, message):
    with pytest.raises(BadFrame, match=message):
        read_frame(io.BytesIO(data))
    assert read_frame(io.BytesIO(header() + b"{}")) == (1, {}, b"")


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
def test_a_malformed_target_is_refused(text):
    with pytest.raises(UsageError, match="a device is given as ssh://user@host"):
        target_of(text)


def test_no_shell_changes_the_first_words():
    """Between double quotes, for sh, fish, PowerShell and Windows' own."""
    assert not set(BOOT) & set("\"'`$\\%^&|!\n")


# -- what goes over ----------------------------------------------------------------------------------------------


def test_what_is_sent_needs_only_python_3_9_numpy_and_its_runtime():
    runtimes = {engine.module: engine.package for engine in ENGINES if engine.travels}
    paths = [link.FINGERPRINT, *(link.HERE / f"{name}.py" for name in TRAVELLING)]
    paths += [link.RUNTIMES / f"{name}.py" for name in runtimes]
    for path in paths:
        besides = (
            getattr(importlib.import_module(f"zoo.export.runtimes.{path.stem}"), "BESIDES", ())
            if path.stem in runtimes
            else ()
        )
        allowed = {*sys.stdlib_module_names, "numpy", runtimes.get(path.stem), *besides}
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            foreign = {name for name in modules if name.partition(".")[0] not in allowed}
            assert all(name.startswith(("zoo.export.remote", "zoo.system.fingerprint")) for name in foreign), path


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
    ("packages", "message"),
    [((), "numpy cannot be imported.*-m pip install numpy"), (("numpy",), "-m pip install onnxruntime' on the device")],
)
def test_a_package_that_the_device_lacks_is_named(packages, message, bundle, tmp_path):
    with pytest.raises(MissingDependency, match=message):
        connect(bare_python(tmp_path / "site", packages), bundle)


# -- the engine --------------------------------------------------------------------------------------------------


def test_another_process_answers_as_the_engine_here(bundle, logits):
    with connect("local:", bundle, threads=1) as engine:
        first, second = engine(images(5)), engine(images(5).numpy())
        for n in (1, 2, 33):
            assert engine(images(n)).shape == (n, 10)
    assert first.dtype == torch.float32
    assert torch.equal(first, logits)
    assert torch.equal(first, second)
    first.zero_()  # as some attacks do
    assert torch.equal(second, logits)


def test_the_device_says_what_it_is(bundle):
    with connect("local:", bundle, threads=1) as engine:
        facts = engine.describe()
    there = facts["remote"]
    assert (facts["engine"], facts["device"], there["threads"]) == ("onnxruntime", "cpu", 1)
    assert there["cores"] == len(os.sched_getaffinity(0))
    assert {"machine", "cpu", "os", "kernel", "numpy", "providers"} <= there.keys()
    assert all(there.values())
    assert socket.gethostname() not in json.dumps(facts)


def test_latency_is_measured_there(bundle):
    with connect("local:", bundle, threads=1) as engine:
        ns = engine.time(4, repeats=7, warmup=2)
        assert (ns.shape, ns.dtype) == ((7,), np.int64)
        assert (ns > 0).all()
        for batch, repeats in ((4, 0), (0, 4), (4, 10_001)):
            with pytest.raises(UsageError, match=rf"1 to 10000 calls with 1 image or more, not 0 \+ {repeats}"):
                engine.time(batch, repeats=repeats, warmup=0)


def test_a_batch_that_is_too_large_to_send_is_refused(bundle, monkeypatch):
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


def test_a_file_is_sent_once_and_again_only_if_it_is_damaged_there(bundle, logits, cache, asked):
    for sent in (1, 1, 2):
        with connect("local:", bundle, threads=1) as engine:
            assert torch.equal(engine(images(5)), logits)
        assert asked.count("FILE") == sent
        (held,) = cache.iterdir()
        assert held.read_bytes() == (bundle / "model.onnx").read_bytes()
        if asked.count("OPEN") == 2:
            held.write_bytes(held.read_bytes()[:-1] + b"x")


def test_an_altered_bundle_does_not_travel(bundle, tmp_path, asked):
    shutil.copytree(bundle, tmp_path / "copy")
    with open(tmp_path / "copy" / "model.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match="altered or damaged"):
        connect("local:", tmp_path / "copy")
    with pytest.raises(IntegrityError, match="altered after it was checked"):
        Remote(target_of("local:"), tmp_path / "copy", read_bundle(bundle))
    assert asked == []


def test_an_unwritable_cache_on_the_device_is_reported(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written there .*set ZOO_CACHE on the device"):
        connect("local:", bundle)


# -- devices that do not fit ---------------------------------------------------------------------------------------


def test_an_artifact_for_another_device_or_without_a_runner_is_refused(bundle, tmp_path):
    bound = changed(bundle, tmp_path / "bound", built_for={"machine": "pdp11"})
    with pytest.raises(WrongDevice, match="built for machine 'pdp11', on 'local:' it is"):
        connect("local:", bound)
    plan = changed(bundle, tmp_path / "plan", format="tensorrt-plan")
    with pytest.raises(MissingDependency, match="onnx, openvino-ir, tflite, tensorrt-rtx-plan, not 'tensorrt-plan'"):
        connect("local:", plan)
    other = changed(bundle, tmp_path / "other", content=b"not an onnx file")
    with pytest.raises(WrongDevice, match=r"onnxruntime [\d.]+ cannot load the artifact there: "):
        connect("local:", other)


def test_a_missing_program_here_is_reported(bundle, tmp_path):
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


def test_output_of_libraries_on_the_device_does_not_get_between_frames(bundle, logits, altered):
    spill = "            print(1); os.system('echo 2'); os.write(1, b'3'); return self.run(x)"
    altered("            return self.run(x)", spill)
    with connect("local:", bundle, threads=1) as engine:
        assert torch.equal(engine(images(5)), logits)
        assert torch.equal(engine(images(5)), logits)


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("exit 90", MissingDependency, "older than 3.9"),
        ("exit 127", MissingDependency, "no such Python"),
        ("exit 126", MissingDependency, "no such Python"),
        ("echo This account is not available.; exit 1", Unreachable, r"status 1 \(it said: This account is not avail"),
        ("echo Permission denied >&2; exit 255", Unreachable, r"status 255 \(it said: Permission denied\)"),
        ("kill -9 $$", Unreachable, "status -9"),
    ],
)
def test_a_device_that_never_answers_is_given_up_at_once(command, error, message, bundle, asked):
    with pytest.raises(error, match=message):
        connect(after(command), bundle)
    assert asked == ["OPEN"]


def test_a_stream_of_noise_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(frame, "MAX_HEAD", 5000)
    with pytest.raises(IntegrityError, match="cannot be understood: no frame starts with b'y"):
        connect(after("yes"), bundle)


def test_a_device_that_hangs_is_given_up(bundle):
    with pytest.raises(Unreachable, match=r"'board' has not answered within 0\.2 s \(it said: Select a menu:\)"):
        connect(after("echo Select a menu:; read choice; sleep 60"), bundle, timeout=0.2)


def test_a_device_that_hangs_is_given_up_though_a_process_that_escaped_holds_the_pipe(bundle, tmp_path):
    note = tmp_path / "pid"
    escaped = f"setsid sh -c 'echo $$ > {note}; exec sleep 60' & until [ -s {note} ]; do sleep 0.01; done"
    with pytest.raises(Unreachable, match=r"'board' has not answered within 2 s"):
        connect(after(f"{escaped}; read choice; sleep 60"), bundle, timeout=2)
    os.kill(int(note.read_text()), signal.SIGKILL)  # which is still there


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            "name: hashlib.sha256(content)",
            "name: hashlib.sha256(content[1:])",
            IntegrityError,
            "does not run the artifact",
        ),
        ("os.replace(scratch, os.path", "os.remove(scratch); str(os.path", IntegrityError, "does not run the artifact"),
        ('head["sha256"], payload)', 'head["sha256"], payload + b"x")', IntegrityError, "another SHA-256"),
        ("return self.run(x)", "return self.run(x[:, :1])", WrongDevice, r"batch \[2, 3, 32, 32\]"),
        ('{"id": head["id"], "shape"', '{"id": 7, "shape"', IntegrityError, "not with logits"),
        ("logits.tobytes()", "logits.tobytes()[:-4]", IntegrityError, "not with logits"),
        ("frame.LOGITS, {", "frame.TIMES, {", IntegrityError, "not with logits"),
        ("encode(*answer)", "encode(*answer).replace(b'shape', b'shaqe')", IntegrityError, "content is damaged"),
        ("answered.write(", 'answered.write(b"hello" * (answer[0] == 8)); answered.write(', IntegrityError, "b'hell"),
    ],
)
def test_a_device_that_answers_wrongly_is_refused(old, new, error, message, bundle, cache, altered):
    altered(old, new)
    with pytest.raises(error, match=message), connect("local:", bundle, threads=1) as engine:
        engine(images(2))
    held = [*cache.iterdir()] if cache.exists() else []
    assert [sha256_file(file) for file in held] == [file.name for file in held]


def test_the_runner_refuses_what_is_no_frame_and_is_started_again(bundle):
    with connect("local:", bundle, threads=1) as engine:
        engine.link.greeting = b"garbage" * 10
        with pytest.raises(IntegrityError, match=r"says: the runner cannot answer: BadFrame.*starts with b'garb"):
            engine(images(2))
        assert engine(images(2)).shape == (2, 10)


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
    if drop < need:  # there may be no device at all
        with pytest.raises(Unreachable, match="status 255"):
            connect(target, bundle, threads=1, pauses=(0,))
        return
    with connect(target, bundle, threads=1, pauses=(0,)) as engine:
        assert torch.equal(engine(images(5)), logits)
    assert asked.count("OPEN") == 2


def test_the_number_of_new_connections_is_bounded(bundle, tmp_path, asked):
    with connect(frail(tmp_path, 1 << 40, 0, 0, 0), bundle, threads=1, pauses=(0, 0, 0)) as engine:
        engine.link.process.kill()  # the next ones end before they answer
        with pytest.raises(Unreachable, match="3 new connections did not help: the connection ended, with status 255"):
            engine(images(2))
    assert asked.count("INFER") == 1


def test_another_device_that_answers_after_a_drop_is_refused(bundle, tmp_path, altered):
    with connect("local:", bundle, threads=1, pauses=(0,)) as engine:
        engine.link.process.kill()
        altered('facts["numpy"] = self.np.__version__', 'facts["machine"] = "pdp11"')
        with pytest.raises(WrongDevice, match="another device answers as 'local:' than before: machine was"):
            engine(images(2))


# -- ssh -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A real SSH server on the loopback interface, with its own keys: its process, its target, and the ssh command."""
    if not os.path.exists(SSHD) or not shutil.which("ssh"):
        pytest.skip(f"needs an SSH server, and there is no '{SSHD}': apt install openssh-server, or set ZOO_TEST_SSHD")
    folder = tmp_path_factory.mktemp("board")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port, user = listener.getsockname()[1], pwd.getpwuid(os.getuid()).pw_name
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
        while "listening" not in (log_text := (folder / "log").read_text()):
            if server.poll() is not None:
                pytest.skip(f"the SSH server '{SSHD}' does not start here: {log_text.strip()}")
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
        facts = json.dumps(engine.describe())
    assert (asked.count("OPEN"), asked.count("FILE")) == (2, 1)
    assert [path.name for path in (board.folder / "cache" / "remote").iterdir()] == [sha256_file(bundle / "model.onnx")]
    assert "127.0.0.1" not in facts


def test_a_missing_python_is_reported_over_ssh(board, bundle):
    with pytest.raises(
        MissingDependency, match=r"has no such Python: name another.*it said: .*(not found|No such file)"
    ):
        connect(f"{board.target}/~/no 'such' \"python\"", bundle, ssh=board.ssh)
