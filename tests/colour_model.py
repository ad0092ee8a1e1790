"""A model that needs no weights: it embeds a picture as its mean colour, and a text as the colour it spells."""

import datasets
import numpy as np
import PIL.Image
import torch

from mpclip.encoding import Encoder


class ColourEncoder(Encoder):
    """Embeds an image as its mean colour and a text as the colour it spells."""

    name, device = "some/model", torch.device("cpu")

    def embed_texts(self, texts):
        colours = torch.tensor([[int(word) for word in text.split()[:3]] for text in texts])  # (B, 3)
        return torch.nn.functional.normalize(colours.float(), dim=1)

    def embed_images(self, images):
        pixels = torch.from_numpy(np.stack([np.asarray(image.resize((4, 4)), dtype=np.float32) for image in images]))
        return torch.nn.functional.normalize(pixels.mean(dim=(1, 2)), dim=1)  # (B, 3)


def coloured_rows(count: int = 9) -> datasets.Dataset:
    """Images of one colour; each with one to three captions that spell it, some with words after it."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 3))
    spelt = [" ".join(map(str, colour)) for colour in colours]
    return datasets.Dataset.from_dict(
        {
            "image": [PIL.Image.new("RGB", (6, 6), tuple(int(c) for c in colour)) for colour in colours],
            "captions": [[words + " 1" * n for n in range(1 + i % 3)] for i, words in enumerate(spelt)],
        }
    )
