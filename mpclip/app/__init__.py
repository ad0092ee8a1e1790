"""The app: search a collection of pictures in a browser, see where prompts look, classify a picture.

    opened = open_collections(["runs/demo/multi_prompt"], "photos")   collection.py   models, each with an index of the pictures
    hits = find(opened[0], "a street", weights=[1, 2, 1])             actions.py      what the controls do, as plain functions
    page = build_page(opened)                                         page.py         the controls (Gradio)
    serve(page)                                                       server.py       the server and its limits

uploads.py reads what visitors send. guard.py refuses requests that would make the server read elsewhere. space.py writes the
folder of a Hugging Face Space.
"""

MOST_MODELS = 2  # side by side
