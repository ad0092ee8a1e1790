"""Items made of a table for training: a picture and a caption, drawn anew in every epoch."""

import pytest
import torch
from tiny_pictures import write_folder

from mpclip.data.image_text import ImageTextDataset, load_image_text


@pytest.fixture
def rows(tmp_path):
    captions = [[f"{word} {i}" for word in "abcde"] for i in range(20)]
    return load_image_text(
        write_folder(tmp_path, [{"file_name": f"{i}.png", "captions": row} for i, row in enumerate(captions)]), "train"
    )


def drawn(examples: ImageTextDataset) -> list[str]:
    """The caption of each item."""
    items = [examples[i] for i in range(len(examples))]
    assert all(len(item["captions"]) == 1 for item in items)
    return [item["captions"][0] for item in items]


def test_items(rows):
    item = ImageTextDataset(rows)[3]
    assert item["index"] == 3 and item["image"].mode == "RGB"
    assert len(item["captions"]) == 1 and item["captions"][0] in rows[3]["captions"]
    assert ImageTextDataset(rows, captions="all")[3]["captions"] == rows[3]["captions"]


def test_random_caption_depends_on_seed_epoch_and_index_alone(rows):
    examples, again = ImageTextDataset(rows, seed=1), ImageTextDataset(rows, seed=1)
    first = drawn(examples)
    assert len({caption[0] for caption in first}) > 2  # a, b, c, d or e
    assert drawn(again)[::-1] == first[::-1] == [again[i]["captions"][0] for i in range(19, -1, -1)]
    assert drawn(ImageTextDataset(rows, seed=2)) != first
    examples.set_epoch(1)
    assert drawn(examples) != first
    again.set_epoch(5)
    again.set_epoch(1)  # as after a resume
    assert drawn(again) == drawn(examples)


def test_crops_are_drawn_anew_and_alike_after_a_resume(folder):
    rows = load_image_text(str(folder / "data"), "train")
    whole = ImageTextDataset(rows)[0]["image"]
    examples, again = (ImageTextDataset(rows, seed=1, smallest_crop=0.5) for _ in range(2))
    sizes = set()
    for epoch in range(40):
        examples.set_epoch(epoch)
        crop = examples[0]["image"]
        sizes.add(crop.size)
        assert crop.width <= whole.width and crop.height <= whole.height
        assert crop.width * crop.height >= 0.45 * whole.width * whole.height  # whole pixels
        assert 0.7 < crop.width / crop.height < 1.4
    assert len(sizes) > 20
    again.set_epoch(39)
    assert again[0]["image"].tobytes() == crop.tobytes()


def test_epoch_reaches_running_workers(rows):
    examples = ImageTextDataset(rows, with_images=False)
    loader = torch.utils.data.DataLoader(examples, None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        examples.set_epoch(epoch)
        assert [item["captions"][0] for item in loader] == drawn(examples)


def test_without_images_no_file_is_read(rows, tmp_path):
    for file in tmp_path.glob("*.png"):
        file.unlink()
    item = ImageTextDataset(rows, with_images=False)[0]
    assert set(item) == {"index", "captions"}
    with pytest.raises(FileNotFoundError, match=r"\.png"):
        ImageTextDataset(rows)[0]


def test_wrong_arguments(rows):
    with pytest.raises(ValueError, match="expected 'random' or 'all'"):
        ImageTextDataset(rows, captions="first")
    with pytest.raises(ValueError, match=r"no column \['captions'\].*load_image_text"):
        ImageTextDataset(rows.remove_columns("captions"))
