"""Small and fast to serve: `python -m deploy.export_onnx` and `python -m deploy.quantize_int8` make it so.

Not in modeling_mpclip/, whose files need torch and transformers alone and travel with every checkpoint: these tools need onnx,
onnxruntime and torchao (`pip install -e '.[deploy]'`), and are used once, where a checkpoint is prepared.
"""
