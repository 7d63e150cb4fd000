"""How large report.html is and how fast a browser paints it: bench/report_page.py REPORT...

Each REPORT is a report.html, or the folder of a build. Needs chromium and the extra `dev`.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from optimc.testing.browser import chromium, open_browser

RUNS = 7
_PAINT = """() => new Promise(told => new PerformanceObserver(entries => {
  for (const entry of entries.getEntries())
    if (entry.name === "first-contentful-paint") told(entry.startTime);
}).observe({type: "paint", buffered: true}))"""


def main(arguments: list[str]) -> int:
    """Prints a line for each page."""
    program = chromium()
    if not arguments or program is None:
        print(__doc__ if program else "no chromium here", file=sys.stderr)
        return 2
    with open_browser(program) as browser:
        for argument in arguments:
            path = Path(argument).resolve()
            path = path / "report.html" if path.is_dir() else path
            paints = []
            for _ in range(RUNS):
                page = browser.new_context().new_page()
                page.goto(path.as_uri(), wait_until="load")
                paints.append(page.evaluate(_PAINT))
                page.close()
            print(
                f"{argument}: {path.stat().st_size / 1e6:.3f} MB, first contentful paint "
                f"{statistics.median(paints):.0f} ms (median of {RUNS}, "
                f"at most {max(paints):.0f} ms)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
