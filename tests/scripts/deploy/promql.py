"""Holds PromQL queries against a scrape: every metric, label and value they name has to be in it.

    scrape = Scrape.parse(text)
    problems("sum by (model) (rate(nv_inference_count[5m]))", scrape, recorded=("retinaserve:batch:mean",))

The grammar is Prometheus' own (promql-parser); functions and argument types are checked by it too.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import promql_parser
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, Call, MatchOp, MatrixSelector, VectorSelector

# What Prometheus adds to everything it scrapes.
TARGET_LABELS = ("instance", "job")
# Exported only where there is a GPU (Triton's metrics.md, "GPU Metrics"; all have the label gpu_uuid).
GPU_METRICS = ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes")


@dataclass(frozen=True)
class Scrape:
    """The values of each label of each metric, and the samples themselves."""

    labels: dict[str, dict[str, set[str]]]
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text format of /metrics."""
        labels: dict[str, dict[str, set[str]]] = {}
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                # The parser appends _total to the samples of a counter; Triton and Prometheus do not.
                name = family.name if family.type == "counter" else sample.name
                known = labels.setdefault(name, defaultdict(set))
                for label, value in sample.labels.items():
                    known[label].add(value)
                samples[name, frozenset(sample.labels.items())] = float(sample.value)
        return cls(labels, samples)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        wanted = set(labels.items())
        return sum(value for (metric, pairs), value in self.samples.items() if metric == name and wanted <= pairs)


def problems(query: str, scrape: Scrape, *, recorded: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with a query; nothing where it can have an answer."""
    try:
        tree = promql_parser.parse(query)
    except ValueError as error:
        return [f"does not parse: {error}"]
    recorded, found, names = set(recorded), [], set()

    def selector(node: VectorSelector) -> None:
        names.add(node.name)
        if node.name in recorded or node.name == "up":
            return
        if node.name in GPU_METRICS:
            known: dict[str, set[str]] = {"gpu_uuid": set()}
        elif node.name in scrape.labels:
            known = scrape.labels[node.name]
        else:
            found.append(f"no metric {node.name}")
            return
        for matcher in node.matchers.matchers:
            found.extend(_matcher_problems(node.name, matcher, known))

    def grouping(node: AggregateExpr) -> None:
        below: set[str] = set()
        _walk(node.expr, lambda inner: below.update(_labels_of(inner, scrape, recorded)))
        wrong = [label for label in (node.modifier.labels if node.modifier else ()) if label not in below]
        found.extend(f"no label {label} to group by" for label in wrong)

    def visit(node: Any) -> None:
        match node:
            case VectorSelector():
                selector(node)
            case AggregateExpr():
                grouping(node)

    _walk(tree, visit)
    if not names:
        found.append("asks for no metric")
    return found


def _matcher_problems(metric: str, matcher: Any, known: dict[str, set[str]]) -> list[str]:
    if matcher.name in TARGET_LABELS:
        return []
    if matcher.name not in known:
        return [f"{metric} has no label {matcher.name}"]
    if matcher.op == MatchOp.Equal and matcher.value not in known[matcher.name]:
        return [f"{metric} has no {matcher.name}={matcher.value!r}, but {sorted(known[matcher.name])}"]
    if matcher.op == MatchOp.Re and not any(re.fullmatch(matcher.value, value) for value in known[matcher.name]):
        return [f"{metric} has no {matcher.name} that matches {matcher.value!r}"]
    return []


def _labels_of(node: Any, scrape: Scrape, recorded: set[str]) -> Iterable[str]:
    if not isinstance(node, VectorSelector):
        return ()
    if node.name in recorded:
        return (*TARGET_LABELS, "model")
    return (*TARGET_LABELS, *scrape.labels.get(node.name, ()), *(("gpu_uuid",) if "gpu" in node.name else ()))


def _walk(node: Any, visit: Callable[[Any], None]) -> None:
    visit(node)
    match node:
        case BinaryExpr():
            children = [node.lhs, node.rhs]
        case Call():
            children = list(node.args)
        case MatrixSelector():
            children = [node.vector_selector]
        case AggregateExpr():
            children = [node.expr]
        case _:
            children = [node.expr] if hasattr(node, "expr") else []
    for child in children:
        _walk(child, visit)
