"""What a quantized ONNX model holds, whoever made it, and whether it suits a target."""
