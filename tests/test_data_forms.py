"""One data set in every form that people have it in: the same pictures and captions come out of each."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from tiny_pictures import CAPTIONS, NAMES, PAIRS, check, jpeg, write_pictures

from mpclip.data.image_text import load_image_text

pytestmark = pytest.mark.usefixtures("datasets_cache")


def coco(pairs=PAIRS) -> str:
    numbers = {name: 100 + i for i, name in enumerate(NAMES)}
    images = [{"id": number, "file_name": name, "coco_url": "http://x"} for name, number in numbers.items()]
    notes = [{"id": i, "image_id": numbers[name], "caption": caption} for i, (name, caption) in enumerate(pairs)]
    return json.dumps({"info": {}, "images": images, "licenses": [], "annotations": notes})


def karpathy(splits=("train",) * 3, **more) -> str:
    images = [
        {
            "filename": name,
            "split": split,
            "imgid": i,
            "sentids": [i],
            "sentences": [{"raw": c, "tokens": c.split()} for c in row],
        }
        | more
        for i, (name, split, row) in enumerate(zip(NAMES, splits, CAPTIONS, strict=True))
    ]
    return json.dumps({"images": images, "dataset": "flickr8k"})


def csv_of(pairs, header: str) -> str:
    return header + "\n" + "".join(f'{name},"{caption}"\n' for name, caption in pairs)


TOKENS = "".join(f"{name}#{i % 2}\t{caption}\n" for i, (name, caption) in enumerate(PAIRS))
BARS = "image_name| comment_number| comment\n" + "".join(f"{n}| {i % 2}| {c}\n" for i, (n, c) in enumerate(PAIRS))
FILES = {  # name of the file, where the pictures lie from the data set's folder, content
    "captions.csv": (".", csv_of(PAIRS, "image,caption")),
    "captions.txt": ("Images", csv_of(PAIRS, "image,caption")),  # Flickr8k as Kaggle has it
    "captions.tsv": (".", "filename\tcaption\n" + "".join(f"{name}\t{caption}\n" for name, caption in PAIRS)),
    "captions.json": (".", json.dumps(dict(zip(NAMES, CAPTIONS, strict=True)))),
    "captions.jsonl": (".", "".join(json.dumps({"image": n, "text": c}) + "\n" for n, c in PAIRS)),
    "annotations/captions_train2017.json": ("train2017", coco()),
    "captions_train2014.json": ("images/train2014", coco()),
    "dataset_flickr8k.json": ("Flicker8k_Dataset", karpathy()),
    "results.csv": ("flickr30k_images", BARS),
    "results_20130124.token": ("flickr30k-images", TOKENS),
    "Flickr8k.token.txt": ("Flicker8k_Dataset", TOKENS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_opened_by_what_it_is(name, tmp_path):
    folder, content = FILES[name]
    write_pictures(tmp_path / folder)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    check(load_image_text(tmp_path, "train"))
    check(load_image_text(tmp_path / name, "train"))  # given itself
    other = tmp_path / f"other{Path(name).suffix}"
    (tmp_path / name).rename(other)  # its content says what it is
    check(load_image_text(other, "train"))


def test_splits_of_coco_and_flickr8k(tmp_path):
    write_pictures(tmp_path / "coco/val2017")
    (tmp_path / "coco/annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"coco/annotations/captions_{split}2017.json").write_text(coco(PAIRS[:2] if split == "val" else PAIRS))
    with pytest.warns(UserWarning, match=r"2 of 3 rows without a caption: b.jpg \(no caption\), c.jpg"):
        check(load_image_text(tmp_path / "coco", "validation"), CAPTIONS[:1])
    write_pictures(tmp_path / "karpathy/val2014")
    splits = ("train", "restval", "val")
    (tmp_path / "karpathy/dataset_coco.json").write_text(karpathy(splits, filepath="val2014"))
    check(load_image_text(tmp_path / "karpathy", "train"), CAPTIONS[:2])
    assert load_image_text(tmp_path / "karpathy", "validation")["file_name"][:] == ["val2014/c.jpg"]
    write_pictures(tmp_path / "flickr/images")
    (tmp_path / "flickr/Flickr8k.token.txt").write_text(TOKENS)
    (tmp_path / "flickr/Flickr8k.lemma.token.txt").write_text(TOKENS)  # comes with it
    (tmp_path / "flickr/Flickr_8k.devImages.txt").write_text("b.jpg\n")
    with pytest.warns(UserWarning, match="4 of 6 rows have an empty `split` and are in no split: a.jpg, a.jpg, c.jpg"):
        rows = load_image_text(tmp_path / "flickr", "validation")
    assert rows["captions"][:] == [CAPTIONS[1]]


def test_karpathy_files_as_published(tmp_path):
    """COCO's pictures lie in two folders, Flickr30k's in one. Captions end in spaces."""
    write_pictures(tmp_path / "coco/val2014")
    published = json.loads(karpathy(("train", "restval", "test"), filepath="val2014", cocoid=391895))
    for image in published["images"]:
        for sentence in image["sentences"]:
            sentence["raw"] += " "
    published["images"][0]["filepath"] = "train2014"
    (tmp_path / "coco/train2014").mkdir()
    (tmp_path / "coco/val2014/a.jpg").rename(tmp_path / "coco/train2014/a.jpg")
    (tmp_path / "dataset_coco.json").write_text(json.dumps(published))
    rows = load_image_text(tmp_path / "dataset_coco.json", "train", image_folder="coco")
    assert rows["file_name"][:] == ["train2014/a.jpg", "val2014/b.jpg"]  # restval is trained on
    check(rows, [[caption + " " for caption in row] for row in CAPTIONS[:2]])
    with pytest.raises(ValueError, match=r"no split 'val'; splits found in its column `split`: \['test', 'train'\]"):
        load_image_text(tmp_path / "dataset_coco.json", "val", image_folder="coco")
    write_pictures(tmp_path / "flickr30k-images")
    (tmp_path / "dataset_flickr30k.json").write_text(karpathy(("train", "val", "test")))
    for i, split in enumerate(("train", "validation", "test")):
        rows = load_image_text(tmp_path / "dataset_flickr30k.json", split, image_folder="flickr30k-images")
        assert rows["captions"][:] == [CAPTIONS[i]] and rows["file_name"][:] == [NAMES[i]]


def test_lists_of_albef_and_blip(tmp_path):
    """Tests have all captions of a picture in a row, training sets a row per caption."""
    write_pictures(tmp_path / "val2014")
    tested = [{"image": f"val2014/{name}", "caption": row} for name, row in zip(NAMES, CAPTIONS, strict=True)]
    trained = [{"caption": c, "image": f"val2014/{name}", "image_id": f"coco_{name}"} for name, c in PAIRS]
    (tmp_path / "coco_karpathy_test.json").write_text(json.dumps(tested))
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(trained))
    (tmp_path / "coco_karpathy_test_gt.json").write_text(json.dumps({"images": [], "annotations": []}))  # BLIP downloads it
    for split in ("train", "test"):
        check(load_image_text(tmp_path, split))
        check(load_image_text(tmp_path / f"coco_karpathy_{split}.json", split))
    (tmp_path / "dataset_coco.json").write_text(karpathy(filepath="val2014"))  # a file that has all splits is read first
    with pytest.raises(ValueError, match="no split 'test'"):
        load_image_text(tmp_path, "test")
    write_pictures(tmp_path / "f/flickr30k-images")
    (tmp_path / "f/flickr30k_val.json").write_text(json.dumps(tested).replace("val2014", "flickr30k-images"))
    check(load_image_text(tmp_path / "f", "validation"))
    (tmp_path / "f/flickr30k_val.json").write_text(json.dumps([{"image": 1, "caption": ["a"]}]))
    with pytest.raises(ValueError, match=r"flickr30k_val.json, row 1: image is 1, expected the path of an image"):
        load_image_text(tmp_path / "f", "validation")


def test_the_row_of_flickr30k_that_lacks_a_bar(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "results.csv").write_text(BARS.replace("b.jpg| 1| cats", "b.jpg| 1   cats"))
    check(load_image_text(tmp_path, "train"))


# webdataset


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(numbers=range(3), json_files: bool = False) -> dict[str, bytes]:
    """The pictures of these numbers, each with a file of its captions."""
    members = {}
    for i in numbers:
        texts = json.dumps({"url": "http://x", "captions": CAPTIONS[i]}) if json_files else "\n".join(CAPTIONS[i])
        members |= {f"./{i:05}.jpg": jpeg(i), f"./{i:05}.{'json' if json_files else 'txt'}": texts.encode()}
    return members


def test_webdataset_shards(tmp_path):
    write_tar(tmp_path / "data/train-0.tar", shard([0, 1], json_files=True))
    write_tar(tmp_path / "data/train-1.tar", shard([2], json_files=True))
    write_tar(tmp_path / "data/val-0.tar", shard([1], json_files=True))
    for source in (tmp_path / "data", f"{tmp_path}/data/train-*.tar"):
        check(load_image_text(source, "train"))
    assert load_image_text(tmp_path / "data", "train")["file_name"][2] == "train-1.tar/00002.jpg"
    assert len(load_image_text(tmp_path / "data", "validation")) == 1
    write_tar(tmp_path / "data/train-1.tar", shard([0], json_files=True))  # not the cache of what it was
    assert len(load_image_text(tmp_path / "data", "train")) == 2


def test_captions_by_line_in_a_shard(tmp_path):
    tar = write_tar(tmp_path / "0.tar", shard())
    with pytest.raises(ValueError, match=r"3 of 3 captions have a '\\n'.*caption_separator='\\n'"):
        load_image_text(tar, "train")
    check(load_image_text(tar, "train", caption_separator="\\n"))


def clip_benchmark_set(root: Path, kind: str | None = "retrieval") -> Path:
    """A set as clip_benchmark_export_wds writes it: eleven shards of the split `test`, with three pictures in all."""
    for number in range(11):
        members = shard([0 if number < 2 else 1 if number < 10 else 2])
        write_tar(root / f"test/{number}.tar", {name.replace("./0000", "s000000"): x for name, x in members.items()})
    (root / "test/nshards.txt").write_text("11\n")
    (root / "classnames.txt").write_text("not read\n")
    if kind:
        (root / "dataset_type.txt").write_text(f"{kind}\n")
    return root


def test_folders_of_clip_benchmark(tmp_path):
    root = clip_benchmark_set(tmp_path / "wds_flickr")
    write_tar(root / "train/0.tar", shard([0]))
    (root / "train/nshards.txt").write_text("1")
    rows = load_image_text(root, "test")  # shard 10 comes last, and each text has a caption per line
    assert [name.partition("/")[0] for name in rows["file_name"]] == ["0.tar", "2.tar", "10.tar"]
    assert [row[:2] for row in rows["captions"]] == CAPTIONS
    check(load_image_text(root, "train"), CAPTIONS[:1])
    check(load_image_text(root / "train", "train"), CAPTIONS[:1])  # a split on its own
    check(load_image_text(root / "train/0.tar", "train"), CAPTIONS[:1])  # a shard on its own
    whole = load_image_text(root / "train", "train", caption_separator="none")
    check(whole, [["\n".join(CAPTIONS[0])]])
    with pytest.raises(ValueError, match=r"no split 'val'; splits found: \['test', 'train'\]"):
        load_image_text(root, "val")


def test_shards_of_clip_benchmark_that_are_missing(tmp_path):
    root = clip_benchmark_set(tmp_path, kind=None)
    with pytest.raises(ValueError, match=r"captions have a '\\n' in them"):  # nothing says what a line is
        load_image_text(root, "test")
    (root / "test/7.tar").unlink()
    (root / "test/10.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"test lacks 2 of the 11 shards that nshards.txt counts: 7.tar, 10.tar"):
        load_image_text(root, "test")
    (root / "test/nshards.txt").write_text("many")
    with pytest.raises(ValueError, match=r"nshards.txt holds 'many': expected the number of shards"):
        load_image_text(root, "test")


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "x/../../a.jpg"])
def test_members_that_lead_out_of_a_tar_are_refused(name, tmp_path):
    tar = write_tar(tmp_path / "0.tar", {name: jpeg(0), "a.txt": b"a"})
    with pytest.raises(ValueError, match=r"refused the member .* leads out of the tar"):
        load_image_text(tar, "train")


def test_a_caption_column_names_a_file_of_a_shard(tmp_path):
    members = shard([0, 1]) | {"./00000.cls": b"3", "./00001.cls": b"5"}
    tar = write_tar(tmp_path / "0.tar", dict(sorted(members.items())))
    assert load_image_text(tar, "train", caption_column="cls")["captions"][:] == [["3"], ["5"]]


def test_links_in_a_tar_and_damaged_ones_are_refused(tmp_path):
    tar = write_tar(tmp_path / "0.tar", shard())
    with tarfile.open(tar, "a") as opened:
        link = tarfile.TarInfo("9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    with pytest.raises(ValueError, match=r"refused the member '9\.jpg', which is a link"):
        load_image_text(tar, "train")
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"0\.tar is no whole tar file"):
        load_image_text(tar, "train")
    with pytest.raises(ValueError, match=r"00000: a text is not UTF-8 \(.*byte 0xe9"):
        load_image_text(write_tar(tmp_path / "1.tar", {"00000.jpg": jpeg(0), "00000.txt": b"caf\xe9"}), "train")


# Classes, and tables under other names


def test_class_folders(tmp_path):
    for name, folder in zip(NAMES, ("polar_bear", "dog", "dog"), strict=True):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(jpeg(NAMES.index(name)))
    assert len(load_image_text(tmp_path, "train", need_captions=False)) == 3  # an index
    with pytest.raises(ValueError, match=r"no column is named captions.*class_caption='a photo of a {}'.*metadata.csv"):
        load_image_text(tmp_path, "train")
    rows = load_image_text(tmp_path, "train", class_caption="a {}")
    assert sorted(rows["captions"][:]) == [["a dog"], ["a dog"], ["a polar bear"]]
    with pytest.raises(ValueError, match=r"class_caption='a dog' has no {}"):
        load_image_text(tmp_path, "train", class_caption="a dog")
    (tmp_path / "metadata.csv").write_text("file_name,caption,label\ndog/b.jpg,x,dog\n")
    with pytest.raises(ValueError, match="class_caption is for data without captions, but there are some in caption"):
        load_image_text(tmp_path, "train", class_caption="a {}")
    (tmp_path / "metadata.csv").write_text("file_name,label\ndog/b.jpg,big_dog\n")
    assert load_image_text(tmp_path, "train", class_caption="a {}")["captions"][:] == [["a big dog"]]
    (tmp_path / "metadata.csv").write_text("file_name,label\ndog/b.jpg,7\n")
    with pytest.raises(ValueError, match="column 'label' has 7, but class_caption needs names"):
        load_image_text(tmp_path, "train", class_caption="a {}")


def test_a_table_under_another_name_is_pointed_to(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "my_labels.csv").write_text(csv_of(PAIRS, "image,caption"))
    with pytest.raises(ValueError, match=r"my_labels.csv names its pictures, give that file as the data set"):
        load_image_text(tmp_path, "train")
    check(load_image_text(tmp_path / "my_labels.csv", "train"))


def test_two_folders_with_the_same_names(tmp_path):
    for folder in ("images", "thumbnails"):
        write_pictures(tmp_path / folder)
    write_pictures(tmp_path.parent / f"{tmp_path.name}_elsewhere")
    (tmp_path / "captions.csv").write_text(csv_of(PAIRS, "image,caption"))
    with pytest.raises(ValueError, match=r"several folders: .*images, .*thumbnails. Set image_folder"):
        load_image_text(tmp_path, "train")
    check(load_image_text(tmp_path, "train", image_folder="images"))
    check(load_image_text(tmp_path, "train", image_folder=f"{tmp_path}_elsewhere"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "captions.csv").rename(tmp_path / "annotations/captions.csv")
    check(load_image_text(tmp_path, "train", image_folder="images"))
    with pytest.raises(FileNotFoundError, match=r"no folder pictures \(image_folder\)"):
        load_image_text(tmp_path, "train", image_folder="pictures")


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("captions.json", '{"images": [], "annotations": [{"bbox": [1]}]}', r"annotation 1: expected image_id and caption"),
        ("captions.json", '{"images": [{"id": 1}], "annotations": []}', r"image 1: expected id and file_name, found"),
        ("captions.json", '{"a": {"b": 1}}', r"found .* Expected a list of objects"),
        ("captions.json", "3", r"captions.json: found '3'. Expected a list of objects"),
        ("captions.json", "{}", r"captions.json has no rows"),
        ("captions.json", "[" * 100_000, r"captions.json: not JSON that can be read"),
        ("captions.json", '[\n{"a": 1}\n', r"captions.json, line 3: not JSON"),
        ("dataset_x.json", '{"images": [{"sentences": []}]}', r"image 1: expected `filename`, found \['sentences'\]"),
        ("results.csv", BARS + "broken\n", r"results.csv, line 8: found 'broken', expected a picture"),
        ("captions.csv", "image,caption\n", r"captions.csv has no rows"),
        ("captions.csv", csv_of(PAIRS, "image,words"), r"it has \['words'\]. Set caption_column"),
    ],
)
def test_faults_are_named_with_file_and_place(name, content, told, tmp_path):
    write_pictures(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        load_image_text(tmp_path, "train")


@pytest.mark.parametrize(
    "form", ["captions.csv", "annotations/captions_train2017.json", "dataset_x.json", "Flickr8k.token.txt"]
)
def test_no_form_leads_out_of_the_folder(form, tmp_path):
    write_pictures(tmp_path / "set/images")
    write_pictures(tmp_path)
    content = {
        "captions.csv": csv_of(PAIRS, "image,caption"),
        "annotations/captions_train2017.json": coco(),
        "dataset_x.json": karpathy(),
        "Flickr8k.token.txt": TOKENS,
    }[form]
    (tmp_path / "set" / form).parent.mkdir(exist_ok=True)
    for place in ("../", f"{tmp_path}/"):
        (tmp_path / "set" / form).write_text(content.replace("b.jpg", f"{place}b.jpg"))
        with pytest.raises(ValueError, match=r"row \d: refused .*b.jpg"):
            load_image_text(tmp_path / "set", "train")
