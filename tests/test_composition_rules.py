"""Wrong texts by rules: what each rule changes, that scenes' texts are false of them, what captions forbid."""

import json
import os
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from eval.tasks.composition import measure
from mpclip.data.composition.__main__ import main
from mpclip.data.composition.absences import absences
from mpclip.data.composition.build import KINDS, build_choices
from mpclip.data.composition.caption_rules import (
    RULES,
    insert_negation,
    replace_thing,
    reverse_relation,
    swap_colours,
    things_possible,
    things_shown,
)
from mpclip.data.composition.pictures import load_choices
from mpclip.data.composition.scene_rules import texts_of_scene
from mpclip.data.composition.sentences import negated, with_word, words_of
from mpclip.data.composition.words import COLOURED, THINGS
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji.generate import generate_scenes


def applied(rule, *captions: str, seed: int = 0) -> str | None:
    """The rule on the first of a picture's captions."""
    said = {word for caption in captions for word in words_of(caption)}
    return rule(captions[0], captions, said, random.Random(seed))


def test_colours_swap_their_nouns():
    assert applied(swap_colours, "A man in an orange hat and a blue shirt .") == "A man in a blue hat and an orange shirt ."
    assert applied(swap_colours, "A black dog with a red soccer ball") == "A red dog with a black soccer ball"
    assert applied(swap_colours, "A black dog and a black cat") is None
    assert applied(swap_colours, "A black dog and a white dog") is None  # the same picture in other words
    assert applied(swap_colours, "A grey dog with a gray ball") is None
    assert applied(swap_colours, "A red hat and navy blue pants") is None
    assert applied(swap_colours, "A black and white dog with a red ball") is None  # which colour is it?
    # Another caption gives the dog the other colour, or calls it something else.
    assert applied(swap_colours, "A brown dog with a red ball", "A large red puppy runs") is None
    assert applied(swap_colours, "A brown dog with a red ball", "A brown-red puppy runs") is None
    assert applied(swap_colours, "A brown dog with a red ball", "A red cap") == "A red dog with a brown ball"


def test_relations_become_their_opposite():
    assert applied(reverse_relation, "A dog jumps over a log .") == "A dog jumps under a log ."
    assert applied(reverse_relation, "A man in front of a bus") == "A man behind a bus"
    assert applied(reverse_relation, "A man climbs up a steep hill") == "A man climbs down a steep hill"
    assert applied(reverse_relation, "A dressed up man stands up") is None
    assert applied(reverse_relation, "A dog jumps into the air") is None
    assert applied(reverse_relation, "A man looks into the distance") is None
    assert applied(reverse_relation, "A dog jumps over a log", "A dog ducks beneath a log") is None


def test_things_become_others_of_their_kind():
    found = {applied(replace_thing, "A dog on a couch", seed=seed) for seed in range(40)}
    assert {"A cat on a couch", "An elephant on a couch"} < found and not any("dog" in text for text in found)
    # What a caption has evidence of is no replacement; nor is a thing replaced that is a part of something else.
    others = {applied(replace_thing, "A dog on a couch", "A kitten and ponies", seed=seed) for seed in range(40)}
    assert not {"A cat on a couch", "A horse on a couch"} & others
    assert applied(replace_thing, "A dog on a couch", "Some animals") is None
    assert applied(replace_thing, "A soccer ball in a dog house") is None
    assert applied(replace_thing, "A man on a hill") in ("A woman on a hill", "A girl on a hill")
    assert applied(replace_thing, "A man on a hill", "A crowd of people") is None
    assert applied(replace_thing, "A man washes his hands") is None


def test_negations_are_inserted():
    assert negated("A dog is running") == "A dog is not running"
    assert negated("A dog with a hat is running") == "A dog with a hat is not running"
    assert negated("A man wearing an orange hat") == "A man wearing no orange hat"
    assert negated("There is a dog, and it is large") == "There is no dog, and it is large"
    assert negated("There is just a dog") == "There is no dog"
    assert negated("A dog without a hat is there") is None and negated("A dog runs") is None
    assert applied(insert_negation, "A dog is running", "Two dogs are running") is None  # one of them may not be
    assert applied(insert_negation, "A dog is running", "A dog runs") == "A dog is not running"


def test_articles_fit_the_new_word():
    assert with_word("a dog", 2, 5, "elephant") == "an elephant" and with_word("An orange hat", 3, 9, "blue") == "A blue hat"
    assert with_word("Dog runs", 0, 3, "elephant") == "Elephant runs"


def test_absences_are_balanced():
    """Each text is right of one picture and wrong of another; nothing that a picture may show is called absent."""
    shown = [["dog"], ["cat"], ["dog", "man"], ["guitar"], ["dog"], []]
    possible = [["dog"], ["cat", "guitar"], ["dog", "man", "guitar"], ["guitar"], ["dog"], ["dog"]]
    for seed in range(20):
        made = absences(shown, possible, seed)
        assert sorted(right for right, _ in made.values()) == sorted(wrong for _, wrong in made.values()) and len(made) >= 2
        for row, (right, wrong) in made.items():
            assert any(name in wrong for name in shown[row]) and not any(name in right for name in possible[row])
    assert absences([["dog"], ["dog"]], [["dog"], ["dog"]], 0) == {}
    assert "an elephant" in str([absences([["elephant"], ["cat"]], [["elephant"], ["cat"]], seed) for seed in range(9)])


def test_what_captions_show_and_what_they_leave_possible():
    captions = ["A dog runs", "The dogs on grass", "A brown puppy with a toy"]
    assert things_shown(captions) == ["dog"] and things_shown(captions[:1]) == []  # one may be mistaken
    assert things_possible(captions) == ["dog", "ball", "frisbee", "balloon"]
    assert {"cat", "horse"} < set(things_possible(["An animal"])) and "guitar" not in things_possible(["An animal"])


def test_word_lists():
    for thing in THINGS:
        assert thing.name in thing.evidence and thing.kind and len(thing.evidence) > 2
    assert all(noun in group for noun, group in COLOURED.items())


# Scenes


def scenes_rows() -> datasets.Dataset:
    scenes = generate_scenes({"test": 60}, captions_per_scene=2)
    cells = {"captions": [list(scene.captions) for scene in scenes], "scene": [scene.structure() for scene in scenes]}
    return datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * len(scenes), **cells})


def test_texts_of_scenes_are_false_of_them():
    rows = scenes_rows()
    seen = set()
    for number, scene in enumerate(rows["scene"]):
        names = [thing["name"] for thing in scene["objects"]]
        made = texts_of_scene(scene, random.Random(number))
        seen |= made.keys()
        for kind, (right, wrong) in made.items():
            assert right != wrong, kind
        if pair := made.get("replace_object"):
            (gone,) = [name for name in names if name not in pair[1]] or [None]
            assert all(name in pair[0] for name in names) and gone
        if pair := made.get("swap_relation"):
            assert set(words_of(pair[0])) == set(words_of(pair[1])) and len(names) > 1  # the same words in another order
        if pair := made.get("swap_attribute"):
            assert len({thing["size"] for thing in scene["objects"]}) == 2
            assert len(words_of(pair[0])) == len(words_of(pair[1]))
    assert seen == set(RULES)


def test_a_built_set_is_repeatable_and_counted():
    rows = scenes_rows()
    built = build_choices(rows, seed=1)
    assert built.choices == build_choices(rows, seed=1).choices != build_choices(rows, seed=2).choices
    assert list(built.kinds) == list(KINDS) and built.units == [choice.picture for choice in built.choices]
    assert all(count <= len(rows) for count in built.kinds.values())
    # A judge of texts alone gets half of what is absent right, whatever it prefers.
    texts = [text for choice in built.choices for text in (choice.right, *choice.wrong)]
    by_text = np.asarray([random.Random(text).random() for text in texts])
    assert measure(built, {"": by_text}).metrics["absent_object"] == 50
    with pytest.raises(ValueError, match="no rule applies to the captions of these 1 pictures, such as 'grass'"):
        build_choices(datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))], "captions": [["grass"]]}))


def test_the_command_writes_what_eval_reads(tmp_path, capsys):
    with open(tmp_path / "metadata.jsonl", "w") as file:
        for i, captions in enumerate([["a black dog with a red ball is here", "the dog"], ["a cat is here", "a cat"]]):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "captions": captions}) + "\n")
    out = tmp_path / "choices.jsonl"
    with pytest.warns(UserWarning, match="no picture of 2 has a text of the kinds swap_relation"):
        main(["--from", str(tmp_path), "--split", "train", "--out", str(out)])
    assert "1 swap_attribute, 2 replace_object" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="swap_relation"):
        built = build_choices(load_image_text(tmp_path, "train"))
    read = load_choices(out, "all")
    assert [(c.kind, c.right, c.wrong) for c in read.choices] == [(c.kind, c.right, c.wrong) for c in built.choices]
    with pytest.raises(SystemExit, match=r"^python -m mpclip.data.composition: .* has no split 'dev'"):
        main(["--from", str(tmp_path), "--split", "dev", "--out", str(out)])


def test_real_captions():
    """On Flickr8k, each kind has texts, and no wrong text stands among the picture's captions."""
    given = os.environ.get("MPCLIP_SHARED_DATA")
    places = [Path(given)] if given else [parent / "shared/data" for parent in Path(__file__).resolve().parents]
    folder = next((place / "flickr8k" for place in places if (place / "flickr8k").is_dir()), None)
    if folder is None:
        pytest.skip("flickr8k is not there: put it in shared/data beside the repository, or set MPCLIP_SHARED_DATA")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:600]]
    rows = datasets.Dataset.from_dict({"image": [None] * len(lines), "captions": [line["captions"] for line in lines]})
    built = build_choices(rows)
    assert list(built.kinds) == list(KINDS) and min(built.kinds.values()) > 10
    for choice in built.choices:
        assert choice.wrong[0] not in lines[choice.picture]["captions"]
        if choice.kind != "absent_object":
            assert choice.right in lines[choice.picture]["captions"]
