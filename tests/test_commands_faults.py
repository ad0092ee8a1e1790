"""What a command says of a checkpoint whose tokenizer or image processor cannot be read."""

import shutil

import pytest
from search_fixtures import model  # noqa: F401 (a fixture)

from mpclip.encoding import load_encoder


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"version": "1.0"}'),
        ("tokenizer_config.json", "[]"),
        ("processor_config.json", "{"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(model, tmp_path, name, content):  # noqa: F811
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^The tokenizer or image processor of {folder} cannot be read \(\w+: .*copy them"):
        load_encoder(str(folder), device="cpu")
