"""Figure: one measured number with its aim and the noise beside it; tables of them."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """value: None when it could not be had; `note` says why.

    at_most, at_least: the aim; neither for a figure that is only told.
    others_cores: cores that other programs used meanwhile.
    """

    part: str
    name: str
    value: float | None
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    others_cores: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """None when there is no aim or no value."""
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        under = self.at_most is None or self.value <= self.at_most
        return under and (self.at_least is None or self.value >= self.at_least)

    @property
    def aim(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else ""


class Part:
    """Collects the figures of one part; `show` is called with each as soon as it is there."""

    def __init__(self, name: str, show: Callable[[Figure], None]) -> None:
        self.name = name
        self._show = show

    def add(
        self,
        name: str,
        value: float | None,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        noise: float | None = None,
        note: str = "",
    ) -> None:
        self._show(
            Figure(
                part=self.name,
                name=name,
                value=value,
                unit=unit,
                at_most=at_most,
                at_least=at_least,
                others_cores=noise,
                note=note,
            )
        )

    def add_growth(
        self,
        figures: Sequence[tuple[str, str, float | None]],
        found: Mapping[int, Mapping[str, float]],
        of: str,
        noise: float,
    ) -> None:
        """Add the figures of the last size, with how they grow in the note.

        figures: name, unit and aim of each. found: by size, in the order of growth. of: what is counted.
        """
        last = list(found)[-1]
        for name, unit, at_most in figures:
            grows = ", ".join(f"{size}: {one[name]:.3g}" for size, one in found.items())
            self.add(
                f"{name}, {last} {of}",
                found[last][name],
                unit,
                at_most=at_most,
                noise=noise,
                note=grows,
            )


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table, its columns aligned."""
    rows = [("part", "figure", "value", "unit", "aim", "met", "others' cores", "note")]
    met = {True: "yes", False: "NO", None: ""}
    for one in figures:
        value = "—" if one.value is None else _shown(one.value)
        noise = "" if one.others_cores is None else f"{one.others_cores:.2f}"
        rows.append(
            (one.part, one.name, value, one.unit, one.aim, met[one.is_met], noise, one.note)
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(figures: Sequence[Figure]) -> str:
    """Return one JSON array."""
    found = [{**asdict(one), "is_met": one.is_met} for one in figures]
    return json.dumps(found, indent=1, ensure_ascii=False)


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`1.02..1.10 of 3`: for a note."""
    return f"{min(values):.{digits}f}..{max(values):.{digits}f} of {len(values)}"


# Private


def _shown(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
