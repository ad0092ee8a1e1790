"""Pictures with class labels: where the label is found, which name it gets, what is refused or left out."""

import json
import warnings

import datasets
import pytest
from PIL import Image
from shared_data import shared_data

from mpclip.data.labelled import load_labelled, read_class_names

LABELS = ["dog", "cat", "dog", "sea_lion", "cat", "dog"]


def write_pictures(folder, count):
    """0.png, 1.png, ..., all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (12, 8), (40 * i, 100, 200)).save(folder / f"{i}.png")
    return folder


def write_table(folder, labels, column="label"):
    lines = [f"{i}.png,{label}" for i, label in enumerate(labels)]
    (write_pictures(folder, len(labels)) / "metadata.csv").write_text("\n".join([f"file_name,{column}", *lines]) + "\n")
    return folder


def write_names(tmp_path, content) -> str:
    file = tmp_path / ("names.txt" if isinstance(content, str) else "names.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def found(data) -> list[str]:
    """The name of each picture's class."""
    assert len(data.rows) == len(data.labels) and data.labels.dtype == "int64"
    return [data.classes[label] for label in data.labels]


# Where labels come from


def test_a_table(tmp_path):
    data = load_labelled(write_table(tmp_path, LABELS), "train")
    assert data.classes == ["cat", "dog", "sea lion"]
    assert found(data) == ["dog", "cat", "dog", "sea lion", "cat", "dog"]
    assert [image.getpixel((0, 0))[0] for image in data.rows["image"]] == [0, 40, 80, 120, 160, 200]


def test_class_folders(tmp_path, datasets_cache):
    for i, label in enumerate(LABELS):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.new("RGB", (12, 8), (40 * i, 0, 0)).save(tmp_path / label / f"{i}.png")
    data = load_labelled(tmp_path, "train")
    assert sorted(zip([image.getpixel((0, 0))[0] for image in data.rows["image"]], found(data), strict=True)) == [
        (0, "dog"),
        (40, "cat"),
        (80, "dog"),
        (120, "sea lion"),
        (160, "cat"),
        (200, "dog"),
    ]


def test_a_saved_table_with_a_class_column_of_any_name(tmp_path):
    feature = datasets.ClassLabel(names=["n01", "n02", "n03"])
    rows = datasets.Dataset.from_dict(
        {"img": [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)], "fine_label": [2, 0, 2, -1]},
        features=datasets.Features({"img": datasets.Image(), "fine_label": feature}),
    )
    rows.save_to_disk(tmp_path / "data")
    with pytest.warns(UserWarning, match=r"1 of 4 rows without a label: .*They are left out"):
        data = load_labelled(tmp_path / "data", "train")
    assert data.classes == ["n01", "n02", "n03"] and found(data) == ["n03", "n01", "n03"]
    with pytest.raises(ValueError, match="1 of 4 rows without a label"):
        load_labelled(tmp_path / "data", "train", bad_images="fail")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # By number, as in a config's id2label, or by the label itself; not in silence by the order of a list.
        names = write_names(tmp_path, {"0": "tench", "1": "shark", "2": "hen", "3": "owl"})
        assert found(load_labelled(tmp_path / "data", "train", classes=names)) == ["hen", "tench", "hen"]
        names = write_names(tmp_path, {"n03": "hen", "n01": "tench"})
        assert found(load_labelled(tmp_path / "data", "train", classes=names)) == ["hen", "tench", "hen"]
        with pytest.raises(ValueError, match=r"none for 2 of the 2 labels .*'n01', 'n03'.* JSON mapping"):
            load_labelled(tmp_path / "data", "train", classes=write_names(tmp_path, "tench\nshark\nhen\n"))


def test_numbers_need_names(tmp_path):
    folder = write_table(tmp_path / "data", [1, 0, 2])
    with pytest.raises(ValueError, match=r"holds numbers, such as 0\. Give their names: a file for --classes"):
        load_labelled(folder, "train")
    data = load_labelled(folder, "train", classes=write_names(tmp_path, "tench\nwhite shark\nhen\nowl\n\n"))
    assert data.classes == ["tench", "white shark", "hen", "owl"] and found(data) == ["white shark", "tench", "hen"]
    with pytest.raises(ValueError, match="has 2 names, such as 'tench', and none for 1 of the 3 labels"):
        load_labelled(folder, "train", classes=write_names(tmp_path, ["tench", "shark"]))


def test_folders_of_digits_are_numbers_not_places(tmp_path, datasets_cache):
    """`datasets` sorts them as text: 0, 10, 2."""
    for label in (0, 2, 10):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (4, 4), (label, 0, 0)).save(tmp_path / str(label) / "x.png")
    names = write_names(tmp_path.parent, [f"name {i}" for i in range(11)])
    data = load_labelled(tmp_path, "train", classes=names)
    pixels = [image.getpixel((0, 0))[0] for image in data.rows["image"]]
    assert found(data) == [f"name {pixel}" for pixel in pixels] and set(pixels) == {0, 2, 10}


def test_the_label_column_is_given_or_found(tmp_path):
    folder = write_table(tmp_path, LABELS, column="animal")
    with pytest.raises(ValueError, match=r"no column is named label, class, category; it has .*'animal'.*label_column"):
        load_labelled(folder, "train")
    with pytest.raises(ValueError, match="no column 'kind'"):
        load_labelled(folder, "train", label_column="kind")
    assert found(load_labelled(folder, "train", label_column="animal"))[3] == "sea lion"


# Names


def test_names_are_matched_with_labels_of_text(tmp_path):
    folder = write_table(tmp_path / "data", LABELS)
    data = load_labelled(folder, "train", classes=write_names(tmp_path, "Sea Lion\nDog\nwolf\nCat\n"))
    assert data.classes == ["Sea Lion", "Dog", "wolf", "Cat"]
    assert found(data) == ["Dog", "Cat", "Dog", "Sea Lion", "Cat", "Dog"]
    mapping = {"dog": "a young dog", "cat": "kitten", "sea_lion": "seal"}
    assert found(load_labelled(folder, "train", classes=write_names(tmp_path, mapping)))[:2] == ["a young dog", "kitten"]
    with pytest.raises(ValueError, match=r"has 2 names, such as 'dog', and none for 1 of the 3 labels in .*: 'sea_lion'"):
        load_labelled(folder, "train", classes=write_names(tmp_path, ["dog", "cat"]))
    with pytest.warns(UserWarning, match=r"several classes have one name \(pet\)"):
        load_labelled(folder, "train", classes=write_names(tmp_path, ["dog", "cat", "sea lion", "pet", "pet"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["dog", ""], "the class name of 2 is ''"),
        ("dog\n\ncat\n", "the class name of 2 is ''"),
        ({"a": 1, "b": "x"}, "the class name of 'a' is 1"),
        (["dog"], "at least two class names"),
        (7, "at least two class names"),
    ],
)
def test_files_that_hold_no_names(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_class_names(write_names(tmp_path, content))
    (tmp_path / "names.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_class_names(tmp_path / "names.json")
    with pytest.raises(FileNotFoundError, match="expected class names, one per line"):
        read_class_names(tmp_path / "nowhere.txt")


def test_one_class_is_no_classification(tmp_path):
    with pytest.raises(ValueError, match="has one class, 'dog'"):
        load_labelled(write_table(tmp_path, ["dog", "dog"]), "train")
    with pytest.raises(ValueError, match="no row has a label"):
        load_labelled(write_table(tmp_path, ["", ""]), "train")


# What is measured


def test_a_part_is_classified_among_all_classes(tmp_path):
    folder = write_table(tmp_path, LABELS)
    assert load_labelled(folder, "train", limit=2).classes == ["cat", "dog", "sea lion"]
    part = load_labelled(folder, "train[:50%]")
    assert len(part.rows) == 3 and part.classes == ["cat", "dog", "sea lion"]
    with pytest.raises(ValueError, match="limit=0"):
        load_labelled(folder, "train", limit=0)


def test_pictures_that_are_left_out_are_named(tmp_path):
    folder = write_table(tmp_path, [*LABELS, "dog", ""])
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes())  # a dog and a cat
    (folder / "2.png").write_bytes((folder / "5.png").read_bytes())  # a dog twice: one picture
    (folder / "6.png").write_text("no picture")
    with pytest.warns(UserWarning) as told:
        data = load_labelled(folder, "train")
    messages = [str(warning.message) for warning in told]
    for message in (
        "1 of 6 rows without a label: 7.png",
        "1 of 6 rows of one picture with several classes: 0.png (cat and dog)",
        "1 of 6 rows with an image that cannot be decoded: 6.png",
    ):
        assert any(message in text for text in messages), messages
    names = write_names(tmp_path.parent, {"dog": "pet", "cat": "pet", "sea_lion": "seal", "owl": "owl"})
    with pytest.warns(UserWarning):
        pets = load_labelled(folder, "train", classes=names)
    assert pets.rows["file_name"][:] == ["0.png", "2.png", "3.png", "4.png"]
    assert pets.classes == ["pet", "seal", "owl"] and found(pets) == ["pet", "pet", "seal", "pet"]
    assert data.rows["file_name"][:] == ["2.png", "3.png", "4.png"] and found(data) == ["dog", "sea lion", "cat"]
    with (
        pytest.warns(UserWarning, match="2 files show a picture"),
        pytest.raises(ValueError, match=r"label: 7.png .*bad_images='skip'"),
    ):
        load_labelled(folder, "train", bad_images="fail")


def test_no_picture_is_left(tmp_path):
    folder = write_table(tmp_path, ["dog", "cat"])
    for i in range(2):
        (folder / f"{i}.png").write_text("no picture" + i * ".")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of its 2 rows can be used"):
        load_labelled(folder, "train")


def test_cifar10():
    data = load_labelled(shared_data("cifar10"), "train[190:210]")
    assert len(data.classes) == 10 and found(data) == ["airplane"] * 10 + ["automobile"] * 10
