"""Pictures drawn with matplotlib from arrays and numbers: sheets of images and charts; no torch."""
