"""Exports of a checkpoint that are small and fast to serve: ONNX graphs, int8 weights, the text tower alone.

They need onnx, onnxruntime and torchao (`pip install 'mpclip[deploy]'`). They are not in modeling_mpclip/, because its files
are copied into every checkpoint and need only torch and transformers.
"""
