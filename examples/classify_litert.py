"""Classify an image with LiteRT: pip install ai-edge-litert numpy pillow

python classify_litert.py BUNDLE IMAGE
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

parser = argparse.ArgumentParser(description="Classify an image with LiteRT.")
parser.add_argument("bundle", type=Path, help="folder with manifest.json and the .tflite file that it names")
parser.add_argument("image", help="any picture that Pillow can read")
args = parser.parse_args()

manifest = json.loads((args.bundle / "manifest.json").read_bytes())
_, channels, height, width = manifest["io"]["input"]["shape"]
image = Image.open(args.image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
x = np.asarray(image, np.float32)[None] / 255  # [1, H, W, 3] in [0, 1]; normalisation is inside

interpreter = Interpreter(str(args.bundle / manifest["artifact"]["file"]))
(port,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
if list(port["shape"][1:]) == [channels, height, width]:  # converted from NCHW and left so
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
interpreter.resize_tensor_input(port["index"], x.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(port["index"], x)
interpreter.invoke()
logits = interpreter.get_tensor(output["index"])  # [1, classes]

p = np.exp(logits[0] - logits[0].max())
p /= p.sum()
for k in np.argsort(-p)[:3]:
    print(f"{p[k]:.3f}  {manifest['labels'][k] if manifest['labels'] else k}")
