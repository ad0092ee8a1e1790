"""Data sets and pretrained backbones: image-text tables, OpenMoji scenes, sentence pairs, towers from PyPI packages."""
