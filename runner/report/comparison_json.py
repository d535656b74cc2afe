"""The answer of a comparison as values of JSON, for its record and for other programs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from runner.errors import ArtefactError
from runner.machine import fields
from runner.records.comparison_folder import ComparisonPlan, plan_content, plan_of
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import REASONS, ComparisonAnswer, LookRow, Standing
from runner.report.confirmation import to_content
from runner.report.family import Verdict
from runner.report.measures import Mean, Pair
from runner.report.metric import METRICS

_FORMAT = 1
_LARGEST = 88.0  # a value that is no rate: log loss ends at that of the smallest probability


def to_json(answer: ComparisonAnswer) -> dict[str, Any]:
    """Return the answer as values of JSON; differences and rates are parts of 1, not percent.

    The keys stay as they are; others may join them. Equal answers have equal values: nothing in
    them depends on the clock, unless the answer is :func:`~runner.report.comparisons.timed`.

    ``format``
        1.
    ``plan``
        the question, as ``comparison.json`` has it: ``name``, ``base``, ``arms``, ``margin``,
        ``metric``, ``design``, ``max_seeds``, ``looks``, ``first_seed``, ``tune``,
        ``shares_runs_with``.
    ``base``
        ``accuracy`` {``mean``, ``low``, ``high``} or null, the same as ``value`` of the metric
        that is compared if it is not accuracy, ``seeds``, ``failed`` {seed: reason},
        ``chosen``, ``price`` {``images``, ``pixels``, with :func:`~runner.report.comparisons.timed`
        ``seconds``}.
    ``arms``
        a list in the order of the plan: ``label``, ``words``, ``chosen``, ``seeds``, ``failed``,
        ``difference`` and its interval ``low`` and ``high``, ``p_zero``, ``p_margin`` (null where
        there is none yet), ``verdict`` (helps, hurts, no difference, cannot tell, failed),
        ``is_open``, ``reason`` (decided, futile, all seeds, failed, budget or empty), ``is_early``,
        ``max_seeds``, ``accuracy`` and ``price`` as for the base but relative to it, ``pairs``
        [{``seed``, ``difference``, ``gained``, ``lost``, ``p``}], and ``line``, the verdict in
        words.
    ``looks``
        a list: ``n``, ``label``, ``num_pairs``, ``mean``, ``p_zero``, ``p_margin``, ``verdict``.
    ``is_ended``, ``num_trainings``, ``num_evaluations``, ``notes``
        as in :class:`ComparisonAnswer`.
    ``confirmation``
        only after ``--confirm-on test``: ``split``, ``is_verdict`` (false), ``metric``,
        ``test_fingerprint``, ``num_images``, ``base`` and ``arms``, each with ``label``, ``mean``,
        ``values`` {seed: value}, and for arms ``difference``, ``low`` and ``high``.
    """
    return {
        "format": _FORMAT,
        "plan": plan_content(answer.plan),
        "base": {
            "accuracy": _mean_content(answer.base),
            **_value_content(answer.plan, answer.base_value),
            "seeds": [*answer.base_seeds],
            "failed": _failed_content(answer.base_failed),
            "chosen": [*answer.base_chosen],
            "price": dict(answer.base_price),
        },
        "arms": [
            {
                "label": one.label,
                "words": [*one.words],
                "chosen": [*one.chosen],
                "seeds": [*one.seeds],
                "failed": _failed_content(one.failed),
                "difference": one.mean,
                "low": one.interval[0] if one.interval else None,
                "high": one.interval[1] if one.interval else None,
                "p_zero": one.p_zero,
                "p_margin": one.p_margin,
                "verdict": one.outcome,
                "is_open": one.is_open,
                "reason": one.reason,
                "is_early": one.is_early,
                "max_seeds": one.max_seeds,
                "accuracy": _mean_content(one.accuracy),
                **_value_content(answer.plan, one.value),
                "price": dict(one.price),
                "pairs": [vars(pair) for pair in one.pairs],
                "line": verdict_line(one, answer.plan.margin, answer.metric),
            }
            for one in answer.standings
        ],
        "looks": [dict(vars(row)) for row in answer.looks],
        "is_ended": answer.is_ended,
        "num_trainings": answer.num_trainings,
        "num_evaluations": answer.num_evaluations,
        "notes": [*answer.notes],
        **(
            {} if answer.confirmation is None else {"confirmation": to_content(answer.confirmation)}
        ),
    }


def _mean_content(mean: Mean | None) -> dict[str, float | None] | None:
    if mean is None:
        return None
    low, high = mean.interval or (None, None)
    return {"mean": mean.mean, "low": low, "high": high}


def _value_content(plan: ComparisonPlan, value: Mean | None) -> dict[str, Any]:
    """Return the value of the metric, if it is not accuracy."""
    return {} if plan.metric == "accuracy" else {"value": _mean_content(value)}


def _failed_content(failed: Mapping[int, str]) -> dict[str, str]:
    return {str(seed): reason for seed, reason in sorted(failed.items())}


def from_json(content: Mapping[str, Any]) -> ComparisonAnswer:
    """Return the answer that :func:`to_json` made.

    Raises:
        ArtefactError: ``content`` is not such an answer.
    """
    try:
        return _answer_of(content)
    except ValueError as error:
        raise ArtefactError(f"not the answer of a comparison: {error}") from error


def _answer_of(content: Mapping[str, Any]) -> ComparisonAnswer:
    if (version := fields.value(content, "format")) != _FORMAT:
        raise ValueError(f"its format is {version!r}, this program reads {_FORMAT}")
    plan = plan_of(fields.section(content, "plan"))
    base = fields.section(content, "base")
    arms = fields.sections(content, "arms")
    if [fields.text(one, "label") for one in arms] != [*plan.labels]:
        raise ValueError("arms must be those of the plan, in their order")
    return ComparisonAnswer(
        plan=plan,
        base=_mean_from(base, "accuracy"),
        base_value=_value_from(base, plan),
        base_seeds=_wholes(base, "seeds"),
        base_failed=_failed_from(base),
        base_chosen=fields.texts(base, "chosen"),
        base_price=_prices_from(base),
        standings=tuple(_standing_from(one, plan) for one in arms),
        looks=tuple(
            LookRow(
                n=fields.whole(row, "n", at_least=1),
                label=_one_of(row, "label", plan.labels),
                num_pairs=fields.whole(row, "num_pairs"),
                mean=fields.number(row, "mean", at_least=-_most(plan), at_most=_most(plan)),
                p_zero=fields.number(row, "p_zero", at_least=0, at_most=1),
                p_margin=fields.number(row, "p_margin", at_least=0, at_most=1),
                verdict=_verdict_from(row),
            )
            for row in fields.sections(content, "looks")
        ),
        is_ended=_flag(content, "is_ended"),
        num_trainings=fields.whole(content, "num_trainings"),
        num_evaluations=fields.whole(content, "num_evaluations"),
        notes=fields.texts(content, "notes"),
    )


def _standing_from(one: Mapping[str, Any], plan: ComparisonPlan) -> Standing:
    most = _most(plan)
    low, high = (_maybe(one, key, -2 * most, 2 * most) for key in ("low", "high"))
    has_failed = fields.value(one, "reason") == "failed"
    if has_failed and not fields.section(one, "failed"):
        raise ValueError("an arm cannot fail without a failed seed")
    if has_failed and fields.value(one, "verdict") == "failed":  # earlier records: cannot tell
        one = {**one, "verdict": "cannot tell"}
    return Standing(
        label=fields.text(one, "label"),
        words=fields.texts(one, "words"),
        chosen=fields.texts(one, "chosen"),
        seeds=_wholes(one, "seeds"),
        failed=_failed_from(one),
        mean=_maybe(one, "difference", -most, most),
        interval=None if low is None or high is None else (low, high),
        p_zero=_maybe(one, "p_zero", 0, 1),
        p_margin=_maybe(one, "p_margin", 0, 1),
        verdict=_verdict_from(one),
        is_open=_flag(one, "is_open"),
        reason=_one_of(one, "reason", REASONS),
        is_early=_flag(one, "is_early"),
        max_seeds=fields.whole(one, "max_seeds", at_least=1),
        accuracy=_mean_from(one, "accuracy"),
        value=_value_from(one, plan),
        price=_prices_from(one),
        pairs=tuple(
            Pair(
                seed=fields.whole(pair, "seed"),
                difference=fields.number(pair, "difference", at_least=-most, at_most=most),
                gained=fields.whole(pair, "gained"),
                lost=fields.whole(pair, "lost"),
                p=fields.number(pair, "p", at_least=0, at_most=1),
            )
            for pair in fields.sections(one, "pairs")
        ),
        num_folds=plan.num_folds,
    )


def _verdict_from(one: Mapping[str, Any]) -> Verdict:
    verdicts: tuple[Verdict, ...] = get_args(Verdict)
    found = _one_of(one, "verdict", verdicts)
    return next(verdict for verdict in verdicts if verdict == found)


def _one_of(values: Mapping[str, Any], key: str, options: Sequence[str]) -> str:
    found = fields.text(values, key)
    if found not in options:
        raise ValueError(f"{key} must be one of {', '.join(options)}, not {found!r:.80}")
    return found


def _flag(values: Mapping[str, Any], key: str) -> bool:
    found = fields.value(values, key)
    if not isinstance(found, bool):
        raise ValueError(f"{key} must be true or false")
    return found


def _maybe(values: Mapping[str, Any], key: str, low: float, high: float) -> float | None:
    if fields.value(values, key) is None:
        return None
    return fields.number(values, key, at_least=low, at_most=high)


def _wholes(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    found = fields.value(values, key)
    if not isinstance(found, list):
        raise ValueError(f"{key} must be a list of whole numbers")
    return tuple(fields.whole({key: one}, key) for one in found)


def _mean_from(values: Mapping[str, Any], key: str, *, at_most: float = 1) -> Mean | None:
    if fields.value(values, key) is None:
        return None
    found = fields.section(values, key)
    low, high = (_maybe(found, end, -100, 100) for end in ("low", "high"))
    interval = None if low is None or high is None else (low, high)
    return Mean(fields.number(found, "mean", at_least=0, at_most=at_most), interval)


def _value_from(values: Mapping[str, Any], plan: ComparisonPlan) -> Mean | None:
    """Return the value of the metric that is compared; that of accuracy has a key of its own."""
    if plan.metric == "accuracy":
        return _mean_from(values, "accuracy")
    return _mean_from(values, "value", at_most=_most(plan))


def _most(plan: ComparisonPlan) -> float:
    """Return the largest value of the metric that is compared."""
    return 1.0 if METRICS[plan.metric].unit else _LARGEST


def _failed_from(values: Mapping[str, Any]) -> dict[int, str]:
    found = fields.section(values, "failed")
    if foreign := [seed for seed in found if not re.fullmatch(r"0|[1-9][0-9]{0,10}", seed)]:
        raise ValueError(f"a seed must be a whole number, not {foreign[0]!r:.80}")
    return {int(seed): fields.text(found, seed) for seed in found}


def _prices_from(values: Mapping[str, Any]) -> dict[str, float]:
    found = fields.section(values, "price")
    return {key: fields.number(found, key, at_least=0) for key in found}
