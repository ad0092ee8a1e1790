"""Small and fast to serve: `python -m mpclip.export.onnx` and `python -m mpclip.export.int8` make it so.

Not in modeling_mpclip/, whose files need torch and transformers alone and travel with every checkpoint: these tools need onnx,
onnxruntime and torchao (`pip install -e '.[deploy]'`), and are used once, where a checkpoint is prepared.
"""
