"""ONNX graphs: float, fp16, int8, for uint8 images, with gradients."""
