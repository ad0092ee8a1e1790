"""From a checkpoint to vectors: the one place where texts, pictures and clips are embedded.

    encoder = load_encoder("runs/demo/multi_prompt")              # ours, CLIP, SigLIP, or a sentence-transformers model
    texts = encoder.texts(["a red car", "a street"])              # (2, D) float32 on the CPU, L2-normalised
    pictures = encoder.images([picture])                          # (1, D)
    embeds = encode_dataset(encoder, load_image_text("photos", "test"))

checkpoints.py opens a checkpoint; encoder.py embeds; batches.py makes batches, shows progress, shares work and goes on after a
kill; dataset.py embeds all pictures and captions of a data set; fingerprint.py tells one checkpoint from another.
"""

from .checkpoints import load_encoder
from .dataset import encode_dataset
from .encoder import Encoder, ModelEncoder, PeerEncoder, SentenceEncoder

__all__ = ["Encoder", "ModelEncoder", "PeerEncoder", "SentenceEncoder", "encode_dataset", "load_encoder"]
