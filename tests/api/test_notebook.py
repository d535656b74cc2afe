"""The notebook of the examples runs, its progress is text, and an interrupted cell is resumed."""

import re
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
PAGE = (ROOT / "docs" / "python.md").read_text()
pytestmark = [
    pytest.mark.whole,
    pytest.mark.filterwarnings("ignore"),  # of Jupyter's packages
]


def executed(notebook: Any, folder: Path) -> Any:
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def outputs(cell: Any) -> str:
    texts = [
        part.get("text") or part.get("data", {}).get("text/plain", "") for part in cell.outputs
    ]
    return "\n".join(texts)


def test_the_notebook_runs(tmp_path: Path) -> None:
    found = executed(nbformat.read(NOTEBOOK, as_version=4), tmp_path)
    cells = [cell for cell in found.cells if cell.cell_type == "code"]
    train, _, compare, *_, mistake = map(outputs, cells)
    assert "epoch 1/1" in train
    assert "Run(fashion-xresnet18-mixup-seed0-" in train
    assert any("text/html" in part.get("data", {}) for part in cells[0].outputs)  # rich's own
    assert "'tta=flip': " in compare
    assert "mixup.alpha" in mistake
    assert "Traceback" not in "".join(map(outputs, cells))


def test_an_interrupted_cell_is_resumed(tmp_path: Path) -> None:
    cells = [
        "import runner, threading, time, os, signal\n"
        "words = ['budget.epochs=9', 'resize.size=16', 'threads=1', 'model=timm',\n"
        "         'model.name=test_resnet']",
        # As a click on the button of interruption does, in the middle of the training.
        "def interrupt():\n"
        "    from pathlib import Path\n"
        "    while not list(Path('outputs').glob('*/metrics.jsonl')): time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try:\n"
        "    runner.train(*words)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')",
        "print(runner.train(*words).status)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    found = executed(notebook, tmp_path)
    assert "interrupted" in outputs(found.cells[1])
    assert "resumed" in outputs(found.cells[2])


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"<!-- test: python -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    (cell,) = executed(notebook, tmp_path).cells
    assert "'Ankle boot'" in outputs(cell)
