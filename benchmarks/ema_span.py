"""The gain of EMA by its span: the last weights and several averages of the same trainings.

    python -m benchmarks.ema_span --spans 0.02 0.05 0.1 0.2 --seeds 200 201 202 203 204

Training does not depend on the average, so one training serves all spans. The default span was
chosen with seeds that no other table uses.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.measure import parser, report
from runner.config import compose
from runner.terminal.tables import Table


def main() -> None:
    """Run the command; see ``--help``."""
    options = parser("ema_span", "The last weights compared with averages of several spans.")
    options.add_argument("--spans", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    options.add_argument("--seeds", type=int, nargs="+", default=[200, 201, 202, 203, 204])
    options.add_argument("--words", nargs="*", default=[], help="words of every run")
    arguments = options.parse_args()
    compose.register()
    by_seed = []
    for seed in arguments.seeds:
        words = [*arguments.words, f"seed={seed}", f"outputs='{arguments.outputs.absolute()}'"]
        by_seed.append(accuracies(words, arguments.spans))
        print(seed, *(f"{100 * accuracy:.2f}" for accuracy in by_seed[-1]), flush=True)
    names = ["last weights", *(f"span {span:g}" for span in arguments.spans)]
    rows = []
    for name, values in zip(names, zip(*by_seed, strict=True), strict=True):
        gains = [100 * (value - own[0]) for value, own in zip(values, by_seed, strict=True)]
        spread = f" ± {stdev(gains):.2f}" if len(gains) > 1 else ""
        rows.append((name, f"{100 * fmean(values):.2f}", f"{fmean(gains):+.2f}{spread}"))
    columns = ("weights", "accuracy, %", "paired gain, points")
    table = Table(f"EMA, {len(by_seed)} seeds", columns, tuple(rows), ("weights",))
    facts = {"words": arguments.words, "seeds": arguments.seeds, "names": names,
             "accuracies": by_seed}  # fmt: skip
    report("ema_span", table, facts, arguments.json)


def accuracies(words: Sequence[str], spans: Sequence[float]) -> list[float]:
    """Train once; return the accuracy of the last weights, and of the average of each span."""
    from dataclasses import replace

    from runner.config.ema import Ema
    from runner.data.dataset import load_dataset
    from runner.training.learners import build_learner
    from runner.training.loop import Training
    from runner.training.predicting import evaluate
    from runner.training.schedule import plan
    from runner.tricks.ema import AveragedWeights

    config = compose.config_of(words)
    cache = Path(config.outputs) / "cache"
    dataset = load_dataset(config.data, config.largest_size, cache, lambda *_: None)
    learner, _ = build_learner(config, dataset)
    training = Training(learner, dataset, plan(config, len(dataset.train)), config)
    averages = [AveragedWeights(learner.model, Ema(span=span), training.total) for span in spans]
    for step in training:
        for average in averages:
            average.after_step(learner.model, step.moment.before)
    networks = [learner.model, *(average.network(learner.model) for average in averages)]
    found = []
    for network in networks:
        own = replace(learner, model=network)
        predictions = evaluate(own, dataset, config, with_tta=False)
        found.append(float((predictions.plain.argmax(axis=1) == predictions.labels).mean()))
    return found


if __name__ == "__main__":
    main()
