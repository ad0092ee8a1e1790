"""Composition and negation: pictures with a right text and wrong texts, read as published or built by rules.

choices.py         a choice: a picture, its right text, its wrong texts; and a set of choices
published.py       the files of SugarCrepe, VALSE, ARO, Winoground and NegBench, and our own JSONL
pictures.py        the pictures that such files name
build.py           sets built from pictures with captions, by the rules of
scene_rules.py     OpenMoji scenes, whose descriptions are exact
caption_rules.py   captions written by people, by the word lists of words.py
sentences.py       changes of a sentence that both use
absences.py        what a picture does not show, balanced over pairs of pictures

    python -m mpclip.data.composition --from data/flickr8k --split "validation[50%:]" --out choices.jsonl

writes a built set for reading, editing and publishing. `python -m eval composition` measures models.
"""
