"""Classify an image with ExecuTorch: pip install executorch numpy pillow

python classify_executorch.py BUNDLE IMAGE
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image

parser = argparse.ArgumentParser(description="Classify an image with ExecuTorch.")
parser.add_argument("bundle", type=Path, help="folder written by 'zoo export --format executorch'")
parser.add_argument("image", help="any picture that Pillow can read")
args = parser.parse_args()

manifest = json.loads((args.bundle / "manifest.json").read_bytes())
_, channels, height, width = manifest["io"]["input"]["shape"]
image = Image.open(args.image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255  # [1, 3, H, W] in [0, 1]; normalisation is inside

program = Runtime.get().load_program(args.bundle / manifest["artifact"]["file"])
(logits,) = program.load_method("forward").execute([torch.from_numpy(np.ascontiguousarray(x))])  # [1, classes]

p = logits[0].softmax(0)
for k in p.argsort(descending=True)[:3].tolist():
    print(f"{p[k]:.3f}  {manifest['labels'][k] if manifest['labels'] else k}")
