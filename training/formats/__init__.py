"""Label files of other tools, read into the lists of a COCO file; check/entries.py has the rules for them.

    content, finds = read_format(path, images)      # formats.py finds out which it is

A reader states its convention of coordinates where it takes them. All give boxes in pixels of the upright image.
"""
