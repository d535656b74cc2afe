"""What a difference between two sets of predictions is worth."""

from scipy.special import bdtr  # scipy.stats would take most of a second to import


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value that two predictions of the same images are equally often right.

    McNemar (1947), "Note on the sampling error of the difference between correlated proportions or
    percentages": of the images that only one of them has right, each is as likely to be the one's
    as the other's.

    Args:
        gained: images that only the second has right.
        lost: images that only the first has right.

    Returns:
        In 0..1; 1 where they agree on every image.
    """
    discordant = gained + lost
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), discordant, 0.5)))
