"""TensorBoard: event files in a folder per run, written without TensorFlow and torch."""

import json
import math
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from runner.loggers.tool import Ending, LoggedRun

_RGBA = 4  # channels that a PNG of matplotlib has


class TensorBoard:
    """See :class:`runner.loggers.tool.Tool`; the id is the name of the run's folder."""

    def __init__(self, run: LoggedRun) -> None:
        self.id = run.id or run.name
        self._writer = EventFileWriter(str(Path(run.folder) / self.id))
        if run.id is None:
            self._add(0, hparams_pb({key: _value(item) for key, item in run.config.items()}))
            rows = [("tricks", ", ".join(run.tags)), *run.config.items()]
            text = "\n".join(["| key | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows)])
            self._add(0, _text("configuration", text))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        found = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._add(step, Summary(value=found))
        self._writer.flush()

    def end(self, step: int, ending: Ending) -> None:
        """See :class:`runner.loggers.tool.Tool`."""
        if ending.table:
            columns = ending.columns
            lines = [columns, ["---"] * len(columns)]
            lines += [[str(row.get(name, "")) for name in columns] for row in ending.table]
            self._add(step, _text("final", "\n".join(f"| {' | '.join(row)} |" for row in lines)))
            self.scalars(step, ending.summary)
        for name, png in ending.figures.items():
            width, height = struct.unpack(">II", png[16:24])  # the header of a PNG
            image = Summary.Image(
                height=height, width=width, colorspace=_RGBA, encoded_image_string=png
            )
            self._add(step, Summary(value=[Summary.Value(tag=f"figures/{name}", image=image)]))
        self._add(step, _text("status", ending.status))
        self._writer.close()

    def _add(self, step: int, summary: Any) -> None:
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))


def _text(tag: str, markdown: str) -> Any:
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode(errors="replace")])
    metadata = create_summary_metadata(display_name=tag, description="")
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])


def _value(value: Any) -> Any:
    """Return a hyperparameter as one of the types that TensorBoard compares."""
    if isinstance(value, bool | str) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    return json.dumps(value)
