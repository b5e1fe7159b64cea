"""Suite ``scaling``: training of NoProp-DT on 1, 2, 4, … workers."""

from typing import Any

from noprop.bench.contestants import race, ratios
from noprop.bench.display import INK, error_bars, shown
from noprop.bench.plain import BATCH
from noprop.bench.settings import Settings
from noprop.bench.suites import Progress, Results, Suite
from noprop.bench.training import most_workers, ours
from noprop.report.tables import table

__all__ = ["SUITE", "worker_counts"]


def worker_counts(settings: Settings) -> list[int]:
    """Return 1, 2, 4, … and the most workers that NoProp-DT's units can use."""
    most = most_workers(settings, "dt")
    return sorted({1, *(2**k for k in range(20) if 2**k < most), most})


def measure(settings: Settings, results: Results, progress: Progress) -> None:
    """Measure images per second for each number of workers, and how many times as fast as one."""
    timings = race(
        {str(n): ours(settings, "dt", n) for n in worker_counts(settings)},
        rounds=settings.rounds,
        seconds=settings.seconds,
        progress=lambda text: progress(f"workers: {text}"),
    )
    results["scaling"] = {
        "workers": {
            name: {"images_per_second": t.rate(BATCH), "over_one": ratios(t, timings["1"])}
            for name, t in timings.items()
        }
    }


def text(results: Results) -> str:
    """Return a row for each number of workers."""
    rows = [
        [count, shown(row["images_per_second"]), shown(row["over_one"], 2)]
        for count, row in results["scaling"]["workers"].items()
    ]
    return "dt over workers\n" + table(["workers", "images/s", "times one"], rows)


def figure(figure: Any, results: Results) -> None:
    """Draw the speed over the number of workers."""
    axes, rows = figure.subplots(), results["scaling"]["workers"]
    counts, values = [int(n) for n in rows], [row["over_one"] for row in rows.values()]
    medians = [v["median"] for v in values]
    axes.errorbar(counts, medians, yerr=error_bars(values), fmt="o-", capsize=4, label="measured")
    axes.plot(counts, counts, "--", color=INK["plain"], label="as many times as workers")
    axes.set_xticks(counts)
    axes.set_xlabel("workers")
    axes.set_ylabel("times one worker")
    axes.set_title("dt: images per second over workers")
    axes.legend()


SUITE = Suite(
    steps=lambda settings: settings.race_steps(len(worker_counts(settings))),
    measure=measure,
    table=text,
    figures={"scaling": figure},
)
