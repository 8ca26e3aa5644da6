"""The quality of the input: when it is too bad to go on, and a report.

The report is one HTML page without scripts, which a browser opens from disk.
"""

import html
from datetime import date, timedelta
from pathlib import Path
from string import Template

import numpy as np
import polars as pl
from ray_shared.errors import JobError, UserError

from data_preprocessing.config import Config
from data_preprocessing.features import HISTOGRAMS
from data_preprocessing.reading import InputFile
from data_preprocessing.results import Counts

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data quality</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
tr + tr td { border-top: 1px solid #eee }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto }
rect.bar { fill: #3b75af } text { font: 11px system-ui, sans-serif; fill: #555 }
</style></head><body>
<h1>Data quality</h1>
<p>$summary</p>
<h2>Rows</h2>$rows
<h2>Rows in quarantine, by reason</h2>$reasons
<h2>Files that cannot be read</h2>$unreadable
<h2>Rows that keep the contract</h2>
<p>What lies beyond an axis counts in its last bar.</p>
<div class="charts">$charts</div>
</body></html>
""")


def check_quality(config: Config, counts: Counts) -> None:
    """Stops before anything is made of rotten input.

    Raises:
        JobError: If it is worse than `quality` allows.
        UserError: If no row can be read.
    """
    quality = config.quality
    if len(counts.unreadable) > quality.max_bad_files:
        names = ", ".join(file.uri for file, _ in counts.unreadable)
        allowed = f"quality.max_bad_files={quality.max_bad_files}"
        raise JobError(f"{len(counts.unreadable)} files cannot be read ({names}): {allowed}")
    if counts.bad_fraction > quality.max_bad_fraction:
        raise JobError(
            f"{counts.bad_fraction:.1%} of the rows break the contract, more than "
            f"quality.max_bad_fraction={quality.max_bad_fraction:g}: {counts.shown_reasons()}"
        )
    if not counts.rows_in:
        raise UserError(f"data.path={config.data.path}: there is no row in any of its files")


def check_splits(config: Config, counts: Counts, statistics: pl.DataFrame) -> None:
    """Stops where there would be nothing to train on, or to test with.

    Raises:
        UserError: If a split has no rows.
    """
    for split, key in (("train", "val_from"), ("val", "test_from"), ("test", "test_from")):
        if not counts.splits[split]:
            value = getattr(config.split, key)
            days = statistics.filter(pl.col("kind") == "day")["key"].to_list()
            first, last = (date(1970, 1, 1) + timedelta(day) for day in (min(days), max(days)))
            there = f"the trips are of {first} to {last}"
            raise UserError(f"split.{key}={value}: leaves no row for {split}: {there}")


def write_page(
    directory: Path, counts: Counts, statistics: pl.DataFrame, files: list[InputFile]
) -> Path:
    """Writes `quality.html`.

    Args:
        directory: Where to.
        counts: Where the rows went.
        statistics: With the kinds `histogram:*`.
        files: The input files.
    """
    size_mb = sum(file.size for file in files) / 1e6
    charts = []
    for name, edges in HISTOGRAMS.items():
        bins = statistics.filter(pl.col("kind") == f"histogram:{name}").sort("key")
        charts.append(_chart(name, np.asarray(edges, float), bins["n"].to_list()))
    splits = {f"for {name}": rows for name, rows in counts.splits.items()}
    page = PAGE.substitute(
        summary=f"{len(files)} files, {size_mb:,.0f} MB; {counts.bad_fraction:.2%} of the rows "
        "break the contract.",
        rows=_table({"in": counts.rows_in, **splits, "in quarantine": counts.rows_quarantined}),
        reasons=_table(counts.reasons) if counts.reasons else "<p>None.</p>",
        unreadable=_files(counts) if counts.unreadable else "<p>None.</p>",
        charts="".join(charts),
    )
    path = directory / "quality.html"
    path.write_text(page)
    return path


def _table(rows: dict[str, int]) -> str:
    ranked = rows.items()
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{n:,}</td></tr>' for name, n in ranked
    )
    return f"<table>{cells}</table>"


def _files(counts: Counts) -> str:
    cells = "".join(
        f"<tr><td>{html.escape(file.uri)}</td><td>{html.escape(why)}</td></tr>"
        for file, why in counts.unreadable
    )
    return f"<table>{cells}</table>"


def _chart(name: str, edges: np.ndarray, bins: list[int]) -> str:
    """A histogram as SVG, 320 by 150."""
    width, height, left = 320.0, 110.0, 5.0
    top = max(bins, default=0) or 1
    step = (width - 2 * left) / max(len(bins), 1)
    bars = "".join(
        f'<rect class="bar" x="{left + i * step:.1f}" y="{10 + height * (1 - n / top):.1f}" '
        f'width="{max(step - 1, 0.5):.1f}" height="{height * n / top:.1f}">'
        f"<title>{edges[i]:g} to {edges[i + 1]:g}: {n:,}</title></rect>"
        for i, n in enumerate(bins)
    )
    ticks = "".join(
        f'<text x="{x:.0f}" y="136" text-anchor="{anchor}">{value:g}</text>'
        for x, anchor, value in (
            (left, "start", edges[0]),
            (width / 2, "middle", (edges[0] + edges[-1]) / 2),
            (width - left, "end", edges[-1]),
        )
    )
    shown = html.escape(name.replace("_", " "))
    return (
        f'<figure><figcaption>{shown}</figcaption><svg viewBox="0 0 {width:.0f} 140" '
        f'role="img" aria-label="Histogram of {shown}">{bars}{ticks}</svg></figure>'
    )
