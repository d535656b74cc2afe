"""The commands as functions of Python: ``runner.train(...)``; see :mod:`runner.api.functions`."""
