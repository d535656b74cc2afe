"""The report on run folders: whether a trick helps, and whether the difference exceeds the noise.

``runs`` reads folders, ``groups`` sorts runs into comparable groups, ``answer`` compares the runs
of a group, ``text`` and ``page`` write the answer for the terminal and as HTML.
"""
