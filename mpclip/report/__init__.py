"""A report on a model: one HTML file with what it finds, what each prompt adds, where it fails and what it costs.

__main__.py    the command: its options and stages
prompts.py     what each prompt finds alone; where prompts disagree; aspect weights
failures.py    captions that find a wrong picture, and what differs between both
cost.py        parameters, bytes of an embedding, time to embed on this machine
charts.py      charts as SVG
pictures.py    thumbnails and maps as parts of the page
page.py        the page, of page.html
"""
