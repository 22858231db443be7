"""ONNX models of rules and of trained teachers."""
