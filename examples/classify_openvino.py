"""Classify an image with OpenVINO: pip install openvino numpy pillow

python classify_openvino.py BUNDLE IMAGE
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openvino
from PIL import Image

parser = argparse.ArgumentParser(description="Classify an image with OpenVINO.")
parser.add_argument("bundle", type=Path, help="folder written by 'zoo export --format openvino'")
parser.add_argument("image", help="any picture that Pillow can read")
parser.add_argument("--device", default="CPU", help="as OpenVINO calls it; only CPU was verified")
args = parser.parse_args()

manifest = json.loads((args.bundle / "manifest.json").read_bytes())
_, channels, height, width = manifest["io"]["input"]["shape"]
image = Image.open(args.image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]; normalisation is inside

# Without the hint it would compute in bfloat16 where the processor can: not what was verified.
model = openvino.Core().compile_model(
    args.bundle / manifest["artifact"]["file"], args.device, {"INFERENCE_PRECISION_HINT": "f32"}
)
logits = model(np.ascontiguousarray(x))[0]  # [1, classes]

p = np.exp(logits[0] - logits[0].max())
p /= p.sum()
for k in np.argsort(-p)[:3]:
    print(f"{p[k]:.3f}  {manifest['labels'][k] if manifest['labels'] else k}")
