"""The machine under a run: cores, devices, processes, signals, locks and files."""
