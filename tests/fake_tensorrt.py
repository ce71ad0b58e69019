"""A stand-in for an NVIDIA GPU under TensorRT. TensorRT for RTX parses and builds, which it does without a GPU.

What needs a GPU is played: the runtime, its execution contexts, the timing cache, and the little of ``torch.cuda`` that
our engines use. It holds our calls to the rules that TensorRT's documentation states (order, types, return values, who
must stay alive), and computes with ONNX Runtime on the very addresses that it is given. It shows nothing of how a plan
runs.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

GPU, CAPABILITY = "NVIDIA Fake 9000", (9, 0)
SEPARATOR = b"\n--played--\n"


class FakeTensorRt:
    """One installation: its version, its GPU, and what it was asked to do, in ``seen``.

    What is not defined here is that of the real ``tensorrt_rtx``.

    Attributes:
        broken: what logs an error in place of working: "driver", "build", "context" or "run".
    """

    float32 = "DataType.FLOAT"

    def __init__(
        self,
        version: str = "11.4.0.106",
        gpu: str = GPU,
        capability: tuple[int, int] = CAPABILITY,
        name: str = "tensorrt",
    ) -> None:
        self.real = pytest.importorskip("tensorrt_rtx")
        self.__name__, self.__version__, self.gpu, self.capability = name, version, gpu, capability
        self.broken: set[str] = set()
        self.seen: dict = {"timings": [], "batches": []}
        flag = 1 if version.startswith("10.") else 0
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": flag})
        self.Builder, self.OnnxParser = recorded(self)
        self.Runtime = lambda log: Runtime(self, log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def error(self, log, message: str) -> None:
        log.log(self.real.ILogger.Severity.ERROR, message)

    def fails(self, what: str, log, message: str) -> bool:
        if what in self.broken:
            self.error(log, message)
            self.error(log, "a later error, which follows from the first")
        return what in self.broken


def recorded(trt: FakeTensorRt) -> tuple[type, type]:
    """The real builder and parser, which put the graph behind the plan that they make of it, for :class:`Runtime`."""

    class Builder(trt.real.Builder):
        def __init__(self, log) -> None:
            super().__init__(log)
            self.log = log
            trt.fails("driver", log, "createInferBuilder: Error Code 6: API Usage Error (CUDA initialization failure)")

        def create_network(self, flags: int = 0):
            trt.seen["strongly typed"] = bool(flags & (1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            return super().create_network(1 << int(trt.real.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

        def create_builder_config(self):
            return Config(trt, self.log, super().create_builder_config())

        def create_optimization_profile(self):
            trt.seen["profile"] = super().create_optimization_profile()
            return trt.seen["profile"]

        def build_serialized_network(self, network, config: Config) -> memoryview | None:
            if trt.fails("build", self.log, "Could not find any implementation\nfor node head."):
                return None
            assert config.real.num_optimization_profiles == 1
            flags = {flag for flag in trt.real.BuilderFlag.__members__ if config.played(flag)}
            name = network.get_input(0).name
            shapes = [list(shape) for shape in trt.seen["profile"].get_shape(name)]
            trt.seen |= {"flags": flags, "hardware": config.hardware_compatibility_level.name}
            if config.timings:
                config.timings.entries += f"{trt.gpu} was timed;".encode()
            plan = super().build_serialized_network(network, config.real)
            assert plan is not None
            capabilities = [
                int(config.real.get_compute_capability(i)) for i in range(config.real.num_compute_capabilities)
            ]
            header = {
                "version": trt.__version__,
                "capabilities": capabilities or [10 * trt.capability[0] + trt.capability[1]],
                "host code": "VERSION_COMPATIBLE" in flags,
                "profile": {name: shapes},
            }
            return memoryview(SEPARATOR.join([bytes(plan), json.dumps(header).encode(), trt.seen["graph"]]))

    class OnnxParser(trt.real.OnnxParser):
        def parse(self, model: bytes) -> bool:
            trt.seen["graph"] = model
            return super().parse(model)

    return Builder, OnnxParser


class TimingCache:
    def __init__(self, entries: bytes) -> None:
        self.entries = entries

    def serialize(self) -> memoryview:
        return memoryview(b"timings:" + self.entries)


class Config:
    """The real configuration, but for what TensorRT for RTX does not have: timings, and plans that fit other places."""

    def __init__(self, trt: FakeTensorRt, log, real) -> None:
        level = trt.HardwareCompatibilityLevel.NONE
        own = {"trt": trt, "log": log, "real": real, "timings": None, "portable": False}
        self.__dict__.update(own, hardware_compatibility_level=level)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self.real, name, value)

    def set_flag(self, flag) -> None:
        if flag == self.trt.BuilderFlag.VERSION_COMPATIBLE:
            self.portable = True
        else:
            self.real.set_flag(flag)

    def played(self, flag: str) -> bool:
        return (
            self.portable
            if flag == "VERSION_COMPATIBLE"
            else self.real.get_flag(self.trt.BuilderFlag.__members__[flag])
        )

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        self.trt.seen["timings"].append(serialized_timing_cache)
        if serialized_timing_cache and not serialized_timing_cache.startswith(b"timings:"):
            self.trt.error(self.log, "the timing cache is corrupt")
            return None
        return TimingCache(serialized_timing_cache.removeprefix(b"timings:"))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fits = ignore_mismatch or not cache.entries or cache.entries.startswith(self.trt.gpu.encode())
        if fits:
            self.timings = cache
        return fits


class Tensor:
    def __init__(self, proto) -> None:
        self.name = proto.name
        self.shape = tuple(dim.dim_value or -1 for dim in proto.type.tensor_type.shape.dim)


class Runtime:
    def __init__(self, trt: FakeTensorRt, log) -> None:
        assert isinstance(log, trt.real.ILogger)
        self.trt, self.log, self.engine_host_code_allowed = trt, log, False
        trt.fails("driver", log, "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure)")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        try:
            _, header, graph = serialized_engine.split(SEPARATOR)
            facts, engine = json.loads(header), Engine(self, graph)
        except Exception:  # noise, or cut short
            self.trt.error(self.log, "Serialization assertion magicTagRead == kMAGIC_TAG failed.")
            return None
        engine.profile, refusal = facts["profile"], ""
        if facts["version"] != self.trt.__version__ and not facts["host code"]:
            refusal = "The engine plan file is not compatible with this version of TensorRT, please rebuild."
        elif 10 * self.trt.capability[0] + self.trt.capability[1] not in facts["capabilities"]:
            refusal = "The engine plan file is generated on an incompatible device, please rebuild."
        elif facts["host code"] and not self.engine_host_code_allowed:
            refusal = "Cannot deserialize engine with lean runtime since getEngineHostCodeAllowed() is false."
        if refusal:
            self.trt.error(self.log, refusal)
            return None
        self.trt.seen["made"] = [self, engine]
        return engine


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

    def get_tensor_mode(self, name: str):
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple:
        return self.tensors[name].shape

    def get_tensor_dtype(self, name: str) -> str:
        return FakeTensorRt.float32

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list:
        return self.profile[name]

    def create_execution_context(self) -> ExecutionContext | None:
        failed = self.trt.fails("context", self.log, "Requested amount of GPU memory could not be allocated.")
        if failed:
            return None
        self.trt.seen["made"].append(context := ExecutionContext(self))
        return context


class ExecutionContext:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shape, self.addresses = engine, None, {}
        self.session = onnxruntime.InferenceSession(engine.graph, providers=["CPUExecutionProvider"])

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        least, _, most = self.engine.profile[name]
        fits = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if not fits:
            self.engine.trt.error(self.engine.log, f"IExecutionContext::setInputShape: {shape} is out of the profile")
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
    """Let ``import tensorrt`` (or ``trt``'s other name) find ``trt``, and the engine's modules its GPU."""
    monkeypatch.setitem(sys.modules, trt.__name__, trt)
    monkeypatch.setattr("zoo.export.engines.tensorrt_device.torch", FakeTorch(trt))
    monkeypatch.setattr("zoo.export.runtimes.tensorrt_rtx._torch", lambda: FakeTorch(trt))
    return trt
