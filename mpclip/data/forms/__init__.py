"""A module per form of data set: what names the pictures and their captions, and how it is read.

listing.py         what all files that name pictures have in common: a `Listing`, and how it becomes a table
delimited.py       metadata.csv, captions.csv, .tsv, .txt with a header
json_rows.py       metadata.jsonl, and a JSON list (as ALBEF and BLIP have it) or mapping of pictures
coco.py            COCO's captions_train2017.json
karpathy.py        Karpathy's dataset_flickr8k.json, dataset_coco.json
flickr.py          Flickr8k.token.txt, results_20130124.token, results.csv of Flickr30k
tars.py            webdataset shards
clip_benchmark.py  the folders in which CLIP_benchmark keeps its shards
saved.py           parquet, `Dataset.save_to_disk`, what `datasets.load_dataset` opens
text_files.py      the text of a file, in whatever encoding says itself
"""
