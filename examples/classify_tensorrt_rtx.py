"""Classify an image with TensorRT for RTX: pip install tensorrt-rtx-cu13 torch numpy pillow (torch holds GPU memory)

python classify_tensorrt_rtx.py BUNDLE IMAGE
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import tensorrt_rtx as trt
import torch
from PIL import Image

parser = argparse.ArgumentParser(description="Classify an image with TensorRT for RTX.")
parser.add_argument("bundle", type=Path, help="folder written by 'zoo export --format tensorrt-rtx'")
parser.add_argument("image", help="any picture that Pillow can read")
args = parser.parse_args()
if not torch.cuda.is_available():
    sys.exit("PyTorch finds no GPU here")

manifest = json.loads((args.bundle / "manifest.json").read_bytes())
ports = manifest["io"]
_, channels, height, width = ports["input"]["shape"]
image = Image.open(args.image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]; normalisation is inside

runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
engine = runtime.deserialize_cuda_engine((args.bundle / manifest["artifact"]["file"]).read_bytes())
if engine is None:
    sys.exit(f"this plan was built for {manifest['artifact'].get('built_for')}: export the model again")
context, stream = engine.create_execution_context(), torch.cuda.Stream()
with torch.cuda.stream(stream):
    images = torch.from_numpy(np.ascontiguousarray(x)).cuda()
    logits = torch.empty((1, ports["output"]["shape"][1]), device="cuda")
    context.set_input_shape(ports["input"]["name"], tuple(images.shape))
    context.set_tensor_address(ports["input"]["name"], images.data_ptr())
    context.set_tensor_address(ports["output"]["name"], logits.data_ptr())
    context.execute_async_v3(stream.cuda_stream)
    p = logits[0].softmax(0).cpu()  # which waits for the stream

for k in p.argsort(descending=True)[:3].tolist():
    print(f"{p[k]:.3f}  {manifest['labels'][k] if manifest['labels'] else k}")
