"""A saved checkpoint folder, whose code the testers then run instead of the repository's."""

import functools
import tempfile

from conftest import make_model, make_processor, make_tokenizer

_folders = []  # kept until the process ends


@functools.cache
def save_checkpoint() -> str:
    _folders.append(tempfile.TemporaryDirectory())
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(_folders[-1].name)
    make_processor(tokenizer).save_pretrained(_folders[-1].name)
    return _folders[-1].name
