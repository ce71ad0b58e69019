"""Classify an image with ONNX Runtime: pip install onnxruntime numpy pillow

python classify_onnxruntime.py BUNDLE IMAGE
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

parser = argparse.ArgumentParser(description="Classify an image with ONNX Runtime.")
parser.add_argument("bundle", type=Path, help="folder written by 'zoo export --format onnx'")
parser.add_argument("image", help="any picture that Pillow can read")
args = parser.parse_args()

manifest = json.loads((args.bundle / "manifest.json").read_bytes())
port = manifest["io"]["input"]
_, channels, height, width = port["shape"]
image = Image.open(args.image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]; normalisation is inside

session = onnxruntime.InferenceSession(args.bundle / manifest["artifact"]["file"])
(logits,) = session.run(None, {port["name"]: np.ascontiguousarray(x)})  # [1, classes]

p = np.exp(logits[0] - logits[0].max())
p /= p.sum()
for k in np.argsort(-p)[:3]:
    print(f"{p[k]:.3f}  {manifest['labels'][k] if manifest['labels'] else k}")
