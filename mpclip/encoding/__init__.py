"""Encoding: turns texts, pictures and clips into vectors with any checkpoint, ours or another.

    encoder = load_encoder("runs/demo/multi_prompt")              # ours, CLIP, SigLIP, or a sentence-transformers model
    texts = encoder.texts(["a red car", "a street"])              # (2, D) float32 on the CPU, L2-normalised
    pictures = encoder.images([picture])                          # (1, D)
    embeds = encode_dataset(encoder, load_image_text("photos", "test"))
    texts = encode_texts(encoder, ["a red car"], cache="embeddings")  # kept there; the next call reads them

checkpoints.py loads a checkpoint. encoder.py embeds. batches.py makes batches, shows progress, shares the work among processes
and resumes after a kill. dataset.py embeds texts, the pictures of a table, and all pictures and captions of a data set, and
caches them on disk; clips.py does it for video files. fingerprint.py decides whether two checkpoints are the same.

shards.py embeds more pictures than one process can, a parquet file at a time: `mpclip embed`. ray.py does it on Ray.
"""

from .checkpoints import load_encoder, refuse_unfit
from .clips import encode_clips
from .dataset import encode_dataset, encode_images, encode_texts
from .encoder import Encoder, ModelEncoder, PeerEncoder, SentenceEncoder

__all__ = [
    "Encoder",
    "ModelEncoder",
    "PeerEncoder",
    "SentenceEncoder",
    "encode_clips",
    "encode_dataset",
    "encode_images",
    "encode_texts",
    "load_encoder",
    "refuse_unfit",
]
