"""Prometheus' text format: families of samples, with HELP and TYPE, and escaped labels. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

GAUGE = "gauge"
COUNTER = "counter"

_IN_LABEL = {ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"}
_IN_HELP = {ord("\\"): r"\\", ord("\n"): r"\n"}


@dataclass
class Family:
    """All samples of one metric: labels, and the value of each."""

    name: str
    help: str
    kind: str = GAUGE
    samples: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict)

    def add(self, value: float, **labels: str) -> None:
        """One sample more; of the same labels the last one counts, as two make a file invalid."""
        self.samples[tuple(labels.items())] = value

    def lines(self) -> Iterator[str]:
        """As they stand in the file; none without samples."""
        if not self.samples:
            return
        yield f"# HELP {self.name} {self.help.translate(_IN_HELP)}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples.items():
            named = ",".join(f'{name}="{_label(text)}"' for name, text in labels)
            yield f"{self.name}{f'{{{named}}}' if named else ''} {_number(value)}"


def text(families: Iterable[Family]) -> bytes:
    """The file. A byte that is no UTF-8 becomes a question mark: the format has none."""
    lines = [line for family in families for line in family.lines()]
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def _label(value: str) -> str:
    return value.translate(_IN_LABEL)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))
