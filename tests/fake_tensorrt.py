"""A stand-in for the package ``tensorrt``, and for the little of ``torch.cuda`` that its engine uses, without a GPU.

It holds our calls to the rules that TensorRT's documentation states (order, types, return values, who must stay
alive), and computes with ONNX Runtime on the very addresses it is given. It shows nothing about TensorRT itself.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

GPU, CAPABILITY = "NVIDIA Fake 9000", (9, 0)
SEPARATOR = b"\n--onnx--\n"


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.ready = True


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class FakeTensorRt:
    """One installation: its version, its GPU, and what it was asked to do, in ``seen``.

    Attributes:
        unsupported: operators that its parser refuses.
        broken: what logs an error in place of working: "driver", "build", "context" or "run".
    """

    ILogger, HardwareCompatibilityLevel, TensorIOMode = ILogger, HardwareCompatibilityLevel, TensorIOMode
    float32 = "DataType.FLOAT"

    def __init__(self, version: str = "11.4.0.106", gpu: str = GPU, capability: tuple[int, int] = CAPABILITY) -> None:
        self.__version__, self.gpu, self.capability = version, gpu, capability
        self.unsupported: set[str] = set()
        self.broken: set[str] = set()
        self.seen: dict = {"timings": [], "batches": []}
        eleven = version.startswith("11.")
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 0 if eleven else 1})
        removed = [] if eleven else ["FP16", "INT8"]
        self.BuilderFlag = enum.Enum("BuilderFlag", [*removed, "TF32", "VERSION_COMPATIBLE"])
        self.Builder = lambda log: Builder(self, log)
        self.OnnxParser = lambda network, log: OnnxParser(self, network, log)
        self.Runtime = lambda log: Runtime(self, log)

    def fails(self, what: str, log, message: str) -> bool:
        if what in self.broken:
            log.log(Severity.ERROR, message)
            log.log(Severity.ERROR, "a later error, which follows from the first")
        return what in self.broken


class Tensor:
    def __init__(self, proto) -> None:
        self.name = proto.name
        self.shape = tuple(dim.dim_value or -1 for dim in proto.type.tensor_type.shape.dim)


class Network:
    def get_input(self, index: int) -> Tensor:
        return Tensor(self.proto.graph.input[index])


class Builder:
    def __init__(self, trt: FakeTensorRt, log: ILogger) -> None:
        assert log.ready, "the logger's base class was not initialised"
        self.trt, self.log = trt, log
        trt.fails("driver", log, "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure)")

    def create_network(self, flags: int = 0) -> Network:
        self.trt.seen["strongly typed"] = bool(flags & (1 << self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self.trt, self.log)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> memoryview | None:
        self.log.log(Severity.WARNING, "a warning that is not an error")
        if self.trt.fails("build", self.log, "Could not find any implementation\nfor node head."):
            return None
        assert config.profiles, "a network with a dynamic batch has no optimization profile"
        (profile,) = config.profiles
        config.timings.entries += f"{self.trt.gpu} was timed;".encode()
        flags = {flag.name for flag in config.flags}
        self.trt.seen |= {"flags": flags, "hardware": config.hardware_compatibility_level.name, "profile": profile}
        header = {
            "version": self.trt.__version__,
            "capability": list(self.trt.capability),
            "host code": "VERSION_COMPATIBLE" in flags,
            "profile": profile.shapes,
        }
        return memoryview(json.dumps(header).encode() + SEPARATOR + network.proto.SerializeToString())


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = [list(min), list(opt), list(max)]


class TimingCache:
    def __init__(self, entries: bytes) -> None:
        self.entries = entries

    def serialize(self) -> memoryview:
        return memoryview(b"timings:" + self.entries)


class BuilderConfig:
    def __init__(self, trt: FakeTensorRt, log: ILogger) -> None:
        self.trt, self.log = trt, log
        self.flags = {trt.BuilderFlag.TF32}  # as in the real one
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.profiles: list[OptimizationProfile] = []

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        self.trt.seen["timings"].append(serialized_timing_cache)
        if serialized_timing_cache and not serialized_timing_cache.startswith(b"timings:"):
            self.log.log(Severity.ERROR, "the timing cache is corrupt")
            return None
        return TimingCache(serialized_timing_cache.removeprefix(b"timings:"))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or not cache.entries or cache.entries.startswith(self.trt.gpu.encode())
        if fits:
            self.timings = cache
        return fits


class ParserError:
    def __init__(self, node) -> None:
        self.node = node

    def node_operator(self) -> str:
        return self.node.op_type if self.node else ""

    def node_name(self) -> str:
        return self.node.name if self.node else ""

    def desc(self) -> str:
        return "No importer registered\nfor op." if self.node else "Failed to parse the ONNX model."


class OnnxParser:
    def __init__(self, trt: FakeTensorRt, network: Network, logger: ILogger) -> None:
        self.trt, self.network, self.errors = trt, network, []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse(self, model: bytes) -> bool:
        try:
            self.network.proto = onnx.load_from_string(model)
        except Exception:
            self.errors = [ParserError(None)]
            return False
        self.errors = [ParserError(n) for n in self.network.proto.graph.node if n.op_type in self.trt.unsupported]
        return not self.errors


class Runtime:
    def __init__(self, trt: FakeTensorRt, log: ILogger) -> None:
        assert log.ready, "the logger's base class was not initialised"
        self.trt, self.log, self.engine_host_code_allowed = trt, log, False
        trt.fails("driver", log, "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure)")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        header, _, graph = serialized_engine.partition(SEPARATOR)
        try:
            facts, engine = json.loads(header), Engine(self, graph)
        except Exception:  # noise, or cut short
            self.log.log(Severity.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        engine.profile, refusal = facts["profile"], ""
        if facts["version"] != self.trt.__version__ and not facts["host code"]:
            refusal = "The engine plan file is not compatible with this version of TensorRT, please rebuild."
        elif facts["capability"] != list(self.trt.capability):
            refusal = "The engine plan file is generated on an incompatible device, please rebuild."
        elif facts["host code"] and not self.engine_host_code_allowed:
            refusal = "Cannot deserialize engine with lean runtime since getEngineHostCodeAllowed() is false."
        if refusal:
            self.log.log(Severity.ERROR, refusal)
        return None if refusal else engine


class Engine:
    def __init__(self, runtime: Runtime, graph: bytes) -> None:
        self.trt, self.log, self.graph = runtime.trt, runtime.log, graph
        proto = onnx.load_from_string(graph)
        self.inputs = {entry.name: Tensor(entry) for entry in proto.graph.input}
        self.outputs = {entry.name: Tensor(entry) for entry in proto.graph.output}
        self.tensors = self.inputs | self.outputs
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple:
        return self.tensors[name].shape

    def get_tensor_dtype(self, name: str) -> str:
        return FakeTensorRt.float32

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list:
        return self.profile[name]

    def create_execution_context(self) -> ExecutionContext | None:
        failed = self.trt.fails("context", self.log, "Requested amount of GPU memory could not be allocated.")
        return None if failed else ExecutionContext(self)


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shape, self.addresses = engine, None, {}
        self.session = onnxruntime.InferenceSession(engine.graph, providers=["CPUExecutionProvider"])

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        least, _, most = self.engine.profile[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if not fits:
            self.engine.log.log(Severity.ERROR, f"IExecutionContext::setInputShape: {shape} is out of the profile")
        self.shape = shape if fits else None
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == Stream.cuda_stream, "not the engine's own stream"
        assert self.shape is not None
        if self.engine.trt.fails("run", self.engine.log, "enqueueV3: an illegal memory access was encountered"):
            return False
        self.engine.trt.seen["batches"].append(self.shape[0])
        (image,), (logits,) = self.engine.inputs, self.engine.outputs
        (answer,) = self.session.run([logits], {image: _memory(self.addresses[image], self.shape)})
        _memory(self.addresses[logits], answer.shape)[:] = answer
        return True


def _memory(address: int, shape: tuple) -> np.ndarray:
    """The float32 numbers at an address, as they lie there."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Stream:
    cuda_stream = 4711

    def __init__(self, device: torch.device) -> None:
        pass


class FakeTorch:
    """PyTorch with a GPU, which is the CPU in truth; for the engine's modules only, the rest keeps the real one."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            current_device=lambda: 0,
            get_device_name=lambda: trt.gpu,
            get_device_capability=lambda: trt.capability,
            Stream=Stream,
            device=nullcontext,
            stream=nullcontext,
        )

    def device(self, *_) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str):
        return getattr(torch, name)


def install(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRt) -> FakeTensorRt:
    """Let ``import tensorrt`` find ``trt``, and the engine's modules its GPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    for module in ("tensorrt", "tensorrt_device"):
        monkeypatch.setattr(f"zoo.export.engines.{module}.torch", FakeTorch(trt))
    return trt
