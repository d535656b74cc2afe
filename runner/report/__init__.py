"""Run folders in, an answer out: whether a trick helps, and whether that is more than noise.

``runs`` reads folders, ``groups`` sorts them into what may be compared, ``answer`` compares,
``text`` and ``page`` say it in the terminal and in HTML.
"""
