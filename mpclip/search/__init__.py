"""Search in collections of pictures: embed them once, keep the vectors in a store, find them by text or by picture.

    encoder = QueryEncoder("you/your-model")            queries.py    a checkpoint: pictures, texts -> vectors
    pictures = open_pictures("photos")                  pictures.py   a folder or a data set: what there is to embed
    build_index("you/your-model", "photos", "idx")      build.py      pictures -> chunks -> store
    build_from_embeddings("you/your-model", "emb", "idx")   from_embeddings.py   files of `mpclip embed` -> chunks -> store
    index = PictureIndex("idx", encoder)                search.py     queries -> hits
    write_page([...], "results.html")                   page.py       hits -> one HTML file

An index is a folder:

    index.json                  what it was built from and with; it names the store in use, with the checksums of its files,
                                and is replaced last (manifest.py)
    chunks/NUMBER-SHA256.arrow  embeddings and thumbnails of some pictures, as they were done (chunks.py)
    places/names-SHA256.arrow   where each picture lies, and its caption (places.py)
    store-SHA256/               the vectors in the form that is searched, FAISS or LanceDB (stores.py), and ids.npy, theirs

The chunks are what costs time and is kept. A picture is known in them by its content (known.py): it may be moved and renamed.
The rest is made in seconds: the places by every build, a store when pictures come or go, or when a file of it is damaged.
Arrow, FAISS's and Lance's own formats, JSON, plain npy: nothing here is read by pickle.
"""
