"""Models with registers in forms that run without regtune: ONNX, torch.export, plain transformers and peft."""
