"""Checkpoints made small and fast to serve: ONNX graphs, int8 weights, the text side alone.

These tools need onnx, onnxruntime and torchao (`pip install 'mpclip[deploy]'`) and are used once, where a checkpoint is
prepared. So they are not in modeling_mpclip/, whose files travel with every checkpoint and need torch and transformers alone.
"""
