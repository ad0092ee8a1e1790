"""Published sets of right and wrong texts, each as a tiny file of the published form, and what is wrong with a file."""

import csv
import json

import datasets
import pytest
from PIL import Image

from mpclip.data.composition.choices import Choice
from mpclip.data.composition.pictures import load_choices
from mpclip.data.image_text import load_image_text
from mpclip.data.skipped import count_skipped


@pytest.fixture
def pictures(tmp_path):
    """A folder with 0.jpg to 3.jpg."""
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (8 + i, 8), (60 * i, 0, 0)).save(tmp_path / f"pictures/{i}.jpg")
    return str(tmp_path / "pictures")


def write_json(file, content) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return str(file)


def texts(choice_set) -> list[tuple]:
    return [(choice.kind, choice.right, choice.wrong) for choice in choice_set.choices]


def sizes(choice_set) -> list[int]:
    """The width of each choice's picture, by which it is known."""
    return [choice_set.pictures[choice.picture]["image"].width for choice in choice_set.choices]


def test_sugarcrepe(tmp_path, pictures):
    row = {"filename": "1.jpg", "caption": "a white cat", "negative_caption": "a black cat"}
    write_json(tmp_path / "data/swap_att.json", {"0": row, "1": row | {"filename": "0.jpg"}})
    write_json(tmp_path / "data/add_obj.json", {"0": row | {"negative_caption": "a white cat and a dog"}})
    (tmp_path / "data/notes.csv").write_text("a,b\n1,2\n")
    with pytest.warns(UserWarning, match=r"notes\.csv are of no known form"):
        both = load_choices(tmp_path / "data", "all", image_folder=pictures)
    assert both.kinds == {"add_obj": 1, "swap_att": 2} and sizes(both) == [9, 9, 8] and both.units == [0, 0, 1]
    one = load_choices(tmp_path / "data/swap_att.json", "swap_att", limit=1, image_folder=pictures)
    assert texts(one) == [("swap_att", "a white cat", ("a black cat",))] and len(one.pictures) == 1
    with pytest.raises(ValueError, match=r"no split 'swap'; it has 'all', or one of its kinds: swap_att"):
        load_choices(tmp_path / "data/swap_att.json", "swap", image_folder=pictures)


def test_valse_leaves_out_what_annotators_doubt(tmp_path, pictures):
    def row(votes: int) -> dict:
        seen = {"foil": 3 - votes, "caption": votes, "other": 0}
        return {"image_file": f"{votes}.jpg", "caption": "There are no people.", "foil": "There are people.", "mturk": seen}

    file = write_json(tmp_path / "data/existence.json", {f"id_{votes}": row(votes) for votes in range(4)})
    with count_skipped() as skipped:
        found = load_choices(file, "test", image_folder=pictures)
    assert skipped == {"choices found right by fewer than two annotators": 2}
    assert sizes(found) == [10, 11] and texts(found)[0] == ("existence", "There are no people.", ("There are people.",))


def test_aro(tmp_path, pictures):
    row = {
        "image_path": "2.jpg",
        "true_caption": "the horse is eating the grass",
        "false_caption": "the grass is eating the horse",
    }
    row |= {"relation_name": "eating", "bbox_x": 1, "bbox_y": 2, "bbox_w": 3, "bbox_h": 4}
    file = write_json(tmp_path / "pictures/visual_genome_relation.json", [row])
    found = load_choices(file, "all")
    assert found.choices == [Choice("relation", 0, row["true_caption"], (row["false_caption"],), (1, 2, 4, 6))]
    assert found.boxes == [(1, 2, 4, 6)]


WINOGROUND = {"caption_0": "an old man kisses a young one", "caption_1": "a young man kisses an old one"}


def check_winoground(found):
    assert found.paired and found.units == [0, 0, 1, 1] and sizes(found) == [8, 9, 10, 11]
    assert found.choices[1].right == WINOGROUND["caption_1"] and found.choices[1].wrong == (WINOGROUND["caption_0"],)


def test_winoground_with_files(tmp_path, pictures):
    lines = [{"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", **WINOGROUND} for i in range(2)]
    for i in range(4):
        Image.new("RGB", (8 + i, 8)).save(tmp_path / f"pictures/ex_{i // 2}_img_{i % 2}.png")
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    check_winoground(load_choices(tmp_path / "examples.jsonl", "test"))
    assert len(load_choices(tmp_path / "examples.jsonl", "test", limit=1).choices) == 2
    (tmp_path / "pictures/ex_0_img_1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="1 of 4 pictures cannot be read.* 2 choices are left out"):
        found = load_choices(tmp_path / "examples.jsonl", "test")
    assert sizes(found) == [10, 11] and found.units == [0, 0]  # the pair goes as a whole


def test_winoground_as_a_table(tmp_path):
    images = [[Image.new("RGB", (8 + 2 * i + j, 8)) for i in range(2)] for j in range(2)]
    table = {"image_0": images[0], "image_1": images[1], **{name: [text] * 2 for name, text in WINOGROUND.items()}}
    datasets.DatasetDict(test=datasets.Dataset.from_dict(table)).save_to_disk(tmp_path / "saved")
    check_winoground(load_choices(tmp_path / "saved", "test"))
    with pytest.raises(ValueError, match=r"no split 'all'; splits found: \['test'\]"):
        load_choices(tmp_path / "saved", "all")
    datasets.Dataset.from_dict({"image": images[0]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="not image_0, image_1, caption_0, caption_1"):
        load_choices(tmp_path / "train.parquet", "train")


def test_negbench(tmp_path, pictures):
    """Paths as they are in the authors' checkout; four answers; the kind is the template."""
    head = ["", "image_path", "correct_answer", "caption_0", "caption_1", "caption_2", "caption_3", "correct_answer_template"]
    rows = [
        [0, "data/coco/val2017/3.jpg", 2, "a dog", "no cat", "a cat but no dog", "a cat and a dog", "hybrid"],
        [1, "data/coco/val2017/1.jpg", 0, "a cat, asleep", "no cat", "a dog but no cat", "a dog", "positive"],
    ]
    with open(tmp_path / "mcq.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    found = load_choices(tmp_path / "mcq.csv", "all", image_folder=pictures)
    assert texts(found)[0] == ("hybrid", "a cat but no dog", ("a dog", "no cat", "a cat and a dog"))
    assert found.kinds == {"hybrid": 1, "positive": 1} and sizes(found) == [11, 9]
    # Two answers, as in CheXpert's; a row without a template is known by the file.
    (tmp_path / "binary.csv").write_text("image_path,caption_0,caption_1,correct_answer\n0.jpg,ill,not ill,1\n")
    assert texts(load_choices(tmp_path / "binary.csv", "all", image_folder=pictures)) == [("binary", "not ill", ("ill",))]


def test_retrieval_csv_of_negbench_is_data_of_retrieval(tmp_path, pictures):
    """Its captions are a Python list, as text. It is read, never run."""
    with open(tmp_path / "retrieval.csv", "w", newline="") as file:
        lists = [repr(["a cat, but no dog", 'the "cat"']), "['There is no dog.']", "[__import__('os').getcwd()]"]
        csv.writer(file).writerows([["filepath", "captions"], *([f"{i}.jpg", captions] for i, captions in enumerate(lists))])
    rows = load_image_text(tmp_path / "retrieval.csv", "train", image_folder=pictures)
    assert rows["captions"][:2] == [["a cat, but no dog", 'the "cat"'], ["There is no dog."]]
    assert rows["captions"][2] == ["[__import__('os').getcwd()]"]


def test_faults_are_named(tmp_path, pictures):
    good = {"filename": "0.jpg", "caption": "a cat", "negative_caption": "a dog"}

    def refused(content, message: str, **reading):
        file = write_json(tmp_path / "data/swap.json", content)
        with pytest.raises((ValueError, OSError), match=message):
            load_choices(file, "all", **{"image_folder": pictures, **reading})

    refused({"0": {"a": 1}}, r"swap\.json begins with .*'a': 1.*: expected SugarCrepe, VALSE")
    refused([], "has no rows: expected SugarCrepe")
    refused(3, "has no rows")
    refused([1, good], "begins with '1'")
    refused([good, "x"], "row 2: found 'x', expected an object")
    refused({"0": good | {"filename": None}}, "row 0: the picture is None, expected the name of its file")
    refused({"0": good, "1": {"filename": "1.jpg", "caption": "x"}}, r"row 1: there is no 'negative_caption'")
    refused({"0": good, "7": good | {"negative_caption": ""}}, r"row 7: a text is ''")
    refused({"0": good | {"negative_caption": "a cat"}}, "is the right text and a wrong one")
    refused({"0": good}, r"none of its first pictures, such as '0\.jpg', is in .*data", image_folder=str(tmp_path / "data"))
    refused({"0": good}, "no folder nowhere", image_folder="nowhere")
    refused({"0": good, "1": good | {"filename": "9.jpg"}}, r"9\.jpg \(no such file\)", bad_images="fail")
    refused({"0": good, "1": good | {"filename": "../../secret.jpg"}}, "must lie within")
    (tmp_path / "own.jsonl").write_text('{"file_name": "0.jpg", "kind": "accuracy", "right": "a", "wrong": ["b"]}\n')
    with pytest.raises(ValueError, match=r"own\.jsonl, row 1: the kind is 'accuracy'"):
        load_choices(tmp_path / "own.jsonl", "all", image_folder=pictures)
    with pytest.raises(FileNotFoundError, match=r"nothing at .*none\.json"):
        load_choices(tmp_path / "none.json", "all")
    with pytest.raises(ValueError, match=r"no file of a known form among \[\]"):
        load_choices(pictures, "all")
    (tmp_path / "mcq.csv").write_text("image_path,caption_0,caption_1,correct_answer\n0.jpg,a,b,2\n")
    with pytest.raises(ValueError, match=r"mcq\.csv, row 1: correct_answer is 2, expected the number of a caption: 0, 1"):
        load_choices(tmp_path / "mcq.csv", "all", image_folder=pictures)


def test_pictures_that_are_missing_are_counted(tmp_path, pictures):
    good = {"filename": "0.jpg", "caption": "a cat", "negative_caption": "a dog"}
    rows = {str(i): good | {"filename": name} for i, name in enumerate(["9.jpg", "1.jpg", "9.jpg", "3.jpg"])}
    file = write_json(tmp_path / "data/swap.json", rows)
    message = r"1 of 3 pictures cannot be read: 9\.jpg \(no such file\)\. Their 2 choices are left out"
    with pytest.warns(UserWarning, match=message), count_skipped() as skipped:
        found = load_choices(file, "all", image_folder=pictures)
    assert sizes(found) == [9, 11] and found.units == [0, 1] and len(found.pictures) == 2
    assert skipped == {"choices with a picture that cannot be read": 2}
