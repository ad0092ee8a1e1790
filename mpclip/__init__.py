"""MP-CLIP's library: data, training, encoding, search, export. `mpclip --help` lists the commands.

Imports nothing at this level, so that a command's help is shown at once.
"""
